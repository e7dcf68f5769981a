//! What is waiting for a disk right now, and since when: for whoever has to say whether a node works, and must not wait
//! for the disk to say it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Pieces of work of one kind that are under way. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Pending(Arc<Mutex<Begun>>);

#[derive(Debug, Default)]
struct Begun {
    number: u64,
    since: BTreeMap<u64, Instant>,
}

/// One piece of work; it ends when this is dropped.
#[derive(Debug)]
pub struct UnderWay {
    pending: Pending,
    number: u64,
}

impl Pending {
    /// A piece of work begins.
    pub fn begin(&self) -> UnderWay {
        let mut begun = self.0.lock();
        begun.number += 1;
        let number = begun.number;
        begun.since.insert(number, Instant::now());
        UnderWay { pending: self.clone(), number }
    }

    /// How long the oldest that is under way has taken so far.
    pub fn age(&self) -> Option<Duration> {
        let begun = self.0.lock();
        // Numbers rise with time.
        begun.since.values().next().map(Instant::elapsed)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.pending.0.lock().since.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_counts_until_it_ends() {
        let pending = Pending::default();
        assert_eq!(pending.age(), None);
        let first = pending.begin();
        std::thread::sleep(Duration::from_millis(20));
        let second = pending.begin();
        assert!(pending.age().is_some_and(|age| age >= Duration::from_millis(20)));
        drop(first);
        let since = pending.0.lock().since[&second.number];
        assert!(pending.age().is_some_and(|age| age <= since.elapsed()));
        drop(second);
        assert_eq!(pending.age(), None);
    }
}
