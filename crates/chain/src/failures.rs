//! What failed lately, so that it is not asked again at once.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use lockstep_types::Hash32;

use crate::error::DocumentError;

/// Failures that are remembered; the oldest makes room.
pub const FAILURES_MAX: usize = 1_024;

/// Failures by the hash of what was asked. Time is an argument.
pub(crate) struct Failures {
    keep: Duration,
    found: HashMap<Hash32, (Instant, DocumentError)>,
    /// The order in which they were remembered, which is also that in which they are forgotten.
    order: VecDeque<(Instant, Hash32)>,
}

impl Failures {
    /// Remembers each failure for `keep`.
    pub(crate) fn new(keep: Duration) -> Self {
        Self { keep, found: HashMap::new(), order: VecDeque::new() }
    }

    /// How this failed, if that was not long ago.
    pub(crate) fn get(&mut self, key: &Hash32, now: Instant) -> Option<DocumentError> {
        self.forget(now);
        self.found.get(key).map(|(_, error)| error.clone())
    }

    pub(crate) fn remember(&mut self, key: Hash32, error: DocumentError, now: Instant) {
        self.forget(now);
        if self.order.len() >= FAILURES_MAX {
            self.forget_oldest();
        }
        self.found.insert(key, (now, error));
        self.order.push_back((now, key));
    }

    fn forget(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(when, _)| now.saturating_duration_since(*when) >= self.keep) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((when, key)) = self.order.pop_front() else { return };
        // Two fetches of one document at a time can both have failed: then the later failure stays.
        if self.found.get(&key).is_some_and(|(remembered, _)| *remembered == when) {
            self.found.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Hash32 {
        lockstep_types::keccak256(&[&number.to_be_bytes()])
    }

    #[test]
    fn a_failure_is_remembered_for_its_time_only() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut failures = Failures::new(60 * second);
        failures.remember(key(1), DocumentError::Timeout, start);
        failures.remember(key(1), DocumentError::WrongHash, start + 30 * second);
        assert_eq!(failures.get(&key(1), start + 60 * second), Some(DocumentError::WrongHash));
        assert_eq!(failures.get(&key(1), start + 90 * second), None);
        assert_eq!(failures.get(&key(2), start), None);
        assert!(failures.found.is_empty() && failures.order.is_empty());
    }

    #[test]
    fn the_oldest_failure_makes_room() {
        let now = Instant::now();
        let mut failures = Failures::new(Duration::from_secs(60));
        for number in 0..=FAILURES_MAX {
            failures.remember(key(number), DocumentError::Timeout, now);
        }
        assert_eq!(failures.get(&key(0), now), None);
        assert!(failures.get(&key(1), now).is_some() && failures.get(&key(FAILURES_MAX), now).is_some());
        assert_eq!((failures.found.len(), failures.order.len()), (FAILURES_MAX, FAILURES_MAX));
    }
}
