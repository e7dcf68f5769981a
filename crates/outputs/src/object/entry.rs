//! The small JSON objects by which a store of blobs is walked. docs/formats.md, "Object stores".

use lockstep_types::{Digest, Epoch, Height, NetworkId, TaskId, TaskNumber};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::output::{OutputError, Owner};

/// Version of all of them.
pub(super) const ENTRY_VERSION: u32 = 1;
/// Longest of them that is read, in bytes.
pub(super) const ENTRY_BYTES_MAX: u64 = 4_096;

/// Whose store it is, as it was at first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoreOwner {
    pub version: u32,
    pub network: NetworkId,
    pub epoch: Epoch,
    pub first_task: TaskNumber,
}

/// Where a blob is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlobAt {
    pub height: Height,
    pub part: u32,
    pub parts: u32,
    pub blob: String,
    pub hash: Digest,
    pub bytes: u64,
}

/// What a link of the chain says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub(super) enum Kind {
    /// Tasks, in a blob. Those of the numbers that it does not have are not for this store.
    Tasks(BlobAt),
    /// These tasks never come, or are found under `filled`.
    Skipped,
    /// These tasks are not for this store.
    Passed,
    /// What follows is of the link's epoch. It has no task: `last` is one less than `first`.
    Epoch,
}

/// A link of the chain: each begins with the task behind the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Link {
    pub version: u32,
    pub network: NetworkId,
    pub epoch: Epoch,
    pub first: TaskNumber,
    pub last: TaskNumber,
    #[serde(flatten)]
    pub kind: Kind,
}

/// A task that was skipped and found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Filled {
    pub version: u32,
    pub network: NetworkId,
    pub number: TaskNumber,
    pub id: TaskId,
    #[serde(flatten)]
    pub at: BlobAt,
}

/// Of these tasks those that are for this store were filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Complete {
    pub version: u32,
    pub network: NetworkId,
    pub first: TaskNumber,
    pub last: TaskNumber,
}

impl Complete {
    /// Its name, which says it all.
    pub fn name(&self) -> String {
        format!("{}-{}", padded(self.first.0), padded(self.last.0))
    }

    /// The tasks that a name speaks of.
    pub fn range_of(name: &str) -> Option<(TaskNumber, TaskNumber)> {
        let (first, last) = name.split_once('-')?;
        let number = |text: &str| (text.len() == 20).then(|| text.parse().ok().map(TaskNumber)).flatten();
        number(first).zip(number(last)).filter(|(first, last)| first <= last)
    }
}

impl Link {
    /// A link of this owner.
    pub fn new(owner: &Owner, first: TaskNumber, last: TaskNumber, kind: Kind) -> Self {
        Self { version: ENTRY_VERSION, network: owner.network, epoch: owner.epoch, first, last, kind }
    }

    /// Name of the link behind it.
    pub fn next_name(&self) -> String {
        match self.kind {
            Kind::Epoch => format!("{}.{}", name_of(self.first), padded(self.epoch.0)),
            _ => name_of(self.last.next()),
        }
    }
}

/// Twenty digits, so that the order of names is that of numbers.
pub(super) fn padded(number: u64) -> String {
    format!("{number:020}")
}

/// Name of the link that begins with a task.
pub(super) fn name_of(first: TaskNumber) -> String {
    padded(first.0)
}

/// The number that a link's name begins with.
pub(super) fn number_of(name: &str) -> Option<TaskNumber> {
    Some(TaskNumber(name.get(..20)?.parse().ok()?))
}

/// The last part of a path.
pub(super) fn file_name(path: &Path) -> Option<String> {
    path.filename().map(str::to_owned)
}

/// Reads one of them.
pub(super) fn parse<T: for<'a> Deserialize<'a>>(at: &str, bytes: &[u8]) -> Result<T, OutputError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let damaged = |e: serde_json::Error| OutputError::Foreign(format!("{at} is not what Lockstep writes: {e}"));
    let Versioned { version } = serde_json::from_slice(bytes).map_err(damaged)?;
    if version > ENTRY_VERSION {
        let reason = format!("{at} has version {version}, this program knows {ENTRY_VERSION}; upgrade it");
        return Err(OutputError::Foreign(reason));
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_names_is_the_order_of_the_chain() {
        let owner = Owner { network: NetworkId([1; 32]), epoch: Epoch(3), first_task_number: TaskNumber(5) };
        let number = TaskNumber;
        let skipped = Link::new(&owner, number(5), number(9), Kind::Skipped);
        let epoch = Link::new(&owner, number(10), number(9), Kind::Epoch);
        let names =
            [name_of(number(5)), skipped.next_name(), epoch.next_name(), name_of(number(11)), name_of(number(100))];
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
        assert_eq!(names.iter().map(|name| number_of(name).unwrap().0).collect::<Vec<_>>(), [5, 10, 10, 11, 100]);
    }

    #[test]
    fn what_is_complete_is_read_from_its_name() {
        let complete =
            Complete { version: 1, network: NetworkId([1; 32]), first: TaskNumber(5), last: TaskNumber(u64::MAX) };
        assert_eq!(complete.name(), "00000000000000000005-18446744073709551615");
        assert_eq!(Complete::range_of(&complete.name()), Some((TaskNumber(5), TaskNumber(u64::MAX))));
        for bad in ["5-6", "00000000000000000006-00000000000000000005", "00000000000000000005", "-"] {
            assert_eq!(Complete::range_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn links_read_back_and_are_as_documented() {
        let owner = Owner { network: NetworkId([1; 32]), epoch: Epoch(3), first_task_number: TaskNumber(5) };
        let at = BlobAt {
            height: Height(7),
            part: 0,
            parts: 1,
            blob: "blobs/ab/abcd".into(),
            hash: Digest([2; 32]),
            bytes: 9,
        };
        let link = Link::new(&owner, TaskNumber(5), TaskNumber(6), Kind::Tasks(at));
        let text = serde_json::to_string(&link).unwrap();
        let (network, hash) = ("01".repeat(32), "02".repeat(32));
        let expected = format!(
            r#"{{"version":1,"network":"0x{network}","epoch":3,"first":5,"last":6,"kind":"tasks","height":7,"part":0,"parts":1,"blob":"blobs/ab/abcd","hash":"0x{hash}","bytes":9}}"#
        );
        assert_eq!(text, expected);
        assert_eq!(parse::<Link>("x", text.as_bytes()).unwrap(), link);
        let newer = parse::<Link>("x", text.replace(r#""version":1"#, r#""version":2"#).as_bytes());
        assert!(matches!(newer, Err(OutputError::Foreign(reason)) if reason.contains("upgrade")));
    }
}
