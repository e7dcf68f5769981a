//! Copies of this node's own state: the newest one, which is offered to members that need it, and an older one for as
//! long as somebody fetches it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use lockstep_types::{Hash32, NodeId, proto};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::blocking::Blocking;
use crate::limits::{COPY_SERVED_FOR, LOG_HELD_FOR, PIECE_BYTES_MAX, READS_AT_A_TIME};
use crate::snapshot::{
    FileInfo, Manifest, SnapshotId, SnapshotMeta, SnapshotProgress, SnapshotStage, is_data_file, sum_gently,
};

/// A directory with a consistent copy of the state. A copy that this node made is removed with its last user.
#[derive(Debug, Clone)]
pub struct SnapshotDirectory(Arc<Directory>);

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    is_own: bool,
}

impl SnapshotDirectory {
    /// A copy that this node made.
    pub(crate) fn made(path: PathBuf) -> Self {
        Self(Arc::new(Directory { path, is_own: true }))
    }

    /// A copy that was received: it becomes the state, or stays for a later offer.
    pub(crate) fn received(path: PathBuf) -> Self {
        Self(Arc::new(Directory { path, is_own: false }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.is_own
            && let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a copy of the state was not removed");
        }
    }
}

/// A copy that can be offered.
#[derive(Debug)]
pub(crate) struct KeptCopy {
    pub meta: SnapshotMeta,
    pub directory: SnapshotDirectory,
    /// Counts states that were installed: equal names of files mean equal files only within one.
    lineage: u64,
    /// Made when the copy is first offered, since it reads every file once.
    offered: OnceLock<(SnapshotId, Manifest)>,
    offering: Mutex<()>,
    used: Mutex<Instant>,
}

impl KeptCopy {
    fn touch(&self) {
        *self.used.lock() = Instant::now();
    }

    fn is_in_use(&self, now: Instant) -> bool {
        self.offered.get().is_some() && now.saturating_duration_since(*self.used.lock()) < COPY_SERVED_FOR
    }
}

/// A transfer to a member.
#[derive(Debug, Clone)]
struct Outgoing {
    last_index: u64,
    answered: Instant,
    bytes_done: u64,
    bytes_total: u64,
    problem: Option<String>,
}

#[derive(Debug, Default)]
struct Inner {
    current: Option<Arc<KeptCopy>>,
    older: Option<Arc<KeptCopy>>,
    lineage: u64,
    /// Checksums of files that never change, by lineage and name.
    sums: HashMap<(u64, String), (u64, Hash32)>,
    outgoing: HashMap<NodeId, Outgoing>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Shelf {
    inner: Mutex<Inner>,
    reads: Semaphore,
}

impl Default for Shelf {
    fn default() -> Self {
        Self { inner: Mutex::default(), reads: Semaphore::new(READS_AT_A_TIME) }
    }
}

impl Shelf {
    /// Makes a copy the current one, unless the current one is newer.
    pub fn put(&self, meta: SnapshotMeta, directory: SnapshotDirectory) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        if inner.current.as_ref().is_some_and(|current| current.meta.last_log_id >= meta.last_log_id) {
            return;
        }
        let (lineage, offered) = (inner.lineage, OnceLock::new());
        let copy = KeptCopy { meta, directory, lineage, offered, offering: Mutex::new(()), used: Mutex::new(now) };
        let before = inner.current.replace(Arc::new(copy));
        let unused = match before {
            Some(before) if before.is_in_use(now) => inner.older.replace(before),
            unused => unused,
        };
        drop(inner);
        // Its files are removed here, outside of the lock.
        drop(unused);
    }

    /// From now on copies are of another state, with files of its own.
    pub fn begin_lineage(&self) {
        let mut inner = self.inner.lock();
        inner.lineage += 1;
        inner.sums.clear();
    }

    /// Counts states: see [`Shelf::begin_lineage`].
    pub fn lineage(&self) -> u64 {
        self.inner.lock().lineage
    }

    /// The newest copy.
    pub fn current(&self) -> Option<Arc<KeptCopy>> {
        self.inner.lock().current.clone()
    }

    /// The copy in a directory, while it is kept.
    pub fn copy_of(&self, directory: &SnapshotDirectory) -> Option<Arc<KeptCopy>> {
        let inner = self.inner.lock();
        let is_it = |copy: &&Arc<KeptCopy>| Arc::ptr_eq(&copy.directory.0, &directory.0);
        inner.current.iter().chain(&inner.older).find(is_it).cloned()
    }

    /// Lets go of an older copy that nobody has asked for lately, and forgets transfers that ended.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        let unused = inner.older.take_if(|older| !older.is_in_use(now));
        inner.outgoing.retain(|_, transfer| now.saturating_duration_since(transfer.answered) < COPY_SERVED_FOR);
        drop(inner);
        // Its files are removed here, outside of the lock.
        drop(unused);
    }

    /// What a copy consists of. Reads every file whose checksum is not known; call it where that may block.
    pub fn manifest<'a>(&self, copy: &'a KeptCopy) -> io::Result<&'a (SnapshotId, Manifest)> {
        let _one_at_a_time = copy.offering.lock();
        if let Some(offered) = copy.offered.get() {
            return Ok(offered);
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(copy.directory.path())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_data_file(&name) {
                let bytes = entry.metadata()?.len();
                let sum = self.sum(copy.lineage, &name, bytes, &entry.path())?;
                files.push(FileInfo { name, bytes, sum });
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let manifest = Manifest { meta: copy.meta.clone(), files };
        self.forget_sums_but_of(copy.lineage, &manifest);
        copy.touch();
        Ok(copy.offered.get_or_init(|| (manifest.id(), manifest)))
    }

    fn sum(&self, lineage: u64, name: &str, bytes: u64, path: &Path) -> io::Result<Hash32> {
        let key = (lineage, name.to_owned());
        if let Some((of, sum)) = self.inner.lock().sums.get(&key)
            && *of == bytes
        {
            return Ok(*sum);
        }
        let sum = sum_gently(path)?;
        // Only table files are written once and keep their names.
        if name.ends_with(".sst") {
            self.inner.lock().sums.insert(key, (bytes, sum));
        }
        Ok(sum)
    }

    fn forget_sums_but_of(&self, lineage: u64, manifest: &Manifest) {
        let known = |name: &str| manifest.files.binary_search_by(|file| file.name.as_str().cmp(name)).is_ok();
        self.inner.lock().sums.retain(|(of, name), _| *of == lineage && known(name));
    }

    /// Answers a request on the snapshot channel.
    pub async fn serve(&self, request: proto::PieceRequest, blocking: Blocking) -> proto::bulk_response::Kind {
        use proto::bulk_response::Kind;
        let Some(copy) = self.offered(&request.snapshot) else {
            return Kind::Gone("this copy of the state is not offered any more".into());
        };
        copy.touch();
        match self.read(&copy, request, blocking).await {
            Ok(piece) => Kind::Piece(piece),
            Err(error) => Kind::Failed(error.to_string()),
        }
    }

    fn offered(&self, id: &[u8]) -> Option<Arc<KeptCopy>> {
        let inner = self.inner.lock();
        let is_it = |copy: &&Arc<KeptCopy>| copy.offered.get().is_some_and(|(of, _)| of.0 == id);
        inner.current.iter().chain(&inner.older).find(is_it).cloned()
    }

    async fn read(&self, copy: &Arc<KeptCopy>, request: proto::PieceRequest, blocking: Blocking) -> io::Result<Bytes> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        let files = copy.offered.get().map(|(_, manifest)| &manifest.files[..]).unwrap_or_default();
        let place = files.binary_search_by(|file| file.name.as_str().cmp(&request.file));
        // Only what was offered is read, so no name leads out of the directory.
        let file = &files[place.map_err(|_| invalid("there is no such file in this copy"))?];
        let left = file.bytes.checked_sub(request.offset).ok_or_else(|| invalid("the file ends before the offset"))?;
        let length = usize::try_from(request.bytes.min(PIECE_BYTES_MAX).min(left)).map_err(io::Error::other)?;
        let path = copy.directory.path().join(&file.name);
        let _place = self.reads.acquire().await.map_err(io::Error::other)?;
        let read = move || {
            let mut piece = vec![0; length];
            File::open(path)?.read_exact_at(&mut piece, request.offset)?;
            Ok(Bytes::from(piece))
        };
        blocking.run(read).await.map_err(io::Error::other)?
    }

    /// Notes what a member answered to an offer.
    pub fn answered(&self, node: NodeId, copy: &KeptCopy, answer: &proto::SnapshotAnswer) {
        // Nothing is kept for a member that cannot fetch it: it gets a newer copy when it can.
        if answer.problem.is_empty() {
            copy.touch();
        }
        let transfer = Outgoing {
            last_index: copy.meta.last_log_id.map_or(0, |id| id.index),
            answered: Instant::now(),
            bytes_done: if answer.installed { answer.bytes_total } else { answer.bytes_done },
            bytes_total: answer.bytes_total,
            problem: Some(answer.problem.clone()).filter(|problem| !problem.is_empty()),
        };
        self.inner.lock().outgoing.insert(node, transfer);
    }

    /// Index of the newest entry in the oldest state that a member fetches, or has just installed: it needs the
    /// entries behind.
    pub fn log_needed_after(&self) -> Option<u64> {
        let now = Instant::now();
        let inner = self.inner.lock();
        let fresh = |transfer: &&Outgoing| {
            transfer.problem.is_none() && now.saturating_duration_since(transfer.answered) < LOG_HELD_FOR
        };
        inner.outgoing.values().filter(fresh).map(|transfer| transfer.last_index).min()
    }

    /// Transfers to members that are under way.
    pub fn outgoing(&self) -> Vec<SnapshotProgress> {
        let inner = self.inner.lock();
        let under_way = |(_, transfer): &(&NodeId, &Outgoing)| {
            transfer.bytes_done < transfer.bytes_total && transfer.answered.elapsed() < LOG_HELD_FOR
        };
        let progress = |(node, transfer): (&NodeId, &Outgoing)| SnapshotProgress {
            node: *node,
            last_index: transfer.last_index,
            bytes_done: transfer.bytes_done,
            bytes_total: transfer.bytes_total,
            bytes_per_second: 0,
            stage: SnapshotStage::Fetching,
            problem: transfer.problem.clone(),
        };
        let mut transfers: Vec<_> = inner.outgoing.iter().filter(under_way).map(progress).collect();
        transfers.sort_by_key(|transfer| transfer.node);
        transfers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft_types::{LogId, StoredMembership};

    fn meta(index: u64) -> SnapshotMeta {
        let last_log_id = Some(LogId::new_term_index(1, index));
        SnapshotMeta { last_log_id, last_membership: StoredMembership::default() }
    }

    fn copy_in(parent: &Path, index: u64) -> SnapshotDirectory {
        let path = parent.join(format!("copy-{index}"));
        std::fs::create_dir(&path).unwrap();
        for (name, content) in [("CURRENT", "MANIFEST-1"), ("MANIFEST-1", "m"), ("7.sst", "0123456789"), ("LOCK", "")] {
            std::fs::write(path.join(name), content).unwrap();
        }
        SnapshotDirectory::made(path)
    }

    fn count(parent: &Path) -> usize {
        std::fs::read_dir(parent).unwrap().count()
    }

    #[test]
    fn a_copy_is_removed_with_its_last_user_and_at_most_two_are_kept() {
        let (dir, shelf) = (tempfile::tempdir().unwrap(), Shelf::default());
        for index in 1..=3 {
            shelf.put(meta(index), copy_in(dir.path(), index));
        }
        assert_eq!(count(dir.path()), 1, "what nobody fetches gives way at once");
        shelf.put(meta(2), copy_in(dir.path(), 2));
        assert_eq!(shelf.current().unwrap().meta, meta(3), "an older copy never takes the place of a newer one");
        let third = shelf.current().unwrap();
        shelf.manifest(&third).unwrap();
        shelf.put(meta(4), copy_in(dir.path(), 4));
        shelf.put(meta(5), copy_in(dir.path(), 5));
        assert_eq!(count(dir.path()), 2, "the one that is fetched stays, and the newest");
        assert!(shelf.copy_of(&third.directory).is_some());
        *third.used.lock() = Instant::now() - COPY_SERVED_FOR;
        shelf.sweep();
        assert!(shelf.copy_of(&third.directory).is_none());
        assert_eq!(count(dir.path()), 2, "its last user is still here");
        drop(third);
        assert_eq!(count(dir.path()), 1);
    }

    #[tokio::test]
    async fn only_pieces_of_what_was_offered_are_served() {
        use proto::bulk_response::Kind;
        let (dir, shelf) = (tempfile::tempdir().unwrap(), Shelf::default());
        shelf.put(meta(1), copy_in(dir.path(), 1));
        let copy = shelf.current().unwrap();
        let request = |file: &str, offset: u64, bytes: u64, id: SnapshotId| proto::PieceRequest {
            snapshot: Bytes::copy_from_slice(&id.0),
            file: file.into(),
            offset,
            bytes,
        };
        let none = SnapshotId([0; 16]);
        assert!(matches!(shelf.serve(request("7.sst", 0, 4, none), Blocking::Threads).await, Kind::Gone(_)));
        let (id, manifest) = shelf.manifest(&copy).unwrap();
        let names: Vec<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["7.sst", "CURRENT", "MANIFEST-1"]);
        for (offset, bytes, piece) in [(0, 4, "0123"), (8, 100, "89"), (10, 1, ""), (0, u64::MAX, "0123456789")] {
            let got = shelf.serve(request("7.sst", offset, bytes, *id), Blocking::Threads).await;
            assert_eq!(got, Kind::Piece(Bytes::from_static(piece.as_bytes())));
        }
        for (file, offset) in [("7.sst", 11), ("7.sst", u64::MAX), ("LOCK", 0), ("../copy-1/7.sst", 0), ("", 0)] {
            assert!(
                matches!(shelf.serve(request(file, offset, 1, *id), Blocking::Threads).await, Kind::Failed(_)),
                "{file} {offset}"
            );
        }
    }

    #[test]
    fn checksums_are_known_again_within_one_state_only() {
        let (dir, shelf) = (tempfile::tempdir().unwrap(), Shelf::default());
        let sum = |index: u64| {
            shelf.put(meta(index), copy_in(dir.path(), index));
            let copy = shelf.current().unwrap();
            let (_, manifest) = shelf.manifest(&copy).unwrap();
            manifest.files[0].sum
        };
        let first = sum(1);
        let changed =
            |index: u64| std::fs::write(dir.path().join(format!("copy-{index}/7.sst")), "9876543210").unwrap();
        // A file that was read once is not read again: what is written over it here is not seen.
        shelf.put(meta(2), copy_in(dir.path(), 2));
        changed(2);
        let copy = shelf.current().unwrap();
        assert_eq!(shelf.manifest(&copy).unwrap().1.files[0].sum, first);
        shelf.begin_lineage();
        shelf.put(meta(3), copy_in(dir.path(), 3));
        changed(3);
        let copy = shelf.current().unwrap();
        assert_ne!(shelf.manifest(&copy).unwrap().1.files[0].sum, first);
    }

    #[test]
    fn the_log_behind_a_state_that_is_fetched_is_needed() {
        let (dir, shelf) = (tempfile::tempdir().unwrap(), Shelf::default());
        assert_eq!(shelf.log_needed_after(), None);
        shelf.put(meta(7), copy_in(dir.path(), 7));
        let copy = shelf.current().unwrap();
        let answer = |bytes_done| proto::SnapshotAnswer { bytes_done, bytes_total: 10, ..Default::default() };
        shelf.answered(NodeId(2), &copy, &answer(4));
        assert_eq!(shelf.log_needed_after(), Some(7));
        assert_eq!(shelf.outgoing().iter().map(|t| (t.node, t.percent())).collect::<Vec<_>>(), [(NodeId(2), 40)]);
        shelf.answered(NodeId(2), &copy, &proto::SnapshotAnswer { problem: "no room".into(), ..answer(4) });
        assert_eq!(shelf.log_needed_after(), None, "nothing is kept for a member that cannot fetch it");
        shelf.answered(NodeId(2), &copy, &proto::SnapshotAnswer { installed: true, ..answer(4) });
        assert_eq!((shelf.log_needed_after(), shelf.outgoing().len()), (Some(7), 0));
        shelf.inner.lock().outgoing.get_mut(&NodeId(2)).unwrap().answered -= LOG_HELD_FOR;
        assert_eq!(shelf.log_needed_after(), None);
    }
}
