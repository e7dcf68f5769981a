//! What an operator asks of the outputs that a running node feeds: how they are, hold one up, go on, try again what was
//! refused.

use std::path::PathBuf;
use std::sync::Arc;

use lockstep_outputs::Handle;
use lockstep_outputs::publisher::State;
use lockstep_types::{OutputName, TaskNumber};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::{OutputConfig, Scope};
use crate::home::Home;
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
    handle: Handle,
    paused: watch::Sender<bool>,
    /// Is there while the output is held up, so that a restart does not let it go on.
    marker: PathBuf,
}

impl OutputSwitch {
    /// Whether the output was held up when the node stopped, and where that is noted.
    pub fn was_paused(home: &Home, config: &OutputConfig) -> (watch::Sender<bool>, PathBuf) {
        let marker = home.path().join(format!("output-{}.paused", config.name));
        (watch::Sender::new(marker.exists()), marker)
    }

    pub fn new(config: &OutputConfig, handle: Handle, (paused, marker): (watch::Sender<bool>, PathBuf)) -> Self {
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

    fn set_paused(&self, paused: bool) -> Result<(), String> {
        let failed = |e: std::io::Error| format!("{}: {e}", self.marker.display());
        match (paused, self.marker.exists()) {
            (true, false) => std::fs::write(&self.marker, "").map_err(failed)?,
            (false, true) => std::fs::remove_file(&self.marker).map_err(failed)?,
            _ => {}
        }
        self.paused.send_replace(paused);
        Ok(())
    }
}

/// See the module's documentation.
pub(crate) struct OutputDesk {
    pub switches: Vec<OutputSwitch>,
    pub tracker: Arc<Tracker>,
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

    pub fn pause(&self, name: &OutputName, paused: bool) -> Result<(), String> {
        self.find(name)?.set_paused(paused)
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
