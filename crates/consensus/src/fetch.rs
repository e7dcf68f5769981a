//! Fetches the files of an offered copy, a few at a time and each in pieces, into a directory where an earlier attempt
//! may have left some of them.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lockstep_store::disk::{free_bytes, sync_directory};
use lockstep_store::home::INCOMING_PREFIX;
use lockstep_types::{NodeId, proto};
use parking_lot::Mutex;
use prost::Message as _;

use crate::blocking::Blocking;
use crate::limits::{
    BAD_FILES_MAX, DISK_FREE_BYTES_MIN, PIECE_BYTES_MAX, PIECE_PAUSE_MAX, PIECE_PAUSE_MIN, PIECE_TIMEOUT,
    PIECES_AT_A_TIME,
};
use crate::plausible;
use crate::snapshot::{FileInfo, Manifest, SnapshotId, sum_of};
use crate::transport::{Connection, Transport};

/// Why a copy was not fetched. It is tried again at a later offer, with what is there already.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("the disk failed: {0}")]
    Disk(#[from] io::Error),
    #[error(
        "there is no room for it: {wanted} bytes are missing and {free} are free at {path}, of which {} stay free; make room there",
        DISK_FREE_BYTES_MIN
    )]
    NoRoom { wanted: u64, free: u64, path: String },
    #[error("node {0} no longer has this copy: {1}")]
    Gone(NodeId, String),
    #[error("{files} files from node {node} were not as it had offered them, {last} the last of them")]
    Bad { node: NodeId, files: u64, last: String },
}

/// Where copies are received.
pub(crate) fn incoming_path(parent: &Path, id: SnapshotId) -> PathBuf {
    parent.join(format!("{INCOMING_PREFIX}{id}"))
}

/// All that were received in part or whole.
pub(crate) fn incoming_in(parent: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(parent) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    let is_incoming =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(INCOMING_PREFIX));
    Ok(paths.into_iter().filter(is_incoming).collect())
}

/// Makes the directory for a copy: takes over whole files of the same name and size that were received for other
/// copies, removes those copies and whatever is not of this one, and looks whether there is room for the rest. What
/// was taken over is compared with its checksum later, like everything.
pub(crate) fn prepare(parent: &Path, id: SnapshotId, manifest: &Manifest) -> Result<PathBuf, FetchError> {
    let directory = incoming_path(parent, id);
    std::fs::create_dir_all(&directory)?;
    for other in incoming_in(parent)?.into_iter().filter(|path| *path != directory) {
        for file in &manifest.files {
            let (from, to) = (other.join(&file.name), directory.join(&file.name));
            let is_whole =
                std::fs::symlink_metadata(&from).is_ok_and(|about| about.is_file() && about.len() == file.bytes);
            if is_whole && !to.exists() {
                std::fs::rename(from, to)?;
            }
        }
        std::fs::remove_dir_all(other)?;
    }
    let mut present = 0_u64;
    for entry in std::fs::read_dir(&directory)? {
        let entry = entry?;
        let (name, about) = (entry.file_name(), std::fs::symlink_metadata(entry.path())?);
        let file = manifest.files.iter().find(|file| name.to_str() == Some(file.name.as_str()));
        match file {
            Some(file) if about.is_file() && about.len() <= file.bytes => present += about.len(),
            _ if about.is_dir() => std::fs::remove_dir_all(entry.path())?,
            _ => std::fs::remove_file(entry.path())?,
        }
    }
    let (wanted, free) = (manifest.bytes().saturating_sub(present), free_bytes(&directory)?);
    if wanted.saturating_add(DISK_FREE_BYTES_MIN) > free {
        return Err(FetchError::NoRoom { wanted, free, path: parent.display().to_string() });
    }
    Ok(directory)
}

/// How far it is; read by others while it goes on.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Bytes that are there, of those that belong to the copy.
    pub done: AtomicU64,
    /// Bytes that came over the network.
    pub fetched: AtomicU64,
    /// Files that had to be thrown away.
    pub bad: AtomicU64,
}

/// One copy from one member. Dropping the future ends it; what is under way on the disk is written out.
pub(crate) struct Fetch {
    pub node: NodeId,
    pub transport: Arc<dyn Transport>,
    pub id: SnapshotId,
    pub directory: PathBuf,
    pub counts: Arc<Counts>,
    queue: Mutex<VecDeque<FileInfo>>,
    doing: Blocking,
    /// Says why the newest call failed.
    pub trouble: Arc<Mutex<Option<String>>>,
}

impl Fetch {
    pub fn new(
        node: NodeId,
        transport: Arc<dyn Transport>,
        id: SnapshotId,
        directory: PathBuf,
        manifest: &Manifest,
    ) -> Self {
        let queue = Mutex::new(manifest.files.iter().cloned().collect());
        let doing = Blocking::Threads;
        Self { node, transport, id, directory, counts: Arc::default(), queue, doing, trouble: Arc::default() }
    }

    /// How its work on the disk is done, if not on threads of its own.
    pub fn doing(self, doing: Blocking) -> Self {
        Self { doing, ..self }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.doing.run(work).await.map_err(io::Error::other)?
    }

    /// Fetches what is missing. When it returns without an error all files are there, checked and synced.
    pub async fn run(&self) -> Result<(), FetchError> {
        let workers = (0..PIECES_AT_A_TIME).map(|_| self.work());
        futures::future::try_join_all(workers).await?;
        let directory = self.directory.clone();
        self.blocking(move || sync_directory(&directory)).await?;
        Ok(())
    }

    async fn work(&self) -> Result<(), FetchError> {
        let mut connection = self.transport.connect_bulk(self.node);
        loop {
            let Some(file) = self.queue.lock().pop_front() else { return Ok(()) };
            while !self.get(&file, &mut *connection).await? {
                let bad = self.counts.bad.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::warn!(node = %self.node, file = file.name, "a file of a copy of the state is not as it was offered; it is fetched again");
                if bad >= BAD_FILES_MAX {
                    return Err(FetchError::Bad { node: self.node, files: bad, last: file.name });
                }
            }
        }
    }

    /// Brings one file forward to its end. False where it is not what was offered; then it is gone.
    async fn get(&self, file: &FileInfo, connection: &mut dyn Connection) -> Result<bool, FetchError> {
        let path = self.directory.join(&file.name);
        let mut offset = std::fs::metadata(&path).map_or(0, |about| about.len());
        self.counts.done.fetch_add(offset, Ordering::Relaxed);
        if offset < file.bytes || !path.exists() {
            let opened = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
            let target = Arc::new(opened);
            while offset < file.bytes {
                let piece = self.piece(file, offset, connection).await?;
                let (length, to) = (piece.len() as u64, target.clone());
                self.blocking(move || to.write_all_at(&piece, offset)).await?;
                offset += length;
                self.counts.done.fetch_add(length, Ordering::Relaxed);
            }
        }
        let (bytes, sum) = (file.bytes, file.sum);
        let is_good = self.blocking(move || check(&path, bytes, &sum)).await?;
        if !is_good {
            self.counts.done.fetch_sub(offset, Ordering::Relaxed);
        }
        Ok(is_good)
    }

    /// Asks for one piece until it comes.
    async fn piece(&self, file: &FileInfo, offset: u64, connection: &mut dyn Connection) -> Result<Bytes, FetchError> {
        use proto::bulk_response::Kind;
        let bytes = PIECE_BYTES_MAX.min(file.bytes - offset);
        let piece = proto::PieceRequest {
            snapshot: Bytes::copy_from_slice(&self.id.0),
            file: file.name.clone(),
            offset,
            bytes,
        };
        let request = proto::BulkRequest { kind: Some(proto::bulk_request::Kind::Piece(piece)) }.encode_to_vec();
        let (request, mut pause) = (Bytes::from(request), PIECE_PAUSE_MIN);
        loop {
            let trouble = match connection.call(request.clone(), PIECE_TIMEOUT).await {
                Err(error) => error.to_string(),
                Ok(answer) => match plausible::read_bulk_answer(answer).map(|answer| answer.kind) {
                    Ok(Some(Kind::Piece(piece))) if piece.len() as u64 == bytes => {
                        self.counts.fetched.fetch_add(bytes, Ordering::Relaxed);
                        *self.trouble.lock() = None;
                        return Ok(piece);
                    }
                    Ok(Some(Kind::Piece(piece))) => format!("a piece has {} bytes instead of {bytes}", piece.len()),
                    Ok(Some(Kind::Gone(reason))) => return Err(FetchError::Gone(self.node, reason)),
                    Ok(Some(Kind::Failed(reason))) => reason,
                    Ok(Some(Kind::Offer(_)) | None) | Err(_) => "an answer cannot be read".into(),
                },
            };
            tracing::debug!(node = %self.node, file = file.name, offset, trouble, "a piece of the state did not come");
            *self.trouble.lock() = Some(trouble);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PIECE_PAUSE_MAX);
        }
    }
}

/// Syncs a file and compares it with what was offered; one that differs is removed.
fn check(path: &Path, bytes: u64, sum: &[u8; 32]) -> io::Result<bool> {
    let file = File::open(path)?;
    file.sync_all()?;
    if file.metadata()?.len() == bytes && sum_of(path)? == *sum {
        return Ok(true);
    }
    std::fs::remove_file(path)?;
    Ok(false)
}
