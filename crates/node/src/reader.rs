//! Answers the read API from what is stored on this node.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockstep_api::views::{
    BatchMessageView, BatchView, BatchesView, BoundariesView, EvidenceView, GapView, HeadView, LeaderView, MembersView,
    MessageView, NodeView, OutputView, PeerView, Progress, ReceiptView, Role, StatusView, TaskView, TransferView,
    to_base64,
};
use lockstep_api::{Read, ReadError, Viewer};
use lockstep_consensus::{Consensus, ReadError as StateError, SnapshotProgress, StateStore};
use lockstep_ledger::{KnownMember, Projects};
use lockstep_network::{Handle, peer_id_of};
use lockstep_outputs::publisher::State;
use lockstep_types::{
    Address, Batch, ContentId, Digest, Epochs, Evidence, ExportPage, Genesis, Height, Message, MessageId, NodeId,
    OutputName, Proof, PublicKey, Sequence, SigningKey, Task, TaskId, TaskNumber,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;

use crate::announce::Announcements;
use crate::certify::Certifier;
use crate::chain::{Chain, TaskStates};
use crate::clock_guard;
use crate::feed::TaskViews;
use crate::held_back::HeldBack;
use crate::ingress::Ingress;
use crate::limits::READ_BYTES_MAX;
use crate::mempool::Mempool;
use crate::metrics;
use crate::operator::Operator;
use crate::output_desk::STILL_NAMED;
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
    pub certifier: Certifier,
    pub chain: Chain,
    pub task_states: TaskStates,
    pub clock_off: watch::Receiver<Option<i64>>,
    pub held_back: watch::Receiver<Option<HeldBack>>,
    pub outputs: Vec<RunningOutput>,
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
        let clock = self.clock_off.borrow().map(clock_guard::complaint);
        let chain = self.chain.complaint(self.leads());
        let refusals = self.network.refusals().into_iter();
        let refused = refusals.map(|(node, reason)| format!("node {node} refuses this node: {reason}"));
        let held_back = self.held_back.borrow().as_ref().map(HeldBack::complaint);
        let still_named = self.removed().map(|output| format!("output {} was {STILL_NAMED}", output.name));
        let complaints = evidence.into_iter().chain(conflict).chain(clock).chain(chain).chain(refused);
        complaints.chain(held_back).chain(still_named).collect()
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

    fn final_height(&self) -> Height {
        self.tracker.head().borrow().as_ref().map_or(Height(0), |head| head.final_height)
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

    /// The last batch of which an output has every task.
    fn published_height(&self, output: &RunningOutput) -> Height {
        let newest = *self.tracker.newest_task().borrow();
        let published = self.published(output);
        if published >= newest {
            return self.final_height();
        }
        // The batch of the first task that is missing is not whole.
        let missing = published.map_or(self.genesis.params.first_task_number, TaskNumber::next);
        let batch = self.state.batch_of_task(missing).ok().flatten();
        batch.map_or(Height(0), |batch| Height(batch.header.height.0.saturating_sub(1)))
    }

    fn output_view(&self, output: &RunningOutput) -> OutputView {
        if output.switch.is_removed(&self.tracker.output_states().borrow()) {
            let (name, error) = (output.name.to_string(), Some(STILL_NAMED.to_owned()));
            let height = self.final_height();
            return OutputView { name, height, lag: 0, error, gaps: vec![], refused: 0, paused: false, removed: true };
        }
        let height = self.published_height(output);
        OutputView {
            name: output.name.to_string(),
            height,
            lag: self.final_height().0.saturating_sub(height.0),
            error: output.handle.status().last_error,
            gaps: self.gaps(output),
            refused: output.handle.status().refused_count,
            paused: output.handle.status().state == State::Paused,
            removed: false,
        }
    }

    /// Tasks that an output lacks: what its store was found to lack, and where that was not looked at yet, what the log
    /// and this node's publisher say.
    fn gaps(&self, output: &RunningOutput) -> Vec<GapView> {
        let logged = self.state.gaps(&output.name).unwrap_or_default();
        let said = logged.iter().map(|gap| (gap.first, gap.last)).chain(output.handle.status().newest_gap);
        let missing = output.missing.borrow().with(said);
        missing.into_iter().map(|(first, last)| GapView { first, last }).collect()
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

    fn find_message(&self, id: MessageId, viewer: Viewer) -> Result<Option<MessageView>, StateError> {
        let Some(sequence) = self.state.sequence_of(&id)? else {
            let waiting = self.mempool.get(&ContentId(id.0));
            return Ok(waiting.map(|message| self.pending_view(id, message.message(), viewer)));
        };
        let Some(batch) = self.state.batch_of_message(sequence)? else { return Ok(None) };
        let Some(ordered) = batch.message_at(sequence) else { return Ok(None) };
        let task = self.state.task_of(&batch, sequence)?;
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
            flags: self.state.flags(sequence)?,
            ..self.pending_view(id, &ordered.message, viewer)
        }))
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

    fn find_task(&self, id: TaskId, viewer: Viewer) -> Result<Option<TaskView>, StateError> {
        let Some(number) = self.state.task_number(&id)? else { return Ok(None) };
        let Some(batch) = self.state.batch_of_task(number)? else { return Ok(None) };
        let Some(task) = batch.task_at(number) else { return Ok(None) };
        let mut reader = TaskReader::new(|sequence| self.state.batch_of_message(sequence));
        let receipts = self.receipts(task)?;
        let view = self.task_views().view(&mut reader, (&batch, task), viewer)?;
        Ok(Some(TaskView { receipts, ..view }))
    }

    /// Where outputs have a task, as was reported to the log. Reports speak of runs of numbers; that an output takes some
    /// projects only is known where it is configured.
    fn receipts(&self, task: &Task) -> Result<Vec<ReceiptView>, StateError> {
        let mut receipts = Vec::new();
        let takes = |name: &OutputName| {
            let ours = self.outputs.iter().find(|output| output.name == *name);
            let projects = ours.and_then(|output| output.projects.as_ref());
            task.is_for(name) && projects.is_none_or(|projects| projects.contains(&task.project_id))
        };
        for output in self.tracker.progress().into_keys().filter(takes) {
            if let Some(place) = self.state.place_of(&output, task.number)? {
                let commitment = Some(place.commitment).filter(|bytes| !bytes.is_empty());
                receipts.push(ReceiptView {
                    output,
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
    fn status(&self) -> StatusView {
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
            outputs: self.outputs.iter().map(|output| self.output_view(output)).collect(),
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
        Ok(self.state.batch(height).map_err(failed)?.as_ref().map(batch_view))
    }

    async fn message(&self, id: MessageId, viewer: Viewer) -> Result<Option<MessageView>, ReadError> {
        match self.find_message(id, viewer).map_err(failed)? {
            Some(found) => Ok(Some(found)),
            None => self.unless_pruned(self.state.sequence_of(&id).map_err(failed)?),
        }
    }

    async fn task_of_alias(&self, alias: TaskId) -> Result<Option<TaskId>, ReadError> {
        let failed = |e: lockstep_consensus::ReadError| ReadError::Failed(e.to_string());
        let Some(sequence) = self.state.sequence_of_alias(&alias).map_err(failed)? else { return Ok(None) };
        let Some(batch) = self.state.batch_of_message(sequence).map_err(failed)? else {
            return self.unless_pruned(Some(sequence));
        };
        Ok(self.state.task_of(&batch, sequence).map_err(failed)?.map(|task| task.id))
    }

    async fn task(&self, id: TaskId, viewer: Viewer) -> Result<Option<TaskView>, ReadError> {
        self.find_task(id, viewer).map_err(failed)
    }

    async fn proof(&self, id: MessageId) -> Result<Option<Proof>, ReadError> {
        let pending = self.mempool.get(&ContentId(id.0)).is_some();
        proofs::proof(self.state.clone(), self.history(), id, pending).await
    }

    async fn boundaries(&self, from: Height, limit: usize) -> Result<BoundariesView, ReadError> {
        proofs::boundaries(&self.state, from, limit)
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
        let raft = self.consensus.status().borrow().clone();
        if let Some(reason) = raft.stopped {
            return Err(format!("consensus has stopped: {reason}"));
        }
        if raft.leader.is_none() {
            return Err("no leader is known".into());
        }
        if !self.consensus.has_majority() {
            return Err("this node leads, but no majority of voters answers it".into());
        }
        if let Some(reason) = self.cut_off() {
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

    fn metrics(&self) -> String {
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
        for output in &self.outputs {
            let view = self.output_view(output);
            metrics::output_lag(&view.name, view.lag);
            metrics::output_refused(&view.name, view.refused);
            metrics::output_gaps(&view.name, view.gaps.iter().map(|gap| gap.last.0 + 1 - gap.first.0).sum());
        }
        self.prometheus.render()
    }
}
