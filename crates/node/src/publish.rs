//! Joins the outputs to the node: where final tasks come from, and what runs.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use lockstep_consensus::{ReadError, StateStore};
use lockstep_ledger::Head;
use lockstep_outputs::{FinalMessage, Handle, SourceError, TaskSource, UnsignedTask};
use lockstep_types::{Batch, Height, OrderedMessage, OutputName, ProjectId, Sequence, TaskNumber};
use tokio::sync::{Notify, watch};

use crate::gaps::Seen;
use crate::limits::READ_BYTES_MAX;
use crate::origin::PartReader;
use crate::output_desk::OutputSwitch;
use crate::proofs::History;

/// An output of this node, and a view on what feeds it.
pub(crate) struct RunningOutput {
    pub name: OutputName,
    /// Projects whose tasks it takes; `None`: all.
    pub projects: Option<BTreeSet<ProjectId>>,
    pub handle: Handle,
    /// What its store lacks.
    pub missing: watch::Receiver<Seen>,
    /// To be rung when something may have been filled in.
    pub bell: Arc<Notify>,
    /// The operator's hand on it.
    pub switch: OutputSwitch,
}

/// Final tasks out of the node's state.
pub(crate) struct StateSource {
    pub state: StateStore,
    /// Number of the newest task whose batch has a certificate at or above it.
    pub newest: watch::Receiver<Option<TaskNumber>>,
    pub head: watch::Receiver<Option<Head>>,
    /// What the tasks hang on.
    pub history: History,
}

#[async_trait]
impl TaskSource for StateSource {
    async fn tasks_after(
        &self,
        number: Option<TaskNumber>,
        max_tasks: usize,
        max_bytes: usize,
    ) -> Result<Vec<UnsignedTask>, SourceError> {
        self.read(number, max_tasks, move |state, next, max_tasks, oldest| {
            read_tasks(state, next, (max_tasks, max_bytes), oldest)
        })
        .await
    }

    async fn parts_after(
        &self,
        number: Option<TaskNumber>,
        max_tasks: usize,
        max_bytes: usize,
        part_bytes: usize,
    ) -> Result<Vec<UnsignedTask>, SourceError> {
        let history = self.history.clone();
        self.read(number, max_tasks, move |state, next, max_tasks, oldest| {
            let mut reader = PartReader::new(state, &history, oldest, part_bytes);
            reader.read(next, (max_tasks, max_bytes))
        })
        .await
    }
}

impl StateSource {
    /// Runs `read` with the next number, how many tasks there are at most, and the oldest message that is kept.
    async fn read<E: std::fmt::Display + Send + 'static>(
        &self,
        number: Option<TaskNumber>,
        max_tasks: usize,
        read: impl FnOnce(&StateStore, TaskNumber, usize, Sequence) -> Result<UntilTorn, E> + Send + 'static,
    ) -> Result<Vec<UnsignedTask>, SourceError> {
        let (state, first) = (self.state.clone(), self.history.genesis.params.first_task_number);
        let next = number.map_or(first, TaskNumber::next);
        let Some(newest) = *self.newest.borrow() else { return Ok(Vec::new()) };
        let kept = self.head.borrow().as_ref().map_or(TaskNumber(0), |head| head.horizon.task_number);
        let max_tasks = usize::try_from((newest.0 + 1).saturating_sub(next.0)).map_or(max_tasks, |n| n.min(max_tasks));
        let oldest = self.head.borrow().as_ref().map_or(Sequence(0), |head| head.horizon.sequence);
        let read = move || read(&state, next, max_tasks, oldest);
        let tasks = self.state.blocking().run(read).await.map_err(|e| SourceError::Unavailable(e.to_string()))?;
        match tasks {
            // What is forgotten may still be on this disk; when it is not, it never comes.
            Ok((tasks, None)) if tasks.is_empty() && next < kept => Err(SourceError::Forgotten(TaskNumber(kept.0 - 1))),
            Ok((tasks, Some(torn))) if tasks.is_empty() => Err(SourceError::Forgotten(torn)),
            Ok((tasks, _)) => Ok(tasks),
            Err(error) => Err(SourceError::Unavailable(error.to_string())),
        }
    }
}

/// Tasks up to one of which messages were forgotten: its number is the second value.
pub(crate) type UntilTorn = (Vec<UnsignedTask>, Option<TaskNumber>);

/// Tasks from `first` on, up to one of which messages below `oldest` were forgotten.
fn read_tasks(
    state: &StateStore,
    first: TaskNumber,
    (max_tasks, max_bytes): (usize, usize),
    oldest: Sequence,
) -> Result<UntilTorn, ReadError> {
    let Some(start) = state.batch_of_task(first)? else { return Ok((Vec::new(), None)) };
    let mut reader = TaskReader::new(|sequence| state.batch_of_message(sequence));
    let (mut tasks, mut bytes) = (Vec::new(), 0);
    let mut height = start.header.height;
    let mut batches = vec![start];
    loop {
        for batch in &batches {
            for task in batch.tasks.iter().filter(|task| task.number >= first) {
                if tasks.len() >= max_tasks || (bytes >= max_bytes && !tasks.is_empty()) {
                    return Ok((tasks, None));
                }
                // It may still be on this disk.
                let reaches_back = Some(task.first_sequence()).filter(|sequence| *sequence < oldest);
                if let Some(sequence) = reaches_back.filter(|sequence| *sequence < batch.header.first_sequence)
                    && state.batch_of_message(sequence)?.is_none()
                {
                    return Ok((tasks, Some(task.number)));
                }
                let task = reader.read(batch, task, |_| {})?;
                bytes += task.messages.iter().map(|message| message.data.len()).sum::<usize>()
                    + task.ruled.as_ref().and_then(|ruled| ruled.payload.as_ref()).map_or(0, bytes::Bytes::len);
                tasks.push(task);
            }
        }
        height = Height(height.0 + batches.len() as u64);
        batches = state.batches(height, 16, READ_BYTES_MAX)?;
        if batches.is_empty() {
            return Ok((tasks, None));
        }
    }
}

/// Collects the payloads of tasks; batches that tasks reach back to are read once. `F` finds the batch of a message.
pub(crate) struct TaskReader<F> {
    find: F,
    other: HashMap<Height, Batch>,
}

/// Batches kept for tasks that reach back; beyond, they are read again.
const OTHER_BATCHES_MAX: usize = 16;

impl<F: FnMut(Sequence) -> Result<Option<Batch>, ReadError>> TaskReader<F> {
    pub fn new(find: F) -> Self {
        Self { find, other: HashMap::new() }
    }

    /// The task with its payloads; `look` sees its messages, in order.
    pub fn read(
        &mut self,
        batch: &Batch,
        task: &lockstep_types::Task,
        mut look: impl FnMut(&OrderedMessage),
    ) -> Result<UnsignedTask, ReadError> {
        let mut messages = Vec::with_capacity(task.sequences.len());
        for sequence in &task.sequences {
            let message = match batch.message_at(*sequence) {
                Some(message) => message,
                None => self.earlier(*sequence)?,
            };
            look(message);
            messages.push(FinalMessage { sequence: *sequence, id: message.id, data: message.message.data.clone() });
        }
        Ok(UnsignedTask {
            number: task.number,
            id: task.id,
            project_id: task.project_id,
            project_version: task.project_version.clone(),
            device: task.device,
            time_ms: batch.header.time_ms,
            messages,
            ruled: task.ruled.as_deref().cloned().map(Arc::new),
            origin: None,
        })
    }

    fn earlier(&mut self, sequence: Sequence) -> Result<&OrderedMessage, ReadError> {
        let missing = || {
            let reason = format!("message {sequence} of a task is missing");
            ReadError::Damaged(lockstep_types::DecodeError::malformed("chain", reason))
        };
        let known = self.other.values().find(|batch| batch.message_at(sequence).is_some());
        let height = match known.map(|batch| batch.header.height) {
            Some(height) => height,
            None => {
                let batch = (self.find)(sequence)?.ok_or_else(missing)?;
                if self.other.len() >= OTHER_BATCHES_MAX {
                    self.other.clear();
                }
                let height = batch.header.height;
                self.other.insert(height, batch);
                height
            }
        };
        self.other.get(&height).and_then(|batch| batch.message_at(sequence)).ok_or_else(missing)
    }
}
