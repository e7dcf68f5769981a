//! `apply`: what a log entry does. Total and deterministic: its results depend on the entry, the state before it and
//! the parameters in the log, on nothing else.

use std::collections::BTreeMap;

use lockstep_types::message::PROJECT_VERSION_BYTES_MAX;
use lockstep_types::{
    Api, Approval, Batch, BatchHash, BatchHeader, Certificate, ContentId, Epoch, Hash32, Height, MemberSet, Message,
    MessageId, NetworkId, NetworkParams, NodeId, OrderedMessage, OutputName, Sequence, Task, TaskId, TaskNumber,
    TimeMs,
};

use crate::command::{Command, GroupClosing, ProposedBatch};
use crate::effects::{Effects, Gap, Head, Horizon, Occurrence, Write};
use crate::groups::{GroupChange, GroupKey, Groups, OpenGroup};
use crate::members::{ApprovalError, Approved, Members, Target};

/// Rules of `apply` that every network begins with. A change that alters any result gets a new number, and holds from
/// a log entry on that the leader proposes once every voter knows it ([`Command::Rules`]):
///
/// 1. The first.
/// 2. Progress of outputs is left out of the effects digest: it says nothing about the order.
pub const RULES_FIRST: u32 = 1;
/// The newest rules that this program knows.
pub const RULES_NEWEST: u32 = 2;
/// From these rules on progress of outputs is left out of the effects digest.
const RULES_WITHOUT_PROGRESS: u32 = 2;

/// What `apply` reads of earlier state.
pub trait History {
    /// Why a read failed: the disk, never the data.
    type Error;

    /// The header of the batch at a height that is not below the horizon; `None` above the head.
    fn header(&self, height: Height) -> Result<Option<BatchHeader>, Self::Error>;

    /// The newest occurrence of each id, in order; `None` where the content was never ordered. The answer reflects
    /// all writes of earlier entries.
    fn occurrences(&self, ids: &[ContentId]) -> Result<Vec<Option<Occurrence>>, Self::Error>;
}

/// Why a committed message was not ordered. The same on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Its project is not registered.
    #[error("the project is not registered in this network")]
    UnknownProject,
    /// It has no signature, and the network wants one.
    #[error("this network takes signed messages only")]
    Unsigned,
    /// Its payload is larger than the network allows.
    #[error("the data is larger than this network allows")]
    TooLarge,
    /// Its data is empty, or its version too long.
    #[error("the message is malformed")]
    Malformed,
}

/// What became of one proposed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has a place of its own.
    Ordered {
        /// Its id.
        message_id: MessageId,
        /// Its place.
        sequence: Sequence,
        /// Its batch.
        height: Height,
        /// Its task, where it was packed at once.
        task_id: Option<TaskId>,
        /// The node that took it in.
        via: NodeId,
    },
    /// It is a retry; this is the place it already had.
    Duplicate {
        /// Id of the message that it repeats.
        message_id: MessageId,
        /// That message's place.
        sequence: Sequence,
        /// That message's batch.
        height: Height,
    },
    /// It changed nothing.
    Rejected(Rejection),
}

/// Everything that follows from one entry.
#[derive(Debug, Default)]
pub struct Applied {
    /// For each proposed message, in order.
    pub outcomes: Vec<(ContentId, Outcome)>,
    /// What to store, in one write.
    pub writes: Vec<Write>,
    /// Groups that began or ended.
    pub groups: Vec<GroupChange>,
    /// A majority of voters certified another batch than this node has: this node's state is wrong.
    pub diverged: Option<Divergence>,
    /// Why an approval did not count.
    pub refused: Option<ApprovalError>,
}

/// A certificate that contradicts this node's own chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this node has batch {own} at height {}, but a majority of voters certified {}: its state is damaged", .certificate.height, .certificate.hash)]
pub struct Divergence {
    /// Hash of this node's batch.
    pub own: BatchHash,
    /// The certificate of the others.
    pub certificate: Certificate,
}

impl Applied {
    /// The batch that the entry made, if it made one.
    pub fn batch(&self) -> Option<&Batch> {
        self.writes.iter().find_map(|write| match write {
            Write::Batch(batch) => Some(&**batch),
            _ => None,
        })
    }
}

/// A read of earlier state failed. The ledger is unchanged.
#[derive(Debug, thiserror::Error)]
#[error("state could not be read: {0}")]
pub struct ApplyError<E>(pub E);

/// What a [`Ledger`] is made of: constants of the network, and the state as it was stored.
#[derive(Debug, Clone)]
pub struct LedgerParts {
    /// The network.
    pub network: NetworkId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its parameters.
    pub params: NetworkParams,
    /// Stored members; those of the genesis where nothing is stored.
    pub members: Members,
    /// Stored head; `None` at genesis.
    pub head: Option<Head>,
    /// Stored open groups.
    pub groups: Vec<(GroupKey, OpenGroup)>,
    /// Stored progress of outputs.
    pub progress: BTreeMap<OutputName, TaskNumber>,
}

/// The state machine.
#[derive(Debug)]
pub struct Ledger {
    network: NetworkId,
    epoch: Epoch,
    params: NetworkParams,
    members: Members,
    head: Head,
    groups: Groups,
    progress: BTreeMap<OutputName, TaskNumber>,
}

impl Ledger {
    /// A ledger in its stored state.
    pub fn new(parts: LedgerParts) -> Self {
        let mut groups = Groups::default();
        for (key, group) in parts.groups {
            groups.insert(key, group);
        }
        Self {
            head: parts.head.unwrap_or_else(|| Head::genesis(parts.params.first_task_number)),
            network: parts.network,
            epoch: parts.epoch,
            params: parts.params,
            members: parts.members,
            groups,
            progress: parts.progress,
        }
    }

    /// The newest position.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The network's parameters.
    pub fn params(&self) -> &NetworkParams {
        &self.params
    }

    /// Open groups with the sequence they began with.
    pub fn open_groups(&self) -> impl Iterator<Item = (&GroupKey, Sequence)> {
        self.groups.iter().map(|(key, group)| (key, group.first_sequence()))
    }

    /// How far each output is known to be.
    pub fn progress(&self) -> &BTreeMap<OutputName, TaskNumber> {
        &self.progress
    }

    /// Who belongs to the network.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The network.
    pub fn network(&self) -> &NetworkId {
        &self.network
    }

    /// Its epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether an approval would count, by the state now and the clock `now`.
    pub fn check_approval(&self, approval: &Approval, now: TimeMs) -> Result<(), ApprovalError> {
        self.members.check(approval, &self.network, self.epoch, now.max(self.head.time_ms))
    }

    /// Applies one committed command.
    ///
    /// # Errors
    /// Only if `view` cannot be read; then nothing has changed, and the node must stop.
    pub fn apply<V: History>(&mut self, view: &V, command: Command) -> Result<Applied, ApplyError<V::Error>> {
        match command {
            Command::Batch(batch) => self.apply_batch(view, batch),
            Command::Certificate(certificate) => self.apply_certificate(view, certificate),
            Command::Approval { time_ms, approval } => Ok(self.apply_approval(time_ms, *approval)),
            Command::Horizon(oldest) => self.apply_horizon(view, oldest),
            Command::Rules(version) => Ok(self.apply_rules(version)),
            Command::OutputProgress { output, task_number } => Ok(self.apply_progress(output, task_number)),
        }
    }

    fn apply_progress(&mut self, output: OutputName, task_number: TaskNumber) -> Applied {
        let known = self.progress.get(&output).copied().unwrap_or_default();
        // A late report of a deposed leader, or one about tasks that do not exist, changes nothing.
        if task_number <= known || task_number >= self.head.next_task_number {
            return Applied::default();
        }
        let mut effects = Effects::default();
        effects.progress(&output, task_number);
        self.progress.insert(output, task_number);
        if self.head.rules_version >= RULES_WITHOUT_PROGRESS {
            return Applied { writes: effects.writes, ..Applied::default() };
        }
        self.roll(effects)
    }

    /// The effects of an entry that makes no batch.
    fn roll(&mut self, mut effects: Effects) -> Applied {
        self.head.effects = effects.roll(&self.head.effects);
        effects.writes.push(Write::Head(self.head.clone()));
        Applied { writes: effects.writes, ..Applied::default() }
    }

    fn apply_rules(&mut self, version: u32) -> Applied {
        if version <= self.head.rules_version {
            return Applied::default();
        }
        // A node that does not know them is stopped by its state machine before it comes here.
        self.head.rules_version = version;
        let mut effects = Effects::default();
        effects.rules(version);
        self.roll(effects)
    }

    fn apply_certificate<V: History>(
        &mut self,
        view: &V,
        certificate: Certificate,
    ) -> Result<Applied, ApplyError<V::Error>> {
        let height = certificate.height;
        // Late, ahead of this log, or past a change of the set that the set before has not certified yet.
        let skips = self.members.boundary().is_some_and(|boundary| height > boundary);
        if height <= self.head.final_height || height > self.head.height || skips {
            return Ok(Applied::default());
        }
        if certificate.verify(self.members.set_at(height)).is_err() {
            return Ok(Applied::default());
        }
        let Some(header) = view.header(height).map_err(ApplyError)? else { return Ok(Applied::default()) };
        let own = header.hash();
        if own != certificate.hash {
            return Ok(Applied { diverged: Some(Divergence { own, certificate }), ..Applied::default() });
        }
        self.head.final_height = height;
        let mut writes = vec![Write::Certificate { certificate, boundary: header.is_boundary() }];
        if self.members.certified(height) {
            writes.push(Write::Members(Box::new(self.members.clone())));
        }
        // Not among the effects: whose signatures were the first is no matter of the order.
        writes.push(Write::Head(self.head.clone()));
        Ok(Applied { writes, ..Applied::default() })
    }

    fn apply_approval(&mut self, time_ms: TimeMs, approval: Approval) -> Applied {
        let now = time_ms.max(self.head.time_ms);
        if let Err(reason) = self.members.check(&approval, &self.network, self.epoch, now) {
            return Applied { refused: Some(reason), ..Applied::default() };
        }
        let (before, height) = (self.members.hash(), self.head.height.next());
        match self.members.count(approval, &self.network, now, height) {
            Approved::Waiting => {
                let mut effects = Effects::default();
                effects.members(&self.members);
                self.roll(effects)
            }
            Approved::Made => {
                let mut building = Building::new(self, now, 0);
                building.members_before = before;
                building.effects.members(&building.ledger.members);
                building.next_set = Some(building.ledger.members.set().clone());
                building.finish()
            }
        }
    }

    /// Raft has a uniform configuration. It comes from the log like a command.
    pub fn apply_raft_members(&mut self, raft: &Target) -> Applied {
        if !self.members.raft_is(raft) {
            return Applied::default();
        }
        let mut effects = Effects::default();
        effects.members(&self.members);
        self.roll(effects)
    }

    fn apply_horizon<V: History>(&mut self, view: &V, oldest: Height) -> Result<Applied, ApplyError<V::Error>> {
        // What is not final may still be needed to find out who is wrong.
        if oldest <= self.head.horizon.height || oldest > self.head.final_height {
            return Ok(Applied::default());
        }
        let Some(header) = view.header(oldest).map_err(ApplyError)? else { return Ok(Applied::default()) };
        let open = self.groups.iter().map(|(_, group)| group.first_sequence()).min();
        if open.is_some_and(|open| open < header.first_sequence) {
            return Ok(Applied::default());
        }
        let (sequence, task_number) = (header.first_sequence, header.first_task_number);
        self.head.horizon = Horizon { height: oldest, sequence, task_number };
        let mut effects = Effects::default();
        effects.horizon(self.head.horizon);
        let last_forgotten = TaskNumber(task_number.0 - 1);
        for (output, last) in self.progress.iter_mut().filter(|(_, last)| **last < last_forgotten) {
            effects.gap(output, Gap { first: last.next(), last: last_forgotten });
            effects.progress(output, last_forgotten);
            *last = last_forgotten;
        }
        Ok(self.roll(effects))
    }

    fn apply_batch<V: History>(&mut self, view: &V, proposal: ProposedBatch) -> Result<Applied, ApplyError<V::Error>> {
        let ids: Vec<ContentId> = proposal.messages.iter().map(Message::content_id).collect();
        // The only fallible step comes first: from here on the ledger changes.
        let earlier = view.occurrences(&ids).map_err(ApplyError)?;
        let mut building = Building::new(self, proposal.time_ms, ids.len());
        for closing in proposal.closings {
            building.close_aged(closing);
        }
        for ((message, id), before) in proposal.messages.into_iter().zip(ids).zip(earlier) {
            building.take(message, id, before);
        }
        Ok(building.finish())
    }
}

/// A batch in the making.
struct Building<'a> {
    ledger: &'a mut Ledger,
    height: Height,
    time_ms: TimeMs,
    first_sequence: Sequence,
    first_task_number: TaskNumber,
    effects: Effects,
    messages: Vec<OrderedMessage>,
    tasks: Vec<Task>,
    outcomes: Vec<(ContentId, Outcome)>,
    /// Contents ordered by this very batch, which `view` does not know yet.
    fresh: BTreeMap<ContentId, Occurrence>,
    groups: Vec<GroupChange>,
    /// Groups whose stored form is out of date.
    touched: BTreeMap<GroupKey, ()>,
    /// Hash of the members who certify this batch.
    members_before: Hash32,
    /// The members from the next batch on, where they change.
    next_set: Option<MemberSet>,
}

impl<'a> Building<'a> {
    fn new(ledger: &'a mut Ledger, proposed_time: TimeMs, capacity: usize) -> Self {
        let head = &ledger.head;
        Self {
            height: head.height.next(),
            time_ms: proposed_time.max(head.time_ms),
            first_sequence: head.next_sequence,
            first_task_number: head.next_task_number,
            effects: Effects::with_capacity(capacity),
            messages: Vec::with_capacity(capacity),
            tasks: Vec::with_capacity(capacity),
            outcomes: Vec::with_capacity(capacity),
            fresh: BTreeMap::new(),
            groups: Vec::new(),
            touched: BTreeMap::new(),
            members_before: ledger.members.hash(),
            next_set: None,
            ledger,
        }
    }

    fn check(&self, message: &Message) -> Result<u64, Rejection> {
        let params = &self.ledger.params;
        let project = params.project(message.project_id).ok_or(Rejection::UnknownProject)?;
        if message.api == Api::Unsigned && !params.allow_unsigned {
            return Err(Rejection::Unsigned);
        }
        if message.data.len() as u64 > params.message_bytes_max {
            return Err(Rejection::TooLarge);
        }
        if message.data.is_empty() || message.project_version.len() > PROJECT_VERSION_BYTES_MAX {
            return Err(Rejection::Malformed);
        }
        Ok(project.retry_window_ms)
    }

    fn take(&mut self, message: Message, id: ContentId, before: Option<Occurrence>) {
        let window_ms = match self.check(&message) {
            Ok(window_ms) => window_ms,
            Err(rejection) => return self.outcomes.push((id, Outcome::Rejected(rejection))),
        };
        let kept = self.ledger.head.horizon.height;
        let before = self.fresh.get(&id).copied().or(before).filter(|before| before.height >= kept);
        if let Some(first) = before.filter(|first| self.time_ms.0.saturating_sub(first.time_ms.0) < window_ms) {
            let outcome = Outcome::Duplicate {
                message_id: first.message_id(&id),
                sequence: first.sequence,
                height: first.height,
            };
            return self.outcomes.push((id, outcome));
        }
        self.order(message, id, before);
    }

    fn order(&mut self, message: Message, id: ContentId, before: Option<Occurrence>) {
        let sequence = self.ledger.head.next_sequence;
        self.ledger.head.next_sequence = sequence.next();
        let (count, since) = match before {
            Some(before) => (before.count + 1, before.since),
            None => (1, self.ledger.head.horizon.height),
        };
        let occurrence = Occurrence { count, since, sequence, height: self.height, time_ms: self.time_ms };
        let message_id = occurrence.message_id(&id);
        // The occurrence record names the newest place only, and it alone is found by the content id. Every other id
        // gets an entry of its own.
        if let Some(first) = before.filter(|before| before.message_id(&id).0 == id.0) {
            self.effects.message_place(first.message_id(&id), first.sequence);
        }
        if message_id.0 != id.0 {
            self.effects.message_place(message_id, sequence);
        }
        self.effects.occurrence(id, occurrence);
        self.fresh.insert(id, occurrence);
        let (task_id, via) = (self.pack(&message, sequence, message_id), message.via);
        self.messages.push(OrderedMessage { id: message_id, message });
        self.outcomes.push((id, Outcome::Ordered { message_id, sequence, height: self.height, task_id, via }));
    }

    /// Adds a message to its group; returns the task if that closed the group.
    fn pack(&mut self, message: &Message, sequence: Sequence, id: MessageId) -> Option<TaskId> {
        let key = GroupKey::of(message);
        let settings = self.ledger.params.project(message.project_id)?.clone();
        let bytes = message.data.len() as u64;
        let alone = OpenGroup { messages: vec![(sequence, id)], bytes };
        if self.ledger.groups.get(&key).is_none() && alone.is_full(&settings) {
            return Some(self.close(key, alone));
        }
        if self.ledger.groups.add(&key, sequence, id, bytes) {
            self.groups.push(GroupChange::Opened(key.clone(), sequence));
        }
        self.touched.insert(key.clone(), ());
        if self.ledger.groups.get(&key).is_some_and(|group| group.is_full(&settings)) {
            let group = self.ledger.groups.take(&key)?;
            self.groups.push(GroupChange::Closed(key.clone()));
            return Some(self.close(key, group));
        }
        if self.ledger.groups.len() as u64 > self.ledger.params.open_groups_max {
            let oldest = self.ledger.groups.oldest().cloned();
            if let Some((key, group)) = oldest.and_then(|key| Some((key.clone(), self.ledger.groups.take(&key)?))) {
                self.groups.push(GroupChange::Closed(key.clone()));
                self.touched.insert(key.clone(), ());
                self.close(key, group);
            }
        }
        None
    }

    fn close_aged(&mut self, closing: GroupClosing) {
        let same = |group: &OpenGroup| group.first_sequence() == closing.first_sequence;
        if !self.ledger.groups.get(&closing.key).is_some_and(same) {
            return;
        }
        if let Some(group) = self.ledger.groups.take(&closing.key) {
            self.groups.push(GroupChange::Closed(closing.key.clone()));
            self.touched.insert(closing.key.clone(), ());
            self.close(closing.key, group);
        }
    }

    fn close(&mut self, key: GroupKey, group: OpenGroup) -> TaskId {
        let number = self.ledger.head.next_task_number;
        self.ledger.head.next_task_number = number.next();
        let ids = group.messages.iter().map(|(_, id)| id);
        let id = Task::id_of(&self.ledger.network, key.project_id, group.first_sequence(), ids);
        self.effects.task_place(id, number);
        for (sequence, _) in &group.messages {
            if *sequence < self.first_sequence {
                self.effects.packed(*sequence, number);
            }
        }
        self.tasks.push(Task {
            number,
            id,
            project_id: key.project_id,
            project_version: key.project_version,
            device: key.device,
            sequences: group.messages.into_iter().map(|(sequence, _)| sequence).collect(),
        });
        id
    }

    fn finish(mut self) -> Applied {
        let Self { ledger, .. } = self;
        if self.messages.is_empty() && self.tasks.is_empty() && self.next_set.is_none() {
            return Applied { outcomes: self.outcomes, ..Applied::default() };
        }
        for key in self.touched.keys() {
            self.effects.group(key, ledger.groups.get(key));
        }
        let effects = self.effects.roll(&ledger.head.effects);
        let header = BatchHeader {
            rules_version: ledger.head.rules_version,
            network: ledger.network,
            epoch: ledger.epoch,
            height: self.height,
            parent: ledger.head.hash,
            time_ms: self.time_ms,
            first_sequence: self.first_sequence,
            message_count: self.messages.len() as u64,
            messages_root: Batch::messages_root(self.first_sequence, &self.messages),
            first_task_number: self.first_task_number,
            task_count: self.tasks.len() as u64,
            tasks_root: Batch::tasks_root(&self.tasks),
            members: self.members_before,
            next_members: ledger.members.hash(),
            effects,
        };
        let hash: BatchHash = header.hash();
        let batch = Batch { header, messages: self.messages, tasks: self.tasks, next_set: self.next_set };
        ledger.head = Head { height: self.height, hash, time_ms: self.time_ms, effects, ..ledger.head.clone() };
        let mut writes = self.effects.writes;
        writes.push(Write::Batch(Box::new(batch)));
        writes.push(Write::Head(ledger.head.clone()));
        Applied { outcomes: self.outcomes, writes, groups: self.groups, ..Applied::default() }
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
