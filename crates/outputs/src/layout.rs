//! The two generations of W3bstream's readers: which tables they read, and what they want signed.

use lockstep_types::{Address, Hash32, MessageId, Signature, TaskId, w3bstream};
use serde::{Deserialize, Serialize};

use crate::output::{FinalMessage, FinalTask};

const DID_PREFIX: &str = "did:io:";

/// Which readers a store is for. A store keeps the layout that it was made with: both generations use the same names of
/// tables with different columns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// October 2024: a prover fetches one task by its id, and takes binary columns.
    #[default]
    Apinode,
    /// August 2024: a coordinator pages through the tasks of each project by ascending number, takes texts, and never
    /// looks back. So a task that cannot be stored halts its project.
    Sprout,
}

impl Layout {
    /// Its name in configurations and in the store.
    pub fn name(self) -> &'static str {
        match self {
            Self::Apinode => "apinode",
            Self::Sprout => "sprout",
        }
    }

    /// Whether a refused task halts its project.
    pub fn halts(self) -> bool {
        self == Self::Sprout
    }

    /// A column that only this layout's tables `tasks` and `messages` have.
    pub(crate) fn marker(self) -> &'static str {
        match self {
            Self::Apinode => "task_id",
            Self::Sprout => "internal_task_id",
        }
    }

    /// What the task key signs.
    pub(crate) fn digest(self, task: &FinalTask) -> Hash32 {
        let payloads = task.messages.iter().map(|message| &message.data[..]);
        match self {
            Self::Apinode => {
                w3bstream::task_digest(&task.id, task.project_id, &task.project_version, &task.device, payloads)
            }
            Self::Sprout => {
                let client = w3bstream::client_id(&task.device);
                w3bstream::sprout_task_digest(task.number, task.project_id, &client, payloads)
            }
        }
    }

    /// `message_ids` of a task as JSON: an array of integers, or of strings.
    pub(crate) fn message_ids(self, task: &FinalTask) -> String {
        let each = match self {
            Self::Apinode => 8,
            Self::Sprout => 70,
        };
        let mut out = String::with_capacity(2 + each * task.messages.len());
        for (i, message) in task.messages.iter().enumerate() {
            out.push(if i == 0 { '[' } else { ',' });
            match self {
                Self::Apinode => out.push_str(&message.sequence.to_string()),
                Self::Sprout => {
                    out.push('"');
                    out.push_str(&message.id.to_string());
                    out.push('"');
                }
            }
        }
        out.push(']');
        out
    }

    /// Whether `message_ids` of a row names `messages`.
    pub(crate) fn names_messages(self, message_ids: &str, messages: &[FinalMessage]) -> bool {
        match self {
            Self::Apinode => serde_json::from_str::<Vec<u64>>(message_ids)
                .is_ok_and(|listed| listed.iter().copied().eq(messages.iter().map(|message| message.sequence.0))),
            Self::Sprout => serde_json::from_str::<Vec<MessageId>>(message_ids)
                .is_ok_and(|listed| listed.iter().copied().eq(messages.iter().map(|message| message.id))),
        }
    }

    /// A task's id as its column has it: the bytes, or those of its text.
    pub(crate) fn task_column(self, id: &TaskId) -> Vec<u8> {
        match self {
            Self::Apinode => id.0.to_vec(),
            Self::Sprout => id.to_string().into_bytes(),
        }
    }

    /// A message's id as its column has it; empty where the layout has none.
    pub(crate) fn message_column(self, id: &MessageId) -> Vec<u8> {
        match self {
            Self::Apinode => Vec::new(),
            Self::Sprout => id.to_string().into_bytes(),
        }
    }

    /// A device as its column has it.
    pub(crate) fn device_column(self, device: &Address) -> Vec<u8> {
        match self {
            Self::Apinode => device.0.to_vec(),
            Self::Sprout => w3bstream::client_id(device).into_bytes(),
        }
    }

    /// A signature as its column has it.
    pub(crate) fn signature_column(self, signature: &Signature) -> Vec<u8> {
        match self {
            Self::Apinode => signature.0.to_vec(),
            Self::Sprout => signature.to_string().into_bytes(),
        }
    }

    /// A signature out of its column.
    pub(crate) fn signature(self, column: &[u8]) -> Option<Signature> {
        match self {
            Self::Apinode => Signature::try_from(column).ok(),
            Self::Sprout => {
                let mut bytes = [0; 65];
                hex::decode_to_slice(column.strip_prefix(b"0x")?, &mut bytes).ok()?;
                Some(Signature(bytes))
            }
        }
    }

    /// A device out of its column.
    pub(crate) fn device(self, column: &[u8]) -> Option<Address> {
        match self {
            Self::Apinode => Address::try_from(column).ok(),
            Self::Sprout if column.is_empty() => Some(Address::ZERO),
            Self::Sprout => std::str::from_utf8(column).ok()?.strip_prefix(DID_PREFIX)?.parse().ok(),
        }
    }

    /// A message's id out of its column; zeros where the layout has none.
    pub(crate) fn message_id(self, column: &[u8]) -> Option<MessageId> {
        match self {
            Self::Apinode => Some(MessageId::ZERO),
            Self::Sprout => std::str::from_utf8(column).ok()?.parse().ok(),
        }
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
