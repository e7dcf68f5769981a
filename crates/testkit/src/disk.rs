//! Disks that lose what was not synced, run full, fail and are slow: a library that a process is started with
//! (`disk/disk.c`, by `LD_PRELOAD`) sees what it writes, and this module takes its files back to what a power loss
//! could have left.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::random::Random;

/// As in `disk.c`.
const FILES: u64 = 65_536;
const SLOT_BYTES: u64 = 16;
const CONTROL_BYTES: u64 = 64;
/// What a file system writes at once.
const PAGE_BYTES: u64 = 4096;
/// Offset and length before the bytes that were overwritten.
const UNDO_HEAD_BYTES: usize = 16;

/// Numbers of `struct control` in `disk.c`.
#[derive(Debug, Clone, Copy)]
enum Control {
    SyncDelayUs = 0,
    Full = 1,
    FailSyncs = 2,
    IgnoreSyncs = 3,
    ClockOffMs = 4,
    Syncs = 5,
    ReadDelayUs = 6,
}

/// What one process has below one directory.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    notes: PathBuf,
    control: File,
}

/// How much of what was not synced goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// All of it.
    All,
    /// Of each file, what was written behind some point; of overwritten places, some; of names, those that changed
    /// after some moment. As a disk does that was writing when the power went.
    Some,
    /// As [`Loss::Some`], but of each file any pages of what was written behind the last sync: they are zeros, and later
    /// ones may be there.
    Pages,
}

impl Loss {
    /// One of them.
    pub fn any(random: &mut Random) -> Self {
        [Self::All, Self::Some, Self::Pages][random.below(3)]
    }
}

/// What a power loss took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Names that were made, moved or removed.
    pub names: usize,
    /// Files whose content went back.
    pub files: usize,
    /// Bytes at the ends of files.
    pub bytes: u64,
}

impl std::ops::AddAssign for Lost {
    fn add_assign(&mut self, other: Self) {
        self.names += other.names;
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

/// The library; `None` where there is none: it is for Linux with glibc.
pub fn library() -> Option<&'static Path> {
    option_env!("LOCKSTEP_DISK_LIBRARY").map(Path::new)
}

impl Disk {
    /// The disk below `root`, whose present content is safe. `notes` is made: beside `root`, on the same file system.
    ///
    /// # Errors
    /// When the files of the notes cannot be made.
    pub fn new(root: &Path, notes: &Path) -> io::Result<Self> {
        fs::create_dir_all(notes)?;
        let make = |name: &str, bytes: u64| -> io::Result<File> {
            let file = File::options().read(true).write(true).create(true).truncate(true).open(notes.join(name))?;
            // Whole, for it is mapped, and a disk that is full has no pages for the holes.
            file.write_all_at(&vec![0; usize::try_from(bytes).unwrap_or_default()], 0)?;
            Ok(file)
        };
        make("files", FILES * SLOT_BYTES)?;
        make("names", 0)?;
        let control = make("control", CONTROL_BYTES)?;
        Ok(Self { root: root.to_owned(), notes: notes.to_owned(), control })
    }

    /// What the process needs in its environment.
    ///
    /// # Panics
    /// Where there is no [`library`].
    pub fn environment(&self) -> Vec<(String, String)> {
        let library = library().expect("a library for this system");
        let settings =
            [("LD_PRELOAD", library), ("LOCKSTEP_DISK_ROOT", &self.root), ("LOCKSTEP_DISK_NOTES", &self.notes)];
        settings.map(|(name, path)| (name.to_owned(), path.display().to_string())).to_vec()
    }

    fn set(&self, what: Control, value: u64) {
        let written = self.control.write_all_at(&value.to_ne_bytes(), what as u64 * 8);
        written.expect("a file of 64 bytes can be written");
    }

    /// Every sync takes this much longer.
    pub fn delay_syncs(&self, by: Duration) {
        self.set(Control::SyncDelayUs, u64::try_from(by.as_micros()).unwrap_or(u64::MAX));
    }

    /// Every read takes this much longer.
    pub fn delay_reads(&self, by: Duration) {
        self.set(Control::ReadDelayUs, u64::try_from(by.as_micros()).unwrap_or(u64::MAX));
    }

    /// There is no room, or there is again.
    pub fn fill(&self, is_full: bool) {
        self.set(Control::Full, is_full.into());
    }

    /// Every sync fails.
    pub fn fail_syncs(&self, fail: bool) {
        self.set(Control::FailSyncs, fail.into());
    }

    /// Every sync does nothing, as of a program that does not sync.
    pub fn ignore_syncs(&self, ignore: bool) {
        self.set(Control::IgnoreSyncs, ignore.into());
    }

    /// The process' wall clock is ahead by this much, or behind where it is negative.
    pub fn clock_off_ms(&self, off: i64) {
        self.set(Control::ClockOffMs, u64::from_ne_bytes(off.to_ne_bytes()));
    }

    /// All is well again.
    pub fn heal(&self) {
        self.delay_syncs(Duration::ZERO);
        self.delay_reads(Duration::ZERO);
        self.fill(false);
        self.fail_syncs(false);
        self.clock_off_ms(0);
    }

    /// How often something was synced so far.
    pub fn syncs(&self) -> u64 {
        let mut bytes = [0; 8];
        let read = self.control.read_exact_at(&mut bytes, Control::Syncs as u64 * 8);
        read.map_or(0, |()| u64::from_ne_bytes(bytes))
    }

    /// Takes the files back to what a power loss would have left. The process must not run. What is there then is
    /// safe.
    ///
    /// # Errors
    /// When a file cannot be read or changed.
    pub fn lose_power(&self, loss: Loss, random: &mut Random) -> io::Result<Lost> {
        let names = self.undo_names(loss, random)?;
        let synced = self.synced_bytes()?;
        let mut lost = Lost { names, ..Lost::default() };
        for path in files_below(&self.root)? {
            let inode = fs::metadata(&path)?.ino();
            let Some(synced) = synced.get(&inode) else { continue };
            lost += self.take_back(&path, inode, *synced, loss, random)?;
        }
        self.forget()?;
        Ok(lost)
    }

    fn synced_bytes(&self) -> io::Result<HashMap<u64, u64>> {
        let bytes = fs::read(self.notes.join("files"))?;
        let number = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
        let slots = bytes.chunks_exact(SLOT_BYTES as usize).map(|slot| (number(&slot[..8]), number(&slot[8..])));
        Ok(slots.filter(|(inode, _)| *inode != 0).collect())
    }

    /// Takes back the newest changes of names, from some moment on.
    fn undo_names(&self, loss: Loss, random: &mut Random) -> io::Result<usize> {
        let text = fs::read(self.notes.join("names"))?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let kept = match loss {
            Loss::All => 0,
            Loss::Some | Loss::Pages => random.below(lines.len() + 1),
        };
        for line in lines[kept..].iter().rev() {
            self.undo_name(line)?;
        }
        Ok(lines.len() - kept)
    }

    /// A change is noted before it is made, so it may be that there is nothing to take back.
    fn undo_name(&self, line: &str) -> io::Result<()> {
        let parts: Vec<&str> = line.split('\t').collect();
        let [what, saved, inode, one, other] = parts[..] else {
            return Err(io::Error::other(format!("not a note: {line}")));
        };
        // 0: of something that did not exist when the note was written.
        let is =
            |path: &str| fs::symlink_metadata(path).is_ok_and(|found| inode == "0" || found.ino().to_string() == inode);
        let saved = self.notes.join(format!("saved-{saved}"));
        match what {
            "c" if is(one) => fs::remove_file(one),
            "m" if is(one) => fs::remove_dir_all(one),
            "u" if !Path::new(one).exists() && saved.exists() => fs::hard_link(saved, one),
            "d" if !Path::new(one).exists() => fs::create_dir(one),
            "r" | "R" if is(other) => {
                fs::rename(other, one)?;
                if what == "R" { fs::hard_link(saved, other) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    fn take_back(&self, path: &Path, inode: u64, synced: u64, loss: Loss, random: &mut Random) -> io::Result<Lost> {
        let mut lost = Lost::default();
        let file = File::options().write(true).open(path)?;
        let length = file.metadata()?.len();
        if length > synced && loss == Loss::Pages {
            let bytes = lose_pages(&file, synced..length, random)?;
            lost += Lost { bytes, files: usize::from(bytes > 0), ..Lost::default() };
        } else if length > synced {
            let room = usize::try_from(length - synced).unwrap_or(usize::MAX);
            let kept = match loss {
                Loss::All => synced,
                Loss::Some | Loss::Pages => synced + random.below(room + 1) as u64,
            };
            file.set_len(kept)?;
            lost.bytes += length - kept;
            lost.files += usize::from(kept < length);
        }
        let mut undo = Vec::new();
        match File::open(self.notes.join(format!("undo-{inode}"))) {
            Ok(mut file) => file.read_to_end(&mut undo)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(lost),
            Err(error) => return Err(error),
        };
        let mut entries = Vec::new();
        let mut rest = &undo[..];
        while let Some((head, behind)) = rest.split_at_checked(UNDO_HEAD_BYTES) {
            let number = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
            let (at, count) = (number(&head[..8]), usize::try_from(number(&head[8..])).unwrap_or(usize::MAX));
            // The last one is not whole where the process ended while it wrote it, and then changed nothing.
            let Some((bytes, behind)) = behind.split_at_checked(count) else { break };
            entries.push((at, bytes));
            rest = behind;
        }
        for (at, bytes) in entries.into_iter().rev() {
            if loss == Loss::All || random.below(2) == 0 {
                file.write_all_at(bytes, at)?;
                lost.files += 1;
            }
        }
        Ok(lost)
    }

    /// Notes nothing of what was before.
    fn forget(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.notes)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("undo-") || name.starts_with("saved-") {
                fs::remove_file(entry.path())?;
            }
        }
        let files = File::options().write(true).open(self.notes.join("files"))?;
        files.write_all_at(&vec![0; (FILES * SLOT_BYTES) as usize], 0)?;
        File::options().write(true).open(self.notes.join("names"))?.set_len(0)
    }
}

/// Makes zeros of some of the pages of a file that are there in this range, which begins anywhere; says of how many bytes.
fn lose_pages(file: &File, unsynced: std::ops::Range<u64>, random: &mut Random) -> io::Result<u64> {
    let mut lost = 0;
    for page in unsynced.start / PAGE_BYTES..unsynced.end.div_ceil(PAGE_BYTES) {
        let (start, end) = (unsynced.start.max(page * PAGE_BYTES), unsynced.end.min((page + 1) * PAGE_BYTES));
        if random.below(2) == 0 {
            file.write_all_at(&[0; PAGE_BYTES as usize][..usize::try_from(end - start).unwrap_or_default()], start)?;
            lost += end - start;
        }
    }
    Ok(lost)
}

fn files_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    // In an order of its own, whatever the file system's is.
    found.sort();
    Ok(found)
}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs a script on a disk of its own, loses power, and says what is there: names and content.
    fn after(script: &str, loss: Loss, set: impl FnOnce(&Disk), seed: u64) -> (Vec<(String, String)>, Lost) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("old"), "before").unwrap();
        let disk = Disk::new(&root, &directory.path().join("notes")).unwrap();
        set(&disk);
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(&root).envs(disk.environment());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lost = disk.lose_power(loss, &mut Random::new(seed)).unwrap();
        let content = |path: &PathBuf| {
            let name = path.strip_prefix(&root).unwrap().display().to_string();
            (name, fs::read_to_string(path).unwrap())
        };
        (files_below(&root).unwrap().iter().map(content).collect(), lost)
    }

    fn rows(rows: &[(&str, &str)]) -> Vec<(String, String)> {
        rows.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn what_was_synced_stays_and_the_rest_goes() {
        for (script, left) in [
            ("printf abc > a; sync a; sync .", rows(&[("a", "abc"), ("old", "before")])),
            // The name was not synced; the content was not; neither.
            ("printf abc > a; sync a", rows(&[("old", "before")])),
            ("printf abc > a; sync .", rows(&[("a", ""), ("old", "before")])),
            ("printf abc > a", rows(&[("old", "before")])),
            ("printf abc > a; sync a; sync .; printf def >> a", rows(&[("a", "abc"), ("old", "before")])),
            // Cut, overwritten, removed, moved, replaced.
            ("printf x > old", rows(&[("old", "before")])),
            ("printf XY | dd of=old conv=notrunc bs=1 seek=2 2>/dev/null", rows(&[("old", "before")])),
            ("printf XY | dd of=old conv=notrunc,fsync bs=1 seek=2 2>/dev/null", rows(&[("old", "beXYre")])),
            ("rm old", rows(&[("old", "before")])),
            ("rm old; sync .", rows(&[])),
            ("mv old new", rows(&[("old", "before")])),
            ("printf abc > a; sync a; mv a old", rows(&[("old", "before")])),
            ("printf abc > a; sync a; mv a old; sync .", rows(&[("old", "abc")])),
            ("mkdir d; printf abc > d/a; sync d/a; rm old", rows(&[("old", "before")])),
            ("mkdir d; printf abc > d/a; sync d/a; sync d; rm old", rows(&[("d/a", "abc"), ("old", "before")])),
        ] {
            assert_eq!(after(script, Loss::All, |_| {}, 1).0, left, "{script}");
        }
    }

    #[test]
    fn a_torn_tail_is_a_part_of_what_was_written() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..40 {
            let script = "printf abc > a; sync a; sync .; printf defgh >> a";
            let (left, _) = after(script, Loss::Some, |_| {}, seed);
            let text = left[0].1.clone();
            assert!(text.starts_with("abc") && "abcdefgh".starts_with(&text), "{left:?}");
            seen.insert(text);
        }
        assert!(seen.len() > 3, "{seen:?}");
    }

    #[test]
    fn any_pages_of_what_was_not_synced_are_zeros_and_nothing_else_is() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..40 {
            let script =
                "head -c 5000 /dev/zero | tr '\\0' a > a; sync a; sync .; head -c 9000 /dev/zero | tr '\\0' b >> a";
            let (left, lost) = after(script, Loss::Pages, |_| {}, seed);
            let text = left[0].1.as_bytes();
            assert_eq!((text.len(), &text[..5000]), (14_000, &[b'a'; 5000][..]));
            let pages = [5000..8192, 8192..12_288, 12_288..14_000].map(|page| {
                let first = text[page.start];
                assert!(text[page].iter().all(|byte| *byte == first), "a page is there or not");
                first == b'b'
            });
            assert_eq!(lost.bytes, text.iter().filter(|byte| **byte == 0).count() as u64);
            seen.insert(pages);
        }
        assert!(seen.len() > 5, "{seen:?}");
    }

    #[test]
    fn a_disk_fails_and_is_full_when_it_is_told_to() {
        let says = |script: &str, set: fn(&Disk)| after(script, Loss::All, set, 1).0;
        let old = rows(&[("old", "before")]);
        assert_eq!(says("! sync old && ! printf x > a", |disk| (disk.fail_syncs(true), disk.fill(true)).0), old);
        // Who does not sync loses all of it.
        assert_eq!(says("printf abc > a; sync a; sync .", |disk| disk.ignore_syncs(true)), old);
        // The directory is no file of it, and a file elsewhere neither.
        let begun = std::time::Instant::now();
        says("cat old > /dev/null; cat /etc/hostname > /dev/null", |disk| {
            disk.delay_reads(std::time::Duration::from_millis(300))
        });
        assert!(begun.elapsed() >= std::time::Duration::from_millis(300));
        let clock = "test $(date +%s) -gt 4000000000 || test $(date +%Y) -gt 2090";
        assert_eq!(says(clock, |disk| disk.clock_off_ms(3_000_000_000_000)), old);
    }
}
