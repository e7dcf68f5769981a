//! [`Storage`] in memory, with a power switch: what was not synced is lost when it is turned off.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::storage::{Direction, Durability, Operation, Pair, Scan, Storage, StoreError, Table, WriteBatch};

type Data = BTreeMap<(Table, Vec<u8>), Bytes>;

#[derive(Debug, Default)]
struct State {
    current: Data,
    durable: Data,
    fail_syncs: bool,
}

/// For tests and simulation.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    state: Mutex<State>,
}

fn apply(data: &mut Data, operation: Operation) {
    match operation {
        Operation::Put(table, key, value) => {
            data.insert((table, key), value);
        }
        Operation::Delete(table, key) => {
            if let Entry::Occupied(entry) = data.entry((table, key)) {
                entry.remove();
            }
        }
        Operation::DeleteRange(table, start, end) => {
            data.retain(|(t, key), _| *t != table || *key < start || *key >= end);
        }
    }
}

impl MemoryStorage {
    /// What is there after a power loss: everything up to the last sync.
    pub fn after_power_loss(&self) -> Self {
        let durable = self.state.lock().durable.clone();
        let state = State { current: durable.clone(), durable, fail_syncs: false };
        Self { state: Mutex::new(state) }
    }

    /// Lets every sync from now on fail, or succeed again.
    pub fn fail_syncs(&self, fail: bool) {
        self.state.lock().fail_syncs = fail;
    }
}

impl Storage for MemoryStorage {
    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        for operation in batch.operations {
            apply(&mut state.current, operation);
        }
        if durability == Durability::Synced {
            if state.fail_syncs {
                return Err(StoreError::Failed("simulated failure of a sync".into()));
            }
            state.durable = state.current.clone();
        }
        Ok(())
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.state.lock().current.get(&(table, key.to_vec())).cloned())
    }

    fn get_many(&self, table: Table, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, StoreError> {
        keys.iter().map(|key| self.get(table, key)).collect()
    }

    fn scan(&self, scan: Scan) -> Result<Vec<Pair>, StoreError> {
        if scan.start >= scan.end {
            return Ok(Vec::new());
        }
        let state = self.state.lock();
        let range = state.current.range((scan.table, scan.start)..(scan.table, scan.end));
        let pair = |((_, key), value): (&(Table, Vec<u8>), &Bytes)| (Bytes::copy_from_slice(key), value.clone());
        let mut bytes = 0;
        let mut more = |(_, value): &Pair| {
            let before = bytes;
            bytes += value.len();
            before < scan.bytes_max
        };
        Ok(match scan.direction {
            Direction::Up => range.map(pair).take(scan.items_max).take_while(&mut more).collect(),
            Direction::Down => range.rev().map(pair).take(scan.items_max).take_while(&mut more).collect(),
        })
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.write(WriteBatch::default(), Durability::Synced)
    }

    fn approximate_bytes(&self, table: Table, start: &[u8], end: &[u8]) -> Result<u64, StoreError> {
        let state = self.state.lock();
        let range = state.current.range((table, start.to_vec())..(table, end.to_vec()));
        Ok(range.map(|((_, key), value)| (key.len() + value.len()) as u64).sum())
    }

    fn reclaim(&self, _table: Table, _first: &[u8], _last: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }
}
