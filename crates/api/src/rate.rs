//! How fast one sender may go: a token bucket for each key, in bounded memory. Pure: the time is an argument.
//!
//! A bucket is one number, the time at which it will be full again; it is what the generic cell rate algorithm calls
//! the theoretical arrival time. A bucket that is full is the same as none, so full ones are forgotten at once. What
//! stays is in the order of those times, so the fullest bucket is always the first.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Full buckets that one call forgets: more than one call can add, so that the map shrinks.
const FORGOTTEN_TOGETHER: usize = 4;
const SECOND_NS: u64 = 1_000_000_000;

/// A rate, and how much may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Messages (or requests) per second, in the long run; 0: unlimited.
    pub per_second: u32,
    /// How many may come at once after a pause; taken as 1 where it is 0.
    pub burst: u32,
}

impl Rate {
    /// No limit.
    pub const UNLIMITED: Self = Self { per_second: 0, burst: 0 };

    /// Whether nothing is ever refused.
    pub fn is_unlimited(&self) -> bool {
        self.per_second == 0
    }
}

/// One more is too fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooFast {
    /// When the next one is allowed, if nobody else uses the bucket meanwhile.
    pub retry_after_ms: u64,
}

/// Buckets by key, at most a given number of them. Each holds for one rate, the same for all keys.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: Rate,
    /// Time for one more token, in nanoseconds.
    interval_ns: u64,
    buckets_max: usize,
    full_at: HashMap<K, u64>,
    by_time: BTreeSet<(u64, K)>,
}

impl<K: Copy + Eq + Hash + Ord> Buckets<K> {
    /// Buckets that are all full. With more than `buckets_max` (at least 1) in use at a time the fullest is forgotten,
    /// which is the smallest gift that can be made.
    pub fn new(rate: Rate, buckets_max: usize) -> Self {
        let interval_ns = SECOND_NS.checked_div(u64::from(rate.per_second)).unwrap_or(0);
        let buckets_max = buckets_max.max(1);
        Self { rate, interval_ns, buckets_max, full_at: HashMap::new(), by_time: BTreeSet::new() }
    }

    /// Buckets that are in use.
    pub fn len(&self) -> usize {
        self.full_at.len()
    }

    /// Whether no bucket is in use.
    pub fn is_empty(&self) -> bool {
        self.full_at.is_empty()
    }

    /// Whether one token could be taken at `now`, the time since some fixed point. Takes none.
    ///
    /// # Errors
    /// When one more would be too fast.
    pub fn check(&self, key: &K, now: Duration) -> Result<(), TooFast> {
        if self.rate.is_unlimited() {
            return Ok(());
        }
        self.next(key, nanoseconds(now)).map(|_| ())
    }

    /// Takes one token at `now`. Times that go backwards are harmless: they only add nothing.
    ///
    /// # Errors
    /// When one more would be too fast; then none is taken.
    pub fn take(&mut self, key: K, now: Duration) -> Result<(), TooFast> {
        if self.rate.is_unlimited() {
            return Ok(());
        }
        let now = nanoseconds(now);
        self.forget_full(now);
        let full_at = self.next(&key, now)?;
        if let Some(before) = self.full_at.insert(key, full_at) {
            self.by_time.remove(&(before, key));
        } else if self.full_at.len() > self.buckets_max
            && let Some((_, fullest)) = self.by_time.pop_first()
        {
            self.full_at.remove(&fullest);
        }
        self.by_time.insert((full_at, key));
        Ok(())
    }

    /// When the bucket would be full again after one more token was taken.
    fn next(&self, key: &K, now: u64) -> Result<u64, TooFast> {
        let room = self.interval_ns.saturating_mul(u64::from(self.rate.burst.max(1)));
        let full_at = self.full_at.get(key).map_or(now, |at| now.max(*at)).saturating_add(self.interval_ns);
        match full_at.saturating_sub(now).checked_sub(room) {
            None | Some(0) => Ok(full_at),
            Some(wait) => Err(TooFast { retry_after_ms: wait.div_ceil(1_000_000) }),
        }
    }

    fn forget_full(&mut self, now: u64) {
        for _ in 0..FORGOTTEN_TOGETHER {
            match self.by_time.first() {
                Some((full_at, key)) if *full_at <= now => {
                    self.full_at.remove(key);
                    self.by_time.pop_first();
                }
                _ => return,
            }
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn buckets(per_second: u32, burst: u32, max: usize) -> Buckets<u32> {
        Buckets::new(Rate { per_second, burst }, max)
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        // (time in ms, whether it passes): 10 a second, 3 at once.
        let table = [
            (0, None),
            (0, None),
            (0, None),
            (0, Some(100)),
            (40, Some(60)),
            (100, None),
            (100, Some(100)),
            (199, Some(1)),
            (200, None),
            (10_000, None),
            (10_000, None),
            (10_000, None),
            (10_000, Some(100)),
        ];
        let mut buckets = buckets(10, 3, 8);
        for (ms, refused) in table {
            let expected = refused.map_or(Ok(()), |retry_after_ms| Err(TooFast { retry_after_ms }));
            assert_eq!(buckets.check(&1, at(ms)), expected, "checking at {ms}");
            assert_eq!(buckets.take(1, at(ms)), expected, "taking at {ms}");
        }
    }

    #[test]
    fn keys_do_not_share_a_bucket() {
        let mut buckets = buckets(1, 1, 8);
        assert!(buckets.take(1, at(0)).is_ok() && buckets.take(2, at(0)).is_ok());
        assert!(buckets.take(1, at(1)).is_err());
    }

    #[test]
    fn a_rate_of_0_limits_nothing_and_remembers_nobody() {
        let mut buckets = buckets(0, 0, 1);
        for key in 0..1_000 {
            assert!(buckets.take(key, at(0)).is_ok() && buckets.check(&key, at(0)).is_ok());
        }
        assert!(buckets.is_empty());
    }

    #[test]
    fn a_bucket_without_a_burst_lets_one_pass() {
        let mut buckets = buckets(1, 0, 8);
        assert_eq!(buckets.take(1, at(0)), Ok(()));
        assert_eq!(buckets.take(1, at(0)), Err(TooFast { retry_after_ms: 1_000 }));
    }

    #[test]
    fn when_there_are_too_many_the_fullest_bucket_is_forgotten() {
        let mut buckets = buckets(1, 4, 2);
        for _ in 0..4 {
            buckets.take(1, at(0)).unwrap();
        }
        buckets.take(2, at(0)).unwrap();
        buckets.take(3, at(0)).unwrap();
        assert_eq!(buckets.len(), 2);
        assert!(buckets.take(1, at(0)).is_err(), "the emptiest bucket stays");
    }

    #[test]
    fn full_buckets_are_forgotten() {
        let mut buckets = buckets(10, 1, 1_000);
        for key in 0..100 {
            buckets.take(key, at(0)).unwrap();
        }
        for key in 100..150 {
            buckets.take(key, at(100)).unwrap();
        }
        assert_eq!(buckets.len(), 50);
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_away() {
        let mut buckets = buckets(1, 1, 8);
        buckets.take(1, at(5_000)).unwrap();
        assert!(buckets.take(1, at(4_000)).is_err());
        assert_eq!(buckets.take(1, at(6_000)), Ok(()));
    }

    proptest! {
        /// What passes in any stretch of time is at most the burst and what the rate gives in that time; what is
        /// refused passes after the time that was said; memory stays within its bound.
        #[test]
        fn no_stretch_of_time_has_more_than_the_rate_allows(
            per_second in 1_u32..5_000,
            burst in 1_u32..50,
            steps in prop::collection::vec((0_u64..20, 0_u32..6), 1..300),
        ) {
            let mut buckets = buckets(per_second, burst, 4);
            let mut alone = self::buckets(per_second, burst, 4);
            let (mut now, mut passed) = (0, Vec::new());
            for (step, key) in steps {
                now += step * MS / 4;
                let time = Duration::from_nanos(now);
                let _ = buckets.take(key, time);
                prop_assert!(buckets.len() <= 4);
                prop_assert_eq!(buckets.full_at.len(), buckets.by_time.len());
                match alone.take(0, time) {
                    Ok(()) => passed.push(now),
                    Err(TooFast { retry_after_ms }) => {
                        prop_assert!(alone.check(&0, time + at(retry_after_ms)).is_ok());
                    }
                }
            }
            for (i, first) in passed.iter().enumerate() {
                for (j, last) in passed.iter().enumerate().skip(i) {
                    let allowed = u64::from(burst) + (last - first) / (SECOND_NS / u64::from(per_second)) + 1;
                    prop_assert!((j - i + 1) as u64 <= allowed, "{} in {} ns", j - i + 1, last - first);
                }
            }
        }
    }
}
