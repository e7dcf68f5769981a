//! Small file systems in memory, whose size can change while they are in use.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One of them. It is unmounted with the value.
#[derive(Debug)]
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts one over an empty directory; `None` where this process may not.
    pub fn mount(directory: &Path, bytes: u64) -> Option<Self> {
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(directory.to_owned()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes it as large as this, which is at least what is in it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn resize(&self, bytes: u64) -> io::Result<()> {
        let size = format!("remount,size={bytes}");
        let arguments = [OsStr::new("-o"), OsStr::new(&size), self.0.as_os_str()];
        let output = Command::new("mount").args(arguments).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Bytes that are in use.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn used_bytes(&self) -> io::Result<u64> {
        let output = Command::new("df").args(["--output=used", "-B1"]).arg(&self.0).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let number = text.lines().nth(1).and_then(|line| line.trim().parse().ok());
        number.ok_or_else(|| io::Error::other(text))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a process may still have files open there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
