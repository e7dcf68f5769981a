//! The node's clock, for what it proposes. Nothing that `apply` computes depends on it but by way of the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_types::TimeMs;
use tokio::time::Instant;

/// Milliseconds since the Unix epoch; 0 before it.
pub(crate) fn now_ms() -> TimeMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimeMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Which clock a node goes by. Clones are the same clock.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The machine's.
    #[default]
    System,
    /// One that goes with the runtime's time, and may be off.
    Simulated(SimulatedClock),
}

/// See [`Clock::Simulated`].
#[derive(Debug, Clone)]
pub struct SimulatedClock {
    start: Instant,
    start_ms: u64,
    offset_ms: Arc<AtomicI64>,
}

impl SimulatedClock {
    /// A clock that shows `start_ms` now, and goes right.
    pub fn new(start_ms: u64) -> Self {
        Self { start: Instant::now(), start_ms, offset_ms: Arc::default() }
    }

    /// Another node's clock: it shows what this one would if it were not off.
    pub fn twin(&self) -> Self {
        Self { offset_ms: Arc::default(), ..self.clone() }
    }

    /// Puts it off by so many milliseconds; below 0 it is behind.
    pub fn set_offset_ms(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
    }

    fn now(&self) -> TimeMs {
        let since = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        TimeMs(self.start_ms.saturating_add(since).saturating_add_signed(self.offset_ms.load(Ordering::Relaxed)))
    }
}

impl Clock {
    /// Milliseconds since the Unix epoch.
    pub fn now(&self) -> TimeMs {
        match self {
            Self::System => now_ms(),
            Self::Simulated(clock) => clock.now(),
        }
    }
}
