//! When progress is worth a word to the sink: each word is a log entry for the whole network.

use std::time::Duration;

use lockstep_types::TaskNumber;
use tokio::time::Instant;

/// Least time between two records.
pub(super) const RECORD_INTERVAL: Duration = Duration::from_secs(1);

/// What the sink knows.
#[derive(Debug)]
pub(super) struct Progress {
    recorded: Option<TaskNumber>,
    at: Option<Instant>,
}

impl Progress {
    pub(super) fn new(recorded: Option<TaskNumber>) -> Self {
        Self { recorded, at: None }
    }

    /// When `last` is to be recorded; `None` when the sink knows it.
    pub(super) fn due(&self, last: Option<TaskNumber>, now: Instant) -> Option<Instant> {
        last.filter(|_| last != self.recorded)?;
        Some(self.at.map_or(now, |at| now.max(at + RECORD_INTERVAL)))
    }

    /// Notes that a record was tried, and is to be tried again.
    pub(super) fn failed(&mut self, now: Instant) {
        self.at = Some(now);
    }

    /// Notes that `last` was recorded.
    pub(super) fn record(&mut self, last: Option<TaskNumber>, now: Instant) {
        (self.recorded, self.at) = (last, Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_recorded_once_a_second_and_not_again_when_nothing_moves() {
        let (mut progress, start) = (Progress::new(None), Instant::now());
        let n = |n| Some(TaskNumber(n));
        assert_eq!(progress.due(n(1), start), Some(start));
        progress.record(n(1), start);
        assert_eq!(progress.due(n(1), start), None);
        assert_eq!(progress.due(n(2), start), Some(start + RECORD_INTERVAL));
        let later = start + RECORD_INTERVAL * 3;
        assert_eq!(progress.due(n(3), later), Some(later));
        progress.failed(later);
        assert_eq!(progress.due(n(3), later), Some(later + RECORD_INTERVAL));
    }

    #[test]
    fn what_was_recorded_before_a_restart_is_not_recorded_again() {
        let progress = Progress::new(Some(TaskNumber(7)));
        assert_eq!(progress.due(Some(TaskNumber(7)), Instant::now()), None);
        assert_eq!(progress.due(None, Instant::now()), None);
    }
}
