//! The port that a node's log and state are written through.

use bytes::Bytes;

/// A read or write failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk or the database failed. Nothing more may be written; an operator must look.
    #[error("storage failed: {0}")]
    Failed(String),
    /// An earlier sync failed, so that nobody knows what is on the disk: writes are refused until a restart.
    #[error("storage is closed for writes after a failed sync: {0}")]
    Closed(String),
    /// The directory is not a store, is in use, or belongs to something else.
    #[error("{0}")]
    Open(String),
}

/// A key space of its own, tuned for how it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// The raft log and vote: appended in order, synced.
    Log,
    /// Batches by height, with places by sequence and task number: appended in order, large values.
    Chain,
    /// Places of contents, messages and tasks by hash, and small state: random keys, small values.
    Index,
    /// Open groups and the messages in them: written and deleted all the time, few at any time, and read as a whole.
    Open,
}

/// When a batch of writes survives a power loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// When the call returns.
    Synced,
    /// Some time later, in order: after a power loss a prefix of the buffered batches is there, each of them whole.
    Buffered,
}

/// A key and its value.
pub type Pair = (Bytes, Bytes);

/// Writes that happen together or not at all.
#[derive(Debug, Clone, Default)]
pub struct WriteBatch {
    pub(crate) operations: Vec<Operation>,
}

/// One write of a batch.
#[derive(Debug, Clone)]
pub enum Operation {
    /// Sets a key.
    Put(Table, Vec<u8>, Bytes),
    /// Removes a key.
    Delete(Table, Vec<u8>),
    /// Removes all keys from the first up to, but without, the second.
    DeleteRange(Table, Vec<u8>, Vec<u8>),
}

impl WriteBatch {
    /// An empty batch with room for `operations`.
    pub fn with_capacity(operations: usize) -> Self {
        Self { operations: Vec::with_capacity(operations) }
    }

    /// Sets a key.
    pub fn put(&mut self, table: Table, key: Vec<u8>, value: impl Into<Bytes>) {
        self.operations.push(Operation::Put(table, key, value.into()));
    }

    /// Removes a key.
    pub fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.operations.push(Operation::Delete(table, key));
    }

    /// Removes all keys from `start` up to, but without, `end`.
    pub fn delete_range(&mut self, table: Table, start: Vec<u8>, end: Vec<u8>) {
        self.operations.push(Operation::DeleteRange(table, start, end));
    }

    /// Adds another batch's writes behind this one's.
    pub fn append(&mut self, mut other: Self) {
        self.operations.append(&mut other.operations);
    }

    /// Its writes, in order.
    pub fn into_operations(self) -> Vec<Operation> {
        self.operations
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}

/// Order of a [`Scan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From `start` upwards.
    Up,
    /// From `end` downwards.
    Down,
}

/// A range of keys to read: from `start` up to, but without, `end`.
#[derive(Debug, Clone)]
pub struct Scan {
    /// Which key space.
    pub table: Table,
    /// First key.
    pub start: Vec<u8>,
    /// First key that is not read.
    pub end: Vec<u8>,
    /// Order.
    pub direction: Direction,
    /// Most pairs.
    pub items_max: usize,
    /// Stop after the pair that reaches this many bytes of values; at least one pair is read.
    pub bytes_max: usize,
}

/// Atomic, ordered writes. Reads see all writes that returned before them.
pub trait Storage: Send + Sync + 'static {
    /// Writes a batch. Blocks for the disk where it is [`Durability::Synced`].
    ///
    /// # Errors
    /// After an error of a synced write it is unknown whether the batch is on disk.
    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), StoreError>;

    /// Reads one value.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Reads many values of one table, in the order of `keys`.
    fn get_many(&self, table: Table, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, StoreError>;

    /// Reads a range.
    fn scan(&self, scan: Scan) -> Result<Vec<Pair>, StoreError>;

    /// Makes all earlier buffered writes survive a power loss.
    fn flush(&self) -> Result<(), StoreError>;

    /// About how many bytes of disk a range of keys takes. Of what was just written nothing may be counted yet.
    fn approximate_bytes(&self, table: Table, start: &[u8], end: &[u8]) -> Result<u64, StoreError>;

    /// Gives the disk back what the keys from `first` to `last`, all of them deleted before, still take. May take a
    /// while; reads and writes go on.
    fn reclaim(&self, table: Table, first: &[u8], last: &[u8]) -> Result<(), StoreError>;
}
