//! The state of a backup as a store that can be looked into, for as long as it is needed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use lockstep_consensus::StateStore;
use lockstep_store::disk::free_bytes;
use lockstep_store::home::StoreHome;

use crate::backup::{BackupFile, BackupManifest, BackupPlace, PlaceError, Scratch, fetch_file};
use crate::error::NodeError;
use crate::home::config_error;

/// Name of the directory in `store/snapshots`. One that a crash left is removed at start.
const NAME: &str = "refill";
/// Room that is left on the disk for the node itself.
const FREE_BYTES_KEPT: u64 = 256 << 20;

/// A backup's state. Its files go with the value.
pub(super) struct Borrowed {
    pub state: StateStore,
    /// Behind the state, which is closed first.
    _directory: Scratch,
}

/// A table file can be read where it is: everything in it has checksums, and nothing changes it. RocksDB's other files
/// are few and small.
fn stays(place: &dyn BackupPlace, file: &BackupFile) -> Option<std::path::PathBuf> {
    place.local_path(file).filter(|_| file.name.ends_with(".sst"))
}

/// Brings a backup's files together. `on_bytes` is told how many of all bytes were fetched.
///
/// # Errors
/// If a file is missing or damaged, or the disk has no room.
pub(super) fn borrow(
    place: &dyn BackupPlace,
    manifest: &BackupManifest,
    home: &StoreHome,
    mut on_bytes: impl FnMut(u64, u64),
) -> Result<Borrowed, NodeError> {
    let path = home.snapshots_path().join(NAME);
    let failed = |error: std::io::Error| config_error(&path, error);
    if path.exists() {
        fs::remove_dir_all(&path).map_err(failed)?;
    }
    fs::create_dir_all(&path).map_err(failed)?;
    let directory = Scratch(path.clone());
    let fetched = manifest.files.iter().filter(|file| stays(place, file).is_none());
    let total = fetched.map(|file| file.bytes).sum::<u64>();
    let free = free_bytes(&path).map_err(failed)?;
    if total.saturating_add(FREE_BYTES_KEPT) > free {
        let reason = format!(
            "{total} bytes are needed for {}, and {free} are free, of which {FREE_BYTES_KEPT} are left to the node; make room on this disk",
            manifest.name()
        );
        return Err(config_error(&path, reason));
    }
    let mut done = 0;
    on_bytes(done, total);
    for file in &manifest.files {
        let target = path.join(&file.name);
        if let Some(original) = stays(place, file) {
            point_at(&original, file, &target)?;
        } else {
            fetch_file(place, file, &target)?;
            done += file.bytes;
            on_bytes(done, total);
        }
    }
    Ok(Borrowed { state: StateStore::open_copy(home, &path)?, _directory: directory })
}

fn point_at(original: &Path, file: &BackupFile, target: &Path) -> Result<(), NodeError> {
    let at = || original.display().to_string();
    let about = fs::metadata(original).map_err(|_| PlaceError::Missing(at()))?;
    if about.len() != file.bytes {
        let reason = format!("it has {} bytes, not {}", about.len(), file.bytes);
        return Err(PlaceError::Damaged { at: at(), reason }.into());
    }
    symlink(original, target).map_err(|error| config_error(target, error))
}
