//! The node's clock, for what it proposes. Nothing that `apply` computes depends on it but by way of the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockstep_types::TimeMs;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Milliseconds since the Unix epoch; 0 before it.
pub(crate) fn now_ms() -> TimeMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimeMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// A clock gains or loses at most one part in this many when the machine's is ahead or behind.
const SLEW: u64 = 10;
/// Shorter times are added without a look at the machine's clock.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// The machine's clock without its jumps: it goes by the monotonic clock, and follows the machine's a little faster or
/// slower until the two agree. Retry windows are measured with it, and a jump would make one shorter than it is
/// promised to be. It never goes back.
#[derive(Debug)]
pub struct SteadyClock {
    state: Mutex<Steady>,
}

#[derive(Debug)]
struct Steady {
    shown_us: u64,
    at: std::time::Instant,
}

impl Default for SteadyClock {
    fn default() -> Self {
        Self { state: Mutex::new(Steady { shown_us: wall_us(), at: std::time::Instant::now() }) }
    }
}

/// What is shown after another `elapsed_us`, when the machine's clock shows `wall_us`.
fn follow(shown_us: u64, elapsed_us: u64, wall_us: u64) -> u64 {
    let (expected, slew) = (shown_us.saturating_add(elapsed_us), elapsed_us / SLEW);
    wall_us.clamp(expected - slew, expected.saturating_add(slew))
}

impl SteadyClock {
    fn now_us(&self) -> u64 {
        let mut state = self.state.lock();
        let now = std::time::Instant::now();
        let elapsed = now.saturating_duration_since(state.at);
        let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        if elapsed < LOOK_INTERVAL {
            return state.shown_us.saturating_add(elapsed_us);
        }
        *state = Steady { shown_us: follow(state.shown_us, elapsed_us, wall_us()), at: now };
        state.shown_us
    }

    fn now(&self) -> TimeMs {
        TimeMs(self.now_us() / 1_000)
    }

    fn machine_ahead_ms(&self) -> i64 {
        let (shown, wall) = (self.now_us(), wall_us());
        let size = i64::try_from(shown.abs_diff(wall) / 1_000).unwrap_or(i64::MAX);
        if wall < shown { -size } else { size }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::Steady(Arc::default())
    }
}

/// Which clock a node goes by. Clones are the same clock.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The machine's, without its jumps.
    Steady(Arc<SteadyClock>),
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
            Self::Steady(clock) => clock.now(),
            Self::Simulated(clock) => clock.now(),
        }
    }

    /// By how much the machine's clock is ahead of this one.
    pub(crate) fn machine_ahead_ms(&self) -> i64 {
        match self {
            Self::Steady(clock) => clock.machine_ahead_ms(),
            Self::Simulated(_) => 0,
        }
    }

    /// Shows what the machine's clock shows, at once.
    pub(crate) fn set_by_machine(&self) {
        if let Self::Steady(clock) = self {
            clock.state.lock().shown_us = wall_us();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_of_the_machines_clock_becomes_a_faster_or_slower_pace() {
        // Right, a little off, far ahead, far behind.
        for (wall, shown) in [(1_100, 1_100), (1_105, 1_105), (9_999_999, 1_110), (0, 1_090)] {
            assert_eq!(follow(1_000, 100, wall), shown, "{wall}");
        }
        // After a time it agrees again.
        let (mut shown, mut wall) = (0, 8_000_000);
        for _ in 0..81 {
            wall += 1_000_000;
            shown = follow(shown, 1_000_000, wall);
        }
        assert_eq!(shown, wall);
    }

    #[test]
    fn it_never_goes_back_and_is_set_when_that_is_asked_for() {
        let clock = Clock::default();
        let Clock::Steady(steady) = &clock else { panic!() };
        steady.state.lock().shown_us -= 60_000_000;
        let before = clock.now();
        assert!((59_000..61_000).contains(&clock.machine_ahead_ms()), "{}", clock.machine_ahead_ms());
        assert!(clock.now() >= before);
        clock.set_by_machine();
        assert!(clock.now() >= before && clock.machine_ahead_ms() < 1_000);
    }
}
