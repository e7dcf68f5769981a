//! Starting raft, proposing to it, answering its peers, and watching it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use lockstep_store::StoreError;
use lockstep_store::home::StoreHome;
use lockstep_types::{Epoch, Genesis, GenesisError, NodeId, proto};
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader, InitializeError, RaftError};
use openraft::{Config, ServerState, SnapshotPolicy};
use prost::Message as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::blocking::Blocking;
use crate::compaction::{Compaction, CompactionOptions};
use crate::convert;
use crate::log_size::LogSize;
use crate::log_store::LogStore;
use crate::plausible;
use crate::pledges::{PledgeError, Pledges};
use crate::pulse::Pulse;
use crate::raft_types::{Payload, Raft};
use crate::receive::{self, Receiver};
use crate::runtime;
use crate::shelf::KeptCopy;
use crate::snapshot::SnapshotProgress;
use crate::state_machine::{Observer, StateMachine};
use crate::state_store::StateStore;
use crate::transport::{Connector, Transport};

/// Most entries in one append message; with batches of at most 1 MiB it stays well below the frame limit.
const APPEND_ENTRIES_MAX: u64 = 16;
/// A node that is behind by more entries than this is catching up.
const CAUGHT_UP_ENTRIES: u64 = 256;
/// A sync of log or state that takes longer than this is taken for one that may never end.
const SYNC_MAX: Duration = Duration::from_secs(1);

/// What raft needs to run.
pub struct Options {
    /// This node.
    pub node: NodeId,
    /// The network.
    pub genesis: Genesis,
    /// The epoch that it is in.
    pub epoch: Epoch,
    /// Where log and state are.
    pub store: StoreHome,
    /// T: a follower stands for election when it has heard nothing for the leader's lease, 1.5 T, and then a time drawn
    /// between T and 1.5 T. So a dead leader is replaced 2.5 T to 3 T after its last word.
    pub election_timeout_ms: u64,
    /// How often a leader speaks when there is nothing to say.
    pub heartbeat_ms: u64,
    /// How long the log may get.
    pub compaction: CompactionOptions,
    /// The newest rules of `apply` that this node knows.
    pub rules_known: u32,
}

/// Raft could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// The store could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The genesis is wrong.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// The log or state could not be read.
    #[error("the log or state cannot be read: {0}")]
    Io(#[from] io::Error),
    /// What this node has bound itself to cannot be read.
    #[error(transparent)]
    Pledges(#[from] PledgeError),
    /// The state on disk ends before the log begins: it is not the one that the log was purged for.
    #[error(
        "the state ends with entry {applied}, but the log begins behind entry {purged}: store/state was removed or replaced by an older copy; put it back, or join again under a new node id (`lockstep init` in a new home)"
    )]
    StateBehindLog {
        /// Index of the newest entry in the state.
        applied: u64,
        /// Index of the newest entry that is not in the log any more.
        purged: u64,
    },
    /// raft refused to start.
    #[error("consensus cannot start: {0}")]
    Start(String),
}

/// A proposal was not committed, as far as this node knows.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// Another node leads, or none: give the messages to the leader.
    #[error("this node does not lead")]
    NotLeader,
    /// This node leads but cannot commit right now: try again shortly.
    #[error("the leader cannot commit right now")]
    NotReady,
    /// Consensus has stopped on this node for good.
    #[error("consensus has stopped: {0}")]
    Stopped(String),
}

/// A node's part in consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It proposes.
    Leader,
    /// It votes and follows.
    Follower,
    /// It stands for election.
    Candidate,
    /// It follows without a vote.
    Observer,
}

/// What raft is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftStatus {
    /// This node's part.
    pub role: Role,
    /// Number of the election period.
    pub term: u64,
    /// Who leads, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Whether an entry of that period was applied here, and with it all that was committed before it.
    pub has_applied_term: bool,
    /// Why consensus has stopped on this node, if it has.
    pub stopped: Option<String>,
}

impl RaftStatus {
    /// Whether this node leads, and has applied the first entry of its term: before, its log may end with batches of
    /// leaders before it that will be committed, and that nothing here knows of.
    pub fn may_propose(&self) -> bool {
        self.role == Role::Leader && self.has_applied_term
    }
}

/// What the log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogFigures {
    /// Bytes of its entries, about; what the disk gives them may be more until it was tidied up.
    pub bytes: u64,
    /// Its entries.
    pub entries: u64,
    /// Index of the newest entry that was purged; 0 where none was.
    pub purged: u64,
    /// Index of the newest entry in a snapshot; 0 where there is none.
    pub snapshot: u64,
}

/// A running raft node. Clones share it.
#[derive(Clone)]
pub struct Consensus {
    raft: Raft,
    log: LogStore,
    state: StateStore,
    pledges: Pledges,
    receiver: Arc<Receiver>,
    compaction: CompactionOptions,
    /// A leader that no majority has answered for this long has lost it.
    silence_max: Duration,
    pulse: Pulse,
    status: watch::Receiver<RaftStatus>,
}

/// See [`Consensus::positions`]. It outlives raft, and holds nothing of it.
#[derive(Clone)]
pub struct Positions {
    log: LogStore,
    pledges: Pledges,
}

impl Positions {
    /// Index of the last log entry.
    pub fn last_index(&self) -> u64 {
        self.log.last_index().unwrap_or(0)
    }

    /// Up to which index a member is known to have acknowledged committed entries.
    pub fn acknowledged(&self, node: NodeId) -> u64 {
        self.pledges.mark(node)
    }
}

fn config(options: &Options) -> Result<Config, ConsensusError> {
    let config = Config {
        cluster_name: options.genesis.network.clone(),
        heartbeat_interval: options.heartbeat_ms,
        election_timeout_min: options.election_timeout_ms,
        election_timeout_max: options.election_timeout_ms * 3 / 2,
        max_payload_entries: APPEND_ENTRIES_MAX,
        // When a snapshot is made and what is purged then is decided in `compaction`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        // A leader whose entries others have synced, and it not yet, would make other entries with the same ids after a
        // power loss if it went on to lead in the same term.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    config.validate().map_err(|e| ConsensusError::Start(e.to_string()))
}

impl Consensus {
    /// Opens the stores and starts raft. The first members of a genesis form the first voter set.
    ///
    /// # Errors
    /// With a sentence for the operator.
    pub fn start(
        options: Options,
        transport: Arc<dyn Transport>,
        state: StateStore,
        observer: Arc<dyn Observer>,
    ) -> BoxFuture<'static, Result<Self, ConsensusError>> {
        // Boxed, so that this crate compiles it, and not each program that awaits it.
        Box::pin(Self::start_on(options, transport, state, observer))
    }

    async fn start_on(
        options: Options,
        transport: Arc<dyn Transport>,
        state: StateStore,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, ConsensusError> {
        let config = Arc::new(config(&options)?);
        let (storage, writer) = state.medium().open_log(&options.store.log_path())?;
        let writer = Arc::new(writer);
        let pledges = Pledges::open(&*storage, writer.clone())?;
        let log = LogStore::open(storage, writer)?;
        check_state_reaches_log(&state, &log)?;
        let machine =
            StateMachine::open(&options.genesis, (options.epoch, options.rules_known), state.clone(), observer)?;
        let connector = Connector { transport: transport.clone(), log: log.clone(), state: state.clone() };
        let raft = Raft::new(options.node.0, config, connector, log.clone(), machine)
            .await
            .map_err(|e| ConsensusError::Start(e.to_string()))?;
        let members: BTreeMap<u64, _> = options.genesis.nodes().map(|(id, _)| (id.0, openraft::EmptyNode {})).collect();
        // A node that joined later gets its log, or a snapshot, from the others.
        // A later epoch begins with a state, not with an empty log.
        let first = options.epoch == Epoch(0) && members.contains_key(&options.node.0);
        match if first { raft.initialize(members).await } else { Ok(()) } {
            // Every first member initializes with the same set; a node with a log has been initialized before.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(ConsensusError::Start(error.to_string())),
        }
        let status = watch_status(&raft);
        let parts = receive::Parts { raft: raft.clone(), log: log.clone(), state: state.clone(), transport };
        let receiver = Arc::new(Receiver::new(parts));
        // The others elect another one after one and a half election timeouts.
        let silence_max = 2 * Duration::from_millis(options.election_timeout_ms);
        let (compaction, pulse) = (options.compaction, Pulse::default());
        Ok(Self { raft, log, state, pledges, receiver, compaction, silence_max, pulse, status })
    }

    pub(crate) fn raft(&self) -> &Raft {
        &self.raft
    }

    /// Where this node's log ends and what others acknowledged, for whoever has to judge a member's log.
    pub fn positions(&self) -> Positions {
        Positions { log: self.log.clone(), pledges: self.pledges.clone() }
    }

    /// Index of the last log entry.
    pub fn last_index(&self) -> u64 {
        self.log.last_index().unwrap_or(0)
    }

    /// Index of the last log entry that is on this node's disk.
    pub fn durable_index(&self) -> u64 {
        self.log.durable_index()
    }

    /// How work that blocks is done on this node.
    pub fn blocking(&self) -> Blocking {
        self.state.blocking()
    }

    /// What this node has bound itself to.
    pub fn pledges(&self) -> &Pledges {
        &self.pledges
    }

    /// Proposes a command and waits until it is committed and applied here.
    ///
    /// # Errors
    /// Whatever the error, the command may still be committed later.
    pub async fn propose(&self, command: Bytes) -> Result<(), ProposeError> {
        self.raft.client_write(Payload(command)).await.map(drop).map_err(propose_error)
    }

    /// Puts an entry without an effect into the log, and waits until it is committed and applied here; tells its index.
    /// Every entry that any leader had appended before, and that can still be committed, comes before it.
    ///
    /// # Errors
    /// As of [`Consensus::propose`].
    pub async fn barrier(&self) -> Result<u64, ProposeError> {
        self.raft.write_blank().await.map(|written| written.log_id.index).map_err(propose_error)
    }

    /// Waits until the entry at this index is applied here; for ever if consensus ends. Cancel-safe.
    pub async fn applied(&self, index: u64) {
        let mut metrics = self.raft.data_metrics();
        loop {
            let applied = metrics.borrow_watched().last_applied;
            if applied.is_some_and(|applied| applied.index >= index) {
                return;
            }
            if metrics.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Answers a raft request of a member. The caller has made sure who it is.
    pub fn serve(&self, from: NodeId, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(self.serve_raft(from, request))
    }

    async fn serve_raft(&self, from: NodeId, request: Bytes) -> Bytes {
        let kind = match self.answer(from, request).await {
            Ok(kind) => kind,
            Err(reason) => {
                tracing::debug!(%from, %reason, "a raft request was not served");
                proto::raft_response::Kind::Failed(reason)
            }
        };
        proto::RaftResponse { kind: Some(kind) }.encode_to_vec().into()
    }

    async fn answer(&self, from: NodeId, request: Bytes) -> Result<proto::raft_response::Kind, String> {
        use proto::raft_request::Kind as Request;
        use proto::raft_response::Kind as Response;
        let text = |e: &dyn std::fmt::Display| e.to_string();
        plausible::check_size(&request).map_err(|e| text(&e))?;
        let request = proto::RaftRequest::decode(request).map_err(|e| text(&e))?;
        let term = self.raft.metrics().borrow_watched().vote.leader_id.term;
        match request.kind.ok_or("unknown kind")? {
            Request::Append(append) => {
                let append = convert::append_from(append).map_err(|e| text(&e))?;
                plausible::check_append(&append, from, term).map_err(|e| text(&e))?;
                let answer = self.raft.append_entries(append).await.map_err(|e| text(&e))?;
                Ok(Response::Append(convert::append_response_to(&answer)))
            }
            Request::Vote(vote) => {
                let vote = convert::vote_request_from(vote).map_err(|e| text(&e))?;
                plausible::check_vote_request(&vote, from, term).map_err(|e| text(&e))?;
                let answer = self.raft.vote(vote).await.map_err(|e| text(&e))?;
                Ok(Response::Vote(convert::vote_response_to(&answer)))
            }
            Request::PreVote(vote) => {
                let vote = convert::vote_request_from(vote).map_err(|e| text(&e))?;
                plausible::check_vote_request(&vote, from, term).map_err(|e| text(&e))?;
                let answer = self.raft.pre_vote(vote).await.map_err(|e| text(&e))?;
                Ok(Response::Vote(convert::vote_response_to(&answer)))
            }
            Request::Transfer(transfer) => {
                let transfer = convert::transfer_from(transfer).map_err(|e| text(&e))?;
                plausible::check_transfer(&transfer, from, term).map_err(|e| text(&e))?;
                let accepted = self.raft.handle_transfer_leader(transfer).await.map_err(|e| text(&e))?;
                accepted.map_err(|e| text(&e))?;
                Ok(Response::Append(proto::AppendResponse::default()))
            }
            Request::Offer(offer) => Ok(Response::Offer(self.receiver.offered(from, offer).map_err(|e| text(&e))?)),
        }
    }

    /// Answers a request of a member on the snapshot channel: a piece of a copy of the state that it was offered. The
    /// caller has made sure who it is.
    pub fn serve_bulk(&self, from: NodeId, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(self.serve_piece(from, request))
    }

    async fn serve_piece(&self, from: NodeId, request: Bytes) -> Bytes {
        use proto::bulk_response::Kind;
        let request = plausible::read_bulk_request(request);
        let kind = match request.map(|request| request.kind) {
            Ok(Some(proto::bulk_request::Kind::Piece(piece))) => {
                self.state.shelf().serve(piece, self.state.blocking()).await
            }
            Ok(Some(proto::bulk_request::Kind::Copy(copy))) => self.offer_copy(copy.at_least).await,
            Ok(None) => Kind::Failed("unknown kind".into()),
            Err(error) => Kind::Failed(error.to_string()),
        };
        if let Kind::Failed(reason) | Kind::Gone(reason) = &kind {
            tracing::debug!(%from, reason, "a piece of the state was not served");
        }
        proto::BulkResponse { kind: Some(kind) }.encode_to_vec().into()
    }

    /// The newest copy of the state, for a member that lost its own; one is made where there is none that suffices.
    async fn offer_copy(&self, at_least: u64) -> proto::bulk_response::Kind {
        use proto::bulk_response::Kind;
        let current = self.state.shelf().current();
        let reaches = |copy: &Arc<KeptCopy>| copy.meta.last_log_id.is_some_and(|id| id.index >= at_least);
        let Some(copy) = current.filter(reaches) else {
            return match self.raft.trigger().snapshot().await {
                Ok(()) => Kind::Failed("a copy of the state is being made: ask again".into()),
                Err(error) => Kind::Failed(error.to_string()),
            };
        };
        let (state, vote) = (self.state.clone(), self.raft.metrics().borrow_watched().vote);
        let offer = move || state.shelf().manifest(&copy).map(|(_, manifest)| manifest.to_offer(&vote));
        match self.state.blocking().run(offer).await {
            Ok(Ok(offer)) => Kind::Offer(offer),
            Ok(Err(error)) => Kind::Failed(error.to_string()),
            Err(error) => Kind::Failed(error.to_string()),
        }
    }

    /// Keeps the log short until `stop`: makes snapshots of the state and purges what they contain.
    pub async fn run_compaction(&self, stop: CancellationToken) {
        let (raft, log, state) = (&self.raft, &self.log, &self.state);
        let receiver = self.receiver.clone();
        let sweep = move || {
            if let Err(error) = receiver.sweep() {
                tracing::warn!(%error, "what was received of a copy of the state was not removed");
            }
        };
        Compaction { raft, log, state, options: self.compaction }.run(stop, sweep).await;
    }

    /// Asks raft's task until `stop` whether it moves, for [`Consensus::standstill`].
    pub async fn run_pulse(&self, stop: CancellationToken) {
        self.pulse.run(&self.raft, self.silence_max / 4, stop).await;
    }

    /// Why what this node says of the network, or is asked to take, would be of no use: its disk does not answer, or its
    /// consensus does not move. Waits for neither.
    pub fn standstill(&self) -> Option<String> {
        let longer = |age: Option<Duration>, max: Duration| age.filter(|age| *age > max).map(|age| age.as_secs_f64());
        if let Some(s) = longer(self.log.writing().age(), SYNC_MAX) {
            return Some(format!("a sync of the log has been waiting for the disk for {s:.1} s"));
        }
        if let Some(s) = longer(self.state.flushing().age(), SYNC_MAX) {
            return Some(format!("a sync of the state has been waiting for the disk for {s:.1} s"));
        }
        if let Some(s) = longer(self.state.applying().age(), self.silence_max) {
            return Some(format!("an entry of the log has been under way into the state for {s:.1} s"));
        }
        let silence = longer(self.pulse.silence(), self.silence_max)?;
        Some(format!("consensus on this node has not moved for {silence:.1} s"))
    }

    /// How far the transfer of the state to this node is; `None` while there is none.
    pub fn snapshot_progress(&self) -> watch::Receiver<Option<SnapshotProgress>> {
        self.receiver.progress()
    }

    /// Transfers of the state from this node, the leader, to others.
    pub fn snapshots_sent(&self) -> Vec<SnapshotProgress> {
        self.state.shelf().outgoing()
    }

    /// What the log holds.
    pub fn log_figures(&self) -> LogFigures {
        let metrics = self.raft.data_metrics();
        let data = metrics.borrow_watched();
        let purged = data.purged.map_or(0, |id| id.index);
        LogFigures {
            bytes: self.log.size(LogSize::bytes),
            entries: data.last_log.map_or(0, |id| id.index).saturating_sub(purged),
            purged,
            snapshot: data.snapshot.map_or(0, |id| id.index),
        }
    }

    /// What raft is doing, and a way to wait for a change of it.
    pub fn status(&self) -> watch::Receiver<RaftStatus> {
        self.status.clone()
    }

    /// Whether this node has applied what the leader says is committed, but for the newest entries, which are always
    /// on their way under load: false while it catches up.
    pub fn is_caught_up(&self) -> bool {
        let metrics = self.raft.data_metrics();
        let data = metrics.borrow_watched();
        let committed = data.local_committed.max(data.cluster_committed).map_or(0, |id| id.index);
        let is_behind_the_log = self.receiver.progress().borrow().is_some();
        !is_behind_the_log && data.last_applied.is_some_and(|applied| applied.index + CAUGHT_UP_ENTRIES >= committed)
    }

    /// Whether a majority of voters still answers this node if it leads; true of a node that does not.
    pub fn has_majority(&self) -> bool {
        let metrics = self.raft.metrics();
        let now = metrics.borrow_watched();
        let is_alone = now.membership_config.membership().voter_ids().count() <= 1;
        let answered = now.last_quorum_acked.as_ref().is_none_or(|at| at.elapsed() < self.silence_max);
        now.state != ServerState::Leader || is_alone || answered
    }

    /// Whether this node may stand for election when it hears of no leader.
    pub fn allow_elections(&self, may: bool) {
        self.raft.runtime_config().elect(may);
    }

    /// Asks the most advanced of `candidates` to take over, if this node leads; tells whom it asked.
    pub async fn hand_over(&self, candidates: &[NodeId]) -> Option<NodeId> {
        let target = {
            let metrics = self.raft.data_metrics();
            let data = metrics.borrow_watched();
            let followers = data.replication.as_ref()?;
            let own = *self.raft.node_id();
            let able = |id: u64| id != own && candidates.contains(&NodeId(id));
            let best = followers.iter().filter(|(id, _)| able(**id)).max_by_key(|(_, matched)| **matched)?;
            *best.0
        };
        self.raft.trigger().transfer_leader(target).await.ok()?;
        Some(NodeId(target))
    }

    /// Stops raft, then writes the state to disk.
    pub async fn shutdown(&self) {
        self.receiver.stop().await;
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "consensus did not stop cleanly");
        }
        let state = self.state.clone();
        let flushed = self.state.blocking().run(move || state.flush().map_err(|e| e.to_string())).await;
        if let Err(error) = flushed.unwrap_or_else(|e| Err(e.to_string())) {
            tracing::warn!(%error, "the state was not written at shutdown; it is made again from the log");
        }
    }
}

fn propose_error(error: RaftError<crate::TypeConfig, ClientWriteError<crate::TypeConfig>>) -> ProposeError {
    match error {
        RaftError::Fatal(error) => ProposeError::Stopped(error.to_string()),
        RaftError::APIError(ClientWriteError::ForwardToLeader(ForwardToLeader { leader_id: None, .. })) => {
            ProposeError::NotReady
        }
        RaftError::APIError(_) => ProposeError::NotLeader,
    }
}

/// A purge never goes beyond what is in the state on disk, so only a state that was meddled with fails here.
fn check_state_reaches_log(state: &StateStore, log: &LogStore) -> Result<(), ConsensusError> {
    let applied = state.applied().map_err(io::Error::other)?.0.map_or(0, |id| id.index);
    match log.purged_index() {
        Some(purged) if purged > applied => Err(ConsensusError::StateBehindLog { applied, purged }),
        _ => Ok(()),
    }
}

fn watch_status(raft: &Raft) -> watch::Receiver<RaftStatus> {
    let mut metrics = raft.metrics();
    let read =
        |metrics: &openraft::alias::WatchReceiverOf<crate::TypeConfig, openraft::RaftMetrics<crate::TypeConfig>>| {
            let now = metrics.borrow_watched();
            RaftStatus {
                role: match now.state {
                    ServerState::Leader => Role::Leader,
                    ServerState::Candidate => Role::Candidate,
                    ServerState::Learner => Role::Observer,
                    ServerState::Follower | ServerState::Shutdown => Role::Follower,
                },
                term: now.current_term,
                leader: now.current_leader.map(NodeId),
                has_applied_term: now.last_applied.is_some_and(|id| *id.leader_id == now.current_term),
                stopped: now.running_state.as_ref().err().map(ToString::to_string),
            }
        };
    let (sender, receiver) = watch::channel(read(&metrics));
    runtime::spawn(async move {
        while metrics.changed().await.is_ok() {
            let status = read(&metrics);
            sender.send_if_modified(|old| {
                let changed = *old != status;
                *old = status;
                changed
            });
        }
        sender.send_modify(|status| {
            status.stopped.get_or_insert_with(|| "consensus was shut down".into());
        });
    });
    receiver
}
