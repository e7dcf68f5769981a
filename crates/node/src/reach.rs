//! How far back tasks reach that an output does not have yet. A group may have been open for weeks before it became a task,
//! so the first message that an output needs can be far older than the next task that it needs.

use lockstep_types::{Batch, Height, Sequence, TaskNumber};

/// Entries that are kept; beyond it every two become one, which may say that more is needed than is.
const ENTRIES_MAX: usize = 1 << 16;

/// What was learned of the tasks of batches that follow each other.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// First batch that was looked at.
    since: Height,
    /// The next one to be looked at.
    next: Height,
    /// Tasks after which none reaches further back, and the first message of each; both ascend.
    entries: Vec<(TaskNumber, Sequence)>,
}

impl Reach {
    /// Where to go on reading, for somebody who wants to know of all batches from this one on.
    pub fn read_from(&mut self, from: Height) -> Height {
        if from < self.since || from > self.next {
            *self = Self { since: from, next: from, entries: Vec::new() };
        }
        self.next
    }

    /// Takes the next batches. Messages before `kept` are gone, and tasks with them.
    pub fn take(&mut self, batches: &[Batch], kept: Sequence) {
        for batch in batches {
            for task in &batch.tasks {
                self.add(task.number, task.first_sequence(), kept);
            }
            self.next = batch.header.height.next();
        }
    }

    fn add(&mut self, number: TaskNumber, first: Sequence, kept: Sequence) {
        if first < kept {
            return;
        }
        while self.entries.last().is_some_and(|(_, last)| *last >= first) {
            self.entries.pop();
        }
        self.entries.push((number, first));
        if self.entries.len() > ENTRIES_MAX {
            let pairs = self.entries.chunks(2).filter_map(|pair| Some((pair.last()?.0, pair.first()?.1)));
            self.entries = pairs.collect();
        }
    }

    /// The oldest message of tasks from this one on.
    pub fn oldest(&self, task: TaskNumber) -> Option<Sequence> {
        let place = self.entries.partition_point(|(number, _)| *number < task);
        self.entries.get(place).map(|(_, first)| *first)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(tasks: &[(u64, u64)], kept: u64) -> Reach {
        let mut reach = Reach::default();
        for (number, first) in tasks {
            reach.add(TaskNumber(*number), Sequence(*first), Sequence(kept));
        }
        reach
    }

    #[test]
    fn the_oldest_message_of_all_that_follow_is_known() {
        let tasks = [(1, 5), (2, 1), (3, 30), (4, 12), (5, 13), (6, 40)];
        let known = reach(&tasks, 0);
        for task in 1..=6 {
            let oldest = tasks.iter().filter(|(number, _)| *number >= task).map(|(_, first)| *first).min();
            assert_eq!(known.oldest(TaskNumber(task)).map(|first| first.0), oldest, "{task}");
        }
        assert_eq!(known.oldest(TaskNumber(7)), None);
        // A task that has lost messages needs none, and hides no other.
        assert_eq!(reach(&tasks, 2).oldest(TaskNumber(1)), Some(Sequence(5)));
    }

    #[test]
    fn what_is_kept_has_a_bound_and_never_says_that_less_is_needed() {
        let tasks: Vec<_> = (1..=200_000).map(|n| (n, 10 * n)).collect();
        let known = reach(&tasks, 0);
        assert!(known.entries.len() <= ENTRIES_MAX);
        for task in (1..=200_000).step_by(997) {
            assert!(known.oldest(TaskNumber(task)).unwrap() <= Sequence(10 * task));
        }
    }

    #[test]
    fn reading_goes_on_or_begins_anew() {
        let mut reach = Reach::default();
        assert_eq!(reach.read_from(Height(7)), Height(7));
        reach.next = Height(20);
        assert_eq!(reach.read_from(Height(9)), Height(20));
        // Somebody needs more, or nobody needed anything for a while.
        assert_eq!(reach.read_from(Height(6)), Height(6));
        assert_eq!(reach.read_from(Height(50)), Height(50));
    }
}
