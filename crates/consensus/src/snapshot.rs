//! What members tell each other about a copy of the state: its files, checked, and how far a transfer is.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use keccak_asm::{Digest as _, Keccak256};
use lockstep_types::{DecodeError, Hash32, NodeId, keccak256, proto};

use crate::convert::{log_id_from, log_id_to, membership_from, membership_to, vote_from, vote_to};
use crate::limits::{SNAPSHOT_BYTES_MAX, SNAPSHOT_FILES_MAX};
use crate::raft_types::{LogId, StoredMembership, TypeConfig, Vote};

/// openraft's description of a snapshot: the newest entry and the membership in it.
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// Domain of [`Manifest::id`].
const ID_DOMAIN: &[u8] = b"lockstep/snapshot/v1";
/// Most digits of a file's number, as RocksDB counts.
const FILE_DIGITS_MAX: usize = 20;
const CURRENT: &str = "CURRENT";
/// Longest pause after a piece of a file was hashed gently.
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// Names a copy of the state by what is in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SnapshotId(pub [u8; 16]);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One file of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileInfo {
    pub name: String,
    pub bytes: u64,
    pub sum: Hash32,
}

/// A copy of the state, as it is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub meta: SnapshotMeta,
    /// Sorted by name, none twice.
    pub files: Vec<FileInfo>,
}

fn bad(reason: impl fmt::Display) -> DecodeError {
    DecodeError::malformed("snapshot offer", reason)
}

/// Whether a file of this name belongs into a copy: RocksDB's data, nothing that it makes by itself when it opens.
pub fn is_data_file(name: &str) -> bool {
    let digits =
        |text: &str| (1..=FILE_DIGITS_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    name == CURRENT
        || name.strip_prefix("MANIFEST-").is_some_and(digits)
        || name.strip_suffix(".sst").is_some_and(digits)
}

/// keccak256 of a file, read in pieces.
///
/// # Errors
/// If it cannot be read.
pub fn sum_of(path: &Path) -> std::io::Result<Hash32> {
    sum_with_pauses(path, Duration::ZERO)
}

/// As [`sum_of`], with no more than half of a core, so that a leader with a large state goes on with its other work.
pub(crate) fn sum_gently(path: &Path) -> std::io::Result<Hash32> {
    sum_with_pauses(path, PAUSE_MAX)
}

/// After each piece it pauses for as long as the piece took, up to `pause_max`.
fn sum_with_pauses(path: &Path, pause_max: Duration) -> std::io::Result<Hash32> {
    let (mut file, mut hasher) = (std::fs::File::open(path)?, Keccak256::new());
    let mut buffer = vec![0; 256 << 10];
    loop {
        let began = Instant::now();
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            n => hasher.update(&buffer[..n]),
        }
        if !pause_max.is_zero() {
            std::thread::sleep(began.elapsed().min(pause_max));
        }
    }
}

impl Manifest {
    /// The newest entry in it. Every copy that is offered has one.
    pub fn last(&self) -> Option<LogId> {
        self.meta.last_log_id
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The same for the same files, whoever has them.
    pub fn id(&self) -> SnapshotId {
        let (term, index) = self.last().map_or((0, 0), |id| (*id.leader_id, id.index));
        let mut bytes = Vec::with_capacity(64 * (self.files.len() + 1));
        for number in [term, index, self.files.len() as u64] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        for file in &self.files {
            bytes.extend_from_slice(&(file.name.len() as u64).to_be_bytes());
            bytes.extend_from_slice(file.name.as_bytes());
            bytes.extend_from_slice(&file.bytes.to_be_bytes());
            bytes.extend_from_slice(&file.sum);
        }
        let hash = keccak256(&[ID_DOMAIN, &bytes]);
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        SnapshotId(id)
    }

    pub fn to_offer(&self, vote: &Vote) -> proto::SnapshotOffer {
        let file = |file: &FileInfo| proto::SnapshotFile {
            name: file.name.clone(),
            bytes: file.bytes,
            sum: Bytes::copy_from_slice(&file.sum),
        };
        proto::SnapshotOffer {
            vote: Some(vote_to(vote)),
            last: self.last().as_ref().map(log_id_to),
            membership_id: self.meta.last_membership.log_id().as_ref().map(log_id_to),
            membership: Some(membership_to(self.meta.last_membership.membership())),
            id: Bytes::copy_from_slice(&self.id().0),
            files: self.files.iter().map(file).collect(),
        }
    }

    /// Reads an offer and checks everything that can be checked before a byte of it is fetched: names that are no
    /// path, sizes that stay within bounds, an id that fits.
    ///
    /// # Errors
    /// What is wrong.
    pub fn from_offer(offer: proto::SnapshotOffer) -> Result<(Vote, Self), DecodeError> {
        let vote = offer.vote.as_ref().map(vote_from).ok_or_else(|| bad("the vote is missing"))?;
        let last = offer.last.as_ref().map(log_id_from).ok_or_else(|| bad("the last entry is missing"))?;
        if *last.leader_id > vote.leader_id.term {
            return Err(bad("its last entry is of a later term than the leader's vote"));
        }
        let membership_id = offer.membership_id.as_ref().map(log_id_from);
        if membership_id > Some(last) {
            return Err(bad("its membership is newer than its last entry"));
        }
        let membership = membership_from(&offer.membership.ok_or_else(|| bad("the membership is missing"))?)?;
        if offer.files.len() > SNAPSHOT_FILES_MAX {
            return Err(bad(format!("{} files, more than {SNAPSHOT_FILES_MAX}", offer.files.len())));
        }
        let files: Vec<FileInfo> = offer.files.into_iter().map(file_from).collect::<Result<_, _>>()?;
        check_files(&files)?;
        let last_membership = StoredMembership::new(membership_id, membership);
        let manifest = Self { meta: SnapshotMeta { last_log_id: Some(last), last_membership }, files };
        if offer.id[..] != manifest.id().0 {
            return Err(bad("its id does not fit its files"));
        }
        Ok((vote, manifest))
    }
}

fn file_from(file: proto::SnapshotFile) -> Result<FileInfo, DecodeError> {
    if !is_data_file(&file.name) {
        let shown: String = file.name.chars().take(64).collect();
        return Err(bad(format!("{shown:?} is not the name of a file of a store")));
    }
    let sum = file.sum[..].try_into().map_err(|_| bad("a checksum is not 32 bytes"))?;
    Ok(FileInfo { name: file.name, bytes: file.bytes, sum })
}

fn check_files(files: &[FileInfo]) -> Result<(), DecodeError> {
    let names: BTreeSet<&str> = files.iter().map(|file| file.name.as_str()).collect();
    if names.len() != files.len() || !files.is_sorted_by_key(|file| &file.name) {
        return Err(bad("its files are not sorted, or one is there twice"));
    }
    if !names.contains(CURRENT) || names.iter().filter(|name| name.starts_with("MANIFEST-")).count() != 1 {
        return Err(bad("it is no whole store"));
    }
    let total = files.iter().try_fold(0_u64, |total, file| total.checked_add(file.bytes));
    match total {
        Some(total) if total <= SNAPSHOT_BYTES_MAX => Ok(()),
        _ => Err(bad(format!("more than {SNAPSHOT_BYTES_MAX} bytes"))),
    }
}

/// What a node does with a copy of the state that it was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotStage {
    /// Files are fetched.
    Fetching,
    /// All files are there and the state gives way to them.
    Installing,
    /// It is tried again at a later offer.
    Failed,
}

/// How far the transfer of a copy of the state is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotProgress {
    /// The other end: who offers it, or for whom it is.
    pub node: NodeId,
    /// Index of the newest entry in it.
    pub last_index: u64,
    /// Bytes that the receiving member has.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
    /// Bytes fetched a second, lately; 0 where this node does not fetch.
    pub bytes_per_second: u64,
    /// What is being done.
    pub stage: SnapshotStage,
    /// What keeps it from going on.
    pub problem: Option<String>,
}

impl SnapshotProgress {
    /// Part of the bytes that is there, from 0 to 100.
    pub fn percent(&self) -> u64 {
        let hundredths = u128::from(self.bytes_done) * 100 / u128::from(self.bytes_total.max(1));
        u64::try_from(hundredths.min(100)).unwrap_or(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: u64) -> FileInfo {
        FileInfo { name: name.into(), bytes, sum: [7; 32] }
    }

    fn manifest() -> Manifest {
        let last_log_id = Some(LogId::new_term_index(3, 100));
        let files = vec![file("000009.sst", 5000), file("CURRENT", 16), file("MANIFEST-000005", 300)];
        Manifest { meta: SnapshotMeta { last_log_id, last_membership: StoredMembership::default() }, files }
    }

    fn vote(term: u64) -> Vote {
        Vote { leader_id: crate::raft_types::LeaderId { term, voted_for: 1 }, committed: true }
    }

    #[test]
    fn an_offer_reads_back() {
        let offer = manifest().to_offer(&vote(3));
        assert_eq!(Manifest::from_offer(offer).unwrap(), (vote(3), manifest()));
        assert_eq!(manifest().bytes(), 5316);
        // Golden: other programs compute it too.
        assert_eq!(manifest().id().to_string(), "e21268572752526ab3386c5e084a5f5e");
    }

    #[test]
    fn hostile_offers_are_refused() {
        type Change = fn(&mut Manifest);
        let changes: [(&str, Change); 12] = [
            ("not the name", |m| m.files[0].name = "../../etc/passwd".into()),
            ("not the name", |m| m.files[0].name = "/000009.sst".into()),
            ("not the name", |m| m.files[0].name = "..".into()),
            ("not the name", |m| m.files[0].name = "a/000009.sst".into()),
            ("not the name", |m| m.files[0].name = "LOCK".into()),
            ("not the name", |m| m.files[0].name = "0000000000000000000000001.sst".into()),
            ("not the name", |m| m.files[0].name = "000009.sst\0".into()),
            ("twice", |m| m.files[0] = m.files[1].clone()),
            ("twice", |m| m.files.swap(0, 1)),
            ("no whole store", |m| drop(m.files.remove(1))),
            ("more than", |m| m.files[0].bytes = u64::MAX),
            ("more than", |m| m.files[0].bytes = SNAPSHOT_BYTES_MAX),
        ];
        for (reason, change) in changes {
            let mut hostile = manifest();
            change(&mut hostile);
            let error = Manifest::from_offer(hostile.to_offer(&vote(3))).unwrap_err().to_string();
            assert!(error.contains(reason), "{reason}: {error}");
        }
        let error = |change: fn(&mut proto::SnapshotOffer)| {
            let mut offer = manifest().to_offer(&vote(3));
            change(&mut offer);
            Manifest::from_offer(offer).unwrap_err().to_string()
        };
        assert!(error(|o| o.vote = None).contains("vote"));
        assert!(error(|o| o.last = None).contains("last entry"));
        assert!(error(|o| o.vote = Some(vote_to(&vote(2)))).contains("later term"));
        assert!(error(|o| o.membership_id = o.last.map(|id| proto::LogId { index: 101, ..id })).contains("newer"));
        assert!(error(|o| o.membership = None).contains("membership"));
        assert!(error(|o| o.id = Bytes::from_static(&[1; 16])).contains("id does not fit"));
        assert!(error(|o| o.files[0].sum = Bytes::new()).contains("32 bytes"));
        assert!(error(|o| o.files = vec![o.files[0].clone(); SNAPSHOT_FILES_MAX + 1]).contains("files, more"));
    }
}
