//! What of a batch can be checked by itself.

use std::collections::BTreeSet;

use crate::batch::{Batch, BatchHeader};
use crate::export::ExportedBatch;
use crate::hash::Hash32;
use crate::ids::{Address, BatchHash, ContentId, MessageId, ProjectId, Sequence, TaskNumber};
use crate::members::MemberSet;
use crate::merkle;
use crate::task::Task;
use crate::verify::error::{Fault, TaskFault, VerifyError};

/// Messages with the same key are packed together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackKey {
    /// Their project.
    pub project_id: ProjectId,
    /// Their project version.
    pub project_version: String,
    /// Their device; zeros where they have none.
    pub device: Address,
}

/// What the chain needs to know of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageOutline {
    /// Its id.
    pub id: MessageId,
    /// The name of what it says; `None` where its payload is withheld.
    pub content: Option<ContentId>,
    /// How it is packed.
    pub key: PackKey,
}

/// A batch whose own parts agree: counts, roots, tasks' order, and the set that it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    pub(crate) header: BatchHeader,
    pub(crate) hash: BatchHash,
    pub(crate) messages: Vec<MessageOutline>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) next_set: Option<MemberSet>,
}

impl Outline {
    /// Checks a whole batch, except for its messages' evidence: see [`check_evidence`].
    pub fn of(batch: &Batch) -> Result<Self, VerifyError> {
        ExportedBatch::from(batch.clone()).outline()
    }

    /// Checks a batch whose messages are known by their leaves only.
    pub fn of_parts(
        header: BatchHeader,
        leaves: Vec<Hash32>,
        messages: Vec<MessageOutline>,
        tasks: Vec<Task>,
        next_set: Option<MemberSet>,
    ) -> Result<Self, VerifyError> {
        Self::check_counts(&header, leaves.len(), tasks.len())?;
        let fault = if merkle::root(leaves) != header.messages_root {
            Some(Fault::Root("messages"))
        } else if Batch::tasks_root(&tasks) != header.tasks_root {
            Some(Fault::Root("tasks"))
        } else if !is_next_set(&header, next_set.as_ref()) {
            Some(Fault::NextSet)
        } else if messages.is_empty() && tasks.is_empty() && next_set.is_none() {
            Some(Fault::Empty)
        } else {
            wrong_task(&header, &tasks)
        };
        match fault {
            Some(fault) => Err(fault.at(header.height)),
            None => Ok(Self { hash: header.hash(), header, messages, tasks, next_set }),
        }
    }

    /// Whether the header counts what there is, and nothing overflows.
    pub(crate) fn check_counts(header: &BatchHeader, messages: usize, tasks: usize) -> Result<(), VerifyError> {
        let at = |fault: Fault| Err(fault.at(header.height));
        for (what, found, counted) in
            [("messages", messages as u64, header.message_count), ("tasks", tasks as u64, header.task_count)]
        {
            if found != counted {
                return at(Fault::Count { what, found, header: counted });
            }
        }
        // Numbers are counted up from here: the one after the last must be one, too.
        let ends = |first: u64, count: u64| first.checked_add(count).is_some_and(|end| end < u64::MAX);
        if !ends(header.first_sequence.0, header.message_count) {
            return at(Fault::FirstSequence { found: header.first_sequence, expected: Sequence(1) });
        }
        if !ends(header.first_task_number.0, header.task_count) {
            return at(Fault::FirstTask { found: header.first_task_number, expected: TaskNumber(1) });
        }
        Ok(())
    }

    /// The batch's header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Its hash.
    pub fn hash(&self) -> BatchHash {
        self.hash
    }
}

/// A boundary brings the set that its header names, with a voter in it; any other batch brings none.
pub(crate) fn is_next_set(header: &BatchHeader, next_set: Option<&MemberSet>) -> bool {
    match next_set {
        Some(set) => {
            header.is_boundary()
                && set.0.is_sorted_by(|a, b| a.node < b.node)
                && set.voters().next().is_some()
                && set.hash() == header.next_members
        }
        None => !header.is_boundary(),
    }
}

fn wrong_task(header: &BatchHeader, tasks: &[Task]) -> Option<Fault> {
    let mut numbered = (header.first_task_number.0..).map(TaskNumber).zip(tasks);
    numbered.find_map(|(number, task)| {
        if task.number != number {
            return Some(Fault::Task { number: task.number, fault: TaskFault::Number(number) });
        }
        // Rules of projects may sort; that no message is there twice is found where messages are taken away.
        let ascend = task.ruled.is_some() || task.sequences.is_sorted_by(|a, b| a < b);
        (!ascend || task.sequences.is_empty()).then_some(Fault::Task { number, fault: TaskFault::Sequences })
    })
}

/// Checks the evidence of every message of a batch: its device's signature, or the word of a node that is or was a
/// member. `known` are the addresses of all members up to this batch ([`crate::verify::ChainVerifier::known`], taken
/// before the batch is). Costs one signature recovery a message.
pub fn check_evidence(batch: &Batch, known: &BTreeSet<Address>) -> Result<(), VerifyError> {
    ExportedBatch::from(batch.clone()).origins()?.check(known)
}
