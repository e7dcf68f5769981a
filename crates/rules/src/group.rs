//! Messages on their way to becoming one task: which belong together, when they are complete, in which order they stand and
//! what they come to. Pure: batch time and places in the order are arguments.

use lockstep_types::{Address, DecodeError, Sequence, proto};
use serde_json::Value;

use crate::document::{Aggregate, GroupBy, Reduction, Sort, SortBy};
use crate::engine::Rules;
use crate::judge::Accepted;
use crate::limits::{GROUP_BYTES_MAX, GROUP_MESSAGES_MAX};
use crate::reduce::{Reduced, payload};

/// A flag for what comes after its window was passed.
pub const LATE: &str = "late";

/// What the messages of a group share, beside their project and its version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Together {
    /// Their device; zeros where messages of several are in one group.
    pub device: Address,
    /// The name of their group; empty where there is none.
    pub name: String,
    /// Their window of the device's time.
    pub window: Option<i64>,
}

/// The project's settings, which hold where its rules say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Messages that close a group.
    pub messages_max: u64,
    /// Bytes that close a group.
    pub bytes_max: u64,
    /// Age that closes a group, in milliseconds.
    pub age_max_ms: u64,
}

/// What is known of a window when a message of it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Whether its group is open.
    pub is_open: bool,
    /// Whether the open group began late.
    pub is_open_late: bool,
    /// Since when a later window of the same group is open, the next one or the last, in milliseconds of batch time.
    pub later_since_ms: Option<u64>,
    /// The latest window that a message of the device was in before, since these rules hold. Nothing where a group is not of
    /// one device: where one measures for many, its own time says nothing of each.
    pub reached: Option<i64>,
}

/// A message that joins a group.
#[derive(Debug, Clone, Copy)]
pub struct Joining<'a> {
    /// What the rules know of it.
    pub accepted: &'a Accepted,
    /// Its place.
    pub sequence: Sequence,
    /// Bytes of its data.
    pub bytes: u64,
    /// The time of its batch.
    pub time_ms: u64,
}

/// A group.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    messages: Vec<(i64, Sequence)>,
    bytes: u64,
    reduced: Vec<Reduced>,
    since_ms: u64,
    due_ms: u64,
    is_late: bool,
}

/// What becomes of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    /// Its messages, in the task's order.
    pub sequences: Vec<Sequence>,
    /// The payload, where the rules reduce; else the messages' own.
    pub payload: Option<String>,
}

impl Together {
    /// Whether the group is of one device.
    pub fn is_of_device(&self) -> bool {
        self.device != Address::ZERO && self.name.is_empty()
    }

    /// The latest window that the device has been in with this message, where that was `before` until now. One of a group of
    /// several devices changes nothing.
    pub fn reached(&self, before: Option<i64>) -> Option<i64> {
        self.window.filter(|_| self.is_of_device()).max(before)
    }
}

impl Rules {
    /// Whether they say anything about groups and tasks. Where they do not, messages are packed as without rules.
    pub fn packs(&self) -> bool {
        let document = self.document();
        let plain = document.sort == Sort::default() && document.aggregate == Aggregate::default();
        // A module may name groups.
        !plain || document.route.outputs.is_some() || document.code.is_some()
    }

    /// How messages are sorted within a task.
    pub fn sort(&self) -> &Sort {
        &self.document().sort
    }

    /// Names of reduced values, in order, and what is made of each.
    pub fn reductions(&self) -> impl Iterator<Item = (&String, Reduction)> {
        self.document().aggregate.reduce.iter().map(|(name, reduce)| (name, reduce.with))
    }

    /// Whether it matters how far a device's own time has come.
    pub fn needs_reached(&self) -> bool {
        let aggregate = &self.document().aggregate;
        aggregate.window_ms.is_some() && aggregate.by == GroupBy::Device
    }

    /// Fuel that a message of so many bytes takes on its way into its group, whose reductions keep so many then. A merge takes
    /// both apart and puts them together again, and pays for each byte.
    pub fn joining_fuel(&self, bytes: u64, kept_bytes: u64) -> u64 {
        let merges = self.reductions().filter(|(_, with)| *with == Reduction::Merge).count() as u64;
        let merged_bytes = if merges > 0 { merges * bytes + kept_bytes } else { 0 };
        self.reductions().count() as u64 + merged_bytes
    }

    /// Which group a message belongs to.
    pub fn together(&self, device: Address, accepted: &Accepted) -> Together {
        let by_device = self.document().aggregate.by == GroupBy::Device && accepted.group.is_none();
        Together {
            device: if by_device { device } else { Address::ZERO },
            name: accepted.group.clone().unwrap_or_default(),
            window: accepted.window,
        }
    }

    /// Whether a message comes late: its window was passed longer ago than the rules wait, and its group is not open, or
    /// is one of late messages.
    pub fn is_late(&self, accepted: &Accepted, seen: &Seen, now_ms: u64) -> bool {
        let Some(window) = accepted.window else { return false };
        if seen.is_open {
            return seen.is_open_late;
        }
        let passed = |since_ms: u64| since_ms.saturating_add(self.sort().hold_ms) <= now_ms;
        let went_on = |reached: i64| reached > window;
        // Where a later window is open, it says since when; else only the device says that there was one.
        seen.later_since_ms.map_or_else(|| seen.reached.is_some_and(went_on), passed)
    }

    /// The age at which a group becomes a task, in milliseconds.
    fn age_ms(&self, defaults: Defaults) -> u64 {
        let aggregate = &self.document().aggregate;
        // A window ends with the next one; where none comes, it has had its length in any case.
        let window = aggregate.window_ms.map_or(0, |length| length.saturating_add(self.sort().hold_ms));
        aggregate.age_ms.unwrap_or_else(|| window.saturating_add(defaults.age_max_ms))
    }
}

impl Group {
    /// A group that begins with a message, which is not in it yet.
    pub fn begin(rules: &Rules, defaults: Defaults, seen: &Seen, late: bool, now_ms: u64) -> Self {
        let mut due_ms = now_ms.saturating_add(rules.age_ms(defaults));
        // It is passed already, and waits for others as any does.
        let passed_ms = if late { Some(now_ms) } else { seen.later_since_ms };
        if let Some(passed_ms) = passed_ms {
            due_ms = due_ms.min(passed_ms.saturating_add(rules.sort().hold_ms));
        }
        Self { messages: Vec::new(), bytes: 0, reduced: Vec::new(), since_ms: now_ms, due_ms, is_late: late }
    }

    /// Adds a message, and says whether the group is complete with it and waits for nothing.
    pub fn add(&mut self, rules: &Rules, defaults: Defaults, joining: &Joining<'_>) -> bool {
        let Joining { accepted, sequence, .. } = *joining;
        let order = match rules.sort().by {
            SortBy::Arrival => 0,
            SortBy::Time => accepted.time_ms.unwrap_or_default(),
            SortBy::Nonce => accepted.nonce.unwrap_or_default(),
        };
        self.messages.push((order, sequence));
        self.bytes = self.bytes.saturating_add(joining.bytes);
        self.reduced.resize_with(accepted.values.len(), Reduced::default);
        for ((reduced, value), (_, with)) in self.reduced.iter_mut().zip(&accepted.values).zip(rules.reductions()) {
            reduced.take(with, value, order, sequence);
        }
        let aggregate = &rules.document().aggregate;
        let count = aggregate.count.unwrap_or(defaults.messages_max).min(GROUP_MESSAGES_MAX);
        let bytes = aggregate.bytes.unwrap_or(defaults.bytes_max).min(GROUP_BYTES_MAX);
        if accepted.closes {
            self.pass(rules, joining.time_ms);
        }
        // Who has reached a limit does not wait.
        let full = self.messages.len() as u64 >= count || self.bytes >= bytes;
        full || self.due_ms <= joining.time_ms
    }

    /// It is complete, and waits only for what comes late.
    pub fn pass(&mut self, rules: &Rules, now_ms: u64) {
        self.due_ms = self.due_ms.min(now_ms.saturating_add(rules.sort().hold_ms));
    }

    /// When it becomes a task, in milliseconds of batch time, unless it is complete before.
    pub fn due_ms(&self) -> u64 {
        self.due_ms
    }

    /// The time of the batch that it began in.
    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// Whether it began with a message that was late.
    pub fn is_late(&self) -> bool {
        self.is_late
    }

    /// Bytes of what its reductions keep.
    pub fn kept_bytes(&self) -> usize {
        self.reduced.iter().map(Reduced::kept_bytes).sum()
    }

    /// By what the message at this place, in the order of joining, is sorted.
    pub fn order(&self, at: usize) -> i64 {
        self.messages.get(at).map_or(0, |(order, _)| *order)
    }

    /// How many messages it has.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Bytes of their data.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes what becomes a task.
    pub fn pack(mut self, rules: &Rules) -> Packed {
        self.messages.sort_unstable();
        let values: Vec<(&String, Value)> =
            rules.reductions().zip(&self.reduced).map(|((name, with), reduced)| (name, reduced.result(with))).collect();
        let payload = (!values.is_empty()).then(|| payload(values.into_iter()));
        Packed { sequences: self.messages.into_iter().map(|(_, sequence)| sequence).collect(), payload }
    }

    /// The stored form, without what every open group has: messages, bytes and times.
    pub fn to_proto(&self) -> proto::RuledGroup {
        proto::RuledGroup { reduced: self.reduced.iter().map(Reduced::to_proto).collect(), is_late: self.is_late }
    }

    /// Reads the stored form, given the group's messages by ascending sequence, each behind that by which it is sorted,
    /// their bytes, and since when it is open and when it is due.
    ///
    /// # Errors
    /// It is damaged.
    pub fn from_proto(
        group: proto::RuledGroup,
        messages: Vec<(i64, Sequence)>,
        bytes: u64,
        (since_ms, due_ms): (u64, u64),
    ) -> Result<Self, DecodeError> {
        let reduced = group.reduced.into_iter().map(Reduced::from_proto).collect::<Result<_, _>>()?;
        Ok(Self { messages, bytes, reduced, since_ms, due_ms, is_late: group.is_late })
    }
}
