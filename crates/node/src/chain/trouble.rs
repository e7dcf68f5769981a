//! What keeps the chain from being followed: when an operator hears of it, and when it is tried again.

use std::time::{Duration, Instant};

use super::limits::{CHAIN_BACKOFF_MAX, CHAIN_PATIENCE};

/// Why the chain is not followed, as a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    /// It may pass by itself: the operator hears of it when it lasts.
    #[error("{0}")]
    Passing(String),
    /// Somebody has to look.
    #[error("{0}")]
    Lasting(String),
}

/// What to log about a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// Something new has to be looked at.
    Worse(String),
    /// It is over.
    Better,
}

/// Remembers since when it does not go on. Time comes from outside.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    now: Option<(Trouble, Instant)>,
    failures: u32,
    noticed: Option<String>,
}

impl Troubles {
    /// Takes the result of one attempt. Each sentence is to be logged once.
    pub fn record(&mut self, result: Result<(), Trouble>, now: Instant) -> Option<Notice> {
        match result {
            Ok(()) => {
                (self.now, self.failures) = (None, 0);
                self.noticed.take().map(|_| Notice::Better)
            }
            Err(trouble) => {
                let since = self.now.as_ref().map_or(now, |(_, since)| *since);
                (self.now, self.failures) = (Some((trouble, since)), self.failures.saturating_add(1));
                let sentence = self.complaint(now)?;
                // How long it lasts is no news.
                let known = self.now.as_ref().map(|(trouble, _)| trouble.to_string());
                if self.noticed == known {
                    return None;
                }
                self.noticed = known;
                Some(Notice::Worse(sentence))
            }
        }
    }

    /// What the operator has to look at.
    pub fn complaint(&self, now: Instant) -> Option<String> {
        match self.now.as_ref()? {
            (Trouble::Lasting(reason), _) => Some(reason.clone()),
            (Trouble::Passing(reason), since) => {
                let lasted = now.saturating_duration_since(*since);
                (lasted >= CHAIN_PATIENCE).then(|| format!("{reason} (for {} s)", lasted.as_secs()))
            }
        }
    }

    /// Pause before the next attempt: twice as long after each failure. `jitter` from 0.5 to 1.
    pub fn pause(&self, poll: Duration, jitter: f64) -> Duration {
        if self.failures == 0 {
            return poll;
        }
        let longer = poll.saturating_mul(1 << self.failures.min(16));
        longer.min(CHAIN_BACKOFF_MAX.max(poll)).mul_f64(jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passing() -> Result<(), Trouble> {
        Err(Trouble::Passing("away".into()))
    }

    #[test]
    fn what_passes_is_not_shown_before_it_lasts() {
        let (mut troubles, start) = (Troubles::default(), Instant::now());
        assert_eq!(troubles.record(passing(), start), None);
        assert_eq!(troubles.complaint(start), None);
        let later = start + CHAIN_PATIENCE;
        assert!(matches!(troubles.record(passing(), later), Some(Notice::Worse(text)) if text.starts_with("away")));
        assert!(troubles.complaint(later).unwrap().contains("away"));
        assert_eq!(troubles.record(passing(), later), None, "said once");
        assert_eq!(troubles.record(Ok(()), later), Some(Notice::Better));
        assert_eq!(troubles.complaint(later), None);
        assert_eq!(troubles.record(passing(), later + CHAIN_PATIENCE), None, "counted anew");
    }

    #[test]
    fn what_somebody_has_to_look_at_is_shown_at_once_and_said_once() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        let lasting = |text: &str| Err(Trouble::Lasting(text.to_owned()));
        assert_eq!(troubles.record(lasting("wrong"), now), Some(Notice::Worse("wrong".into())));
        assert_eq!(troubles.record(lasting("wrong"), now), None);
        assert_eq!(troubles.record(lasting("worse"), now), Some(Notice::Worse("worse".into())));
        assert_eq!(troubles.complaint(now), Some("worse".into()));
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let (mut troubles, poll) = (Troubles::default(), Duration::from_millis(200));
        assert_eq!(troubles.pause(poll, 0.5), poll);
        troubles.record(passing(), Instant::now()).unwrap_or(Notice::Better);
        assert_eq!(troubles.pause(poll, 1.0), 2 * poll);
        assert_eq!(troubles.pause(poll, 0.5), poll);
        for _ in 0..100 {
            troubles.record(passing(), Instant::now());
        }
        assert_eq!(troubles.pause(poll, 1.0), CHAIN_BACKOFF_MAX);
        assert_eq!(troubles.pause(2 * CHAIN_BACKOFF_MAX, 1.0), 2 * CHAIN_BACKOFF_MAX);
    }
}
