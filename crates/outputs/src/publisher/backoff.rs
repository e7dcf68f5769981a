//! How long to wait before the next try.

use std::time::Duration;

/// Wait after the first failure.
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest wait.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// Doubles from [`BACKOFF_MIN`] to [`BACKOFF_MAX`].
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The next wait. `jitter`, in 0 to 1, takes up to a half of it away, so that nodes do not come back all at once.
    pub(super) fn next(&mut self, jitter: f64) -> Duration {
        let full = BACKOFF_MIN.saturating_mul(1_u32.checked_shl(self.failures.min(16)).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        full.min(BACKOFF_MAX).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_start_again_after_success() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(0.0), BACKOFF_MIN);
        assert_eq!(backoff.next(0.0), BACKOFF_MIN * 2);
        assert_eq!(backoff.next(1.0), BACKOFF_MIN * 2);
        for _ in 0..100 {
            assert!(backoff.next(0.5) <= BACKOFF_MAX);
        }
        assert_eq!(backoff.next(0.0), BACKOFF_MAX);
        backoff.reset();
        assert_eq!(backoff.next(0.0), BACKOFF_MIN);
    }
}
