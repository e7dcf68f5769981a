//! [`Storage`] on RocksDB.

use std::path::Path;

use bytes::Bytes;
use lockstep_types::{Height, Sequence, TaskNumber};
use rocksdb::{
    BoundColumnFamily, Cache, DBRecoveryMode, DBWithThreadMode, IteratorMode, MultiThreaded, Options, ReadOptions,
    ReadTier, WriteOptions,
};
use std::sync::Arc;

use crate::forget::Forgetting;
use crate::keys;
use crate::medium::StateStorage;
use crate::records::check_records;
use crate::sizes::Sizes;
use crate::storage::{Direction, Durability, Operation, Pair, Scan, Storage, StoreError, Table, WriteBatch};
use crate::synced::{SYNCED_FILE, Synced, noted};
use crate::tables::{families, table_name, tables};

type Db = DBWithThreadMode<MultiThreaded>;

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
    /// Of a log that is written to.
    synced: Option<Synced>,
}

fn failed(error: rocksdb::Error) -> StoreError {
    StoreError::Failed(error.into_string())
}

/// A last write that is not whole is left out, and nothing else: what else could be is found by [`check_records`] before,
/// and by [`has_what_was_synced`] after that.
fn recover_strictly(options: &mut Options, kind: Kind) {
    if kind == Kind::Log {
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
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

/// Whether the last write that is known to have been synced is there.
fn has_what_was_synced(db: &Db, path: &Path) -> Result<(), StoreError> {
    let synced = noted(path).map_err(|e| StoreError::Open(format!("{}: {e}", path.join(SYNCED_FILE).display())))?;
    let newest = db.latest_sequence_number();
    if newest >= synced {
        return Ok(());
    }
    Err(StoreError::Open(format!(
        "the log at {} lacks what was synced: it ends with write {newest}, and write {synced} had been synced. {}",
        path.display(),
        way_out(Kind::Log)
    )))
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
        if kind == Kind::Log {
            has_what_was_synced(&db, path)?;
        }
        Ok(Self { db, kind, forgetting, synced: None })
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
            // All tables reach the disk together, so that a crash never separates them.
            Kind::State => options.set_atomic_flush(true),
        }
        let forgetting = Forgetting::default();
        let families = families(kind, &cache, &forgetting, sizes);
        let db = Db::open_cf_descriptors(&options, path, families).map_err(|e| opening(path, kind, e))?;
        let mut synced = None;
        if kind == Kind::Log {
            has_what_was_synced(&db, path)?;
            synced =
                Some(Synced::open(path).map_err(|e| {
                    StoreError::Open(format!("cannot write to {}: {e}", path.join(SYNCED_FILE).display()))
                })?);
        }
        Ok(Self { db, kind, forgetting, synced })
    }

    /// Writes a consistent copy to `path`, which must not exist yet. Files are linked where the disk can do that.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn checkpoint(&self, path: &Path) -> Result<(), StoreError> {
        let maker = rocksdb::checkpoint::Checkpoint::new(&self.db).map_err(failed)?;
        maker.create_checkpoint(path).map_err(failed)
    }

    /// Reads one value as it is on the disk: of a state store, what a crash at this moment leaves. All tables reach the
    /// disk together, so what is read here of one table was written with what is on the disk of the others.
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
        if let Some(synced) = self.synced.as_ref().filter(|_| durability == Durability::Synced) {
            let noted = synced.note(self.db.latest_sequence_number());
            noted.map_err(|e| StoreError::Failed(format!("the note of what was synced: {e}")))?;
        }
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
                let families = tables(self.kind).iter().map(|table| self.family(*table));
                let families = families.collect::<Result<Vec<_>, _>>()?;
                let families: Vec<_> = families.iter().collect();
                self.db.flush_cfs_opt(&families, &rocksdb::FlushOptions::default()).map_err(failed)
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
#[path = "rocks_tests.rs"]
mod tests;
