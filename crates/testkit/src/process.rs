//! One node as a process of its own: started, killed, terminated, and looked at from outside.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::wait::eventually;

/// Longest run of a command that is expected to end by itself.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Lines of a log that a failure shows.
const TAIL_LINES: usize = 40;

/// Which process runs a node now, for those who watch it.
#[derive(Debug, Clone, Default)]
pub struct ProcessId(Arc<AtomicU32>);

impl ProcessId {
    /// The process; `None` while the node does not run.
    pub fn get(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|id| *id != 0)
    }

    pub(crate) fn set(&self, id: Option<u32>) {
        self.0.store(id.unwrap_or_default(), Ordering::Relaxed);
    }
}

/// A node's process, running or not. What it prints is appended to its log file. It is killed with the value.
#[derive(Debug)]
pub struct NodeProcess {
    binary: PathBuf,
    home: PathBuf,
    log: PathBuf,
    environment: Vec<(String, String)>,
    child: Option<Child>,
    id: ProcessId,
    paused: bool,
}

impl NodeProcess {
    /// The node in `home`, not started yet.
    pub fn new(binary: &Path, home: &Path, log: &Path) -> Self {
        let (binary, home, log) = (binary.to_owned(), home.to_owned(), log.to_owned());
        Self { binary, home, log, environment: Vec::new(), child: None, id: ProcessId::default(), paused: false }
    }

    /// Sets variables of its environment, from the next start on.
    pub fn set_environment(&mut self, variables: Vec<(String, String)>) {
        self.environment = variables;
    }

    /// Sets more of them.
    pub fn add_environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        self.environment.extend(variables);
    }

    /// Starts `lockstep start`. Call it on the test's own thread: the process is killed when that thread ends.
    ///
    /// # Panics
    /// When it runs already, or the program cannot be run.
    pub fn start(&mut self) {
        assert!(!self.is_running(), "{} runs already", self.home.display());
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
        let mut command = Command::new(&self.binary);
        command.arg("start").arg("--home").arg(&self.home).env("RUST_BACKTRACE", "1").stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdout(log.try_clone().expect("a second handle on the log")).stderr(log);
        die_with_this_thread(&mut command);
        let child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", self.binary.display()));
        self.id.set(Some(child.id()));
        self.child = Some(child);
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Its process id, now and over later runs.
    pub fn watch_id(&self) -> ProcessId {
        self.id.clone()
    }

    /// The program that it runs.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Runs another build of the program from the next start on.
    pub fn set_binary(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// Its home.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// SIGKILL: nothing is flushed, nobody is told.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.child = None;
        self.id.set(None);
        self.paused = false;
    }

    /// SIGTERM: it is asked to stop in order. See [`NodeProcess::ended`]. A paused process hears it when it goes on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn terminate(&mut self) {
        self.signal(libc::SIGTERM);
    }

    /// SIGSTOP: it does nothing more, and its sockets stay open.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pause(&mut self) {
        self.signal(libc::SIGSTOP);
        self.paused = true;
    }

    /// SIGCONT: it goes on as if no time had passed.
    ///
    /// # Panics
    /// When it does not run.
    pub fn resume(&mut self) {
        self.signal(libc::SIGCONT);
        self.paused = false;
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    fn signal(&mut self, signal: i32) {
        assert!(self.is_running(), "{} does not run:\n{}", self.home.display(), self.log_tail());
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok()).expect("a process to signal");
        // SAFETY: a signal to a child that was not waited for, so that the id is still its own.
        #[allow(unsafe_code)]
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "signal {signal} was not sent to {pid}");
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// When it does not within that time.
    pub async fn ended(&mut self, within: Duration) -> ExitStatus {
        let what = format!("{} ends", self.home.display());
        let child = self.child.as_mut().expect("a process to wait for");
        let status = eventually(&what, within, async || {
            child.try_wait().expect("the child can be asked").ok_or_else(|| "it runs".to_owned())
        });
        let status = status.await;
        self.forget();
        status
    }

    /// Memory that it holds now.
    pub fn rss_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Most memory that it has held.
    pub fn peak_rss_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, field: &str) -> u64 {
        let pid = self.pid().expect("a process to look at");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
        line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("/proc tells the memory of a live process")
            << 10
    }

    /// What it has printed, over all its runs.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of [`NodeProcess::log`].
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Wants no panic in the log.
    ///
    /// # Panics
    /// With the log from the first panic on.
    pub fn assert_no_panic(&self) {
        let log = self.log();
        if let Some(at) = log.find("panicked at") {
            let shown: String = log[at.saturating_sub(200)..].chars().take(4_000).collect();
            panic!("{} panicked:\n{shown}", self.home.display());
        }
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// So that no process outlives a test that is itself killed.
fn die_with_this_thread(command: &mut Command) {
    let end = || {
        // SAFETY: a system call on plain numbers, allowed between fork and exec.
        #[allow(unsafe_code)]
        let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(end);
    }
}

/// What to do to a process between fork and exec.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Largest file that it may write; a write beyond fails with an error instead of a signal.
    pub file_bytes_max: Option<u64>,
}

/// Runs a command to its end, with what it prints. The command is killed at the deadline.
///
/// # Panics
/// When it does not end in time.
pub fn run_limited(command: &mut Command, limits: Limits, within: Duration) -> Output {
    if let Some(bytes) = limits.file_bytes_max {
        limit_file_size(command, bytes);
    }
    die_with_this_thread(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let deadline = Instant::now() + within;
    let (status, late) = loop {
        if let Some(status) = child.try_wait().expect("the child can be asked") {
            break (status, false);
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            break (child.wait().expect("a killed child ends"), true);
        }
        thread::sleep(POLL_INTERVAL);
    };
    let collect = |reader: thread::JoinHandle<Vec<u8>>| reader.join().unwrap_or_default();
    let output = Output { status, stdout: collect(stdout), stderr: collect(stderr) };
    assert!(!late, "{command:?} did not end within {within:?}:\n{}", text_of(&output));
    output
}

fn drain(pipe: Option<impl std::io::Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is what there is.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn limit_file_size(command: &mut Command, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: two system calls on plain data between fork and exec; nothing is allocated.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            if libc::setrlimit(libc::RLIMIT_FSIZE, &limit) != 0
                || libc::signal(libc::SIGXFSZ, libc::SIG_IGN) == libc::SIG_ERR
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// Both streams, for a failure's message.
pub fn text_of(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs the program with `arguments` and wants it to succeed. Returns what it printed to its standard output.
///
/// # Panics
/// When it fails or does not end in time.
pub fn run<S: AsRef<std::ffi::OsStr>>(binary: &Path, arguments: impl IntoIterator<Item = S>) -> String {
    let mut command = Command::new(binary);
    command.args(arguments);
    let output = run_limited(&mut command, Limits::default(), COMMAND_DEADLINE);
    assert!(output.status.success(), "{command:?} failed ({}):\n{}", output.status, text_of(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Raises this process' own limit on open files as far as it may, and returns it.
pub fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write the struct above and nothing else.
    #[allow(unsafe_code)]
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
    limit.rlim_cur
}

/// Where `make deps` puts a program that tests run: the cache of tools, or what LOCKSTEP_TOOLS names.
pub fn tool(name: &str) -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/lockstep/tools");
    std::env::var_os("LOCKSTEP_TOOLS").map_or_else(home, PathBuf::from).join("bin").join(name)
}
