//! What stores are kept on: where a node's log and state are opened, and how work that blocks for them is done.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_types::{Height, Sequence, TaskNumber};

use crate::rocks::{Kind, RocksStorage};
use crate::storage::{Storage, StoreError, Table};
use crate::writer::LogWriter;

/// A node's state: as [`Storage`], and it can be copied as a whole.
pub trait StateStorage: Storage {
    /// Writes a consistent copy to the directory `path`, which must not exist yet; what is in it is on the disk, and in
    /// the store on the disk too. The names of its files are those of a RocksDB store.
    fn checkpoint(&self, path: &Path) -> Result<(), StoreError>;

    /// Reads one value as it is on the disk: what a crash at this moment leaves, in all tables together.
    fn get_durable(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Removes what lies before these. What certifies changes of the member set is never removed, nor the batch at
    /// `height`. Part of it goes at once and for good, out of the state on the disk too, whatever becomes of writes before
    /// it: that state must have forgotten it.
    fn forget_before(&self, height: Height, sequence: Sequence, task_number: TaskNumber) -> Result<(), StoreError>;

    /// Bytes on disk.
    fn bytes_on_disk(&self) -> u64;
}

/// Opens stores.
pub trait Medium: Send + Sync + 'static {
    /// The log at `path`, which is there, with the one writer of what must be synced.
    fn open_log(&self, path: &Path) -> Result<(Arc<dyn Storage>, LogWriter), StoreError>;

    /// The state at `path`; an empty one where there is none.
    fn open_state(&self, path: &Path) -> Result<Arc<dyn StateStorage>, StoreError>;

    /// A copy of a state at `path`, to look into it.
    fn open_copy(&self, path: &Path) -> Result<Arc<dyn StateStorage>, StoreError>;

    /// Whether work that blocks is done where it is asked for, and not on a thread of its own: in a simulation, where
    /// nothing may run beside it.
    fn works_inline(&self) -> bool;
}

/// RocksDB, on the machine's disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct RocksMedium;

impl Medium for RocksMedium {
    fn open_log(&self, path: &Path) -> Result<(Arc<dyn Storage>, LogWriter), StoreError> {
        let storage: Arc<dyn Storage> = Arc::new(RocksStorage::open(path, Kind::Log)?);
        let writer = LogWriter::spawn(storage.clone())?;
        Ok((storage, writer))
    }

    fn open_state(&self, path: &Path) -> Result<Arc<dyn StateStorage>, StoreError> {
        Ok(Arc::new(RocksStorage::open(path, Kind::State)?))
    }

    fn open_copy(&self, path: &Path) -> Result<Arc<dyn StateStorage>, StoreError> {
        Ok(Arc::new(RocksStorage::open_to_read(path, Kind::State)?))
    }

    fn works_inline(&self) -> bool {
        false
    }
}
