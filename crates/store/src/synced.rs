//! A note beside a log of what was synced: the number of the newest write of which that is known.
//!
//! Without it, damage to the last write of a log looks as if that write had never been synced. The note is written after
//! each sync and not synced itself. So it is what it was when a process ends, and a power loss may take it back to an
//! earlier one: it is never ahead of what is on the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::crc32c::crc32c;

/// Name of the note's file, in the directory of the log.
pub(crate) const SYNCED_FILE: &str = "SYNCED";
const NOTE_BYTES: usize = 12;

/// The note of one log.
pub(crate) struct Synced(File);

impl Synced {
    /// Opens the note, which is made where there is none.
    pub(crate) fn open(log: &Path) -> io::Result<Self> {
        File::options().read(true).write(true).create(true).truncate(false).open(log.join(SYNCED_FILE)).map(Self)
    }

    /// Notes that everything up to this write is on the disk.
    pub(crate) fn note(&self, write: u64) -> io::Result<()> {
        let mut note = [0; NOTE_BYTES];
        let write = write.to_be_bytes();
        note[..8].copy_from_slice(&write);
        note[8..].copy_from_slice(&crc32c(&write).to_be_bytes());
        self.0.write_all_at(&note, 0)
    }
}

/// The newest write that is known to have been synced; zero where there is no whole note.
///
/// # Errors
/// If the disk fails.
pub(crate) fn noted(log: &Path) -> io::Result<u64> {
    let note = match std::fs::read(log.join(SYNCED_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        note => note?,
    };
    let Some((write, check)) = note.split_first_chunk::<8>() else { return Ok(0) };
    let is_whole = check == crc32c(write).to_be_bytes();
    Ok(if is_whole { u64::from_be_bytes(*write) } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_what_was_written_last_or_nothing() {
        let log = tempfile::tempdir().unwrap();
        assert_eq!(noted(log.path()).unwrap(), 0);
        let synced = Synced::open(log.path()).unwrap();
        assert_eq!(noted(log.path()).unwrap(), 0);
        for write in [1, 258, u64::MAX] {
            synced.note(write).unwrap();
            assert_eq!(noted(log.path()).unwrap(), write);
        }
        let file = log.path().join(SYNCED_FILE);
        let whole = std::fs::read(&file).unwrap();
        for at in 0..NOTE_BYTES {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            std::fs::write(&file, &damaged).unwrap();
            assert_eq!(noted(log.path()).unwrap(), 0);
            std::fs::write(&file, &whole[..at]).unwrap();
            assert_eq!(noted(log.path()).unwrap(), 0);
        }
    }
}
