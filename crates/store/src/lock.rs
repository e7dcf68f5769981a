//! Holding a store that is only looked at, so that no node opens it meanwhile.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use crate::storage::StoreError;

/// A store that no other process opens while this lives.
#[derive(Debug)]
pub struct Held {
    /// `None` where the disk cannot be written: then nobody else can open the store either.
    _file: Option<File>,
}

/// Takes the lock that RocksDB takes of an open store. Other processes are kept out, this one is not.
///
/// # Errors
/// If another process has the store open.
pub fn hold(store: &Path) -> Result<Held, StoreError> {
    let path = store.join("LOCK");
    let file = match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) => {
            return Ok(Held { _file: None });
        }
        // A copy of the files without their lock: nobody has that open.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Held { _file: None }),
        Err(e) => return Err(StoreError::Open(format!("{}: {e}", path.display()))),
    };
    // SAFETY: all zeros is a valid value of this plain struct; the call reads it and keeps no pointer.
    #[allow(unsafe_code)]
    let result = unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = libc::F_WRLCK as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const lock)
    };
    if result == 0 {
        return Ok(Held { _file: Some(file) });
    }
    Err(StoreError::Open(format!("a node runs on {}: stop it first", store.display())))
}
