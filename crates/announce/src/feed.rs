//! The port through which tasks come in.

use std::future::Future;

use lockstep_types::TaskNumber;

use crate::announcement::Announcement;

/// A task whose rows are committed in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommittedTask {
    /// Its number.
    pub number: TaskNumber,
    /// What provers are told.
    pub announcement: Announcement,
}

/// Why tasks cannot be read now; it is tried again by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tasks to announce cannot be read: {0}")]
pub struct FeedError(pub String);

/// Tasks to announce, and what became of them.
///
/// Calls may be dropped at any time and change nothing but what [`TaskFeed::remember`] keeps.
pub trait TaskFeed: Send + Sync + 'static {
    /// The tasks from `first` to `last`, in ascending order without a repeat, at most `max` of them and at least one
    /// where there is one. Those that are forgotten are left out.
    fn tasks(
        &self,
        first: TaskNumber,
        last: TaskNumber,
        max: usize,
    ) -> impl Future<Output = Result<Vec<CommittedTask>, FeedError>> + Send;

    /// Whether a prover has the task already, as far as this node knows.
    fn is_assigned(&self, task: &Announcement) -> bool;

    /// Keeps over a restart that each task before `next` was announced. A note that is lost does no harm.
    fn remember(&self, next: TaskNumber);
}
