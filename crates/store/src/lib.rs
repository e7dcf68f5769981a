//! Where a node keeps its log and its state.
//!
//! [`Storage`] is the port: atomic batches of writes, each either synced or buffered. [`RocksStorage`] keeps it on
//! disk, [`MemoryStorage`] in memory with a power switch, for tests and simulation. [`LogWriter`] is the one writer
//! of what must be synced: it groups what waits into one sync, and stops for good when a sync fails. [`Pending`] says
//! since when something waits for a disk.
//! A [`Medium`] opens all of them. All keys are in [`keys`].

mod blocks;
mod crc32c;
pub mod disk;
mod forget;
pub mod home;
pub mod keys;
pub mod lock;
mod medium;
mod memory;
mod pending;
pub mod records;
mod rocks;
mod sizes;
mod storage;
mod synced;
mod tables;
mod writer;

pub use forget::Forgetting;
pub use medium::{Medium, RocksMedium, StateStorage};
pub use memory::MemoryStorage;
pub use pending::{Pending, UnderWay};
pub use rocks::{Kind, RocksStorage};
pub use storage::{Direction, Durability, Operation, Pair, Scan, Storage, StoreError, Table, WriteBatch};
pub use writer::{LogWriter, NoteMaker, QueuedWrites, WriteDone};
