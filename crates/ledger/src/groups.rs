//! Groups of messages on their way to becoming tasks.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lockstep_rules::{Group, Together};
use lockstep_types::{Address, DecodeError, Message, MessageId, ProjectId, ProjectSettings, Sequence, TimeMs, proto};
use prost::Message as _;

/// Open groups of one project whose rules say what belongs together, messages in them, and bytes that their reductions
/// keep. Beyond any of it the project's oldest group becomes a task, so that a project that has many closes its own, and
/// none of another; and so that what ends with a change of its rules has a bound.
pub const RULED_GROUPS_MAX: usize = 4_096;
/// See [`RULED_GROUPS_MAX`].
pub const RULED_MESSAGES_MAX: usize = 1 << 18;
/// See [`RULED_GROUPS_MAX`].
pub const RULED_BYTES_MAX: usize = 16 << 20;

/// Messages with the same key are packed together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey {
    /// Their project.
    pub project_id: ProjectId,
    /// Their project version.
    pub project_version: String,
    /// Their device; zeros where they have none, or where the project's rules group by something else.
    pub device: Address,
    /// The name that the project's rules give the group; else empty.
    pub name: String,
    /// The window of the devices' time, where the project's rules have windows.
    pub window: Option<i64>,
}

/// Between a key's project version and what rules add to it: no byte of a text.
const BEHIND_VERSION: u8 = 0xff;

impl GroupKey {
    /// The group that `message` belongs to where no rules say otherwise.
    pub fn of(message: &Message) -> Self {
        Self {
            project_id: message.project_id,
            project_version: message.project_version.clone(),
            device: message.device,
            name: String::new(),
            window: None,
        }
    }

    /// The group that `message` belongs to by its project's rules.
    pub fn ruled(message: &Message, together: Together) -> Self {
        let Together { device, name, window } = together;
        let project_version = message.project_version.clone();
        Self { project_id: message.project_id, project_version, device, name, window }
    }

    /// A key for the store: fixed-width parts first, so that keys cannot run into each other.
    pub fn encode(&self) -> Vec<u8> {
        let plain = [&self.project_id.0.to_be_bytes()[..], &self.device.0, self.project_version.as_bytes()].concat();
        if self.is_plain() {
            return plain;
        }
        let window = self.window.unwrap_or_default().to_be_bytes();
        let tail = [&[BEHIND_VERSION, u8::from(self.window.is_some())][..], &window, self.name.as_bytes()].concat();
        [plain, tail].concat()
    }

    /// Whether its messages share no more than their project, version and device.
    pub fn is_plain(&self) -> bool {
        self.name.is_empty() && self.window.is_none()
    }

    /// The key of another window of the same group.
    fn family(&self, window: Option<i64>) -> Self {
        Self { window, ..self.clone() }
    }
}

/// A group that is not yet a task.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OpenGroup {
    /// Its messages, in the order of the network.
    pub messages: Vec<(Sequence, MessageId)>,
    /// Sum of their payload bytes.
    pub bytes: u64,
    /// What the project's rules know of it; nothing where they do not say what belongs together.
    pub ruled: Option<Box<Group>>,
}

impl OpenGroup {
    /// A group of one message.
    pub fn of(sequence: Sequence, id: MessageId, bytes: u64) -> Self {
        Self { messages: vec![(sequence, id)], bytes, ruled: None }
    }

    /// Sequence of the first message.
    pub fn first_sequence(&self) -> Sequence {
        self.messages.first().map_or(Sequence(0), |(sequence, _)| *sequence)
    }

    /// Whether it must become a task now.
    pub fn is_full(&self, settings: &ProjectSettings) -> bool {
        self.messages.len() as u64 >= settings.group_messages_max || self.bytes >= settings.group_bytes_max
    }

    /// What counts towards the limits of its project, where rules made it.
    fn load(&self) -> Load {
        let Some(group) = &self.ruled else { return Load::default() };
        Load { groups: 1, messages: self.messages.len(), bytes: group.kept_bytes() }
    }

    /// When the project's rules make it a task, in batch time.
    pub fn due(&self) -> Option<TimeMs> {
        self.ruled.as_ref().map(|group| TimeMs(group.due_ms()))
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
            name: key.name.clone(),
            window: key.window,
            ruled: self.ruled.as_ref().map(|group| group.to_proto()),
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
            name: group.name,
            window: group.window,
        };
        if group.sequences.len() != group.message_ids.len() || group.sequences.is_empty() {
            return Err(bad(&"counts differ"));
        }
        let sequences = || group.sequences.iter().copied().map(Sequence);
        let ruled = group.ruled.map(|ruled| Group::from_proto(ruled, sequences(), group.bytes).map(Box::new));
        let ids = group.message_ids.iter().map(|id| MessageId::try_from(&id[..]).map_err(|e| bad(&e)));
        let messages = sequences().zip(ids).map(|(s, id)| Ok((s, id?)));
        let messages = messages.collect::<Result<_, DecodeError>>()?;
        Ok((key, Self { messages, bytes: group.bytes, ruled: ruled.transpose()? }))
    }
}

/// That a group began or ended, for whoever watches its age.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupChange {
    /// A group now waits, from this sequence on.
    Opened(GroupKey, Sequence),
    /// A group of a project's rules, which begins with this sequence, becomes a task in the first batch that is not before
    /// this time.
    Due(GroupKey, Sequence, TimeMs),
    /// The group that waited under this key is a task now.
    Closed(GroupKey),
}

/// What groups of rules hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    groups: usize,
    messages: usize,
    bytes: usize,
}

impl Load {
    fn is_too_much(&self) -> bool {
        self.groups > RULED_GROUPS_MAX || self.messages > RULED_MESSAGES_MAX || self.bytes > RULED_BYTES_MAX
    }

    /// `before` is a part of it, and is now `after`.
    fn change(&mut self, before: Self, after: Self) {
        let new = |all: usize, before: usize, after: usize| (all + after).saturating_sub(before);
        self.groups = new(self.groups, before.groups, after.groups);
        self.messages = new(self.messages, before.messages, after.messages);
        self.bytes = new(self.bytes, before.bytes, after.bytes);
    }
}

/// The open groups of a project.
#[derive(Debug, Clone, Default)]
struct OfProject {
    /// Where its rules say what belongs together, they made all of them: a change of rules ends those of before.
    by_first: BTreeMap<Sequence, GroupKey>,
    load: Load,
}

/// All open groups, by key and by age.
#[derive(Debug, Clone, Default)]
pub(crate) struct Groups {
    by_key: BTreeMap<GroupKey, OpenGroup>,
    by_first: BTreeMap<Sequence, GroupKey>,
    /// Those of projects' rules, by when they become tasks.
    by_due: BTreeSet<(TimeMs, GroupKey)>,
    by_project: BTreeMap<ProjectId, OfProject>,
    /// Projects by how many groups they have.
    by_count: BTreeSet<(usize, ProjectId)>,
}

impl Groups {
    pub fn get(&self, key: &GroupKey) -> Option<&OpenGroup> {
        self.by_key.get(key)
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// The oldest group of the project that has most.
    pub fn oldest_of_largest(&self) -> Option<&GroupKey> {
        let (_, project) = self.by_count.last()?;
        self.by_project.get(project)?.by_first.values().next()
    }

    /// The oldest group of a project whose rules keep more open than [`RULED_GROUPS_MAX`] and its like allow.
    pub fn oldest_of_too_much(&self, project: ProjectId) -> Option<&GroupKey> {
        self.by_project.get(&project).filter(|groups| groups.load.is_too_much())?.by_first.values().next()
    }

    /// The group that is due first, if that is not after `now`.
    pub fn first_due(&self, now: TimeMs) -> Option<&GroupKey> {
        self.by_due.first().filter(|(due, _)| *due <= now).map(|(_, key)| key)
    }

    /// All groups of a project, the oldest first.
    pub fn of_project(&self, project: ProjectId) -> Vec<GroupKey> {
        self.by_project.get(&project).map_or_else(Vec::new, |groups| groups.by_first.values().cloned().collect())
    }

    /// Since when a later window of the same group is open, in batch time: the next one, or the last.
    pub fn later_since_ms(&self, key: &GroupKey) -> Option<u64> {
        let behind = key.window?.checked_add(1)?;
        let mut later = self.by_key.range(key.family(Some(behind))..=key.family(Some(i64::MAX)));
        let ends = [later.next(), later.next_back()];
        ends.into_iter().flatten().filter_map(|(_, group)| Some(group.ruled.as_ref()?.since_ms())).min()
    }

    /// The window of the same group before this one. Those before it were passed when it began.
    pub fn window_before(&self, key: &GroupKey) -> Option<GroupKey> {
        key.window?;
        // None is before all.
        self.by_key.range(key.family(Some(i64::MIN))..key.clone()).next_back().map(|(key, _)| key.clone())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&GroupKey, &OpenGroup)> {
        self.by_key.iter()
    }

    pub fn insert(&mut self, key: GroupKey, group: OpenGroup) {
        let first = group.first_sequence();
        self.by_first.insert(first, key.clone());
        let groups = self.by_project.entry(key.project_id).or_default();
        self.by_count.remove(&(groups.by_first.len(), key.project_id));
        groups.by_first.insert(first, key.clone());
        self.by_count.insert((groups.by_first.len(), key.project_id));
        if let Some(due) = group.due() {
            self.by_due.insert((due, key.clone()));
            groups.load.change(Load::default(), group.load());
        }
        self.by_key.insert(key, group);
    }

    /// Adds a message; says whether the group is new.
    pub fn add(&mut self, key: &GroupKey, sequence: Sequence, id: MessageId, bytes: u64) -> bool {
        if let Some(group) = self.by_key.get_mut(key) {
            group.messages.push((sequence, id));
            group.bytes += bytes;
            return false;
        }
        self.insert(key.clone(), OpenGroup::of(sequence, id, bytes));
        true
    }

    /// Changes a group, and with it perhaps when it is due.
    pub fn change<T>(&mut self, key: &GroupKey, change: impl FnOnce(&mut OpenGroup) -> T) -> Option<T> {
        let group = self.by_key.get_mut(key)?;
        let (before, load_before) = (group.due(), group.load());
        let done = change(group);
        let (after, load) = (group.due(), group.load());
        if load != load_before
            && let Some(groups) = self.by_project.get_mut(&key.project_id)
        {
            groups.load.change(load_before, load);
        }
        if before != after {
            if let Some(before) = before {
                self.by_due.remove(&(before, key.clone()));
            }
            if let Some(after) = after {
                self.by_due.insert((after, key.clone()));
            }
        }
        Some(done)
    }

    pub fn take(&mut self, key: &GroupKey) -> Option<OpenGroup> {
        let group = self.by_key.remove(key)?;
        let first = group.first_sequence();
        self.by_first.remove(&first);
        if let Some(due) = group.due() {
            self.by_due.remove(&(due, key.clone()));
        }
        if let Some(groups) = self.by_project.get_mut(&key.project_id) {
            self.by_count.remove(&(groups.by_first.len(), key.project_id));
            groups.by_first.remove(&first);
            groups.load.change(group.load(), Load::default());
            if groups.by_first.is_empty() {
                self.by_project.remove(&key.project_id);
            } else {
                self.by_count.insert((groups.by_first.len(), key.project_id));
            }
        }
        Some(group)
    }
}
