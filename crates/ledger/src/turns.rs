//! Queues of projects, from which messages are taken in turns: round robin, as of the packets of several senders on one
//! line, by bytes. A project with a long queue takes time from nobody who has a short one.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_types::{ContentId, ProjectId};

/// What a project may take in one turn; a larger message is a turn of its own. Far below a batch and a bundle, so that each of
/// these has turns of many projects.
const TURN_BYTES: usize = 32 << 10;

/// One project's messages.
#[derive(Debug)]
struct Queue {
    /// Its place in the line.
    place: u64,
    /// What is left of its turn.
    left_bytes: usize,
    /// By their numbers.
    messages: BTreeMap<u64, ContentId>,
}

/// See the module's documentation. Each step costs the logarithm of what waits, however many projects wait.
#[derive(Debug, Default)]
pub struct Turns {
    queues: BTreeMap<ProjectId, Queue>,
    /// The projects whose messages wait, by their places in the line.
    line: BTreeSet<(u64, ProjectId)>,
    next_place: u64,
    messages: usize,
}

impl Turns {
    /// Adds a message to its project's queue, which is in the order of these numbers: each project has a number once.
    pub fn insert(&mut self, project: ProjectId, number: u64, id: ContentId) {
        let Self { queues, line, next_place, .. } = self;
        let queue = queues.entry(project).or_insert_with(|| {
            let place = *next_place;
            *next_place += 1;
            line.insert((place, project));
            Queue { place, left_bytes: TURN_BYTES, messages: BTreeMap::new() }
        });
        if queue.messages.insert(number, id).is_none() {
            self.messages += 1;
        }
    }

    /// The message that is next: the first of the project whose turn it is.
    pub fn first(&self) -> Option<&ContentId> {
        let (_, project) = self.line.first()?;
        self.queues.get(project)?.messages.values().next()
    }

    /// Takes that message, of so many bytes, out of its queue.
    pub fn take_first(&mut self, bytes: usize) {
        let Some(&(place, project)) = self.line.first() else { return };
        let Some(queue) = self.queues.get_mut(&project) else { return };
        if queue.messages.pop_first().is_some() {
            self.messages -= 1;
        }
        queue.left_bytes = queue.left_bytes.saturating_sub(bytes);
        if queue.messages.is_empty() {
            self.line.remove(&(place, project));
            self.queues.remove(&project);
        } else if queue.left_bytes == 0 {
            self.line.remove(&(place, project));
            (queue.place, queue.left_bytes) = (self.next_place, TURN_BYTES);
            self.line.insert((queue.place, project));
            self.next_place += 1;
        }
    }

    /// Takes a message out of its queue out of turn.
    pub fn remove(&mut self, project: ProjectId, number: u64) {
        let Some(queue) = self.queues.get_mut(&project) else { return };
        if queue.messages.remove(&number).is_some() {
            self.messages -= 1;
        }
        if queue.messages.is_empty() {
            self.line.remove(&(queue.place, project));
            self.queues.remove(&project);
        }
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        *self = Self { next_place: self.next_place, ..Self::default() };
    }

    /// How many messages wait.
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(project: u64, number: u64) -> ContentId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&project.to_be_bytes());
        id[8..16].copy_from_slice(&number.to_be_bytes());
        ContentId(id)
    }

    fn named(id: &ContentId) -> (u64, u64) {
        let number = |at: usize| u64::from_be_bytes(id.0[at..at + 8].try_into().unwrap());
        (number(0), number(8))
    }

    fn queued(of: &[(u64, u64)]) -> Turns {
        let mut turns = Turns::default();
        for (project, messages) in of {
            for number in 0..*messages {
                turns.insert(ProjectId(*project), number, id(*project, number));
            }
        }
        turns
    }

    fn take(turns: &mut Turns, bytes: usize) -> Option<(u64, u64)> {
        let next = named(turns.first()?);
        turns.take_first(bytes);
        Some(next)
    }

    #[test]
    fn projects_take_turns_of_as_many_bytes_and_keep_their_own_order() {
        let mut turns = queued(&[(1, 9), (2, 2), (3, 3)]);
        let taken: Vec<_> = std::iter::from_fn(|| take(&mut turns, TURN_BYTES / 2)).collect();
        let expected = [1, 1, 2, 2, 3, 3, 1, 1, 3, 1, 1, 1, 1, 1];
        assert_eq!(taken.iter().map(|(project, _)| *project).collect::<Vec<_>>(), expected);
        for project in 1..=3 {
            let own: Vec<_> = taken.iter().filter(|(of, _)| *of == project).map(|(_, number)| *number).collect();
            assert!(own.is_sorted() && own.first() == Some(&0), "{own:?}");
        }
    }

    #[test]
    fn large_messages_get_a_project_no_more_bytes_than_small_ones_get_another() {
        let mut turns = queued(&[(1, 100), (2, 10_000)]);
        let (mut large, mut small) = (0, 0);
        while turns.len() > 5_000 {
            let is_large = named(turns.first().unwrap()).0 == 1;
            let bytes = if is_large { TURN_BYTES } else { 256 };
            turns.take_first(bytes);
            *(if is_large { &mut large } else { &mut small }) += bytes;
        }
        assert!(large <= small + TURN_BYTES && small <= large + TURN_BYTES, "{large} {small}");
    }

    #[test]
    fn who_comes_back_each_time_does_not_pass_who_waits() {
        let mut turns = queued(&[(1, 5)]);
        let mut taken = Vec::new();
        for number in 0..6 {
            turns.insert(ProjectId(2), number, id(2, number));
            taken.extend(take(&mut turns, TURN_BYTES).map(|(project, _)| project));
        }
        assert_eq!(taken, [1, 2, 1, 2, 1, 2]);
    }

    proptest! {
        #[test]
        fn what_is_put_in_comes_out_once_unless_it_was_removed(
            steps in prop::collection::vec((0_u8..4, 0_u64..5, 0_u64..20, 0_usize..2 * TURN_BYTES), 0..200)
        ) {
            let (mut turns, mut known) = (Turns::default(), BTreeSet::new());
            for (step, project, number, bytes) in steps {
                match step {
                    0 | 1 => {
                        turns.insert(ProjectId(project), number, id(project, number));
                        known.insert((project, number));
                    }
                    2 => {
                        turns.remove(ProjectId(project), number);
                        known.remove(&(project, number));
                    }
                    _ => {
                        let taken = take(&mut turns, bytes);
                        prop_assert_eq!(taken.is_none(), known.is_empty());
                        // The first of its project.
                        if let Some((project, number)) = taken {
                            let first = known.range((project, 0)..).next().copied();
                            prop_assert_eq!(first, Some((project, number)));
                            known.remove(&(project, number));
                        }
                    }
                }
                prop_assert_eq!(turns.len(), known.len());
                let projects: BTreeSet<_> = known.iter().map(|(project, _)| ProjectId(*project)).collect();
                let in_line: BTreeSet<_> = turns.line.iter().map(|(_, project)| *project).collect();
                prop_assert_eq!(&in_line, &projects);
                prop_assert_eq!(turns.queues.keys().copied().collect::<BTreeSet<_>>(), projects);
            }
        }
    }
}
