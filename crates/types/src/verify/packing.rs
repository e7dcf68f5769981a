//! Whether tasks are made of the messages that wait, in order, each once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ids::{MessageId, NetworkId, Sequence};
use crate::task::Task;
use crate::verify::error::TaskFault;
use crate::verify::outline::PackKey;

/// Messages that are in no task yet, by group: no more groups than the network allows.
#[derive(Debug)]
pub(super) struct Packing {
    waiting: BTreeMap<PackKey, VecDeque<(Sequence, MessageId)>>,
    /// First message of the history at hand: ids of earlier ones are not known. 0 where there are none.
    first_kept: Sequence,
    /// Groups that were open when the history at hand begins, and are tasks now. Each can be only once.
    reached_back: BTreeSet<PackKey>,
}

impl Packing {
    pub fn new(first_kept: Sequence) -> Self {
        Self { waiting: BTreeMap::new(), first_kept, reached_back: BTreeSet::new() }
    }

    pub fn add(&mut self, key: &PackKey, sequence: Sequence, id: MessageId) {
        match self.waiting.get_mut(key) {
            Some(group) => group.push_back((sequence, id)),
            None => drop(self.waiting.insert(key.clone(), VecDeque::from([(sequence, id)]))),
        }
    }

    /// Takes a task's messages away. Says whether its id could be checked: not where it reaches back to messages
    /// that were forgotten.
    pub fn close(&mut self, network: &NetworkId, task: &Task) -> Result<bool, TaskFault> {
        let key =
            PackKey { project_id: task.project_id, project_version: task.project_version.clone(), device: task.device };
        let first = task.sequences.first().copied().ok_or(TaskFault::Sequences)?;
        if first < self.first_kept && (first.0 == 0 || !self.reached_back.insert(key.clone())) {
            return Err(TaskFault::Message(first));
        }
        let mut ids = Vec::with_capacity(task.sequences.len());
        let group = self.waiting.get_mut(&key);
        let mut next = group.into_iter().flat_map(|group| std::iter::from_fn(|| group.pop_front()));
        for sequence in task.sequences.iter().filter(|sequence| **sequence >= self.first_kept) {
            match next.next() {
                Some((waits, id)) if waits == *sequence => ids.push(id),
                _ => return Err(TaskFault::Message(*sequence)),
            }
        }
        drop(next);
        if self.waiting.get(&key).is_some_and(VecDeque::is_empty) {
            self.waiting.remove(&key);
        }
        let known = ids.len() == task.sequences.len();
        if known && Task::id_of(network, task.project_id, first, ids.iter()) != task.id {
            return Err(TaskFault::Id);
        }
        Ok(known)
    }

    /// How many groups wait, or how many waited at the beginning: whichever are more.
    pub fn open(&self) -> usize {
        self.waiting.len().max(self.reached_back.len())
    }

    /// Groups that wait, and their messages.
    pub fn groups(&self) -> impl Iterator<Item = (&PackKey, &VecDeque<(Sequence, MessageId)>)> {
        self.waiting.iter()
    }
}
