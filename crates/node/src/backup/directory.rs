//! Backups in a directory, which may be a mounted file system.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use lockstep_consensus::copy::Hasher;
use lockstep_store::disk::sync_directory;
use lockstep_store::home::replace_file;

use super::manifest::BackupFile;
use super::place::{BackupPlace, OTHER_CONTENT, PlaceError, is_manifest, write_whole};
use super::{FILES, MANIFEST_BYTES_MAX};

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 256 << 10;

/// See the module's documentation.
pub(super) struct DirectoryPlace(PathBuf);

impl DirectoryPlace {
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    fn path(&self, file: &BackupFile) -> PathBuf {
        self.0.join(FILES).join(file.key())
    }
}

impl fmt::Display for DirectoryPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> PlaceError + '_ {
    move |error| match error.kind() {
        io::ErrorKind::NotFound => PlaceError::Missing(path.display().to_string()),
        _ => PlaceError::damaged(path.display(), error),
    }
}

fn unwritable(path: &Path) -> impl Fn(io::Error) -> PlaceError + '_ {
    move |error| PlaceError::Unavailable { at: path.display().to_string(), reason: error.to_string() }
}

/// Reads to the end, in pieces.
fn read_pieces(
    file: &mut File,
    failed: impl Fn(io::Error) -> PlaceError,
    take: &mut dyn FnMut(&[u8]) -> Result<(), PlaceError>,
) -> Result<(), PlaceError> {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut buffer).map_err(&failed)? {
            0 => return Ok(()),
            n => take(&buffer[..n])?,
        }
    }
}

impl BackupPlace for DirectoryPlace {
    fn put_file(&self, file: &BackupFile, from: &Path) -> Result<bool, PlaceError> {
        let path = self.path(file);
        if fs::metadata(&path).is_ok_and(|about| about.len() == file.bytes) {
            return Ok(false);
        }
        let files = self.0.join(FILES);
        fs::create_dir_all(&files).map_err(unwritable(&files))?;
        let local = PlaceError::local(from);
        let mut source = File::open(from).map_err(&local)?;
        write_whole(&path, |target| {
            let mut hasher = Hasher::default();
            read_pieces(&mut source, &local, &mut |piece| {
                hasher.update(piece);
                target.write_all(piece).map_err(unwritable(&path))
            })?;
            if hasher.finish() == file.sum.0 { Ok(()) } else { Err(PlaceError::damaged(from.display(), OTHER_CONTENT)) }
        })?;
        Ok(true)
    }

    fn read_file(
        &self,
        file: &BackupFile,
        take: &mut dyn FnMut(&[u8]) -> Result<(), PlaceError>,
    ) -> Result<(), PlaceError> {
        let path = self.path(file);
        let mut source = File::open(&path).map_err(unreadable(&path))?;
        let bytes = source.metadata().map_err(unreadable(&path))?.len();
        if bytes != file.bytes {
            return Err(PlaceError::wrong_size(path.display(), bytes, file));
        }
        read_pieces(&mut source, unreadable(&path), take)
    }

    fn put_manifest(&self, name: &str, text: &str) -> Result<(), PlaceError> {
        let files = self.0.join(FILES);
        fs::create_dir_all(&files).and_then(|()| sync_directory(&files)).map_err(unwritable(&files))?;
        let path = self.0.join(name);
        replace_file(&path, text, 0o644).map_err(unwritable(&path))
    }

    fn manifests(&self) -> Result<Vec<String>, PlaceError> {
        let failed = unwritable(&self.0);
        let entries = fs::read_dir(&self.0).map_err(&failed)?;
        let names = entries.map(|entry| Ok(entry.map_err(&failed)?.file_name().to_string_lossy().into_owned()));
        Ok(names.collect::<Result<Vec<_>, PlaceError>>()?.into_iter().filter(|name| is_manifest(name)).collect())
    }

    fn read_manifest(&self, name: &str) -> Result<String, PlaceError> {
        let path = self.0.join(name);
        let failed = unreadable(&path);
        if fs::metadata(&path).map_err(&failed)?.len() > MANIFEST_BYTES_MAX {
            return Err(PlaceError::damaged(path.display(), "it is too large to be a backup's manifest"));
        }
        fs::read_to_string(&path).map_err(&failed)
    }

    fn local_path(&self, file: &BackupFile) -> Option<PathBuf> {
        Some(self.path(file))
    }
}
