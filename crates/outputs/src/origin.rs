//! Where a task comes from, for stores that get it together with its proof.

use std::sync::Arc;

use lockstep_types::blob::{Anchor, Blob, BlobMessage, BlobTask};
use lockstep_types::{BlobError, Digest, Epochs, Genesis, Ruled};

use crate::output::{FinalMessage, FinalTask};

/// A part of the tasks that one batch closed: what becomes one blob. The same on every node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// How the batch hangs on the genesis.
    pub anchor: Anchor,
    /// Which part this is, from 0.
    pub part: u32,
    /// How many there are.
    pub parts: u32,
}

/// What a task's blob has of it beside what every store gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The part that it belongs to, shared by all of its tasks.
    pub part: Arc<Part>,
    /// Siblings from its leaf up to the root of the batch's tasks.
    pub path: Vec<Digest>,
    /// Its messages, whole.
    pub messages: Vec<BlobMessage>,
    /// What the project's rules made of it.
    pub ruled: Option<Arc<Ruled>>,
}

impl Origin {
    /// Messages in the task's order; payloads are shared.
    pub fn payloads(messages: &[BlobMessage]) -> Vec<FinalMessage> {
        let plain = |m: &BlobMessage| FinalMessage { sequence: m.sequence, id: m.id, data: m.message.data.clone() };
        messages.iter().map(plain).collect()
    }
}

/// The task of a blob; its origin shares `part`.
pub(crate) fn task_of(task: BlobTask, part: &Arc<Part>) -> FinalTask {
    let BlobTask { number, id, project_id, project_version, device, path, signature, messages, ruled } = task;
    let ruled = ruled.map(|ruled| Arc::new(*ruled));
    FinalTask {
        number,
        id,
        project_id,
        project_version,
        device,
        time_ms: part.anchor.header.time_ms,
        messages: FinalMessage::rows(&id, ruled.as_deref(), Origin::payloads(&messages)),
        signature,
        origin: Some(Arc::new(Origin { part: Arc::clone(part), path, messages, ruled })),
    }
}

/// A task as blobs have it; `None` where nobody said where it comes from.
pub(crate) fn blob_task(task: &FinalTask) -> Option<BlobTask> {
    let origin = task.origin.as_ref()?;
    Some(BlobTask {
        number: task.number,
        id: task.id,
        project_id: task.project_id,
        project_version: task.project_version.clone(),
        device: task.device,
        path: origin.path.clone(),
        signature: task.signature,
        messages: origin.messages.clone(),
        ruled: origin.ruled.as_deref().cloned().map(Box::new),
    })
}

/// Whether two tasks that follow each other belong into one blob. Those between them are not for the store.
pub(crate) fn together(a: &FinalTask, b: &FinalTask) -> bool {
    let place = |task: &FinalTask| task.origin.as_ref().map(|o| (o.part.anchor.header.height, o.part.part));
    place(a).is_some() && place(a) == place(b)
}

/// The blob of tasks that belong together; `None` where nobody said where one of them comes from.
pub(crate) fn blob_of(tasks: &[&FinalTask]) -> Option<Blob> {
    let part = &tasks.first()?.origin.as_ref()?.part;
    let tasks = tasks.iter().map(|task| blob_task(task)).collect::<Option<_>>()?;
    Some(Blob { anchor: part.anchor.clone(), part: part.part, parts: part.parts, tasks })
}

/// Checks tasks whose origin is not trusted against a genesis, as whoever finds them in a store does. `tasks` ascend.
///
/// # Errors
/// What of them does not hold. Without an origin they are nothing.
pub fn check_origins(tasks: &[FinalTask], genesis: &Genesis, epochs: &Epochs) -> Result<(), BlobError> {
    let tasks: Vec<&FinalTask> = tasks.iter().collect();
    for chunk in tasks.chunk_by(|a, b| together(a, b)) {
        blob_of(chunk).ok_or(BlobError::Empty)?.verify(genesis, epochs, None)?;
    }
    Ok(())
}

/// The tasks of a blob as they were given to its store.
pub(crate) fn tasks_of(blob: Blob) -> Vec<FinalTask> {
    let Blob { anchor, part, parts, tasks } = blob;
    let part = Arc::new(Part { anchor, part, parts });
    tasks.into_iter().map(|task| task_of(task, &part)).collect()
}
