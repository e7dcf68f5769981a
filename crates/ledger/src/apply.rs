//! `apply`: what a log entry does. Total and deterministic: its results depend on the entry, the state before it and
//! the parameters in the log, on nothing else.

mod building;
mod judges;
mod packing;
mod permissions;
mod registry;

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_rules::{Refusal, Rules};
use lockstep_types::{
    Address, Approval, Batch, BatchHash, BatchHeader, Certificate, ContentId, Epoch, Hash32, Height, Message,
    MessageId, NetworkId, NetworkParams, NodeId, OutputName, Place, ProjectId, Sequence, TaskId, TaskNumber, TimeMs,
};

use self::building::Building;
use self::judges::Judges;
pub use self::judges::rules_input;
use self::permissions::Permissions;
pub use self::registry::{ChainRefusal, ORDER_LIFE_MS_MAX, OrderError};
use crate::command::{Command, ProposedBatch};
use crate::devices::{ChainCursor, Device, HighestNonce, Nonce, Standing};
use crate::effects::{Effects, Gap, Head, Horizon, Occurrence, Write};
use crate::groups::{GroupKey, Groups, OpenGroup};
use crate::members::{ApprovalError, Approved, Members, Target};
use crate::outputs::{OutputState, OutputStates};
use crate::projects::{Project, Projects};
use crate::rules::{LastTaken, RulesState};

/// Rules of `apply` that every network begins with. After a release a change that alters any result gets a new number, and
/// holds from a log entry on that the leader proposes once every voter knows it ([`Command::Rules`]). Until then the rules
/// may change as they are, and [`lockstep_types::genesis::FORMAT`] counts the changes.
pub const RULES_FIRST: u32 = 1;
/// The newest rules that this program has. Which ones a node knows is a value ([`LedgerParts::rules_known`]), so that an
/// upgrade to the next ones can be rehearsed before there are any.
pub const RULES_NEWEST: u32 = RULES_FIRST;

/// What `apply` reads of earlier state.
pub trait History {
    /// Why a read failed: the disk, never the data.
    type Error;

    /// The header of the batch at a height that is not below the horizon; `None` above the head.
    fn header(&self, height: Height) -> Result<Option<BatchHeader>, Self::Error>;

    /// The newest occurrence of each id, in order; `None` where the content was never ordered. The answer reflects
    /// all writes of earlier entries.
    fn occurrences(&self, ids: &[ContentId]) -> Result<Vec<Option<Occurrence>>, Self::Error>;

    /// What decides whether each device may submit to the project beside it, in order.
    fn standings(&self, of: &[(ProjectId, Address)]) -> Result<Vec<Standing>, Self::Error>;

    /// One device; `None` where nothing is known of it.
    fn device(&self, device: &Address) -> Result<Option<Device>, Self::Error>;

    /// The message that used each nonce, in order; `None` where none did.
    fn nonces(&self, of: &[Nonce]) -> Result<Vec<Option<Sequence>>, Self::Error>;

    /// The highest nonce of each device in the project beside it, in order.
    fn highest_nonces(&self, of: &[(ProjectId, Address)]) -> Result<Vec<Option<HighestNonce>>, Self::Error>;

    /// The last message of each device that the project beside it took by its rules, in order.
    fn lasts(&self, of: &[(ProjectId, Address)]) -> Result<Vec<Option<LastTaken>>, Self::Error>;

    /// The last place in an output that begins at a task or before it.
    fn place_at(&self, output: &OutputName, task: TaskNumber) -> Result<Option<Place>, Self::Error>;
}

/// Why a committed message was not ordered. The same on every node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
    /// Its device may not submit to its project.
    #[error("the device may not submit to this project")]
    Device,
    /// Its nonce was used, or is not above the highest that was.
    #[error("the device has used this nonce before, or a higher one; an encrypted message is encrypted anew each time")]
    Nonce,
    /// Other values are signed than the project wants.
    #[error("the project wants other values of the payload signed")]
    SignedKeys,
    /// The project's rules do not take it.
    #[error("{0}")]
    Rules(Box<Refusal>),
    /// The project's rules have taken all the fuel that they may take for now.
    #[error("the rules of this project have taken all the fuel that they may take at the moment; try again later")]
    Fuel,
}

/// What became of one proposed message.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// This node's state is wrong. Nothing follows from the entry, and the node must stop.
    pub diverged: Option<Divergence>,
    /// Why an approval did not count.
    pub refused: Option<ApprovalError>,
    /// What became of an order: its project, its number, and why it was not carried out.
    pub order: Option<(ProjectId, u64, Result<(), OrderError>)>,
    /// Why an update from a chain did not count.
    pub chain_refused: Option<ChainRefusal>,
}

/// An entry shows that this node's state is not the one that every healthy node has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Divergence {
    /// A majority of voters certified another batch than this node has.
    #[error("this node has batch {own} at height {}, but a majority of voters certified {}: its state is damaged", .certificate.height, .certificate.hash)]
    Certified {
        /// Hash of this node's batch.
        own: BatchHash,
        /// The certificate of the others.
        certificate: Certificate,
    },
    /// A batch that is not forgotten is not there.
    #[error("this node has no batch at height {0}, which every node keeps: its state is damaged")]
    Missing(Height),
}

impl Applied {
    fn missing(height: Height) -> Self {
        Self { diverged: Some(Divergence::Missing(height)), ..Self::default() }
    }

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
    /// Stored states of outputs.
    pub outputs: OutputStates,
    /// Stored projects.
    pub projects: BTreeMap<ProjectId, Project>,
    /// Rules of the stored bundles, by their hashes: [`crate::compile_rules`].
    pub rules: BTreeMap<Hash32, Arc<Rules>>,
    /// Stored state of projects with rules.
    pub rules_states: BTreeMap<ProjectId, RulesState>,
    /// How far the chain was read.
    pub chain: Option<ChainCursor>,
    /// The newest rules of `apply` that this node knows: [`RULES_NEWEST`], or more where an upgrade is rehearsed.
    pub rules_known: u32,
}

/// The state machine.
#[derive(Debug)]
pub struct Ledger {
    network: NetworkId,
    epoch: Epoch,
    projects: Projects,
    members: Members,
    head: Head,
    groups: Groups,
    progress: BTreeMap<OutputName, TaskNumber>,
    outputs: OutputStates,
    chain: Option<ChainCursor>,
    rules: BTreeMap<ProjectId, RulesState>,
    rules_known: u32,
}

impl Ledger {
    /// A ledger in its stored state.
    pub fn new(parts: LedgerParts) -> Self {
        let mut groups = Groups::default();
        for (key, group) in parts.groups {
            groups.insert(key, group);
        }
        let mut projects = Projects::new(&parts.params, parts.projects);
        for (hash, compiled) in parts.rules {
            projects.keep_rules(hash, compiled);
        }
        Self {
            head: parts.head.unwrap_or_else(|| Head::genesis(parts.params.first_task_number)),
            network: parts.network,
            epoch: parts.epoch,
            projects,
            rules: parts.rules_states,
            members: parts.members,
            groups,
            progress: parts.progress,
            outputs: parts.outputs,
            chain: parts.chain,
            rules_known: parts.rules_known,
        }
    }

    /// The newest rules of `apply` that this node knows. It must stop before an entry that makes others hold.
    pub fn rules_known(&self) -> u32 {
        self.rules_known
    }

    /// The newest position.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The network's parameters.
    pub fn params(&self) -> &NetworkParams {
        self.projects.params()
    }

    /// The projects, with the settings that hold now.
    pub fn projects(&self) -> &Projects {
        &self.projects
    }

    /// Open groups.
    pub fn open_groups(&self) -> impl Iterator<Item = (&GroupKey, &OpenGroup)> {
        self.groups.iter()
    }

    /// When the next open group becomes a task, in batch time.
    pub fn next_due(&self) -> Option<TimeMs> {
        self.groups.next_due()
    }

    /// The oldest message that is in no task yet.
    pub fn oldest_open_message(&self) -> Option<Sequence> {
        self.groups.oldest().map(|(first, _)| first)
    }

    /// What the rules of projects took and refused.
    pub fn rules_states(&self) -> &BTreeMap<ProjectId, RulesState> {
        &self.rules
    }

    /// How far each output is known to be.
    pub fn progress(&self) -> &BTreeMap<OutputName, TaskNumber> {
        &self.progress
    }

    /// What the network wants of its outputs.
    pub fn outputs(&self) -> &OutputStates {
        &self.outputs
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
            Command::Horizon(horizon) => self.apply_horizon(view, horizon),
            Command::Rules(version) => Ok(self.apply_rules(version)),
            Command::Order { time_ms, order } => self.apply_order(view, time_ms, *order),
            Command::Chain { time_ms, update, signatures } => self.apply_chain(view, time_ms, *update, &signatures),
            Command::OutputProgress { output, task_number, places } => {
                self.apply_progress(view, output, task_number, places)
            }
            Command::Output { output, state } => Ok(self.apply_output(output, state)),
        }
    }

    fn apply_progress<V: History>(
        &mut self,
        view: &V,
        output: OutputName,
        task_number: TaskNumber,
        places: Vec<Place>,
    ) -> Result<Applied, ApplyError<V::Error>> {
        // Whoever reports on it has not heard yet that it is gone, and does not add it anew.
        if self.outputs.is_removed(&output) {
            return Ok(Applied::default());
        }
        // Where tasks are is true whoever reports it, and whenever.
        let mut writes = self.place_writes(view, &output, places)?;
        let known = self.progress.get(&output).copied().unwrap_or_default();
        // A late report of a deposed leader, or one about tasks that do not exist, changes nothing.
        if task_number <= known || task_number >= self.head.next_task_number {
            return Ok(Applied { writes, ..Applied::default() });
        }
        // Not among the effects: it says nothing about the order.
        writes.push(Write::Progress(output.clone(), task_number));
        self.progress.insert(output, task_number);
        Ok(Applied { writes, ..Applied::default() })
    }

    /// Not among the effects: it says nothing about the order.
    fn apply_output(&mut self, output: OutputName, state: OutputState) -> Applied {
        if !self.outputs.set(&output, state) {
            return Applied::default();
        }
        if state == OutputState::Removed {
            self.progress.remove(&output);
        }
        Applied { writes: vec![Write::Output(output, state)], ..Applied::default() }
    }

    /// What is to be stored of reported places. Not among the effects: it says nothing about the order.
    fn place_writes<V: History>(
        &self,
        view: &V,
        output: &OutputName,
        places: Vec<Place>,
    ) -> Result<Vec<Write>, ApplyError<V::Error>> {
        let exists = |place: &Place| {
            place.first >= self.projects.params().first_task_number
                && place.last < self.head.next_task_number
                && place.last >= self.head.horizon.task_number
        };
        let mut kept: Vec<Place> = Vec::new();
        for place in places.into_iter().filter(exists) {
            // A table is one place, however often it is reported.
            let before = match kept.pop() {
                None => view.place_at(output, place.first).map_err(ApplyError)?,
                Some(before) if before.joined(&place).is_some() => Some(before),
                Some(before) => {
                    kept.push(before);
                    None
                }
            };
            kept.push(before.and_then(|before| before.joined(&place)).unwrap_or(place));
        }
        Ok(kept.into_iter().map(|place| Write::Place(output.clone(), place)).collect())
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
        let Some(header) = view.header(height).map_err(ApplyError)? else { return Ok(Applied::missing(height)) };
        let own = if height == self.head.height { self.head.hash } else { header.hash() };
        if own != certificate.hash {
            return Ok(Applied { diverged: Some(Divergence::Certified { own, certificate }), ..Applied::default() });
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
        if let Err(reason) = self.check_approval(&approval, now) {
            return Applied { refused: Some(reason), ..Applied::default() };
        }
        let (before, height) = (self.members.hash(), self.head.height.next());
        match self.members.count(approval, &self.network, now, height) {
            Approved::Waiting => {
                let mut effects = Effects::default();
                effects.members(&self.members);
                self.roll(effects)
            }
            Approved::Project(project, owner) => {
                let mut effects = Effects::default();
                effects.members(&self.members);
                self.grant_project(project, owner, &mut effects);
                self.roll(effects)
            }
            Approved::Made => {
                let mut building = Building::new(self, now, 0, Permissions::default(), Judges::default());
                building.change_members(before);
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

    /// Whether a horizon may follow the present one, by what is known without reading.
    fn may_forget(&self, horizon: &Horizon) -> bool {
        let (head, kept) = (&self.head, &self.head.horizon);
        // What is not final may still be needed to find out who is wrong.
        let follows = horizon.height > kept.height && horizon.height <= head.final_height;
        let is_between = (kept.sequence..=head.next_sequence).contains(&horizon.sequence)
            && (kept.task_number..=head.next_task_number).contains(&horizon.task_number);
        follows && is_between && self.oldest_open_message().is_none_or(|open| open >= horizon.sequence)
    }

    /// The batch at a horizon is above the one before it, so every node has it, also one that was taken back to an
    /// earlier state: that is what makes it safe to compare with it.
    fn apply_horizon<V: History>(&mut self, view: &V, horizon: Horizon) -> Result<Applied, ApplyError<V::Error>> {
        if !self.may_forget(&horizon) {
            return Ok(Applied::default());
        }
        let Some(header) = view.header(horizon.height).map_err(ApplyError)? else {
            return Ok(Applied::missing(horizon.height));
        };
        // A leader that names other numbers than everybody has is not followed.
        if (header.first_sequence, header.first_task_number) != (horizon.sequence, horizon.task_number) {
            return Ok(Applied::default());
        }
        Ok(self.forget_missing(horizon))
    }

    /// Forgets what lies below a horizon, whatever is there of it: of a state that has lost it, where nobody is left who
    /// has it.
    pub fn forget_missing(&mut self, horizon: Horizon) -> Applied {
        self.head.horizon = horizon;
        let mut effects = Effects::default();
        effects.horizon(horizon);
        let last_forgotten = TaskNumber(horizon.task_number.0.saturating_sub(1));
        for (output, last) in self.progress.iter_mut().filter(|(_, last)| **last < last_forgotten) {
            effects.gap(output, Gap { first: last.next(), last: last_forgotten });
            effects.progress(output, last_forgotten);
            *last = last_forgotten;
        }
        self.roll(effects)
    }

    fn apply_batch<V: History>(&mut self, view: &V, proposal: ProposedBatch) -> Result<Applied, ApplyError<V::Error>> {
        let ids: Vec<ContentId> = proposal.messages.iter().map(Message::content_id).collect();
        // The only fallible step comes first: from here on the ledger changes.
        let earlier = view.occurrences(&ids).map_err(ApplyError)?;
        let asked = Permissions::ask(view, self, &proposal.messages).map_err(ApplyError)?;
        let judges = Judges::ask(view, self, &proposal.messages).map_err(ApplyError)?;
        let mut building = Building::new(self, proposal.time_ms, ids.len(), asked, judges);
        building.close_due();
        building.make_room(proposal.make_room_before);
        let ages_ms = proposal.ages_ms.into_iter().chain(std::iter::repeat(0));
        for (((message, id), before), age_ms) in proposal.messages.into_iter().zip(ids).zip(earlier).zip(ages_ms) {
            building.take(message, id, before, age_ms);
        }
        Ok(building.finish())
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
