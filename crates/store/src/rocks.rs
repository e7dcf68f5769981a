//! [`Storage`] on RocksDB.

use std::path::Path;

use bytes::Bytes;
use lockstep_types::{Height, Sequence, TaskNumber};
use rocksdb::{
    BlockBasedOptions, BoundColumnFamily, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode,
    DBWithThreadMode, IteratorMode, MultiThreaded, Options, ReadOptions, ReadTier, WriteOptions,
};
use std::sync::Arc;

use crate::forget::Forgetting;
use crate::keys;
use crate::medium::StateStorage;
use crate::records::check_records;
use crate::sizes::Sizes;
use crate::storage::{Direction, Durability, Operation, Pair, Scan, Storage, StoreError, Table, WriteBatch};

type Db = DBWithThreadMode<MultiThreaded>;

/// Write buffers of one table.
const WRITE_BUFFERS_MAX: i32 = 3;
/// Memory for blocks, indexes and filters of one store.
const BLOCK_CACHE_BYTES: usize = 8 << 20;
/// File descriptors of one store.
const OPEN_FILES_MAX: i32 = 256;
/// Size at which the write-ahead log of a log store forces a flush, which bounds recovery time.
const WAL_BYTES_MAX: u64 = 64 << 20;

/// What a store is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Votes and log entries: every write goes to a write-ahead log that tolerates a torn tail only.
    Log,
    /// What follows from the log. It has no write-ahead log: after a crash it stands at an earlier entry, whole, and
    /// is brought forward by applying the log again.
    State,
}

/// A RocksDB store.
pub struct RocksStorage {
    db: Db,
    kind: Kind,
    forgetting: Forgetting,
}

fn table_name(table: Table) -> &'static str {
    match table {
        Table::Log => "log",
        Table::Chain => "chain",
        Table::Index => "index",
    }
}

fn failed(error: rocksdb::Error) -> StoreError {
    StoreError::Failed(error.into_string())
}

fn table_options(table: Table, cache: &Cache, forgetting: &Forgetting, sizes: Sizes) -> Options {
    let mut options = Options::default();
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    if table == Table::Index {
        // Most look-ups are for contents that were never seen: ten bits answer 99 % of them without a read.
        blocks.set_bloom_filter(10.0, false);
        options.set_memtable_whole_key_filtering(true);
        options.set_memtable_prefix_bloom_ratio(0.1);
        options.set_compression_type(DBCompressionType::None);
        let forgetting = forgetting.clone();
        options.set_compaction_filter("forgotten", move |_, key, value| forgetting.decision(key, value));
    } else {
        blocks.set_block_size(16 << 10);
        options.set_compression_type(DBCompressionType::Lz4);
    }
    options.set_block_based_table_factory(&blocks);
    options.set_write_buffer_size(usize::try_from(sizes.write_buffer_bytes).unwrap_or(usize::MAX));
    options.set_target_file_size_base(sizes.table_file_bytes);
    options.set_max_write_buffer_number(WRITE_BUFFERS_MAX);
    options.set_paranoid_checks(true);
    options
}

fn tables(kind: Kind) -> &'static [Table] {
    match kind {
        Kind::Log => &[Table::Log],
        Kind::State => &[Table::Chain, Table::Index],
    }
}

/// A torn tail of a write-ahead log is tolerated, and nothing else.
fn recover_strictly(options: &mut Options, kind: Kind) {
    if kind == Kind::Log {
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        options.set_track_and_verify_wals_in_manifest(true);
    }
}

fn way_out(kind: Kind) -> &'static str {
    match kind {
        Kind::Log => {
            "A member whose log is damaged must join again under a new node id (`lockstep init --join` in a new home)"
        }
        Kind::State => "The state follows from the log: make it again with `lockstep rebuild`",
    }
}

fn families(kind: Kind, cache: &Cache, forgetting: &Forgetting, sizes: Sizes) -> Vec<ColumnFamilyDescriptor> {
    let family = |t: &Table| ColumnFamilyDescriptor::new(table_name(*t), table_options(*t, cache, forgetting, sizes));
    tables(kind).iter().map(family).collect()
}

fn opening(path: &Path, kind: Kind, error: rocksdb::Error) -> StoreError {
    let out = match (error.kind(), kind) {
        (rocksdb::ErrorKind::IOError, _) if error.as_ref().contains("lock file") => "; another process runs on it",
        (rocksdb::ErrorKind::Corruption, Kind::Log) => {
            "; the log is damaged, and a member whose log is damaged must join again under a new node id (`lockstep init --join` in a new home)"
        }
        (rocksdb::ErrorKind::Corruption, Kind::State) => {
            "; the state is damaged: `lockstep rebuild` makes it anew from the log or from another member"
        }
        _ => "",
    };
    StoreError::Open(format!("cannot open the store at {}: {}{out}", path.display(), error.into_string()))
}

impl RocksStorage {
    /// Makes an empty store.
    ///
    /// # Errors
    /// [`StoreError::Open`] with a sentence for the operator.
    pub fn create(path: &Path, kind: Kind) -> Result<Self, StoreError> {
        Self::open_or_create(path, kind, Sizes::from_environment()?)
    }

    /// Opens a store. A state store is made if there is none, since it follows from the log; a log store is not: a
    /// voter that lost its log must not go on as if it had never voted.
    ///
    /// # Errors
    /// [`StoreError::Open`] with a sentence for the operator: missing, in use, no room, damaged.
    pub fn open(path: &Path, kind: Kind) -> Result<Self, StoreError> {
        // Every RocksDB store has this file from its first moment on.
        if kind == Kind::Log && !path.join("CURRENT").exists() {
            return Err(StoreError::Open(format!(
                "there is no log at {}: this node's disk was lost; a member that lost its log must join under a new id (`lockstep init` in a new home)",
                path.display()
            )));
        }
        // What RocksDB would take for the trace of a crash, and drop, may be damage.
        if path.join("CURRENT").exists() {
            check_records(path).map_err(|e| StoreError::Open(format!("{e}. {}", way_out(kind))))?;
        }
        Self::open_or_create(path, kind, Sizes::from_environment()?)
    }

    /// Opens a store to look into it: nothing of it is changed, and nothing can be written.
    ///
    /// # Errors
    /// [`StoreError::Open`] where it is not a whole store.
    pub fn open_to_read(path: &Path, kind: Kind) -> Result<Self, StoreError> {
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        let mut options = Options::default();
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_paranoid_checks(true);
        recover_strictly(&mut options, kind);
        let forgetting = Forgetting::default();
        let families = families(kind, &cache, &forgetting, Sizes::default());
        let db =
            Db::open_cf_descriptors_read_only(&options, path, families, false).map_err(|e| opening(path, kind, e))?;
        Ok(Self { db, kind, forgetting })
    }

    /// Reads all blocks of the table files of a store that nobody has open, and compares their checksums.
    ///
    /// # Errors
    /// If a block is damaged, or cannot be read.
    pub fn verify_blocks(path: &Path, kind: Kind) -> Result<(), StoreError> {
        let names: Vec<&str> = tables(kind).iter().map(|table| table_name(*table)).collect();
        crate::blocks::verify_blocks(path, &names)
    }

    fn open_or_create(path: &Path, kind: Kind, sizes: Sizes) -> Result<Self, StoreError> {
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_max_background_jobs(2);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(4 << 20);
        options.set_bytes_per_sync(1 << 20);
        options.set_paranoid_checks(true);
        recover_strictly(&mut options, kind);
        match kind {
            Kind::Log => options.set_max_total_wal_size(WAL_BYTES_MAX),
            // Both tables reach the disk together, so that a crash never separates them.
            Kind::State => options.set_atomic_flush(true),
        }
        let forgetting = Forgetting::default();
        let families = families(kind, &cache, &forgetting, sizes);
        let db = Db::open_cf_descriptors(&options, path, families).map_err(|e| opening(path, kind, e))?;
        Ok(Self { db, kind, forgetting })
    }

    /// Writes a consistent copy to `path`, which must not exist yet. Files are linked where the disk can do that.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn checkpoint(&self, path: &Path) -> Result<(), StoreError> {
        let maker = rocksdb::checkpoint::Checkpoint::new(&self.db).map_err(failed)?;
        maker.create_checkpoint(path).map_err(failed)
    }

    /// Reads one value as it is on the disk: of a state store, what a crash at this moment leaves. Both tables reach the
    /// disk together, so what is read here of one table was written with what is on the disk of the other.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn get_durable(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::Persisted);
        Ok(self.db.get_cf_opt(&self.family(table)?, key, &options).map_err(failed)?.map(Bytes::from))
    }

    /// Removes what lies before these from a state store: batches at once, index records as RocksDB compacts. What
    /// certifies changes of the member set is never removed. Files go at once and for good, also those that the state on
    /// the disk still has in use: it must have forgotten what is in them ([`RocksStorage::get_durable`]).
    ///
    /// # Errors
    /// If the disk fails.
    pub fn forget_before(&self, height: Height, sequence: Sequence, task_number: TaskNumber) -> Result<(), StoreError> {
        self.forgetting.before(height, sequence, task_number);
        let ranges = [
            (vec![keys::BATCH], keys::batch(height)),
            (vec![keys::CERTIFICATE], keys::certificate(height)),
            (vec![keys::SEQUENCE], keys::first_sequence(sequence)),
            (vec![keys::TASK_NUMBER], keys::first_task(task_number)),
        ];
        let mut batch = WriteBatch::default();
        for (start, end) in ranges {
            batch.delete_range(Table::Chain, start, end);
        }
        self.write(batch, Durability::Buffered)?;
        // Whole files of what is forgotten go at once; the rest goes when it is compacted. The end counts in: a file that
        // ends with the batch at the horizon stays.
        let Some(last) = height.0.checked_sub(1).map(Height) else { return Ok(()) };
        let chain = self.family(Table::Chain)?;
        self.db.delete_file_in_range_cf(&chain, vec![keys::BATCH], keys::batch(last)).map_err(failed)
    }

    /// Bytes of the store's tables on disk.
    pub fn bytes_on_disk(&self) -> u64 {
        let bytes = |table: &Table| {
            let family = self.family(*table).ok()?;
            self.db.property_int_value_cf(&family, "rocksdb.live-sst-files-size").ok()?
        };
        tables(self.kind).iter().filter_map(bytes).sum()
    }

    fn family(&self, table: Table) -> Result<Arc<BoundColumnFamily<'_>>, StoreError> {
        let missing = || StoreError::Failed(format!("this store has no table {}", table_name(table)));
        self.db.cf_handle(table_name(table)).ok_or_else(missing)
    }
}

impl StateStorage for RocksStorage {
    fn checkpoint(&self, path: &Path) -> Result<(), StoreError> {
        self.checkpoint(path)
    }

    fn get_durable(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.get_durable(table, key)
    }

    fn forget_before(&self, height: Height, sequence: Sequence, task_number: TaskNumber) -> Result<(), StoreError> {
        self.forget_before(height, sequence, task_number)
    }

    fn bytes_on_disk(&self) -> u64 {
        self.bytes_on_disk()
    }
}

impl Storage for RocksStorage {
    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), StoreError> {
        let mut writes = rocksdb::WriteBatch::default();
        for operation in batch.operations {
            match operation {
                Operation::Put(table, key, value) => writes.put_cf(&self.family(table)?, key, value),
                Operation::Delete(table, key) => writes.delete_cf(&self.family(table)?, key),
                Operation::DeleteRange(table, start, end) => {
                    writes.delete_range_cf(&self.family(table)?, start, end);
                }
            }
        }
        let mut options = WriteOptions::default();
        match self.kind {
            Kind::Log => options.set_sync(durability == Durability::Synced),
            Kind::State => options.disable_wal(true),
        }
        self.db.write_opt(writes, &options).map_err(failed)?;
        if self.kind == Kind::State && durability == Durability::Synced {
            self.flush()?;
        }
        Ok(())
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.db.get_cf(&self.family(table)?, key).map_err(failed)?.map(Bytes::from))
    }

    fn get_many(&self, table: Table, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let values = self.db.batched_multi_get_cf(&self.family(table)?, keys, false);
        let owned = |value: Option<rocksdb::DBPinnableSlice<'_>>| value.map(|v| Bytes::copy_from_slice(&v));
        values.into_iter().map(|value| value.map(owned).map_err(failed)).collect()
    }

    fn scan(&self, scan: Scan) -> Result<Vec<Pair>, StoreError> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(scan.start.clone());
        options.set_iterate_upper_bound(scan.end.clone());
        let mode = match scan.direction {
            Direction::Up => IteratorMode::Start,
            Direction::Down => IteratorMode::End,
        };
        let (mut pairs, mut bytes) = (Vec::new(), 0);
        for pair in self.db.iterator_cf_opt(&self.family(scan.table)?, options, mode).take(scan.items_max) {
            let (key, value) = pair.map_err(failed)?;
            bytes += value.len();
            pairs.push((Bytes::from(key), Bytes::from(value)));
            if bytes >= scan.bytes_max {
                break;
            }
        }
        Ok(pairs)
    }

    fn flush(&self) -> Result<(), StoreError> {
        match self.kind {
            Kind::Log => self.db.flush_wal(true).map_err(failed),
            Kind::State => {
                let (chain, index) = (self.family(Table::Chain)?, self.family(Table::Index)?);
                self.db.flush_cfs_opt(&[&chain, &index], &rocksdb::FlushOptions::default()).map_err(failed)
            }
        }
    }

    fn approximate_bytes(&self, table: Table, start: &[u8], end: &[u8]) -> Result<u64, StoreError> {
        let ranges = [rocksdb::Range::new(start, end)];
        Ok(self.db.get_approximate_sizes_cf(&self.family(table)?, &ranges).into_iter().sum())
    }

    fn reclaim(&self, table: Table, first: &[u8], last: &[u8]) -> Result<(), StoreError> {
        let family = self.family(table)?;
        // Whole files first, which costs nothing; then what is left in files that reach beyond the range.
        self.db.delete_file_in_range_cf(&family, first, last).map_err(failed)?;
        let mut options = rocksdb::CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        self.db.compact_range_cf_opt(&family, Some(first), Some(last), &options);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &[u8], value: &'static [u8]) -> WriteBatch {
        let mut batch = WriteBatch::default();
        batch.put(Table::Index, key.to_vec(), value);
        batch
    }

    #[test]
    fn a_state_store_that_was_not_flushed_comes_back_whole_at_an_earlier_point() {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStorage::open(dir.path(), Kind::State).unwrap();
        store.write(put(b"a", b"1"), Durability::Buffered).unwrap();
        store.flush().unwrap();
        let mut both = put(b"b", b"2");
        both.put(Table::Chain, b"c".to_vec(), &b"3"[..]);
        store.write(both, Durability::Buffered).unwrap();
        assert!(store.get(Table::Chain, b"c").unwrap().is_some());
        let (_copy, after) = crashed(dir.path());
        assert_eq!(after.get(Table::Index, b"a").unwrap().unwrap(), &b"1"[..]);
        assert_eq!(after.get(Table::Index, b"b").unwrap(), after.get(Table::Chain, b"c").unwrap());
    }

    /// The files of a store as they are, without a closing flush: what a crash leaves.
    fn crashed(path: &Path) -> (tempfile::TempDir, RocksStorage) {
        let copy = tempfile::tempdir().unwrap();
        // First what names the table files: those are there as long as nobody removes files.
        for names in [true, false] {
            for file in std::fs::read_dir(path).unwrap().map(Result::unwrap) {
                let name = file.file_name().into_string().unwrap();
                if (name == "CURRENT" || name.starts_with("MANIFEST")) == names {
                    std::fs::copy(file.path(), copy.path().join(name)).unwrap();
                }
            }
        }
        let store = RocksStorage::open(copy.path(), Kind::State).unwrap();
        (copy, store)
    }

    const SMALL: Sizes = Sizes { write_buffer_bytes: 64 << 10, table_file_bytes: 8 << 10 };

    /// Bytes that cannot be compressed, as messages hardly can.
    fn noise(seed: u64, bytes: usize) -> Vec<u8> {
        let mut seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 16).to_be_bytes()
        };
        (0..bytes / 8).flat_map(|_| next()).collect()
    }

    #[test]
    fn what_is_durable_is_what_a_crash_leaves_in_both_tables() {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStorage::open_or_create(dir.path(), Kind::State, SMALL).unwrap();
        // Files are copied while they are used.
        store.db.disable_file_deletions().unwrap();
        let number = |value: Option<Bytes>| value.map(|value| u64::from_be_bytes(value[..].try_into().unwrap()));
        let durable = || number(store.get_durable(Table::Index, b"n").unwrap());
        let (mut changes, mut before) = (0, None);
        for n in 0..200_u64 {
            let mut batch = WriteBatch::default();
            batch.put(Table::Index, b"n".to_vec(), n.to_be_bytes().to_vec());
            batch.put(Table::Chain, keys::batch(Height(n)), noise(n, 4_000));
            store.write(batch, Durability::Buffered).unwrap();
            assert_eq!(number(store.get(Table::Index, b"n").unwrap()), Some(n));
            if n == 50 {
                store.flush().unwrap();
                assert_eq!(durable(), Some(50));
            }
            let now = durable();
            if now == before {
                continue;
            }
            // A write buffer was full, of the other table: what is read now is there after a crash, or more.
            (changes, before) = (changes + 1, now);
            let (_copy, after) = crashed(dir.path());
            let left = number(after.get(Table::Index, b"n").unwrap());
            assert!(left >= now, "{left:?} is there of {now:?}");
            assert!(after.get(Table::Chain, &keys::batch(Height(now.unwrap()))).unwrap().is_some());
        }
        assert!(changes > 3, "{changes} flushes");
    }

    #[test]
    fn files_of_what_is_forgotten_go_and_the_batch_at_the_horizon_stays_wherever_it_is() {
        const BATCHES: u64 = 24;
        let mut dropped = 0;
        for horizon in 1..=BATCHES {
            let dir = tempfile::tempdir().unwrap();
            let store = RocksStorage::open_or_create(dir.path(), Kind::State, SMALL).unwrap();
            for height in 1..=BATCHES {
                let mut batch = WriteBatch::default();
                batch.put(Table::Chain, keys::batch(Height(height)), noise(height, 3_000));
                store.write(batch, Durability::Buffered).unwrap();
            }
            store.flush().unwrap();
            // Only files that were compacted once are dropped.
            let mut options = rocksdb::CompactOptions::default();
            options.set_bottommost_level_compaction(rocksdb::BottommostLevelCompaction::Force);
            let chain = store.family(Table::Chain).unwrap();
            store.db.compact_range_cf_opt(&chain, None::<&[u8]>, None::<&[u8]>, &options);
            let below = || {
                let first_kept = keys::batch(Height(horizon));
                let files = store.db.live_files().unwrap().into_iter();
                files.filter(|file| file.end_key.as_ref().is_some_and(|end| *end < first_kept)).count()
            };
            let files = below();
            store.forget_before(Height(horizon), Sequence(0), TaskNumber(0)).unwrap();
            assert_eq!(below(), 0, "horizon {horizon}");
            dropped += files;
            for height in 1..=BATCHES {
                let is_there = store.get(Table::Chain, &keys::batch(Height(height))).unwrap().is_some();
                assert_eq!(is_there, height >= horizon, "batch {height} with horizon {horizon}");
            }
        }
        assert!(dropped > 20, "{dropped} files were dropped");
    }

    fn bytes_in(path: &Path) -> u64 {
        let files = std::fs::read_dir(path).unwrap().map(Result::unwrap);
        files.filter(|f| f.file_name() != "LOG").map(|f| f.metadata().unwrap().len()).sum()
    }

    #[test]
    fn deleted_log_entries_give_their_space_back_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStorage::create(dir.path(), Kind::Log).unwrap();
        let mut largest = 0;
        for round in 0..6_u64 {
            for index in round * 1000..(round + 1) * 1000 {
                let mut batch = WriteBatch::default();
                batch.put(Table::Log, crate::keys::log::entry(index), noise(index, 20_000));
                store.write(batch, Durability::Buffered).unwrap();
            }
            let (first, last) = (crate::keys::log::entry(0), crate::keys::log::entry((round + 1) * 1000 - 101));
            let mut batch = WriteBatch::default();
            batch.delete_range(Table::Log, first.clone(), crate::keys::log::entry((round + 1) * 1000 - 100));
            store.write(batch, Durability::Synced).unwrap();
            store.reclaim(Table::Log, &first, &last).unwrap();
            largest = largest.max(bytes_in(dir.path()));
            assert!(store.get(Table::Log, &last).unwrap().is_none());
            let kept = crate::keys::log::entry((round + 1) * 1000 - 100);
            assert_eq!(store.get(Table::Log, &kept).unwrap().unwrap().len(), 20_000);
        }
        // 120 MB were written, 2 MB are left.
        assert!(largest < 40 << 20, "{largest} bytes");
    }

    #[test]
    fn every_copy_made_under_load_holds_both_tables_at_one_point() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(RocksStorage::open(&dir.path().join("state"), Kind::State).unwrap());
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let writer = {
            let (store, stop) = (store.clone(), stop.clone());
            std::thread::spawn(move || {
                for n in 0_u64.. {
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                    let mut batch = WriteBatch::default();
                    batch.put(Table::Index, b"n".to_vec(), n.to_be_bytes().to_vec());
                    batch.put(Table::Chain, n.to_be_bytes().to_vec(), vec![7; 500]);
                    store.write(batch, Durability::Buffered).unwrap();
                }
            })
        };
        let mut last = 0;
        for round in 0..20 {
            let path = dir.path().join(format!("copy-{round}"));
            store.checkpoint(&path).unwrap();
            let copy = RocksStorage::open_to_read(&path, Kind::State).unwrap();
            let Some(n) = copy.get(Table::Index, b"n").unwrap() else { continue };
            let n = u64::from_be_bytes(n[..].try_into().unwrap());
            assert!(copy.get(Table::Chain, &n.to_be_bytes()).unwrap().is_some(), "{n} is in one table only");
            assert!(copy.get(Table::Chain, &(n + 1).to_be_bytes()).unwrap().is_none(), "{n} is not the newest");
            assert!(copy.write(put(b"x", b"1"), Durability::Buffered).is_err(), "a copy is not written to");
            assert!(n >= last);
            last = n;
        }
        assert!(last > 0);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().unwrap();
    }

    #[test]
    fn a_store_in_use_is_refused_with_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            RocksStorage::open(dir.path(), Kind::Log).err().unwrap().to_string().contains("must join under a new id")
        );
        let _first = RocksStorage::create(dir.path(), Kind::Log).unwrap();
        let error = RocksStorage::open(dir.path(), Kind::Log).err().unwrap();
        assert!(error.to_string().contains("cannot open the store"), "{error}");
    }
}
