//! Whether readers of the feed saw the chain: every task once, in order, however often they moved to another node.

use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_types::{Height, MessageId, NodeId, Sequence, Task, TaskId, TaskNumber};

use super::{At, Chain, Promise, Sighting, Violations};

/// A task as a reader saw it: number, name, and places of its messages with their payloads.
pub type SeenTask = (TaskNumber, TaskId, Vec<(Sequence, Vec<u8>)>);

/// A page that a reader got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedPage {
    /// When.
    pub at: At,
    /// From which node.
    pub node: NodeId,
    /// Its tasks.
    pub tasks: Vec<SeenTask>,
}

/// Tasks of the chain by their numbers, and what they hold.
pub(super) struct Tasks<'a> {
    chain: &'a Chain,
    by_number: BTreeMap<TaskNumber, (&'a Task, Height)>,
}

impl<'a> Tasks<'a> {
    pub fn of(chain: &'a Chain) -> Self {
        let tasks =
            chain.batches.iter().flat_map(|b| b.tasks.iter().map(|task| (task.number, (task, b.header.height))));
        Self { chain, by_number: tasks.collect() }
    }

    pub fn first(&self) -> Option<TaskNumber> {
        self.by_number.keys().next().copied()
    }

    pub fn last(&self) -> Option<TaskNumber> {
        self.by_number.keys().next_back().copied()
    }

    /// The batch of a task.
    pub fn height(&self, number: TaskNumber) -> Option<Height> {
        self.by_number.get(&number).map(|(_, height)| *height)
    }

    /// Whether a task is the chain's.
    pub fn is(&self, number: TaskNumber, id: TaskId, messages: &[(Sequence, Vec<u8>)]) -> bool {
        let Some((task, _)) = self.by_number.get(&number) else { return false };
        let same = |(sequence, data): &(Sequence, Vec<u8>)| self.payload(*sequence) == Some(data);
        task.id == id
            && task.sequences.iter().eq(messages.iter().map(|(sequence, _)| sequence))
            && messages.iter().all(same)
    }

    /// Whether a task is the chain's, as stores have it.
    pub fn is_stored(&self, number: TaskNumber, id: TaskId, messages: &[(Sequence, Vec<u8>)]) -> bool {
        let Some((task, _)) = self.by_number.get(&number) else { return false };
        let Some(ruled) = task.ruled.as_deref() else { return self.is(number, id, messages) };
        let message = |sequence: &Sequence| {
            // Ids are no part of what is compared.
            Some((*sequence, MessageId::ZERO, Bytes::copy_from_slice(self.payload(*sequence)?)))
        };
        let Some(whole) = task.sequences.iter().map(message).collect::<Option<Vec<_>>>() else { return false };
        let expected = lockstep_types::task::rows(&task.id, Some(ruled), whole);
        let given = messages.iter().map(|(sequence, data)| (*sequence, &data[..]));
        task.id == id && expected.iter().map(|(sequence, _, data)| (*sequence, &data[..])).eq(given)
    }

    fn payload(&self, sequence: Sequence) -> Option<&[u8]> {
        let batches = &self.chain.batches;
        let at =
            batches.partition_point(|batch| batch.header.first_sequence.0 + batch.header.message_count <= sequence.0);
        let batch = batches.get(at)?;
        let index = usize::try_from(sequence.0.checked_sub(batch.header.first_sequence.0)?).ok()?;
        Some(&batch.messages.get(index)?.message.data)
    }
}

/// The newest final batch that anybody had seen, going on in time.
pub(super) struct Finality<'a> {
    seen: std::iter::Peekable<std::slice::Iter<'a, Sighting>>,
    newest: Height,
}

impl<'a> Finality<'a> {
    pub fn of(sightings: &'a [Sighting]) -> Self {
        Self { seen: sightings.iter().peekable(), newest: Height(0) }
    }

    /// At a time, not before the one that was asked for last.
    pub fn at(&mut self, at: At) -> Height {
        while let Some(sighting) = self.seen.next_if(|sighting| sighting.at <= at) {
            self.newest = self.newest.max(sighting.final_height);
        }
        self.newest
    }
}

/// Checks what one reader saw.
pub(super) fn check_feed(
    (reader, pages): (usize, &[FeedPage]),
    tasks: &Tasks<'_>,
    sightings: &[Sighting],
    violations: &mut Violations,
) {
    let mut wrong = |what: String| violations.add(Promise::Feed, format!("reader {reader}: {what}"));
    let (mut next, mut finality) = (tasks.first(), Finality::of(sightings));
    for page in pages {
        let newest_final = finality.at(page.at);
        for (number, id, messages) in &page.tasks {
            if Some(*number) != next {
                wrong(format!("node {} showed task {number} where {next:?} was next", page.node));
            }
            if !tasks.is(*number, *id, messages) {
                wrong(format!("node {} showed another task {number}", page.node));
            }
            if tasks.height(*number).is_none_or(|height| height > newest_final) {
                wrong(format!("node {} showed task {number} before it was final", page.node));
            }
            next = Some(number.next());
        }
    }
    let end = tasks.last().map(TaskNumber::next).or(next);
    if next != end {
        violations.add(Promise::Progress, format!("reader {reader} is to get {next:?}, and {end:?} would be next"));
    }
}
