//! What was read, typed, and its digest.

use lockstep_types::{Address, Hash32, ProjectId, TaskId, keccak256};

const RANGE_DOMAIN: &[u8] = b"lockstep/chain-range/v1";

/// Bytes of a device's URI. A longer one, or one that is not UTF-8, is read as empty.
pub const URI_BYTES_MAX: usize = 1_024;
/// Events in what [`crate::ChainReader::next_range`] returns, unless a single block has more: with the longest URIs
/// somewhat above 1 MiB, which fits an entry of the log.
pub const EVENTS_MAX: usize = 1_024;

/// Something that happened to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The device was registered, or its record changed.
    Device {
        /// The device.
        device: Address,
        /// Who owns it.
        owner: Address,
        /// The hash of its document.
        hash: Hash32,
        /// Where the document lies; empty where the registry's text cannot be one.
        uri: String,
        /// Whether this changes a record (`UpdateDevice`) rather than making it (`NewDevice`).
        updated: bool,
    },
    /// The device's record was deleted (`RemoveDevice`).
    Removed {
        /// The device.
        device: Address,
        /// Who owned it.
        owner: Address,
    },
    /// The device may submit to the project.
    Approved {
        /// The project.
        project: ProjectId,
        /// The device.
        device: Address,
    },
    /// The device may no longer submit to the project.
    Unapproved {
        /// The project.
        project: ProjectId,
        /// The device.
        device: Address,
    },
}

impl Event {
    /// The layout of docs/formats.md: a tag, then fields of fixed width in the order of their declaration; a URI
    /// counts as its hash.
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Device { device, owner, hash, uri, updated } => {
                out.push(if *updated { 2 } else { 1 });
                out.extend_from_slice(device.as_bytes());
                out.extend_from_slice(owner.as_bytes());
                out.extend_from_slice(hash);
                out.extend_from_slice(&keccak256(&[uri.as_bytes()]));
            }
            Self::Removed { device, owner } => {
                out.push(3);
                out.extend_from_slice(device.as_bytes());
                out.extend_from_slice(owner.as_bytes());
            }
            Self::Approved { project, device } => encode_approval(out, 4, *project, device),
            Self::Unapproved { project, device } => encode_approval(out, 5, *project, device),
        }
    }
}

fn encode_approval(out: &mut Vec<u8>, tag: u8, project: ProjectId, device: &Address) {
    out.push(tag);
    out.extend_from_slice(&project.0.to_be_bytes());
    out.extend_from_slice(device.as_bytes());
}

/// All events of consecutive blocks. The same on every node that reads the same source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// [`crate::ChainSource::id`] of what was read.
    pub source: Hash32,
    /// The first block.
    pub first: u64,
    /// The last block.
    pub last: u64,
    /// The hash of block `last`.
    pub last_hash: Hash32,
    /// The hash of the block before `first`. Where it is not the `last_hash` of the range before, the chain was
    /// reorganised deeper than `confirmations`.
    pub parent_hash: Hash32,
    /// The events, by block and then by their place in it.
    pub events: Vec<Event>,
    /// Logs of the contracts that are no event because no message could ever fit them, such as a project id
    /// above 2⁶³−1. Not part of the digest.
    pub ignored: u64,
}

impl Range {
    /// keccak256 over the domain, the source, first and last block (8 bytes each), parent hash, last hash, the
    /// number of events (8 bytes) and each event. Numbers are big endian.
    pub fn digest(&self) -> Hash32 {
        let mut events = Vec::new();
        self.events.iter().for_each(|event| event.encode(&mut events));
        keccak256(&[
            RANGE_DOMAIN,
            &self.source,
            &self.first.to_be_bytes(),
            &self.last.to_be_bytes(),
            &self.parent_hash,
            &self.last_hash,
            &(self.events.len() as u64).to_be_bytes(),
            &events,
        ])
    }

    /// Whether this range goes on where another ended, on the same chain.
    pub fn follows(&self, before: &Range) -> bool {
        self.source == before.source
            && before.last.checked_add(1) == Some(self.first)
            && self.parent_hash == before.last_hash
    }
}

/// Something that happened to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    /// A prover took the task, or was given it.
    Assigned {
        /// The task's project.
        project: ProjectId,
        /// The task.
        task: TaskId,
        /// Who shall prove it.
        prover: Address,
        /// Until when, in the contract's unit; the largest number where it fits no 64 bits.
        deadline: u64,
    },
    /// The task's proof was accepted.
    Settled {
        /// The task's project.
        project: ProjectId,
        /// The task.
        task: TaskId,
        /// Who proved it.
        prover: Address,
    },
}

/// What became of tasks in consecutive blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskStates {
    /// The first block.
    pub first: u64,
    /// The last block.
    pub last: u64,
    /// The hash of block `last`.
    pub last_hash: Hash32,
    /// The hash of the block before `first`.
    pub parent_hash: Hash32,
    /// The states, by block and then by their place in it.
    pub states: Vec<TaskState>,
    /// Logs of the contract that name no task of ours.
    pub ignored: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> Range {
        let (device, owner) = (Address([0xd1; 20]), Address([0x0e; 20]));
        let event = |updated| Event::Device { device, owner, hash: [0xab; 32], uri: "ipfs://bafy/doc".into(), updated };
        Range {
            source: [0x50; 32],
            first: 100,
            last: 199,
            last_hash: [0x1a; 32],
            parent_hash: [0x9a; 32],
            events: vec![
                event(false),
                event(true),
                Event::Removed { device, owner },
                Event::Approved { project: ProjectId(7), device },
                Event::Unapproved { project: ProjectId(7), device },
            ],
            ignored: 0,
        }
    }

    #[test]
    fn the_digest_has_the_documented_bytes() {
        let range = range();
        let mut bytes = b"lockstep/chain-range/v1".to_vec();
        bytes.extend([0x50; 32]);
        bytes.extend(hex::decode("000000000000006400000000000000c7").unwrap());
        bytes.extend([0x9a; 32]);
        bytes.extend([0x1a; 32]);
        bytes.extend(5_u64.to_be_bytes());
        for tag in [1, 2] {
            bytes.push(tag);
            bytes.extend([0xd1; 20]);
            bytes.extend([0x0e; 20]);
            bytes.extend([0xab; 32]);
            bytes.extend(keccak256(&[b"ipfs://bafy/doc"]));
        }
        bytes.push(3);
        bytes.extend([0xd1; 20]);
        bytes.extend([0x0e; 20]);
        for tag in [4, 5] {
            bytes.push(tag);
            bytes.extend(7_u64.to_be_bytes());
            bytes.extend([0xd1; 20]);
        }
        assert_eq!(range.digest(), keccak256(&[&bytes]));
        assert_eq!(hex::encode(range.digest()), "0dd0cc6d90835d59f2e8f907655bfcf739a45ae9d0a7c34f1f3b474e07fd99c1");
    }

    #[test]
    fn the_digest_changes_with_every_field_but_the_count_of_ignored_logs() {
        let range = range();
        let changed = [
            Range { source: [0; 32], ..range.clone() },
            Range { first: 101, ..range.clone() },
            Range { last: 200, ..range.clone() },
            Range { last_hash: [0; 32], ..range.clone() },
            Range { parent_hash: [0; 32], ..range.clone() },
            Range { events: range.events[1..].to_vec(), ..range.clone() },
        ];
        assert!(changed.iter().all(|changed| changed.digest() != range.digest()));
        assert_eq!(Range { ignored: 9, ..range.clone() }.digest(), range.digest());
    }

    #[test]
    fn a_range_follows_only_the_one_whose_last_block_is_its_parent() {
        let before = range();
        let next = Range { first: 200, last: 250, parent_hash: before.last_hash, ..range() };
        assert!(next.follows(&before));
        assert!(!Range { parent_hash: [0; 32], ..next.clone() }.follows(&before));
        assert!(!Range { first: 201, ..next.clone() }.follows(&before));
        assert!(!Range { source: [0; 32], ..next }.follows(&before));
    }
}
