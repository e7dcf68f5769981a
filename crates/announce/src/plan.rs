//! Which task is announced when. Pure: time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lockstep_types::TaskNumber;

use crate::feed::CommittedTask;
use crate::limits::{AGE_MAX, CATCH_UP_MAX, HOLD, PAUSE_MAX, REPEATED_MAX, TASKS_MAX};

/// Why a task is not announced any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// A prover has it.
    Assigned,
    /// It was announced as often as the operator wants.
    Attempts,
    /// It has waited for too long.
    Age,
    /// Newer tasks took its place.
    Displaced,
}

#[derive(Debug)]
struct Waiting {
    task: CommittedTask,
    since: Instant,
    attempts: u32,
    /// None before the first announcement.
    due: Option<Instant>,
}

/// The tasks that wait. Each is in `firsts` or in `repeats`.
#[derive(Debug)]
pub(crate) struct Plan {
    attempts_max: u32,
    pause_min: Duration,
    tasks: BTreeMap<TaskNumber, Waiting>,
    /// Those that were never announced.
    firsts: BTreeSet<TaskNumber>,
    /// The others, by when they are due.
    repeats: BTreeSet<(Instant, TaskNumber)>,
    /// Nobody listens: nothing is due before.
    held_until: Option<Instant>,
}

/// With which task to begin after a start or a change of leader: with what was not announced, and with what may not
/// have been heard, but not with the whole history. `remembered` is the task up to which all were announced.
pub(crate) fn begin_at(remembered: Option<TaskNumber>, committed: TaskNumber, first: TaskNumber) -> TaskNumber {
    let before = |count: u64| TaskNumber(committed.next().0.saturating_sub(count));
    let repeated = before(REPEATED_MAX);
    remembered.unwrap_or(repeated).min(repeated).max(before(CATCH_UP_MAX)).max(first)
}

impl Plan {
    pub fn new(attempts_max: u32, pause_min: Duration) -> Self {
        Self {
            attempts_max,
            pause_min,
            tasks: BTreeMap::new(),
            firsts: BTreeSet::new(),
            repeats: BTreeSet::new(),
            held_until: None,
        }
    }

    /// How many tasks can be taken: those that were announced give way.
    pub fn room(&self) -> usize {
        TASKS_MAX.saturating_sub(self.firsts.len())
    }

    /// Tasks that wait.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Tasks that were never announced.
    pub fn unsent(&self) -> usize {
        self.firsts.len()
    }

    /// Whether a task waits that was never announced.
    pub fn is_unsent(&self, number: TaskNumber) -> bool {
        self.firsts.contains(&number)
    }

    /// The lowest task that was never announced.
    pub fn first_unsent(&self) -> Option<TaskNumber> {
        self.firsts.first().copied()
    }

    /// Takes a task to be announced. True where another one gave way: the one whose turn is furthest away, which is one
    /// that was announced most often. A task for which there is no [`room`](Plan::room) is not taken.
    pub fn take(&mut self, task: CommittedTask, now: Instant) -> bool {
        if self.room() == 0 || self.tasks.contains_key(&task.number) {
            return false;
        }
        let displaced = self.tasks.len() >= TASKS_MAX;
        if displaced && let Some((_, number)) = self.repeats.pop_last() {
            self.tasks.remove(&number);
        }
        self.firsts.insert(task.number);
        self.tasks.insert(task.number, Waiting { task, since: now, attempts: 0, due: None });
        displaced
    }

    /// The tasks whose turn it is, at most `max`: those that were never announced come first, in order.
    pub fn due(&self, now: Instant, max: usize) -> Vec<CommittedTask> {
        if self.held_until.is_some_and(|until| now < until) {
            return Vec::new();
        }
        let repeats = self.repeats.iter().take_while(|(due, _)| *due <= now).map(|(_, number)| number);
        let numbers = self.firsts.iter().chain(repeats).take(max);
        numbers.filter_map(|number| self.tasks.get(number)).map(|waiting| waiting.task).collect()
    }

    /// When to look again, if nothing else happens.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        let first = if self.firsts.is_empty() { self.repeats.first().map(|(due, _)| *due) } else { Some(now) };
        first.map(|due| self.held_until.map_or(due, |until| due.max(until)))
    }

    /// A task was announced. Tells where that was the last time.
    pub fn sent(&mut self, number: TaskNumber, now: Instant) -> Option<End> {
        self.held_until = None;
        let waiting = self.tasks.get_mut(&number)?;
        waiting.attempts += 1;
        let end = if waiting.attempts >= self.attempts_max {
            Some(End::Attempts)
        } else if now.saturating_duration_since(waiting.since) >= AGE_MAX {
            Some(End::Age)
        } else {
            None
        };
        if end.is_some() {
            self.remove(number);
            return end;
        }
        let doubled = 1_u32.checked_shl(waiting.attempts - 1).unwrap_or(u32::MAX);
        let due = now + self.pause_min.saturating_mul(doubled).min(PAUSE_MAX);
        let before = waiting.due.replace(due);
        self.firsts.remove(&number);
        if let Some(before) = before {
            self.repeats.remove(&(before, number));
        }
        self.repeats.insert((due, number));
        None
    }

    /// Nobody listened: nothing is announced for a while, and nothing is lost.
    pub fn hold(&mut self, now: Instant) {
        self.held_until = Some(now + HOLD);
    }

    /// Somebody listens now.
    pub fn release(&mut self) {
        self.held_until = None;
    }

    /// Forgets a task.
    pub fn remove(&mut self, number: TaskNumber) {
        let Some(waiting) = self.tasks.remove(&number) else { return };
        self.firsts.remove(&number);
        if let Some(due) = waiting.due {
            self.repeats.remove(&(due, number));
        }
    }

    /// Forgets all tasks.
    pub fn clear(&mut self) {
        *self = Self::new(self.attempts_max, self.pause_min);
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::{ProjectId, TaskId};

    use super::*;
    use crate::announcement::Announcement;

    const PAUSE: Duration = Duration::from_secs(2);
    const MANY: usize = usize::MAX;

    fn task(number: u64) -> CommittedTask {
        let announcement = Announcement { project: ProjectId(7), task: TaskId([1; 32]) };
        CommittedTask { number: TaskNumber(number), announcement }
    }

    fn numbers(tasks: &[CommittedTask]) -> Vec<u64> {
        tasks.iter().map(|task| task.number.0).collect()
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_task_is_due_at_once_and_then_after_growing_pauses_until_the_last_attempt() {
        let (mut plan, start) = (Plan::new(4, PAUSE), Instant::now());
        plan.take(task(5), start);
        assert_eq!((numbers(&plan.due(start, MANY)), plan.next_due(start)), (vec![5], Some(start)));
        let mut now = start;
        for pause in [2, 4, 8] {
            assert_eq!(plan.sent(TaskNumber(5), now), None);
            let next = after(now, pause);
            assert_eq!(plan.next_due(now), Some(next));
            assert_eq!(numbers(&plan.due(next - Duration::from_millis(1), MANY)), Vec::<u64>::new());
            assert_eq!(numbers(&plan.due(next, MANY)), vec![5]);
            now = next;
        }
        assert_eq!(plan.sent(TaskNumber(5), now), Some(End::Attempts));
        assert_eq!((plan.len(), plan.next_due(now)), (0, None));
    }

    #[test]
    fn pauses_have_a_limit_and_so_has_the_age() {
        let (mut plan, start) = (Plan::new(u32::MAX, PAUSE), Instant::now());
        plan.take(task(1), start);
        let mut now = start;
        let end = loop {
            if let Some(end) = plan.sent(TaskNumber(1), now) {
                break end;
            }
            let next = plan.next_due(now).unwrap();
            assert!(next - now <= PAUSE_MAX);
            now = next;
        };
        assert_eq!(end, End::Age);
        assert!(now - start >= AGE_MAX && now - start <= AGE_MAX + PAUSE_MAX);
    }

    #[test]
    fn while_nobody_listens_nothing_is_lost_however_long_it_takes() {
        let (mut plan, start) = (Plan::new(1, PAUSE), Instant::now());
        plan.take(task(1), start);
        let late = start + 2 * AGE_MAX;
        plan.hold(late);
        assert_eq!(numbers(&plan.due(late, MANY)), Vec::<u64>::new());
        assert_eq!(plan.next_due(late), Some(late + HOLD));
        assert_eq!(numbers(&plan.due(late + HOLD, MANY)), vec![1]);
        plan.hold(late + HOLD);
        plan.release();
        assert_eq!(numbers(&plan.due(late + HOLD, MANY)), vec![1]);
        assert_eq!(plan.first_unsent(), Some(TaskNumber(1)));
    }

    #[test]
    fn new_tasks_come_before_repetitions_and_a_repeated_one_is_taken_once() {
        let (mut plan, start) = (Plan::new(9, PAUSE), Instant::now());
        plan.take(task(1), start);
        plan.sent(TaskNumber(1), start);
        let now = after(start, 60);
        for number in [3, 2, 1] {
            plan.take(task(number), now);
        }
        assert_eq!(numbers(&plan.due(now, MANY)), vec![2, 3, 1]);
        assert_eq!(numbers(&plan.due(now, 2)), vec![2, 3]);
        assert_eq!((plan.len(), plan.first_unsent()), (3, Some(TaskNumber(2))));
    }

    #[test]
    fn a_task_that_is_removed_is_not_due_any_more() {
        let (mut plan, start) = (Plan::new(9, PAUSE), Instant::now());
        plan.take(task(1), start);
        plan.take(task(2), start);
        plan.sent(TaskNumber(1), start);
        plan.remove(TaskNumber(1));
        plan.remove(TaskNumber(2));
        assert_eq!((plan.len(), plan.next_due(start), plan.first_unsent()), (0, None, None));
        assert_eq!(plan.sent(TaskNumber(1), start), None);
    }

    #[test]
    fn when_it_is_full_the_most_announced_gives_way_and_the_unannounced_never() {
        let (mut plan, start) = (Plan::new(9, PAUSE), Instant::now());
        for number in 0..TASKS_MAX as u64 {
            assert!(!plan.take(task(number), start));
        }
        assert_eq!(plan.room(), 0);
        assert!(!plan.take(task(TASKS_MAX as u64), start), "there is no room for it");
        assert_eq!(plan.len(), TASKS_MAX);

        plan.sent(TaskNumber(3), start);
        plan.sent(TaskNumber(4), start);
        plan.sent(TaskNumber(4), start);
        assert_eq!(plan.room(), 2);
        assert!(plan.take(task(TASKS_MAX as u64), start));
        assert_eq!(plan.len(), TASKS_MAX);
        assert_eq!(plan.sent(TaskNumber(4), start), None);
        let mut known: Vec<u64> = plan.tasks.keys().map(|number| number.0).collect();
        known.retain(|number| [3, 4, TASKS_MAX as u64].contains(number));
        assert_eq!(known, [3, TASKS_MAX as u64]);
    }

    #[test]
    fn a_start_repeats_a_bounded_number_and_catches_up_a_bounded_number() {
        let at = |remembered: Option<u64>, committed| {
            begin_at(remembered.map(TaskNumber), TaskNumber(committed), TaskNumber(10)).0
        };
        assert_eq!(at(None, 100_000), 100_001 - REPEATED_MAX);
        assert_eq!(at(Some(100_001), 100_000), 100_001 - REPEATED_MAX);
        assert_eq!(at(Some(99_000), 100_000), 99_000, "tasks that were never announced are");
        assert_eq!(at(Some(5), 100_000), 100_001 - CATCH_UP_MAX);
        assert_eq!(at(None, 20), 10);
        assert_eq!(at(Some(15), 20), 10);
    }
}
