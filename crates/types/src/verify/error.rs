//! What can be wrong with a history.

use crate::certificate::CertificateError;
use crate::hash::Hash32;
use crate::ids::{BatchHash, Epoch, Height, MessageId, NetworkId, Sequence, TaskNumber, TimeMs};

/// A batch, or the certificate of a height, is not what a network of this genesis makes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("batch {height}: {fault}")]
pub struct VerifyError {
    /// Which batch.
    pub height: Height,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TaskFault {
    /// Task numbers have no gap.
    #[error("its number should be {0}")]
    Number(TaskNumber),
    /// No messages, or not in ascending order where no rules sort them.
    #[error("its sequences do not ascend, or there are none")]
    Sequences,
    /// A message that is not the oldest one of its project, version and device that is in no task yet.
    #[error("message {0} is not next in its group: it is in another task, of another group, or does not exist")]
    Message(Sequence),
    /// The id is a hash of the messages' ids.
    #[error("its id does not follow from its messages")]
    Id,
}

/// What is wrong. Every field of a batch record has a variant that an altered value ends in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Of another network.
    #[error("it belongs to network {0}")]
    Network(NetworkId),
    /// Of another epoch.
    #[error("it has epoch {found}, not {expected}")]
    Epoch {
        /// Epoch that it has.
        found: Epoch,
        /// Epoch of the history.
        expected: Epoch,
    },
    /// A batch is missing, or comes twice.
    #[error("batch {0} should stand here")]
    Height(Height),
    /// The chain is broken.
    #[error("its parent is {found}, but the batch before has hash {expected}")]
    Parent {
        /// Parent that it names.
        found: BatchHash,
        /// Hash of the batch before.
        expected: BatchHash,
    },
    /// Time goes back.
    #[error("its time {} is before its parent's, {}", .found.0, .parent.0)]
    Time {
        /// Its time.
        found: TimeMs,
        /// The parent's.
        parent: TimeMs,
    },
    /// Sequences have a gap or repeat.
    #[error("its first sequence is {found}, not {expected}")]
    FirstSequence {
        /// What it says.
        found: Sequence,
        /// What follows from the batch before.
        expected: Sequence,
    },
    /// Task numbers have a gap or repeat.
    #[error("its first task number is {found}, not {expected}")]
    FirstTask {
        /// What it says.
        found: TaskNumber,
        /// What follows from the batch before.
        expected: TaskNumber,
    },
    /// The header counts other messages or tasks than there are.
    #[error("it has {found} {what}, its header says {header}")]
    Count {
        /// Messages or tasks.
        what: &'static str,
        /// How many there are.
        found: u64,
        /// How many the header says.
        header: u64,
    },
    /// A root is not that of the records.
    #[error("the root of its {0} is not the one in its header")]
    Root(&'static str),
    /// Nothing is in it.
    #[error("it has no messages, no tasks and no change of members")]
    Empty,
    /// Rules of `apply` went back.
    #[error("it has rules {found}, after rules {before}")]
    RulesFell {
        /// What it has.
        found: u32,
        /// What the batch before had.
        before: u32,
    },
    /// Rules of `apply` that this program does not know: it cannot judge.
    #[error("it has rules {found}, this program knows {known}; check with a newer one")]
    RulesUnknown {
        /// What it has.
        found: u32,
        /// The newest that are known.
        known: u32,
    },
    /// It names another set than the one in force.
    #[error("it names the member set {}, but {} is in force", hex::encode(.found), hex::encode(.expected))]
    Members {
        /// Hash that it names.
        found: Hash32,
        /// Hash of the set in force.
        expected: Hash32,
    },
    /// The new set is missing, unneeded, without a voter, or not the one that the header names.
    #[error("the member set that holds after it is not the one that its header names, or is missing")]
    NextSet,
    /// A message's id.
    #[error("message {sequence} ({id}): its id does not follow from what it says")]
    MessageId {
        /// Its place.
        sequence: Sequence,
        /// Its id.
        id: MessageId,
    },
    /// A message's evidence.
    #[error("message {sequence} ({id}): its evidence does not prove where it came from")]
    Evidence {
        /// Its place.
        sequence: Sequence,
        /// Its id.
        id: MessageId,
    },
    /// A task.
    #[error("task {number}: {fault}")]
    Task {
        /// Its number.
        number: TaskNumber,
        /// What is wrong.
        fault: TaskFault,
    },
    /// Groups wait that should have been closed.
    #[error("{found} groups are open, the network allows {allowed}")]
    OpenGroups {
        /// How many.
        found: usize,
        /// Most that a network of this genesis has.
        allowed: u64,
    },
    /// The certificate proves nothing.
    #[error("its certificate: {0}")]
    Certificate(#[from] CertificateError),
    /// The certificate is for another batch.
    #[error("its certificate is over {found}, but its hash is {expected}")]
    CertificateHash {
        /// What was signed.
        found: BatchHash,
        /// The batch's hash.
        expected: BatchHash,
    },
    /// The certificate is of another height.
    #[error("its certificate is for height {0}")]
    CertificateHeight(Height),
    /// A change of the members has to be certified by the set before, before anything above it.
    #[error("the members changed after batch {0}, which was not certified before this")]
    BoundaryNotCertified(Height),
    /// Only a batch that changes the members belongs here.
    #[error("the members do not change after it")]
    NoBoundary,
}

impl Fault {
    /// The fault, of a batch.
    pub fn at(self, height: Height) -> VerifyError {
        VerifyError { height, fault: self }
    }
}

impl VerifyError {
    /// Whether a newer program could judge, instead of the history being wrong.
    pub fn needs_newer_program(&self) -> bool {
        matches!(self.fault, Fault::RulesUnknown { .. })
    }
}
