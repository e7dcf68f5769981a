//! Batches: messages that became ordered together, chained by their headers' hashes.

use bytes::Bytes;
use prost::Message as _;

use crate::hash::{Hash32, keccak256};
use crate::ids::{BatchHash, Epoch, Height, MessageId, NetworkId, Sequence, TaskNumber, TimeMs};
use crate::members::MemberSet;
use crate::merkle;
use crate::message::{DecodeError, Message, message_leaf};
use crate::proto;
use crate::task::Task;

const BATCH_DOMAIN: &[u8] = b"lockstep/batch/v1";
/// Version of the stored record.
pub const BATCH_RECORD_VERSION: u32 = 1;

/// What a batch's hash commits to. In JSON, hashes are hex.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BatchHeader {
    /// Version of the `apply` rules that made it.
    pub rules_version: u32,
    /// The network.
    pub network: NetworkId,
    /// The network's epoch.
    pub epoch: Epoch,
    /// Place in the chain, from 1.
    pub height: Height,
    /// Hash of the batch before; zeros at height 1.
    pub parent: BatchHash,
    /// The leader's clock at proposal, never before the parent's.
    pub time_ms: TimeMs,
    /// Sequence of its first message (of the next one, where it has none).
    pub first_sequence: Sequence,
    /// How many messages it has.
    pub message_count: u64,
    /// Root over [`message_leaf`] of its messages.
    #[serde(with = "crate::hash::as_hex")]
    pub messages_root: Hash32,
    /// Number of its first task (of the next one, where it has none).
    pub first_task_number: TaskNumber,
    /// How many tasks it closed.
    pub task_count: u64,
    /// Root over [`Task::leaf`] of its tasks.
    #[serde(with = "crate::hash::as_hex")]
    pub tasks_root: Hash32,
    /// Hash of the member set whose voters certify this batch: see [`MemberSet::hash`].
    #[serde(with = "crate::hash::as_hex")]
    pub members: Hash32,
    /// Hash of the member set that holds from the next batch on.
    #[serde(with = "crate::hash::as_hex")]
    pub next_members: Hash32,
    /// Rolling digest of everything that `apply` has computed up to this batch.
    #[serde(with = "crate::hash::as_hex")]
    pub effects: Hash32,
}

/// A message with its id, as it stands in a batch. Its sequence follows from its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderedMessage {
    /// Its name.
    pub id: MessageId,
    /// What it says, and its evidence.
    pub message: Message,
}

/// A batch as it is stored and served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// What the hash commits to.
    pub header: BatchHeader,
    /// Messages, in order.
    pub messages: Vec<OrderedMessage>,
    /// Tasks closed by this batch, by number.
    pub tasks: Vec<Task>,
    /// The set that the header's `next_members` is the hash of, where it differs from `members`.
    pub next_set: Option<MemberSet>,
}

impl BatchHeader {
    /// The header of a batch in which there is nothing, with zeros for all that it would commit to: for tests.
    pub fn of_nothing(network: NetworkId, height: Height) -> Self {
        let zero = [0; 32];
        Self {
            rules_version: 1,
            network,
            epoch: Epoch(0),
            height,
            parent: BatchHash::ZERO,
            time_ms: TimeMs(0),
            first_sequence: Sequence(1),
            message_count: 0,
            messages_root: zero,
            first_task_number: TaskNumber(1),
            task_count: 0,
            tasks_root: zero,
            members: zero,
            next_members: zero,
            effects: zero,
        }
    }

    /// Whether the member set changes after this batch. Such a batch needs a certificate of its own.
    pub fn is_boundary(&self) -> bool {
        self.members != self.next_members
    }

    /// keccak256 over the header's fields in fixed width (docs/formats.md, "Batch header").
    pub fn hash(&self) -> BatchHash {
        BatchHash(keccak256(&[
            BATCH_DOMAIN,
            &self.rules_version.to_be_bytes(),
            &self.network.0,
            &self.epoch.0.to_be_bytes(),
            &self.height.0.to_be_bytes(),
            &self.parent.0,
            &self.time_ms.0.to_be_bytes(),
            &self.first_sequence.0.to_be_bytes(),
            &self.message_count.to_be_bytes(),
            &self.messages_root,
            &self.first_task_number.0.to_be_bytes(),
            &self.task_count.to_be_bytes(),
            &self.tasks_root,
            &self.members,
            &self.next_members,
            &self.effects,
        ]))
    }

    /// The storage form.
    pub fn to_proto(&self) -> proto::BatchHeader {
        let copy = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
        proto::BatchHeader {
            rules_version: self.rules_version,
            network: copy(&self.network.0),
            epoch: self.epoch.0,
            height: self.height.0,
            parent: copy(&self.parent.0),
            time_ms: self.time_ms.0,
            first_sequence: self.first_sequence.0,
            message_count: self.message_count,
            messages_root: copy(&self.messages_root),
            first_task_number: self.first_task_number.0,
            task_count: self.task_count,
            tasks_root: copy(&self.tasks_root),
            members: copy(&self.members),
            next_members: copy(&self.next_members),
            effects: copy(&self.effects),
        }
    }

    /// Reads the storage form.
    pub fn from_proto(h: proto::BatchHeader) -> Result<Self, DecodeError> {
        let hash = |bytes: &Bytes| -> Result<Hash32, DecodeError> {
            bytes[..].try_into().map_err(|_| DecodeError::malformed("batch header", "a hash is not 32 bytes"))
        };
        Ok(Self {
            rules_version: h.rules_version,
            network: NetworkId(hash(&h.network)?),
            epoch: Epoch(h.epoch),
            height: Height(h.height),
            parent: BatchHash(hash(&h.parent)?),
            time_ms: TimeMs(h.time_ms),
            first_sequence: Sequence(h.first_sequence),
            message_count: h.message_count,
            messages_root: hash(&h.messages_root)?,
            first_task_number: TaskNumber(h.first_task_number),
            task_count: h.task_count,
            tasks_root: hash(&h.tasks_root)?,
            members: hash(&h.members)?,
            next_members: hash(&h.next_members)?,
            effects: hash(&h.effects)?,
        })
    }
}

impl OrderedMessage {
    /// The storage form.
    pub fn to_proto(&self) -> proto::OrderedMessage {
        proto::OrderedMessage { id: Bytes::copy_from_slice(&self.id.0), message: Some(self.message.to_proto()) }
    }

    /// Reads the storage form.
    pub fn from_proto(m: proto::OrderedMessage) -> Result<Self, DecodeError> {
        let missing = || DecodeError::malformed("batch", "a message is missing");
        Ok(Self {
            id: MessageId::try_from(&m.id[..]).map_err(|e| DecodeError::malformed("batch", e))?,
            message: Message::from_proto(m.message.ok_or_else(missing)?)?,
        })
    }
}

impl Batch {
    /// The message with this sequence, if it is in this batch.
    pub fn message_at(&self, sequence: Sequence) -> Option<&OrderedMessage> {
        let index = sequence.0.checked_sub(self.header.first_sequence.0)?;
        self.messages.get(usize::try_from(index).ok()?)
    }

    /// The task with this number, if it was closed by this batch.
    pub fn task_at(&self, number: TaskNumber) -> Option<&Task> {
        let index = number.0.checked_sub(self.header.first_task_number.0)?;
        self.tasks.get(usize::try_from(index).ok()?)
    }

    /// Root over the messages' leaves.
    pub fn messages_root(first: Sequence, messages: &[OrderedMessage]) -> Hash32 {
        let numbered = (first.0..).zip(messages);
        merkle::root(numbered.map(|(s, m)| message_leaf(Sequence(s), &m.id, &m.message)).collect())
    }

    /// Root over the tasks' leaves.
    pub fn tasks_root(tasks: &[Task]) -> Hash32 {
        merkle::root(tasks.iter().map(Task::leaf).collect())
    }

    /// The stored record.
    pub fn encode(&self) -> Vec<u8> {
        proto::Batch {
            version: BATCH_RECORD_VERSION,
            header: Some(self.header.to_proto()),
            messages: self.messages.iter().map(OrderedMessage::to_proto).collect(),
            tasks: self.tasks.iter().map(Task::to_proto).collect(),
            next_set: self.next_set.as_ref().map(MemberSet::to_proto),
        }
        .encode_to_vec()
    }

    /// Reads a stored record; payloads share `record`'s buffer.
    pub fn decode(record: Bytes) -> Result<Self, DecodeError> {
        let bad = |reason: &str| DecodeError::malformed("batch", reason);
        let batch = proto::Batch::decode(record).map_err(|e| bad(&e.to_string()))?;
        if batch.version > BATCH_RECORD_VERSION {
            return Err(DecodeError::Newer { what: "batch", found: batch.version, known: BATCH_RECORD_VERSION });
        }
        Ok(Self {
            header: BatchHeader::from_proto(batch.header.ok_or_else(|| bad("the header is missing"))?)?,
            messages: batch.messages.into_iter().map(OrderedMessage::from_proto).collect::<Result<_, DecodeError>>()?,
            tasks: batch.tasks.into_iter().map(Task::from_proto).collect::<Result<_, DecodeError>>()?,
            next_set: batch.next_set.map(MemberSet::from_proto).transpose()?,
        })
    }
}
