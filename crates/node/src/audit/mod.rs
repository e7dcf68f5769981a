//! Audits: every task that a store holds, held against the certified chain as this node has it.
//!
//! The chain's tasks are read where the publisher reads them ([`TaskSource`]) and signed as it signs them, which gives the
//! same bytes; the store's by number ([`Output::stored`]). Both are walked side by side in pages ([`walk`]). What a store
//! lacks for a reason is told apart: what was skipped because the network had forgotten it, what it refused, what is for
//! others. Then what the store has beside tasks is looked for ([`Output::strays`]). Nothing is written, and what is
//! published meanwhile is not looked at.

mod findings;
#[cfg(test)]
mod tests;
mod walk;

use std::sync::Arc;

use lockstep_consensus::StateStore;
use lockstep_outputs::{Output, OutputError, Owner, Place, SourceError, TaskSigner, TaskSource};
use lockstep_types::{OutputName, TaskNumber};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::findings::{FINDINGS_LISTED_MAX, Finding, FindingKind, Findings};
use self::walk::{Walk, WalkParts};
use crate::config::OutputConfig;
use crate::endings::Endings;
use crate::error::NodeError;
use crate::home::Home;
use crate::jobs::{Job, JobError, Jobs, Progress};
use crate::node::OpenOutput;
use crate::store_calls::StoreCalls;

/// How far an audit is, and what it found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditProgress {
    /// The output.
    pub output: OutputName,
    /// First and last task that are compared; `None` where there are none, or it is not known yet.
    pub range: Option<(TaskNumber, TaskNumber)>,
    /// Tasks of these that were looked at.
    pub tasks_done: u64,
    /// Rows or objects that were looked at for strays, after the tasks.
    pub rows_done: u64,
    /// Tasks that are as they should be.
    pub good: u64,
    /// Tasks that the store lacks because the network had forgotten them: see `lockstep outputs refill`.
    pub skipped: u64,
    /// Tasks that the store has set aside, or that wait behind one.
    pub refused: u64,
    /// Tasks of projects that the output does not take.
    pub others: u64,
    /// Final tasks that are not in the store yet.
    pub unpublished: u64,
    /// Tasks of the range that this node no longer keeps.
    pub not_kept: u64,
    /// What is wrong.
    pub findings: Findings,
    /// Whether it has ended.
    pub ended: bool,
    /// Why it has not come to its end.
    pub error: Option<String>,
}

impl AuditProgress {
    fn of(output: OutputName) -> Self {
        Self {
            output,
            range: None,
            tasks_done: 0,
            rows_done: 0,
            good: 0,
            skipped: 0,
            refused: 0,
            others: 0,
            unpublished: 0,
            not_kept: 0,
            findings: Findings::default(),
            ended: false,
            error: None,
        }
    }

    /// How many tasks the range has.
    pub fn tasks_total(&self) -> u64 {
        self.range.map_or(0, |(first, last)| (last.0 + 1).saturating_sub(first.0))
    }
}

/// Where tasks are in stores that cannot be walked, as the log has recorded it.
pub(crate) trait Places: Send + Sync {
    /// Places in an output with tasks from `first` on, ascending, at most `max`; fewer, or none, where no more are known.
    fn places(&self, output: &OutputName, first: TaskNumber, max: usize) -> Result<Vec<Place>, String>;
}

impl Places for StateStore {
    fn places(&self, output: &OutputName, first: TaskNumber, max: usize) -> Result<Vec<Place>, String> {
        self.places_from(output, first, max).map_err(|e| e.to_string())
    }
}

/// Why an audit has not come to its end.
#[derive(Debug, thiserror::Error)]
enum AuditError {
    /// The store cannot be read.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// This node cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Settings.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// In words.
    #[error("{0}")]
    Said(String),
}

/// What audits work with.
pub(crate) struct AuditParts {
    pub home: Home,
    pub outputs: Vec<OutputConfig>,
    pub open: OpenOutput,
    pub owner: Owner,
    pub source: Arc<dyn TaskSource>,
    /// Number of the newest final task.
    pub newest: watch::Receiver<Option<TaskNumber>>,
    pub signer: TaskSigner,
    pub places: Arc<dyn Places>,
}

/// Audits of a running node, one at a time of each output.
pub(crate) struct Audits {
    parts: Arc<AuditParts>,
    jobs: Jobs<OutputName, AuditProgress>,
}

impl Progress for AuditProgress {
    fn has_ended(&self) -> bool {
        self.ended
    }

    fn end(&mut self, error: Option<String>) {
        self.ended = true;
        self.error = error;
    }
}

impl Audits {
    /// None yet. `stop`: the node ends, and with it what tasks run on.
    pub fn new(parts: AuditParts, endings: Endings, stop: CancellationToken) -> Self {
        Self { parts: Arc::new(parts), jobs: Jobs::new("audit", endings, stop) }
    }

    /// How far the newest audit of an output is; `None` where there was none since the start.
    pub fn progress(&self, name: &OutputName) -> Option<AuditProgress> {
        self.jobs.progress(name)
    }

    /// Ends the audit of an output, where there is one.
    pub fn stop(&self, name: &OutputName) {
        self.jobs.cancel(name);
    }

    /// Begins one, at task `from` or the first one.
    pub fn start(&self, name: &OutputName, from: Option<TaskNumber>) -> Result<(), String> {
        let config = self.parts.outputs.iter().find(|config| config.name == *name).cloned();
        let config = config.ok_or_else(|| format!("this node feeds no output {name}: see config.toml"))?;
        let (parts, runtime) = (self.parts.clone(), Handle::current());
        let work = move |job: &Job<AuditProgress>| {
            let calls = StoreCalls { runtime, stop: job.stop().clone() };
            let result = parts.audit(&config, from, calls, job);
            let progress = job.progress().lock();
            let (output, findings) = (config.name.as_str(), progress.findings.total());
            match &result {
                Err(error) => tracing::warn!(output, findings, %error, "the audit has not come to its end"),
                Ok(()) if findings > 0 => tracing::error!(output, findings, "the store is not what the chain says"),
                Ok(()) => tracing::info!(output, tasks = progress.good, "the audit has found nothing wrong"),
            }
            result
        };
        let started =
            self.jobs.start(name.clone(), format!("an audit of output {name}"), AuditProgress::of(name.clone()), work);
        started.map_err(|error| match error {
            JobError::UnderWay => format!("output {name} is being audited already: wait for it"),
            JobError::Thread(error) => error.to_string(),
        })
    }
}

impl AuditParts {
    fn audit(
        &self,
        config: &OutputConfig,
        from: Option<TaskNumber>,
        calls: StoreCalls,
        job: &Job<AuditProgress>,
    ) -> Result<(), AuditError> {
        // A connection of its own, so that publishing goes on beside it.
        let output: Arc<dyn Output> = (self.open)(config, &self.home, self.owner)?;
        let walk = Walk::new(WalkParts {
            config,
            output: &*output,
            source: &*self.source,
            signer: &self.signer,
            places: &*self.places,
            calls,
            progress: job.progress(),
        });
        let newest = *self.newest.borrow();
        let first = self.owner.first_task_number;
        walk.run(from.unwrap_or(first).max(first), newest)
    }
}
