//! What becomes of a task that a store can never take: it is set aside with its reason, so that the others go on.

use async_trait::async_trait;
use lockstep_types::{ProjectId, TaskId, TaskNumber};

use crate::output::{FinalTask, OutputError};

/// Most bytes of a reason; more is cut off.
pub const REASON_BYTES_MAX: usize = 512;
/// Most refused tasks of one answer.
pub const REFUSED_PER_ANSWER_MAX: usize = 64;

/// A task that a store can never take. In a layout whose readers never look back it halts its project: later tasks of
/// that wait behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedTask {
    /// Its number; of a halted project, the number from which on its tasks wait.
    pub number: TaskNumber,
    /// Its id; `None` of a project that is being resumed, where nothing is known to be wrong with the task.
    pub id: Option<TaskId>,
    /// Its project.
    pub project_id: ProjectId,
    /// Why it was refused. Never a payload.
    pub reason: String,
}

impl RefusedTask {
    /// The reason as stores can hold it: of bounded length, without NUL.
    pub(crate) fn reason_column(&self) -> String {
        let mut reason = self.reason.replace('\0', "\u{FFFD}");
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        reason
    }
}

/// Tasks that were set aside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals {
    /// How many there are in all.
    pub count: u64,
    /// The first [`REFUSED_PER_ANSWER_MAX`] of those that were asked for, by ascending number.
    pub tasks: Vec<RefusedTask>,
}

/// The part of a store that remembers refused tasks. Each call happens whole or not at all.
#[async_trait]
pub trait SetAside: Send + Sync {
    /// Sets a task aside and moves the store's last task from `expected_last` to it. Already there or beyond: nothing
    /// changes. Where its project is halted already, only the last task moves: it waits like the others.
    async fn refuse(&self, task: &RefusedTask, expected_last: Option<TaskNumber>) -> Result<(), OutputError>;

    /// Tasks that are set aside, behind number `after`.
    async fn refused(&self, after: Option<TaskNumber>) -> Result<Refusals, OutputError>;

    /// Publishes tasks of a halted project: all of it from number `from`, where it halts, up to before `to`, where it
    /// halts from now on. [`OutputError::Moved`]: it does not halt at `from`; somebody else resumes it. Only for layouts
    /// in which projects halt; elsewhere a refused task comes in by [`crate::Output::fill`].
    async fn resume(&self, from: TaskNumber, tasks: &[FinalTask], to: &RefusedTask) -> Result<(), OutputError>;

    /// The project that halts behind `last`, the store's last task, halts no longer. [`OutputError::Moved`]: the store's
    /// last task is another one, up to which tasks may wait, or the project does not halt there.
    async fn lift(&self, project_id: ProjectId, last: TaskNumber) -> Result<(), OutputError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_fits_its_column() {
        let reason = format!("\0{}", "ü".repeat(REASON_BYTES_MAX));
        let task = RefusedTask { number: TaskNumber(1), id: None, project_id: ProjectId(7), reason };
        let column = task.reason_column();
        assert!(column.len() <= REASON_BYTES_MAX && column.starts_with("\u{FFFD}ü") && !column.contains('\0'));
    }
}
