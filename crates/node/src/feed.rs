//! What readers follow: final tasks by their numbers, and final batches by their heights. Every node has the same ones
//! under the same numbers, so that a reader can go on at another node where it stopped.

use std::sync::Arc;

use async_trait::async_trait;
use lockstep_api::views::{Progress, RuledView, TaskChainView, TaskMessageView, TaskView, TasksView, to_base64};
use lockstep_api::{Feed, ReadError, TasksQuery, Viewer};
use lockstep_consensus::{ReadError as StateError, StateStore};
use lockstep_ledger::Projects;
use lockstep_outputs::FinalMessage;
use lockstep_types::{
    Batch, ExportPage, Height, ProjectId, Ruled, Sequence, SigningKey, Task, TaskId, TaskNumber, TimeMs, w3bstream,
};

use crate::chain::TaskStates;
use crate::limits::{FEED_BATCHES_LOOKED_AT_MAX, FEED_PAGE_BYTES_MAX, READ_BYTES_MAX};
use crate::proofs::{self, PageQuery};
use crate::publish::TaskReader;
use crate::reader::{Reader, device_view, failed};

/// Batches that are read from the store at a time.
const BATCHES_AT_A_TIME: usize = 16;

/// Makes views of tasks. What it knows is of one moment.
pub(crate) struct TaskViews {
    pub projects: Projects,
    pub task_states: TaskStates,
    pub signer: Arc<SigningKey>,
    /// Every output has the tasks up to this one.
    pub published: Option<TaskNumber>,
}

impl TaskViews {
    /// A task as `viewer` may see it.
    pub fn view<F: FnMut(Sequence) -> Result<Option<Batch>, StateError>>(
        &self,
        reader: &mut TaskReader<F>,
        (batch, task): (&Batch, &Task),
        viewer: Viewer,
    ) -> Result<TaskView, StateError> {
        let task = reader.read(batch, task, |_| {})?;
        let shown = self.projects.may_read(task.project_id, viewer.token.as_ref());
        let signature = shown.then(|| {
            let rows = FinalMessage::rows(&task.id, task.ruled.as_deref(), task.messages.clone());
            let payloads = rows.iter().map(|row| &row.data[..]);
            let digest =
                w3bstream::task_digest(&task.id, task.project_id, &task.project_version, &task.device, payloads);
            self.signer.sign(&digest).to_string()
        });
        let messages = task.messages.iter().map(|message| TaskMessageView {
            sequence: message.sequence,
            id: message.id,
            data: shown.then(|| to_base64(&message.data)),
        });
        let is_published = self.published.is_some_and(|last| last >= task.number);
        Ok(TaskView {
            id: task.id,
            number: task.number,
            project_id: task.project_id,
            device: device_view(task.device),
            messages: messages.collect(),
            status: if is_published { Progress::Published } else { Progress::Packed },
            signature,
            time_ms: task.time_ms,
            height: batch.header.height,
            chain: self.chain(task.project_id, &task.id),
            receipts: Vec::new(),
            ruled: task.ruled.as_deref().map(|ruled| ruled_view(ruled, shown)).unwrap_or_default(),
            project_version: task.project_version,
        })
    }

    fn chain(&self, project: ProjectId, id: &TaskId) -> Vec<TaskChainView> {
        let view = |(state, time_ms): (&str, TimeMs)| TaskChainView { state: state.to_owned(), time_ms };
        self.task_states.of(project, id).into_iter().map(view).collect()
    }
}

fn ruled_view(ruled: &Ruled, shown: bool) -> RuledView {
    RuledView {
        group: Some(ruled.group.clone()),
        window: ruled.window,
        payload: ruled.payload.as_ref().filter(|_| shown).map(|payload| to_base64(payload)),
        outputs: ruled.outputs.clone(),
    }
}

/// Where a page begins: the first batch to look at, and the first task that counts.
fn beginning(
    state: &StateStore,
    query: &TasksQuery,
    oldest: Height,
) -> Result<Option<(Height, TaskNumber)>, ReadError> {
    let first = match (query.after.filter(|after| after.0 > 0), query.from_height) {
        (None, None) => return Ok(Some((oldest, TaskNumber(0)))),
        (None, Some(height)) => (height.max(Height(1)), TaskNumber(0)),
        (Some(after), _) => {
            let next = after.next();
            match state.batch_of_task(next).map_err(failed)? {
                Some(batch) => (batch.header.height, next),
                None => return Ok(None),
            }
        }
    };
    if first.0 < oldest { Err(ReadError::Pruned { first: oldest }) } else { Ok(Some(first)) }
}

/// A page of final tasks; `newest` is the number of the newest one.
fn page(
    state: &StateStore,
    views: &TaskViews,
    query: &TasksQuery,
    (oldest, newest): (Height, Option<TaskNumber>),
) -> Result<TasksView, ReadError> {
    let mut out = TasksView { tasks: Vec::new(), next: query.after, newest };
    let Some(newest) = newest.filter(|newest| query.after.is_none_or(|after| after < *newest)) else { return Ok(out) };
    let oldest = oldest.max(Height(1));
    let Some((mut height, first)) = beginning(state, query, oldest)? else {
        // It is final, so it was here: what is not there any more was forgotten.
        return Err(ReadError::Pruned { first: oldest });
    };
    let mut reader = TaskReader::new(|sequence| state.batch_of_message(sequence));
    let (mut bytes, mut looked_at) = (0, 0);
    // Batches without a task move the reader nowhere, so some task has to be looked at.
    while looked_at < FEED_BATCHES_LOOKED_AT_MAX || out.next == query.after {
        let batches = state.batches(height, BATCHES_AT_A_TIME, READ_BYTES_MAX).map_err(failed)?;
        if batches.is_empty() {
            // Behind the newest final task, as when a height is asked for that is not there yet.
            out.next = out.next.max(Some(newest));
            return Ok(out);
        }
        for batch in &batches {
            for task in batch.tasks.iter().filter(|task| task.number >= first) {
                if task.number > newest || out.tasks.len() >= query.limit || bytes >= FEED_PAGE_BYTES_MAX {
                    return Ok(out);
                }
                if query.project.is_none_or(|project| project == task.project_id) {
                    let view = views.view(&mut reader, (batch, task), query.viewer).map_err(failed)?;
                    let data = view.messages.iter().filter_map(|message| message.data.as_ref());
                    bytes += data.chain(&view.ruled.payload).map(String::len).sum::<usize>();
                    out.tasks.push(view);
                }
                out.next = Some(task.number);
            }
        }
        looked_at += batches.len();
        height = Height(height.0 + batches.len() as u64);
    }
    Ok(out)
}

#[async_trait]
impl Feed for Reader {
    async fn tasks(&self, query: TasksQuery) -> Result<TasksView, ReadError> {
        let (state, views, bounds) =
            (self.state.clone(), self.task_views(), (self.oldest_height(), self.newest_task()));
        proofs::aside(state.blocking(), move || page(&state, &views, &query, bounds)).await
    }

    async fn wait_for_task(&self, after: Option<TaskNumber>) {
        let mut newest = self.tracker.newest_task();
        if newest
            .wait_for(|newest| newest.is_some_and(|newest| after.is_none_or(|after| newest > after)))
            .await
            .is_err()
        {
            // The node is ending, and its feeds with it.
            std::future::pending::<()>().await;
        }
    }

    async fn final_batches(&self, from: Height, viewer: Viewer) -> Result<ExportPage, ReadError> {
        let page = PageQuery { from, only_final: true, projects: self.projects(), viewer };
        proofs::export(self.state.clone(), self.history(), page).await
    }

    async fn wait_for_final(&self, height: Height) {
        let mut head = self.tracker.head();
        if head.wait_for(|head| head.as_ref().is_some_and(|head| head.final_height >= height)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
