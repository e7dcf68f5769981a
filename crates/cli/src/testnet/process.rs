//! Node processes of a test network.

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::{Child, Command};

use crate::testnet::layout::Layout;

/// Time for the nodes to stop by themselves.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How often ended processes are looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The nodes' processes. One that is killed stays down until somebody starts it again.
pub struct Processes {
    children: Vec<(String, Child)>,
}

impl Processes {
    /// Starts all nodes; their logs go to node-N/node.log.
    pub fn start(layout: &Layout) -> anyhow::Result<Self> {
        let binary = std::env::current_exe()?;
        let mut children = Vec::new();
        for node in &layout.nodes {
            let log_path = node.home.join("node.log");
            let log = File::options().create(true).append(true).open(&log_path);
            let log = log.with_context(|| log_path.display().to_string())?;
            let child = Command::new(&binary)
                .arg("start")
                .arg("--home")
                .arg(&node.home)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                // Ctrl-C in the terminal is for this process, which stops the nodes in order.
                .process_group(0)
                .kill_on_drop(true)
                .spawn()?;
            children.push((log_path.display().to_string(), child));
        }
        Ok(Self { children })
    }

    /// Process ids, in the order of the layout's nodes; 0 for one that has ended.
    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().map(|(_, child)| child.id().unwrap_or(0)).collect()
    }

    /// Waits until a node ends; while the network starts none should.
    pub async fn any_failed_at_start(&mut self) -> anyhow::Error {
        loop {
            for (log, child) in &mut self.children {
                if let Ok(Some(status)) = child.try_wait() {
                    let text = std::fs::read_to_string(&*log).unwrap_or_default();
                    let last = text.lines().last().unwrap_or("nothing was logged").to_owned();
                    return anyhow::anyhow!("a node did not start ({status}): {last}");
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until no node runs any more.
    pub async fn all_ended(&mut self) {
        while self.children.iter_mut().any(|(_, child)| matches!(child.try_wait(), Ok(None))) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Asks all nodes to stop, and waits for them.
    pub async fn stop(&mut self) {
        for (_, child) in &self.children {
            if let Some(pid) = child.id().and_then(|pid| libc::pid_t::try_from(pid).ok()) {
                // SAFETY: the call has no memory effects; the process is our child and not yet waited for.
                #[allow(unsafe_code)]
                unsafe {
                    libc::kill(pid, libc::SIGTERM);
                }
            }
        }
        if tokio::time::timeout(STOP_TIMEOUT, self.all_ended()).await.is_err() {
            eprintln!("some nodes did not stop in time and are killed");
        }
        for (_, child) in &mut self.children {
            // Fails only for a process that has ended.
            let _ = child.kill().await;
        }
    }
}
