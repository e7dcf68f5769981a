//! Whether tasks are made of the messages that wait, in order, each once.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::ids::{Address, MessageId, NetworkId, Sequence};
use crate::task::Task;
use crate::verify::error::TaskFault;
use crate::verify::outline::PackKey;

/// Messages that are in no task yet, by group: no more groups than the network allows.
#[derive(Debug)]
pub(super) struct Packing {
    waiting: BTreeMap<PackKey, VecDeque<(Sequence, MessageId)>>,
    /// Their devices: rules of projects put messages of several into one task.
    devices: HashMap<Sequence, Address>,
    /// First message of the history at hand: ids of earlier ones are not known. 0 where there are none.
    first_kept: Sequence,
    /// Groups that were open when the history at hand begins, and are tasks now. Each can be only once.
    reached_back: BTreeSet<PackKey>,
}

impl Packing {
    pub fn new(first_kept: Sequence) -> Self {
        Self { waiting: BTreeMap::new(), devices: HashMap::new(), first_kept, reached_back: BTreeSet::new() }
    }

    pub fn add(&mut self, key: &PackKey, sequence: Sequence, id: MessageId) {
        self.devices.insert(sequence, key.device);
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
        let first = task.sequences.iter().min().copied().ok_or(TaskFault::Sequences)?;
        let reaches_back = first < self.first_kept;
        // Of groups that rules make there can be several beside each other.
        if reaches_back && (first.0 == 0 || (!self.reached_back.insert(key.clone()) && task.ruled.is_none())) {
            return Err(TaskFault::Message(first));
        }
        if task.ruled.is_some() {
            let ids = self.take_ruled(key, task)?;
            let known = ids.len() == task.sequences.len();
            if known && Task::id_of(network, task.project_id, first, ids.iter(), task.ruled_with_device()) != task.id {
                return Err(TaskFault::Id);
            }
            return Ok(known);
        }
        let mut ids = Vec::with_capacity(task.sequences.len());
        let group = self.waiting.get_mut(&key);
        let mut next = group.into_iter().flat_map(|group| std::iter::from_fn(|| group.pop_front()));
        for sequence in task.sequences.iter().filter(|sequence| **sequence >= self.first_kept) {
            match next.next() {
                Some((waits, id)) if waits == *sequence => {
                    self.devices.remove(sequence);
                    ids.push(id);
                }
                _ => return Err(TaskFault::Message(*sequence)),
            }
        }
        drop(next);
        if self.waiting.get(&key).is_some_and(VecDeque::is_empty) {
            self.waiting.remove(&key);
        }
        let known = ids.len() == task.sequences.len();
        if known && Task::id_of(network, task.project_id, first, ids.iter(), None) != task.id {
            return Err(TaskFault::Id);
        }
        Ok(known)
    }

    /// Takes away what a project's rules have put into a task: any messages of its project and version that are in no other,
    /// of its device where it has one. Which of them belong together, only the rules say; they are part of what the voters
    /// certify.
    fn take_ruled(&mut self, mut key: PackKey, task: &Task) -> Result<Vec<MessageId>, TaskFault> {
        let mut ids = Vec::with_capacity(task.sequences.len());
        let mut reached_back = BTreeSet::new();
        for sequence in &task.sequences {
            if *sequence < self.first_kept {
                // Its own id is not known, but none is there twice.
                if sequence.0 == 0 || !reached_back.insert(*sequence) {
                    return Err(TaskFault::Message(*sequence));
                }
                continue;
            }
            let wrong = TaskFault::Message(*sequence);
            key.device = self.devices.remove(sequence).ok_or(wrong)?;
            if task.device != Address::ZERO && task.device != key.device {
                return Err(wrong);
            }
            let group = self.waiting.get_mut(&key).ok_or(wrong)?;
            let place = group.binary_search_by_key(sequence, |(waits, _)| *waits).map_err(|_| wrong)?;
            ids.extend(group.remove(place).map(|(_, id)| id));
            if group.is_empty() {
                self.waiting.remove(&key);
            }
        }
        Ok(ids)
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
