//! The file of an outbox, and what is known of it in memory. Blocking.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_types::ContentId;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::outbox::error::OutboxError;
use crate::outbox::record::{
    BODY_BYTES_MAX, HEADER, OutboxId, Record, find_frame, frame, header, is_unfinished_header, read_frame, read_header,
};
use crate::outbox::{BULK_MESSAGES_MAX, OutboxOptions};
use crate::outcome::Outcome;
use crate::prepared::Prepared;
use crate::sending::Sending;

/// Bytes of records that are no longer needed, beyond twice those that are, which the file is written anew for.
const WASTE_BYTES_MAX: u64 = 1 << 20;

/// One message that waits.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    at: u64,
    bytes: u64,
    content_id: ContentId,
    offered: bool,
    pub(super) sending: Arc<Mutex<Sending>>,
}

/// The file. One process has it open at a time.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    options: OutboxOptions,
    file: File,
    /// Held as long as this is.
    _lock: File,
    id: OutboxId,
    next: u64,
    /// Bytes that are good.
    bytes: u64,
    waiting: BTreeMap<u64, Waiting>,
    waiting_bytes: u64,
    contents: HashSet<ContentId>,
    broken: bool,
}

impl Log {
    pub(super) fn open(path: &Path, options: OutboxOptions) -> Result<Self, OutboxError> {
        let failed = failure(path);
        let lock = private().create(true).truncate(false).open(beside(path, ".lock")).map_err(&failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OutboxError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Left behind where a crash came before the switch to it.
        match fs::remove_file(beside(path, ".new")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let bytes = match fs::read(path) {
            Ok(bytes) if !is_unfinished_header(&bytes) => bytes,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {
                let bytes = header(&rand::random(), 1);
                write_new(path, &bytes).and_then(|()| switch(path)).map_err(&failed)?;
                bytes
            }
        };
        let file = private().open(path).map_err(&failed)?;
        let (id, next) = read_header(&bytes).ok_or_else(|| OutboxError::NotAnOutbox { path: path.to_owned() })?;
        let mut log = Self {
            path: path.to_owned(),
            options,
            file,
            _lock: lock,
            id,
            next,
            bytes: HEADER as u64,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            contents: HashSet::new(),
            broken: false,
        };
        log.read(&bytes)?;
        Ok(log)
    }

    fn read(&mut self, bytes: &[u8]) -> Result<(), OutboxError> {
        let mut at = HEADER;
        let now = Instant::now();
        while let Some((record, end)) = read_frame(&self.id, bytes, at) {
            match record {
                Record::Message { number, .. } if number < self.next => return Err(self.damaged(at)),
                Record::Message { number, prepared } => self.note(number, at as u64, (end - at) as u64, &prepared),
                Record::Offered(numbers) => numbers.iter().for_each(|number| {
                    if let Some(waiting) = self.waiting.get_mut(number) {
                        waiting.offered = true;
                        waiting.sending = Arc::new(Mutex::new(Sending::from_before(now)));
                    }
                }),
                Record::Withdrawn(numbers) => numbers.iter().for_each(|number| {
                    if let Some(waiting) = self.waiting.get_mut(number) {
                        waiting.offered = false;
                        waiting.sending = Arc::default();
                    }
                }),
                Record::Done(numbers) => {
                    self.forget(&numbers);
                    self.next = numbers.iter().fold(self.next, |next, number| next.max(number.saturating_add(1)));
                }
            }
            at = end;
        }
        if at < bytes.len() {
            if find_frame(&self.id, bytes, at + 1).is_some() {
                return Err(self.damaged(at));
            }
            tracing::warn!(path = %self.path.display(), bytes = bytes.len() - at, "an unfinished record was cut off");
            let cut = self.file.set_len(at as u64).and_then(|()| self.file.sync_data());
            cut.map_err(failure(&self.path))?;
        }
        self.bytes = at as u64;
        Ok(())
    }

    fn damaged(&self, at: usize) -> OutboxError {
        OutboxError::Damaged { path: self.path.clone(), at: at as u64 }
    }

    fn note(&mut self, number: u64, at: u64, bytes: u64, prepared: &Prepared) {
        let content_id = prepared.content_id;
        let waiting = Waiting { at, bytes, content_id, offered: false, sending: Arc::default() };
        self.waiting.insert(number, waiting);
        self.waiting_bytes += bytes;
        self.contents.insert(content_id);
        self.next = number + 1;
    }

    fn forget(&mut self, numbers: &[u64]) {
        for number in numbers {
            if let Some(waiting) = self.waiting.remove(number) {
                self.waiting_bytes -= waiting.bytes;
                self.contents.remove(&waiting.content_id);
            }
        }
    }

    /// A text that no other message of any outbox is given.
    pub(super) fn next_name(&self) -> String {
        let id = self.id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("{id}-{}", self.next)
    }

    /// Appends a message and syncs. Returns its number.
    pub(super) fn append(&mut self, prepared: Prepared) -> Result<u64, OutboxError> {
        if prepared.body.len() > BODY_BYTES_MAX {
            return Err(OutboxError::TooLarge { bytes: prepared.body.len() });
        }
        if self.contents.contains(&prepared.content_id) {
            return Err(OutboxError::Repeats);
        }
        let number = self.next;
        let record = Record::Message { number, prepared };
        let bytes = frame(&self.id, &record);
        let (messages, waiting_bytes) = (self.waiting.len(), self.waiting_bytes);
        if messages >= self.options.messages_max || waiting_bytes + bytes.len() as u64 > self.options.bytes_max {
            return Err(OutboxError::Full { messages, bytes: waiting_bytes });
        }
        let at = self.bytes;
        self.write(&bytes, true)?;
        if let Record::Message { prepared, .. } = &record {
            self.note(number, at, bytes.len() as u64, prepared);
        }
        Ok(number)
    }

    /// Notes, before they are sent, that these may have been sent. Synced: who forgets it sends them twice.
    pub(super) fn offer(&mut self, numbers: &[u64]) -> Result<(), OutboxError> {
        let is_new = |n: &&u64| self.waiting.get(n).is_some_and(|waiting| !waiting.offered);
        let new: Vec<u64> = numbers.iter().filter(is_new).copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        for part in new.chunks(BULK_MESSAGES_MAX) {
            self.write(&frame(&self.id, &Record::Offered(part.to_vec())), true)?;
        }
        for number in &new {
            if let Some(waiting) = self.waiting.get_mut(number) {
                waiting.offered = true;
            }
        }
        Ok(())
    }

    /// Notes which of the messages that were about to be sent no node has taken, so that none of them is looked up after
    /// a restart. Not synced: who forgets it only looks them up.
    pub(super) fn withdraw(&mut self) -> Result<(), OutboxError> {
        let is_idle = |w: &Waiting| w.offered && w.sending.lock().outcome() == Outcome::NotTaken;
        let numbers: Vec<u64> = self.waiting.iter().filter(|(_, w)| is_idle(w)).map(|(number, _)| *number).collect();
        for part in numbers.chunks(BULK_MESSAGES_MAX) {
            self.write(&frame(&self.id, &Record::Withdrawn(part.to_vec())), false)?;
        }
        for number in &numbers {
            if let Some(waiting) = self.waiting.get_mut(number) {
                waiting.offered = false;
            }
        }
        Ok(())
    }

    /// Removes what is ordered or set aside. Not synced: what a power loss brings back is known to have been offered,
    /// and is looked up.
    pub(super) fn done(&mut self, numbers: &[u64]) -> Result<(), OutboxError> {
        for part in numbers.chunks(BULK_MESSAGES_MAX) {
            self.write(&frame(&self.id, &Record::Done(part.to_vec())), false)?;
        }
        self.forget(numbers);
        if self.bytes > HEADER as u64 + 3 * self.waiting_bytes + WASTE_BYTES_MAX {
            self.compact()?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], sync: bool) -> Result<(), OutboxError> {
        if self.broken {
            return Err(OutboxError::Broken);
        }
        if let Err(error) = self.file.write_all_at(bytes, self.bytes) {
            // Nothing may follow half a record.
            self.broken = self.file.set_len(self.bytes).is_err();
            return Err(failure(&self.path)(error));
        }
        if sync && let Err(error) = self.file.sync_data() {
            // What is on the disk now, nobody can say.
            self.broken = true;
            return Err(failure(&self.path)(error));
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Writes what waits into a new file, which takes the old one's place at once or not at all.
    fn compact(&mut self) -> Result<(), OutboxError> {
        let mut bytes = header(&self.id, self.waiting.keys().next().copied().unwrap_or(self.next));
        let mut places = Vec::with_capacity(self.waiting.len());
        for (number, waiting) in &self.waiting {
            places.push((*number, bytes.len() as u64));
            bytes.extend(self.read_at(waiting)?);
        }
        let offered: Vec<u64> = self.waiting.iter().filter(|(_, w)| w.offered).map(|(number, _)| *number).collect();
        for part in offered.chunks(BULK_MESSAGES_MAX) {
            bytes.extend(frame(&self.id, &Record::Offered(part.to_vec())));
        }
        // The last number that was given must not be given again.
        let last = self.next - 1;
        if last > 0 && !self.waiting.contains_key(&last) {
            bytes.extend(frame(&self.id, &Record::Done(vec![last])));
        }
        if let Err(error) = write_new(&self.path, &bytes) {
            // The old file is as good, only larger.
            tracing::warn!(path = %self.path.display(), %error, "the outbox could not be written anew");
            return Ok(());
        }
        let replaced = switch(&self.path).and_then(|()| private().open(&self.path));
        self.file = replaced.map_err(|error| {
            self.broken = true;
            failure(&self.path)(error)
        })?;
        self.bytes = bytes.len() as u64;
        for (number, at) in places {
            if let Some(waiting) = self.waiting.get_mut(&number) {
                waiting.at = at;
            }
        }
        Ok(())
    }

    fn read_at(&self, waiting: &Waiting) -> Result<Vec<u8>, OutboxError> {
        let mut bytes = vec![0; usize::try_from(waiting.bytes).unwrap_or_default()];
        self.file.read_exact_at(&mut bytes, waiting.at).map_err(failure(&self.path))?;
        Ok(bytes)
    }

    /// The first messages that wait, at most `count` of at most `bytes_max`, but at least one where there is one.
    pub(super) fn first(&self, count: usize, bytes_max: u64) -> Result<Vec<(u64, Prepared, Waiting)>, OutboxError> {
        let (mut found, mut bytes) = (Vec::new(), 0);
        for (number, waiting) in self.waiting.iter().take(count) {
            bytes += waiting.bytes;
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            let at = usize::try_from(waiting.at).unwrap_or_default();
            match read_frame(&self.id, &self.read_at(waiting)?, 0) {
                Some((Record::Message { prepared, .. }, _)) => found.push((*number, prepared, waiting.clone())),
                _ => return Err(self.damaged(at)),
            }
        }
        Ok(found)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Where refused messages are kept.
    pub(super) fn refused_path(&self) -> PathBuf {
        beside(&self.path, ".refused")
    }

    pub(super) fn options(&self) -> &OutboxOptions {
        &self.options
    }
}

/// Only the owner may read what devices say.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

pub(super) fn failure(path: &Path) -> impl Fn(io::Error) -> OutboxError + use<> {
    let path = path.to_owned();
    move |error| OutboxError::Io { path: path.clone(), error }
}

/// Writes what is to take the file's place, which has not changed yet.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = private().create(true).truncate(true).open(beside(path, ".new"))?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()
}

/// The file is what it was, or all of the new one.
fn switch(path: &Path) -> io::Result<()> {
    fs::rename(beside(path, ".new"), path)?;
    sync_directory(path)
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::prepared::Way;

    fn prepared(content: u8, size: usize) -> Prepared {
        let body = Bytes::from(vec![b'x'; size]);
        Prepared { way: Way::Signed, content_id: ContentId([content; 32]), body }
    }

    fn open(path: &Path) -> Result<Log, OutboxError> {
        Log::open(path, OutboxOptions::default())
    }

    fn numbers(log: &Log) -> Vec<(u64, bool)> {
        let sent = |w: &Waiting| w.sending.lock().outcome() == Outcome::Unknown;
        log.waiting.iter().map(|(number, waiting)| (*number, sent(waiting))).collect()
    }

    #[test]
    fn a_crash_at_any_byte_loses_nothing_that_was_acknowledged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox");
        let mut log = open(&path).unwrap();
        // After each step: how long the file is, and what must be there.
        let mut steps = vec![(0, vec![], 1)];
        let mut note = |log: &Log, waiting: &[(u64, bool)]| steps.push((log.bytes, waiting.to_vec(), log.next));
        for content in 1..=3 {
            log.append(prepared(content, 4)).unwrap();
            note(&log, &[(1, false), (2, false), (3, false)][..content.into()]);
        }
        log.offer(&[1, 2]).unwrap();
        note(&log, &[(1, true), (2, true), (3, false)]);
        log.waiting[&2].sending.lock().begin(Instant::now());
        log.withdraw().unwrap();
        note(&log, &[(1, false), (2, true), (3, false)]);
        log.offer(&[1]).unwrap();
        log.waiting[&1].sending.lock().begin(Instant::now());
        note(&log, &[(1, true), (2, true), (3, false)]);
        log.done(&[2]).unwrap();
        note(&log, &[(1, true), (3, false)]);
        log.append(prepared(2, 4)).unwrap();
        note(&log, &[(1, true), (3, false), (4, false)]);
        log.done(&[1, 3, 4]).unwrap();
        note(&log, &[]);
        drop(log);
        let bytes = fs::read(&path).unwrap();
        for cut in 0..=bytes.len() {
            // A disk may have grown the file before it had the bytes.
            let grown = if cut >= HEADER && cut % 5 == 0 { &[0; 30][..] } else { b"" };
            fs::write(&path, [&bytes[..cut], grown].concat()).unwrap();
            let mut log = open(&path).unwrap();
            let (_, waiting, next) = steps.iter().rfind(|step| step.0 <= cut as u64).unwrap();
            assert_eq!((&numbers(&log), log.next), (waiting, *next), "{cut}");
            log.append(prepared(99, 10)).unwrap();
            drop(log);
            assert_eq!(open(&path).unwrap().len(), waiting.len() + 1);
        }
    }

    #[test]
    fn damage_before_a_good_record_is_reported_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox");
        let mut log = open(&path).unwrap();
        log.append(prepared(1, 40)).unwrap();
        let middle = log.bytes as usize;
        log.append(prepared(2, 40)).unwrap();
        drop(log);
        let bytes = fs::read(&path).unwrap();
        for at in 0..middle {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            match open(&path) {
                Err(OutboxError::NotAnOutbox { .. }) => assert!(at < HEADER),
                Err(OutboxError::Damaged { at: said, .. }) => assert!(at >= HEADER && said == HEADER as u64),
                other => panic!("{at}: {:?}", other.map(|log| log.len())),
            }
            assert_eq!(fs::read(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn a_file_that_is_mostly_waste_is_written_anew_and_numbers_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox");
        let mut log = open(&path).unwrap();
        let first = log.append(prepared(0, 40)).unwrap();
        log.offer(&[first]).unwrap();
        let (id, mut largest) = (log.id, 0);
        for content in 1..=20 {
            let number = log.append(prepared(content, 200 << 10)).unwrap();
            log.done(&[number]).unwrap();
            largest = largest.max(log.bytes);
        }
        assert!(largest < WASTE_BYTES_MAX + (400 << 10), "{largest} of the 4 MiB that were written");
        fs::write(beside(&path, ".new"), b"left behind").unwrap();
        drop(log);
        let mut log = open(&path).unwrap();
        assert_eq!((numbers(&log), log.next, log.id), (vec![(1, true)], 22, id));
        assert_eq!(log.first(9, u64::MAX).unwrap()[0].1, prepared(0, 40));
        log.done(&[1]).unwrap();
        log.bytes += 2 * WASTE_BYTES_MAX;
        log.compact().unwrap();
        drop(log);
        assert_eq!(open(&path).unwrap().append(prepared(1, 1)).unwrap(), 22);
        assert!(!beside(&path, ".new").exists());
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox");
        let options = OutboxOptions { messages_max: 2, bytes_max: 1_000, ..OutboxOptions::default() };
        let mut log = Log::open(&path, options).unwrap();
        assert!(matches!(open(&path), Err(OutboxError::InUse { .. })));
        let large = prepared(1, BODY_BYTES_MAX + 1);
        assert!(matches!(log.append(large), Err(OutboxError::TooLarge { .. })));
        assert!(matches!(log.append(prepared(1, 2_000)), Err(OutboxError::Full { messages: 0, .. })));
        log.append(prepared(1, 10)).unwrap();
        assert!(matches!(log.append(prepared(1, 10)), Err(OutboxError::Repeats)));
        log.append(prepared(2, 10)).unwrap();
        assert!(matches!(log.append(prepared(3, 10)), Err(OutboxError::Full { messages: 2, .. })));
        log.done(&[1]).unwrap();
        assert_eq!(log.append(prepared(1, 10)).unwrap(), 3);
        fs::write(directory.path().join("other"), "a text of somebody else").unwrap();
        let other = open(&directory.path().join("other"));
        assert!(matches!(other, Err(OutboxError::NotAnOutbox { .. })));
    }
}
