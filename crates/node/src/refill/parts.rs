//! Missing tasks with their origins, for outputs that are stores of blobs. A blob checks itself, so each is checked
//! against the genesis as a reader does it, and nothing else in the backup has to be believed.

use lockstep_consensus::StateStore;
use lockstep_outputs::publisher::{BYTES_PER_PUBLISH_MAX, TASKS_PER_PUBLISH_MAX};
use lockstep_outputs::{FinalTask, Layout, TaskSigner, check_origins};

use super::history::HistoryError;
use crate::gaps::Range;
use crate::origin::{PartError, PartReader};
use crate::proofs::History;

impl From<PartError> for HistoryError {
    fn from(error: PartError) -> Self {
        match error {
            PartError::State(error) => Self::State(error),
            error => Self::Foreign(error.to_string()),
        }
    }
}

/// Who signs the tasks, and how they are cut.
pub(super) struct Making<'a> {
    pub signer: &'a TaskSigner,
    pub layout: Layout,
    pub part_bytes: usize,
}

/// Hands over the tasks from `first` to `last` in runs of whole parts, signed and checked. Tasks of which messages are gone are left out.
pub(super) fn parts<E: From<HistoryError>>(
    state: &StateStore,
    known: &History,
    (first, last): Range,
    making: &Making<'_>,
    mut take: impl FnMut(Vec<FinalTask>) -> Result<(), E>,
) -> Result<(), E> {
    let head = state.head().map_err(|error| E::from(error.into()))?;
    let oldest = head.map(|head| head.horizon.sequence).unwrap_or_default();
    let mut reader = PartReader::new(state, known, oldest, making.part_bytes);
    let mut next = first;
    while next <= last {
        let read = reader.read(next, (TASKS_PER_PUBLISH_MAX, BYTES_PER_PUBLISH_MAX));
        let (tasks, torn) = read.map_err(|error| E::from(error.into()))?;
        let Some(newest) = tasks.last().map(|task| task.number).or(torn) else { return Ok(()) };
        let wanted = tasks.into_iter().filter(|task| task.number <= last);
        let signed: Vec<FinalTask> = wanted.map(|task| making.signer.sign(task, making.layout)).collect();
        check_origins(&signed, &known.genesis, &known.epochs)
            .map_err(|error| E::from(HistoryError::Foreign(error.to_string())))?;
        if !signed.is_empty() {
            take(signed)?;
        }
        next = newest.next();
    }
    Ok(())
}
