//! What every store of tasks promises.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_types::{
    Address, Epoch, MessageId, NetworkId, ProjectId, Ruled, Sequence, Signature, TaskId, TaskNumber, TimeMs,
};

use crate::aside::SetAside;
use crate::layout::Layout;
use crate::origin::Origin;
use crate::stored::{Page, StrayMark, Strays};

pub use lockstep_types::place::{COMMITMENT_BYTES_MAX, LOCATOR_BYTES_MAX, Place, Stage};

/// A message as readers get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinalMessage {
    /// Its place in the order.
    pub sequence: Sequence,
    /// Its name; zeros where it was read from a store that does not keep it (layout apinode).
    pub id: MessageId,
    /// Its payload.
    pub data: Bytes,
}

impl FinalMessage {
    /// A task's messages as readers get them: see [`lockstep_types::task::rows`].
    pub fn rows(id: &TaskId, ruled: Option<&Ruled>, messages: Vec<Self>) -> Vec<Self> {
        if ruled.is_none() {
            return messages;
        }
        let messages = messages.into_iter().map(|message| (message.sequence, message.id, message.data)).collect();
        let rows = lockstep_types::task::rows(id, ruled, messages).into_iter();
        rows.map(|(sequence, id, data)| Self { sequence, id, data }).collect()
    }
}

/// A task of a final batch, with its payloads, signed for the readers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinalTask {
    /// Its place among all tasks of the network.
    pub number: TaskNumber,
    /// Its name.
    pub id: TaskId,
    /// Project of all its messages.
    pub project_id: ProjectId,
    /// Project version of all its messages.
    pub project_version: String,
    /// Device of all its messages; zeros where they have none.
    pub device: Address,
    /// Time of the batch that closed it, so that every node writes the same.
    pub time_ms: TimeMs,
    /// Its messages as readers get them, by ascending sequence, at least one: see [`FinalMessage::rows`]. Sequences of
    /// different tasks may interleave.
    pub messages: Vec<FinalMessage>,
    /// Signature of the task key over [`FinalTask::digest`] in the store's layout.
    pub signature: Signature,
    /// Where it comes from; only for stores that ask for it ([`Output::part_bytes`]).
    pub origin: Option<Arc<Origin>>,
}

impl FinalTask {
    /// What the signature is over: what W3bstream's readers of a layout check.
    pub fn digest(&self, layout: Layout) -> lockstep_types::Hash32 {
        layout.digest(self)
    }
}

/// Whose tasks a store holds. It is written into the store at first use and compared ever after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The network.
    pub network: NetworkId,
    /// Its epoch: a history that may have lost its tail never continues the old one.
    pub epoch: Epoch,
    /// Number of the network's first task.
    pub first_task_number: TaskNumber,
}

impl Owner {
    /// Number of the task that follows `last`.
    pub fn next(&self, last: Option<TaskNumber>) -> TaskNumber {
        last.map_or(self.first_task_number, TaskNumber::next)
    }
}

/// What is known when a store is taken over into the owner's epoch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Adoption {
    /// Epochs after the first, with the number of the first task of each: what an earlier epoch published from that
    /// number on is not part of this history.
    pub first_tasks: Vec<(Epoch, TaskNumber)>,
    /// Take the store over although it is ahead. Its rows stay, also those that are not part of this history, and the
    /// next task that it gets is the one after its last number.
    pub accept_ahead: bool,
}

/// What became of a store that was taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adopted {
    /// Epoch that it was of; the owner's own where there was nothing to do.
    pub from: Epoch,
    /// Number of the last task in it.
    pub last: Option<TaskNumber>,
    /// First and last number of tasks in it that are not part of this history.
    pub foreign: Option<(TaskNumber, TaskNumber)>,
}

/// What a store confirms: these tasks are in it, durably. The same tasks always give an equal receipt, but for stores
/// that keep no cursor, which may tell another place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Number of the first task.
    pub first: TaskNumber,
    /// Number of the last task.
    pub last: TaskNumber,
    /// Name of the last task.
    pub last_id: TaskId,
    /// Where they are, by number.
    pub places: Vec<Place>,
}

impl Receipt {
    /// With all tasks in one place that is what it is: a table.
    pub(crate) fn in_table(mut self, locator: String) -> Self {
        let (first, last) = (self.first, self.last);
        self.places = vec![Place { first, last, locator, commitment: Vec::new(), height: None, stage: Stage::Final }];
        self
    }
}

/// Why tasks were not published, by what the caller can do. No variant ever contains a credential or a payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    /// Ask [`Output::last`] and try again later; the outcome of this call is unknown.
    #[error("the store is not available: {0}")]
    Retryable(String),
    /// Nothing was written: the store is not where the caller believed. Go on from there.
    #[error("the store's last task is {}", .actual_last.map_or_else(|| "none".to_owned(), |n| n.to_string()))]
    Moved {
        /// Number of the last task that is present.
        actual_last: Option<TaskNumber>,
    },
    /// This task can never be stored. The tasks before it can, and may have been by this call; it and those behind it
    /// were not.
    #[error("task {task} cannot be stored: {reason}")]
    Refused {
        /// The first task that does not fit.
        task: TaskNumber,
        /// What does not fit.
        reason: String,
    },
    /// Nothing was changed: the store has tasks of an earlier epoch that are not part of this history.
    #[error(
        "the store's last task is {last}, but the history of this epoch ends before task {first}: tasks {first} to {last} in it are of what was lost"
    )]
    Ahead {
        /// Number of its last task.
        last: TaskNumber,
        /// Number of the first task that is not part of this history.
        first: TaskNumber,
    },
    /// Nothing was written: the store holds what another network, epoch or program wrote. An operator must act.
    #[error("the store is not ours: {0}")]
    Foreign(String),
}

/// A store of tasks.
///
/// Published tasks become visible to readers all at once per call, in ascending order of their numbers, and never change
/// afterwards; only what is filled in ([`Output::fill`]) comes behind greater numbers. What a receipt confirms is durable. Several nodes may use one store at a time: a call that does not
/// follow what is there changes nothing. Dropping a call's future leaves either all of its tasks or none.
///
/// The caller vouches that it gives every task that is meant for the store: a number between two tasks, or between
/// `expected_last` and the first of them, that it does not give, is not for this store and no gap.
///
/// Stores that get blobs ([`Output::part_bytes`]) keep this for each blob instead of each call: what breaks off leaves
/// whole blobs, in order. Those without a cursor ([`Output::keeps_cursor`]) keep nobody out: what comes late or twice is
/// there again, in the same bytes.
#[async_trait]
pub trait Output: Send + Sync {
    /// Which readers it is for: what its tasks are signed as.
    fn layout(&self) -> Layout {
        Layout::Apinode
    }

    /// Where it remembers tasks that it cannot take; `None` where it cannot, and such a task stops everything.
    fn aside(&self) -> Option<&dyn SetAside> {
        None
    }

    /// Appends `tasks`, which are ascending, at least one, and behind `expected_last`, the number of the last task in the
    /// store (`None`: it is empty). The same tasks again change nothing and give an equal receipt, or
    /// [`OutputError::Moved`] where some of them were not written but set aside.
    async fn publish(&self, tasks: &[FinalTask], expected_last: Option<TaskNumber>) -> Result<Receipt, OutputError>;

    /// Notes that the tasks after `expected_last` up to `last` never come, because the network has forgotten them: what
    /// is published next follows `last`, and they are a gap. Already there or beyond: nothing changes.
    async fn skip(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError>;

    /// As [`Output::skip`], but of tasks that are not for this store: they are no gap.
    async fn pass(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        self.skip(last, expected_last).await
    }

    /// Inserts tasks that were skipped and were found again, or were refused and can be stored now. They are ascending,
    /// at least one, and none is above [`Output::last`], which stays where it is ([`OutputError::Moved`] otherwise).
    /// Those that are there already change nothing. Every one of them is in the store whole or not at all, also where the
    /// call breaks off half-way. Readers of the layout sprout never look back: what is filled in is there for other
    /// readers and for audits.
    async fn fill(&self, tasks: &[FinalTask]) -> Result<(), OutputError>;

    /// The first run of numbers from `first` to `last` that were skipped and have no task in the store. Its cost grows
    /// with the numbers that have one, so ask for a bounded range.
    async fn first_gap(
        &self,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError>;

    /// Notes that of the tasks from `first` to `last` those meant for this store were filled in: there is no gap any
    /// more. Needed only where some of them are not meant for it.
    async fn complete(&self, _first: TaskNumber, _last: TaskNumber) -> Result<(), OutputError> {
        Ok(())
    }

    /// Number of the last task that is present, or that was skipped or set aside. It is the truth; cursors elsewhere are
    /// hints.
    async fn last(&self) -> Result<Option<TaskNumber>, OutputError>;

    /// Takes a store of an earlier epoch of the same network over into the owner's: from then on only tasks of that
    /// epoch's history are taken, and writers of the earlier epoch are refused. A second time changes nothing.
    async fn adopt(&self, adoption: &Adoption) -> Result<Adopted, OutputError>;

    /// The task with this id, as it is in the store. For audits and tests: a store without an index of ids is searched,
    /// and one that keeps no cursor knows only what was published through this value.
    async fn read(&self, id: &TaskId) -> Result<Option<FinalTask>, OutputError>;

    /// What the store holds from task number `first` on, by ascending number, at most `max` tasks: for audits, which
    /// compare it with the chain. Fewer where they are large; none, and nothing damaged, where there are no more. Tasks
    /// that were filled in are in their place. `places` is what was recorded of where tasks from `first` on are,
    /// ascending: a store that cannot be walked by number reads those, and no others.
    async fn stored(&self, first: TaskNumber, max: usize, places: &[Place]) -> Result<Page, OutputError>;

    /// What the store has that belongs to no task: a part of it, `after` an earlier one. For audits. A store that holds
    /// nothing beside tasks has none.
    async fn strays(&self, _after: Option<&StrayMark>) -> Result<Strays, OutputError> {
        Ok(Strays::default())
    }

    /// Bytes of a blob, for a store that gets tasks with their origin, cut into blobs. `None`: it needs no origin.
    fn part_bytes(&self) -> Option<usize> {
        None
    }

    /// Whether the store itself knows its last task. One that does not gets tasks at least once: whoever publishes goes
    /// on from what was recorded, and `last` says only what this value has published.
    fn keeps_cursor(&self) -> bool {
        true
    }
}
