//! Tasks: messages of one project packed together, the unit that W3bstream works on.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::hash::{Hash32, keccak256};
use crate::ids::{Address, MessageId, NetworkId, OutputName, ProjectId, Sequence, TaskId, TaskNumber};
use crate::merkle::{abi_u64, leaf_hash};
use crate::message::DecodeError;
use crate::proto;

const TASK_DOMAIN: &[u8] = b"lockstep/task/v1";
const RULED_TASK_DOMAIN: &[u8] = b"lockstep/task/v2";
const RULED_DOMAIN: &[u8] = b"lockstep/ruled/v1";

/// Most messages of a task.
pub const GROUP_MESSAGES_MAX: u64 = 10_000;
/// Most bytes of data of a task, but for its last message.
pub const GROUP_BYTES_MAX: u64 = 4 << 20;
/// Longest time that a message waits for its task: 31 days.
pub const GROUP_AGE_MS_MAX: u64 = 31 * 24 * 3_600 * 1_000;

/// What a project's rules made of a task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruled {
    /// Name of its group; empty where the device, or the project alone, is what its messages share.
    pub group: String,
    /// Number of its window of the devices' time.
    pub window: Option<i64>,
    /// What its messages came to, as JSON; `None` where they stand for themselves.
    pub payload: Option<Bytes>,
    /// Outputs that it is for; `None`: all.
    pub outputs: Option<BTreeSet<OutputName>>,
}

impl Ruled {
    /// keccak256 over all of it and the task's device (docs/formats.md, "Task id"): a task's id commits to it. Whether all
    /// messages only happen to be of one device, or belong together for that, they do not say themselves.
    pub fn hash(&self, device: &Address) -> Hash32 {
        let length = |bytes: &[u8]| (bytes.len() as u64).to_be_bytes();
        let window = self.window.unwrap_or_default().to_be_bytes();
        let payload = self.payload.as_ref().map(|payload| keccak256(&[payload])).unwrap_or_default();
        let named: Vec<&str> = self.outputs.iter().flatten().map(OutputName::as_str).collect();
        let outputs = named.join(" ");
        let flags = [self.window.is_some(), self.payload.is_some(), self.outputs.is_some()].map(u8::from);
        keccak256(&[
            RULED_DOMAIN,
            &device.0,
            &length(self.group.as_bytes()),
            self.group.as_bytes(),
            &flags,
            &window,
            &payload,
            &length(outputs.as_bytes()),
            outputs.as_bytes(),
        ])
    }

    /// The wire form.
    pub fn to_proto(&self) -> proto::Ruled {
        proto::Ruled {
            group: self.group.clone(),
            window: self.window,
            payload: self.payload.clone(),
            routed: self.outputs.is_some(),
            outputs: self.outputs.iter().flatten().map(ToString::to_string).collect(),
        }
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// It is damaged.
    pub fn from_proto(ruled: proto::Ruled) -> Result<Self, DecodeError> {
        let outputs: BTreeSet<OutputName> = ruled
            .outputs
            .iter()
            .map(|name| name.parse())
            .collect::<Result<_, _>>()
            .map_err(|e| DecodeError::malformed("task", e))?;
        if !ruled.routed && !outputs.is_empty() {
            return Err(DecodeError::malformed("task", "it names outputs and is for all"));
        }
        Ok(Self {
            group: ruled.group,
            window: ruled.window,
            payload: ruled.payload,
            outputs: ruled.routed.then_some(outputs),
        })
    }
}

/// A message as readers get it: sequence, id and data.
pub type TaskRow = (Sequence, MessageId, Bytes);

/// What readers get of a task, and its signature is over, given its messages in the task's order. Readers of tables go by
/// ascending sequences, so where a project's rules sort, the messages share out theirs anew; what messages came to is one row,
/// named by the task.
pub fn rows(id: &TaskId, ruled: Option<&Ruled>, mut messages: Vec<TaskRow>) -> Vec<TaskRow> {
    let Some(ruled) = ruled else { return messages };
    let mut sequences: Vec<Sequence> = messages.iter().map(|(sequence, ..)| *sequence).collect();
    sequences.sort_unstable();
    if let Some(payload) = &ruled.payload {
        return vec![(sequences.first().copied().unwrap_or_default(), MessageId(id.0), payload.clone())];
    }
    for (row, sequence) in messages.iter_mut().zip(sequences) {
        row.0 = sequence;
    }
    messages
}

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
    /// Device of all its messages; zeros where they have none, or where the project's rules group by something else.
    pub device: Address,
    /// Sequences of its messages, at least one: ascending, unless the project's rules sort them.
    pub sequences: Vec<Sequence>,
    /// Where the project's rules say how messages are packed.
    pub ruled: Option<Box<Ruled>>,
}

impl Task {
    /// A task's id: a hash of the network, the project, its lowest sequence, its messages' ids in the task's order, and what
    /// the project's rules made of it, with its device.
    pub fn id_of<'a>(
        network: &NetworkId,
        project_id: ProjectId,
        first_sequence: Sequence,
        message_ids: impl ExactSizeIterator<Item = &'a MessageId>,
        ruled: Option<(&Ruled, &Address)>,
    ) -> TaskId {
        let count = (message_ids.len() as u64).to_be_bytes();
        let ids: Vec<u8> = message_ids.flat_map(|id| id.0).collect();
        let (domain, ruled) = match ruled {
            Some((ruled, device)) => (RULED_TASK_DOMAIN, ruled.hash(device).to_vec()),
            None => (TASK_DOMAIN, Vec::new()),
        };
        TaskId(keccak256(&[
            domain,
            &network.0,
            &project_id.0.to_be_bytes(),
            &first_sequence.0.to_be_bytes(),
            &count,
            &ids,
            &ruled,
        ]))
    }

    /// The lowest of its sequences: how far back it reaches.
    pub fn first_sequence(&self) -> Sequence {
        self.sequences.iter().copied().min().unwrap_or_default()
    }

    /// What the project's rules made of it, as its id commits to it.
    pub fn ruled_with_device(&self) -> Option<(&Ruled, &Address)> {
        self.ruled.as_deref().map(|ruled| (ruled, &self.device))
    }

    /// Whether it may have messages of several devices.
    pub fn mixes_devices(&self) -> bool {
        self.ruled.is_some() && self.device == Address::ZERO
    }

    /// Whether it is for an output.
    pub fn is_for(&self, output: &OutputName) -> bool {
        let outputs = self.ruled.as_ref().and_then(|ruled| ruled.outputs.as_ref());
        outputs.is_none_or(|outputs| outputs.contains(output))
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
            ruled: self.ruled.as_ref().map(|ruled| ruled.to_proto()),
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
            ruled: t.ruled.map(|ruled| Ruled::from_proto(ruled).map(Box::new)).transpose()?,
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
