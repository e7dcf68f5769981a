//! Filling an output's gaps out of backups: tasks that the network forgot before the output had them.
//!
//! The store says what it lacks ([`crate::gaps`]), the manifests which backups may have it ([`plan`]). One after the other
//! they are brought to where they can be read ([`borrow`]); what they say is believed only where it hangs on what this
//! node knows by itself ([`history`]). Tasks are signed as the publisher signs them and inserted ([`Output::fill`]). The
//! store alone remembers how far that came, so it may break off anywhere and be begun again.

mod borrow;
mod history;
mod parts;
mod plan;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;

use lockstep_consensus::StateStore;
use lockstep_outputs::publisher::{BYTES_PER_PUBLISH_MAX, TASKS_PER_PUBLISH_MAX};
use lockstep_outputs::{FinalTask, Output, OutputError, Owner, TaskSigner};
use lockstep_store::home::StoreHome;
use lockstep_types::{Epochs, Genesis, OutputName, ProjectId, Ruled, TaskNumber};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::borrow::borrow;
use self::history::{BackupHistory, HistoryError, Known, Stretch};
use self::parts::Making;
use self::plan::{Candidate, candidates, choose, overlap};
use crate::backup::{BackupLocation, BackupPlace, OpenPlace, PlaceError, backups_in};
use crate::config::OutputConfig;
use crate::endings::Endings;
use crate::error::NodeError;
use crate::gaps::{self, Range};
use crate::home::Home;
use crate::jobs::{Job, JobError, Jobs, Progress};
use crate::node::OpenOutput;
use crate::proofs::History;
use crate::store_calls::StoreCalls;

/// How far a refill is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefillProgress {
    /// The output.
    pub output: OutputName,
    /// Tasks that it lacked when it was begun.
    pub tasks_missing: u64,
    /// Tasks that were inserted since.
    pub tasks_done: u64,
    /// A backup that is being fetched.
    pub fetching: Option<Fetching>,
    /// Whether it has ended.
    pub ended: bool,
    /// Why something is still missing.
    pub error: Option<String>,
}

/// How far the fetching of a backup is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetching {
    /// Its manifest's name.
    pub backup: String,
    /// Bytes that are here.
    pub bytes_done: u64,
    /// Bytes that are needed here.
    pub bytes_total: u64,
}

/// What refills work with.
pub(crate) struct RefillParts {
    pub home: Home,
    pub outputs: Vec<OutputConfig>,
    pub open: OpenOutput,
    pub open_place: OpenPlace,
    /// Rung when something was filled in.
    pub bells: Vec<(OutputName, Arc<Notify>)>,
    pub owner: Owner,
    pub genesis: Genesis,
    pub epochs: Epochs,
    pub state: StateStore,
    pub store: StoreHome,
    pub signer: TaskSigner,
}

/// Refills of a running node, one at a time.
pub(crate) struct Refills {
    parts: Arc<RefillParts>,
    jobs: Jobs<(), RefillProgress>,
}

impl Progress for RefillProgress {
    fn has_ended(&self) -> bool {
        self.ended
    }

    fn end(&mut self, error: Option<String>) {
        self.ended = true;
        self.fetching = None;
        self.error = error;
    }
}

/// Why something is still missing.
#[derive(Debug, thiserror::Error)]
enum RefillError {
    /// The output cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// This node, or the place with the backups, cannot be read.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A backup cannot be used; others may.
    #[error(transparent)]
    Backup(#[from] HistoryError),
}

impl RefillError {
    /// Whether another backup may do better.
    fn is_of_one_backup(&self) -> bool {
        matches!(
            self,
            Self::Backup(_)
                | Self::Node(
                    NodeError::Place(PlaceError::Missing(_) | PlaceError::Damaged { .. })
                        | NodeError::Store(_)
                        | NodeError::State(_)
                )
        )
    }
}

impl Refills {
    /// None yet. `stop`: the node ends, and with it what tasks run on.
    pub fn new(parts: RefillParts, endings: Endings, stop: CancellationToken) -> Self {
        Self { parts: Arc::new(parts), jobs: Jobs::new("refill", endings, stop) }
    }

    /// How far the newest refill is; `None` where there was none since the start.
    pub fn progress(&self) -> Option<RefillProgress> {
        self.jobs.progress(&())
    }

    /// Begins one.
    pub fn start(&self, name: &OutputName, from: BackupLocation) -> Result<(), String> {
        let config = self.parts.outputs.iter().find(|config| config.name == *name).cloned();
        let config = config.ok_or_else(|| format!("config.toml names no output {name}"))?;
        if !from.is_absolute() {
            return Err("the directory has to be an absolute path".into());
        }
        let output = name.clone();
        let begun =
            RefillProgress { output, tasks_missing: 0, tasks_done: 0, fetching: None, ended: false, error: None };
        let (parts, runtime) = (self.parts.clone(), Handle::current());
        let work = move |job: &Job<RefillProgress>| {
            let result = Refill { parts: &parts, job }.run(&config, &from, runtime);
            parts.ring(&config.name);
            let output = config.name.as_str();
            match &result {
                Ok(()) => tracing::info!(output, "the output has no gap any more"),
                Err(error) => tracing::error!(output, %error, "the output still has a gap"),
            }
            result
        };
        let started = self.jobs.start((), format!("a refill of output {name}"), begun, work);
        started.map_err(|error| match error {
            JobError::UnderWay => "an output is being refilled already: wait for it".to_owned(),
            JobError::Thread(error) => error.to_string(),
        })
    }
}

/// An output that is written from a thread of its own.
struct Filled<'a> {
    output: Arc<dyn Output>,
    name: &'a OutputName,
    /// Projects whose tasks it takes; `None`: all.
    projects: Option<&'a BTreeSet<ProjectId>>,
    /// Whether there were tasks that are not for it.
    passed_over: Cell<bool>,
    calls: StoreCalls,
}

impl Filled<'_> {
    fn takes(&self, project: ProjectId, ruled: Option<&Ruled>) -> bool {
        let routed = ruled.and_then(|ruled| ruled.outputs.as_ref());
        let takes = self.projects.is_none_or(|projects| projects.contains(&project))
            && routed.is_none_or(|outputs| outputs.contains(self.name));
        self.passed_over.set(self.passed_over.get() || !takes);
        takes
    }

    fn call<T, F: Future<Output = Result<T, OutputError>>>(&self, call: impl Fn() -> F) -> Result<T, OutputError> {
        self.calls.call(call)
    }

    /// What is missing below the store's last task.
    fn missing(&self, first: TaskNumber) -> Result<Vec<Range>, OutputError> {
        let Some(last) = self.call(|| self.output.last())? else { return Ok(Vec::new()) };
        Ok(self.call(|| gaps::look(&*self.output, first, last))?.gaps)
    }
}

impl RefillParts {
    fn ring(&self, name: &OutputName) {
        for (_, bell) in self.bells.iter().filter(|(of, _)| of == name) {
            bell.notify_one();
        }
    }
}

/// One refill under way.
struct Refill<'a> {
    parts: &'a RefillParts,
    job: &'a Job<RefillProgress>,
}

impl Refill<'_> {
    fn run(&self, config: &OutputConfig, from: &BackupLocation, runtime: Handle) -> Result<(), String> {
        let parts = self.parts;
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let output = (parts.open)(config, &parts.home, parts.owner).map_err(|e| said(&e))?;
        let calls = StoreCalls { runtime, stop: self.job.stop().clone() };
        let (name, projects) = (&config.name, config.projects.as_ref());
        let filled = Filled { output, name, projects, passed_over: Cell::new(projects.is_some()), calls };
        let first = parts.owner.first_task_number;
        let mut missing = filled.missing(first).map_err(|e| said(&e))?;
        self.job.note(|progress| progress.tasks_missing = gaps::count(&missing));
        if missing.is_empty() {
            return Ok(());
        }
        let known = Known::of(&parts.genesis, &parts.epochs, &parts.state).map_err(|e| said(&e))?;
        let place = (parts.open_place)(from).map_err(|e| said(&e))?;
        let manifests = backups_in(&*place).map_err(|e| said(&e))?;
        let all = candidates(manifests, &parts.owner.network, &parts.epochs);
        let (mut tried, mut problem) = (BTreeSet::new(), None);
        while let Some(candidate) = choose(&all, &missing, &tried) {
            let name = candidate.manifest.name();
            match self.fill_from(&*place, candidate, &known, &missing, &filled) {
                Err(error) if !error.is_of_one_backup() => return Err(said(&error)),
                Err(error) => {
                    tracing::warn!(backup = name, %error, "a backup cannot be used");
                    problem = problem.or_else(|| Some(format!("{name}: {error}")));
                }
                Ok(()) => {}
            }
            tried.insert(name);
            missing = filled.missing(first).map_err(|e| said(&e))?;
            if missing.is_empty() {
                return Ok(());
            }
        }
        let (from, to) = missing[0];
        let more =
            if missing.len() > 1 { format!(" (and {} gaps behind them)", missing.len() - 1) } else { String::new() };
        let problem = problem.map(|problem| format!("; {problem}")).unwrap_or_default();
        Err(format!("no usable backup of this network in {place} has tasks {from} to {to}{more}{problem}"))
    }

    /// Inserts what one backup has of what is missing.
    fn fill_from(
        &self,
        place: &dyn BackupPlace,
        candidate: &Candidate,
        known: &Known,
        missing: &[Range],
        filled: &Filled<'_>,
    ) -> Result<(), RefillError> {
        let backup = candidate.manifest.name();
        tracing::info!(backup, "reading missing tasks out of a backup");
        let borrowed = borrow(place, &candidate.manifest, &self.parts.store, |bytes_done, bytes_total| {
            self.job.note(|progress| {
                progress.fetching = Some(Fetching { backup: backup.clone(), bytes_done, bytes_total })
            });
        })?;
        self.job.note(|progress| progress.fetching = None);
        let history = BackupHistory::new(borrowed.state.clone(), known);
        let tasks = (candidate.tasks.0.max(history.oldest_task()?), candidate.tasks.1);
        for (first, last) in missing.iter().filter_map(|range| overlap(*range, tasks)) {
            let mut next = first;
            while next <= last {
                let Some(stretch) = history.stretch(next)? else { break };
                if stretch.next_task <= next {
                    break;
                }
                let end = last.min(TaskNumber(stretch.next_task.0 - 1));
                let seen = match filled.output.part_bytes() {
                    Some(part_bytes) => self.fill_parts(&borrowed.state, (next, end), part_bytes, filled)?,
                    None => self.fill_stretch(&history, &stretch, (next, end), filled)?,
                };
                // Only the node knows that the others are not missing.
                if filled.passed_over.get() && seen == gaps::count(&[(next, end)]) {
                    filled.call(|| filled.output.complete(next, end))?;
                }
                next = end.next();
            }
        }
        Ok(())
    }

    /// Inserts tasks of a stretch that is believed, and says how many there were.
    fn fill_stretch(
        &self,
        history: &BackupHistory<'_>,
        stretch: &Stretch,
        range: Range,
        filled: &Filled<'_>,
    ) -> Result<u64, RefillError> {
        let (mut chunk, mut seen, layout) = (Chunk::default(), 0, filled.output.layout());
        history.tasks(stretch, range, |task| -> Result<(), RefillError> {
            seen += 1;
            if !filled.takes(task.project_id, task.ruled.as_deref()) {
                return Ok(());
            }
            chunk.add(self.parts.signer.sign(task, layout));
            if chunk.is_full() { self.fill(filled, &mut chunk) } else { Ok(()) }
        })?;
        self.fill(filled, &mut chunk)?;
        Ok(seen)
    }

    /// As [`Refill::fill_stretch`], for an output that gets blobs.
    fn fill_parts(
        &self,
        state: &StateStore,
        range: Range,
        part_bytes: usize,
        filled: &Filled<'_>,
    ) -> Result<u64, RefillError> {
        let known = History { genesis: self.parts.genesis.clone(), epochs: self.parts.epochs.clone() };
        let making = Making { signer: &self.parts.signer, layout: filled.output.layout(), part_bytes };
        let mut seen = 0;
        parts::parts(state, &known, range, &making, |mut tasks| {
            seen += tasks.len() as u64;
            tasks.retain(|task| {
                let ruled = task.origin.as_ref().and_then(|origin| origin.ruled.as_deref());
                filled.takes(task.project_id, ruled)
            });
            self.fill(filled, &mut Chunk { tasks, bytes: 0 })
        })?;
        Ok(seen)
    }

    fn fill(&self, filled: &Filled<'_>, chunk: &mut Chunk) -> Result<(), RefillError> {
        let Chunk { tasks, .. } = std::mem::take(chunk);
        if !tasks.is_empty() {
            filled.call(|| filled.output.fill(&tasks))?;
            self.job.note(|progress| progress.tasks_done += tasks.len() as u64);
        }
        Ok(())
    }
}

/// Tasks for one call.
#[derive(Default)]
struct Chunk {
    tasks: Vec<FinalTask>,
    bytes: usize,
}

impl Chunk {
    fn add(&mut self, task: FinalTask) {
        self.bytes += task.messages.iter().map(|message| message.data.len()).sum::<usize>();
        self.tasks.push(task);
    }

    fn is_full(&self) -> bool {
        self.tasks.len() >= TASKS_PER_PUBLISH_MAX || self.bytes >= BYTES_PER_PUBLISH_MAX
    }
}
