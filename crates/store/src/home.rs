//! The directory that holds a node's stores, and the number that tells one making of it from another.
//!
//! ```text
//! store/INCARNATION   32 hex digits, made with the directory
//! store/NETWORK       the network's id, written when the node first starts in it
//! store/log/          votes and log entries (synced)
//! store/STATE         name of the state directory in use; `state` where the file is missing
//! store/state/        what follows from the log
//! store/snapshots/    a snapshot being made or received
//! ```

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use lockstep_types::{Incarnation, NetworkId};

use crate::rocks::{Kind, RocksStorage};
use crate::storage::StoreError;

const INCARNATION_FILE: &str = "INCARNATION";
const NETWORK_FILE: &str = "NETWORK";
const STATE_POINTER_FILE: &str = "STATE";
const FIRST_STATE: &str = "state";

/// A node's store directory. It is made once, by `lockstep init`; a node never makes it on its own, because a voter
/// that lost its disk must not vote as if it had it.
#[derive(Debug, Clone)]
pub struct StoreHome {
    path: PathBuf,
    incarnation: Incarnation,
}

fn open_error(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Open(format!("{}: {error}", path.display()))
}

/// Writes a new file whole or not at all: after a crash, or on a full disk, it is not there, or complete.
///
/// # Errors
/// If there is such a file already, or the disk fails.
pub fn write_new_file(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    if path.exists() {
        return Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, "exists already"));
    }
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let write = || -> std::io::Result<()> {
        // What a crash left behind is not worth keeping.
        let _ = fs::remove_file(&next);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&next)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&next, path)?;
        path.parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
    };
    write().inspect_err(|_| drop(fs::remove_file(&next)))
}

fn write_synced(path: &Path, text: &str) -> Result<(), StoreError> {
    write_new_file(path, text, 0o644).map_err(|e| open_error(path, &e))
}

impl StoreHome {
    /// Makes the directory.
    ///
    /// # Errors
    /// If there is one already.
    pub fn create(path: &Path, incarnation: Incarnation) -> Result<Self, StoreError> {
        fs::create_dir_all(path).map_err(|e| open_error(path, &e))?;
        let home = Self { path: path.to_owned(), incarnation };
        // The log is made here and never again: see `RocksStorage::open`.
        drop(RocksStorage::create(&home.log_path(), Kind::Log)?);
        write_synced(&path.join(INCARNATION_FILE), &format!("{incarnation}\n"))?;
        Ok(home)
    }

    /// Opens an existing directory.
    ///
    /// # Errors
    /// With the way out, if there is none.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = path.join(INCARNATION_FILE);
        let text = fs::read_to_string(&file).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => StoreError::Open(format!(
                "there is no store at {}: this node's disk was lost or never made; a member that lost its store must join under a new id (`lockstep init` in a new home)",
                path.display()
            )),
            _ => open_error(&file, &e),
        })?;
        let incarnation =
            text.trim().parse().map_err(|e| StoreError::Open(format!("{} is damaged: {e}", file.display())))?;
        Ok(Self { path: path.to_owned(), incarnation })
    }

    /// The number made with this store.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Binds the store to a network at the first start, and checks that at every later one.
    ///
    /// # Errors
    /// If it holds another network's data.
    pub fn bind(&self, network: &NetworkId) -> Result<(), StoreError> {
        let file = self.path.join(NETWORK_FILE);
        match fs::read_to_string(&file) {
            Ok(text) if text.trim().parse() == Ok(*network) => Ok(()),
            Ok(text) => Err(StoreError::Open(format!(
                "the store at {} belongs to network {}, the genesis file to network {network}",
                self.path.display(),
                text.trim()
            ))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => write_synced(&file, &format!("{network}\n")),
            Err(e) => Err(open_error(&file, &e)),
        }
    }

    /// Where votes and log entries are.
    pub fn log_path(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where the state in use is.
    ///
    /// # Errors
    /// If the pointer cannot be read.
    pub fn state_path(&self) -> Result<PathBuf, StoreError> {
        let pointer = self.path.join(STATE_POINTER_FILE);
        match fs::read_to_string(&pointer) {
            Ok(name) if name.trim().starts_with(FIRST_STATE) && !name.contains('/') => Ok(self.path.join(name.trim())),
            Ok(_) => Err(StoreError::Open(format!("{} is damaged", pointer.display()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(self.path.join(FIRST_STATE)),
            Err(e) => Err(open_error(&pointer, &e)),
        }
    }

    /// Makes the store in `received` the state in use, by one synced switch of the pointer: after a crash at any
    /// moment either the old state is in use or the new one, whole. Returns the new path; the caller then opens it
    /// and removes the old one.
    ///
    /// # Errors
    /// If the disk fails; then the old state is still in use.
    pub fn switch_state(&self, received: &Path, name_suffix: &str) -> Result<PathBuf, StoreError> {
        let name = format!("{FIRST_STATE}-{name_suffix}");
        let target = self.path.join(&name);
        let switch = || -> std::io::Result<()> {
            if target.exists() {
                fs::remove_dir_all(&target)?;
            }
            fs::rename(received, &target)?;
            for file in fs::read_dir(&target)? {
                fs::File::open(file?.path())?.sync_all()?;
            }
            fs::File::open(&target)?.sync_all()?;
            let next = self.path.join("STATE.next");
            let mut file = fs::File::create(&next)?;
            file.write_all(name.as_bytes())?;
            file.sync_all()?;
            fs::rename(&next, self.path.join(STATE_POINTER_FILE))?;
            fs::File::open(&self.path)?.sync_all()
        };
        switch().map_err(|e| open_error(&target, &e))?;
        Ok(target)
    }

    /// Where snapshots are made and received.
    pub fn snapshots_path(&self) -> PathBuf {
        self.path.join("snapshots")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_made_once_and_belongs_to_one_network() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        assert!(StoreHome::open(&path).unwrap_err().to_string().contains("must join under a new id"));
        StoreHome::create(&path, Incarnation([7; 16])).unwrap();
        assert!(StoreHome::create(&path, Incarnation([8; 16])).is_err());
        let home = StoreHome::open(&path).unwrap();
        assert_eq!(home.incarnation(), Incarnation([7; 16]));
        home.bind(&NetworkId([1; 32])).unwrap();
        home.bind(&NetworkId([1; 32])).unwrap();
        assert!(home.bind(&NetworkId([2; 32])).unwrap_err().to_string().contains("belongs to network"));
    }
}
