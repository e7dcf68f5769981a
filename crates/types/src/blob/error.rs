//! What can be wrong with a blob.

use crate::ids::{Address, Sequence, TaskNumber};
use crate::message::DecodeError;
use crate::proof::ProofError;

/// What is wrong with a task of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlobFault {
    /// No messages, not in ascending order where no rules sort them, or not before the end of the batch.
    #[error("its sequences do not ascend, are not of before the end of the batch, or there are none")]
    Sequences,
    /// A message of another project, version or device.
    #[error("message {0} is of another project, version or device")]
    Group(Sequence),
    /// A message's id is not that of what it says.
    #[error("message {0}: its id does not follow from what it says")]
    MessageId(Sequence),
    /// Nobody vouches for a message.
    #[error("message {0}: its evidence does not prove where it came from")]
    Evidence(Sequence),
    /// The task's id is a hash of its messages' ids.
    #[error("its id does not follow from its messages")]
    Id,
    /// The batch has no such task.
    #[error("its path does not lead to the root of the tasks in the batch's header")]
    Path,
    /// No signature.
    #[error("its signature is none")]
    Signature,
    /// Another key than the one that was given.
    #[error("it is signed by {0}, not with the task key that was given")]
    Signer(Address),
}

/// A blob that proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// It cannot be read, or not by this program.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It has no task.
    #[error("it has no task")]
    Empty,
    /// A number that is not next, or that the batch does not have.
    #[error("task {0} has no place here: numbers have no gap and are of the batch")]
    Place(TaskNumber),
    /// A part that cannot be.
    #[error("it says that it is part {part} (from 0) of {parts}")]
    Part {
        /// Which part.
        part: u32,
        /// Of how many.
        parts: u32,
    },
    /// A task.
    #[error("task {number}: {fault}")]
    Task {
        /// Which.
        number: TaskNumber,
        /// What is wrong with it.
        fault: BlobFault,
    },
    /// Its batch does not hang on this genesis.
    #[error(transparent)]
    Way(#[from] ProofError),
}

impl BlobError {
    /// Whether a newer program, or another genesis file, could judge, instead of the blob being wrong.
    pub fn cannot_judge(&self) -> bool {
        matches!(self, Self::Decode(DecodeError::Newer { .. }) | Self::Way(ProofError::Genesis(_)))
    }
}
