//! What a place for backups promises, and what is done with any of them.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use lockstep_consensus::copy::Hasher;

use super::FILES;
use super::bucket;
use super::directory::DirectoryPlace;
use super::location::BackupLocation;
use super::manifest::BackupFile;

/// What a setting for buckets begins with in the environment.
const SETTING_PREFIX: &str = "AWS_";

/// Why something is not in a place, or could not be put there. A sentence without any secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// There is no such file or manifest. Other backups may be whole.
    #[error("{0} is missing")]
    Missing(String),
    /// It is not what was written, or cannot be read. Other backups may be whole.
    #[error("{at}: {reason}")]
    Damaged {
        /// Which file or manifest.
        at: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The place cannot be reached, refuses or is full. Mend that and try again.
    #[error("{at}: {reason}")]
    Unavailable {
        /// Which place, or what in it.
        at: String,
        /// What happened.
        reason: String,
    },
    /// This program knows no such place. Use another program, or another place.
    #[error("{0}: this program was built without buckets: build it with the feature buckets, or name a directory")]
    LeftOut(String),
    /// A file on this machine's own disk could not be read or written.
    #[error("{at}: {reason}")]
    Local {
        /// Which file.
        at: String,
        /// What happened.
        reason: String,
    },
}

impl PlaceError {
    pub(super) fn damaged(at: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self::Damaged { at: at.to_string(), reason: reason.to_string() }
    }

    pub(super) fn local(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |error| Self::Local { at: path.display().to_string(), reason: error.to_string() }
    }

    pub(super) fn wrong_size(at: impl fmt::Display, found: u64, file: &BackupFile) -> Self {
        Self::damaged(at, format!("it has {found} bytes, not {}", file.bytes))
    }
}

/// The same sentence wherever content differs from its checksum.
pub(super) const OTHER_CONTENT: &str = "its content is not what was written: it is damaged";

/// A place for backups: files named by their content, and manifests that say which of them make a backup.
///
/// A file or manifest is there whole or not at all, whenever the process or the machine ends. Once `put_manifest` has
/// returned, the manifest and all files that were put before it stay. The same file put again changes nothing, and
/// whoever puts it at the same time puts the same. Calls block, and hold no more than a piece of a file in memory.
/// [`fmt::Display`] says where it is.
pub trait BackupPlace: fmt::Display + Send + Sync {
    /// Puts a file that is at `from`; `false` where it is there already, with its size. What is read there is compared
    /// with the checksum before the file appears.
    fn put_file(&self, file: &BackupFile, from: &Path) -> Result<bool, PlaceError>;

    /// Reads a file from its beginning to its end, and hands it over in pieces. Only its size is checked.
    fn read_file(
        &self,
        file: &BackupFile,
        take: &mut dyn FnMut(&[u8]) -> Result<(), PlaceError>,
    ) -> Result<(), PlaceError>;

    /// Puts a manifest; one of that name is replaced.
    fn put_manifest(&self, name: &str, text: &str) -> Result<(), PlaceError>;

    /// Names of all manifests, in no order.
    fn manifests(&self) -> Result<Vec<String>, PlaceError>;

    /// Reads a manifest, of a bounded size.
    fn read_manifest(&self, name: &str) -> Result<String, PlaceError>;

    /// Where a file can be read as it is, in a place on this machine.
    fn local_path(&self, _file: &BackupFile) -> Option<PathBuf> {
        None
    }
}

/// Opens a place for backups.
pub(crate) type OpenPlace =
    std::sync::Arc<dyn Fn(&BackupLocation) -> Result<Box<dyn BackupPlace>, PlaceError> + Send + Sync>;

/// Whether a manifest has this name.
pub(super) fn is_manifest(name: &str) -> bool {
    name.starts_with("backup-") && name.ends_with(".json")
}

/// Opens a place with the settings for buckets that this process has in its environment. Nothing is connected or made
/// yet. Blocks when it is used, and must not be used on a thread that drives tasks.
///
/// # Errors
/// If the settings make no sense.
pub fn open_place(location: &BackupLocation) -> Result<Box<dyn BackupPlace>, PlaceError> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    open_place_with(location, std::env::vars_os().filter_map(text))
}

/// As [`open_place`], with these variables in the place of the environment.
///
/// # Errors
/// If they make no sense.
pub fn open_place_with(
    location: &BackupLocation,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Box<dyn BackupPlace>, PlaceError> {
    let settings = environment.into_iter().filter(|(name, _)| name.starts_with(SETTING_PREFIX));
    Ok(match location {
        BackupLocation::Directory(path) => Box::new(DirectoryPlace::new(path.clone())),
        BackupLocation::Bucket { bucket, prefix } => bucket::open(bucket, prefix, settings)?,
    })
}

/// Reads a file and compares it with its checksum.
pub(super) fn check_file(place: &dyn BackupPlace, file: &BackupFile) -> Result<(), PlaceError> {
    read_checked(place, file, &mut |_| Ok(()))
}

fn read_checked(
    place: &dyn BackupPlace,
    file: &BackupFile,
    take: &mut dyn FnMut(&[u8]) -> Result<(), PlaceError>,
) -> Result<(), PlaceError> {
    let mut hasher = Hasher::default();
    place.read_file(file, &mut |piece| {
        hasher.update(piece);
        take(piece)
    })?;
    if hasher.finish() == file.sum.0 {
        return Ok(());
    }
    Err(PlaceError::damaged(format_args!("{place}/{FILES}/{}", file.key()), OTHER_CONTENT))
}

/// Copies a file out of a place, whole or not at all, and compares it with its checksum on the way.
pub(crate) fn fetch_file(place: &dyn BackupPlace, file: &BackupFile, to: &Path) -> Result<(), PlaceError> {
    write_whole(to, |target| {
        read_checked(place, file, &mut |piece| target.write_all(piece).map_err(PlaceError::local(to)))
    })
}

/// Writes a synced file that appears under its name once `write` has succeeded.
pub(super) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<(), PlaceError>,
) -> Result<(), PlaceError> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let local = PlaceError::local(path);
    let make = || {
        let mut file = File::create(&part).map_err(&local)?;
        write(&mut file)?;
        file.sync_all().map_err(&local)?;
        fs::rename(&part, path).map_err(&local)
    };
    make().inspect_err(|_| drop(fs::remove_file(&part)))
}
