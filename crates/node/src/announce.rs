//! Announces tasks on W3bstream's network once their rows are committed in an output: joins `lockstep-announce` to this
//! node's state, its publisher and what it knows of tasks on the chain.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_announce::{
    ATTEMPTS_MAX, Announcement, Announcer, CommittedTask, FeedError, Handle, Options as AnnouncerOptions, TaskFeed,
};
use lockstep_api::views::W3bstreamView;
use lockstep_consensus::{Consensus, ReadError, Role, StateStore};
use lockstep_ledger::Head;
use lockstep_store::home::{replace_file, write_new_file};
use lockstep_types::{Epoch, Height, NetworkId, OutputName, SigningKey, TaskNumber};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::chain::TaskStates;
use crate::config::{ATTEMPTS_MAX_DEFAULT, Scope};
use crate::endings::EndReason;
use crate::error::NodeError;
use crate::home::{hex_line, random_key};
use crate::limits::READ_BYTES_MAX;
use crate::node::Parts;
use crate::publish::RunningOutput;
use crate::supervisor::Supervisor;

// A program without announcements reads the same configuration.
const _: () = assert!(ATTEMPTS_MAX_DEFAULT == ATTEMPTS_MAX);

/// Where in the home it is noted which tasks were announced.
const NOTE_FILE: &str = "w3bstream.json";
/// Batches of one read of tasks.
const BATCHES_TOGETHER_MAX: usize = 16;

/// A view on running announcements, for the reader.
#[derive(Debug, Clone)]
pub(crate) struct Announcements {
    /// Of the announcer that runs, or ran last.
    handle: Arc<Mutex<Handle>>,
    peer_id: String,
}

impl Announcements {
    pub fn view(&self) -> W3bstreamView {
        let status = self.handle.lock().status();
        W3bstreamView {
            peer_id: self.peer_id.clone(),
            peers: status.peers as u64,
            announced: status.announced,
            waiting: status.waiting,
            problem: status.problem,
        }
    }
}

/// Starts announcing where the configuration says so.
///
/// # Errors
/// A sentence that names the setting or the file.
pub(crate) async fn start(
    supervisor: &mut Supervisor,
    parts: &Parts,
    outputs: &[RunningOutput],
) -> Result<Option<Announcements>, NodeError> {
    let Some(config) = &parts.opened.config.w3bstream else { return Ok(None) };
    let output = outputs.iter().find(|output| output.name == config.output);
    let output = output.ok_or_else(|| bad(&format!("there is no output {}", config.output)))?;
    let note = NoteFile {
        path: parts.home.file(NOTE_FILE),
        network: parts.opened.genesis.id()?,
        epoch: parts.opened.epoch(),
        output: config.output.clone(),
    };
    let (committed, committed_out) = watch::channel(None);
    let (active, active_out) = watch::channel(false);
    let key = own_key(&parts.home.path().join(&config.key_file))?;
    let mut options = AnnouncerOptions::new(key, config.chain_id, committed_out, active_out);
    (options.listen, options.advertise) = (config.listen.clone(), config.advertise.clone());
    (options.bootstrap, options.attempts_max) = (config.bootstrap.clone(), config.attempts_max);
    options.first_task = parts.opened.genesis.params.first_task_number;
    let feed = StateFeed {
        state: parts.state.clone(),
        head: parts.tracker.head(),
        task_states: parts.task_states.clone(),
        note: Arc::new(note),
    };
    let (announcer, handle) = bind(options.clone(), feed.clone()).await?;
    let peer_id = announcer.peer_id();
    tracing::info!(%peer_id, listening = ?handle.listening(), output = %config.output, "tasks are announced to W3bstream");
    let handle = Arc::new(Mutex::new(handle));
    supervisor.spawn_restarted("announcements", {
        let (mut first, handle, stop) = (Some(announcer), handle.clone(), supervisor.token());
        move |_: Option<&EndReason>| {
            let (first, options, feed) = (first.take(), options.clone(), feed.clone());
            let (handle, stop) = (handle.clone(), stop.clone());
            async move {
                let announcer = match first {
                    Some(announcer) => announcer,
                    None => {
                        let (announcer, view) = bind(options, feed).await?;
                        *handle.lock() = view;
                        announcer
                    }
                };
                announcer.run(stop).await;
                Ok(())
            }
        }
    });
    let scope = parts.opened.config.outputs.iter().find(|o| o.name == config.output).map(|o| o.scope);
    let turn = Turn {
        only_leader: scope != Some(Scope::Node),
        consensus: parts.consensus.clone(),
        output: output.handle.clone(),
        name: config.output.clone(),
        progress: parts.tracker.progress_changes(),
        newest: parts.tracker.newest_task(),
        committed,
        active,
    };
    supervisor.spawn_restarted_from("what is to be announced", turn, Turn::run);
    Ok(Some(Announcements { handle, peer_id }))
}

fn bad(error: &dyn std::fmt::Display) -> NodeError {
    NodeError::Config(format!("config.toml: w3bstream: {error}"))
}

/// Opens the sockets of an announcer that goes on where the one before had come to.
async fn bind(options: AnnouncerOptions, feed: StateFeed) -> Result<(Announcer<StateFeed>, Handle), NodeError> {
    let options = AnnouncerOptions { remembered: feed.note.read(), ..options };
    Announcer::bind(options, feed).await.map_err(|e| bad(&e))
}

/// Reads the key, or makes it.
fn own_key(path: &Path) -> Result<SigningKey, NodeError> {
    let bad = |e: &dyn std::fmt::Display| NodeError::Config(format!("{}: {e}", path.display()));
    if !path.exists() {
        write_new_file(path, &hex_line(&random_key()?), 0o600).map_err(|e| bad(&e))?;
    }
    let text = zeroize::Zeroizing::new(std::fs::read_to_string(path).map_err(|e| bad(&e))?);
    SigningKey::from_hex(&text).map_err(|_| bad(&"is not a private key (64 hex digits)"))
}

/// Tells the announcer whether it is this node's turn, and how far the output is.
#[derive(Clone)]
struct Turn {
    only_leader: bool,
    consensus: Consensus,
    output: lockstep_outputs::Handle,
    name: OutputName,
    progress: watch::Receiver<std::collections::BTreeMap<OutputName, TaskNumber>>,
    newest: watch::Receiver<Option<TaskNumber>>,
    committed: watch::Sender<Option<TaskNumber>>,
    active: watch::Sender<bool>,
}

impl Turn {
    async fn run(mut self, stop: CancellationToken) {
        let mut status = self.consensus.status();
        loop {
            let leads = status.borrow_and_update().role == Role::Leader;
            let committed = self.committed();
            self.committed.send_if_modified(|known| std::mem::replace(known, committed) != committed);
            let active = leads || !self.only_leader;
            self.active.send_if_modified(|known| std::mem::replace(known, active) != active);
            let goes_on = tokio::select! {
                () = stop.cancelled() => false,
                changed = status.changed() => changed.is_ok(),
                changed = self.progress.changed() => changed.is_ok(),
                changed = self.newest.changed() => changed.is_ok(),
                goes_on = self.output.changed() => goes_on,
            };
            if !goes_on {
                // The others end when the node does, and this part ends with them.
                return stop.cancelled().await;
            }
        }
    }

    /// Number of the last task whose rows are committed, as the store told this node, or the log; and which this node
    /// has itself.
    fn committed(&mut self) -> Option<TaskNumber> {
        let logged = self.progress.borrow_and_update().get(&self.name).copied();
        let published = self.output.status().last_published.max(logged);
        let newest = *self.newest.borrow_and_update();
        published.min(newest)
    }
}

/// How far announcing is, over a restart: `w3bstream.json` in the home.
struct NoteFile {
    path: PathBuf,
    network: NetworkId,
    epoch: Epoch,
    output: OutputName,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    network: NetworkId,
    epoch: Epoch,
    output: OutputName,
    /// Each task before was announced.
    next: TaskNumber,
}

impl NoteFile {
    /// What was noted last, for this network and output. A file that cannot be read is made again: at worst some tasks
    /// are announced once more.
    fn read(&self) -> Option<TaskNumber> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        match serde_json::from_str::<Note>(&text) {
            Ok(note) if (note.network, note.epoch, &note.output) == (self.network, self.epoch, &self.output) => {
                Some(note.next)
            }
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(file = %self.path.display(), %error, "unreadable; it is made again");
                None
            }
        }
    }

    fn write(&self, next: TaskNumber) {
        let note = Note { network: self.network, epoch: self.epoch, output: self.output.clone(), next };
        let written = serde_json::to_string(&note).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|text| replace_file(&self.path, &(text + "\n"), 0o644)) {
            tracing::warn!(file = %self.path.display(), %error, "not noted what was announced; after a restart it is announced again");
        }
    }
}

/// Tasks out of this node's state.
#[derive(Clone)]
struct StateFeed {
    state: StateStore,
    head: watch::Receiver<Option<Head>>,
    task_states: TaskStates,
    note: Arc<NoteFile>,
}

impl TaskFeed for StateFeed {
    async fn tasks(&self, first: TaskNumber, last: TaskNumber, max: usize) -> Result<Vec<CommittedTask>, FeedError> {
        let kept = self.head.borrow().as_ref().map_or(TaskNumber(0), |head| head.horizon.task_number);
        let state = self.state.clone();
        let read = spawn_blocking(move || read_tasks(&state, first.max(kept), last, max));
        read.await.map_err(|e| FeedError(e.to_string()))?.map_err(|e| FeedError(e.to_string()))
    }

    fn is_assigned(&self, task: &Announcement) -> bool {
        // A settled one was assigned.
        !self.task_states.of(task.project, &task.task).is_empty()
    }

    fn remember(&self, next: TaskNumber) {
        let note = self.note.clone();
        spawn_blocking(move || note.write(next));
    }
}

/// Tasks from `first` to `last`, at most `max`.
fn read_tasks(
    state: &StateStore,
    first: TaskNumber,
    last: TaskNumber,
    max: usize,
) -> Result<Vec<CommittedTask>, ReadError> {
    let mut tasks = Vec::new();
    let mut batches: Vec<_> = if first <= last { state.batch_of_task(first)? } else { None }.into_iter().collect();
    while let Some(height) = batches.last().map(|batch| batch.header.height) {
        for task in batches.iter().flat_map(|batch| &batch.tasks).filter(|task| task.number >= first) {
            if task.number > last || tasks.len() >= max {
                return Ok(tasks);
            }
            let announcement = Announcement { project: task.project_id, task: task.id };
            tasks.push(CommittedTask { number: task.number, announcement });
        }
        batches = state.batches(Height(height.0 + 1), BATCHES_TOGETHER_MAX, READ_BYTES_MAX)?;
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(path: &Path, output: &str) -> NoteFile {
        let output = output.parse().unwrap();
        NoteFile { path: path.into(), network: NetworkId([1; 32]), epoch: Epoch(0), output }
    }

    #[test]
    fn a_note_is_for_its_output_only_and_a_broken_one_counts_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note");
        assert_eq!(note(&path, "tasks").read(), None);
        note(&path, "tasks").write(TaskNumber(5));
        note(&path, "tasks").write(TaskNumber(6));
        assert_eq!(note(&path, "tasks").read(), Some(TaskNumber(6)));
        assert_eq!(note(&path, "others").read(), None);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(note(&path, "tasks").read(), None);
    }

    #[test]
    fn a_key_is_made_once_and_readable_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w3bstream.key");
        let key = own_key(&path).unwrap();
        assert_eq!(own_key(&path).unwrap().public(), key.public());
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&path, "no key").unwrap();
        assert!(own_key(&path).unwrap_err().to_string().contains("w3bstream.key"));
    }
}
