//! Groups of messages on their way to becoming tasks.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lockstep_rules::{Group, Together};
use lockstep_types::{Address, DecodeError, Message, MessageId, ProjectId, ProjectSettings, Sequence, TimeMs, proto};
use prost::Message as _;

/// Messages in open groups of one project. Beyond it the project's oldest group becomes a task, so that a project that has
/// many closes its own, and none of another.
pub const WAITING_MESSAGES_MAX: usize = 1 << 18;
/// The same for open groups of a project whose rules say what belongs together, so that what ends with a change of its
/// rules has a bound.
pub const RULED_GROUPS_MAX: usize = 4_096;
/// The same for bytes that their reductions keep.
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

/// A group that is not yet a task. It is stored in pieces: a record of the group, whose size does not depend on how many
/// messages it has, and one of each message ([`Waiting`]).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OpenGroup {
    /// Its messages, in the order of the network.
    pub messages: Vec<(Sequence, MessageId)>,
    /// Sum of their payload bytes.
    pub bytes: u64,
    /// Time of the batch that it began in.
    pub since: TimeMs,
    /// When it becomes a task, in batch time, by the settings that its project had when it began.
    pub due: TimeMs,
    /// What the project's rules know of it; nothing where they do not say what belongs together. They say when it is due.
    pub ruled: Option<Box<Group>>,
}

/// A message in an open group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The first message of its group.
    pub first: Sequence,
    /// Its id.
    pub id: MessageId,
    /// By what its project's rules sort it; 0 where they do not.
    pub order: i64,
}

impl Waiting {
    /// The stored record: the group's first sequence and the order, big-endian, then the id.
    pub fn encode(&self) -> [u8; 48] {
        let mut out = [0; 48];
        out[..8].copy_from_slice(&self.first.0.to_be_bytes());
        out[8..16].copy_from_slice(&self.order.to_be_bytes());
        out[16..].copy_from_slice(&self.id.0);
        out
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// It is not 48 bytes.
    pub fn decode(record: &[u8]) -> Result<Self, DecodeError> {
        let bad = || DecodeError::malformed("waiting message", "not 48 bytes");
        let (first, rest) = record.split_first_chunk::<8>().ok_or_else(bad)?;
        let (order, id) = rest.split_first_chunk::<8>().ok_or_else(bad)?;
        Ok(Self {
            first: Sequence(u64::from_be_bytes(*first)),
            order: i64::from_be_bytes(*order),
            id: MessageId::try_from(id).map_err(|_| bad())?,
        })
    }
}

impl OpenGroup {
    /// A group that begins with a message.
    pub fn of((sequence, id): (Sequence, MessageId), bytes: u64, since: TimeMs, age_max_ms: u64) -> Self {
        let due = TimeMs(since.0.saturating_add(age_max_ms));
        Self { messages: vec![(sequence, id)], bytes, since, due, ruled: None }
    }

    /// Sequence of the first message.
    pub fn first_sequence(&self) -> Sequence {
        self.messages.first().map_or(Sequence(0), |(sequence, _)| *sequence)
    }

    /// Whether it must become a task now.
    pub fn is_full(&self, settings: &ProjectSettings) -> bool {
        self.messages.len() as u64 >= settings.group_messages_max || self.bytes >= settings.group_bytes_max
    }

    /// What counts towards the limits of its project.
    fn load(&self) -> Load {
        let kept = self.ruled.as_ref().map(|group| group.kept_bytes());
        Load { ruled_groups: usize::from(kept.is_some()), messages: self.messages.len(), bytes: kept.unwrap_or(0) }
    }

    /// Time of the batch that it began in.
    pub fn since(&self) -> TimeMs {
        self.ruled.as_ref().map_or(self.since, |group| TimeMs(group.since_ms()))
    }

    /// The time of the first batch that makes it a task, if nothing has before.
    pub fn due(&self) -> TimeMs {
        self.ruled.as_ref().map_or(self.due, |group| TimeMs(group.due_ms()))
    }

    /// The messages that joined it from this sequence on, for their records.
    pub fn waiting_from(&self, sequence: Sequence) -> impl Iterator<Item = (Sequence, Waiting)> {
        let (first, joined) = (self.first_sequence(), self.messages.partition_point(|(s, _)| *s < sequence));
        let order = move |at: usize| self.ruled.as_ref().map_or(0, |group| group.order(at));
        let waiting =
            move |(at, (s, id)): (usize, &(Sequence, MessageId))| (*s, Waiting { first, id: *id, order: order(at) });
        self.messages.iter().enumerate().skip(joined).map(waiting)
    }

    /// The stored record, without the messages; it repeats the key, so that groups can be loaded by a scan.
    pub fn encode(&self, key: &GroupKey) -> Vec<u8> {
        proto::OpenGroup {
            project_id: key.project_id.0,
            project_version: key.project_version.clone(),
            device: Bytes::copy_from_slice(&key.device.0),
            first_sequence: self.first_sequence().0,
            messages: self.messages.len() as u64,
            bytes: self.bytes,
            since_ms: self.since().0,
            due_ms: self.due().0,
            name: key.name.clone(),
            window: key.window,
            ruled: self.ruled.as_ref().map(|group| group.to_proto()),
        }
        .encode_to_vec()
    }

    /// Reads all stored groups: their records, and those of the messages in them by ascending sequence.
    ///
    /// # Errors
    /// A record is damaged, or they do not belong together.
    pub fn decode_all(
        records: impl IntoIterator<Item = Bytes>,
        waiting: impl IntoIterator<Item = (Sequence, Waiting)>,
    ) -> Result<Vec<(GroupKey, Self)>, DecodeError> {
        let bad = |reason: &str| DecodeError::malformed("open group", reason);
        let mut messages: BTreeMap<Sequence, Vec<(Sequence, Waiting)>> = BTreeMap::new();
        for (sequence, message) in waiting {
            messages.entry(message.first).or_default().push((sequence, message));
        }
        let mut groups = Vec::new();
        for record in records {
            let record = GroupRecord::decode(record)?;
            let own = messages.remove(&Sequence(record.group.first_sequence)).unwrap_or_default();
            groups.push(record.with(&own)?);
        }
        if !messages.is_empty() {
            return Err(bad("messages wait for a group that is not open"));
        }
        Ok(groups)
    }
}

/// The stored record of a group.
#[derive(Debug)]
pub struct GroupRecord {
    key: GroupKey,
    group: proto::OpenGroup,
}

impl GroupRecord {
    /// Reads one.
    ///
    /// # Errors
    /// It is damaged.
    pub fn decode(record: Bytes) -> Result<Self, DecodeError> {
        let bad = |e: &dyn std::fmt::Display| DecodeError::malformed("open group", e);
        let mut group = proto::OpenGroup::decode(record).map_err(|e| bad(&e))?;
        let key = GroupKey {
            project_id: ProjectId(group.project_id),
            project_version: std::mem::take(&mut group.project_version),
            device: Address::try_from(&group.device[..]).map_err(|e| bad(&e))?,
            name: std::mem::take(&mut group.name),
            window: group.window,
        };
        Ok(Self { key, group })
    }

    /// Its first message.
    pub fn first_sequence(&self) -> Sequence {
        Sequence(self.group.first_sequence)
    }

    /// How many messages it has.
    pub fn messages(&self) -> u64 {
        self.group.messages
    }

    /// The group with its messages.
    fn with(self, waiting: &[(Sequence, Waiting)]) -> Result<(GroupKey, OpenGroup), DecodeError> {
        let Self { key, group } = self;
        let bad = |reason: &str| DecodeError::malformed("open group", reason);
        let first = waiting.first().ok_or_else(|| bad("it has no messages"))?.0;
        if waiting.len() as u64 != group.messages || first.0 != group.first_sequence {
            return Err(bad("its messages are not those that it had"));
        }
        let orders = waiting.iter().map(|(sequence, message)| (message.order, *sequence)).collect();
        let ruled = group
            .ruled
            .map(|ruled| Group::from_proto(ruled, orders, group.bytes, (group.since_ms, group.due_ms)).map(Box::new));
        let messages = waiting.iter().map(|(sequence, message)| (*sequence, message.id)).collect();
        let (since, due) = (TimeMs(group.since_ms), TimeMs(group.due_ms));
        Ok((key, OpenGroup { messages, bytes: group.bytes, since, due, ruled: ruled.transpose()? }))
    }
}

/// What open groups hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    ruled_groups: usize,
    messages: usize,
    bytes: usize,
}

impl Load {
    fn is_too_much(&self) -> bool {
        self.ruled_groups > RULED_GROUPS_MAX || self.messages > WAITING_MESSAGES_MAX || self.bytes > RULED_BYTES_MAX
    }

    /// `before` is a part of it, and is now `after`.
    fn change(&mut self, before: Self, after: Self) {
        let new = |all: usize, before: usize, after: usize| (all + after).saturating_sub(before);
        self.ruled_groups = new(self.ruled_groups, before.ruled_groups, after.ruled_groups);
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
    /// By when they become tasks, and then by age.
    by_due: BTreeSet<(TimeMs, Sequence)>,
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

    /// The oldest group.
    pub fn oldest(&self) -> Option<(Sequence, &GroupKey)> {
        self.by_first.iter().next().map(|(first, key)| (*first, key))
    }

    /// The oldest group of the project that has most.
    pub fn oldest_of_largest(&self) -> Option<&GroupKey> {
        let (_, project) = self.by_count.last()?;
        self.by_project.get(project)?.by_first.values().next()
    }

    /// The oldest group of a project that keeps more open than [`WAITING_MESSAGES_MAX`] and its like allow.
    pub fn oldest_of_too_much(&self, project: ProjectId) -> Option<&GroupKey> {
        self.by_project.get(&project).filter(|groups| groups.load.is_too_much())?.by_first.values().next()
    }

    /// The group that is due first, if that is not after `now`.
    pub fn first_due(&self, now: TimeMs) -> Option<&GroupKey> {
        let (_, first) = self.by_due.first().filter(|(due, _)| *due <= now)?;
        self.by_first.get(first)
    }

    /// When the next group becomes a task, in batch time.
    pub fn next_due(&self) -> Option<TimeMs> {
        self.by_due.first().map(|(due, _)| *due)
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
        self.by_due.insert((group.due(), first));
        groups.load.change(Load::default(), group.load());
        self.by_key.insert(key, group);
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
            let first = group.first_sequence();
            self.by_due.remove(&(before, first));
            self.by_due.insert((after, first));
        }
        Some(done)
    }

    pub fn take(&mut self, key: &GroupKey) -> Option<OpenGroup> {
        let group = self.by_key.remove(key)?;
        let first = group.first_sequence();
        self.by_first.remove(&first);
        self.by_due.remove(&(group.due(), first));
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
