//! What an operator asks of the outputs that a running node feeds: how they are, hold one up, go on, remove one from the
//! network, try again what was refused.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use lockstep_consensus::{Consensus, Role};
use lockstep_ledger::{Command, OutputState, OutputStates};
use lockstep_network::{Channel, Handle};
use lockstep_outputs::publisher::{Handle as Publishing, State};
use lockstep_types::{OutputName, TaskNumber};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{OutputConfig, Scope};
use crate::control::forward_output;
use crate::home::Home;
use crate::limits::{OUTPUT_CHANGE_TIMEOUT, PROGRESS_TIMEOUT};
use crate::tracker::Tracker;

/// [`OutputReport::state`] of an output that was removed from the network.
pub const REMOVED: &str = "removed";
/// [`OutputReport::state`] of an output of the network that this node does not have in its configuration.
pub const FED_ELSEWHERE: &str = "not in this node's config.toml";
/// What is wrong with an output that was removed from the network and is still in the configuration.
pub(crate) const STILL_NAMED: &str =
    "removed from the network: take it out of config.toml, or add it anew with `lockstep outputs resume`";

/// How an output of this node is, or one of the network that the log knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputReport {
    /// Its name in config.toml.
    pub name: OutputName,
    /// Who feeds it.
    pub scope: Scope,
    /// What this node does for it: standby, paused, publishing, caught up, retrying, blocked, [`REMOVED`] or
    /// [`FED_ELSEWHERE`].
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
        let by_network = tracker.output_states().borrow().of(&config.name) != OutputState::Running;
        (watch::Sender::new(marker.exists() || (config.scope == Scope::Network && by_network)), marker)
    }

    pub fn new(config: &OutputConfig, handle: Publishing, (paused, marker): (watch::Sender<bool>, PathBuf)) -> Self {
        Self { name: config.name.clone(), scope: config.scope, handle, paused, marker }
    }

    /// Whether it is one of the network that was removed from it.
    pub fn is_removed(&self, states: &OutputStates) -> bool {
        self.scope == Scope::Network && states.is_removed(&self.name)
    }

    /// `recorded`: how far it is by the log.
    fn report(&self, recorded: Option<TaskNumber>, states: &OutputStates) -> OutputReport {
        if self.is_removed(states) {
            return OutputReport { error: Some(STILL_NAMED.into()), ..OutputReport::removed(&self.name) };
        }
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
    fn follow(&self, states: &OutputStates) {
        let by_network = self.scope == Scope::Network && states.of(&self.name) != OutputState::Running;
        let paused = self.marker.exists() || by_network;
        self.paused.send_if_modified(|known| std::mem::replace(known, paused) != paused);
    }
}

/// Has outputs of the network held up for as long as the log says so, until `stop`. Those that were removed too: an
/// operator has to take them out of the configuration.
pub(crate) async fn follow_pauses(switches: Vec<OutputSwitch>, tracker: Arc<Tracker>, stop: CancellationToken) {
    let mut changes = tracker.output_states();
    let mut removed = BTreeSet::new();
    loop {
        let states = changes.borrow_and_update().clone();
        for switch in &switches {
            switch.follow(&states);
            if !switch.is_removed(&states) {
                removed.remove(&switch.name);
            } else if removed.insert(switch.name.clone()) {
                tracing::warn!(output = %switch.name, "the output was {STILL_NAMED}");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            // The others end when the node does, and this part with them.
            changed = changes.changed() => if changed.is_err() { return stop.cancelled().await },
        }
    }
}

impl OutputReport {
    fn removed(name: &OutputName) -> Self {
        Self {
            name: name.clone(),
            scope: Scope::Network,
            state: REMOVED.to_owned(),
            last_published: None,
            newest: None,
            lag: 0,
            settled: false,
            error: None,
            refused: Vec::new(),
            refused_count: 0,
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
    /// How the outputs of this node are, and those of the network that the log knows beside them.
    pub fn reports(&self) -> Vec<OutputReport> {
        let (progress, states) = (self.tracker.progress(), self.tracker.output_states().borrow().clone());
        let own = self.switches.iter().map(|output| output.report(progress.get(&output.name).copied(), &states));
        let known: BTreeSet<_> = progress.keys().chain(states.held().map(|(name, _)| name)).collect();
        let is_here = |name: &OutputName| self.switches.iter().any(|output| output.name == *name);
        let others = known.into_iter().filter(|name| !is_here(name));
        own.chain(others.map(|name| self.report_of_other(name, progress.get(name).copied(), &states))).collect()
    }

    /// How an output is that this node does not feed, by the log.
    fn report_of_other(&self, name: &OutputName, last: Option<TaskNumber>, states: &OutputStates) -> OutputReport {
        let state = match states.of(name) {
            OutputState::Running => FED_ELSEWHERE,
            OutputState::Paused => "paused",
            OutputState::Removed => return OutputReport::removed(name),
        };
        let newest = *self.tracker.newest_task().borrow();
        let behind = newest.zip(last).map(|(newest, last)| newest.0.saturating_sub(last.0));
        let (state, last_published, lag) = (state.to_owned(), last, behind.unwrap_or(0));
        OutputReport { state, last_published, newest, lag, settled: last.is_some(), ..OutputReport::removed(name) }
    }

    fn find(&self, name: &OutputName) -> Result<&OutputSwitch, String> {
        let found = self.switches.iter().find(|output| output.name == *name);
        found.ok_or_else(|| format!("this node feeds no output {name}: see config.toml"))
    }

    /// Whether the log knows it as an output of the network.
    fn is_logged(&self, name: &OutputName) -> bool {
        let is_held = self.tracker.output_states().borrow().of(name) != OutputState::Running;
        is_held || self.tracker.progress().contains_key(name)
    }

    /// Holds an output up, or lets it go on: one of this node's own here, one of the network everywhere. One that was
    /// removed is so added anew.
    pub async fn pause(&self, name: &OutputName, paused: bool) -> Result<(), String> {
        let own = match self.find(name) {
            Ok(output) => Some(output),
            Err(_) if self.is_logged(name) => None,
            Err(error) => return Err(error),
        };
        if let Some(output) = own {
            // One of the network may have a mark of before.
            output.mark(paused && output.scope == Scope::Node)?;
        }
        if own.is_none_or(|output| output.scope == Scope::Network) {
            let state = if paused { OutputState::Paused } else { OutputState::Running };
            self.change_everywhere(name, state).await?;
        }
        if let Some(output) = own {
            output.follow(&self.tracker.output_states().borrow());
        }
        Ok(())
    }

    /// Removes an output from the network, whether this node feeds it or not.
    pub async fn remove(&self, name: &OutputName) -> Result<(), String> {
        if !self.is_logged(name) && self.find(name)?.scope == Scope::Node {
            return Err(format!("output {name} is of this node alone: take it out of config.toml"));
        }
        self.change_everywhere(name, OutputState::Removed).await
    }

    async fn change_everywhere(&self, name: &OutputName, state: OutputState) -> Result<(), String> {
        let mut log = self.tracker.output_states();
        log.borrow().check(name, state).map_err(|refused| format!("output {name}: {refused}"))?;
        if log.borrow().of(name) == state {
            return Ok(());
        }
        self.propose(name, state).await?;
        // What was committed is applied here a moment later.
        let applied = log.wait_for(|log| log.of(name) == state);
        let applied = tokio::time::timeout(OUTPUT_CHANGE_TIMEOUT, applied).await.map(|applied| applied.is_ok());
        match applied {
            Ok(true) => Ok(()),
            Ok(false) => Err("the node is ending".into()),
            Err(_) => Err("it is not known whether it was done: look at `lockstep outputs status`".into()),
        }
    }

    async fn propose(&self, name: &OutputName, state: OutputState) -> Result<(), String> {
        let status = self.consensus.status().borrow().clone();
        let failed = |error: &dyn std::fmt::Display| format!("{error}: try again");
        if status.role == Role::Leader {
            let proposed = self.consensus.propose(Command::encode_output(name, state));
            let proposed = tokio::time::timeout(PROGRESS_TIMEOUT, proposed).await;
            return proposed.map_err(|_| "no majority answered in time: try again")?.map_err(|e| failed(&e));
        }
        let leader = status.leader.ok_or("no leader is known: try again when there is one (`lockstep status`)")?;
        let mut client = self.network.client(leader, Channel::Control);
        let change = Command::output_to_proto(name, state);
        forward_output(&mut client, change, PROGRESS_TIMEOUT).await.map_err(|e| failed(&e))
    }

    /// Has what was refused tried again.
    pub fn retry(&self, name: &OutputName) -> Result<(), String> {
        let output = self.find(name)?;
        if output.is_removed(&self.tracker.output_states().borrow()) {
            return Err(format!("output {name} was {STILL_NAMED}"));
        }
        if output.handle.retry() {
            return Ok(());
        }
        Err(match output.handle.status().state {
            State::Paused => format!("output {name} is paused: resume it first"),
            _ => format!("another node publishes to output {name}: ask the leader's operator"),
        })
    }
}
