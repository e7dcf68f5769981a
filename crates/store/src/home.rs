//! The directory that holds a node's stores, and the number that tells one making of it from another.
//!
//! ```text
//! store/INCARNATION   32 hex digits, made with the directory
//! store/NETWORK       the network's id, written when the node first starts in it
//! store/log/          votes and log entries (synced)
//! store/STATE         name of the state directory in use; `state` where the file is missing
//! store/state/        what follows from the log; `state-…` once a received copy took its place
//! store/snapshots/    copies of the state that are being made, served (`copy-…`) or received (`incoming-…`)
//! ```

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use lockstep_types::{Incarnation, NetworkId};

use crate::disk::sync_directory;
use crate::rocks::{Kind, RocksStorage};
use crate::storage::StoreError;

const INCARNATION_FILE: &str = "INCARNATION";
const NETWORK_FILE: &str = "NETWORK";
const STATE_POINTER_FILE: &str = "STATE";
const STATE_POINTER_NEXT: &str = "STATE.next";
const FIRST_STATE: &str = "state";
/// Names of directories in `snapshots/` that are being received begin with this.
pub const INCOMING_PREFIX: &str = "incoming-";

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
        path.parent().map_or(Ok(()), sync_directory)
    };
    write().inspect_err(|_| drop(fs::remove_file(&next)))
}

/// Replaces a file, whole or not at all: after a crash it has the old text or the new one.
///
/// # Errors
/// If the disk fails; then the old text is there.
pub fn replace_file(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let write = || -> std::io::Result<()> {
        let _ = fs::remove_file(&next);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&next)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&next, path)?;
        path.parent().map_or(Ok(()), sync_directory)
    };
    write().inspect_err(|_| drop(fs::remove_file(&next)))
}

fn is_state(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.is_dir() && (name == FIRST_STATE || name.strip_prefix(FIRST_STATE).is_some_and(|rest| rest.starts_with('-')))
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

    /// The network that the store is bound to; `None` where no node has started in it yet.
    ///
    /// # Errors
    /// If the file cannot be read, or does not name a network.
    pub fn network(&self) -> Result<Option<NetworkId>, StoreError> {
        let file = self.path.join(NETWORK_FILE);
        match fs::read_to_string(&file) {
            Ok(text) => {
                let damaged = |e| StoreError::Open(format!("{} is damaged: {e}", file.display()));
                text.trim().parse().map(Some).map_err(damaged)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
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
        let name = self.adopt(received, name_suffix).map_err(|e| open_error(received, &e))?;
        let target = self.path.join(&name);
        self.point_at(&name).map_err(|e| open_error(&target, &e))?;
        Ok(target)
    }

    /// Moves a received state beside the one in use, synced. Returns its name.
    fn adopt(&self, received: &Path, name_suffix: &str) -> std::io::Result<String> {
        for file in fs::read_dir(received)? {
            fs::File::open(file?.path())?.sync_all()?;
        }
        sync_directory(received)?;
        // Never the name of the state in use, whatever the suffix: what has that name is about to be removed.
        let name = (1_u64..)
            .map(|n| {
                if n == 1 { format!("{FIRST_STATE}-{name_suffix}") } else { format!("{FIRST_STATE}-{name_suffix}-{n}") }
            })
            .find(|name| !self.path.join(name).exists())
            .expect("numbers do not run out");
        fs::rename(received, self.path.join(&name))?;
        // The directory must be there, whatever happens, before anything points at it.
        sync_directory(&self.path)?;
        Ok(name)
    }

    fn point_at(&self, name: &str) -> std::io::Result<()> {
        let next = self.path.join(STATE_POINTER_NEXT);
        let mut file = fs::File::create(&next)?;
        file.write_all(name.as_bytes())?;
        file.sync_all()?;
        fs::rename(&next, self.path.join(STATE_POINTER_FILE))?;
        sync_directory(&self.path)
    }

    /// Removes what a crash may have left: states that are not in use, and copies of the state that were being made
    /// or served. What was being received stays, so that it need not be fetched again. Only for whoever has the
    /// state open: it holds the lock against a second process.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn remove_leftovers(&self) -> Result<(), StoreError> {
        let current = self.state_path()?;
        let failed = |e: std::io::Error| open_error(&self.path, &e);
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path != current && is_state(&path) {
                tracing::info!(path = %path.display(), "removing a state that is not in use");
                fs::remove_dir_all(&path).map_err(failed)?;
            }
        }
        let copies = match fs::read_dir(self.snapshots_path()) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            copies => copies.map_err(failed)?,
        };
        for entry in copies {
            let entry = entry.map_err(failed)?;
            if !entry.file_name().to_string_lossy().starts_with(INCOMING_PREFIX) {
                fs::remove_dir_all(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
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

    fn received(home: &StoreHome, content: &str) -> PathBuf {
        let path = home.snapshots_path().join("incoming-a");
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("CURRENT"), content).unwrap();
        path
    }

    /// What is there after a crash: a copy of the files as they are.
    fn after_crash(home: &StoreHome, to: &Path) -> StoreHome {
        fn copy(from: &Path, to: &Path) {
            fs::create_dir_all(to).unwrap();
            for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
                let target = to.join(entry.file_name());
                if entry.path().is_dir() { copy(&entry.path(), &target) } else { drop(fs::copy(entry.path(), target)) }
            }
        }
        copy(&home.path, to);
        let copied = StoreHome::open(to).unwrap();
        copied.remove_leftovers().unwrap();
        copied
    }

    fn states(home: &StoreHome) -> Vec<String> {
        let entries = fs::read_dir(&home.path).unwrap().map(|e| e.unwrap().path());
        let mut names: Vec<String> =
            entries.filter(|p| is_state(p)).map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_crash_at_any_moment_of_a_switch_leaves_one_whole_state() {
        let dir = tempfile::tempdir().unwrap();
        let home = StoreHome::create(&dir.path().join("store"), Incarnation([7; 16])).unwrap();
        fs::create_dir(home.state_path().unwrap()).unwrap();
        fs::write(home.state_path().unwrap().join("CURRENT"), "old").unwrap();
        let content = |home: &StoreHome| fs::read_to_string(home.state_path().unwrap().join("CURRENT")).unwrap();
        let crash = |name: &str| after_crash(&home, &dir.path().join(name));

        let incoming = received(&home, "new");
        fs::create_dir(home.snapshots_path().join("copy-3")).unwrap();
        let before = crash("before");
        assert_eq!((content(&before).as_str(), states(&before)), ("old", vec!["state".into()]));
        assert!(before.snapshots_path().join("incoming-a").exists(), "what was received is kept");
        assert!(!before.snapshots_path().join("copy-3").exists(), "what was served is not");

        let name = home.adopt(&incoming, "5-100").unwrap();
        let moved = crash("moved");
        assert_eq!((content(&moved).as_str(), states(&moved)), ("old", vec!["state".into()]));

        home.point_at(&name).unwrap();
        let switched = crash("switched");
        assert_eq!((content(&switched).as_str(), states(&switched)), ("new", vec!["state-5-100".into()]));

        home.remove_leftovers().unwrap();
        let again = home.switch_state(&received(&home, "newer"), "5-100").unwrap();
        assert_eq!(again, home.state_path().unwrap(), "the state in use never gives way to one of its own name");
        assert_eq!((content(&home).as_str(), states(&home).len()), ("newer", 2));
    }
}
