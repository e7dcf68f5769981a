//! Looking through RocksDB's record files, which are its write-ahead logs and its manifest, byte by byte.
//!
//! RocksDB takes an incomplete record at the end of such a file for the trace of a crash, and goes on without it. But one
//! flipped bit can make a record look incomplete, or like one of an older file, and then RocksDB drops without a word
//! all that follows: up to 32 KiB, or the whole file. So these files are checked before they are opened.
//!
//! What a crash leaves is one write that is not whole: the next one is not begun before it was synced
//! ([`crate::LogWriter`]). Pages of a large one reach a disk in any order, so any parts of it may be missing and later ones be there. Where
//! another write begins behind the one that is not whole, that one had been synced, and is damaged. Damage to the very last
//! write looks as a crash would: of a log, [`crate::RocksStorage::open`] tells it by what is known to have been synced.
//!
//! The format: blocks of 32 KiB of records; a record has a masked CRC-32C over type and payload (4 bytes, little
//! endian), its length (2), its type (1), and the payload; less than 7 bytes at the end of a block are zeros.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::crc32c::crc32c;

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;
const MASK_DELTA: u32 = 0xa282_ead8;

const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;
/// Other types that RocksDB writes without being asked for the reuse of old files, which we never ask for: compression,
/// time stamps, the file before. Each is a record by itself.
const OTHERS: [u8; 3] = [9, 10, 130];

/// An incomplete record at the end of a file, as a crash in the middle of a write leaves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The file.
    pub file: PathBuf,
    /// Where the record begins.
    pub offset: u64,
    /// Bytes from there to the end.
    pub bytes: u64,
}

/// What was found at the ends of a store's record files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tails {
    /// Of the newest write-ahead log with anything in it.
    pub wal: Option<TornTail>,
    /// Of the manifest.
    pub manifest: Option<TornTail>,
}

/// A record file that is not as it was written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read.
    #[error("{}: {error}", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A record is damaged.
    #[error("{} is damaged at byte {offset}: {reason}", .file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
}

/// What a look at one file came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Look {
    records: u64,
    torn_at: Option<u64>,
}

struct Damage {
    /// From the beginning of the file.
    at: u64,
    reason: &'static str,
}

struct Scanner {
    /// Where the logical record began whose fragments are being read.
    fragment: Option<u64>,
    /// Where and why the first record is not one, if there is such a place: behind it there may be the rest of its write only.
    broken: Option<(u64, &'static str)>,
    look: Look,
}

fn unmask(masked: u32) -> u32 {
    masked.wrapping_sub(MASK_DELTA).rotate_left(15)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// The payload's length, if a whole and true record begins at `at`.
fn record_at(block: &[u8], at: usize) -> Option<usize> {
    let header = block.get(at..at + HEADER_BYTES)?;
    let kind = header[6];
    if !(FULL..=LAST).contains(&kind) && !OTHERS.contains(&kind) {
        return None;
    }
    let length = usize::from(u16::from_le_bytes(field(header, 4)));
    let covered = block.get(at + 6..at + HEADER_BYTES + length)?;
    (crc32c(covered) == unmask(u32::from_le_bytes(field(header, 0)))).then_some(length)
}

fn is_zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn begins(kind: u8) -> bool {
    matches!(kind, FULL | FIRST) || OTHERS.contains(&kind)
}

impl Scanner {
    fn block(&mut self, block: &[u8], base: u64) -> Result<(), Damage> {
        let mut at = 0;
        while block.len() - at >= HEADER_BYTES {
            match record_at(block, at) {
                Some(length) => {
                    self.take(block[at + 6], base, at)?;
                    at += HEADER_BYTES + length;
                }
                None => {
                    self.not_a_record(block, base, at);
                    // A record's place is known at the beginning of a block only.
                    at += 1;
                }
            }
        }
        let rest = &block[at..];
        if self.broken.is_some() || (block.len() == BLOCK_BYTES && is_zeros(rest)) || rest.is_empty() {
            return Ok(());
        }
        if block.len() == BLOCK_BYTES {
            return Err(Damage { at: base + at as u64, reason: "the end of the block is not empty" });
        }
        self.broken = Some((base + at as u64, "a record has no end"));
        Ok(())
    }

    /// Keeps account of the fragments of a record.
    fn take(&mut self, kind: u8, base: u64, at: usize) -> Result<(), Damage> {
        if let Some((at, reason)) = self.broken {
            return if begins(kind) { Err(Damage { at, reason }) } else { Ok(()) };
        }
        if begins(kind) == self.fragment.is_some() {
            return Err(Damage { at: base + at as u64, reason: "the parts of a record are not in order" });
        }
        match kind {
            FIRST => self.fragment = Some(base + at as u64),
            MIDDLE => {}
            _ => {
                self.fragment = None;
                self.look.records += 1;
            }
        }
        Ok(())
    }

    fn not_a_record(&mut self, block: &[u8], base: u64, at: usize) {
        let length = usize::from(u16::from_le_bytes(field(block, at + 4)));
        let fits = at + HEADER_BYTES + length <= block.len();
        let reason = if fits { "the checksum of a record does not match" } else { "a record is too long" };
        self.broken.get_or_insert((base + at as u64, reason));
    }
}

/// Reads a block, or what is left of the file.
fn read_block(file: &mut fs::File, block: &mut Vec<u8>) -> io::Result<()> {
    block.clear();
    file.take(BLOCK_BYTES as u64).read_to_end(block).map(drop)
}

fn look_at(path: &Path) -> Result<Look, RecordError> {
    let failed = |error| RecordError::Read { file: path.to_owned(), error };
    let mut file = fs::File::open(path).map_err(failed)?;
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    let mut scanner = Scanner { fragment: None, broken: None, look: Look::default() };
    let mut base = 0;
    read_block(&mut file, &mut block).map_err(failed)?;
    while !block.is_empty() {
        let damaged = |d: Damage| RecordError::Damaged { file: path.to_owned(), offset: d.at, reason: d.reason };
        scanner.block(&block, base).map_err(damaged)?;
        base += block.len() as u64;
        read_block(&mut file, &mut block).map_err(failed)?;
    }
    // The whole write is what is not there.
    scanner.look.torn_at = scanner.fragment.or(scanner.broken.map(|(at, _)| at));
    Ok(scanner.look)
}

fn numbered_logs(store: &Path) -> io::Result<Vec<PathBuf>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if let (Some("log"), Ok(number)) = (path.extension().and_then(|e| e.to_str()), stem.parse::<u64>()) {
            logs.push((number, path));
        }
    }
    logs.sort();
    Ok(logs.into_iter().map(|(_, path)| path).collect())
}

/// Checks the record files of the store in a directory. Reads them once; they are small, because RocksDB begins new ones.
///
/// # Errors
/// If one is damaged, or cannot be read.
pub fn check_records(store: &Path) -> Result<Tails, RecordError> {
    let failed = |file: &Path| {
        let file = file.to_owned();
        move |error| RecordError::Read { file, error }
    };
    let tail = |file: &Path, look: &Look| -> Result<Option<TornTail>, RecordError> {
        let Some(offset) = look.torn_at else { return Ok(None) };
        let end = fs::metadata(file).map_err(failed(file))?.len();
        Ok(Some(TornTail { file: file.to_owned(), offset, bytes: end.saturating_sub(offset) }))
    };
    let mut tails = Tails::default();
    for file in numbered_logs(store).map_err(failed(store))? {
        let look = look_at(&file)?;
        if let Some(torn) = tails.wal.take_if(|_| look.records > 0) {
            // Nobody writes to another file after a crash before this one was read and its end dealt with.
            let reason = "a record is incomplete, although a newer file has some";
            return Err(RecordError::Damaged { file: torn.file, offset: torn.offset, reason });
        }
        tails.wal = tails.wal.or(tail(&file, &look)?);
    }
    let current = store.join("CURRENT");
    let name = match fs::read_to_string(&current) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(tails),
        name => name.map_err(failed(&current))?,
    };
    let Some(name) = name.strip_suffix('\n').filter(|name| name.starts_with("MANIFEST-") && !name.contains('/')) else {
        return Err(RecordError::Damaged { file: current, offset: 0, reason: "it does not name a manifest" });
    };
    let manifest = store.join(name);
    let look = look_at(&manifest)?;
    tails.manifest = tail(&manifest, &look)?;
    Ok(tails)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rocks::{Kind, RocksStorage};
    use crate::storage::{Durability, Storage as _, Table, WriteBatch};
    use crate::synced::SYNCED_FILE;

    fn copy_of(store: &Path) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for file in fs::read_dir(store).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
        copy
    }

    /// A store whose write-ahead log has records of these sizes, as a crash leaves it.
    fn store_with(sizes: &[usize]) -> (tempfile::TempDir, PathBuf) {
        let made = tempfile::tempdir().unwrap();
        let store = RocksStorage::create(made.path(), Kind::Log).unwrap();
        for (i, size) in sizes.iter().enumerate() {
            let mut batch = WriteBatch::default();
            batch.put(Table::Log, crate::keys::log::entry(i as u64), vec![i as u8; *size]);
            store.write(batch, Durability::Synced).unwrap();
        }
        let copy = copy_of(made.path());
        let log = numbered_logs(copy.path()).unwrap().pop().unwrap();
        (copy, log)
    }

    #[test]
    fn a_whole_file_is_whole_whatever_the_sizes_of_its_records() {
        for sizes in [&[][..], &[1], &[100; 40], &[40_000, 3, 70_000, 32_000], &[0, 32_740, 5, 32_700, 9]] {
            let (store, log) = store_with(sizes);
            assert_eq!(check_records(store.path()).unwrap(), Tails::default());
            assert_eq!(look_at(&log).unwrap().records, sizes.len() as u64 + u64::from(has_extra(&log)));
        }
    }

    /// RocksDB may begin a file with a record of its own.
    fn has_extra(log: &Path) -> bool {
        let bytes = fs::read(log).unwrap();
        bytes.len() > HEADER_BYTES && OTHERS.contains(&bytes[6])
    }

    #[test]
    fn a_file_that_ends_anywhere_is_torn_and_keeps_the_records_before() {
        let (store, log) = store_with(&[50, 60, 70]);
        let bytes = fs::read(&log).unwrap();
        let mut offsets = std::collections::BTreeSet::new();
        for end in 0..bytes.len() {
            fs::write(&log, &bytes[..end]).unwrap();
            if let Some(torn) = check_records(store.path()).unwrap().wal {
                assert_eq!(torn.offset + torn.bytes, end as u64);
                offsets.insert(torn.offset);
            }
        }
        assert_eq!(offsets.len(), 3 + usize::from(has_extra(&log)));
        // The file was made longer, but nothing was written there.
        fs::write(&log, [&bytes[..], &[0; 3000]].concat()).unwrap();
        assert_eq!(check_records(store.path()).unwrap().wal.unwrap().bytes, 3000);
    }

    #[test]
    fn every_flipped_bit_is_found_but_one_that_makes_the_last_record_look_torn() {
        for sizes in [&[200, 10, 30][..], &[33_000, 500]] {
            let (store, log) = store_with(sizes);
            let bytes = fs::read(&log).unwrap();
            let last = bytes.len() - sizes.last().unwrap();
            let near_the_end = |bit: usize| bit / 8 + 20 > last && bit / 8 < last + 20;
            for bit in (0..bytes.len() * 8).filter(|bit| sizes[0] < 1000 || bit % 997 == 0 || near_the_end(*bit)) {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                fs::write(&log, &flipped).unwrap();
                match check_records(store.path()) {
                    Err(RecordError::Damaged { .. }) => {}
                    Ok(Tails { wal: Some(torn), .. }) => {
                        assert!(torn.offset as usize + 60 > last, "bit {bit}");
                        // It had been synced, and the store knows.
                        if bit % 16 == 0 {
                            let copy = copy_of(store.path());
                            let error = RocksStorage::open(copy.path(), Kind::Log).err().unwrap().to_string();
                            assert!(error.contains("lacks what was synced"), "bit {bit}: {error}");
                        }
                    }
                    other => panic!("bit {bit}: {other:?}"),
                }
            }
        }
    }

    /// What is kept of a write, where single pages of it have not reached the disk.
    fn without_pages(bytes: &[u8], from: usize, mut has: impl FnMut(usize) -> bool) -> Vec<u8> {
        const PAGE_BYTES: usize = 4096;
        let mut left = bytes.to_vec();
        for page in from / PAGE_BYTES..bytes.len().div_ceil(PAGE_BYTES) {
            let (start, end) = (from.max(page * PAGE_BYTES), bytes.len().min((page + 1) * PAGE_BYTES));
            if !has(page) {
                left[start..end].fill(0);
            }
        }
        left
    }

    #[test]
    fn pages_of_the_last_write_may_be_missing_in_any_order_and_of_no_other() {
        for sizes in [&[50, 20_000, 60][..], &[50, 3_000, 200_000], &[40_000, 33_000, 9_000], &[5, 5, 32_700]] {
            let (synced, log) = store_with(&sizes[..2]);
            let end = fs::metadata(&log).unwrap().len() as usize;
            let note = fs::read(synced.path().join(SYNCED_FILE)).unwrap();
            let (store, log) = store_with(sizes);
            let bytes = fs::read(&log).unwrap();
            // The note of what was synced is written when it was.
            fs::write(store.path().join(SYNCED_FILE), note).unwrap();
            for pattern in [0, 1, 2, 7, 13, 22, 31, 32, 41, 58, 62, 63_u64] {
                let has = |page: usize| pattern >> (page % 6) & 1 == 1;
                let left = without_pages(&bytes, end, has);
                fs::write(&log, &left).unwrap();
                let tails = check_records(store.path()).unwrap();
                assert!(tails.wal.is_some() || left == bytes, "{sizes:?} {pattern}");
                assert!(tails.wal.is_none_or(|torn| torn.offset as usize >= end), "{sizes:?} {pattern}");
                // RocksDB leaves it out too, and what was synced is there.
                let copy = copy_of(store.path());
                let opened = RocksStorage::open(copy.path(), Kind::Log).unwrap();
                let has = |n: u64| opened.get(Table::Log, &crate::keys::log::entry(n)).unwrap().is_some();
                assert_eq!((has(0), has(1), has(2)), (true, true, left == bytes), "{sizes:?} {pattern}");
                // The same of a write that was synced is damage.
                let earlier = without_pages(&bytes[..end], 20, |page| pattern >> (page % 6) & 1 == 1);
                if earlier != bytes[..end] {
                    fs::write(&log, [&earlier, &bytes[end..]].concat()).unwrap();
                    assert!(
                        matches!(check_records(store.path()), Err(RecordError::Damaged { .. })),
                        "{sizes:?} {pattern}"
                    );
                }
            }
        }
    }

    #[test]
    fn rocksdb_would_have_dropped_what_follows_a_flipped_length_or_type() {
        for (at, bit) in [(5, 3), (6, 2)] {
            let (store, log) = store_with(&[100; 40]);
            let mut bytes = fs::read(&log).unwrap();
            assert!(!has_extra(&log));
            bytes[at] ^= 1 << bit;
            fs::write(&log, &bytes).unwrap();
            let error = RocksStorage::open(store.path(), Kind::Log).err().unwrap().to_string();
            assert!(error.contains("is damaged at byte 0"), "{error}");
        }
    }

    #[test]
    fn a_torn_file_is_damage_where_a_newer_one_has_records() {
        let (store, log) = store_with(&[50, 60]);
        let bytes = fs::read(&log).unwrap();
        fs::write(&log, &bytes[..bytes.len() - 1]).unwrap();
        assert!(check_records(store.path()).unwrap().wal.is_some());
        fs::write(store.path().join("999999.log"), b"").unwrap();
        assert!(check_records(store.path()).unwrap().wal.is_some());
        fs::write(store.path().join("999999.log"), &bytes).unwrap();
        assert!(matches!(check_records(store.path()), Err(RecordError::Damaged { .. })));
    }
}
