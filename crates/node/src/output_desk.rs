//! What an operator asks of the outputs that a running node feeds: how they are, hold one up, go on, try again what was
//! refused.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use lockstep_consensus::{Consensus, Role};
use lockstep_ledger::{Command, PAUSED_OUTPUTS_MAX};
use lockstep_network::{Channel, Handle};
use lockstep_outputs::publisher::{Handle as Publishing, State};
use lockstep_types::{OutputName, TaskNumber, proto};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{OutputConfig, Scope};
use crate::control::forward_pause;
use crate::home::Home;
use crate::limits::{PAUSE_TIMEOUT, PROGRESS_TIMEOUT};
use crate::tracker::Tracker;

/// How an output of this node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputReport {
    /// Its name in config.toml.
    pub name: OutputName,
    /// Who feeds it.
    pub scope: Scope,
    /// What this node does for it: standby, paused, publishing, caught up, retrying or blocked.
    pub state: String,
    /// The last task known to be in it.
    pub last_published: Option<TaskNumber>,
    /// The newest final task.
    pub newest: Option<TaskNumber>,
    /// Final tasks that are not known to be in it.
    pub lag: u64,
    /// Whether it is known how far the output is: here, where this node publishes to it, or by what another one has said.
    pub settled: bool,
    /// Why it does not get on.
    pub error: Option<String>,
    /// The first tasks that it refused, with the reasons.
    pub refused: Vec<(TaskNumber, String)>,
    /// How many it refused in all.
    pub refused_count: u64,
}

/// The operator's hand on one output.
#[derive(Clone)]
pub(crate) struct OutputSwitch {
    name: OutputName,
    scope: Scope,
    handle: Publishing,
    paused: watch::Sender<bool>,
    /// Is there while an output of this node's own is held up, so that a restart does not let it go on.
    marker: PathBuf,
}

impl OutputSwitch {
    /// Whether the output was held up when the node stopped, and where that is noted for one of this node's own.
    pub fn was_paused(home: &Home, config: &OutputConfig, tracker: &Tracker) -> (watch::Sender<bool>, PathBuf) {
        let marker = home.path().join(format!("output-{}.paused", config.name));
        let by_network = config.scope == Scope::Network && tracker.paused_outputs().borrow().contains(&config.name);
        (watch::Sender::new(marker.exists() || by_network), marker)
    }

    pub fn new(config: &OutputConfig, handle: Publishing, (paused, marker): (watch::Sender<bool>, PathBuf)) -> Self {
        Self { name: config.name.clone(), scope: config.scope, handle, paused, marker }
    }

    /// `recorded`: how far it is by the log.
    fn report(&self, recorded: Option<TaskNumber>) -> OutputReport {
        let status = self.handle.status();
        let last_published = status.last_published.max(recorded);
        let state = match status.state {
            State::Standby => "standby",
            State::Paused => "paused",
            State::Publishing => "publishing",
            State::CaughtUp => "caught up",
            State::Retrying => "retrying",
            State::Blocked => "blocked",
        };
        OutputReport {
            name: self.name.clone(),
            scope: self.scope,
            state: state.to_owned(),
            last_published,
            newest: self.handle.newest(),
            lag: self.handle.lag_behind(last_published),
            settled: last_published.is_some() || status.state == State::CaughtUp,
            error: status.last_error,
            refused: status.refused,
            refused_count: status.refused_count,
        }
    }

    /// Notes in the home whether it is held up at this node.
    fn mark(&self, paused: bool) -> Result<(), String> {
        let failed = |e: std::io::Error| format!("{}: {e}", self.marker.display());
        match (paused, self.marker.exists()) {
            (true, false) => std::fs::write(&self.marker, "").map_err(failed),
            (false, true) => std::fs::remove_file(&self.marker).map_err(failed),
            _ => Ok(()),
        }
    }

    /// Holds it up where the home or the network says so. Before there were pauses in the log the home said so of
    /// outputs of the network, too.
    fn follow(&self, by_network: &BTreeSet<OutputName>) {
        let paused = self.marker.exists() || (self.scope == Scope::Network && by_network.contains(&self.name));
        self.paused.send_if_modified(|known| std::mem::replace(known, paused) != paused);
    }
}

/// Has outputs of the network held up for as long as the log says so, until `stop`.
pub(crate) async fn follow_pauses(switches: Vec<OutputSwitch>, tracker: Arc<Tracker>, stop: CancellationToken) {
    let mut paused = tracker.paused_outputs();
    loop {
        let by_network = paused.borrow_and_update().clone();
        switches.iter().for_each(|switch| switch.follow(&by_network));
        tokio::select! {
            () = stop.cancelled() => return,
            // The others end when the node does, and this part with them.
            changed = paused.changed() => if changed.is_err() { return stop.cancelled().await },
        }
    }
}

/// See the module's documentation.
pub(crate) struct OutputDesk {
    pub switches: Vec<OutputSwitch>,
    pub tracker: Arc<Tracker>,
    pub consensus: Consensus,
    pub network: Handle,
}

impl OutputDesk {
    pub fn reports(&self) -> Vec<OutputReport> {
        let progress = self.tracker.progress();
        self.switches.iter().map(|output| output.report(progress.get(&output.name).copied())).collect()
    }

    fn find(&self, name: &OutputName) -> Result<&OutputSwitch, String> {
        let found = self.switches.iter().find(|output| output.name == *name);
        found.ok_or_else(|| format!("this node feeds no output {name}: see config.toml"))
    }

    /// Holds an output up, or lets it go on: one of this node's own here, one of the network everywhere.
    pub async fn pause(&self, name: &OutputName, paused: bool) -> Result<(), String> {
        let output = self.find(name)?;
        match output.scope {
            Scope::Node => output.mark(paused)?,
            Scope::Network => {
                // A mark of before.
                output.mark(false)?;
                self.pause_everywhere(name, paused).await?;
            }
        }
        output.follow(&self.tracker.paused_outputs().borrow());
        Ok(())
    }

    async fn pause_everywhere(&self, name: &OutputName, paused: bool) -> Result<(), String> {
        let mut log = self.tracker.paused_outputs();
        if log.borrow().contains(name) == paused {
            return Ok(());
        }
        self.propose_pause(name, paused).await?;
        // What was committed is applied here a moment later.
        let applied = log.wait_for(|log| log.contains(name) == paused);
        let applied = tokio::time::timeout(PAUSE_TIMEOUT, applied).await.map(|applied| applied.is_ok());
        match applied {
            Ok(true) => Ok(()),
            Ok(false) => Err("the node is ending".into()),
            Err(_) if paused && log.borrow().len() >= PAUSED_OUTPUTS_MAX => {
                Err(format!("{PAUSED_OUTPUTS_MAX} outputs are held up already: let one go on first"))
            }
            Err(_) => Err("it is not known whether it was done: look at `lockstep outputs status`".into()),
        }
    }

    async fn propose_pause(&self, name: &OutputName, paused: bool) -> Result<(), String> {
        let status = self.consensus.status().borrow().clone();
        let failed = |error: &dyn std::fmt::Display| format!("{error}: try again");
        if status.role == Role::Leader {
            let proposed = self.consensus.propose(Command::encode_pause(name, paused));
            let proposed = tokio::time::timeout(PROGRESS_TIMEOUT, proposed).await;
            return proposed.map_err(|_| "no majority answered in time: try again")?.map_err(|e| failed(&e));
        }
        let leader = status.leader.ok_or("no leader is known: try again when there is one (`lockstep status`)")?;
        let mut client = self.network.client(leader, Channel::Control);
        let pause = proto::OutputPause { output: name.as_str().to_owned(), paused };
        forward_pause(&mut client, pause, PROGRESS_TIMEOUT).await.map_err(|e| failed(&e))
    }

    /// Has what was refused tried again.
    pub fn retry(&self, name: &OutputName) -> Result<(), String> {
        let output = self.find(name)?;
        if output.handle.retry() {
            return Ok(());
        }
        Err(match output.handle.status().state {
            State::Paused => format!("output {name} is paused: resume it first"),
            _ => format!("another node publishes to output {name}: ask the leader's operator"),
        })
    }
}
