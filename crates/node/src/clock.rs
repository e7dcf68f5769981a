//! The node's clock. Nothing that `apply` computes depends on it but by way of the log ([`crate::batch_time`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockstep_types::TimeMs;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Milliseconds since the Unix epoch; 0 before it.
pub(crate) fn now_ms() -> TimeMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimeMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A clock gains or loses at most one part in this many when the machine's is ahead or behind.
const SLEW: u64 = 10;
/// Shorter times are added without a look at the machine's clock.
const LOOK_INTERVAL_US: u64 = 1_000;

/// A node's clock: its machine's without the leaps. It goes by the monotonic clock, and follows the machine's a little
/// faster or slower until the two agree. Retry windows are measured with it, and a leap would make one shorter than it is
/// promised to be. It goes back only where it is set ([`Clock::set_by_machine`]). Clones are the same clock.
#[derive(Debug, Clone)]
pub struct Clock {
    machine: Machine,
    state: Arc<Mutex<Steady>>,
}

/// The two clocks of a machine: what a wall clock shows may leap, what a monotonic one shows does not.
#[derive(Debug, Clone)]
enum Machine {
    Real { started: std::time::Instant },
    Simulated(SimulatedClock),
}

#[derive(Debug)]
struct Steady {
    shown_us: u64,
    /// When it showed that, by the monotonic clock.
    at_us: u64,
}

/// A simulated machine's clock: it goes with the runtime's time, and may be off.
#[derive(Debug, Clone)]
pub struct SimulatedClock {
    start: Instant,
    start_ms: u64,
    offset_ms: Arc<AtomicI64>,
    /// By how much all machines' clocks were moved on; twins share it.
    passed_ms: Arc<AtomicU64>,
}

fn as_us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl SimulatedClock {
    /// A clock that shows `start_ms` now, and goes right.
    pub fn new(start_ms: u64) -> Self {
        Self { start: Instant::now(), start_ms, offset_ms: Arc::default(), passed_ms: Arc::default() }
    }

    /// Another machine's clock: it shows what this one would if it were not off.
    pub fn twin(&self) -> Self {
        Self { offset_ms: Arc::default(), ..self.clone() }
    }

    /// Puts it off by so many milliseconds; below 0 it is behind.
    pub fn set_offset_ms(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
    }

    /// Lets time pass at once, for this machine and all its twins: by both of a machine's clocks, so that none of them has
    /// leapt. Timers of the runtime know nothing of it.
    pub fn pass(&self, time: Duration) {
        self.passed_ms.fetch_add(as_us(time) / 1_000, Ordering::Relaxed);
    }

    /// What it shows, in milliseconds since the Unix epoch.
    pub fn now(&self) -> TimeMs {
        TimeMs(self.wall_us() / 1_000)
    }

    fn monotonic_us(&self) -> u64 {
        as_us(self.start.elapsed()).saturating_add(self.passed_ms.load(Ordering::Relaxed).saturating_mul(1_000))
    }

    fn wall_us(&self) -> u64 {
        let offset_us = self.offset_ms.load(Ordering::Relaxed).saturating_mul(1_000);
        let right = self.start_ms.saturating_mul(1_000).saturating_add(self.monotonic_us());
        right.saturating_add_signed(offset_us)
    }
}

impl Machine {
    fn wall_us(&self) -> u64 {
        match self {
            Self::Real { .. } => as_us(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
            Self::Simulated(clock) => clock.wall_us(),
        }
    }

    fn monotonic_us(&self) -> u64 {
        match self {
            Self::Real { started } => as_us(started.elapsed()),
            Self::Simulated(clock) => clock.monotonic_us(),
        }
    }
}

/// What is shown after another `elapsed_us`, when the machine's clock shows `wall_us`.
fn follow(shown_us: u64, elapsed_us: u64, wall_us: u64) -> u64 {
    let (expected, slew) = (shown_us.saturating_add(elapsed_us), elapsed_us / SLEW);
    wall_us.clamp(expected - slew, expected.saturating_add(slew))
}

impl Default for Clock {
    fn default() -> Self {
        Self::of(Machine::Real { started: std::time::Instant::now() })
    }
}

impl Clock {
    fn of(machine: Machine) -> Self {
        let steady = Steady { shown_us: machine.wall_us(), at_us: machine.monotonic_us() };
        Self { machine, state: Arc::new(Mutex::new(steady)) }
    }

    /// The clock of a node on a simulated machine. It begins with what that machine's clock shows.
    pub fn simulated(machine: SimulatedClock) -> Self {
        Self::of(Machine::Simulated(machine))
    }

    fn now_us(&self) -> u64 {
        let mut state = self.state.lock();
        let now_us = self.machine.monotonic_us();
        let elapsed_us = now_us.saturating_sub(state.at_us);
        if elapsed_us < LOOK_INTERVAL_US {
            return state.shown_us.saturating_add(elapsed_us);
        }
        let shown_us = follow(state.shown_us, elapsed_us, self.machine.wall_us());
        *state = Steady { shown_us, at_us: now_us };
        shown_us
    }

    /// Milliseconds since the Unix epoch.
    pub fn now(&self) -> TimeMs {
        TimeMs(self.now_us() / 1_000)
    }

    /// By how much the machine's clock is ahead of this one.
    pub(crate) fn machine_ahead_ms(&self) -> i64 {
        let shown_us = self.now_us();
        let wall_us = self.machine.wall_us();
        let size = i64::try_from(shown_us.abs_diff(wall_us) / 1_000).unwrap_or(i64::MAX);
        if wall_us < shown_us { -size } else { size }
    }

    /// Shows what the machine's clock shows, at once.
    pub(crate) fn set_by_machine(&self) {
        let mut state = self.state.lock();
        *state = Steady { shown_us: self.machine.wall_us(), at_us: self.machine.monotonic_us() };
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
        clock.state.lock().shown_us -= 60_000_000;
        let before = clock.now();
        assert!((59_000..61_000).contains(&clock.machine_ahead_ms()), "{}", clock.machine_ahead_ms());
        assert!(clock.now() >= before);
        clock.set_by_machine();
        assert!(clock.now() >= before && clock.machine_ahead_ms() < 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_passes_for_all_machines_at_once_is_no_leap() {
        let machine = SimulatedClock::new(2_000_000_000_000);
        let (clock, other) = (Clock::simulated(machine.clone()), Clock::simulated(machine.twin()));
        machine.pass(Duration::from_secs(86_400));
        assert_eq!(clock.now(), TimeMs(2_000_086_400_000));
        assert_eq!((clock.now(), clock.machine_ahead_ms()), (other.now(), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_day_ahead_for_twelve_seconds_moves_it_by_a_little_more_than_one() {
        const DAY_MS: i64 = 24 * 3_600_000;
        for leap_ms in [DAY_MS, -DAY_MS] {
            let machine = SimulatedClock::new(2_000_000_000_000);
            let (clock, right) = (Clock::simulated(machine.clone()), Clock::simulated(machine.twin()));
            machine.set_offset_ms(leap_ms);
            for _ in 0..120 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                clock.now();
            }
            assert!(clock.now().0.abs_diff(right.now().0) <= 1_201, "{:?} {:?}", clock.now(), right.now());
            assert!(clock.machine_ahead_ms().unsigned_abs() > 86_000_000);
            machine.set_offset_ms(0);
            // It is caught up with as slowly.
            tokio::time::sleep(Duration::from_secs(13)).await;
            assert_eq!(clock.now(), right.now());
        }
    }
}
