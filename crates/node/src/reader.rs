//! Answers the read API from what is stored on this node.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockstep_api::views::{
    BatchMessageView, BatchView, BatchesView, BoundariesView, EvidenceView, HeadView, LeaderView, MembersView,
    MessageView, NodeView, PeerView, Progress, ReceiptView, Role, StatusView, TaskView, TransferView, to_base64,
};
use lockstep_api::{Read, ReadError, Viewer};
use lockstep_consensus::{Consensus, ReadError as StateError, SnapshotProgress, StateStore};
use lockstep_ledger::{KnownMember, Projects};
use lockstep_network::{Handle, peer_id_of};
use lockstep_types::{
    Address, Batch, ContentId, Digest, Epochs, Evidence, ExportPage, Genesis, Height, Message, MessageId, NodeId,
    OutputName, ProjectId, Proof, PublicKey, Sequence, SigningKey, Task, TaskId, TaskNumber,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;

use crate::announce::Announcements;
use crate::barrier::Barriers;
use crate::certify::Certifier;
use crate::chain::{Chain, TaskStates};
use crate::clock_guard;
use crate::endings::Endings;
use crate::feed::TaskViews;
use crate::held_back::HeldBack;
use crate::ingress::Ingress;
use crate::limits::{BARRIER_RETRY_MS, READ_BYTES_MAX};
use crate::mempool::Mempool;
use crate::metrics;
use crate::operator::Operator;
use crate::output_desk::STILL_NAMED;
use crate::output_views::OutputViews;
use crate::proofs::{self, History, PageQuery};
use crate::publish::{RunningOutput, TaskReader};
use crate::tracker::Tracker;

pub(crate) struct Reader {
    pub genesis: Genesis,
    pub epochs: Epochs,
    pub node: NodeId,
    pub key: PublicKey,
    pub state: StateStore,
    pub consensus: Consensus,
    pub network: Handle,
    pub tracker: Arc<Tracker>,
    pub mempool: Mempool,
    pub ingress: Arc<Ingress>,
    pub operator: Operator,
    pub barriers: Barriers,
    pub certifier: Certifier,
    pub chain: Chain,
    pub task_states: TaskStates,
    pub clock_off: watch::Receiver<Option<i64>>,
    pub endings: Endings,
    pub not_forgetting: watch::Receiver<Option<String>>,
    pub held_back: watch::Receiver<Option<HeldBack>>,
    pub outputs: Arc<[RunningOutput]>,
    pub output_views: OutputViews,
    pub announcements: Option<Announcements>,
    pub prometheus: PrometheusHandle,
    /// Signs views of tasks, as it signs tasks for the outputs.
    pub task_key: Arc<SigningKey>,
}

pub(crate) fn failed(error: StateError) -> ReadError {
    tracing::error!(%error, "the state cannot be read");
    ReadError::Failed(error.to_string())
}

pub(crate) fn device_view(device: Address) -> Option<Address> {
    (device != Address::ZERO).then_some(device)
}

fn batch_view(batch: &Batch) -> BatchView {
    let message = |(sequence, ordered): (u64, &lockstep_types::OrderedMessage)| BatchMessageView {
        sequence: Sequence(sequence),
        id: ordered.id,
        project_id: ordered.message.project_id,
        project_version: ordered.message.project_version.clone(),
        device: device_view(ordered.message.device),
    };
    BatchView {
        height: batch.header.height,
        hash: batch.header.hash(),
        parent: batch.header.parent,
        time_ms: batch.header.time_ms,
        first_sequence: batch.header.first_sequence,
        messages: (batch.header.first_sequence.0..).zip(&batch.messages).map(message).collect(),
        tasks: batch.tasks.iter().map(|task| task.id).collect(),
    }
}

impl Reader {
    pub(crate) fn history(&self) -> History {
        History { genesis: self.genesis.clone(), epochs: self.epochs.clone() }
    }

    fn leads(&self) -> bool {
        self.consensus.status().borrow().role == lockstep_consensus::Role::Leader
    }

    /// What an operator has to look at.
    fn complaints(&self) -> Vec<String> {
        let evidence =
            self.certifier.complaint().map(|reason| format!("no batch is signed any more: the evidence of {reason}"));
        let conflict = self.ingress.conflict().map(|reason| format!("nothing is acknowledged any more: {reason}"));
        let clock = clock_guard::complaints(*self.clock_off.borrow(), self.tracker.clock());
        let chain = self.chain.complaint(self.leads());
        let retention = self.not_forgetting.borrow().clone();
        let refusals = self.network.refusals().into_iter();
        let refused = refusals.map(|(node, reason)| format!("node {node} refuses this node: {reason}"));
        let held_back = self.held_back.borrow().as_ref().map(HeldBack::complaint);
        let still_named = self.removed().map(|output| format!("output {} was {STILL_NAMED}", output.name));
        let ended = self.endings.complaints();
        let of_parts = evidence.into_iter().chain(conflict).chain(clock).chain(chain).chain(retention);
        of_parts.chain(refused).chain(held_back).chain(still_named).chain(ended).collect()
    }

    /// Outputs in this node's configuration that belong to the network no longer.
    fn removed(&self) -> impl Iterator<Item = &RunningOutput> {
        let states = self.tracker.output_states().borrow().clone();
        self.outputs.iter().filter(move |output| output.switch.is_removed(&states))
    }

    /// The others.
    fn fed(&self) -> impl Iterator<Item = &RunningOutput> {
        let states = self.tracker.output_states().borrow().clone();
        self.outputs.iter().filter(move |output| !output.switch.is_removed(&states))
    }

    /// Why messages that this node takes would not be ordered: so many voters refuse it that no majority is left.
    fn shut_out(&self) -> Option<String> {
        let (refusals, members) = (self.network.refusals(), self.tracker.members().borrow().clone());
        let voters = members.set();
        let refusing = |node: NodeId| refusals.iter().any(|(refused_by, _)| *refused_by == node);
        let left = voters.voters().filter(|voter| !refusing(voter.node)).count();
        let (node, reason) = refusals.first().filter(|_| left < voters.majority())?;
        Some(format!("node {node} refuses this node, as others do: {reason}"))
    }

    /// Why messages that this node takes would wait: it cannot reach a majority of voters.
    fn cut_off(&self) -> Option<String> {
        let (peers, members) = (self.network.peers(), self.tracker.members().borrow().clone());
        let voters = members.set();
        let reached = |node: NodeId| node == self.node || peers.iter().any(|peer| peer.node == node && peer.connected);
        let (count, all) = (voters.voters().filter(|v| reached(v.node)).count(), voters.voters().count());
        (count < voters.majority()).then(|| format!("this node reaches {count} of {all} voters: no majority"))
    }

    /// Nothing was found under a sequence: is that because it was forgotten?
    fn unless_pruned<T>(&self, sequence: Option<Sequence>) -> Result<Option<T>, ReadError> {
        let head = self.tracker.head().borrow().clone();
        let horizon = head.map(|head| head.horizon).unwrap_or_default();
        match sequence.filter(|sequence| *sequence < horizon.sequence) {
            Some(_) => Err(ReadError::Pruned { first: horizon.height }),
            None => Ok(None),
        }
    }

    fn transfer_view(progress: &SnapshotProgress) -> TransferView {
        TransferView {
            node: progress.node,
            bytes: progress.bytes_done,
            of: progress.bytes_total,
            problem: progress.problem.clone(),
        }
    }

    pub(crate) fn oldest_height(&self) -> Height {
        self.tracker.head().borrow().as_ref().map_or(Height(0), |head| head.horizon.height)
    }

    fn head_height(&self) -> Height {
        self.tracker.head().borrow().as_ref().map_or(Height(0), |head| head.height)
    }

    /// Number of the last task that is known to be in an output.
    fn published(&self, output: &RunningOutput) -> Option<TaskNumber> {
        let local = output.handle.status().last_published;
        local.max(self.tracker.progress().get(&output.name).copied())
    }

    fn is_published(&self, number: TaskNumber) -> bool {
        let has = |output: &RunningOutput| self.published(output).is_some_and(|last| last >= number);
        self.fed().next().is_some() && self.fed().all(has)
    }

    fn pending_view(&self, id: MessageId, message: &Message, viewer: Viewer) -> MessageView {
        let shown = self.projects().may_read(message.project_id, viewer.token.as_ref());
        let (signature, evidence) = match &message.evidence {
            Evidence::Device(signature) => (signature, EvidenceView::Device),
            Evidence::Ingress { node, signature } => (signature, EvidenceView::Ingress { node: *node }),
            Evidence::Envelope { node, envelope, signature } => {
                (signature, EvidenceView::Envelope { node: *node, envelope: Digest(*envelope) })
            }
            Evidence::Task(task) => (
                &task.signature,
                EvidenceView::Task { signed_keys: task.signed.iter().map(|(name, _)| name.clone()).collect() },
            ),
        };
        MessageView {
            id,
            status: Progress::Pending,
            sequence: None,
            height: None,
            index: None,
            task_id: None,
            project_id: message.project_id,
            project_version: message.project_version.clone(),
            device: device_view(message.device),
            data: shown.then(|| to_base64(&message.data)),
            signature: shown.then(|| signature.to_string()),
            evidence,
            time_ms: None,
            flags: Vec::new(),
        }
    }

    pub(crate) fn projects(&self) -> Projects {
        self.tracker.projects().borrow().clone()
    }

    pub(crate) fn newest_task(&self) -> Option<TaskNumber> {
        *self.tracker.newest_task().borrow()
    }

    /// What views of tasks are made with, as it is now.
    pub(crate) fn task_views(&self) -> TaskViews {
        let published = self.fed().map(|output| self.published(output));
        TaskViews {
            projects: self.projects(),
            task_states: self.task_states.clone(),
            signer: self.task_key.clone(),
            published: published.min().flatten(),
        }
    }

    /// Why what this node takes, or says, would be of no use now.
    fn unfit(&self) -> Option<String> {
        let raft = self.consensus.status().borrow().clone();
        if let Some(reason) = raft.stopped {
            return Some(format!("consensus has stopped: {reason}"));
        }
        if let Some(reason) = self.consensus.standstill() {
            return Some(reason);
        }
        if raft.leader.is_none() {
            return Some("no leader is known".into());
        }
        if !self.consensus.has_majority() {
            return Some("this node leads, but no majority of voters answers it".into());
        }
        self.cut_off()
    }
}

/// What the state has of a message.
enum Known {
    Nothing,
    /// It has a place, and is not there any more.
    Forgotten,
    /// Its batch, its place, its task, and what its project's rules noted.
    Ordered(Box<(Batch, Sequence, Option<Task>, Vec<String>)>),
}

fn known(state: &StateStore, id: MessageId) -> Result<Known, StateError> {
    let Some(sequence) = state.sequence_of(&id)? else { return Ok(Known::Nothing) };
    let batch = state.batch_of_message(sequence)?.filter(|batch| batch.message_at(sequence).is_some());
    let Some(batch) = batch else { return Ok(Known::Forgotten) };
    let (task, flags) = (state.task_of(&batch, sequence)?, state.flags(sequence)?);
    Ok(Known::Ordered(Box::new((batch, sequence, task, flags))))
}

/// What a task is shown with, beside what is stored.
struct TaskShow {
    views: TaskViews,
    viewer: Viewer,
    /// Outputs that the log knows, and of those that are configured here which projects they take.
    outputs: Vec<(OutputName, Option<BTreeSet<ProjectId>>)>,
}

impl TaskShow {
    fn find(self, state: &StateStore, id: TaskId) -> Result<Option<TaskView>, StateError> {
        let Some(number) = state.task_number(&id)? else { return Ok(None) };
        let Some(batch) = state.batch_of_task(number)? else { return Ok(None) };
        let Some(task) = batch.task_at(number) else { return Ok(None) };
        let mut reader = TaskReader::new(|sequence| state.batch_of_message(sequence));
        let receipts = self.receipts(state, task)?;
        let view = self.views.view(&mut reader, (&batch, task), self.viewer)?;
        Ok(Some(TaskView { receipts, ..view }))
    }

    /// Where outputs have a task, as was reported to the log. Reports speak of runs of numbers; that an output takes some
    /// projects only is known where it is configured.
    fn receipts(&self, state: &StateStore, task: &Task) -> Result<Vec<ReceiptView>, StateError> {
        let mut receipts = Vec::new();
        let takes = |(name, projects): &&(OutputName, Option<BTreeSet<ProjectId>>)| {
            task.is_for(name) && projects.as_ref().is_none_or(|projects| projects.contains(&task.project_id))
        };
        for (output, _) in self.outputs.iter().filter(takes) {
            if let Some(place) = state.place_of(output, task.number)? {
                let commitment = Some(place.commitment).filter(|bytes| !bytes.is_empty());
                receipts.push(ReceiptView {
                    output: output.clone(),
                    locator: place.locator,
                    commitment: commitment.map(|bytes| format!("0x{}", hex::encode(bytes))),
                    height: place.height,
                    stage: place.stage,
                    tasks: (place.first, place.last),
                });
            }
        }
        Ok(receipts)
    }
}

#[async_trait]
impl Read for Reader {
    async fn status(&self) -> StatusView {
        let outputs = self.output_views.get().await;
        let raft = self.consensus.status().borrow().clone();
        let head = self.tracker.head().borrow().clone();
        let connected = self.network.peers();
        let members = self.tracker.members().borrow().clone();
        let http = |node: NodeId| members.get(node).map(|known| known.member.http.clone());
        let peer = |(id, known): (NodeId, &KnownMember)| PeerView {
            id,
            name: known.member.name.clone(),
            connected: connected.iter().any(|peer| peer.node == id && peer.connected),
            http: known.member.http.clone(),
        };
        StatusView {
            network: self.genesis.network.clone(),
            epoch: self.epochs.current(),
            node: NodeView { id: self.node, peer_id: peer_id_of(&self.key), address: self.key.address() },
            role: match raft.role {
                lockstep_consensus::Role::Leader => Role::Leader,
                lockstep_consensus::Role::Follower => Role::Follower,
                lockstep_consensus::Role::Candidate => Role::Candidate,
                lockstep_consensus::Role::Observer => Role::Observer,
            },
            term: raft.term,
            leader: raft.leader.map(|id| LeaderView { id, http: http(id).unwrap_or_default() }),
            head: HeadView {
                height: head.as_ref().map_or(Height(0), |head| head.height),
                hash: head.as_ref().map_or(lockstep_types::BatchHash::ZERO, |head| head.hash),
                sequence: head.as_ref().map_or(Sequence(0), lockstep_ledger::Head::last_sequence),
                final_height: head.as_ref().map_or(Height(0), |head| head.final_height),
                oldest_height: head.as_ref().map_or(Height(0), |head| head.horizon.height),
            },
            chain: self.chain.view(self.leads()),
            w3bstream: self.announcements.as_ref().map(Announcements::view),
            effects: Digest(head.as_ref().map_or([0; 32], |head| head.effects)),
            complaints: self.complaints(),
            rules_version: head.as_ref().map_or(0, |head| head.rules_version),
            fetching: self.consensus.snapshot_progress().borrow().as_ref().map(Self::transfer_view),
            sending: self.consensus.snapshots_sent().iter().map(Self::transfer_view).collect(),
            peers: members.present().filter(|(id, _)| *id != self.node).map(peer).collect(),
            outputs,
            held_back: self.held_back.borrow().as_ref().map(HeldBack::view),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn members(&self) -> MembersView {
        self.operator.view(false)
    }

    async fn batches(&self, from: Height, limit: usize) -> Result<BatchesView, ReadError> {
        let state = self.state.clone();
        let batches = proofs::aside(state.blocking(), move || {
            let batches = state.batches(from, limit, READ_BYTES_MAX).map_err(failed)?;
            Ok(batches.iter().map(batch_view).collect())
        })
        .await?;
        let oldest = self.oldest_height();
        if from < oldest {
            return Err(ReadError::Pruned { first: oldest });
        }
        Ok(BatchesView { batches, head: self.head_height() })
    }

    async fn batch(&self, height: Height) -> Result<Option<BatchView>, ReadError> {
        let oldest = self.oldest_height();
        if height < oldest && height.0 > 0 {
            return Err(ReadError::Pruned { first: oldest });
        }
        Ok(proofs::look(&self.state, move |state| state.batch(height)).await?.as_ref().map(batch_view))
    }

    async fn confirm(&self) -> Result<(), ReadError> {
        let passed = self.barriers.pass().await;
        passed.map_err(|e| ReadError::Unavailable { reason: e.to_string(), retry_after_ms: BARRIER_RETRY_MS })
    }

    async fn message(&self, id: MessageId, viewer: Viewer) -> Result<Option<MessageView>, ReadError> {
        // First the pool, which it leaves only once the state has it.
        let pending = self.mempool.get(&ContentId(id.0));
        match proofs::look(&self.state, move |state| known(state, id)).await? {
            Known::Nothing => Ok(pending.map(|message| self.pending_view(id, message.message(), viewer))),
            // Whatever the horizon is: it was ordered, and must not be taken for absent.
            Known::Forgotten => Err(ReadError::Pruned { first: self.oldest_height() }),
            Known::Ordered(found) => {
                let (batch, sequence, task, flags) = *found;
                let Some(ordered) = batch.message_at(sequence) else { return Ok(None) };
                let status = match &task {
                    None => Progress::Sequenced,
                    Some(task) if self.is_published(task.number) => Progress::Published,
                    Some(_) => Progress::Packed,
                };
                Ok(Some(MessageView {
                    status,
                    sequence: Some(sequence),
                    height: Some(batch.header.height),
                    index: Some(sequence.0 - batch.header.first_sequence.0),
                    task_id: task.map(|task| task.id),
                    time_ms: Some(batch.header.time_ms),
                    flags,
                    ..self.pending_view(id, &ordered.message, viewer)
                }))
            }
        }
    }

    async fn task_of_alias(&self, alias: TaskId) -> Result<Option<TaskId>, ReadError> {
        let find = move |state: &StateStore| {
            let Some(sequence) = state.sequence_of_alias(&alias)? else { return Ok(Err(None)) };
            let Some(batch) = state.batch_of_message(sequence)? else { return Ok(Err(Some(sequence))) };
            Ok(Ok(state.task_of(&batch, sequence)?.map(|task| task.id)))
        };
        match proofs::look(&self.state, find).await? {
            Ok(task) => Ok(task),
            Err(sequence) => self.unless_pruned(sequence),
        }
    }

    async fn task(&self, id: TaskId, viewer: Viewer) -> Result<Option<TaskView>, ReadError> {
        let configured = |name: &OutputName| self.outputs.iter().find(|output| output.name == *name);
        let projects = |name: &OutputName| configured(name).and_then(|output| output.projects.clone());
        let outputs = self.tracker.progress().into_keys().map(|name| (name.clone(), projects(&name))).collect();
        let show = TaskShow { views: self.task_views(), viewer, outputs };
        proofs::look(&self.state, move |state| show.find(state, id)).await
    }

    async fn proof(&self, id: MessageId) -> Result<Option<Proof>, ReadError> {
        let pending = self.mempool.get(&ContentId(id.0)).is_some();
        proofs::proof(self.state.clone(), self.history(), id, pending).await
    }

    async fn boundaries(&self, from: Height, limit: usize) -> Result<BoundariesView, ReadError> {
        proofs::boundaries(self.state.clone(), from, limit).await
    }

    async fn export(&self, from: Height, viewer: Viewer) -> Result<ExportPage, ReadError> {
        let page = PageQuery { from, only_final: false, projects: self.projects(), viewer };
        proofs::export(self.state.clone(), self.history(), page).await
    }

    async fn wait_for_sequence(&self, sequence: Sequence, timeout: Duration) -> bool {
        let mut head = self.tracker.head();
        let there = head.wait_for(|head| head.as_ref().is_some_and(|head| head.last_sequence() >= sequence));
        matches!(tokio::time::timeout(timeout, there).await, Ok(Ok(_)))
    }

    fn ready(&self) -> Result<(), String> {
        if self.ingress.is_stopping() {
            return Err("this node is shutting down".into());
        }
        if let Some(reason) = self.unfit() {
            return Err(reason);
        }
        let stopped = self.certifier.complaint().or_else(|| self.ingress.conflict());
        if let Some(reason) = stopped.or_else(|| self.shut_out()) {
            return Err(reason);
        }
        if let Some(progress) = &*self.consensus.snapshot_progress().borrow() {
            return Err(match &progress.problem {
                Some(problem) => format!("this node cannot fetch the state that it needs: {problem}"),
                None => format!("this node fetches the state: {} % are there", progress.percent()),
            });
        }
        if !self.consensus.is_caught_up() {
            return Err("this node is catching up".into());
        }
        Ok(())
    }

    async fn metrics(&self) -> String {
        let outputs = self.output_views.get().await;
        let raft = self.consensus.status().borrow().clone();
        let head = self.tracker.head().borrow().clone();
        let (height, sequence, final_height) =
            head.map_or((0, 0, 0), |head| (head.height.0, head.last_sequence().0, head.final_height.0));
        let leads = raft.role == lockstep_consensus::Role::Leader;
        metrics::final_height(final_height);
        metrics::snapshot(self.mempool.len(), height, sequence, leads, raft.term);
        if let Some(chain) = self.chain.view(leads) {
            metrics::chain(chain.block.unwrap_or_default(), chain.behind);
        }
        metrics::log(&self.consensus.log_figures());
        metrics::state_transfer(self.consensus.snapshot_progress().borrow().as_ref());
        for view in outputs {
            metrics::output_lag(&view.name, view.lag);
            metrics::output_refused(&view.name, view.refused);
            metrics::output_gaps(&view.name, view.gaps.iter().map(|gap| gap.last.0 + 1 - gap.first.0).sum());
        }
        self.prometheus.render()
    }
}
