//! Where the publisher's tasks come from and where its progress goes: the ports that the node fills.

use std::sync::Arc;

use async_trait::async_trait;
use lockstep_types::{Address, OutputName, ProjectId, Ruled, Signature, SigningKey, TaskId, TaskNumber, TimeMs};

use crate::layout::Layout;
use crate::origin::Origin;
use crate::output::{FinalMessage, FinalTask, Place};

/// A task of a final batch, before it is signed. Fields as in [`FinalTask`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsignedTask {
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
    /// Time of the batch that closed it.
    pub time_ms: TimeMs,
    /// Its messages in its order, at least one.
    pub messages: Vec<FinalMessage>,
    /// What the project's rules made of it.
    pub ruled: Option<Arc<Ruled>>,
    /// Where it comes from, where that was asked for.
    pub origin: Option<Arc<Origin>>,
}

impl UnsignedTask {
    /// Whether it is for an output.
    pub fn is_for(&self, output: &OutputName) -> bool {
        let outputs = self.ruled.as_ref().and_then(|ruled| ruled.outputs.as_ref());
        outputs.is_none_or(|outputs| outputs.contains(output))
    }
}

/// Why a source has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Ask again later.
    #[error("the tasks cannot be read: {0}")]
    Unavailable(String),
    /// The tasks that come next are no longer kept: an operator must mark a gap.
    #[error("the tasks are gone: {0}")]
    Gone(String),
    /// The tasks up to this one are no longer kept, and the log says so: the output has a gap.
    #[error("tasks up to {0} are no longer kept")]
    Forgotten(TaskNumber),
}

/// Final tasks, by number.
#[async_trait]
pub trait TaskSource: Send + Sync {
    /// The final tasks that follow `number` (`None`: from the first), ascending and without a gap, at most `max_tasks` of
    /// them and `max_bytes` of payload, but one at least where there is one. Empty: none is final yet.
    async fn tasks_after(
        &self,
        number: Option<TaskNumber>,
        max_tasks: usize,
        max_bytes: usize,
    ) -> Result<Vec<UnsignedTask>, SourceError>;

    /// As [`TaskSource::tasks_after`], with origins. The tasks end with the end of a part of `part_bytes`, and begin
    /// with the beginning of one unless `number` lies within it; so a part is given whole although it exceeds a limit.
    async fn parts_after(
        &self,
        number: Option<TaskNumber>,
        max_tasks: usize,
        max_bytes: usize,
        part_bytes: usize,
    ) -> Result<Vec<UnsignedTask>, SourceError>;
}

/// Where progress is noted, for other nodes and for purging. Best effort: the store is the truth.
#[async_trait]
pub trait ProgressSink: Send + Sync {
    /// Tasks up to `last` are in the output; `places` says where those are that came since the last word. May be
    /// repeated, and cut short by a deadline. `false`: it is not known to be noted.
    async fn record(&self, output: &OutputName, last: TaskNumber, places: &[Place]) -> bool;

    /// Whether it keeps places. Then those of tasks that another node published and did not report are found out anew.
    fn keeps_places(&self) -> bool {
        false
    }

    /// What is noted now, by this node or any other: a store that keeps no cursor is continued from there.
    async fn recorded(&self, output: &OutputName) -> Option<TaskNumber>;
}

/// The task key at work: W3bstream's readers know one key per data source.
#[derive(Debug, Clone)]
pub struct TaskSigner {
    key: Arc<SigningKey>,
    inline: bool,
}

impl TaskSigner {
    /// Signs with `key`.
    pub fn new(key: SigningKey) -> Self {
        Self { key: Arc::new(key), inline: false }
    }

    /// As [`TaskSigner::new`], but what a publisher does beside is done at once and by no chance: for simulation, where
    /// nothing may run beside it.
    pub fn inline(key: SigningKey) -> Self {
        Self { inline: true, ..Self::new(key) }
    }

    pub(crate) fn is_inline(&self) -> bool {
        self.inline
    }

    /// Part of a pause that keeps several publishers apart, from 0 to 1.
    pub(crate) fn jitter(&self) -> f64 {
        if self.inline { 0.5 } else { rand::random() }
    }

    /// Signs a task as the readers of `layout` want it. Every node that holds the key makes the same signature. Costs about
    /// 25 µs.
    pub fn sign(&self, task: UnsignedTask, layout: Layout) -> FinalTask {
        let UnsignedTask { number, id, project_id, project_version, device, time_ms, messages, ruled, origin } = task;
        let messages = FinalMessage::rows(&id, ruled.as_deref(), messages);
        let signature = Signature([0; 65]);
        let mut task =
            FinalTask { number, id, project_id, project_version, device, time_ms, messages, signature, origin };
        task.signature = self.key.sign(&layout.digest(&task));
        task
    }
}
