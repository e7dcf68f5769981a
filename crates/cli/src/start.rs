//! `lockstep start`.

use std::io::IsTerminal as _;

use lockstep_node::{Home, Node};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::args::Start;

/// Parts whose own chatter is not for operators.
const QUIET: &str = "libp2p_gossipsub=error,openraft=off,libp2p_swarm=error";

/// Logs go to standard error; standard output is for answers.
pub fn log_to_stderr(filter: &str, json: bool) {
    let filter = EnvFilter::try_new(format!("{QUIET},{filter}")).unwrap_or_else(|_| EnvFilter::new(QUIET));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let builder = builder.with_target(false).with_ansi(std::io::stderr().is_terminal());
    // A second call, in tests, finds the first one's subscriber.
    let _ = if json { builder.json().try_init() } else { builder.try_init() };
}

/// Cancelled by Ctrl-C or SIGTERM.
///
/// # Errors
/// If signals cannot be watched.
pub fn stop_signal() -> anyhow::Result<CancellationToken> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancel.cancel();
    });
    Ok(token)
}

pub async fn run(options: &Start) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    let home = Home::at(&options.home);
    if !lockstep_node::wait_for_admission(&home, &stop).await? {
        return Ok(());
    }
    let node = tokio::select! {
        node = Node::start(&home) => node?,
        // Only while it waits for a member that gives it the state: nothing of it takes part in consensus yet.
        () = stop.cancelled() => return Ok(()),
    };
    node.run(stop).await?;
    Ok(())
}
