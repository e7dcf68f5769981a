//! What a backup says of the past, believed only where it hangs on what this node knows by itself: the genesis, the
//! epochs, and the changes of the members in its own state. A batch counts if batches lead from it, by their parents'
//! hashes, to one that a majority of the members in force had certified, or that an epoch of this network follows.

use std::collections::BTreeSet;

use lockstep_consensus::{ReadError, StateStore};
use lockstep_ledger::Head;
use lockstep_outputs::UnsignedTask;
use lockstep_types::verify::{Outline, VerifyError};
use lockstep_types::{
    Address, Batch, BatchHash, Certificate, Epoch, EpochRecord, Epochs, Genesis, Height, MemberSet, MessageId,
    NetworkId, OrderedMessage, Sequence, Task, TaskNumber,
};

use crate::error::NodeError;
use crate::limits::READ_BYTES_MAX;
use crate::publish::TaskReader;

/// Batches that are believed together, by one certificate.
const STRETCH_BATCHES_MAX: u64 = 4_096;
/// Batches of one read.
const PAGE_BATCHES: usize = 64;
/// Changes of the members of one read.
const BOUNDARIES_TOGETHER: usize = 256;

/// Why a backup is not believed, or not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum HistoryError {
    /// It cannot be read.
    #[error(transparent)]
    State(#[from] ReadError),
    /// It contradicts itself.
    #[error("it is not of this network's history: {0}")]
    Verify(#[from] VerifyError),
    /// It contradicts what this node knows.
    #[error("it is not of this network's history: {0}")]
    Foreign(String),
}

fn foreign(reason: impl Into<String>) -> HistoryError {
    HistoryError::Foreign(reason.into())
}

/// What this node knows by itself.
pub(super) struct Known {
    network: NetworkId,
    epochs: Epochs,
    first_task: TaskNumber,
    /// Member sets, each with the height behind which it is in force, ascending.
    sets: Vec<(Height, MemberSet)>,
    /// All who are or were members.
    addresses: BTreeSet<Address>,
}

impl Known {
    /// From the node's own state.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of(genesis: &Genesis, epochs: &Epochs, own: &StateStore) -> Result<Self, NodeError> {
        let mut sets = vec![(Height(0), genesis.first_set()?)];
        let mut next = Height(0);
        loop {
            let page = own.boundaries(next, BOUNDARIES_TOGETHER)?;
            let Some((last, _)) = page.last() else { break };
            next = last.header.height.next();
            sets.extend(page.into_iter().filter_map(|(batch, _)| Some((batch.header.height, batch.next_set?))));
        }
        for record in epochs.records() {
            sets.push((record.parent_height, record.set()?));
        }
        // An epoch's set comes behind a change at its parent's height, which it replaces: the sort keeps their order.
        sets.sort_by_key(|(height, _)| *height);
        let addresses = sets.iter().flat_map(|(_, set)| &set.0).map(|member| member.address).collect();
        let first_task = genesis.params.first_task_number;
        Ok(Self { network: genesis.id()?, epochs: epochs.clone(), first_task, sets, addresses })
    }

    /// The set whose voters certify a height.
    fn set_at(&self, height: Height) -> Option<&MemberSet> {
        self.sets.iter().rev().find(|(behind, _)| *behind < height).map(|(_, set)| set)
    }

    /// The epoch that a height is in.
    fn epoch_at(&self, height: Height) -> Epoch {
        let begun = self.epochs.records().iter().rev().find(|record| record.parent_height < height);
        begun.map_or(Epoch(0), |record| record.epoch)
    }

    /// How the epoch began that follows the one that a height is in.
    fn epoch_behind(&self, height: Height) -> Option<&EpochRecord> {
        self.epochs.records().iter().find(|record| record.parent_height >= height)
    }
}

/// What makes a stretch of batches believed: the hash of its last one.
struct Anchor {
    height: Height,
    hash: BatchHash,
    /// `None`: an epoch follows it.
    certificate: Option<Certificate>,
}

/// A stretch of batches that is believed.
pub(super) struct Stretch {
    first: Height,
    last: Height,
    /// First message and height of every believed batch, ascending; some are before `first`, for tasks that reach back.
    places: Vec<(Sequence, Height)>,
    /// The task behind its last one.
    pub next_task: TaskNumber,
}

/// See the module's documentation.
pub(super) struct BackupHistory<'a> {
    state: StateStore,
    known: &'a Known,
}

impl<'a> BackupHistory<'a> {
    pub fn new(state: StateStore, known: &'a Known) -> Self {
        Self { state, known }
    }

    /// Number of the oldest task in the backup.
    pub fn oldest_task(&self) -> Result<TaskNumber, HistoryError> {
        let head = self.state.head()?.unwrap_or_else(|| Head::genesis(self.known.first_task));
        Ok(head.horizon.task_number.max(self.known.first_task))
    }

    /// The stretch that begins with the batch of a task; `None` where the backup has nothing that can be believed of it.
    pub fn stretch(&self, task: TaskNumber) -> Result<Option<Stretch>, HistoryError> {
        let Some(first) = self.state.batch_of_task(task)?.map(|batch| batch.header.height) else { return Ok(None) };
        let Some(anchor) = self.anchor(first)? else { return Ok(None) };
        let mut chain = Chain::default();
        self.follow(first, anchor.height, anchor.hash, &mut chain)?;
        self.check_anchor(&anchor, &chain)?;
        let mut places = chain.places;
        let reaches_to = chain.lowest.unwrap_or(chain.first_sequence);
        if reaches_to < chain.first_sequence {
            let missing = || foreign(format!("message {reaches_to} of a task is missing"));
            let before = self.state.batch_of_message(reaches_to)?.ok_or_else(missing)?.header.height;
            let mut earlier = Chain::default();
            let parent = chain.parent.unwrap_or(BatchHash::ZERO);
            self.follow(before, Height(first.0.saturating_sub(1)), parent, &mut earlier)?;
            places = [earlier.places, places].concat();
        }
        Ok(Some(Stretch { first, last: anchor.height, places, next_task: chain.next_task }))
    }

    /// What the batch at a height can hang on.
    fn anchor(&self, from: Height) -> Result<Option<Anchor>, HistoryError> {
        let behind = self.known.epoch_behind(from);
        let end = behind.map_or(Height(u64::MAX), |record| record.parent_height);
        let far = end.min(Height(from.0.saturating_add(STRETCH_BATCHES_MAX)));
        let (mut best, mut next) = (None, from);
        while let Some(certificate) = self.state.certificate_from(next)?.filter(|found| found.height <= far) {
            next = certificate.height.next();
            best = Some(certificate);
        }
        if best.is_none() {
            best = self.state.certificate_from(from)?.filter(|found| found.height <= end);
        }
        if let Some(certificate) = best {
            let (height, hash) = (certificate.height, certificate.hash);
            return Ok(Some(Anchor { height, hash, certificate: Some(certificate) }));
        }
        let Some(record) = behind else { return Ok(None) };
        let (height, hash) = (record.parent_height, record.parent_hash);
        let has = self.state.batch(height)?.is_some();
        Ok(has.then_some(Anchor { height, hash, certificate: None }))
    }

    fn check_anchor(&self, anchor: &Anchor, chain: &Chain) -> Result<(), HistoryError> {
        let Some(certificate) = &anchor.certificate else { return Ok(()) };
        let at = anchor.height;
        let unknown = || foreign(format!("nobody is known who certifies height {at}"));
        let set = self.known.set_at(at).ok_or_else(unknown)?;
        if chain.members != set.hash() {
            return Err(foreign(format!("batch {at} names other members than those in force")));
        }
        certificate.verify(set).map_err(|error| foreign(format!("the certificate of height {at}: {error}")))
    }

    /// Checks that the batches from `first` to `last` are what they say and follow each other, up to one with this hash.
    fn follow(&self, first: Height, last: Height, hash: BatchHash, chain: &mut Chain) -> Result<(), HistoryError> {
        let mut next = first;
        let mut newest = None;
        while next <= last {
            let page = self.state.batches(next, PAGE_BATCHES, READ_BYTES_MAX)?;
            if page.is_empty() {
                return Err(foreign(format!("batch {next} is missing")));
            }
            for batch in page.into_iter().take_while(|batch| batch.header.height <= last) {
                let header = &batch.header;
                if header.height != next {
                    return Err(foreign(format!("batch {next} is missing")));
                }
                if header.network != self.known.network || header.epoch != self.known.epoch_at(next) {
                    return Err(foreign(format!("batch {next} is of another network or epoch")));
                }
                if newest.is_some_and(|newest| newest != header.parent) {
                    return Err(foreign(format!("batch {next} does not follow the one before")));
                }
                let outline = Outline::of(&batch)?;
                newest = Some(outline.hash());
                chain.add(&batch);
                next = next.next();
            }
        }
        if newest == Some(hash) {
            return Ok(());
        }
        Err(foreign(format!("batch {last} is not the one that was certified, or that others follow")))
    }

    /// Hands over the tasks of a stretch from `first` to `last`, by number.
    pub fn tasks<E: From<HistoryError>>(
        &self,
        stretch: &Stretch,
        (first, last): (TaskNumber, TaskNumber),
        mut take: impl FnMut(UnsignedTask) -> Result<(), E>,
    ) -> Result<(), E> {
        let read = |error: ReadError| E::from(error.into());
        let mut reader = TaskReader::new(|sequence| self.believed(stretch, sequence));
        let mut next = stretch.first;
        while next <= stretch.last {
            let page = self.state.batches(next, PAGE_BATCHES, READ_BYTES_MAX).map_err(read)?;
            let Some(newest) = page.last() else { return Ok(()) };
            next = newest.header.height.next();
            for batch in page.iter().take_while(|batch| batch.header.height <= stretch.last) {
                for task in batch.tasks.iter().filter(|task| (first..=last).contains(&task.number)) {
                    let mut packed = Packed::new(task, self.known);
                    let unsigned = reader.read(batch, task, |message| packed.add(message)).map_err(read)?;
                    packed.check()?;
                    take(unsigned)?;
                }
            }
        }
        Ok(())
    }

    /// The believed batch of a message.
    fn believed(&self, stretch: &Stretch, sequence: Sequence) -> Result<Option<Batch>, ReadError> {
        let behind = stretch.places.partition_point(|(first, _)| *first <= sequence);
        let Some((_, height)) = behind.checked_sub(1).map(|at| stretch.places[at]) else { return Ok(None) };
        Ok(self.state.batch(height)?.filter(|batch| batch.message_at(sequence).is_some()))
    }
}

/// What is learnt while batches are followed.
#[derive(Default)]
struct Chain {
    begun: bool,
    places: Vec<(Sequence, Height)>,
    /// Of the first batch.
    first_sequence: Sequence,
    /// See `first_sequence`.
    parent: Option<BatchHash>,
    /// The first message of any task in it.
    lowest: Option<Sequence>,
    /// Of the last batch.
    members: lockstep_types::Hash32,
    /// See `members`.
    next_task: TaskNumber,
}

impl Chain {
    fn add(&mut self, batch: &Batch) {
        let header = &batch.header;
        if !std::mem::replace(&mut self.begun, true) {
            (self.first_sequence, self.parent) = (header.first_sequence, Some(header.parent));
        }
        // A batch without messages has the sequence of the next one's.
        if header.message_count > 0 {
            self.places.push((header.first_sequence, header.height));
        }
        let first = batch.tasks.iter().map(Task::first_sequence).min();
        self.lowest = self.lowest.into_iter().chain(first).min();
        self.members = header.members;
        self.next_task = TaskNumber(header.first_task_number.0 + header.task_count);
    }
}

/// Whether a task's messages are those that its id names. The batch's root commits to the id, and the id to the messages.
struct Packed<'a> {
    task: &'a Task,
    known: &'a Known,
    ids: Vec<MessageId>,
    wrong: Option<&'static str>,
}

impl<'a> Packed<'a> {
    fn new(task: &'a Task, known: &'a Known) -> Self {
        Self { task, known, ids: Vec::with_capacity(task.sequences.len()), wrong: None }
    }

    fn add(&mut self, ordered: &OrderedMessage) {
        let (task, message) = (self.task, &ordered.message);
        let same = message.project_id == task.project_id
            && message.project_version == task.project_version
            && (message.device == task.device || task.mixes_devices());
        if !same {
            self.wrong = Some("a message in it is of another project, version or device");
        }
        // Where an id names what the message says, nothing is left open. One that came again has another id, and its
        // evidence speaks for what it says.
        let content = message.content_id();
        let trusted = |address: &Address| self.known.addresses.contains(address);
        if content.0 != ordered.id.0 && !message.evidence_holds(&content, trusted) {
            self.wrong = Some("the evidence of a message in it does not hold");
        }
        self.ids.push(ordered.id);
    }

    fn check(self) -> Result<(), HistoryError> {
        let task = self.task;
        let (first, ruled) = (task.first_sequence(), task.ruled_with_device());
        let id = Task::id_of(&self.known.network, task.project_id, first, self.ids.iter(), ruled);
        let other = (id != task.id).then_some("its messages are not those that its id names");
        match self.wrong.or(other) {
            Some(reason) => Err(foreign(format!("task {}: {reason}", task.number))),
            None => Ok(()),
        }
    }
}
