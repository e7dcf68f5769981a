//! Which index records are of what is forgotten. RocksDB drops them while it compacts, which costs no reads or writes of
//! its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_types::{Height, Sequence, TaskNumber};
use rocksdb::compaction_filter::Decision;

use crate::keys;

/// What is kept: the first height, message and task. Zeros: everything.
#[derive(Debug, Default)]
struct Kept {
    height: AtomicU64,
    sequence: AtomicU64,
    task_number: AtomicU64,
}

/// Says which records of the index may go. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Forgetting(Arc<Kept>);

fn number(bytes: Option<&[u8]>) -> u64 {
    bytes.and_then(|bytes| bytes.try_into().ok()).map_or(u64::MAX, u64::from_be_bytes)
}

impl Forgetting {
    /// From now on records of what lies before these may go: also by compactions that run already, and out of the state as
    /// it is on the disk, which must have forgotten them.
    pub fn before(&self, height: Height, sequence: Sequence, task_number: TaskNumber) {
        self.0.height.store(height.0, Ordering::Relaxed);
        self.0.sequence.store(sequence.0, Ordering::Relaxed);
        self.0.task_number.store(task_number.0, Ordering::Relaxed);
    }

    /// Whether a record is of something that is forgotten.
    pub fn is_forgotten(&self, key: &[u8], value: &[u8]) -> bool {
        let kept = |limit: &AtomicU64| limit.load(Ordering::Relaxed);
        match key.first() {
            // The height is the first number of an occurrence.
            Some(&keys::OCCURRENCE) => number(value.get(..8)) < kept(&self.0.height),
            Some(&keys::MESSAGE_PLACE | &keys::TASK_ALIAS | &keys::NONCE) => {
                number(Some(value)) < kept(&self.0.sequence)
            }
            Some(&keys::TASK_PLACE) => number(Some(value)) < kept(&self.0.task_number),
            // The sequence is the first number of a device's last message, and of its highest nonce.
            Some(&keys::LAST | &keys::HIGHEST_NONCE) => number(value.get(..8)) < kept(&self.0.sequence),
            Some(&keys::PACKED | &keys::FLAGS) => number(key.get(1..)) < kept(&self.0.sequence),
            _ => false,
        }
    }

    /// The same, as RocksDB asks it.
    pub(crate) fn decision(&self, key: &[u8], value: &[u8]) -> Decision {
        if self.is_forgotten(key, value) { Decision::Remove } else { Decision::Keep }
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::{Address, ContentId, MessageId, ProjectId, TaskId};

    use super::*;

    #[test]
    fn only_records_of_what_is_before_the_horizon_go() {
        let forgetting = Forgetting::default();
        let be = |n: u64| n.to_be_bytes();
        let occurrence = |height: u64| [&be(height)[..], &[0; 32]].concat();
        let records = |n: u64| {
            [
                (keys::occurrence(&ContentId([1; 32])), occurrence(n)),
                (keys::message_place(&MessageId([1; 32])), be(n).to_vec()),
                (keys::task_place(&TaskId([1; 32])), be(n).to_vec()),
                (keys::task_alias(&TaskId([1; 32])), be(n).to_vec()),
                (keys::packed(Sequence(n)), be(0).to_vec()),
                (keys::flags(Sequence(n)), b"late".to_vec()),
                (keys::last(ProjectId(7), &Address([1; 20])), [&be(n)[..], &[0; 12]].concat()),
                (keys::nonce(ProjectId(7), &Address([1; 20]), 9), be(n).to_vec()),
                (keys::highest_nonce(ProjectId(7), &Address([1; 20])), [be(n), be(9)].concat()),
            ]
        };
        assert!(records(0).iter().all(|(key, value)| !forgetting.is_forgotten(key, value)));
        forgetting.before(Height(5), Sequence(5), TaskNumber(5));
        assert!(records(4).iter().all(|(key, value)| forgetting.is_forgotten(key, value)));
        assert!(records(5).iter().all(|(key, value)| !forgetting.is_forgotten(key, value)));
        // A damaged record is left for whoever reads it to find.
        assert!(!forgetting.is_forgotten(&keys::occurrence(&ContentId([1; 32])), &[0; 3]));
        for kept in [keys::HEAD, keys::MEMBERS, keys::APPLIED, keys::MEMBERSHIP] {
            assert!(!forgetting.is_forgotten(kept, &be(0)));
        }
    }
}
