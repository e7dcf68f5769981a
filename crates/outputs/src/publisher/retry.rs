//! Tasks that a store refused: what is shown of them, and how they are tried again.

use std::sync::Arc;

use lockstep_types::TaskNumber;

use super::work::{Problem, Work};
use super::{BYTES_PER_PUBLISH_MAX, TASKS_PER_PUBLISH_MAX};
use crate::aside::{REFUSED_PER_ANSWER_MAX, RefusedTask, SetAside};
use crate::output::{FinalTask, OutputError};
use crate::source::{SourceError, UnsignedTask};

/// What stands in the place of a reason while tasks that waited are published.
const RESUMING: &str = "its tasks that waited are being published";

impl Work {
    /// Shows what is set aside. Returns whether a retry was broken off.
    pub(super) async fn look_at_refused(&self) -> Result<bool, OutputError> {
        let Some(aside) = self.options.output.aside() else { return Ok(false) };
        let refusals = aside.refused(None).await?;
        let broken_off = refusals.tasks.iter().any(|task| task.id.is_none());
        self.set(|status| {
            status.refused_count = refusals.count;
            status.refused = refusals.tasks.into_iter().map(|task| (task.number, task.reason)).collect();
        });
        Ok(broken_off)
    }

    /// Tries what is set aside again; `last` is the store's last task. What is refused again stays.
    pub(super) async fn retry_refused(&mut self, last: Option<TaskNumber>) -> Result<(), Problem> {
        let output = Arc::clone(&self.options.output);
        let (Some(aside), Some(last)) = (output.aside(), last) else { return Ok(()) };
        let mut after = None;
        loop {
            let page = aside.refused(after).await?.tasks;
            for refused in &page {
                if output.layout().halts() {
                    self.resume(aside, refused, last).await?;
                } else {
                    self.fill_in(refused).await?;
                }
            }
            if page.len() < REFUSED_PER_ANSWER_MAX {
                break;
            }
            after = page.last().map(|task| task.number);
        }
        self.look_at_refused().await?;
        Ok(())
    }

    /// Where nothing else waits for the task.
    async fn fill_in(&self, refused: &RefusedTask) -> Result<(), Problem> {
        let tasks = match self.read_from(refused.number, 1).await {
            Err(SourceError::Forgotten(_)) => {
                let output = self.options.name.as_str();
                tracing::warn!(output, task = %refused.number, "a refused task is forgotten by the network and cannot be tried again");
                return Ok(());
            }
            tasks => tasks?,
        };
        // In another epoch the number may be another task's.
        let same = tasks.into_iter().filter(|task| Some(task.id) == refused.id).collect();
        let tasks = self.sign(same).await?;
        if tasks.is_empty() {
            return Ok(());
        }
        match self.options.output.fill(&tasks).await {
            Ok(()) | Err(OutputError::Refused { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Publishes a halted project's tasks up to `last`, the store's last task, in order.
    async fn resume(&self, aside: &dyn SetAside, halt: &RefusedTask, last: TaskNumber) -> Result<(), Problem> {
        let project = halt.project_id;
        let mut from = halt.number;
        while from <= last {
            let (tasks, end) = match self.read_from(from, TASKS_PER_PUBLISH_MAX).await {
                Err(SourceError::Forgotten(until)) => (Vec::new(), self.lose(halt, from, until.min(last))),
                Err(error) => return Err(error.into()),
                Ok(tasks) => {
                    let Some(end) = tasks.last().map(|task| task.number.min(last)) else {
                        return Err(SourceError::Unavailable(format!("task {from} is final, but not there")).into());
                    };
                    let waits = |task: &UnsignedTask| task.project_id == project && task.number <= end;
                    (self.sign(tasks.into_iter().filter(waits).collect()).await?, end)
                }
            };
            let to = RefusedTask { number: end.next(), id: None, project_id: project, reason: RESUMING.to_owned() };
            match aside.resume(from, &tasks, &to).await {
                Ok(()) => from = to.number,
                Err(OutputError::Refused { task, reason }) => {
                    let id = tasks.iter().find(|other| other.number == task).map(|task| task.id);
                    let to = RefusedTask { number: task, id, project_id: project, reason };
                    return Ok(self.halt_again(aside, &tasks, &to).await?);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(aside.lift(project, last).await?)
    }

    /// The next task of a project that waited is refused in its turn: publishes what stands before it.
    async fn halt_again(&self, aside: &dyn SetAside, tasks: &[FinalTask], to: &RefusedTask) -> Result<(), OutputError> {
        // Some of them may have been published by the call that was refused.
        let mut after = None;
        loop {
            let page = aside.refused(after).await?.tasks;
            if let Some(halt) = page.iter().find(|halt| halt.project_id == to.project_id) {
                let waiting = tasks.iter().filter(|task| task.number >= halt.number && task.number < to.number);
                let waiting: Vec<FinalTask> = waiting.cloned().collect();
                return aside.resume(halt.number, &waiting, to).await;
            }
            if page.len() < REFUSED_PER_ANSWER_MAX {
                return Err(OutputError::Retryable(format!("project {} halts no longer", to.project_id)));
            }
            after = page.last().map(|task| task.number);
        }
    }

    /// Tasks of a project that waited are forgotten meanwhile.
    fn lose(&self, halt: &RefusedTask, first: TaskNumber, until: TaskNumber) -> TaskNumber {
        let output = self.options.name.as_str();
        tracing::error!(output, project = %halt.project_id, %first, last = %until, "tasks of a halted project were forgotten while they waited: the output has a gap");
        self.set(|status| status.newest_gap = Some((first, until)));
        until
    }

    /// Final tasks from a number on.
    async fn read_from(&self, first: TaskNumber, max_tasks: usize) -> Result<Vec<UnsignedTask>, SourceError> {
        let before = (first > self.options.owner.first_task_number).then(|| TaskNumber(first.0 - 1));
        self.options.source.tasks_after(before, max_tasks, BYTES_PER_PUBLISH_MAX).await
    }
}
