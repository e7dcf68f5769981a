//! The member's side of being brought forward by a copy of the state: it answers offers at once, fetches in the
//! background, and gives what it has got to raft.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lockstep_types::{DecodeError, NodeId, proto};
use openraft::async_runtime::WatchReceiver as _;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::fetch::{Counts, Fetch, FetchError, incoming_in, prepare};
use crate::limits::{INCOMING_KEPT, OFFER_SILENCE_MAX, PROGRESS_INTERVAL, TRANSFER_RETRY};
use crate::log_store::LogStore;
use crate::offer;
use crate::raft_types::{Raft, Vote};
use crate::runtime;
use crate::shelf::SnapshotDirectory;
use crate::snapshot::{Manifest, SnapshotId, SnapshotProgress, SnapshotStage};
use crate::state_store::{StateStore, check_copy};
use crate::transport::Transport;

type Snapshot = openraft::alias::SnapshotOf<crate::TypeConfig, SnapshotDirectory>;

/// What the receiving side needs.
pub(crate) struct Parts {
    pub raft: Raft,
    pub log: LogStore,
    pub state: StateStore,
    pub transport: Arc<dyn Transport>,
}

/// A transfer that was begun. The newest one only; another offer takes its place.
struct Job {
    from: NodeId,
    id: SnapshotId,
    manifest: Manifest,
    counts: Arc<Counts>,
    trouble: Arc<Mutex<Option<String>>>,
    /// Newest vote that it was offered with.
    vote: Vote,
    offered: Instant,
    stage: SnapshotStage,
    problem: Option<String>,
    ended: Option<Instant>,
    stop: CancellationToken,
    done: CancellationToken,
}

impl Job {
    fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    fn is_installing(&self) -> bool {
        self.stage == SnapshotStage::Installing && !self.is_over()
    }

    /// Not at once: after a failure that would only fail again, and after a success raft may not yet show it.
    fn may_begin_again(&self) -> bool {
        self.ended.is_some_and(|ended| ended.elapsed() >= TRANSFER_RETRY)
    }

    fn progress(&self, bytes_per_second: u64) -> SnapshotProgress {
        SnapshotProgress {
            node: self.from,
            last_index: self.manifest.last().map_or(0, |id| id.index),
            bytes_done: self.counts.done.load(Ordering::Relaxed),
            bytes_total: self.manifest.bytes(),
            bytes_per_second,
            stage: self.stage,
            problem: self.problem.clone().or_else(|| self.trouble.lock().clone()),
        }
    }
}

/// See the module's documentation.
pub(crate) struct Receiver {
    parts: Parts,
    job: Mutex<Option<Job>>,
    progress: watch::Sender<Option<SnapshotProgress>>,
    started: Instant,
}

/// Ends a transfer whose task panics: else it would be under way for ever, and no other one would begin.
struct EndsByPanic {
    receiver: Arc<Receiver>,
    id: SnapshotId,
}

impl Drop for EndsByPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.receiver.end(self.id, Some("the transfer panicked: it is tried again".to_owned()));
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("what was received is not what was offered: {0}")]
    Content(String),
    #[error("raft does not take it: {0}")]
    Raft(String),
}

impl Receiver {
    pub fn new(parts: Parts) -> Self {
        Self { parts, job: Mutex::new(None), progress: watch::channel(None).0, started: Instant::now() }
    }

    /// How far the transfer to this node is; `None` while there is none.
    pub fn progress(&self) -> watch::Receiver<Option<SnapshotProgress>> {
        self.progress.subscribe()
    }

    /// Answers an offer of the member `from`: says how far it is, and begins where it is new.
    ///
    /// # Errors
    /// What is wrong with the offer.
    pub fn offered(
        self: &Arc<Self>,
        from: NodeId,
        offer: proto::SnapshotOffer,
    ) -> Result<proto::SnapshotAnswer, DecodeError> {
        let (vote, manifest) = Manifest::from_offer(offer)?;
        if vote.leader_id.voted_for != from.0 {
            return Err(DecodeError::malformed("snapshot offer", "its vote is that of another node"));
        }
        let (own, is_installed) = self.standing(&manifest);
        let mut answer = offer::answer(&own);
        answer.bytes_total = manifest.bytes();
        if own.leader_id.term > vote.leader_id.term {
            return Ok(answer);
        }
        if is_installed {
            (answer.installed, answer.bytes_done) = (true, answer.bytes_total);
            return Ok(answer);
        }
        let mut slot = self.job.lock();
        let id = manifest.id();
        match slot.as_mut() {
            Some(job) if job.id == id && job.from == from && !job.may_begin_again() => {
                (job.vote, job.offered) = (vote, Instant::now());
                answer.bytes_done = job.counts.done.load(Ordering::Relaxed);
                answer.problem = job.problem.clone().unwrap_or_default();
            }
            // Its files are raft's by now: nothing may be moved away until raft is done with them.
            Some(job) if job.is_installing() => answer.problem = "another copy of the state is being installed".into(),
            _ => {
                let before = slot.take().map(|job| (job.stop, job.done));
                *slot = Some(self.begin(from, vote, manifest, before));
            }
        }
        Ok(answer)
    }

    /// Ends a transfer that is under way, and waits for its end.
    pub async fn stop(&self) {
        let job = self.job.lock().as_ref().map(|job| (job.stop.clone(), job.done.clone()));
        if let Some((stop, done)) = job {
            stop.cancel();
            done.cancelled().await;
        }
    }

    /// This node's vote, and whether its state on disk contains all that an offer would bring.
    fn standing(&self, manifest: &Manifest) -> (Vote, bool) {
        let metrics = self.parts.raft.metrics();
        let metrics = metrics.borrow_watched();
        let is_applied = metrics.last_applied >= manifest.last();
        let is_durable = self.parts.log.durable_index() >= manifest.last().map_or(0, |id| id.index);
        (metrics.vote, is_applied && is_durable)
    }

    fn begin(
        self: &Arc<Self>,
        from: NodeId,
        vote: Vote,
        manifest: Manifest,
        before: Option<(CancellationToken, CancellationToken)>,
    ) -> Job {
        let (stop, done) = (CancellationToken::new(), CancellationToken::new());
        let id = manifest.id();
        let job = Job {
            from,
            id,
            manifest: manifest.clone(),
            counts: Arc::default(),
            trouble: Arc::default(),
            vote,
            offered: Instant::now(),
            stage: SnapshotStage::Fetching,
            problem: None,
            ended: None,
            stop: stop.clone(),
            done: done.clone(),
        };
        let (this, finished) = (self.clone(), done.drop_guard());
        runtime::spawn(async move {
            // Two transfers never write to the same files.
            if let Some((stop, done)) = before {
                stop.cancel();
                done.cancelled().await;
            }
            let panics = EndsByPanic { receiver: this.clone(), id };
            this.run(from, id, manifest, stop).await;
            drop(panics);
            drop(finished);
        });
        job
    }

    async fn run(&self, from: NodeId, id: SnapshotId, manifest: Manifest, stop: CancellationToken) {
        let (index, bytes) = (manifest.last().map_or(0, |id| id.index), manifest.bytes());
        info!(node = %from, index, bytes, "fetching a copy of the state, because the log no longer has what is missing here");
        let result = tokio::select! {
            result = self.receive(from, id, manifest) => result,
            () = stop.cancelled() => return,
            () = self.watch(id) => {
                warn!(node = %from, index, "the copy of the state is no longer offered; what was fetched is kept for the next offer");
                self.end(id, None);
                return;
            }
        };
        match result {
            Ok(()) => {
                info!(node = %from, index, "the state was replaced by the copy");
                self.end(id, None);
            }
            Err(error) => {
                warn!(node = %from, index, %error, "the copy of the state was not installed; it is tried again");
                self.end(id, Some(error.to_string()));
            }
        }
    }

    fn with_job(&self, id: SnapshotId, change: impl FnOnce(&mut Job)) {
        if let Some(job) = self.job.lock().as_mut().filter(|job| job.id == id) {
            change(job);
        }
    }

    fn end(&self, id: SnapshotId, problem: Option<String>) {
        self.with_job(id, |job| {
            (job.problem, job.ended) = (problem, Some(Instant::now()));
            if job.problem.is_some() {
                job.stage = SnapshotStage::Failed;
            }
            self.progress.send_replace(job.problem.is_some().then(|| job.progress(0)));
        });
    }

    async fn receive(&self, from: NodeId, id: SnapshotId, manifest: Manifest) -> Result<(), ReceiveError> {
        let (parent, wanted) = (self.parts.state.home().snapshots_path(), manifest.clone());
        let blocking = self.parts.state.blocking();
        let prepared = blocking.run(move || prepare(&parent, id, &wanted)).await;
        let directory = prepared.map_err(|e| FetchError::Disk(std::io::Error::other(e)))??;
        let fetch = Fetch::new(from, self.parts.transport.clone(), id, directory.clone(), &manifest).doing(blocking);
        self.with_job(id, |job| (job.counts, job.trouble) = (fetch.counts.clone(), fetch.trouble.clone()));
        fetch.run().await?;
        self.with_job(id, |job| job.stage = SnapshotStage::Installing);
        self.install(id, manifest, directory).await
    }

    async fn install(&self, id: SnapshotId, manifest: Manifest, directory: PathBuf) -> Result<(), ReceiveError> {
        let (path, meta) = (directory.clone(), manifest.meta.clone());
        let (blocking, medium) = (self.parts.state.blocking(), self.parts.state.medium().clone());
        let checked = blocking.run(move || check_copy(&*medium, &path, &meta)).await;
        if let Err(error) = checked.map_err(|e| ReceiveError::Content(e.to_string()))? {
            // Fetching it again is all that may help.
            let _ = blocking.run(move || std::fs::remove_dir_all(&directory)).await;
            return Err(ReceiveError::Content(error.to_string()));
        }
        let mut vote = None;
        self.with_job(id, |job| vote = Some(job.vote));
        let vote = vote.ok_or_else(|| ReceiveError::Raft("another offer took its place".into()))?;
        let snapshot = Snapshot { meta: manifest.meta.clone(), snapshot: SnapshotDirectory::received(directory) };
        self.may_be_installed(&manifest)?;
        let answer = self.parts.raft.install_full_snapshot(vote, snapshot).await;
        let answer = answer.map_err(|e| ReceiveError::Raft(e.to_string()))?;
        if answer.vote.leader_id.term > vote.leader_id.term {
            return Err(ReceiveError::Raft("there is a newer leader".into()));
        }
        Ok(())
    }

    /// openraft panics at a copy that contradicts what is committed here.
    fn may_be_installed(&self, manifest: &Manifest) -> Result<(), ReceiveError> {
        let metrics = self.parts.raft.data_metrics();
        let committed = metrics.borrow_watched().local_committed;
        match (manifest.last(), committed) {
            (Some(last), Some(committed)) if last > committed && last.index <= committed.index => {
                Err(ReceiveError::Raft(format!("it ends with entry {last}, but {committed} is committed here")))
            }
            _ => Ok(()),
        }
    }

    /// Shows and logs progress; returns when offers have stayed out for too long.
    async fn watch(&self, id: SnapshotId) {
        let (mut said, mut before) = (Instant::now(), 0);
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(250));
        let mut rate = 0;
        loop {
            ticks.tick().await;
            let mut now = None;
            self.with_job(id, |job| {
                let fetched = job.counts.fetched.load(Ordering::Relaxed);
                now = Some((job.progress(rate), fetched, job.offered.elapsed()));
            });
            let Some((progress, fetched, silence)) = now else { continue };
            if said.elapsed() >= PROGRESS_INTERVAL {
                rate = fetched.saturating_sub(before) * 1000
                    / u64::try_from(said.elapsed().as_millis()).unwrap_or(1000).max(1);
                (said, before) = (Instant::now(), fetched);
                let (percent, mb_per_second) = (progress.percent(), rate / 1_000_000);
                info!(node = %progress.node, index = progress.last_index, bytes = progress.bytes_total, percent, mb_per_second, problem = progress.problem, "fetching a copy of the state");
            }
            let is_installing = progress.stage == SnapshotStage::Installing;
            self.progress.send_replace(Some(progress));
            if silence >= OFFER_SILENCE_MAX && !is_installing {
                return;
            }
        }
    }

    /// Removes what was received for an offer that never came back.
    pub fn sweep(&self) -> std::io::Result<()> {
        {
            let job = self.job.lock();
            let since = job.as_ref().map_or(self.started, |job| job.ended.unwrap_or(job.offered).max(job.offered));
            if since.elapsed() < INCOMING_KEPT || job.as_ref().is_some_and(|job| !job.is_over()) {
                return Ok(());
            }
        }
        for path in incoming_in(&self.parts.state.home().snapshots_path())? {
            info!(path = %path.display(), "removing a copy of the state that was not completed");
            std::fs::remove_dir_all(path)?;
        }
        Ok(())
    }
}
