//! How many bytes of log lie behind an index, kept with a few numbers instead of one for each entry.

use std::collections::VecDeque;

/// A mark is set each time that this many bytes were appended.
const MARK_BYTES: u64 = 256 << 10;

/// All bytes of entries up to an index, counted from some point before the first entry that is left.
#[derive(Debug, Clone, Copy)]
struct Mark {
    index: u64,
    total: u64,
}

/// Bytes of the log, to within a mark.
#[derive(Debug, Default)]
pub(crate) struct LogSize {
    marks: VecDeque<Mark>,
    last: u64,
    total: u64,
}

impl LogSize {
    /// A log that was found on disk, from behind `purged` to `last`: its bytes are taken to be spread evenly.
    pub fn found(purged: u64, last: u64, bytes: u64) -> Self {
        let mut size = Self { last, total: bytes, ..Self::default() };
        let entries = last.saturating_sub(purged);
        let steps = (bytes / MARK_BYTES).min(entries).min(4096);
        for step in 0..=steps {
            let part = |whole: u64| u64::try_from(u128::from(whole) * u128::from(step) / u128::from(steps.max(1)));
            let mark = Mark { index: purged + part(entries).unwrap_or(0), total: part(bytes).unwrap_or(0) };
            size.marks.push_back(mark);
        }
        size
    }

    pub fn appended(&mut self, index: u64, bytes: u64) {
        if self.marks.back().is_none_or(|mark| self.total >= mark.total + MARK_BYTES) {
            self.marks.push_back(Mark { index: index.saturating_sub(1), total: self.total });
        }
        self.last = index;
        self.total += bytes;
    }

    /// Entries behind `index` are gone.
    pub fn truncated(&mut self, index: u64) {
        self.total = self.total_at(index);
        self.last = self.last.min(index);
        while self.marks.pop_back_if(|mark| mark.index > index).is_some() {}
    }

    /// Entries up to `index` are gone.
    pub fn purged(&mut self, index: u64) {
        if index >= self.last {
            // No marks are left; the next entry sets one.
            *self = Self { last: index, ..Self::default() };
            return;
        }
        let at = Mark { index, total: self.total_at(index) };
        while self.marks.pop_front_if(|mark| mark.index <= index).is_some() {}
        self.marks.push_front(at);
    }

    /// Bytes of the entries behind `index`.
    pub fn bytes_after(&self, index: u64) -> u64 {
        self.total.saturating_sub(self.total_at(index))
    }

    /// Bytes of all entries that are left.
    pub fn bytes(&self) -> u64 {
        self.total.saturating_sub(self.marks.front().map_or(0, |mark| mark.total))
    }

    /// The lowest index at or below `upto`, as far as it is known, behind which no more than `bytes` of entries up to
    /// `upto` lie.
    pub fn index_with_bytes_to(&self, upto: u64, bytes: u64) -> u64 {
        let wanted = self.total_at(upto).saturating_sub(bytes);
        let fits = |mark: &&Mark| mark.total >= wanted && mark.index <= upto;
        self.marks.iter().find(fits).map_or(upto, |mark| mark.index)
    }

    /// Between two marks the bytes are taken to be spread evenly.
    fn total_at(&self, index: u64) -> u64 {
        if index >= self.last {
            return self.total;
        }
        let after = self.marks.partition_point(|mark| mark.index <= index);
        let Some(before) = after.checked_sub(1).map(|i| self.marks[i]) else {
            return self.marks.front().map_or(0, |mark| mark.total);
        };
        let next = self.marks.get(after).copied().unwrap_or(Mark { index: self.last, total: self.total });
        let (entries, bytes) = (next.index - before.index, next.total - before.total);
        let part = u128::from(bytes) * u128::from(index - before.index) / u128::from(entries.max(1));
        before.total + u64::try_from(part).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 10_000;

    fn filled(from: u64, to: u64) -> LogSize {
        let mut size = LogSize::default();
        (from..=to).for_each(|index| size.appended(index, ENTRY));
        size
    }

    fn near(actual: u64, expected: u64) {
        assert!(actual.abs_diff(expected) <= MARK_BYTES + ENTRY, "{actual} is not about {expected}");
    }

    #[test]
    fn bytes_are_known_to_within_a_mark() {
        let size = filled(1, 1000);
        assert_eq!(size.bytes(), 1000 * ENTRY);
        for index in [0, 1, 17, 500, 999, 1000, 5000] {
            near(size.bytes_after(index), 1000_u64.saturating_sub(index) * ENTRY);
        }
        near(size.index_with_bytes_to(900, 100 * ENTRY) * ENTRY, 800 * ENTRY);
        assert_eq!(size.index_with_bytes_to(900, 0), 900);
        assert_eq!(size.index_with_bytes_to(900, u64::MAX), 0);
        assert!(size.marks.len() < 50);
    }

    #[test]
    fn purging_and_truncating_take_their_part_away() {
        let mut size = filled(1, 1000);
        size.purged(400);
        near(size.bytes(), 600 * ENTRY);
        near(size.bytes_after(0), 600 * ENTRY);
        near(size.bytes_after(700), 300 * ENTRY);
        size.truncated(800);
        near(size.bytes(), 400 * ENTRY);
        size.appended(801, ENTRY);
        near(size.bytes_after(800), ENTRY);
        near(size.bytes_after(700), 101 * ENTRY);
        size.purged(2000);
        assert_eq!((size.bytes(), size.bytes_after(0), size.bytes_after(2000)), (0, 0, 0));
        size.appended(2001, ENTRY);
        assert_eq!((size.bytes(), size.bytes_after(2000)), (ENTRY, ENTRY));
    }

    #[test]
    fn a_log_found_on_disk_counts_as_evenly_spread() {
        let mut size = LogSize::found(100, 1100, 1000 * ENTRY);
        assert_eq!(size.bytes(), 1000 * ENTRY);
        near(size.bytes_after(600), 500 * ENTRY);
        size.appended(1101, ENTRY);
        assert_eq!(size.bytes_after(1100), ENTRY);
        let empty = LogSize::found(0, 0, 0);
        assert_eq!((empty.bytes(), empty.bytes_after(0)), (0, 0));
    }
}
