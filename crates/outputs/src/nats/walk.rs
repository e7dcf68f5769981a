//! Finding tasks and gaps in the stream. The last task's number never falls from one message to the next, so a number is
//! found in as many requests as its logarithm; gaps are told by notes with a subject of their own, which are few.

use std::collections::BTreeMap;

use lockstep_types::{TaskId, TaskNumber};

use super::mark::{Kind, Range};
use super::session::{Entry, PAGE_MESSAGES, Session};
use crate::output::{FinalTask, OutputError, Place, Stage};
use crate::stored::{Damaged, Page};

/// What the notes say.
#[derive(Debug, Default)]
pub(super) struct Notes {
    skipped: Vec<Range>,
    complete: Vec<Range>,
    /// Tasks that were filled in, with their messages.
    filled: BTreeMap<TaskNumber, (TaskId, u64)>,
}

impl Notes {
    /// The first run of numbers that were skipped and not filled in.
    pub fn first_gap(&self, first: TaskNumber, last: TaskNumber) -> Option<Range> {
        let mut skipped: Vec<Range> = self.skipped.clone();
        skipped.sort_unstable();
        let mut gap: Option<Range> = None;
        for (from, to) in skipped {
            let mut start = from.max(first);
            let to = to.min(last);
            while start <= to {
                let Some(next) = self.first_missing(start, to) else { break };
                let end = self.last_missing(next, to);
                match &mut gap {
                    None => gap = Some((next, end)),
                    // Skipped in two calls, one right behind the other.
                    Some(before) if before.1.next() == next => before.1 = end,
                    Some(_) => return gap,
                }
                start = end.next();
            }
        }
        gap
    }

    fn first_missing(&self, from: TaskNumber, to: TaskNumber) -> Option<TaskNumber> {
        let mut number = from;
        while number <= to {
            if self.filled.contains_key(&number) {
                number = number.next();
            } else if let Some(end) =
                self.complete.iter().filter(|(a, b)| *a <= number && number <= *b).map(|r| r.1).max()
            {
                number = end.next();
            } else {
                return Some(number);
            }
        }
        None
    }

    fn last_missing(&self, from: TaskNumber, to: TaskNumber) -> TaskNumber {
        let filled = self.filled.range(from..=to).next().map(|(number, _)| *number);
        let complete = self.complete.iter().map(|range| range.0).filter(|begin| (from..=to).contains(begin)).min();
        let end = filled.into_iter().chain(complete).min();
        end.map_or(to, |end| TaskNumber(end.0 - 1))
    }
}

/// Where tasks are, as receipts tell it: a place for each run of consecutive tasks and messages.
pub(super) fn places(stream: &str, tasks: impl IntoIterator<Item = (TaskNumber, u64)>) -> Vec<Place> {
    let mut runs: Vec<(Range, (u64, u64))> = Vec::new();
    for (number, sequence) in tasks {
        match runs.last_mut() {
            Some(((_, last), (_, end))) if last.next() == number && *end + 1 == sequence => {
                (*last, *end) = (number, sequence);
            }
            _ => runs.push(((number, number), (sequence, sequence))),
        }
    }
    let place = |((first, last), (from, to)): (Range, (u64, u64))| {
        let sequences = if from == to { from.to_string() } else { format!("{from}-{to}") };
        let locator = format!("nats:{stream}:{sequences}");
        Place { first, last, locator, commitment: Vec::new(), height: None, stage: Stage::Final }
    };
    runs.into_iter().map(place).collect()
}

impl Session {
    /// The first sequence from which on the last task is `number` or a later one; `end` is that of the last message.
    async fn find(&self, number: TaskNumber, end: u64) -> Result<u64, OutputError> {
        let Some(first) = self.next(1).await? else { return Ok(end) };
        let (mut low, mut high) = (first.sequence, end);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.next(middle).await? {
                Some(entry) if entry.mark.last < Some(number) => low = entry.sequence + 1,
                // Nothing is between the middle and the message that was found.
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// The notes up to the message `end`. Costs a request for each, and one for each task that was filled in.
    pub async fn notes_until(&self, end: u64) -> Result<Notes, OutputError> {
        let (mut notes, mut next) = (Notes::default(), 1);
        while let Some(note) = self.next_note(next).await?.filter(|note| note.sequence <= end) {
            next = note.sequence + 1;
            match note.mark.kind {
                Kind::Skipped(range) => notes.skipped.push(range),
                Kind::Complete(range) => notes.complete.push(range),
                Kind::Filling(_) => self.read_filled(next, end, &mut notes).await?,
                _ => {}
            }
        }
        Ok(notes)
    }

    /// Tasks that were filled in right behind a note.
    async fn read_filled(&self, from: u64, end: u64, notes: &mut Notes) -> Result<(), OutputError> {
        let mut from = from;
        while from <= end {
            let to = end.min(from + PAGE_MESSAGES - 1);
            for entry in self.page(from, to).await? {
                let Kind::Filled(number, id) = entry.mark.kind else { return Ok(()) };
                notes.filled.insert(number, (id, entry.sequence));
            }
            from = to + 1;
        }
        Ok(())
    }

    /// Calls `take` with the messages of tasks from `first` on that came in their turn, until it says false.
    async fn walk(
        &self,
        first: TaskNumber,
        end: u64,
        mut take: impl FnMut(TaskNumber, Entry) -> Result<bool, OutputError>,
    ) -> Result<(), OutputError> {
        let mut from = self.find(first, end).await?;
        while from <= end {
            let to = end.min(from + PAGE_MESSAGES - 1);
            for entry in self.page(from, to).await? {
                if let Kind::Task(number, _) = entry.mark.kind
                    && number >= first
                    && !take(number, entry)?
                {
                    return Ok(());
                }
            }
            from = to + 1;
        }
        Ok(())
    }

    /// The tasks from `first` to `last` that are in the stream, with their messages, by number.
    pub async fn present(
        &self,
        (first, last): Range,
        end: u64,
    ) -> Result<BTreeMap<TaskNumber, (TaskId, u64)>, OutputError> {
        let mut found = BTreeMap::new();
        let take = |number: TaskNumber, entry: Entry| {
            if let Kind::Task(_, id) = entry.mark.kind
                && number <= last
            {
                found.insert(number, (id, entry.sequence));
            }
            Ok(number < last)
        };
        self.walk(first, end, take).await?;
        let notes = self.notes_until(end).await?;
        found.extend(notes.filled.range(first..=last.max(first)).map(|(number, at)| (*number, *at)));
        Ok(found)
    }

    /// At most `max` tasks from `first` on, by number; a message that is none is damaged.
    pub async fn tasks_from(&self, first: TaskNumber, max: usize, end: u64) -> Result<Page, OutputError> {
        let (mut tasks, mut damaged) = (Vec::new(), Vec::new());
        let mut read = |number: TaskNumber, entry: &Entry, tasks: &mut Vec<FinalTask>| match self.task(entry) {
            Err(OutputError::Foreign(reason)) => {
                damaged.push(Damaged::at(number, reason));
                Ok(())
            }
            task => task.map(|task| tasks.extend(task)),
        };
        let mut looked_at = 0;
        let take = |number: TaskNumber, entry: Entry| {
            read(number, &entry, &mut tasks)?;
            looked_at += 1;
            Ok(looked_at < max)
        };
        self.walk(first, end, take).await?;
        // What was filled in below the last of them, or anywhere where there are no more.
        let last = tasks.last().filter(|_| looked_at >= max).map_or(TaskNumber(u64::MAX), |task| task.number);
        let notes = self.notes_until(end).await?;
        let filled = notes.filled.range(first..=last.max(first)).take(max);
        for (number, (_, sequence)) in filled {
            for entry in self.page(*sequence, *sequence).await? {
                read(*number, &entry, &mut tasks)?;
            }
        }
        tasks.sort_by_key(|task| task.number);
        if tasks.len() > max {
            tasks.truncate(max);
            let last = tasks.last().map(|task| task.number);
            damaged.retain(|damaged| Some(damaged.last) < last);
        }
        Ok(Page { tasks, damaged })
    }

    /// A task by its id: the stream is read backwards, whole if need be.
    pub async fn search(&self, id: &TaskId, end: u64) -> Result<Option<FinalTask>, OutputError> {
        let Some(first) = self.next(1).await?.map(|entry| entry.sequence) else { return Ok(None) };
        let mut to = end;
        while to >= first {
            let from = first.max((to + 1).saturating_sub(PAGE_MESSAGES));
            let is_it =
                |entry: &&Entry| matches!(entry.mark.kind, Kind::Task(_, it) | Kind::Filled(_, it) if it == *id);
            if let Some(entry) = self.page(from, to).await?.iter().find(is_it) {
                return self.task(entry);
            }
            to = from - 1;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> Range {
        (TaskNumber(first), TaskNumber(last))
    }

    #[test]
    fn gaps_are_what_was_skipped_without_what_came_later() {
        let filled = |numbers: &[u64]| numbers.iter().map(|n| (TaskNumber(*n), (TaskId([0; 32]), 1))).collect();
        let notes = |skipped: &[Range], complete: &[Range], numbers: &[u64]| Notes {
            skipped: skipped.to_vec(),
            complete: complete.to_vec(),
            filled: filled(numbers),
        };
        let all = |notes: &Notes| {
            let (mut next, mut gaps) = (TaskNumber(1), Vec::new());
            while let Some((first, last)) = notes.first_gap(next, TaskNumber(99)) {
                gaps.push((first.0, last.0));
                next = last.next();
            }
            gaps
        };
        assert_eq!(all(&notes(&[], &[], &[5])), []);
        assert_eq!(all(&notes(&[range(10, 20), range(21, 25), range(30, 31)], &[], &[])), [(10, 25), (30, 31)]);
        assert_eq!(all(&notes(&[range(10, 20)], &[], &[10, 12, 13, 20])), [(11, 11), (14, 19)]);
        assert_eq!(
            all(&notes(&[range(10, 20)], &[range(5, 12), range(14, 14), range(19, 40)], &[15])),
            [(13, 13), (16, 18)]
        );
        assert_eq!(all(&notes(&[range(10, 20), range(30, 31)], &[range(10, 20)], &[30, 31])), []);
        let clipped = notes(&[range(10, 20)], &[], &[15]).first_gap(TaskNumber(12), TaskNumber(13));
        assert_eq!(clipped, Some(range(12, 13)));
    }

    #[test]
    fn places_are_runs_of_tasks_and_messages() {
        let told = |tasks: &[(u64, u64)]| {
            let places = places("S", tasks.iter().map(|(number, sequence)| (TaskNumber(*number), *sequence)));
            places.into_iter().map(|place| (place.first.0, place.last.0, place.locator)).collect::<Vec<_>>()
        };
        assert_eq!(told(&[(5, 2), (6, 3), (7, 4)]), [(5, 7, "nats:S:2-4".to_owned())]);
        let parts = [(5, 6, "nats:S:2-3"), (7, 7, "nats:S:5"), (9, 9, "nats:S:6")];
        assert_eq!(told(&[(5, 2), (6, 3), (7, 5), (9, 6)]), parts.map(|(a, b, at)| (a, b, at.to_owned())));
    }
}
