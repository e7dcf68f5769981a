//! Groups of messages on their way to becoming tasks.

use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_types::{Address, DecodeError, Message, MessageId, ProjectId, ProjectSettings, Sequence, proto};
use prost::Message as _;

/// Messages with the same key are packed together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey {
    /// Their project.
    pub project_id: ProjectId,
    /// Their project version.
    pub project_version: String,
    /// Their device; zeros where they have none.
    pub device: Address,
}

impl GroupKey {
    /// The group that `message` belongs to.
    pub fn of(message: &Message) -> Self {
        Self {
            project_id: message.project_id,
            project_version: message.project_version.clone(),
            device: message.device,
        }
    }

    /// A key for the store: fixed-width parts first, so that keys cannot run into each other.
    pub fn encode(&self) -> Vec<u8> {
        [&self.project_id.0.to_be_bytes()[..], &self.device.0, self.project_version.as_bytes()].concat()
    }
}

/// A group that is not yet a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenGroup {
    /// Its messages, in order.
    pub messages: Vec<(Sequence, MessageId)>,
    /// Sum of their payload bytes.
    pub bytes: u64,
}

impl OpenGroup {
    /// Sequence of the first message.
    pub fn first_sequence(&self) -> Sequence {
        self.messages.first().map_or(Sequence(0), |(sequence, _)| *sequence)
    }

    /// Whether it must become a task now.
    pub fn is_full(&self, settings: &ProjectSettings) -> bool {
        self.messages.len() as u64 >= settings.group_messages_max || self.bytes >= settings.group_bytes_max
    }

    /// The stored record; it repeats the key, so that groups can be loaded by a scan.
    pub fn encode(&self, key: &GroupKey) -> Vec<u8> {
        proto::OpenGroup {
            project_id: key.project_id.0,
            project_version: key.project_version.clone(),
            device: Bytes::copy_from_slice(&key.device.0),
            sequences: self.messages.iter().map(|(s, _)| s.0).collect(),
            message_ids: self.messages.iter().map(|(_, id)| Bytes::copy_from_slice(&id.0)).collect(),
            bytes: self.bytes,
        }
        .encode_to_vec()
    }

    /// Reads a stored record.
    pub fn decode(record: Bytes) -> Result<(GroupKey, Self), DecodeError> {
        let bad = |e: &dyn std::fmt::Display| DecodeError::malformed("open group", e);
        let group = proto::OpenGroup::decode(record).map_err(|e| bad(&e))?;
        let key = GroupKey {
            project_id: ProjectId(group.project_id),
            project_version: group.project_version,
            device: Address::try_from(&group.device[..]).map_err(|e| bad(&e))?,
        };
        if group.sequences.len() != group.message_ids.len() || group.sequences.is_empty() {
            return Err(bad(&"counts differ"));
        }
        let ids = group.message_ids.iter().map(|id| MessageId::try_from(&id[..]).map_err(|e| bad(&e)));
        let messages = group.sequences.into_iter().map(Sequence).zip(ids).map(|(s, id)| Ok((s, id?)));
        Ok((key, Self { messages: messages.collect::<Result<_, DecodeError>>()?, bytes: group.bytes }))
    }
}

/// That a group began or ended, for whoever watches its age.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupChange {
    /// A group now waits, from this sequence on.
    Opened(GroupKey, Sequence),
    /// The group that waited under this key is a task now.
    Closed(GroupKey),
}

/// All open groups, by key and by age.
#[derive(Debug, Clone, Default)]
pub(crate) struct Groups {
    by_key: BTreeMap<GroupKey, OpenGroup>,
    by_first: BTreeMap<Sequence, GroupKey>,
}

impl Groups {
    pub fn get(&self, key: &GroupKey) -> Option<&OpenGroup> {
        self.by_key.get(key)
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn oldest(&self) -> Option<&GroupKey> {
        self.by_first.values().next()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&GroupKey, &OpenGroup)> {
        self.by_key.iter()
    }

    pub fn insert(&mut self, key: GroupKey, group: OpenGroup) {
        self.by_first.insert(group.first_sequence(), key.clone());
        self.by_key.insert(key, group);
    }

    /// Adds a message; says whether the group is new.
    pub fn add(&mut self, key: &GroupKey, sequence: Sequence, id: MessageId, bytes: u64) -> bool {
        if let Some(group) = self.by_key.get_mut(key) {
            group.messages.push((sequence, id));
            group.bytes += bytes;
            return false;
        }
        self.insert(key.clone(), OpenGroup { messages: vec![(sequence, id)], bytes });
        true
    }

    pub fn take(&mut self, key: &GroupKey) -> Option<OpenGroup> {
        let group = self.by_key.remove(key)?;
        self.by_first.remove(&group.first_sequence());
        Some(group)
    }
}
