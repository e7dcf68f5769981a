//! Blobs: finalized tasks as stores get them that keep bytes and know nothing of tables. A blob has tasks of one batch
//! and all that leads from them to the genesis, so that it checks itself: its messages' evidence, from their ids to
//! their tasks' ids, from there by a path to the root in the batch's header, and on as a proof does ([`crate::proof`]).
//!
//! Every node that knows the same log makes the same bytes (docs/formats.md, "Blobs").

mod encoding;
mod error;
mod parts;

pub use encoding::{BLOB_BYTES_MAX, BLOB_ELEMENTS_MAX, BLOB_MAGIC, BLOB_VERSION, is_blob};
pub use error::{BlobError, BlobFault};
pub use parts::{PART_TASKS_MAX, cut};

use std::collections::BTreeSet;

use crate::batch::BatchHeader;
use crate::certificate::Certificate;
use crate::epoch::Epochs;
use crate::genesis::Genesis;
use crate::ids::{
    Address, ContentId, Digest, Height, MessageId, NodeId, ProjectId, Sequence, TaskId, TaskNumber, TimeMs,
};
use crate::members::MemberSet;
use crate::merkle;
use crate::message::Message;
use crate::proof::{Boundary, PATH_MAX, Way};
use crate::signature::{Signature, recover_address};
use crate::task::{Ruled, Task, task_leaf};
use crate::verify::Checkpoint;
use crate::w3bstream;

/// How a batch hangs on the genesis. Fields as in [`crate::Proof`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Header of the batch that closed the tasks.
    pub header: BatchHeader,
    /// The headers after it, up to the certified one.
    pub headers: Vec<BatchHeader>,
    /// The first certificate at or above the batch.
    pub certificate: Certificate,
    /// The members whose voters signed it.
    pub members: MemberSet,
    /// All changes of the members below the certified batch, from the genesis on.
    pub boundaries: Vec<Boundary>,
}

/// A message of a task, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobMessage {
    /// Its place in the order.
    pub sequence: Sequence,
    /// Its name.
    pub id: MessageId,
    /// How often its content was ordered with it, since `since`.
    pub count: u64,
    /// Oldest height that was kept when the count began; 0 if nothing had been forgotten.
    pub since: Height,
    /// What it says, and its evidence. Its `via` is 0.
    pub message: Message,
}

/// A task with its messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobTask {
    /// Its place among all tasks of the network.
    pub number: TaskNumber,
    /// Its name.
    pub id: TaskId,
    /// Project of all its messages.
    pub project_id: ProjectId,
    /// Project version of all its messages.
    pub project_version: String,
    /// Device of all its messages; zeros where they have none, or where the project's rules group by something else.
    pub device: Address,
    /// Siblings from its leaf up to the header's `tasks_root`.
    pub path: Vec<Digest>,
    /// Signature of the task key over the task text.
    pub signature: Signature,
    /// Its messages, in the task's order.
    pub messages: Vec<BlobMessage>,
    /// Where the project's rules say how messages are packed.
    pub ruled: Option<Box<Ruled>>,
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// How its batch hangs on the genesis.
    pub anchor: Anchor,
    /// Which part of the batch's tasks this is, from 0. For people: no hash commits to it.
    pub part: u32,
    /// How many parts there are.
    pub parts: u32,
    /// By number. Tasks of projects that the store does not take are left out.
    pub tasks: Vec<BlobTask>,
}

/// What a blob proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedBlob {
    /// The batch.
    pub height: Height,
    /// Its time.
    pub time_ms: TimeMs,
    /// First task.
    pub first: TaskNumber,
    /// Last task.
    pub last: TaskNumber,
    /// How many tasks it has, which are all from the first to the last unless some were left out.
    pub tasks: u64,
    /// How many tasks the batch closed, in all of its blobs.
    pub of: u64,
    /// How many messages the tasks have.
    pub messages: u64,
    /// Messages behind the first of their task: their order is proven, their sequences are not, because a task's id
    /// commits to its first one only.
    pub sequences_unproven: u64,
    /// The certified batch.
    pub certified: Height,
    /// How many voters signed.
    pub signers: usize,
    /// Of how many.
    pub voters: usize,
    /// How often the members had changed since genesis.
    pub changes: u64,
    /// Who signed the tasks; `None` where they have different signers.
    pub task_signer: Option<Address>,
}

impl BlobMessage {
    /// A message as blobs have it. `count` and `since` say which occurrence of its content it is.
    pub fn new(sequence: Sequence, id: MessageId, (count, since): (u64, Height), message: &Message) -> Self {
        Self { sequence, id, count, since, message: Message { via: NodeId(0), ..message.clone() } }
    }

    /// Which occurrence of its content the message with this id is, given a later one or itself: the number of that
    /// one, and the height since which it is counted. Costs a hash for each occurrence between.
    pub fn count_of(content: &ContentId, id: &MessageId, (newest, since): (u64, Height)) -> Option<u64> {
        (1..=newest).rev().find(|count| MessageId::of_occurrence(content, *count, since) == *id)
    }

    fn check(&self, task: &BlobTask, members: &Checkpoint) -> Result<(), BlobFault> {
        let message = &self.message;
        let same = message.project_id == task.project_id
            && message.project_version == task.project_version
            && (message.device == task.device || task.mixes_devices());
        if !same {
            return Err(BlobFault::Group(self.sequence));
        }
        let content = message.content_id();
        if self.count == 0 || MessageId::of_occurrence(&content, self.count, self.since) != self.id {
            return Err(BlobFault::MessageId(self.sequence));
        }
        if message.via != NodeId(0) || !message.evidence_holds(&content, |node| members.known.contains(node)) {
            return Err(BlobFault::Evidence(self.sequence));
        }
        Ok(())
    }
}

impl BlobTask {
    /// The text's digest that the task key signs.
    fn digest(&self) -> crate::Hash32 {
        let whole = self.ruled.as_ref().and_then(|ruled| ruled.payload.as_ref());
        let payloads: Vec<&[u8]> = match whole {
            Some(payload) => vec![payload],
            None => self.messages.iter().map(|m| &m.message.data[..]).collect(),
        };
        w3bstream::task_digest(&self.id, self.project_id, &self.project_version, &self.device, payloads)
    }

    fn mixes_devices(&self) -> bool {
        self.ruled.is_some() && self.device == Address::ZERO
    }

    /// Whether its sequences can be those of a task: ascending, or each once where the project's rules sort.
    fn in_order(&self) -> bool {
        let sequences = || self.messages.iter().map(|message| message.sequence);
        match self.ruled {
            Some(_) => sequences().collect::<BTreeSet<_>>().len() == self.messages.len(),
            None => sequences().is_sorted_by(|a, b| a < b),
        }
    }

    /// Checks all but its number, and says who signed it.
    fn check(&self, header: &BatchHeader, members: &Checkpoint) -> Result<Address, BlobFault> {
        let sequences = || self.messages.iter().map(|message| message.sequence);
        let (Some(first), Some(last)) = (sequences().min(), sequences().max()) else {
            return Err(BlobFault::Sequences);
        };
        let end = header.first_sequence.0.saturating_add(header.message_count);
        if first.0 == 0 || last.0 >= end || !self.in_order() {
            return Err(BlobFault::Sequences);
        }
        for message in &self.messages {
            message.check(self, members)?;
        }
        let ids = self.messages.iter().map(|message| &message.id);
        let ruled = self.ruled.as_deref().map(|ruled| (ruled, &self.device));
        if Task::id_of(&header.network, self.project_id, first, ids, ruled) != self.id {
            return Err(BlobFault::Id);
        }
        let path: Vec<_> = self.path.iter().map(|sibling| sibling.0).collect();
        if path.len() > PATH_MAX || !merkle::verify(task_leaf(self.number, &self.id), &path, &header.tasks_root) {
            return Err(BlobFault::Path);
        }
        recover_address(&self.digest(), &self.signature).map_err(|_| BlobFault::Signature)
    }
}

impl Blob {
    /// Checks everything in it against a genesis. `epochs` is trusted like the genesis. With `task_key` every task has
    /// to be signed by the key with that address; without it, signatures have to be some key's.
    ///
    /// # Errors
    /// What of it does not hold.
    pub fn verify(
        &self,
        genesis: &Genesis,
        epochs: &Epochs,
        task_key: Option<&Address>,
    ) -> Result<VerifiedBlob, BlobError> {
        let Anchor { header, headers, certificate, members, boundaries } = &self.anchor;
        let way = Way { network: header.network, header, headers, certificate, members, boundaries };
        let members = way.check(genesis, epochs)?;
        self.check_place()?;
        let (mut signer, mut several) = (None, false);
        for task in &self.tasks {
            let at = |fault| BlobError::Task { number: task.number, fault };
            let found = task.check(header, &members).map_err(at)?;
            if task_key.is_some_and(|key| *key != found) {
                return Err(at(BlobFault::Signer(found)));
            }
            several |= signer.replace(found).is_some_and(|before| before != found);
        }
        let (Some(first), Some(last)) = (self.tasks.first(), self.tasks.last()) else { return Err(BlobError::Empty) };
        let messages = self.tasks.iter().map(|task| task.messages.len() as u64).sum::<u64>();
        Ok(VerifiedBlob {
            height: header.height,
            time_ms: header.time_ms,
            first: first.number,
            last: last.number,
            tasks: self.tasks.len() as u64,
            of: header.task_count,
            messages,
            sequences_unproven: messages - self.tasks.len() as u64,
            certified: certificate.height,
            signers: certificate.signatures.len(),
            voters: members.set.voters().count(),
            changes: members.changes,
            task_signer: signer.filter(|_| !several),
        })
    }

    /// Whether its tasks are some of those that the header counts, in their order.
    fn check_place(&self) -> Result<(), BlobError> {
        let header = &self.anchor.header;
        if self.tasks.is_empty() {
            return Err(BlobError::Empty);
        }
        let mut least = header.first_task_number;
        for task in &self.tasks {
            let place = task.number.0.checked_sub(header.first_task_number.0);
            if task.number < least || place.is_none_or(|place| place >= header.task_count) {
                return Err(BlobError::Place(task.number));
            }
            least = task.number.next();
        }
        if self.part >= self.parts || u64::from(self.parts) > header.task_count {
            return Err(BlobError::Part { part: self.part, parts: self.parts });
        }
        Ok(())
    }
}
