//! A NATS JetStream cluster of one test: own directory, own ports, gone with the value or with the process.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::http::local;
use crate::ports::free_port;
use crate::process::tool;

/// Longest wait for a server, or for the servers to agree.
const SERVER_DEADLINE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How often a start is tried on other ports when one is taken in between.
const PORT_ATTEMPTS_MAX: usize = 8;

/// Runs a server until it is told to kill it, or until whoever could tell is gone: then its files go too.
const KEEPER: &str = r#"directory=$1; shift
"$@" & server=$!
word=gone; read -r word || word=gone
kill -9 "$server"; wait "$server"
[ "$word" = kill ] || rm -rf "$directory""#;

/// One server.
#[derive(Debug)]
struct Server {
    directory: PathBuf,
    port: u16,
    cluster_port: u16,
    monitor_port: u16,
    keeper: Option<Child>,
}

/// Servers of one cluster with JetStream, or one alone.
#[derive(Debug)]
pub struct Nats {
    program: PathBuf,
    directory: TempDir,
    servers: Vec<Server>,
}

impl Nats {
    /// Starts three servers that form a cluster.
    ///
    /// # Panics
    /// When NATS's server is not installed or does not come up in time.
    pub fn start() -> Self {
        Self::start_with(3, "", "")
    }

    /// Starts `count` servers, each with these further settings: of the server, and in the section of JetStream.
    ///
    /// # Panics
    /// As [`Nats::start`].
    pub fn start_with(count: usize, settings: &str, jetstream: &str) -> Self {
        for _ in 0..PORT_ATTEMPTS_MAX {
            let mut nats = Self::configure(count, settings, jetstream);
            for index in 0..count {
                nats.launch(index);
            }
            if nats.is_ready_in_time() {
                return nats;
            }
            eprintln!("NATS did not start, perhaps a port was taken:\n{}", nats.log());
        }
        panic!("NATS did not start");
    }

    /// Where clients connect, with commas between.
    pub fn urls(&self) -> String {
        (0..self.servers.len()).map(|index| self.url(index)).collect::<Vec<_>>().join(",")
    }

    /// Where clients of one server connect.
    pub fn url(&self, index: usize) -> String {
        format!("nats://127.0.0.1:{}", self.servers[index].port)
    }

    /// The port of one server.
    pub fn port(&self, index: usize) -> u16 {
        self.servers[index].port
    }

    /// Which server has this name; the leader of a stream is told by name.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        (0..self.servers.len()).find(|index| name_of(*index) == name)
    }

    /// Ends a server at once, as a crash does. Its files stay.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut keeper) = self.servers[index].keeper.take() {
            if let Some(input) = &mut keeper.stdin {
                // It may have gone already; it is waited for in any case.
                let _ = input.write_all(b"kill\n");
            }
            let _ = keeper.wait();
        }
    }

    /// Starts a server again, on the same files and ports.
    ///
    /// # Panics
    /// When it is running.
    pub fn start_again(&mut self, index: usize) {
        assert!(self.servers[index].keeper.is_none(), "the server is running");
        self.launch(index);
    }

    /// Waits until all servers say that they are whole: with every stream's messages.
    ///
    /// # Panics
    /// When they do not in time.
    pub fn wait_until_whole(&self) {
        assert!(self.is_ready_in_time(), "NATS is not whole within {SERVER_DEADLINE:?}:\n{}", self.log());
    }

    /// What the servers wrote to their logs.
    pub fn log(&self) -> String {
        let read = |server: &Server| fs::read_to_string(server.directory.join("log")).unwrap_or_default();
        self.servers.iter().map(read).collect::<Vec<_>>().join("\n")
    }

    fn configure(count: usize, settings: &str, jetstream: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("lockstep-nats-").tempdir().expect("a temporary directory");
        let server = |index: usize| Server {
            directory: directory.path().join(name_of(index)),
            port: free_port(),
            cluster_port: free_port(),
            monitor_port: free_port(),
            keeper: None,
        };
        let servers: Vec<Server> = (0..count).map(server).collect();
        let routes: Vec<String> =
            servers.iter().map(|server| format!("nats://127.0.0.1:{}", server.cluster_port)).collect();
        for (index, server) in servers.iter().enumerate() {
            fs::create_dir_all(&server.directory).expect("a directory of the server");
            let Server { directory, port, cluster_port, monitor_port, .. } = server;
            let mut text = format!(
                "server_name: {}\nlisten: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{monitor_port}\"\n\
                 jetstream {{ store_dir: {:?}, {jetstream} }}\n{settings}\n",
                name_of(index),
                directory.join("data"),
            );
            if count > 1 {
                // Clients are not told of the other servers, so that a test decides whom they know.
                text += &format!(
                    "cluster {{ name: test, listen: \"127.0.0.1:{cluster_port}\", no_advertise: true, routes: {routes:?} }}\n"
                );
            }
            fs::write(directory.join("server.conf"), text).expect("a file of the server");
        }
        Self { program: find_program(), directory, servers }
    }

    fn launch(&mut self, index: usize) {
        let server = &mut self.servers[index];
        let log = File::options().create(true).append(true).open(server.directory.join("log")).expect("a log file");
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "keeper"]).arg(self.directory.path());
        command.arg(&self.program).arg("-c").arg(server.directory.join("server.conf"));
        command.stdin(Stdio::piped()).stdout(log.try_clone().expect("a second handle on the log")).stderr(log);
        server.keeper = Some(command.spawn().expect("the shell"));
    }

    fn is_ready_in_time(&self) -> bool {
        let deadline = Instant::now() + SERVER_DEADLINE;
        let is_ready = |server: &Server| is_healthy(server.monitor_port);
        while Instant::now() < deadline {
            if self.log().contains("address already in use") {
                return false;
            }
            if self.servers.iter().all(is_ready) {
                return true;
            }
            thread::sleep(POLL_INTERVAL);
        }
        false
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        for index in 0..self.servers.len() {
            self.kill(index);
        }
    }
}

fn name_of(index: usize) -> String {
    format!("server-{index}")
}

/// Whether a server says that it can be used, JetStream too.
fn is_healthy(port: u16) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&local(port), Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    ask().is_ok_and(|answer| {
        String::from_utf8_lossy(&answer).lines().next().is_some_and(|line| line.ends_with("200 OK"))
    })
}

/// The server's program: where `testnet/install-nats.sh` puts it, or in `PATH`.
fn find_program() -> PathBuf {
    let installed = tool("nats-server");
    if installed.exists() {
        return installed;
    }
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&in_path).map(|dir| dir.join("nats-server")).find(|program| program.is_file());
    in_path.expect("NATS's server is not installed; run `make deps`")
}
