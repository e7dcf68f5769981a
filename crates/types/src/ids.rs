//! Newtypes for every id, height, sequence and hash: hex for people, bytes on the wire.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text or byte string that is not the id it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 0x and {expected} hex digits")]
pub struct ParseIdError {
    expected: usize,
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;
            /// All bytes zero: stands for "none" where a format has a fixed place for the id.
            pub const ZERO: Self = Self([0; $len]);

            /// The id's bytes.
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = ParseIdError;
            fn try_from(bytes: &[u8]) -> Result<Self, ParseIdError> {
                Ok(Self(bytes.try_into().map_err(|_| ParseIdError { expected: 2 * $len })?))
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::ZERO
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "0x{}", hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let digits = text.strip_prefix("0x").unwrap_or(text);
                let mut bytes = [0; $len];
                hex::decode_to_slice(digits, &mut bytes).map_err(|_| ParseIdError { expected: 2 * $len })?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The number that follows. The last one of all follows itself: numbers come from peers and clients too,
            /// and none that this network gave comes near it.
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

byte_id!(
    /// Last 20 bytes of keccak256 over a secp256k1 public key: a device or a node as an EVM chain names it.
    Address, 20
);
byte_id!(
    /// Hash of what a message says (never of its signature): a retry has the same.
    ContentId, 32
);
byte_id!(
    /// Names one ordered message: the content id at its first occurrence, a hash of it and the count later.
    MessageId, 32
);
byte_id!(
    /// Names one task; the same whichever node publishes it.
    TaskId, 32
);
byte_id!(
    /// Hash of a batch header.
    BatchHash, 32
);
byte_id!(
    /// Hash of a genesis file; part of every protocol id and every hashed header.
    NetworkId, 32
);
byte_id!(
    /// A random number made with a store. A node that lost its disk has another one, and cannot vote as the old.
    Incarnation, 16
);
byte_id!(
    /// A keccak256 digest as people see it.
    Digest, 32
);
number_id!(
    /// A message's place in the order: 1, 2, 3, … without gaps.
    Sequence
);
number_id!(
    /// A batch's place in the chain: 1, 2, 3, …
    Height
);
number_id!(
    /// Counts restores and forced recoveries of a network; 0 at genesis.
    Epoch
);
number_id!(
    /// A W3bstream project.
    ProjectId
);
number_id!(
    /// A task's place among all tasks of the network, from the genesis parameter `first_task_number` up.
    TaskNumber
);
number_id!(
    /// Milliseconds since the Unix epoch.
    TimeMs
);
number_id!(
    /// A member's raft id: 1, 2, 3, … never used again.
    NodeId
);

/// Operator-chosen name of an output: 1 to 64 of `a-z 0-9 - _`, so that it is safe as a label and a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct OutputName(String);

/// A name that does not fit the rule of [`OutputName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an output's name has 1 to 64 characters of a-z, 0-9, '-' and '_'")]
pub struct OutputNameError;

impl OutputName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for OutputName {
    type Err = OutputNameError;
    fn from_str(text: &str) -> Result<Self, OutputNameError> {
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_';
        if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(OutputNameError)
        }
    }
}

impl<'de> Deserialize<'de> for OutputName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for OutputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_writes() {
        let id = TaskId([7; 32]);
        assert_eq!(id.to_string().parse::<TaskId>(), Ok(id));
        assert!("0x12".parse::<TaskId>().is_err());
        assert!(TaskId::try_from(&[0_u8; 31][..]).is_err());
    }

    #[test]
    fn output_names_are_safe_as_file_names() {
        assert!("tasks-1".parse::<OutputName>().is_ok());
        for bad in ["", "../x", "A", &"a".repeat(65)] {
            assert!(bad.parse::<OutputName>().is_err(), "{bad}");
        }
    }
}
