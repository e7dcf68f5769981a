//! A node's files, as a crash leaves them.

use std::io;
use std::path::Path;

const COPIES_MAX: usize = 100;

/// Copies the directory of a running node: what it has written by now, without what an orderly end would still write.
/// A file that goes meanwhile would leave a copy of no one moment, so everything is copied again.
pub fn copy_of_a_crash(from: &Path, to: &Path) {
    for _ in 0..COPIES_MAX {
        match copy_directory(from, to) {
            Ok(()) => return,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}"),
        }
        std::fs::remove_dir_all(to).unwrap();
    }
    panic!("{from:?} changes all the time, or is not there");
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
