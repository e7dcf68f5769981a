//! What `apply` asks to be stored, and the digest that headers commit to.

use bytes::Bytes;
use lockstep_types::genesis::RETRY_MARGIN_MS;
use lockstep_types::{
    Address, Batch, BatchHash, Certificate, ContentId, DecodeError, Hash32, Height, MessageId, OutputName, Place,
    ProjectId, Sequence, TaskId, TaskNumber, TimeMs, keccak256, proto,
};
use prost::Message as _;

use crate::apply::RULES_FIRST;
use crate::devices::{ChainCursor, Device, Grant, HighestNonce, Nonce};
use crate::groups::{GroupKey, OpenGroup, Waiting};
use crate::members::Members;
use crate::outputs::OutputState;
use crate::projects::Project;
use crate::rules::{LastTaken, RulesState};

const EFFECTS_DOMAIN: &[u8] = b"lockstep/effects/v1";
/// Version of the stored [`Head`].
pub const HEAD_VERSION: u32 = 1;

/// Where a content last became a reading of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occurrence {
    /// 1 for the first time, 2 for the second, …
    pub count: u64,
    /// Oldest height that was kept when the count began: 0 if nothing had been forgotten yet.
    pub since: Height,
    /// Its place in the order.
    pub sequence: Sequence,
    /// The batch it is in.
    pub height: Height,
    /// That batch's time.
    pub time_ms: TimeMs,
}

impl Occurrence {
    /// Id of the message at this place.
    pub fn message_id(&self, content: &ContentId) -> MessageId {
        MessageId::of_occurrence(content, self.count, self.since)
    }

    /// Whether the same content is a repeat of this one, where its request came in at that time: in the project's window,
    /// or so little behind it that leaders' clocks and the way may be what puts it there. The time of this one is that of its batch,
    /// whatever its age was: a node that calls it older than it is gets a repeat no second place.
    pub fn is_repeated(&self, came_in: TimeMs, window_ms: u64) -> bool {
        came_in.0.saturating_sub(self.time_ms.0) < window_ms.saturating_add(RETRY_MARGIN_MS)
    }

    /// The stored record: five big-endian numbers. The height comes first, for the filter that drops old records.
    pub fn encode(&self) -> [u8; 40] {
        let mut out = [0; 40];
        let numbers = [self.height.0, self.count, self.sequence.0, self.time_ms.0, self.since.0];
        for (place, number) in out.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        out
    }

    /// Reads a stored record.
    pub fn decode(record: &[u8]) -> Result<Self, DecodeError> {
        let record: &[u8; 40] = record.try_into().map_err(|_| DecodeError::malformed("occurrence", "not 40 bytes"))?;
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&record[at * 8..at * 8 + 8]);
            u64::from_be_bytes(bytes)
        };
        Ok(Self {
            height: Height(number(0)),
            count: number(1),
            sequence: Sequence(number(2)),
            time_ms: TimeMs(number(3)),
            since: Height(number(4)),
        })
    }
}

/// The oldest batch that is kept. Zeros while everything is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Horizon {
    /// Its height.
    pub height: Height,
    /// Its first message.
    pub sequence: Sequence,
    /// Its first task.
    pub task_number: TaskNumber,
}

/// Tasks that an output never got, because they were forgotten first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The first of them.
    pub first: TaskNumber,
    /// The last of them.
    pub last: TaskNumber,
}

/// The part of the state that every batch changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Height of the newest batch; 0 before the first.
    pub height: Height,
    /// Its hash; zeros before the first.
    pub hash: BatchHash,
    /// Its time.
    pub time_ms: TimeMs,
    /// Sequence of the next message.
    pub next_sequence: Sequence,
    /// Number of the next task.
    pub next_task_number: TaskNumber,
    /// Rolling digest of all effects so far.
    pub effects: [u8; 32],
    /// Rules of `apply` for the next entry.
    pub rules_version: u32,
    /// Height of the newest certificate: this batch and all before it are final.
    pub final_height: Height,
    /// What is kept.
    pub horizon: Horizon,
}

impl Head {
    /// The head of a network in which nothing happened yet.
    pub fn genesis(first_task_number: TaskNumber) -> Self {
        Self {
            height: Height(0),
            hash: BatchHash::ZERO,
            time_ms: TimeMs(0),
            next_sequence: Sequence(1),
            next_task_number: first_task_number,
            effects: [0; 32],
            rules_version: RULES_FIRST,
            final_height: Height(0),
            horizon: Horizon::default(),
        }
    }

    /// Sequence of the newest message; 0 before the first.
    pub fn last_sequence(&self) -> Sequence {
        Sequence(self.next_sequence.0.saturating_sub(1))
    }

    /// The stored record.
    pub fn encode(&self) -> Vec<u8> {
        proto::Head {
            version: HEAD_VERSION,
            height: self.height.0,
            hash: Bytes::copy_from_slice(&self.hash.0),
            time_ms: self.time_ms.0,
            next_sequence: self.next_sequence.0,
            next_task_number: self.next_task_number.0,
            effects: Bytes::copy_from_slice(&self.effects),
            rules_version: self.rules_version,
            final_height: self.final_height.0,
            oldest_height: self.horizon.height.0,
            oldest_sequence: self.horizon.sequence.0,
            oldest_task_number: self.horizon.task_number.0,
        }
        .encode_to_vec()
    }

    /// Reads a stored record.
    pub fn decode(record: Bytes) -> Result<Self, DecodeError> {
        let head = proto::Head::decode(record).map_err(|e| DecodeError::malformed("head", e))?;
        if head.version > HEAD_VERSION {
            return Err(DecodeError::Newer { what: "head", found: head.version, known: HEAD_VERSION });
        }
        Ok(Self {
            height: Height(head.height),
            hash: BatchHash::try_from(&head.hash[..]).map_err(|e| DecodeError::malformed("head", e))?,
            time_ms: TimeMs(head.time_ms),
            next_sequence: Sequence(head.next_sequence),
            next_task_number: TaskNumber(head.next_task_number),
            effects: head.effects[..].try_into().map_err(|_| DecodeError::malformed("head", "effects"))?,
            rules_version: head.rules_version,
            final_height: Height(head.final_height),
            horizon: Horizon {
                height: Height(head.oldest_height),
                sequence: Sequence(head.oldest_sequence),
                task_number: TaskNumber(head.oldest_task_number),
            },
        })
    }
}

/// One change to the stored state. All writes of one entry are stored together, with the applied position.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// The newest occurrence of a content.
    Occurrence(ContentId, Occurrence),
    /// Where a message stands whose id does not follow from its content's newest occurrence.
    MessagePlace(MessageId, Sequence),
    /// A task's number by its id.
    TaskPlace(TaskId, TaskNumber),
    /// The task of a message that was packed in a later batch than its own.
    Packed(Sequence, TaskNumber),
    /// The record of an open group, or that it is open no longer. What is new among its messages is written beside it.
    Group(GroupKey, Option<Bytes>),
    /// A message in an open group, or that its group is a task now.
    Waiting(Sequence, Option<Waiting>),
    /// An output has everything up to this task.
    Progress(OutputName, TaskNumber),
    /// Where an output has tasks.
    Place(OutputName, Place),
    /// How an output is from now on. One that is removed leaves nothing behind but that: its progress, places and gaps go.
    Output(OutputName, OutputState),
    /// Tasks that an output never got.
    Gap(OutputName, Gap),
    /// A project as it is from now on.
    Project(ProjectId, Box<Project>),
    /// A device as it is from now on.
    Device(Address, Box<Device>),
    /// Who lets a device submit to a project.
    Grant(ProjectId, Address, Grant),
    /// A nonce that a message has used. It is forgotten with the message.
    Nonce(Nonce, Sequence),
    /// The highest nonce of a device in a project.
    HighestNonce(ProjectId, Address, HighestNonce),
    /// An encoded bundle of rules by its hash, or that it is needed no more.
    Rules(Hash32, Option<Bytes>),
    /// What a project's rules took and refused.
    RulesState(ProjectId, Box<RulesState>),
    /// The last message of a device that a project's rules took.
    Last(ProjectId, Address, LastTaken),
    /// Words with which a project's rules marked a message.
    Flags(Sequence, Vec<String>),
    /// Another name for the task of a message.
    TaskAlias(TaskId, Sequence),
    /// How far the chain was read.
    Chain(ChainCursor),
    /// The members after a change of them.
    Members(Box<Members>),
    /// The certificate that made its height final. It is kept for ever where `boundary` is set: the member set
    /// changes after that batch.
    Certificate {
        /// The certificate.
        certificate: Certificate,
        /// Whether the member set changes after its batch.
        boundary: bool,
    },
    /// A batch's record.
    Batch(Box<Batch>),
    /// The new head. Always the last write.
    Head(Head),
}

/// Accumulates the writes of one entry together with their digest.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub writes: Vec<Write>,
    hashed: Vec<u8>,
}

impl Effects {
    pub fn with_capacity(messages: usize) -> Self {
        Self { writes: Vec::with_capacity(2 * messages + 4), hashed: Vec::with_capacity(96 * messages) }
    }

    pub fn occurrence(&mut self, id: ContentId, occurrence: Occurrence) {
        self.tag(1, &[&id.0, &occurrence.encode()]);
        self.writes.push(Write::Occurrence(id, occurrence));
    }

    pub fn message_place(&mut self, id: MessageId, sequence: Sequence) {
        self.tag(2, &[&id.0, &sequence.0.to_be_bytes()]);
        self.writes.push(Write::MessagePlace(id, sequence));
    }

    pub fn task_place(&mut self, id: TaskId, number: TaskNumber) {
        self.tag(3, &[&id.0, &number.0.to_be_bytes()]);
        self.writes.push(Write::TaskPlace(id, number));
    }

    pub fn packed(&mut self, sequence: Sequence, number: TaskNumber) {
        self.tag(4, &[&sequence.0.to_be_bytes(), &number.0.to_be_bytes()]);
        self.writes.push(Write::Packed(sequence, number));
        self.writes.push(Write::Waiting(sequence, None));
    }

    pub fn group(&mut self, key: &GroupKey, group: Option<&OpenGroup>) {
        let record = group.map(|group| Bytes::from(group.encode(key)));
        if group.is_some_and(|group| group.ruled.is_some()) || !key.is_plain() {
            let hash = keccak256(&[record.as_deref().unwrap_or_default()]);
            self.tag(21, &[&keccak256(&[&key.encode()]), &hash]);
            return self.writes.push(Write::Group(key.clone(), record));
        }
        let (first, due) = group.map_or((0, 0), |group| (group.first_sequence().0, group.due().0));
        let count = group.map_or(0, |g| g.messages.len() as u64);
        let Address(device) = key.device;
        let version = key.project_version.as_bytes();
        let numbers = [key.project_id.0, first, count, due, version.len() as u64].map(u64::to_be_bytes);
        self.tag(5, &[&device, numbers.as_flattened(), version]);
        self.writes.push(Write::Group(key.clone(), record));
    }

    pub fn progress(&mut self, output: &OutputName, number: TaskNumber) {
        let name = output.as_str().as_bytes();
        self.tag(6, &[&(name.len() as u64).to_be_bytes(), name, &number.0.to_be_bytes()]);
        self.writes.push(Write::Progress(output.clone(), number));
    }

    /// A change of membership was counted, made or finished: `state` is a digest of the record.
    pub fn members(&mut self, members: &Members) {
        let state: Hash32 = keccak256(&[&members.encode()]);
        self.tag(7, &[&state]);
        self.writes.push(Write::Members(Box::new(members.clone())));
    }

    pub fn horizon(&mut self, horizon: Horizon) {
        let numbers = [horizon.height.0, horizon.sequence.0, horizon.task_number.0].map(u64::to_be_bytes);
        self.tag(8, &[numbers.as_flattened()]);
    }

    pub fn gap(&mut self, output: &OutputName, gap: Gap) {
        let name = output.as_str().as_bytes();
        let numbers = [gap.first.0, gap.last.0].map(u64::to_be_bytes);
        self.tag(9, &[&(name.len() as u64).to_be_bytes(), name, numbers.as_flattened()]);
        self.writes.push(Write::Gap(output.clone(), gap));
    }

    pub fn rules(&mut self, version: u32) {
        self.tag(10, &[&version.to_be_bytes()]);
    }

    pub fn project(&mut self, id: ProjectId, project: &Project) {
        self.tag(11, &[&id.0.to_be_bytes(), &keccak256(&[&project.encode()])]);
        self.writes.push(Write::Project(id, Box::new(project.clone())));
    }

    pub fn device(&mut self, address: Address, device: &Device) {
        self.tag(12, &[&address.0, &keccak256(&[&device.encode()])]);
        self.writes.push(Write::Device(address, Box::new(device.clone())));
    }

    pub fn grant(&mut self, project: ProjectId, device: Address, grant: Grant) {
        self.tag(13, &[&project.0.to_be_bytes(), &device.0, &[grant.encode().unwrap_or(0)]]);
        self.writes.push(Write::Grant(project, device, grant));
    }

    pub fn nonce(&mut self, used: Nonce, by: Sequence) {
        let (project, holder, nonce) = used;
        self.tag(14, &[&project.0.to_be_bytes(), &holder.0, &nonce.to_be_bytes(), &by.0.to_be_bytes()]);
        self.writes.push(Write::Nonce(used, by));
    }

    pub fn highest_nonce(&mut self, project: ProjectId, device: Address, highest: HighestNonce) {
        self.tag(22, &[&project.0.to_be_bytes(), &device.0, &highest.encode()]);
        self.writes.push(Write::HighestNonce(project, device, highest));
    }

    pub fn task_alias(&mut self, alias: TaskId, sequence: Sequence) {
        self.tag(15, &[&alias.0, &sequence.0.to_be_bytes()]);
        self.writes.push(Write::TaskAlias(alias, sequence));
    }

    pub fn chain(&mut self, cursor: ChainCursor) {
        self.tag(16, &[&cursor.last.to_be_bytes(), &cursor.last_hash]);
        self.writes.push(Write::Chain(cursor));
    }

    pub fn bundle(&mut self, hash: Hash32, bundle: Option<Bytes>) {
        self.tag(17, &[&hash, &[u8::from(bundle.is_some())]]);
        self.writes.push(Write::Rules(hash, bundle));
    }

    pub fn rules_state(&mut self, project: ProjectId, state: &RulesState) {
        self.tag(18, &[&project.0.to_be_bytes(), &keccak256(&[&state.encode()])]);
        self.writes.push(Write::RulesState(project, Box::new(state.clone())));
    }

    /// The data follows from the sequence.
    pub fn last(&mut self, project: ProjectId, device: Address, last: LastTaken) {
        self.tag(19, &[&project.0.to_be_bytes(), &device.0, &last.sequence.0.to_be_bytes()]);
        self.writes.push(Write::Last(project, device, last));
    }

    pub fn flags(&mut self, sequence: Sequence, flags: Vec<String>) {
        let words = flags.join(" ");
        self.tag(20, &[&sequence.0.to_be_bytes(), &(words.len() as u64).to_be_bytes(), words.as_bytes()]);
        self.writes.push(Write::Flags(sequence, flags));
    }

    fn tag(&mut self, tag: u8, parts: &[&[u8]]) {
        self.hashed.push(tag);
        for part in parts {
            self.hashed.extend_from_slice(part);
        }
    }

    /// The digest after these effects, from the one before them.
    pub fn roll(&self, before: &[u8; 32]) -> [u8; 32] {
        keccak256(&[EFFECTS_DOMAIN, before, &self.hashed])
    }
}
