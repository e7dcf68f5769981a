//! Blobs in an object store: S3 and what speaks it, Google Cloud Storage, Azure, or a directory.
//!
//! Every object is created once and never changed. Blobs stand under their hash. What makes the order is a chain of
//! small links, each named by the number of the first task in it: whoever adds one has seen that the chain ends right
//! before, and creating an object succeeds for one writer only. So the last link is the cursor, and creating the next
//! one the compare-and-set. docs/formats.md, "Object stores", has all names.

mod chain;
mod entry;
mod error;
mod options;
mod stored;

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use lockstep_types::{TaskId, TaskNumber};
use tokio::sync::Mutex;

pub use self::options::{CREDENTIALS_BYTES_MAX, ObjectOptions, ObjectOptionsError};

use self::chain::{Chain, Created, Named, REQUESTS_MAX, blob_at};
use self::entry::{BlobAt, Complete, ENTRY_VERSION, Filled, Kind, Link, name_of};
use crate::blobs::{Piece, pieces, pieces_aside};
use crate::layout::Layout;
use crate::output::{Adopted, Adoption, FinalTask, Output, OutputError, Owner, Place, Receipt, Stage};
use crate::stored::{Page, StrayMark, Strays};
use crate::tables::{self, Admission, Cursor, Ours};

/// Bytes of a blob, unless one task alone has more.
pub const PART_BYTES: usize = 4 << 20;

type Range = (TaskNumber, TaskNumber);

/// A store of objects.
pub struct ObjectOutput {
    chain: Chain,
    owner: Owner,
    /// Whether the store was seen to be the owner's network's, and the last link that is known.
    known: Mutex<(bool, Option<Named>)>,
}

/// Where the chain ends.
struct Tip {
    cursor: Cursor,
    /// Name of the next link.
    next: String,
}

impl ObjectOutput {
    /// Sets the store's client up; it connects at the first call.
    ///
    /// # Errors
    /// What is wrong with the options.
    pub fn new(options: &ObjectOptions, owner: Owner) -> Result<Self, ObjectOptionsError> {
        Ok(Self { chain: Chain::new(options.open()?), owner, known: Mutex::new((false, None)) })
    }

    /// Blobs are for readers of both generations; their tasks are signed as the newer one wants it.
    fn ours(&self) -> Ours {
        Ours { owner: self.owner, layout: Layout::Apinode }
    }

    /// Where the chain ends now. `fresh` asks the store in any case; else the last link that is known will do, because
    /// adding the next one tells whether it was right.
    async fn tip(&self, fresh: bool) -> Result<Tip, OutputError> {
        let mut known = self.known.lock().await;
        let (checked, last) = &mut *known;
        let mut first_epoch = self.owner.epoch;
        if !*checked || last.is_none() {
            let found = self.chain.owner(&self.owner).await?;
            if found.first_task != self.owner.first_task_number && found.network == self.owner.network {
                let reason = format!(
                    "its first task is {}, this network's is {}",
                    found.first_task, self.owner.first_task_number
                );
                return Err(OutputError::Foreign(reason));
            }
            let cursor = cursor_of(found.network, found.epoch, None);
            // The epoch is that of the last link, where there is one.
            Cursor { epoch: tables::epoch_column(self.owner.epoch), ..cursor }.check_owner(&self.ours())?;
            (*checked, first_epoch) = (true, found.epoch);
        }
        if fresh || last.is_none() {
            *last = self.chain.last_link(last.take()).await?;
        }
        let (network, epoch, number, next) = match last.as_ref().map(|named| &named.link) {
            None => (self.owner.network, first_epoch, None, name_of(self.owner.first_task_number)),
            Some(link) => {
                let number = (link.last >= self.owner.first_task_number).then_some(link.last);
                (link.network, link.epoch, number, link.next_name())
            }
        };
        Ok(Tip { cursor: cursor_of(network, epoch, number), next })
    }

    /// Adds a link; where another one stands the chain is somewhere else.
    async fn add(&self, name: String, link: Link) -> Result<String, OutputError> {
        match self.chain.add(&name, &link).await? {
            Created::Ours => {
                let next = link.next_name();
                self.known.lock().await.1 = Some(Named { name, link });
                Ok(next)
            }
            Created::Others(_) => {
                let tip = self.tip(true).await?;
                tip.cursor.check_owner(&self.ours())?;
                Err(OutputError::Moved { actual_last: tip.cursor.last })
            }
        }
    }

    /// Adds blobs with their links, each of which begins right behind the one before, whatever was passed over.
    async fn append(&self, tip: Tip, pieces: &[Piece]) -> Result<Vec<Place>, OutputError> {
        let putting =
            stream::iter(pieces.to_vec()).map(|piece| async move { self.chain.put_blob(&self.owner, &piece).await });
        let stored: Vec<BlobAt> = putting.buffered(REQUESTS_MAX).try_collect().await?;
        let (mut name, mut first) = (tip.next, self.owner.next(tip.cursor.last));
        for (piece, at) in pieces.iter().zip(stored) {
            let link = Link::new(&self.owner, first, piece.last, Kind::Tasks(at));
            name = self.add(name, link).await?;
            first = piece.last.next();
        }
        Ok(pieces.iter().map(place).collect())
    }

    /// The tasks from `first` to `last` that are in the store, by number, with their blobs.
    async fn present(&self, range: Range) -> Result<BTreeMap<TaskNumber, (FinalTask, BlobAt)>, OutputError> {
        let (first, last) = range;
        let (mut next, mut found) = (first, BTreeMap::new());
        loop {
            let (links, more) = self.chain.links(next, last).await?;
            for link in &links {
                if let Kind::Tasks(at) = &link.kind {
                    let tasks = self.chain.tasks(at).await?;
                    found.extend(tasks.into_iter().map(|task| (task.number, (task, at.clone()))));
                }
            }
            match links.last() {
                Some(link) if more && link.last < last => next = link.last.next(),
                _ => break,
            }
        }
        found.retain(|number, _| (first..=last).contains(number));
        // Neighbours are in one blob, of which each counts only where its own entry says so.
        let mut blob: Option<(BlobAt, Vec<FinalTask>)> = None;
        for Filled { number, at, .. } in self.chain.filled(first, last).await?.into_values() {
            if blob.as_ref().is_none_or(|(known, _)| *known != at) {
                let tasks = self.chain.tasks(&at).await?;
                blob = Some((at, tasks));
            }
            let mut tasks = blob.iter().flat_map(|(at, tasks)| tasks.iter().map(move |task| (task, at)));
            let task = tasks.find(|(task, _)| task.number == number);
            found.extend(task.map(|(task, at)| (number, (task.clone(), at.clone()))));
        }
        Ok(found)
    }

    /// Where these tasks are, if they are what the store has under their numbers.
    async fn compare(
        &self,
        tasks: &[FinalTask],
        pieces: &[Piece],
        range: &Receipt,
        actual_last: Option<TaskNumber>,
    ) -> Result<Vec<Place>, OutputError> {
        // Parts are the same on every node, so one look at the links is enough nearly always.
        let (links, _) = self.chain.links(range.first, range.last).await?;
        let stored = |piece: &Piece| {
            let same = |link: &Link| link.last == piece.last && link.kind == Kind::Tasks(blob_at(piece));
            links.iter().any(same)
        };
        if pieces.iter().all(stored) {
            return Ok(pieces.iter().map(place).collect());
        }
        let present = self.present((range.first, range.last)).await?;
        for task in tasks {
            match present.get(&task.number) {
                Some((found, _)) if found.id == task.id => {}
                Some(_) => return Err(tables::other_task(task.number)),
                // Passed by, by whoever moved the cursor.
                None => return Err(OutputError::Moved { actual_last }),
            }
        }
        let found = tasks.iter().filter_map(|task| present.get(&task.number).map(|(_, at)| (task.number, at)));
        Ok(places_at(found))
    }

    /// Runs of numbers from `first` to `last` of which the store lacks nothing, ascending.
    async fn runs(&self, first: TaskNumber, last: TaskNumber) -> Result<Vec<Range>, OutputError> {
        let (mut next, mut runs) = (first, Vec::new());
        loop {
            let (links, more) = self.chain.links(next, last).await?;
            let whole = links.iter().filter(|link| matches!(link.kind, Kind::Tasks(_) | Kind::Passed));
            runs.extend(whole.map(|link| (link.first, link.last)));
            match links.last() {
                Some(link) if more && link.last < last => next = link.last.next(),
                _ => break,
            }
        }
        runs.extend(self.chain.filled(first, last).await?.into_keys().map(|number| (number, number)));
        runs.extend(self.chain.complete().await?);
        runs.sort_unstable();
        Ok(runs)
    }

    /// Moves the cursor without a task.
    async fn go_on_behind(
        &self,
        last: TaskNumber,
        expected_last: Option<TaskNumber>,
        kind: Kind,
    ) -> Result<(), OutputError> {
        let tip = self.tip(true).await?;
        if tip.cursor.may_skip(&self.ours(), last, expected_last)? {
            let first = self.owner.next(expected_last);
            self.add(tip.next, Link::new(&self.owner, first, last, kind)).await?;
        }
        Ok(())
    }

    async fn find(&self, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        let Some(last) = self.tip(true).await?.cursor.last else { return Ok(None) };
        let mut next = self.owner.first_task_number;
        while next <= last {
            let (links, _) = self.chain.links(next, last).await?;
            let Some(end) = links.last().map(|link| link.last) else { break };
            for link in &links {
                if let Kind::Tasks(at) = &link.kind
                    && let Some(task) = self.chain.tasks(at).await?.into_iter().find(|task| task.id == *id)
                {
                    return Ok(Some(task));
                }
            }
            next = end.next().max(next.next());
        }
        let filled = self.chain.filled(self.owner.first_task_number, last).await?;
        let Some(filled) = filled.into_values().find(|filled| filled.id == *id) else { return Ok(None) };
        Ok(self.chain.tasks(&filled.at).await?.into_iter().find(|task| task.id == *id))
    }
}

fn cursor_of(network: lockstep_types::NetworkId, epoch: lockstep_types::Epoch, last: Option<TaskNumber>) -> Cursor {
    Cursor {
        layout: Layout::Apinode.name().to_owned(),
        network: network.0.to_vec(),
        epoch: tables::epoch_column(epoch),
        last,
    }
}

fn place(piece: &Piece) -> Place {
    Place {
        first: piece.first,
        last: piece.last,
        locator: blob_at(piece).blob,
        commitment: piece.hash.to_vec(),
        height: None,
        stage: Stage::Final,
    }
}

/// Tasks by the blobs that they are in.
fn places_at<'a>(tasks: impl Iterator<Item = (TaskNumber, &'a BlobAt)>) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for (number, at) in tasks {
        match places.last_mut().filter(|place| place.locator == at.blob) {
            Some(place) => place.last = number,
            None => {
                let (locator, commitment) = (at.blob.clone(), at.hash.0.to_vec());
                places.push(Place {
                    first: number,
                    last: number,
                    locator,
                    commitment,
                    height: None,
                    stage: Stage::Final,
                });
            }
        }
    }
    places
}

#[async_trait]
impl Output for ObjectOutput {
    async fn publish(&self, tasks: &[FinalTask], expected_last: Option<TaskNumber>) -> Result<Receipt, OutputError> {
        let mut receipt = tables::check_tasks(tasks, &self.owner, expected_last)?;
        let pieces = pieces_aside(tasks, usize::MAX).await?;
        let mut tip = self.tip(false).await?;
        if tip.cursor.last != expected_last || tip.cursor.check_owner(&self.ours()).is_err() {
            tip = self.tip(true).await?;
        }
        receipt.places = match tip.cursor.admit(&self.ours(), tasks, expected_last)? {
            Admission::Append => self.append(tip, &pieces).await?,
            Admission::Compare => self.compare(tasks, &pieces, &receipt, tip.cursor.last).await?,
        };
        Ok(receipt)
    }

    async fn skip(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        self.go_on_behind(last, expected_last, Kind::Skipped).await
    }

    async fn pass(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        self.go_on_behind(last, expected_last, Kind::Passed).await
    }

    async fn complete(&self, first: TaskNumber, last: TaskNumber) -> Result<(), OutputError> {
        if self.first_gap(first, last).await?.is_none() {
            return Ok(());
        }
        let complete = Complete { version: ENTRY_VERSION, network: self.owner.network, first, last };
        self.chain.add_complete(&complete).await
    }

    async fn fill(&self, tasks: &[FinalTask]) -> Result<(), OutputError> {
        let range = tables::check_fill(tasks, &self.owner)?;
        let tip = self.tip(true).await?;
        let found = self.present((range.first, range.last)).await?;
        let column = |(number, (task, _)): (&TaskNumber, &(FinalTask, BlobAt))| {
            (tables::id_column(number.0), task.id.0.to_vec())
        };
        let found: Vec<_> = found.iter().map(column).collect();
        let absent = tip.cursor.may_fill(&self.ours(), tasks, &found, &[])?;
        for piece in pieces(absent, usize::MAX)? {
            let at = self.chain.put_blob(&self.owner, &piece).await?;
            for (number, id) in piece.tasks {
                let (network, at) = (self.owner.network, at.clone());
                let filled = Filled { version: ENTRY_VERSION, network, number, id, at };
                if self.chain.add_filled(&filled).await?.id != id {
                    return Err(tables::other_task(number));
                }
            }
        }
        Ok(())
    }

    async fn first_gap(&self, first: TaskNumber, last: TaskNumber) -> Result<Option<Range>, OutputError> {
        let tip = self.tip(true).await?;
        tip.cursor.check_owner(&self.ours())?;
        // What comes behind the last link was not skipped.
        let Some(last) = tip.cursor.last.map(|newest| last.min(newest)) else { return Ok(None) };
        let mut start = first;
        for (from, to) in self.runs(first, last).await? {
            if from > start {
                return Ok((start <= last).then(|| (start, last.min(TaskNumber(from.0 - 1)))));
            }
            start = start.max(to.next());
        }
        Ok((start <= last).then_some((start, last)))
    }

    async fn last(&self) -> Result<Option<TaskNumber>, OutputError> {
        let tip = self.tip(true).await?;
        tip.cursor.check_owner(&self.ours())?;
        Ok(tip.cursor.last)
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopted, OutputError> {
        let tip = self.tip(true).await?;
        let adopted = tip.cursor.adopt(&self.ours(), adoption)?;
        if adopted.from != self.owner.epoch {
            // It takes the place of the next link, so that writers of the earlier epoch find it taken.
            let first = self.owner.next(adopted.last);
            let link = Link::new(&self.owner, first, TaskNumber(first.0 - 1), Kind::Epoch);
            self.add(tip.next, link).await?;
        }
        Ok(adopted)
    }

    async fn read(&self, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        self.find(id).await
    }

    async fn stored(&self, first: TaskNumber, max: usize, _places: &[Place]) -> Result<Page, OutputError> {
        self.walk(first, max).await
    }

    async fn strays(&self, after: Option<&StrayMark>) -> Result<Strays, OutputError> {
        self.stray_names(after).await
    }

    fn part_bytes(&self) -> Option<usize> {
        Some(PART_BYTES)
    }
}

/// A link, a mark of an owner or of a gap in an object store, for the fuzz targets. True where it is one.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) -> bool {
    fn reads<T: serde::de::DeserializeOwned + serde::Serialize + PartialEq>(bytes: &[u8]) -> bool {
        entry::parse::<T>("an entry", bytes).is_ok_and(|read| {
            let again = serde_json::to_vec(&read).map(|text| entry::parse::<T>("an entry", &text));
            assert!(again.is_ok_and(|again| again.is_ok_and(|again| again == read)));
            true
        })
    }
    let name = std::str::from_utf8(bytes).unwrap_or_default();
    let _ = (entry::number_of(name), entry::Complete::range_of(name));
    let link = entry::parse::<entry::Link>("a link", bytes);
    let _ = link.map(|link| link.next_name());
    reads::<entry::Link>(bytes)
        | reads::<entry::StoreOwner>(bytes)
        | reads::<entry::Filled>(bytes)
        | reads::<entry::Complete>(bytes)
}
