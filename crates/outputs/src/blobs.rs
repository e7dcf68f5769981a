//! What all stores of blobs share: tasks become blobs, each of one part of a batch, and blobs become tasks again.

use bytes::Bytes;
use lockstep_types::blob::{BLOB_BYTES_MAX, Blob};
use lockstep_types::{Hash32, Height, TaskId, TaskNumber, keccak256};

use crate::origin::{blob_of, tasks_of, together};
use crate::output::{FinalTask, OutputError};

/// A blob on its way into a store.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    /// Number of its first task.
    pub first: TaskNumber,
    /// Number of its last task.
    pub last: TaskNumber,
    /// Its tasks, by number.
    pub tasks: Vec<(TaskNumber, TaskId)>,
    /// The batch that closed them.
    pub height: Height,
    /// Which part of the batch's tasks it is.
    pub part: u32,
    /// Of how many.
    pub parts: u32,
    /// The blob.
    pub bytes: Bytes,
    /// keccak256 of it.
    pub hash: Hash32,
}

impl Piece {
    fn of(tasks: &[&FinalTask], bytes_max: usize) -> Result<Self, OutputError> {
        let first = tasks.first().ok_or_else(|| OutputError::Foreign("no task was given".to_owned()))?;
        let refused = |reason: String| OutputError::Refused { task: first.number, reason };
        let unknown = || refused("nobody said where it comes from".to_owned());
        let blob = blob_of(tasks).ok_or_else(unknown)?;
        let bytes = blob.encode();
        let most = bytes_max.min(BLOB_BYTES_MAX);
        if bytes.len() > most {
            return Err(refused(format!("its blob has {} bytes, the store takes {most}", bytes.len())));
        }
        Ok(Self {
            first: first.number,
            last: tasks.last().map_or(first.number, |last| last.number),
            tasks: tasks.iter().map(|task| (task.number, task.id)).collect(),
            height: blob.anchor.header.height,
            part: blob.part,
            parts: blob.parts,
            hash: keccak256(&[&bytes]),
            bytes,
        })
    }
}

/// Makes the blobs of these tasks, which ascend. No blob has more than `bytes_max` bytes: what does not fit is refused.
/// Costs about 10 ns a byte.
pub(crate) fn pieces<'a>(
    tasks: impl IntoIterator<Item = &'a FinalTask>,
    bytes_max: usize,
) -> Result<Vec<Piece>, OutputError> {
    let tasks: Vec<&FinalTask> = tasks.into_iter().collect();
    tasks.chunk_by(|a, b| together(a, b)).map(|chunk| Piece::of(chunk, bytes_max)).collect()
}

/// What is told of blobs that were not made.
const NOT_MADE: &str = "making blobs panicked, or the program is ending";

/// As [`pieces`], on a thread that may be kept busy.
pub(crate) async fn pieces_aside(tasks: &[FinalTask], bytes_max: usize) -> Result<Vec<Piece>, OutputError> {
    let tasks = tasks.to_vec();
    let making = tokio::task::spawn_blocking(move || pieces(&tasks, bytes_max));
    making.await.map_err(|_| OutputError::Retryable(NOT_MADE.to_owned()))?
}

/// Makes a blob of each task alone, in order, on a thread that may be kept busy.
#[cfg(feature = "nats")]
pub(crate) async fn singles_aside(tasks: &[FinalTask], bytes_max: usize) -> Result<Vec<Piece>, OutputError> {
    let tasks = tasks.to_vec();
    let making = tokio::task::spawn_blocking(move || tasks.iter().map(|task| Piece::of(&[task], bytes_max)).collect());
    making.await.map_err(|_| OutputError::Retryable(NOT_MADE.to_owned()))?
}

/// The tasks of a blob that was read back; its hash is compared.
pub(crate) fn read_back(bytes: Bytes, hash: &Hash32) -> Result<Vec<FinalTask>, OutputError> {
    let damaged = |reason: String| OutputError::Foreign(format!("what is stored as a blob was changed: {reason}"));
    if keccak256(&[&bytes]) != *hash {
        return Err(damaged("it has another hash".to_owned()));
    }
    Blob::decode(bytes).map(tasks_of).map_err(|e| damaged(e.to_string()))
}
