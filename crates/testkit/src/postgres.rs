//! A PostgreSQL server of one test: own data directory, own port, gone with the value.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::ports::free_port;

/// Longest wait for the server to come up or go down.
const SERVER_DEADLINE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How often a start is tried on another port when the first is taken in between.
const PORT_ATTEMPTS_MAX: usize = 8;

const MISSING: &str = "PostgreSQL's server programs (initdb, postgres, pg_ctl) are not installed; run `make deps`";

/// A running (or stopped) server. Connections over TCP on the loopback address are trusted.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    account: Option<(u32, u32)>,
    directory: TempDir,
    port: u16,
    settings: Vec<(String, String)>,
    child: Option<Child>,
}

impl Postgres {
    /// Makes a database cluster with PostgreSQL's default settings (fsync on) and starts it.
    ///
    /// # Panics
    /// When PostgreSQL is not installed or does not come up in time.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// As [`Postgres::start`], with server settings such as `("max_connections", "5")`.
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub fn start_with(settings: &[(&str, &str)]) -> Self {
        Self::start_prepared(settings, |_| {})
    }

    /// As [`Postgres::start`], but over TCP only by TLS, with this certificate and key (PEM).
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub fn start_with_tls(certificate: &str, key: &str) -> Self {
        let settings = [("ssl", "on"), ("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key")];
        Self::start_prepared(&settings, |server| {
            server.put("data/server.crt", certificate);
            server.put("data/server.key", key);
            server.put("data/pg_hba.conf", "hostssl all all 127.0.0.1/32 trust\n");
        })
    }

    /// Writes a file of the server's account that nobody else may read.
    fn put(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::write(&path, text).expect("the server's directory can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("our own file");
        if let Some((user, group)) = self.account {
            chown(&path, Some(user), Some(group)).expect("root can give a file away");
        }
    }

    fn start_prepared(settings: &[(&str, &str)], prepare: impl FnOnce(&Self)) -> Self {
        let directory = tempfile::Builder::new().prefix("lockstep-pg-").tempdir().expect("a temporary directory");
        let account = server_account();
        if let Some((user, group)) = account {
            chown(directory.path(), Some(user), Some(group)).expect("root can give a directory away");
        }
        let mut server = Self {
            programs: find_programs(),
            account,
            directory,
            port: 0,
            settings: settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            child: None,
        };
        server.init();
        prepare(&server);
        for _ in 0..PORT_ATTEMPTS_MAX {
            server.port = free_port();
            if server.launch() {
                return server;
            }
        }
        panic!("PostgreSQL did not start:\n{}", server.log());
    }

    /// Where and as whom to connect, in the form of key and value pairs.
    pub fn dsn(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port)
    }

    /// The TCP port on the loopback address; the same after [`Postgres::start_again`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops the server in an orderly way: open transactions are rolled back, connections closed.
    pub fn stop(&mut self) {
        self.shut_down("fast");
    }

    /// Stops the server as a crash does: without a checkpoint, so that the next start recovers from the log.
    pub fn crash(&mut self) {
        self.shut_down("immediate");
    }

    /// Starts a stopped server on the same data and port.
    ///
    /// # Panics
    /// When it is running, or does not come up in time.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "the server is running");
        assert!(self.launch(), "PostgreSQL did not start again:\n{}", self.log());
    }

    /// What the server wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A server program, run as the account that owns the data: PostgreSQL refuses to run as root.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        // The test's own directory may be closed to that account.
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        if let Some((user, group)) = self.account {
            command.uid(user).gid(group);
        }
        command
    }

    fn init(&self) {
        let output = self
            .command("initdb")
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(self.path("data"))
            .output()
            .unwrap_or_else(|e| panic!("{MISSING} ({e})"));
        assert!(output.status.success(), "initdb failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Whether the server came up. It does not when somebody took the port in between.
    fn launch(&mut self) -> bool {
        let log = File::options().create(true).append(true).open(self.path("log")).expect("a log file");
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.path("data")).arg("-k").arg(self.directory.path());
        command.args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        for (key, value) in &self.settings {
            command.arg("-c").arg(format!("{key}={value}"));
        }
        command.stdout(log.try_clone().expect("a second handle on the log")).stderr(log);
        self.child = Some(command.spawn().unwrap_or_else(|e| panic!("{MISSING} ({e})")));

        let deadline = Instant::now() + SERVER_DEADLINE;
        while Instant::now() < deadline {
            if self.has_ended() {
                return false;
            }
            let mut probe = self.command("pg_isready");
            probe.args(["-q", "-h", "127.0.0.1", "-U", "postgres", "-p", &self.port.to_string()]);
            // The port may be another server's: only a child that said so in its own pid file is ours.
            if self.says_ready() && probe.status().is_ok_and(|s| s.success()) {
                return true;
            }
            thread::sleep(POLL_INTERVAL);
        }
        panic!("PostgreSQL was not ready within {SERVER_DEADLINE:?}:\n{}", self.log());
    }

    fn says_ready(&self) -> bool {
        let status = fs::read_to_string(self.path("data/postmaster.pid")).unwrap_or_default();
        status.lines().nth(7).is_some_and(|line| line.trim() == "ready")
    }

    fn has_ended(&mut self) -> bool {
        let ended = match &mut self.child {
            Some(child) => child.try_wait().expect("the child can be asked").is_some(),
            None => true,
        };
        if ended {
            self.child = None;
        }
        ended
    }

    fn shut_down(&mut self, mode: &str) {
        if self.has_ended() {
            return;
        }
        let mut command = self.command("pg_ctl");
        command.arg("-D").arg(self.path("data")).args(["stop", "-s", "-W", "-m", mode]);
        let asked = command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
        let deadline = Instant::now() + SERVER_DEADLINE;
        while asked && Instant::now() < deadline {
            if self.has_ended() {
                return;
            }
            thread::sleep(POLL_INTERVAL);
        }
        if let Some(mut child) = self.child.take() {
            // Its backends see that their parent is gone and end themselves.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.shut_down("immediate");
    }
}

/// The directory of the newest installed server, or of the one in `PATH`.
fn find_programs() -> PathBuf {
    let complete = |dir: &Path| ["initdb", "postgres", "pg_ctl", "pg_isready"].iter().all(|p| dir.join(p).is_file());
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut installed: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, dir)| complete(dir))
        .collect();
    installed.sort();
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&in_path).find(|dir| complete(dir));
    in_path.or_else(|| installed.pop().map(|(_, dir)| dir)).unwrap_or_else(|| panic!("{MISSING}"))
}

/// The user and group to run the server as; `None` where our own will do.
fn server_account() -> Option<(u32, u32)> {
    let number = |args: &[&str]| -> Option<u32> {
        let output = Command::new("id").args(args).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    if number(&["-u"]) != Some(0) {
        return None;
    }
    match (number(&["-u", "postgres"]), number(&["-g", "postgres"])) {
        (Some(user), Some(group)) => Some((user, group)),
        _ => panic!("PostgreSQL does not run as root and there is no user `postgres`; run `make deps`"),
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::NoTls;

    use super::*;

    async fn one(dsn: &str) -> i32 {
        let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        let row = client.query_one("SELECT 1", &[]).await.unwrap();
        drop(client);
        connection.await.unwrap().unwrap();
        row.get(0)
    }

    #[tokio::test]
    async fn a_server_starts_stops_and_starts_again_on_the_same_port() {
        let mut server = Postgres::start();
        let dsn = server.dsn();
        assert_eq!(one(&dsn).await, 1);
        server.stop();
        assert!(tokio_postgres::connect(&dsn, NoTls).await.is_err());
        server.start_again();
        assert_eq!(one(&dsn).await, 1);
        server.crash();
        server.start_again();
        assert_eq!(one(&dsn).await, 1);
    }

    #[tokio::test]
    async fn servers_run_side_by_side_and_leave_nothing_behind() {
        let servers: Vec<_> = (0..3).map(|_| thread::spawn(Postgres::start)).collect();
        let servers: Vec<_> = servers.into_iter().map(|s| s.join().unwrap()).collect();
        for server in &servers {
            assert_eq!(one(&server.dsn()).await, 1);
        }
        let paths: Vec<_> = servers.iter().map(|s| s.directory.path().to_owned()).collect();
        drop(servers);
        assert!(paths.iter().all(|path| !path.exists()));
    }
}
