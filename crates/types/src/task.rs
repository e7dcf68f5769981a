//! Tasks: messages of one project packed together, the unit that W3bstream works on.

use crate::hash::{Hash32, keccak256};
use crate::ids::{Address, MessageId, NetworkId, ProjectId, Sequence, TaskId, TaskNumber};
use crate::merkle::{abi_u64, leaf_hash};
use crate::message::DecodeError;
use crate::proto;

const TASK_DOMAIN: &[u8] = b"lockstep/task/v1";

/// A packed task: which messages, not their data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its place among all tasks.
    pub number: TaskNumber,
    /// Its name; see [`Task::id_of`].
    pub id: TaskId,
    /// Project of all its messages.
    pub project_id: ProjectId,
    /// Project version of all its messages.
    pub project_version: String,
    /// Device of all its messages; zeros where they have none.
    pub device: Address,
    /// Sequences of its messages, ascending, at least one.
    pub sequences: Vec<Sequence>,
}

impl Task {
    /// A task's id: a hash of the network, the project, its first sequence and its messages' ids.
    pub fn id_of<'a>(
        network: &NetworkId,
        project_id: ProjectId,
        first_sequence: Sequence,
        message_ids: impl ExactSizeIterator<Item = &'a MessageId>,
    ) -> TaskId {
        let count = (message_ids.len() as u64).to_be_bytes();
        let ids: Vec<u8> = message_ids.flat_map(|id| id.0).collect();
        TaskId(keccak256(&[
            TASK_DOMAIN,
            &network.0,
            &project_id.0.to_be_bytes(),
            &first_sequence.0.to_be_bytes(),
            &count,
            &ids,
        ]))
    }

    /// Its Merkle leaf.
    pub fn leaf(&self) -> Hash32 {
        task_leaf(self.number, &self.id)
    }

    /// The storage form.
    pub fn to_proto(&self) -> proto::Task {
        proto::Task {
            number: self.number.0,
            id: bytes::Bytes::copy_from_slice(&self.id.0),
            project_id: self.project_id.0,
            project_version: self.project_version.clone(),
            device: bytes::Bytes::copy_from_slice(&self.device.0),
            sequences: self.sequences.iter().map(|s| s.0).collect(),
        }
    }

    /// Reads the storage form.
    pub fn from_proto(t: proto::Task) -> Result<Self, DecodeError> {
        let bad = |e: crate::ids::ParseIdError| DecodeError::malformed("task", e);
        Ok(Self {
            number: TaskNumber(t.number),
            id: TaskId::try_from(&t.id[..]).map_err(bad)?,
            project_id: ProjectId(t.project_id),
            project_version: t.project_version,
            device: Address::try_from(&t.device[..]).map_err(bad)?,
            sequences: t.sequences.into_iter().map(Sequence).collect(),
        })
    }
}

/// Merkle leaf of a task: ABI encoding of `(uint256 number, bytes32 id)`.
pub fn task_leaf(number: TaskNumber, id: &TaskId) -> Hash32 {
    let mut encoded = [0; 64];
    encoded[..32].copy_from_slice(&abi_u64(number.0));
    encoded[32..].copy_from_slice(&id.0);
    leaf_hash(&encoded)
}
