//! Messages on their way to becoming one task: which belong together, when they are complete, in which order they stand and
//! what they come to. Pure: batch time and places in the order are arguments.

use lockstep_types::{Address, Sequence};
use serde_json::Value;

use crate::document::{GroupBy, SortBy};
use crate::judge::{Accepted, Input, Rules};
use crate::reduce::{Reduced, payload};

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
}

/// Whether a group becomes a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// It waits for more.
    Open,
    /// It is complete.
    Now,
    /// It is complete, and waits so many milliseconds for what comes late.
    After(u64),
}

/// A group.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    messages: Vec<(i64, Sequence)>,
    bytes: u64,
    reduced: Vec<Reduced>,
}

/// What becomes of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    /// Its messages, in the task's order.
    pub sequences: Vec<Sequence>,
    /// The payload, where the rules reduce; else the messages' own.
    pub payload: Option<String>,
}

impl Rules {
    /// Which group a message belongs to.
    pub fn together(&self, input: &Input, accepted: &Accepted) -> Together {
        let by_device = self.document().aggregate.by == GroupBy::Device && accepted.group.is_none();
        Together {
            device: if by_device { input.device } else { Address::ZERO },
            name: accepted.group.clone().unwrap_or_default(),
            window: accepted.window,
        }
    }
}

impl Group {
    /// Adds a message of `bytes` bytes, and says whether the group is complete with it.
    pub fn add(
        &mut self,
        rules: &Rules,
        defaults: Defaults,
        (input, accepted): (&Input, &Accepted),
        sequence: Sequence,
    ) -> Closing {
        let order = match rules.sort().by {
            SortBy::Arrival => 0,
            SortBy::Time => accepted.time_ms.unwrap_or_default(),
            SortBy::Nonce => input.nonce.and_then(|nonce| i64::try_from(nonce).ok()).unwrap_or_default(),
        };
        self.messages.push((order, sequence));
        self.bytes = self.bytes.saturating_add(input.data.len() as u64);
        self.reduced.resize_with(accepted.values.len(), Reduced::default);
        for ((reduced, value), (_, with)) in self.reduced.iter_mut().zip(&accepted.values).zip(rules.reductions()) {
            reduced.take(with, value, order, sequence);
        }
        let aggregate = &rules.document().aggregate;
        let count = aggregate.count.unwrap_or(defaults.messages_max);
        let bytes = aggregate.bytes.unwrap_or(defaults.bytes_max);
        let full = self.messages.len() as u64 >= count || self.bytes >= bytes;
        match rules.sort().hold_ms {
            // Who has reached a limit does not wait.
            _ if full => Closing::Now,
            0 if accepted.closes => Closing::Now,
            hold if accepted.closes => Closing::After(hold),
            _ => Closing::Open,
        }
    }

    /// How many messages it has.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Makes what becomes a task.
    pub fn pack(mut self, rules: &Rules) -> Packed {
        self.messages.sort_unstable();
        let values: Vec<(&String, Value)> =
            rules.reductions().zip(&self.reduced).map(|((name, with), reduced)| (name, reduced.result(with))).collect();
        let payload = (!values.is_empty()).then(|| payload(values.into_iter()));
        Packed { sequences: self.messages.into_iter().map(|(_, sequence)| sequence).collect(), payload }
    }
}
