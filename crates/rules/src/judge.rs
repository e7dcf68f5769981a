//! What rules are given of a message, and what they say of it.

use std::fmt;

use bytes::Bytes;
use lockstep_types::Address;
use serde_json::Value as Json;

/// A message, as rules see it.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its data.
    pub data: Bytes,
    /// Its device; zeros where it has none.
    pub device: Address,
    /// Its project version.
    pub version: String,
    /// Its nonce, where it has one.
    pub nonce: Option<u64>,
    /// The time of its batch, in milliseconds since 1970.
    pub time_ms: u64,
    /// The device's last message that rules of the project accepted, where [`Rules::needs_last`](crate::Rules::needs_last).
    pub last: Option<Last>,
}

/// A message that was accepted before.
#[derive(Debug, Clone)]
pub struct Last {
    /// Its data.
    pub data: Bytes,
    /// The time of its batch, in milliseconds since 1970.
    pub time_ms: u64,
}

/// A stage of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Reading the data.
    Decode,
    /// The schema.
    Schema,
    /// Expressions that must hold.
    Expect,
    /// Dropping and flagging.
    Filter,
    /// The module.
    Code,
    /// Time, group and values of the message.
    Aggregate,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decode => "decode",
            Self::Schema => "schema",
            Self::Expect => "expect",
            Self::Filter => "filter",
            Self::Code => "code",
            Self::Aggregate => "aggregate",
        })
    }
}

/// Why a message is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the project's rules do not take this message ({stage}: {reason}): {detail}")]
pub struct Refusal {
    /// The stage that refused it.
    pub stage: Stage,
    /// A word for why: the document's own, or `unreadable`, `schema`, `failed` (an expression or module had no result) or
    /// `fuel`.
    pub reason: String,
    /// A sentence.
    pub detail: String,
    /// Whether the message is well and only not wanted.
    pub dropped: bool,
}

/// What is known of a message that is taken.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Accepted {
    /// Words of the document and the module.
    pub flags: Vec<String>,
    /// The device's time in milliseconds since 1970, where the document says how.
    pub time_ms: Option<i64>,
    /// What the document sorts by, where that is a nonce.
    pub nonce: Option<i64>,
    /// The name of its group, where messages are not grouped by device or project.
    pub group: Option<String>,
    /// The window that it falls into, by its number.
    pub window: Option<i64>,
    /// Whether its group is complete with it.
    pub closes: bool,
    /// Values for the reductions, in the order of their names.
    pub values: Vec<Json>,
}

/// What rules make of a message, and what that took.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Taken, or not.
    pub result: Result<Accepted, Refusal>,
    /// Fuel that was used.
    pub fuel: u64,
}

/// What a stage did with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The stage.
    pub stage: Stage,
    /// What it did, in a few words.
    pub did: String,
    /// Fuel that it took.
    pub fuel: u64,
}
