//! Backups of the state in a directory or a bucket, and restoring one.
//!
//! ```text
//! files/HASH                    files of the state, named by keccak256 of their content
//! backup-EPOCH-HEIGHT.json      what a backup consists of; written last
//! ```
//!
//! Table files of the state never change, so a further backup copies only those that are new. There is no key, no log
//! and no vote in a backup, and nothing of a node's own settings.

#[cfg(feature = "buckets")]
mod bucket;
#[cfg(not(feature = "buckets"))]
#[path = "no_bucket.rs"]
mod bucket;
mod directory;
mod location;
mod manifest;
mod place;
mod restore;
mod write;

pub use location::{BackupLocation, LocationError};
pub use manifest::{BackupFile, BackupManifest, CheckReport, backups_in, check_backups};
pub use place::{BackupPlace, PlaceError, open_place, open_place_with};
pub(crate) use place::{OpenPlace, fetch_file};
pub use restore::{RestoreOptions, Restored, pick, restore};
pub use write::{BackupMade, BackupProgress};
pub(crate) use write::{BackupParts, Backups, Scratch};

use std::path::Path;

use crate::error::NodeError;
use crate::home::config_error;

/// Version of a backup's manifest.
pub const BACKUP_VERSION: u32 = 2;
/// Most files of one backup.
const FILES_MAX: usize = 65_536;
/// Largest manifest that is read, in bytes.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Directory of the files.
const FILES: &str = "files";

fn failed<'a>(path: &'a Path) -> impl Fn(std::io::Error) -> NodeError + 'a {
    move |error| config_error(path, error)
}
