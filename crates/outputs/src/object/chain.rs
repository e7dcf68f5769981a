//! The requests: links, blobs, and what was filled in.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use lockstep_types::{Digest, Height, TaskNumber};
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt as _, PutMode};
use serde::Serialize;

use super::entry::{
    BlobAt, Complete, ENTRY_BYTES_MAX, ENTRY_VERSION, Filled, Kind, Link, StoreOwner, file_name, name_of, number_of,
    padded, parse,
};
use super::error::{of_blob, retryable};
use super::options::Place;
use crate::blobs::{Piece, read_back};
use crate::output::{FinalTask, OutputError, Owner};

const OWNER: &str = "lockstep.json";
pub(super) const INDEX: &str = "index";
const HEIGHTS: &str = "heights";
const BLOBS: &str = "blobs";
pub(super) const FILLED: &str = "filled";
pub(super) const COMPLETE: &str = "complete";

/// Names that one page of a walk has.
pub(super) const PAGE_NAMES: usize = 1_000;
/// Requests that are under way at a time.
pub(super) const REQUESTS_MAX: usize = 8;
/// How far before a number its link is looked for at first: more tasks than a blob usually has.
const LOOK_BACK: u64 = 4_096;

/// What became of an object that was to be created.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Created {
    /// It is there, with this content.
    Ours,
    /// Another content is there.
    Others(Bytes),
}

/// A store and where in it everything is.
pub(super) struct Chain {
    place: Place,
}

/// The link that stands at a name.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub name: String,
    pub link: Link,
}

impl Chain {
    pub fn new(place: Place) -> Self {
        Self { place }
    }

    fn key(&self, parts: &[&str]) -> Path {
        parts.iter().fold(self.place.prefix.clone(), |key, part| key.join(*part))
    }

    async fn get(&self, key: &Path, bytes_max: u64) -> Result<Option<Bytes>, OutputError> {
        let found = match self.place.store.get(key).await {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(retryable(error)),
        };
        if found.meta.size > bytes_max {
            return Err(OutputError::Foreign(format!("{key} has {} bytes, at most {bytes_max}", found.meta.size)));
        }
        Ok(Some(found.bytes().await.map_err(retryable)?))
    }

    /// Creates an object; where there is one it is compared.
    async fn create(&self, key: &Path, content: Bytes) -> Result<Created, Error> {
        match self.place.store.put_opts(key, content.clone().into(), PutMode::Create.into()).await {
            Ok(_) => return Ok(Created::Ours),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
            Err(error) => return Err(error),
        }
        let there = self.place.store.get(key).await?;
        // Longer than anything of ours: what it says does not matter.
        if there.meta.size > ENTRY_BYTES_MAX.max(content.len() as u64) {
            return Ok(Created::Others(Bytes::new()));
        }
        let there = there.bytes().await?;
        Ok(if there == content { Created::Ours } else { Created::Others(there) })
    }

    async fn create_entry(&self, key: &Path, entry: &impl Serialize) -> Result<Created, OutputError> {
        let content = serde_json::to_vec(entry).map_err(|e| OutputError::Foreign(e.to_string()))?;
        self.create(key, content.into()).await.map_err(retryable)
    }

    /// Says whose store it is, where nobody has said it yet, and reads it.
    pub async fn owner(&self, owner: &Owner) -> Result<StoreOwner, OutputError> {
        let key = self.key(&[OWNER]);
        if let Some(found) = self.get(&key, ENTRY_BYTES_MAX).await? {
            return parse(OWNER, &found);
        }
        let Owner { network, epoch, first_task_number } = *owner;
        let ours = StoreOwner { version: ENTRY_VERSION, network, epoch, first_task: first_task_number };
        for directory in [INDEX, BLOBS, HEIGHTS, FILLED, COMPLETE] {
            let occupied = self.names(directory, None, 1).await?;
            // Another node may have begun meanwhile.
            if !occupied.is_empty() && self.get(&key, ENTRY_BYTES_MAX).await?.is_none() {
                let reason = format!("{directory} has objects already, and no {OWNER} says whose they are");
                return Err(OutputError::Foreign(reason));
            }
        }
        match self.create_entry(&key, &ours).await? {
            Created::Ours => Ok(ours),
            Created::Others(found) => parse(OWNER, &found),
        }
    }

    /// Names in a directory behind `after`: at most `names_max` where the store lists in order, all where it does not,
    /// ascending.
    async fn names(&self, directory: &str, after: Option<&str>, names_max: usize) -> Result<Vec<String>, OutputError> {
        let prefix = self.key(&[directory]);
        let listed = match after {
            Some(after) => self.place.store.list_with_offset(Some(&prefix), &self.key(&[directory, after])),
            None => self.place.store.list(Some(&prefix)),
        };
        let names = listed.try_filter_map(async |object| Ok(file_name(&object.location)));
        let mut names: Vec<String> = if self.place.is_sorted {
            names.take(names_max).try_collect().await.map_err(retryable)?
        } else {
            names.try_collect().await.map_err(retryable)?
        };
        names.sort_unstable();
        Ok(names)
    }

    /// The last link, given one that is known.
    pub async fn last_link(&self, known: Option<Named>) -> Result<Option<Named>, OutputError> {
        let mut known = known;
        loop {
            let after = known.as_ref().map(|named| named.name.as_str());
            let page = self.names(INDEX, after, PAGE_NAMES).await?;
            let Some(name) = page.last() else { return Ok(known) };
            known = Some(self.link(name).await?);
        }
    }

    async fn link(&self, name: &str) -> Result<Named, OutputError> {
        let found = self.get(&self.key(&[INDEX, name]), ENTRY_BYTES_MAX).await?;
        let found = found.ok_or_else(|| OutputError::Retryable(format!("{INDEX}/{name} is listed, but not there")))?;
        Ok(Named { name: name.to_owned(), link: parse(name, &found)? })
    }

    /// Adds a link behind the last one, unless another one is there.
    pub async fn add(&self, name: &str, link: &Link) -> Result<Created, OutputError> {
        self.create_entry(&self.key(&[INDEX, name]), link).await
    }

    /// Name of the link that has a task, or of the first one behind it.
    async fn name_before(&self, number: TaskNumber) -> Result<Option<String>, OutputError> {
        let end = format!("{}.~", name_of(number));
        let mut back = LOOK_BACK;
        loop {
            let after = padded(number.0.saturating_sub(back));
            let names = self.names(INDEX, Some(&after), usize::try_from(back).unwrap_or(usize::MAX)).await?;
            if let Some(name) = names.into_iter().rev().find(|name| *name < end) {
                return Ok(Some(name));
            }
            if back >= number.0 {
                return Ok(None);
            }
            back = back.saturating_mul(16);
        }
    }

    /// Names of the links that may have tasks from `first` to `last`, ascending: at most one page of them, and whether
    /// there may be more.
    pub async fn link_names(&self, first: TaskNumber, last: TaskNumber) -> Result<(Vec<String>, bool), OutputError> {
        let mut names: Vec<String> = self.name_before(first).await?.into_iter().collect();
        let after = names.last().cloned().unwrap_or_else(|| name_of(first));
        let mut rest = self.names(INDEX, Some(&after), PAGE_NAMES).await?;
        let more = rest.len() >= PAGE_NAMES;
        rest.truncate(PAGE_NAMES);
        names.extend(rest.into_iter().filter(|name| number_of(name).is_some_and(|number| number <= last)));
        Ok((names, more))
    }

    /// The link that stands at a name, if there is one.
    pub async fn link_at(&self, name: &str) -> Result<Option<Link>, OutputError> {
        match self.get(&self.key(&[INDEX, name]), ENTRY_BYTES_MAX).await? {
            Some(found) => parse::<Link>(name, &found).map(Some),
            None => Ok(None),
        }
    }

    /// Links that have tasks from `first` to `last`, ascending, from at most one page of names, and whether there may
    /// be more.
    pub async fn links(&self, first: TaskNumber, last: TaskNumber) -> Result<(Vec<Link>, bool), OutputError> {
        let (names, more) = self.link_names(first, last).await?;
        let found = stream::iter(names).map(|name| async move { self.link_at(&name).await });
        let links: Vec<Option<Link>> = found.buffered(REQUESTS_MAX).try_collect().await?;
        let links = links.into_iter().flatten().filter(|link| link.last >= first && link.first <= last);
        Ok((links.collect(), more))
    }

    /// The entry of a height.
    pub async fn height_entry(&self, height: Height, first: TaskNumber) -> Result<Option<Link>, OutputError> {
        let name = name_of(first);
        let found = self.get(&self.key(&[HEIGHTS, &padded(height.0), &name]), ENTRY_BYTES_MAX).await?;
        found.map(|found| parse(&format!("{HEIGHTS}/{}/{name}", padded(height.0)), &found)).transpose()
    }

    /// A page of names in a directory behind `after`, and whether there may be more.
    pub async fn all_names(&self, directory: &str, after: Option<&str>) -> Result<(Vec<String>, bool), OutputError> {
        let names = self.names(directory, after, PAGE_NAMES).await?;
        let more = self.place.is_sorted && names.len() >= PAGE_NAMES;
        Ok((names, more))
    }

    /// Puts a blob where its hash says, and the entry of its height.
    pub async fn put_blob(&self, owner: &Owner, piece: &Piece) -> Result<BlobAt, OutputError> {
        let at = blob_at(piece);
        let key = self.place.prefix.parts().chain(Path::from(at.blob.as_str()).parts()).collect::<Path>();
        match self.create(&key, piece.bytes.clone()).await.map_err(|e| of_blob(e, piece.first))? {
            Created::Ours => {}
            Created::Others(_) => {
                return Err(OutputError::Foreign(format!("{} is not what its name says", at.blob)));
            }
        }
        let link = Link::new(owner, piece.first, piece.last, Kind::Tasks(at.clone()));
        let key = self.key(&[HEIGHTS, &padded(piece.height.0), &name_of(piece.first)]);
        // Where a part was cut elsewhere the entry that came first stays: it leads to the same tasks.
        self.create_entry(&key, &link).await?;
        Ok(at)
    }

    /// The tasks of a blob.
    pub async fn tasks(&self, at: &BlobAt) -> Result<Vec<FinalTask>, OutputError> {
        let key = self.place.prefix.parts().chain(Path::from(at.blob.as_str()).parts()).collect::<Path>();
        let found = self.get(&key, at.bytes).await?;
        let found = found.ok_or_else(|| OutputError::Foreign(format!("{} is missing", at.blob)))?;
        read_back(found, &at.hash.0)
    }

    /// Notes where a task is that was skipped; what stands there is returned.
    pub async fn add_filled(&self, filled: &Filled) -> Result<Filled, OutputError> {
        let key = self.key(&[FILLED, &name_of(filled.number)]);
        match self.create_entry(&key, filled).await? {
            Created::Ours => Ok(filled.clone()),
            Created::Others(found) => parse(FILLED, &found),
        }
    }

    /// Notes that of these tasks those that are for this store were filled in.
    pub async fn add_complete(&self, complete: &Complete) -> Result<(), OutputError> {
        self.create_entry(&self.key(&[COMPLETE, &complete.name()]), complete).await.map(drop)
    }

    /// Runs of numbers of which that was noted, ascending. There is one for each run that a refill went through.
    pub async fn complete(&self) -> Result<Vec<(TaskNumber, TaskNumber)>, OutputError> {
        let names = self.names(COMPLETE, None, usize::MAX).await?;
        Ok(names.iter().filter_map(|name| Complete::range_of(name)).collect())
    }

    /// What was filled in from `first` to `last`, by number.
    pub async fn filled(
        &self,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<BTreeMap<TaskNumber, Filled>, OutputError> {
        let names_max = usize::try_from(last.0.saturating_sub(first.0).saturating_add(1)).unwrap_or(usize::MAX);
        let (filled, _) = self.filled_at_most(first, last, names_max).await?;
        Ok(filled.into_iter().map(|(_, filled)| (filled.number, filled)).collect())
    }

    /// What was filled in from `first` to `last`, at most `max` of them, by the number of the name, and up to which number
    /// that is all.
    pub async fn filled_at_most(
        &self,
        first: TaskNumber,
        last: TaskNumber,
        max: usize,
    ) -> Result<(Vec<(TaskNumber, Filled)>, TaskNumber), OutputError> {
        let names_max = max.saturating_add(1);
        let mut names = self.names(FILLED, Some(&padded(first.0.saturating_sub(1))), names_max).await?;
        names.retain(|name| number_of(name).is_some_and(|number| (first..=last).contains(&number)));
        let beyond = names.get(max).and_then(|name| number_of(name));
        names.truncate(max);
        let found = stream::iter(names).map(|name| async move {
            let found = self.get(&self.key(&[FILLED, &name]), ENTRY_BYTES_MAX).await?;
            let found =
                found.ok_or_else(|| OutputError::Retryable(format!("{FILLED}/{name} is listed, but not there")))?;
            let number = number_of(&name).unwrap_or_default();
            parse::<Filled>(&name, &found).map(|filled| (number, filled))
        });
        let found = found.buffered(REQUESTS_MAX).try_collect().await?;
        Ok((found, beyond.map_or(last, |beyond| TaskNumber(beyond.0 - 1))))
    }
}

/// Where a blob belongs.
pub(super) fn blob_at(piece: &Piece) -> BlobAt {
    let hash = hex::encode(piece.hash);
    BlobAt {
        height: piece.height,
        part: piece.part,
        parts: piece.parts,
        blob: format!("{BLOBS}/{}/{hash}", &hash[..2]),
        hash: Digest(piece.hash),
        bytes: piece.bytes.len() as u64,
    }
}
