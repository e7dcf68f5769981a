//! Reads what comes next, and makes an update for the log of it.

use lockstep_chain::{ChainError, ChainReader, Event, RANGE_BLOCKS_MAX, Range};
use lockstep_types::registry::{CHAIN_EVENTS_MAX, CHAIN_UPDATE_BYTES_MAX};
use lockstep_types::{ChainEvent, ChainUpdate};
use prost::Message as _;

use super::limits::CHAIN_EMPTY_BLOCKS;
use super::trouble::Trouble;

impl From<ChainError> for Trouble {
    fn from(error: ChainError) -> Self {
        let sentence = format!("the chain cannot be read: {error}");
        if error.is_retryable() { Self::Passing(sentence) } else { Self::Lasting(sentence) }
    }
}

/// What one look at the chain found.
#[derive(Debug)]
pub(super) enum Found {
    /// No block is confirmed that was not looked at.
    Nothing,
    /// Blocks in which nothing happened, too few to tell the log of. There may be more.
    Quiet,
    /// What the log should have.
    Update(ChainUpdate),
}

/// Looks for what comes after the log's last block. Keeps how far it has looked, so that blocks without events that
/// are not in the log yet are not read again and again.
#[derive(Debug, Default)]
pub(super) struct Scan {
    looked_at: Option<u64>,
}

impl Scan {
    /// Reads on where the last look ended; `next` is the first block that the log does not have, `confirmed` the last
    /// one that may be read.
    pub async fn look(&mut self, reader: &ChainReader, next: u64, confirmed: u64) -> Result<Found, Trouble> {
        let from = self.looked_at.map_or(next, |block| next.max(block.saturating_add(1)));
        if confirmed < from {
            return Ok(Found::Nothing);
        }
        let Some(part) = reader.next_range(from).await? else { return Ok(Found::Nothing) };
        if part.events.is_empty() && part.last - next < CHAIN_EMPTY_BLOCKS - 1 {
            self.looked_at = Some(part.last);
            return Ok(Found::Quiet);
        }
        let last = part.last.min(next.saturating_add(RANGE_BLOCKS_MAX - 1));
        let range = if from == next { part } else { reader.range(next, last).await? };
        fitting(reader, range).await.map(Found::Update)
    }
}

/// The range, or the first part of it that fits one entry of the log.
async fn fitting(reader: &ChainReader, mut range: Range) -> Result<ChainUpdate, Trouble> {
    loop {
        let (first, last) = (range.first, range.last);
        let update = update_of(range);
        if update.events.len() <= CHAIN_EVENTS_MAX && update.to_proto().encoded_len() <= CHAIN_UPDATE_BYTES_MAX {
            return Ok(update);
        }
        if first == last {
            return Err(Trouble::Lasting(format!(
                "block {first} of the chain has more events than an entry of the log can hold: the chain is followed no further"
            )));
        }
        range = reader.range(first, first + (last - first) / 2).await?;
    }
}

/// What the log keeps of a range.
pub(super) fn update_of(range: Range) -> ChainUpdate {
    ChainUpdate {
        first: range.first,
        last: range.last,
        parent_hash: range.parent_hash,
        last_hash: range.last_hash,
        events: range.events.into_iter().map(event_of).collect(),
    }
}

fn event_of(event: Event) -> ChainEvent {
    match event {
        Event::Device { device, owner, hash, uri, updated: _ } => ChainEvent::Device { device, owner, hash, uri },
        Event::Removed { device, owner: _ } => ChainEvent::Removed(device),
        Event::Approved { project, device } => ChainEvent::Approved(project, device),
        Event::Unapproved { project, device } => ChainEvent::Unapproved(project, device),
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::{Address, ProjectId};

    use super::*;

    #[test]
    fn an_update_has_what_was_read_in_its_order() {
        let (device, owner, project) = (Address([1; 20]), Address([2; 20]), ProjectId(7));
        let registered = Event::Device { device, owner, hash: [3; 32], uri: "ipfs://x".into(), updated: true };
        let range = Range {
            source: [9; 32],
            first: 4,
            last: 6,
            last_hash: [6; 32],
            parent_hash: [3; 32],
            events: vec![
                registered,
                Event::Approved { project, device },
                Event::Unapproved { project, device },
                Event::Removed { device, owner },
            ],
            ignored: 1,
        };
        let update = update_of(range);
        assert_eq!((update.first, update.last), (4, 6));
        assert_eq!((update.parent_hash, update.last_hash), ([3; 32], [6; 32]));
        let expected = vec![
            ChainEvent::Device { device, owner, hash: [3; 32], uri: "ipfs://x".into() },
            ChainEvent::Approved(project, device),
            ChainEvent::Unapproved(project, device),
            ChainEvent::Removed(device),
        ];
        assert_eq!(update.events, expected);
    }

    #[test]
    fn only_what_may_pass_is_waited_for() {
        assert!(matches!(Trouble::from(ChainError::Timeout), Trouble::Passing(_)));
        let wrong = ChainError::WrongChain { expected: 1, found: 2 };
        assert!(matches!(Trouble::from(wrong), Trouble::Lasting(_)));
    }
}
