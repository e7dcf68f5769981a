//! Stores of blobs that keep no cursor: whoever puts something in is told where it is, and that is all they know.
//!
//! Tasks get there at least once, in identical bytes, and readers drop repeats by task id. What was read back and
//! compared is confirmed, nothing else. Whoever publishes goes on from what was recorded.

use std::collections::VecDeque;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use lockstep_types::{Hash32, Height, TaskId, TaskNumber, keccak256};
use parking_lot::Mutex;

use crate::blobs::{Piece, pieces_aside, read_back};
use crate::output::{
    Adopted, Adoption, COMMITMENT_BYTES_MAX, FinalTask, LOCATOR_BYTES_MAX, Output, OutputError, Owner, Place, Receipt,
    Stage,
};
use crate::stored::{Damaged, PAGE_BYTES_MAX, Page};
use crate::tables;

/// Blobs of which it is remembered where they are, for [`Output::read`].
const REMEMBERED_MAX: usize = 256;
/// Blobs that are read at a time.
const READS_MAX: usize = 4;

/// Where a blob was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deposited {
    /// As [`Place::locator`].
    pub locator: String,
    /// As [`Place::commitment`].
    pub commitment: Vec<u8>,
    /// As [`Place::height`].
    pub height: Option<Height>,
    /// As [`Place::stage`].
    pub stage: Stage,
}

/// Why a blob was not put in, or not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DepositError {
    /// Try again later.
    #[error("{0}")]
    Retryable(String),
    /// The store never takes this blob.
    #[error("{0}")]
    Refused(String),
    /// The store says that there is nothing (yet).
    #[error("{0}")]
    Absent(String),
}

/// A store that takes blobs.
#[async_trait]
pub trait Deposit: Send + Sync {
    /// Bytes of a blob, unless one task alone has more.
    const PART_BYTES: usize;
    /// Bytes of a blob at most.
    const BYTES_MAX: usize;
    /// Bytes of blobs that are put in together; none: each alone.
    const TOGETHER_BYTES_MAX: usize = 0;

    /// Puts a blob in. `hash` is its keccak256. The same again is put in again, or changes nothing.
    async fn put(&self, blob: &Bytes, hash: &Hash32) -> Result<Deposited, DepositError>;

    /// Puts several in, together if the store can: all or none of them, or some where it cannot.
    async fn put_together(&self, blobs: &[(Bytes, Hash32)]) -> Result<Vec<Deposited>, DepositError> {
        let mut places = Vec::with_capacity(blobs.len());
        for (blob, hash) in blobs {
            places.push(self.put(blob, hash).await?);
        }
        Ok(places)
    }

    /// What is at a place; an error where there is nothing (yet).
    async fn get(&self, at: &Deposited) -> Result<Bytes, DepositError>;

    /// Keccak256 of what is at a place, where its commitment is that.
    fn hash(&self, _at: &Deposited) -> Option<Hash32> {
        None
    }

    /// How sure it is by now that it stays, once it was read back.
    async fn stage(&self, at: &Deposited) -> Result<Stage, DepositError>;
}

/// A blob that was put in.
struct Sent {
    ids: Vec<TaskId>,
    hash: Hash32,
    at: Deposited,
}

#[derive(Default)]
struct Done {
    last: Option<TaskNumber>,
    sent: VecDeque<Sent>,
}

/// An output over such a store.
pub struct Deposits<D> {
    deposit: D,
    owner: Owner,
    done: Mutex<Done>,
}

fn failed(piece: &Piece, error: DepositError) -> OutputError {
    match error {
        DepositError::Retryable(reason) | DepositError::Absent(reason) => OutputError::Retryable(reason),
        DepositError::Refused(reason) => OutputError::Refused { task: piece.first, reason },
    }
}

/// Pieces in groups of at most so many bytes, of one at least.
fn together(pieces: &[Piece], bytes_max: usize) -> Vec<&[Piece]> {
    let (mut groups, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (index, piece) in pieces.iter().enumerate() {
        if index > begin && bytes + piece.bytes.len() > bytes_max {
            groups.push(&pieces[begin..index]);
            (begin, bytes) = (index, 0);
        }
        bytes += piece.bytes.len();
    }
    groups.extend((begin < pieces.len()).then(|| &pieces[begin..]));
    groups
}

impl<D: Deposit> Deposits<D> {
    /// Over a store.
    pub fn over(deposit: D, owner: Owner) -> Self {
        Self { deposit, owner, done: Mutex::default() }
    }

    /// Puts blobs in, one after the other where they are not taken together.
    async fn put(&self, pieces: &[Piece]) -> Result<Vec<Deposited>, OutputError> {
        let blobs: Vec<_> = pieces.iter().map(|piece| (piece.bytes.clone(), piece.hash)).collect();
        match (self.deposit.put_together(&blobs).await, pieces) {
            (Ok(places), _) if places.len() == pieces.len() => Ok(places),
            (Ok(_), _) => Err(OutputError::Retryable("not every blob was given a place".to_owned())),
            // Which of them is refused is not said.
            (Err(DepositError::Refused(_)), [_, _, ..]) => {
                let mut places = Vec::with_capacity(pieces.len());
                for piece in pieces {
                    places.push(self.deposit.put(&piece.bytes, &piece.hash).await.map_err(|e| failed(piece, e))?);
                }
                Ok(places)
            }
            (Err(error), [piece, ..]) => Err(failed(piece, error)),
            (Err(error), []) => Err(OutputError::Retryable(error.to_string())),
        }
    }

    /// Reads a blob back that was put in.
    async fn confirm(&self, piece: Piece, at: Deposited) -> Result<Place, OutputError> {
        let failed = |error| failed(&piece, error);
        if at.locator.len() > LOCATOR_BYTES_MAX || at.commitment.len() > COMMITMENT_BYTES_MAX {
            return Err(OutputError::Retryable("the store's commitment is longer than any known one".to_owned()));
        }
        let there = self.deposit.get(&at).await.map_err(failed)?;
        if there != piece.bytes {
            return Err(OutputError::Retryable("what the store gives back is not what it was given".to_owned()));
        }
        let stage = self.deposit.stage(&at).await.map_err(failed)?;
        let place = Place {
            first: piece.first,
            last: piece.last,
            locator: at.locator.clone(),
            commitment: at.commitment.clone(),
            height: at.height,
            stage,
        };
        let mut done = self.done.lock();
        if done.sent.len() >= REMEMBERED_MAX {
            done.sent.pop_front();
        }
        let ids = piece.tasks.into_iter().map(|(_, id)| id).collect();
        done.sent.push_back(Sent { ids, hash: piece.hash, at });
        Ok(place)
    }

    async fn put_all(&self, tasks: &[FinalTask]) -> Result<Vec<Place>, OutputError> {
        let (pieces, mut places) = (pieces_aside(tasks, D::BYTES_MAX).await?, Vec::new());
        for group in together(&pieces, D::TOGETHER_BYTES_MAX) {
            let put = self.put(group).await?;
            let confirming = group.iter().cloned().zip(put).map(|(piece, at)| self.confirm(piece, at));
            let mut confirming = stream::iter(confirming.collect::<Vec<_>>()).buffered(READS_MAX);
            while let Some(place) = confirming.next().await {
                places.push(place?);
            }
        }
        Ok(places)
    }

    /// The tasks at a place, from `first` on; what is wrong there is the inner error.
    async fn at_place(&self, place: &Place, first: TaskNumber) -> Result<Result<Vec<FinalTask>, Damaged>, OutputError> {
        let at = Deposited {
            locator: place.locator.clone(),
            commitment: place.commitment.clone(),
            height: place.height,
            stage: place.stage,
        };
        let (first, last) = (place.first.max(first), place.last);
        let damaged = |reason: String| Ok(Err(Damaged { first, last, reason: format!("{}: {reason}", place.locator) }));
        let bytes = match self.deposit.get(&at).await {
            Ok(bytes) => bytes,
            Err(DepositError::Absent(reason)) => return damaged(reason),
            Err(error) => return Err(OutputError::Retryable(error.to_string())),
        };
        let hash = self.deposit.hash(&at).unwrap_or_else(|| keccak256(&[&bytes]));
        match read_back(bytes, &hash) {
            Ok(mut tasks) => {
                tasks.retain(|task| (first..=last).contains(&task.number));
                Ok(Ok(tasks))
            }
            Err(OutputError::Foreign(reason)) => damaged(reason),
            Err(error) => Err(error),
        }
    }

    fn passed(&self, last: TaskNumber) {
        let mut done = self.done.lock();
        done.last = done.last.max(Some(last));
    }
}

#[async_trait]
impl<D: Deposit> Output for Deposits<D> {
    async fn publish(&self, tasks: &[FinalTask], expected_last: Option<TaskNumber>) -> Result<Receipt, OutputError> {
        let mut receipt = tables::check_tasks(tasks, &self.owner, expected_last)?;
        receipt.places = self.put_all(tasks).await?;
        self.passed(receipt.last);
        Ok(receipt)
    }

    async fn skip(&self, last: TaskNumber, _expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        self.passed(last);
        Ok(())
    }

    async fn fill(&self, tasks: &[FinalTask]) -> Result<(), OutputError> {
        tables::check_fill(tasks, &self.owner)?;
        self.put_all(tasks).await.map(drop)
    }

    /// Always none: the store cannot say.
    async fn first_gap(
        &self,
        _first: TaskNumber,
        _last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        Ok(None)
    }

    async fn last(&self) -> Result<Option<TaskNumber>, OutputError> {
        Ok(self.done.lock().last)
    }

    /// Nothing to do: every blob says whose it is.
    async fn adopt(&self, _adoption: &Adoption) -> Result<Adopted, OutputError> {
        Ok(Adopted { from: self.owner.epoch, last: self.done.lock().last, foreign: None })
    }

    async fn read(&self, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        let found = {
            let done = self.done.lock();
            let sent = done.sent.iter().rev().find(|sent| sent.ids.contains(id));
            sent.map(|sent| (sent.at.clone(), sent.hash))
        };
        let Some((at, hash)) = found else { return Ok(None) };
        let bytes = self.deposit.get(&at).await.map_err(|error| OutputError::Retryable(error.to_string()))?;
        Ok(read_back(bytes, &hash)?.into_iter().find(|task| task.id == *id))
    }

    /// Places may tell of the same tasks several times: they got there more than once.
    async fn stored(&self, first: TaskNumber, max: usize, places: &[Place]) -> Result<Page, OutputError> {
        let (mut page, mut bytes) = (Page::default(), 0);
        let wanted: Vec<Place> = places.iter().filter(|place| place.last >= first).cloned().collect();
        let reading = stream::iter(wanted).map(|place| async move { self.at_place(&place, first).await });
        let mut reading = reading.buffered(READS_MAX);
        while let Some(found) = reading.next().await {
            match found? {
                Ok(tasks) => page.tasks.extend(tasks),
                Err(damaged) => page.damaged.push(damaged),
            }
            bytes += D::PART_BYTES as u64;
            if page.tasks.len() >= max || bytes >= PAGE_BYTES_MAX {
                break;
            }
        }
        drop(reading);
        page.tasks.sort_by_key(|task| task.number);
        page.tasks.dedup();
        let twice = page.tasks.windows(2).filter(|pair| pair[0].number == pair[1].number).map(|pair| pair[0].number);
        page.damaged.extend(twice.map(|number| Damaged::at(number, "it is there twice, and not the same")));
        page.tasks.dedup_by_key(|task| task.number);
        if let Some(beyond) = page.tasks.get(max).map(|task| task.number) {
            page.tasks.truncate(max);
            page.damaged.retain(|damaged| damaged.first < beyond);
            page.damaged.iter_mut().for_each(|damaged| damaged.last = damaged.last.min(TaskNumber(beyond.0 - 1)));
        }
        page.damaged.sort_by_key(|damaged| damaged.first);
        Ok(page)
    }

    fn part_bytes(&self) -> Option<usize> {
        Some(D::PART_BYTES)
    }

    fn keeps_cursor(&self) -> bool {
        false
    }
}
