//! Batch time, as this node would propose it now: the one "now" of everything that ends up in the log or is compared with
//! what is in it, as retry windows, ages, what is due and what expires.
//!
//! It is the clock of the node, where that is not behind the head. Where it is, because a clock was ahead of it that is
//! put right again, batch time goes on from the head at a slowed pace until the clock has caught up: what is measured by
//! it takes longer, and does not stand still for as long as that clock was ahead. What `apply` computes does not depend on
//! any of this: there the time of a batch is what was proposed, and never before the head's.

use std::sync::Arc;
use std::time::Duration;

use lockstep_types::TimeMs;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::clock::Clock;

/// Batch time that is ahead of the clock gains one part in this many of the time that passes.
const SLOWED: u64 = 2;

fn as_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Batch time without a look at a clock: it goes on from a head at a slowed pace.
#[derive(Debug, Clone, Copy)]
struct Slowed {
    base: TimeMs,
    since: Instant,
}

impl Slowed {
    fn at(&self, now: Instant) -> TimeMs {
        let passed = now.saturating_duration_since(self.since);
        TimeMs(self.base.0.saturating_add(as_ms(passed) / SLOWED))
    }
}

/// How far a node's clock is to be trusted with the time of batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// It is right, as far as anybody can say.
    Full,
    /// It is ahead by this much of another voter's, and nobody can say who is right. Time that was ordered cannot be
    /// taken back, so the earlier one counts.
    Ahead(Duration),
    /// It was not compared with any.
    None,
}

/// See the module's documentation. What is given to it is all that it knows.
#[derive(Debug)]
struct BatchTime {
    head: TimeMs,
    /// Of the head that this node leads from, or of a newer one.
    slowed: Slowed,
    /// In which this node led, when it last did.
    term: u64,
    trust: Trust,
}

impl BatchTime {
    fn new(now: Instant) -> Self {
        let (head, term, trust) = (TimeMs(0), 0, Trust::Full);
        Self { head, slowed: Slowed { base: head, since: now }, term, trust }
    }

    /// The head has this time.
    fn follow(&mut self, head: TimeMs, now: Instant) {
        self.head = head;
        if head > self.slowed.at(now) {
            self.slowed = Slowed { base: head, since: now };
        }
    }

    /// This node leads. With each term it starts from the head that it has: what it thought of batch time before, others
    /// may have led more slowly since.
    fn lead(&mut self, term: u64, now: Instant) {
        if self.term != term {
            self.term = term;
            self.slowed = Slowed { base: self.head, since: now };
        }
    }

    /// What to propose when the clock shows `clock`.
    fn at(&self, clock: TimeMs, now: Instant) -> TimeMs {
        match self.trust {
            Trust::Full => self.latest(clock, now),
            Trust::Ahead(by) => self.latest(TimeMs(clock.0.saturating_sub(as_ms(by))), now),
            // Before the first batch there is nothing that it could go on from.
            Trust::None if self.head == TimeMs(0) => clock,
            Trust::None => self.slowed.at(now),
        }
    }

    /// What it would be if a clock that shows `clock` were right.
    fn latest(&self, clock: TimeMs, now: Instant) -> TimeMs {
        self.slowed.at(now).max(clock)
    }

    fn ahead_of(&self, clock: TimeMs, now: Instant) -> Duration {
        Duration::from_millis(self.slowed.at(now).0.saturating_sub(clock.0))
    }
}

/// A node's batch time and the clock that it goes by. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct BatchClock {
    clock: Clock,
    time: Arc<Mutex<BatchTime>>,
}

impl BatchClock {
    pub fn new(clock: Clock) -> Self {
        Self { clock, time: Arc::new(Mutex::new(BatchTime::new(Instant::now()))) }
    }

    /// This node's clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Batch time, as this node would propose it. Never before the head that it knows.
    pub fn now(&self) -> TimeMs {
        let clock = self.clock.now();
        self.time.lock().at(clock, Instant::now())
    }

    /// The latest that batch time may be as far as this node knows: whatever is plainly a retry by this is one.
    pub fn latest(&self) -> TimeMs {
        let clock = self.clock.now();
        self.time.lock().latest(clock, Instant::now())
    }

    /// The newest batch that is applied here has this time.
    pub fn follow(&self, head: TimeMs) {
        self.time.lock().follow(head, Instant::now());
    }

    /// This node leads in this term. Call it before anything is proposed.
    pub fn lead(&self, term: u64) {
        self.time.lock().lead(term, Instant::now());
    }

    /// Goes by the clock so far from now on.
    pub fn trust(&self, trust: Trust) {
        self.time.lock().trust = trust;
    }

    /// How far the clock is trusted.
    pub fn trusted(&self) -> Trust {
        self.time.lock().trust
    }

    /// By how much batch time is ahead of this node's clock.
    pub fn ahead(&self) -> Duration {
        let clock = self.clock.now();
        self.time.lock().ahead_of(clock, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY_MS: u64 = 24 * 3_600_000;
    const NOW_MS: u64 = 2_000_000_000_000;

    fn at(head: u64, start: Instant) -> BatchTime {
        let mut time = BatchTime::new(start);
        time.follow(TimeMs(head), start);
        time.lead(1, start);
        time
    }

    #[test]
    fn it_is_the_clock_where_that_is_not_behind_the_head_and_a_slowed_pace_where_it_is() {
        let start = Instant::now();
        for (head, clock, passed_ms, expected, why) in [
            (NOW_MS, NOW_MS + 5, 0, NOW_MS + 5, "the clock is right"),
            (NOW_MS, NOW_MS + DAY_MS, DAY_MS, NOW_MS + DAY_MS, "the first message after a day of idleness"),
            (NOW_MS, NOW_MS + DAY_MS, 0, NOW_MS + DAY_MS, "the same where this node has just begun to lead"),
            (NOW_MS + DAY_MS, NOW_MS, 0, NOW_MS + DAY_MS, "never before the head"),
            (NOW_MS + DAY_MS, NOW_MS + 10_000, 10_000, NOW_MS + DAY_MS + 5_000, "it does not stand still"),
            (NOW_MS + 2_000, NOW_MS + 4_000, 4_000, NOW_MS + 4_000, "the clock has caught up"),
            (NOW_MS + 2_000, NOW_MS + 5_000, 5_000, NOW_MS + 5_000, "and goes ahead again"),
            (0, NOW_MS, 0, NOW_MS, "the first batch of all"),
        ] {
            let time = at(head, start);
            assert_eq!(time.at(TimeMs(clock), start + Duration::from_millis(passed_ms)), TimeMs(expected), "{why}");
        }
    }

    #[test]
    fn a_clock_that_is_not_trusted_moves_it_no_further_than_the_others_say() {
        let start = Instant::now();
        let later = start + Duration::from_secs(4);
        let clock = TimeMs(NOW_MS + 4_000 + DAY_MS);
        let mut time = at(NOW_MS, start);
        time.trust = Trust::Ahead(Duration::from_millis(DAY_MS));
        assert_eq!(time.at(clock, later), TimeMs(NOW_MS + 4_000));
        time.trust = Trust::Ahead(Duration::from_millis(2 * DAY_MS));
        assert_eq!(time.at(clock, later), TimeMs(NOW_MS + 2_000));
        time.trust = Trust::None;
        assert_eq!(time.at(clock, later), TimeMs(NOW_MS + 2_000));
        assert_eq!(time.latest(clock, later), clock, "what may be no retry by anybody's time is left to the log");
        time.trust = Trust::Full;
        assert_eq!(time.at(clock, later), clock);
    }

    #[test]
    fn who_leads_again_starts_from_the_head_that_it_has() {
        let start = Instant::now();
        let mut time = at(NOW_MS + DAY_MS, start);
        let later = start + Duration::from_secs(3_600);
        assert_eq!(time.at(TimeMs(NOW_MS), later), TimeMs(NOW_MS + DAY_MS + 1_800_000));
        // Another node, which was started since, led meanwhile, and an hour less had passed for it.
        time.follow(TimeMs(NOW_MS + DAY_MS + 7), later);
        time.lead(3, later);
        assert_eq!(time.at(TimeMs(NOW_MS), later), TimeMs(NOW_MS + DAY_MS + 7));
        time.lead(3, later + Duration::from_secs(2));
        assert_eq!(time.at(TimeMs(NOW_MS), later + Duration::from_secs(2)), TimeMs(NOW_MS + DAY_MS + 1_007));
    }

    /// What a leader lives to see, and after how many milliseconds.
    #[derive(Debug, Clone)]
    enum Event {
        /// It proposes; the batch is applied with the next event.
        Propose,
        /// Its clock is set to be off by so much.
        Clock(i64),
        /// It leads anew.
        Lead,
    }

    fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
        let day = i64::try_from(DAY_MS).unwrap();
        let event = prop_oneof![
            4 => Just(Event::Propose),
            1 => prop_oneof![-day..day, Just(0), -3_000..3_000_i64].prop_map(Event::Clock),
            1 => Just(Event::Lead),
        ];
        proptest::collection::vec((0..20_000_u64, event), 1..60)
    }

    proptest! {
        #[test]
        fn it_never_goes_back_or_stands_still_and_is_ahead_of_no_clock_that_there_was(events in events()) {
            let start = Instant::now();
            let mut time = at(NOW_MS, start);
            let (mut passed, mut off, mut highest_off, mut term) = (0, 0, 0, 1);
            let mut under_way: Option<TimeMs> = None;
            for (after, event) in events {
                passed += after;
                let now = start + Duration::from_millis(passed);
                if let Some(proposed) = under_way.take() {
                    // As `apply` does.
                    time.follow(proposed.max(time.head), now);
                }
                let clock = TimeMs((NOW_MS + passed).saturating_add_signed(off));
                let shown = time.at(clock, now);
                prop_assert!(shown >= time.head && shown >= clock, "{shown:?} {clock:?} {time:?}");
                let furthest = TimeMs((NOW_MS + passed).saturating_add_signed(highest_off));
                prop_assert!(shown <= furthest, "{shown:?} is ahead of every clock that there was: {furthest:?}");
                let later = now + Duration::from_secs(10);
                prop_assert!(time.at(clock, later).0 >= time.head.0 + 5_000, "it stands still: {time:?}");
                match event {
                    Event::Propose => under_way = Some(shown),
                    Event::Clock(by) => {
                        off = by;
                        highest_off = highest_off.max(by);
                    }
                    Event::Lead => {
                        term += 1;
                        time.lead(term, now);
                    }
                }
            }
        }
    }
}
