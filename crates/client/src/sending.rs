//! When a message may be sent again without becoming a second one. Pure: time is an argument.
//!
//! Nodes tell a retry by its content, within the project's retry window, counted from when the message was ordered.
//! A message that was sent and not answered may be ordered until [`POOL_TIME_MAX`] later. So it is sent again only
//! while even its latest copy would be ordered within the window. After that, what became of it is looked up first,
//! once no pool can hold it any more; where it is not found, it was never ordered and is sent as if for the first time.

use std::time::Duration;

use tokio::time::Instant;

use crate::outcome::Outcome;

/// Longest time that a message waits in nodes' pools for its position; nodes drop older ones.
pub const POOL_TIME_MAX: Duration = Duration::from_secs(5);

/// What the rule depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// The project's retry window.
    pub(crate) window: Duration,
    /// Longest time in a pool.
    pub(crate) pool: Duration,
}

impl Times {
    /// After this long an unanswered message is in no pool any more: a log has it, or it is never ordered.
    fn settled_after(&self) -> Duration {
        self.pool + self.pool / 5
    }
}

/// What is known about one message.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sending {
    /// When the oldest copy was sent of which the outcome is not known.
    first: Option<Instant>,
    /// When the newest one was.
    last: Option<Instant>,
    /// The copies may be of any age.
    old: bool,
}

/// What to do with the message now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is safe to send it.
    Send,
    /// Nothing is safe until then.
    Wait(Instant),
    /// Ask whether it was ordered.
    LookUp,
}

impl Sending {
    /// A message that may have been sent before this process began, which was not later than `now`.
    pub(crate) fn from_before(now: Instant) -> Self {
        Self { first: Some(now), last: Some(now), old: true }
    }

    /// What to do now.
    pub(crate) fn step(&self, now: Instant, times: Times) -> Step {
        let (Some(first), Some(last)) = (self.first, self.last) else { return Step::Send };
        if !self.old && now < first + times.window.saturating_sub(times.pool) {
            return Step::Send;
        }
        let settled = last + times.settled_after();
        if now < settled { Step::Wait(settled) } else { Step::LookUp }
    }

    /// A copy is about to be sent. It counts as unknown from now on, also if nobody waits for its answer any more.
    /// Returns what to give to [`Sending::ended`].
    pub(crate) fn begin(&mut self, now: Instant) -> Self {
        let before = self.clone();
        self.first.get_or_insert(now);
        self.last = Some(now);
        before
    }

    /// The copy of `before` was answered, or given up.
    pub(crate) fn ended(&mut self, before: Self, now: Instant, outcome: Outcome) {
        match outcome {
            Outcome::NotTaken => *self = before,
            Outcome::Unknown => self.last = Some(now),
        }
    }

    /// The message must not be sent again before it is looked up.
    pub(crate) fn must_be_looked_up(&mut self) {
        self.old = true;
    }

    /// It was looked up, and was not ordered.
    pub(crate) fn is_absent(&mut self) {
        *self = Self::default();
    }

    /// What is known so far.
    pub(crate) fn outcome(&self) -> Outcome {
        if self.first.is_some() { Outcome::Unknown } else { Outcome::NotTaken }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { window: Duration::from_secs(10), pool: POOL_TIME_MAX };

    fn after(start: Instant, s: u64) -> Instant {
        start + Duration::from_secs(s)
    }

    #[test]
    fn a_message_is_sent_again_only_while_its_last_copy_would_fall_into_the_window() {
        let start = Instant::now();
        let mut sending = Sending::default();
        assert_eq!(sending.step(start, TIMES), Step::Send);
        let before = sending.begin(start);
        sending.ended(before, after(start, 3), Outcome::Unknown);
        assert_eq!(sending.step(after(start, 4), TIMES), Step::Send);
        assert_eq!(sending.step(after(start, 5), TIMES), Step::Wait(after(start, 9)));
        assert_eq!(sending.step(after(start, 9), TIMES), Step::LookUp);
        sending.is_absent();
        assert_eq!((sending.step(after(start, 9), TIMES), sending.outcome()), (Step::Send, Outcome::NotTaken));
    }

    #[test]
    fn a_copy_that_was_not_taken_changes_nothing_and_one_without_an_end_counts() {
        let start = Instant::now();
        let mut sending = Sending::default();
        let before = sending.begin(start);
        sending.ended(before, start, Outcome::NotTaken);
        assert_eq!(sending.step(after(start, 99), TIMES), Step::Send);
        sending.begin(start);
        assert_eq!(sending.step(after(start, 99), TIMES), Step::LookUp);
        let before = sending.begin(after(start, 99));
        sending.ended(before, after(start, 99), Outcome::NotTaken);
        assert_eq!((sending.step(after(start, 99), TIMES), sending.outcome()), (Step::LookUp, Outcome::Unknown));
    }

    #[test]
    fn what_was_sent_in_an_earlier_life_is_looked_up_first() {
        let start = Instant::now();
        let sending = Sending::from_before(start);
        assert_eq!(sending.step(start, TIMES), Step::Wait(after(start, 6)));
        assert_eq!(sending.step(after(start, 6), Times { window: Duration::from_secs(999), ..TIMES }), Step::LookUp);
    }
}
