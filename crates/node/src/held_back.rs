//! What keeps batches from being forgotten that the network's limits would have gone: an output that lacks them. Somebody
//! has to know of it, or the disk fills up in silence.

use lockstep_api::views::HeldBackView;
use lockstep_types::{Height, OutputName, Retention, TaskNumber, TimeMs};

/// An output that keeps what would be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldBack {
    /// Which: the one that is furthest behind.
    pub output: OutputName,
    /// The first task that it lacks.
    pub next_task: TaskNumber,
    /// The oldest batch that is kept for it.
    pub height: Height,
}

impl HeldBack {
    /// What an operator is told.
    pub fn complaint(&self) -> String {
        let Self { output, next_task, height } = self;
        format!(
            "output {output} lacks the tasks from {next_task} on: nothing from batch {height} on is forgotten before it has them, and disks may fill up; see why it lags, or take it out of the network: `lockstep outputs remove {output}`"
        )
    }

    /// The same for the API.
    pub fn view(&self) -> HeldBackView {
        HeldBackView { output: self.output.to_string(), next_task: self.next_task, height: self.height }
    }
}

/// The oldest batch that an output needs, and the network's store, as a node finds them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needed {
    /// Time of that batch.
    pub time_ms: TimeMs,
    /// Whether nothing older than it is kept.
    pub is_oldest: bool,
    /// What this node's store takes on its disk.
    pub bytes: u64,
}

impl Needed {
    /// Whether the limits would have it forgotten, were it not needed.
    pub fn is_overdue(&self, limits: &Retention, now: TimeMs) -> bool {
        let is_old = limits.age_ms > 0 && self.time_ms.0 < now.0.saturating_sub(limits.age_ms);
        is_old || (limits.bytes > 0 && self.is_oldest && self.bytes > limits.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_limits_would_have_forgotten_is_held_back() {
        let by_age = Retention { age_ms: 100, ..Retention::default() };
        let by_bytes = Retention { bytes: 1_000, ..Retention::default() };
        let needed = |time_ms, is_oldest, bytes| Needed { time_ms: TimeMs(time_ms), is_oldest, bytes };
        for (limits, needed, expected) in [
            (&by_age, needed(899, false, 0), true),
            (&by_age, needed(900, true, u64::MAX), false),
            (&by_bytes, needed(0, true, 1_001), true),
            (&by_bytes, needed(0, true, 1_000), false),
            // There is something to be forgotten before it.
            (&by_bytes, needed(0, false, 2_000), false),
            (&Retention::default(), needed(0, true, u64::MAX), false),
        ] {
            assert_eq!(needed.is_overdue(limits, TimeMs(1_000)), expected, "{limits:?} {needed:?}");
        }
    }
}
