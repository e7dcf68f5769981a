//! Groups of messages on their way to becoming tasks: when they begin, what joins them, and when they are closed.

use std::sync::Arc;

use lockstep_rules::{Accepted, Defaults, Group, Joining, LATE, Rules, Seen};
use lockstep_types::{Api, Height, Message, MessageId, OutputName, ProjectSettings, Ruled, Sequence, Task, TaskId};

use super::building::Building;
use crate::groups::{GroupKey, OpenGroup};
use crate::rules::Reached;

/// What one batch closes because its time has come, one for each message and for so many bytes of a payload; the rest waits
/// for the next batch.
const DUE_MAX: usize = 1 << 16;
const PAYLOAD_BYTES_FOR_DUE: usize = 64;
/// Bytes of a group's record, which is stored anew with every batch that adds to it, or of a task's payload, for which one
/// fuel is taken.
const RECORD_BYTES_FOR_FUEL: u64 = 8;

/// A message that its project's rules put into a group.
pub(super) struct Placed {
    rules: Arc<Rules>,
    accepted: Accepted,
    key: GroupKey,
    seen: Seen,
    /// How far the device's own time has come with it.
    pub reached: Option<Reached>,
    /// Its window was passed.
    pub late: bool,
}

fn defaults(settings: &ProjectSettings) -> Defaults {
    Defaults {
        messages_max: settings.group_messages_max,
        bytes_max: settings.group_bytes_max,
        age_max_ms: settings.group_age_max_ms,
    }
}

/// What closing a group counts for.
fn weight(group: &OpenGroup) -> usize {
    let payload_bytes = group.ruled.as_ref().map_or(0, |group| group.kept_bytes());
    group.messages.len() + payload_bytes / PAYLOAD_BYTES_FOR_DUE
}

impl Building<'_> {
    /// Groups of projects whose rules change with this batch become tasks, by the rules that they began with.
    pub(super) fn close_changing(&mut self) {
        let changing = self.ledger.projects.changing_at(self.height);
        let before = Height(self.height.0.saturating_sub(1));
        for project in changing {
            for key in self.ledger.groups.of_project(project) {
                self.close_open(&key, before);
            }
        }
    }

    /// Groups whose time has come become tasks.
    pub(super) fn close_due(&mut self) {
        while self.due_closed < DUE_MAX {
            let Some(key) = self.ledger.groups.first_due(self.time_ms).cloned() else { return };
            self.due_closed += self.ledger.groups.get(&key).map_or(1, weight);
            self.close_open(&key, self.height);
        }
    }

    /// Nothing is forgotten that is in an open group, and one may be open for a month. So where a network forgets, those that
    /// begin before a message end when the leader asks for room.
    pub(super) fn make_room(&mut self, before: Sequence) {
        let (limits, now) = (self.ledger.params().retention, self.time_ms.0);
        // What age comes to can be told from the log. What is on disks cannot: there the leader's word counts.
        let by_size = limits.bytes > 0 || limits.hard_bytes > 0;
        let is_old = |group: &OpenGroup| limits.age_ms > 0 && group.since().0.saturating_add(limits.age_ms) <= now;
        while self.due_closed < DUE_MAX {
            let Some((first, key)) = self.ledger.groups.oldest() else { return };
            let may = first < before && self.ledger.groups.get(key).is_some_and(|group| by_size || is_old(group));
            if !may {
                // Younger ones began later.
                return;
            }
            let key = key.clone();
            self.due_closed += self.ledger.groups.get(&key).map_or(1, weight);
            self.close_open(&key, self.height);
        }
    }

    fn close_open(&mut self, key: &GroupKey, rules_of: Height) -> Option<TaskId> {
        let group = self.ledger.groups.take(key)?;
        self.touched.insert(key.clone());
        Some(self.close(key.clone(), group, rules_of))
    }

    /// Where the project's rules put a message; nothing where they do not say.
    pub(super) fn place(&self, message: &Message, accepted: &Accepted) -> Option<Placed> {
        let rules = self.judges.packing(message.project_id)?;
        let together = rules.together(message.device, accepted);
        let before = self.judges.reached(message);
        let (of_device, reached) = (together.is_of_device(), together.reached(before));
        let reached = reached.and_then(|window| self.judges.in_window(message.project_id, window));
        let key = GroupKey::ruled(message, together);
        let groups = &self.ledger.groups;
        let open = groups.get(&key);
        let seen = Seen {
            is_open: open.is_some(),
            is_open_late: open.and_then(|open| open.ruled.as_ref()).is_some_and(|group| group.is_late()),
            later_since_ms: groups.later_since_ms(&key),
            reached: before.filter(|_| of_device),
        };
        let late = rules.is_late(accepted, &seen, self.time_ms.0);
        let mut accepted = accepted.clone();
        if late {
            accepted.flags.push(LATE.to_owned());
        }
        Some(Placed { rules, accepted, key, seen, reached, late })
    }

    /// Adds a message to its group; returns the task if that closed the group.
    pub(super) fn pack(
        &mut self,
        message: &Message,
        (sequence, id): (Sequence, MessageId),
        placed: Option<Placed>,
    ) -> Option<TaskId> {
        let settings = self.ledger.projects.settings(message.project_id)?.clone();
        let (key, task) = match placed {
            Some(placed) => (placed.key.clone(), self.join(message, (sequence, id), placed, defaults(&settings))),
            None => (GroupKey::of(message), self.join_plain(message, (sequence, id), &settings)),
        };
        let mut own = task;
        let too_much = |building: &Self| {
            let groups = &building.ledger.groups;
            if let Some(key) = groups.oldest_of_too_much(message.project_id) {
                return Some(key.clone());
            }
            let is_excess = groups.len() as u64 > building.ledger.params().open_groups_max;
            groups.oldest_of_largest().filter(|_| is_excess).cloned()
        };
        while let Some(excess) = too_much(self) {
            let closed = self.close_open(&excess, self.height);
            // It may be the very group that the message has joined.
            if own.is_none() && excess == key {
                own = closed;
            }
        }
        own
    }

    fn join_plain(
        &mut self,
        message: &Message,
        (sequence, id): (Sequence, MessageId),
        settings: &ProjectSettings,
    ) -> Option<TaskId> {
        let key = GroupKey::of(message);
        let bytes = message.data.len() as u64;
        // The API of 2025 promises one task for each request.
        let begins = self.ledger.groups.get(&key).is_none();
        if begins || message.api == Api::TaskV1 {
            let group = OpenGroup::of((sequence, id), bytes, self.time_ms, settings.group_age_max_ms);
            if message.api == Api::TaskV1 || group.is_full(settings) {
                return Some(self.close(key, group, self.height));
            }
            self.touched.insert(key.clone());
            self.ledger.groups.insert(key, group);
            return None;
        }
        self.ledger.groups.change(&key, |group| {
            group.messages.push((sequence, id));
            group.bytes = group.bytes.saturating_add(bytes);
        });
        self.touched.insert(key.clone());
        if self.ledger.groups.get(&key).is_some_and(|group| group.is_full(settings)) {
            return self.close_open(&key, self.height);
        }
        None
    }

    fn join(
        &mut self,
        message: &Message,
        (sequence, id): (Sequence, MessageId),
        placed: Placed,
        defaults: Defaults,
    ) -> Option<TaskId> {
        let Placed { rules, accepted, key, seen, late, .. } = placed;
        let now = self.time_ms.0;
        let bytes = message.data.len() as u64;
        let joining = Joining { accepted: &accepted, sequence, bytes, time_ms: now };
        self.pass_window_before(&rules, &key);
        let alone = message.api == Api::TaskV1;
        let task = if alone || !seen.is_open {
            let mut group = Group::begin(&rules, defaults, &seen, late, now);
            let is_complete = group.add(&rules, defaults, &joining);
            self.pay_for_joining(message, &rules, group.kept_bytes());
            let opened = OpenGroup {
                ruled: Some(Box::new(group)),
                ..OpenGroup::of((sequence, id), bytes, self.time_ms, defaults.age_max_ms)
            };
            if alone || is_complete {
                Some(self.close(key.clone(), opened, self.height))
            } else {
                self.ledger.groups.insert(key.clone(), opened);
                self.touched.insert(key.clone());
                None
            }
        } else {
            self.touched.insert(key.clone());
            let added = self.ledger.groups.change(&key, |open| {
                open.messages.push((sequence, id));
                open.bytes = open.bytes.saturating_add(bytes);
                let is_complete = open.ruled.as_mut().is_none_or(|group| group.add(&rules, defaults, &joining));
                (is_complete, open.ruled.as_ref().map_or(0, |group| group.kept_bytes()))
            });
            let (is_complete, kept_bytes) = added.unwrap_or_default();
            self.pay_for_joining(message, &rules, kept_bytes);
            if is_complete { self.close_open(&key, self.height) } else { None }
        };
        self.close_due();
        task
    }

    /// A message of a window passes the one before it, which passed those before it when it began.
    fn pass_window_before(&mut self, rules: &Rules, key: &GroupKey) {
        let Some(before) = self.ledger.groups.window_before(key) else { return };
        let now = self.time_ms.0;
        let due = |open: &OpenGroup| open.due();
        let known = self.ledger.groups.get(&before).map(due);
        self.ledger.groups.change(&before, |open| {
            if let Some(group) = &mut open.ruled {
                group.pass(rules, now);
            }
        });
        if self.ledger.groups.get(&before).map(due) != known {
            self.touched.insert(before);
        }
    }

    /// Makes a task of a group, by the rules that hold for the batch `rules_of`.
    fn close(&mut self, key: GroupKey, group: OpenGroup, rules_of: Height) -> TaskId {
        let number = self.ledger.head.next_task_number;
        self.ledger.head.next_task_number = number.next();
        let first = group.first_sequence();
        for (sequence, _) in group.messages.iter().filter(|(sequence, _)| *sequence < self.first_sequence) {
            self.effects.packed(*sequence, number);
        }
        let (messages, ruled) = self.in_task_order(&key, group, rules_of);
        let ids = messages.iter().map(|(_, id)| id);
        let with_device = ruled.as_deref().map(|ruled| (ruled, &key.device));
        let id = Task::id_of(&self.ledger.network, key.project_id, first, ids, with_device);
        self.effects.task_place(id, number);
        if let Some(state) = self.ledger.rules.get_mut(&key.project_id) {
            state.tasks += 1;
            // What is kept of many messages can be far more than each of them was.
            let payload = ruled.as_ref().and_then(|ruled| ruled.payload.as_ref());
            state.fuel.spend(payload.map_or(0, |payload| payload.len() as u64 / RECORD_BYTES_FOR_FUEL));
            self.judged.insert(key.project_id);
        }
        self.tasks.push(Task {
            number,
            id,
            project_id: key.project_id,
            project_version: key.project_version,
            device: key.device,
            sequences: messages.into_iter().map(|(sequence, _)| sequence).collect(),
            ruled,
        });
        id
    }

    /// The messages of a group as its task has them, and what the rules make of them.
    fn in_task_order(
        &self,
        key: &GroupKey,
        group: OpenGroup,
        rules_of: Height,
    ) -> (Vec<(Sequence, MessageId)>, Option<Box<Ruled>>) {
        let Some(state) = group.ruled else { return (group.messages, None) };
        let mut ruled = Ruled { group: key.name.clone(), window: key.window, ..Ruled::default() };
        let Some(rules) = self.ledger.projects.rules_at(key.project_id, rules_of) else {
            // Cannot be: rules are kept for as long as groups of theirs are open.
            return (group.messages, Some(Box::new(ruled)));
        };
        let packed = state.pack(rules);
        let named = |name: &String| name.parse::<OutputName>().ok();
        ruled.outputs = rules.document().route.outputs.as_ref().map(|names| names.iter().filter_map(named).collect());
        ruled.payload = packed.payload.map(Into::into);
        let id_of = |sequence: &Sequence| {
            let place = group.messages.binary_search_by_key(sequence, |(sequence, _)| *sequence).ok()?;
            group.messages.get(place).copied()
        };
        (packed.sequences.iter().filter_map(id_of).collect(), Some(Box::new(ruled)))
    }

    fn pay_for_joining(&mut self, message: &Message, rules: &Rules, kept_bytes: usize) {
        if let Some(state) = self.ledger.rules.get_mut(&message.project_id) {
            state.fuel.spend(rules.joining_fuel(message.data.len() as u64, kept_bytes as u64));
        }
    }

    /// What the records of groups cost that are stored with this batch: their projects pay.
    pub(super) fn pay_for_groups(&mut self) {
        for key in &self.touched {
            let Some(group) = self.ledger.groups.get(key).filter(|group| group.ruled.is_some()) else { continue };
            let Some(state) = self.ledger.rules.get_mut(&key.project_id) else { continue };
            state.fuel.spend(group.encode(key).len() as u64 / RECORD_BYTES_FOR_FUEL);
            self.judged.insert(key.project_id);
        }
    }
}

impl Placed {
    /// What marks the message.
    pub(super) fn flags(&self) -> &[String] {
        &self.accepted.flags
    }
}
