//! Backups of the state in a directory, and restoring one.
//!
//! ```text
//! files/HASH                    files of the state, named by keccak256 of their content
//! backup-EPOCH-HEIGHT.json      what a backup consists of; written last
//! ```
//!
//! Table files of the state never change, so a further backup copies only those that are new. There is no key, no log
//! and no vote in a backup, and nothing of a node's own settings.

mod manifest;
mod restore;
mod write;

pub use manifest::{BackupFile, BackupManifest, CheckReport, backups_in, check_backups};
pub use restore::{RestoreOptions, Restored, pick, restore};
pub use write::BackupProgress;
pub(crate) use write::Backups;

use std::path::Path;

use crate::error::NodeError;
use crate::home::config_error;

/// Version of a backup's manifest.
pub const BACKUP_VERSION: u32 = 1;
/// Most files of one backup.
const FILES_MAX: usize = 65_536;
/// Largest manifest that is read, in bytes.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Directory of the files.
const FILES: &str = "files";

fn failed<'a>(path: &'a Path) -> impl Fn(std::io::Error) -> NodeError + 'a {
    move |error| config_error(path, error)
}
