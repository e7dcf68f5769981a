//! Which node to ask next, and when. Pure: time and chance are arguments.

use std::time::Duration;

use tokio::time::Instant;

/// Longest `Retry-After` that is honoured: a node that names more is asked again after this long.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// One request on its way from node to node. A round is one attempt for each node; after it comes a pause, which grows.
#[derive(Debug)]
pub(crate) struct Rounds {
    /// The place of the node to ask next.
    next: usize,
    /// Since the last pause.
    failures: usize,
    pause_until: Option<Instant>,
    backoff: Duration,
    backoff_max: Duration,
    /// By node: when it wants to be asked again.
    not_before: Vec<Option<Instant>>,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Ask the node at this place.
    Try(usize),
    /// Ask nobody until then.
    Pause(Instant),
}

impl Rounds {
    /// Begins with the node at `first`, modulo their number, which is not 0.
    pub(crate) fn new(nodes: usize, first: usize, backoff: (Duration, Duration)) -> Self {
        Self {
            next: first % nodes,
            failures: 0,
            pause_until: None,
            backoff: backoff.0,
            backoff_max: backoff.1,
            not_before: vec![None; nodes],
        }
    }

    pub(crate) fn choose(&self, now: Instant) -> Choice {
        if let Some(until) = self.pause_until.filter(|until| now < *until) {
            return Choice::Pause(until);
        }
        let nodes = self.not_before.len();
        let places = (0..nodes).map(|step| (self.next + step) % nodes);
        let mut earliest = None;
        for place in places {
            match self.not_before[place].filter(|until| now < *until) {
                None => return Choice::Try(place),
                Some(until) => earliest = Some(earliest.map_or(until, |e: Instant| e.min(until))),
            }
        }
        // There is at least one node, and it has to wait.
        Choice::Pause(earliest.unwrap_or(now))
    }

    /// The node at `place` did not help. `chance` is from 0 to 1: it spreads the pause over half its length, so that
    /// devices that failed together do not come back together.
    pub(crate) fn failed(&mut self, place: usize, now: Instant, retry_after: Option<Duration>, chance: f64) {
        let nodes = self.not_before.len();
        self.next = (place + 1) % nodes;
        self.not_before[place] = retry_after.map(|wait| now + wait.min(RETRY_AFTER_MAX));
        self.failures += 1;
        if self.failures == nodes {
            self.failures = 0;
            self.pause_until = Some(now + self.backoff.mul_f64(0.75 + 0.5 * (chance.clamp(0.0, 1.0) - 0.5)));
            self.backoff = (self.backoff * 2).min(self.backoff_max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(150));

    #[test]
    fn every_node_is_tried_before_a_pause_which_grows_to_its_limit() {
        let mut now = Instant::now();
        let mut rounds = Rounds::new(3, 4, BACKOFF);
        for pause_ms in [100, 150, 150] {
            for place in [1, 2, 0] {
                assert_eq!(rounds.choose(now), Choice::Try(place));
                rounds.failed(place, now, None, 1.0);
            }
            let until = now + Duration::from_millis(pause_ms);
            assert_eq!(rounds.choose(now), Choice::Pause(until));
            now = until;
        }
    }

    #[test]
    fn a_node_that_names_a_time_is_passed_over_until_then() {
        let now = Instant::now();
        let mut rounds = Rounds::new(2, 0, BACKOFF);
        rounds.failed(0, now, Some(Duration::from_secs(3)), 0.0);
        assert_eq!(rounds.choose(now), Choice::Try(1));
        rounds.failed(1, now, None, 0.0);
        let second = now + Duration::from_secs(1);
        assert_eq!(rounds.choose(second), Choice::Try(1));
        rounds.failed(1, second, Some(Duration::from_secs(9_999)), 0.0);
        assert_eq!(rounds.choose(second), Choice::Pause(now + Duration::from_secs(3)));
        assert_eq!(rounds.choose(now + Duration::from_secs(3)), Choice::Try(0));
        rounds.failed(0, now + Duration::from_secs(3), Some(Duration::from_secs(9_999)), 0.0);
        let bound = second + RETRY_AFTER_MAX;
        assert_eq!(rounds.choose(now + Duration::from_secs(5)), Choice::Pause(bound));
    }
}
