//! Whether message ids follow from what the messages say, as far as what is kept can tell.

use std::collections::HashMap;

use crate::ids::{ContentId, Height, MessageId};

/// Most contents that are remembered, about 40 bytes each. Beyond it, ids of contents that come again are not checked.
const CONTENTS_MAX: usize = 4_000_000;

type ShortContent = [u8; 16];

#[derive(Debug, Clone, Copy)]
struct Seen {
    count: u32,
    /// Whether counting began after something had been forgotten.
    since_start: bool,
}

/// What became of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdCheck {
    Good,
    Wrong,
    /// Its content may have been ordered before what is kept begins.
    Unknown,
}

/// Counts how often each content was ordered.
#[derive(Debug)]
pub(super) struct Identities {
    seen: HashMap<ShortContent, Seen>,
    /// Where the kept history begins: the only height besides 0 at which counting may have begun.
    start: Height,
    /// Whether every earlier occurrence is in `seen`.
    complete: bool,
    contents_max: usize,
}

impl Identities {
    pub fn new(start: Height) -> Self {
        Self { seen: HashMap::new(), start, complete: start.0 <= 1, contents_max: CONTENTS_MAX }
    }

    pub fn check(&mut self, content: &ContentId, id: &MessageId) -> IdCheck {
        let mut key = ShortContent::default();
        key.copy_from_slice(&content.0[..16]);
        if let Some(seen) = self.seen.get_mut(&key) {
            let since = if seen.since_start { self.start } else { Height(0) };
            let count = seen.count.saturating_add(1);
            let good = MessageId::of_occurrence(content, u64::from(count), since) == *id;
            seen.count = count;
            return if good { IdCheck::Good } else { IdCheck::Wrong };
        }
        let first = |since| MessageId::of_occurrence(content, 1, since) == *id;
        let since_start = match (first(Height(0)), first(self.start)) {
            (true, _) => false,
            (_, true) => true,
            _ if self.complete => return IdCheck::Wrong,
            _ => return IdCheck::Unknown,
        };
        if self.seen.len() < self.contents_max {
            self.seen.insert(key, Seen { count: 1, since_start });
        } else {
            self.complete = false;
        }
        IdCheck::Good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: ContentId = ContentId([7; 32]);

    fn id(count: u64, since: u64) -> MessageId {
        MessageId::of_occurrence(&CONTENT, count, Height(since))
    }

    #[test]
    fn from_genesis_on_every_id_is_known() {
        let mut ids = Identities::new(Height(1));
        assert_eq!(ids.check(&CONTENT, &id(1, 0)), IdCheck::Good);
        assert_eq!(ids.check(&CONTENT, &id(2, 0)), IdCheck::Good);
        assert_eq!(ids.check(&CONTENT, &id(2, 0)), IdCheck::Wrong);
        assert_eq!(ids.check(&ContentId([8; 32]), &id(2, 0)), IdCheck::Wrong);
    }

    #[test]
    fn where_the_beginning_was_forgotten_what_counts_from_there_is_known() {
        let mut ids = Identities::new(Height(50));
        assert_eq!(ids.check(&CONTENT, &id(4, 0)), IdCheck::Unknown);
        assert_eq!(ids.check(&CONTENT, &id(1, 50)), IdCheck::Good);
        assert_eq!(ids.check(&CONTENT, &id(2, 50)), IdCheck::Good);
        assert_eq!(ids.check(&CONTENT, &id(1, 50)), IdCheck::Wrong);
    }

    #[test]
    fn memory_is_bounded() {
        let mut ids = Identities { contents_max: 1, ..Identities::new(Height(1)) };
        let other = ContentId([8; 32]);
        assert_eq!(ids.check(&CONTENT, &id(1, 0)), IdCheck::Good);
        assert_eq!(ids.check(&other, &MessageId(other.0)), IdCheck::Good);
        let second = MessageId::of_occurrence(&other, 2, Height(0));
        assert_eq!(ids.check(&other, &second), IdCheck::Unknown);
        assert_eq!((ids.seen.len(), ids.check(&CONTENT, &id(2, 0))), (1, IdCheck::Good));
    }
}
