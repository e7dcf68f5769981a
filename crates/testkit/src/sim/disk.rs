//! A node's disk: what was not synced is lost with the power, and a sync takes its time, fails, or finds no room.
//!
//! What was written since the last sync is kept apart, in order; a power loss leaves any number of those writes from the
//! beginning, each whole. That is what [`Durability::Buffered`] promises, and no more. What is forgotten goes out of what was
//! synced at once, some of it at a time, whatever becomes of the writes before: as files of a real disk do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use lockstep_consensus::runtime;
use lockstep_store::{
    Direction, Durability, Forgetting, LogWriter, Medium, Operation, Pair, QueuedWrites, Scan, StateStorage, Storage,
    StoreError, Table, WriteBatch, keys,
};
use lockstep_types::{Height, Sequence, TaskNumber};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::bugs::{Bug, Bugs};
use super::census::{self, Census};
use crate::random::Random;

/// The file of a copy of a state: a name that files of a RocksDB store have too.
const COPY_FILE: &str = "MANIFEST-000001";
/// A whole store has this one too.
const CURRENT_FILE: &str = "CURRENT";
/// Its name once it was read into a store.
const COPY_FILE_READ: &str = "read";

/// All keys of one store.
#[derive(Debug, Clone, Default)]
struct Tables {
    keys: [BTreeMap<Vec<u8>, Bytes>; 4],
    /// Of a block in which a bit has flipped: reading it fails, as its checksum does not fit, until it is written anew.
    damaged: BTreeSet<(usize, Vec<u8>)>,
}

fn place(table: Table) -> usize {
    match table {
        Table::Log => 0,
        Table::Chain => 1,
        Table::Index => 2,
        Table::Open => 3,
    }
}

impl Tables {
    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Put(table, key, value) => {
                self.mend(*table, key);
                self.keys[place(*table)].insert(key.clone(), value.clone());
            }
            Operation::Delete(table, key) => {
                self.mend(*table, key);
                self.keys[place(*table)].remove(key);
            }
            Operation::DeleteRange(table, start, end) if start < end => {
                let keys = &self.keys[place(*table)];
                let gone: Vec<Vec<u8>> = keys.range(start.clone()..end.clone()).map(|(key, _)| key.clone()).collect();
                for key in gone {
                    self.mend(*table, &key);
                    self.keys[place(*table)].remove(&key);
                }
            }
            Operation::DeleteRange(..) => {}
        }
    }

    fn mend(&mut self, table: Table, key: &[u8]) {
        if !self.damaged.is_empty() {
            self.damaged.remove(&(place(table), key.to_vec()));
        }
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.keys[place(table)].get_key_value(key) {
            Some((key, value)) => self.check(table, key).map(|()| Some(value.clone())),
            None => Ok(None),
        }
    }

    fn check(&self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        if !self.damaged.is_empty() && self.damaged.contains(&(place(table), key.to_vec())) {
            return Err(StoreError::Failed("Corruption: block checksum mismatch".into()));
        }
        Ok(())
    }

    fn encode(&self, leave_out: impl Fn(usize, &[u8]) -> bool) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, table) in self.keys.iter().enumerate() {
            for (key, value) in table.iter().filter(|(key, _)| !leave_out(number, key)) {
                out.push(u8::try_from(number).unwrap_or(u8::MAX));
                for part in [&key[..], &value[..]] {
                    out.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
                    out.extend(part);
                }
            }
        }
        out
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut tables = Self::default();
        while let Some((number, rest)) = bytes.split_first() {
            let (key, rest) = part(rest)?;
            let (value, rest) = part(rest)?;
            tables.keys.get_mut(usize::from(*number))?.insert(key.to_vec(), Bytes::copy_from_slice(value));
            bytes = rest;
        }
        Some(tables)
    }
}

fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(4)?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()?)
}

#[derive(Default)]
struct Store {
    current: Tables,
    durable: Tables,
    unsynced: VecDeque<Vec<Operation>>,
}

impl Store {
    fn sync(&mut self) {
        self.sync_but(|_| false);
    }

    /// Syncs all but these, which are lost with the power.
    fn sync_but(&mut self, is_lost: impl Fn(&Operation) -> bool) {
        for operation in self.unsynced.drain(..).flatten().filter(|operation| !is_lost(operation)) {
            self.durable.apply(&operation);
        }
    }

    /// Files of batches below `height` go, and compactions leave out records of the index: some of them, and out of what was
    /// synced.
    fn drop_forgotten(&mut self, forgetting: &Forgetting, height: Height, random: &mut Random) {
        let batches = self.durable.keys[place(Table::Chain)].range(vec![keys::BATCH]..keys::batch(height));
        let batches: Vec<Vec<u8>> = batches.map(|(key, _)| key.clone()).collect();
        let mut rest = &batches[..];
        while !rest.is_empty() {
            let (file, behind) = rest.split_at(1 + random.below(rest.len().min(FILE_BATCHES_MAX)));
            rest = behind;
            if random.below(2) == 0 {
                file.iter().for_each(|key| self.durable.apply(&Operation::Delete(Table::Chain, key.clone())));
            }
        }
        let index = &self.durable.keys[place(Table::Index)];
        let forgotten = index.iter().filter(|(key, value)| forgetting.is_forgotten(key, value));
        let mut forgotten: Vec<(Vec<u8>, Bytes)> = forgotten.map(|(key, value)| (key.clone(), value.clone())).collect();
        forgotten.retain(|_| random.below(2) == 0);
        for (key, value) in forgotten {
            // What was written anew since is in memory still.
            if self.current.keys[place(Table::Index)].get(&key) == Some(&value) {
                self.current.apply(&Operation::Delete(Table::Index, key.clone()));
            }
            self.durable.apply(&Operation::Delete(Table::Index, key));
        }
    }

    /// What a power loss leaves of it.
    fn lose_power(&mut self, random: &mut Random, waiting: Vec<WriteBatch>, tears: bool) {
        self.unsynced.extend(waiting.into_iter().map(WriteBatch::into_operations));
        let kept = if self.unsynced.is_empty() { 0 } else { random.below(self.unsynced.len() + 1) };
        let torn = self.unsynced.get(kept).filter(|_| tears).cloned().unwrap_or_default();
        for operation in self.unsynced.drain(..).take(kept).flatten() {
            self.durable.apply(&operation);
        }
        torn.iter().take(torn.len() / 2).for_each(|operation| self.durable.apply(operation));
        self.current = self.durable.clone();
    }
}

/// What is wrong with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// Syncs fail.
    SyncFails,
    /// Nothing more can be written.
    Full,
}

struct Inner {
    stores: BTreeMap<PathBuf, Store>,
    /// Counts power losses: who opened a store before one can use it no more.
    life: u64,
    trouble: Trouble,
    sync_time: Duration,
    random: Random,
    queue: Weak<QueuedWrites>,
    /// Where the state is that was opened last.
    state: Option<PathBuf>,
    /// Somebody came upon damage.
    noticed: bool,
}

/// A node's disk. Clones are the same disk; it outlives the node.
#[derive(Clone)]
pub struct Disk {
    inner: Arc<Mutex<Inner>>,
    bugs: Bugs,
}

/// Most batches of a file.
const FILE_BATCHES_MAX: usize = 8;
/// Keys of a block.
const BLOCK_KEYS: usize = 4;
/// How long a sync takes on a disk that is well.
const SYNC_TIME: Duration = Duration::from_millis(2);

impl Disk {
    /// An empty disk.
    pub fn new(seed: u64, bugs: Bugs) -> Self {
        let inner = Inner {
            stores: BTreeMap::new(),
            life: 0,
            trouble: Trouble::None,
            sync_time: SYNC_TIME,
            random: Random::new(seed),
            queue: Weak::new(),
            state: None,
            noticed: false,
        };
        Self { inner: Arc::new(Mutex::new(inner)), bugs }
    }

    /// Lets something be wrong with it from now on, or all be well.
    pub fn trouble(&self, trouble: Trouble) {
        self.inner.lock().trouble = trouble;
    }

    /// A sync takes this long from now on; `None`: as on a disk that is well.
    pub fn slow(&self, sync_time: Option<Duration>) {
        self.inner.lock().sync_time = sync_time.unwrap_or(SYNC_TIME);
    }

    /// The power goes: whoever has a store open can use it no more, and of what was not synced any number of writes from
    /// the beginning is there.
    pub fn lose_power(&self) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        inner.life += 1;
        let waiting = inner.queue.upgrade().map(|queue| queue.waiting()).unwrap_or_default();
        inner.queue = Weak::new();
        let (mut waiting, random) = (Some(waiting), &mut inner.random);
        for (path, store) in &mut inner.stores {
            let is_log = path.ends_with("log");
            let waiting = if is_log { waiting.take().unwrap_or_default() } else { Vec::new() };
            store.lose_power(random, waiting, self.bugs.has(Bug::TornWrites));
        }
    }

    /// The process ends, the machine goes on: what was written to the log is there, what the state had in memory is not.
    pub fn lose_process(&self) {
        if let Some(log) = self.inner.lock().stores.iter_mut().find(|(path, _)| path.ends_with("log")) {
            log.1.sync();
        }
        self.lose_power();
    }

    /// Everything on it is gone.
    pub fn wipe(&self) {
        let mut inner = self.inner.lock();
        inner.life += 1;
        inner.stores.clear();
    }

    /// A bit flips in something that was synced. RocksDB finds the block's checksum wrong when it reads it next.
    pub fn flip(&self) {
        let mut inner = self.inner.lock();
        let Inner { stores, random, .. } = &mut *inner;
        let Some(number) = stores.len().checked_sub(1) else { return };
        let Some(store) = stores.values_mut().nth(random.below(number + 1)) else { return };
        // What is served without a look at its sum is what stands there now, of which the state
        // store has hardly ever synced anything.
        let durable = if self.bugs.has(Bug::ServeFlipped) { &store.current.keys } else { &store.durable.keys };
        let filled: Vec<usize> = (0..durable.len()).filter(|table| !durable[*table].is_empty()).collect();
        if filled.is_empty() {
            return;
        }
        let table = filled[random.below(filled.len())];
        let first = random.below(durable[table].len());
        if self.bugs.has(Bug::ServeFlipped) {
            let Some((key, value)) = durable[table].iter().nth(first) else { return };
            let (key, mut value) = (key.clone(), value.to_vec());
            if !value.is_empty() {
                let at = random.below(value.len());
                value[at] ^= 1 << random.below(8);
            }
            let value = Bytes::from(value);
            if let Some(durable) = store.durable.keys[table].get_mut(&key) {
                *durable = value.clone();
            }
            store.current.keys[table].insert(key, value);
            return;
        }
        let block: Vec<Vec<u8>> = durable[table].keys().skip(first).take(BLOCK_KEYS).cloned().collect();
        for key in block {
            // What was written anew since is read from elsewhere.
            if store.current.keys[table].get(&key) == store.durable.keys[table].get(&key) {
                store.current.damaged.insert((table, key.clone()));
            }
            store.durable.damaged.insert((table, key));
        }
    }

    /// Whether there is something on it that cannot be read.
    pub fn is_damaged(&self) -> bool {
        let inner = self.inner.lock();
        inner.stores.values().any(|store| !store.current.damaged.is_empty() || !store.durable.damaged.is_empty())
    }

    /// Whether somebody came upon that.
    pub fn was_damage_noticed(&self) -> bool {
        self.inner.lock().noticed
    }

    /// What keys of the log and of the state are on it.
    pub fn census(&self) -> Census {
        let inner = self.inner.lock();
        let log = inner.stores.iter().find(|(path, _)| path.ends_with("log")).map(|(_, store)| store);
        let state = inner.state.as_ref().and_then(|path| inner.stores.get(path));
        let tables = [Table::Log, Table::Chain, Table::Index, Table::Open];
        let keys = [log, state].into_iter().flatten().flat_map(|store| {
            tables.into_iter().flat_map(|table| {
                store.durable.keys[place(table)].iter().map(move |(key, value)| (table, &key[..], &value[..]))
            })
        });
        census::count(keys)
    }

    fn open(&self, path: &Path) -> Result<Arc<OpenStore>, StoreError> {
        let file = path.join(COPY_FILE);
        let mut inner = self.inner.lock();
        if let Ok(bytes) = std::fs::read(&file) {
            let damaged = || StoreError::Open(format!("{}: the copy is damaged", path.display()));
            let durable = Tables::decode(&bytes).ok_or_else(damaged)?;
            let store = Store { current: durable.clone(), durable, unsynced: VecDeque::new() };
            inner.stores.insert(path.to_owned(), store);
            std::fs::rename(&file, path.join(COPY_FILE_READ)).map_err(|e| StoreError::Open(e.to_string()))?;
        }
        inner.stores.entry(path.to_owned()).or_default();
        Ok(Arc::new(OpenStore { disk: self.clone(), path: path.to_owned(), life: inner.life }))
    }
}

impl Medium for Disk {
    fn open_log(&self, path: &Path) -> Result<(Arc<dyn Storage>, LogWriter), StoreError> {
        let storage: Arc<dyn Storage> = self.open(path)?;
        let bell = Arc::new(Notify::new());
        let ring = bell.clone();
        let (writer, queue) = LogWriter::queued(storage.clone(), Box::new(move || ring.notify_one()));
        self.inner.lock().queue = Arc::downgrade(&queue);
        runtime::spawn(write_queued(self.clone(), queue, bell));
        Ok((storage, writer))
    }

    fn open_state(&self, path: &Path) -> Result<Arc<dyn StateStorage>, StoreError> {
        let store = self.open(path)?;
        self.inner.lock().state = Some(path.to_owned());
        Ok(store)
    }

    fn open_copy(&self, path: &Path) -> Result<Arc<dyn StateStorage>, StoreError> {
        let bytes = std::fs::read(path.join(COPY_FILE)).map_err(|e| StoreError::Open(e.to_string()))?;
        let damaged = || StoreError::Open(format!("{}: the copy is damaged", path.display()));
        Ok(Arc::new(Copy(Tables::decode(&bytes).ok_or_else(damaged)?)))
    }

    fn works_inline(&self) -> bool {
        true
    }
}

/// The writer of the log: as its thread, but that a sync takes simulated time.
async fn write_queued(disk: Disk, queue: Arc<QueuedWrites>, bell: Arc<Notify>) {
    loop {
        if queue.is_empty() {
            bell.notified().await;
            continue;
        }
        let sync_time = disk.inner.lock().sync_time;
        tokio::time::sleep(sync_time).await;
        queue.write_group();
    }
}

struct OpenStore {
    disk: Disk,
    path: PathBuf,
    life: u64,
}

impl OpenStore {
    /// Reads, and lets the operator know where that fails for what is on the disk.
    fn read<T>(&self, look: impl FnOnce(&Tables) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut noticed = false;
        let found = self.with(|store, _| {
            let found = look(&store.current);
            noticed = found.is_err();
            found
        });
        if noticed {
            self.disk.inner.lock().noticed = true;
        }
        found
    }

    fn with<T>(&self, look: impl FnOnce(&mut Store, Trouble) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut inner = self.disk.inner.lock();
        if inner.life != self.life {
            return Err(StoreError::Closed("the machine is off".into()));
        }
        let trouble = inner.trouble;
        let store = inner.stores.get_mut(&self.path);
        look(store.ok_or_else(|| StoreError::Failed("the store is gone".into()))?, trouble)
    }
}

/// What lies in a range.
fn scan_in(tables: &Tables, scan: Scan) -> Result<Vec<Pair>, StoreError> {
    if scan.start >= scan.end {
        return Ok(Vec::new());
    }
    let range = tables.keys[place(scan.table)].range(scan.start..scan.end);
    let pair = |(key, value): (&Vec<u8>, &Bytes)| (Bytes::copy_from_slice(key), value.clone());
    let mut bytes = 0;
    let mut more = |(_, value): &Pair| {
        let before = bytes;
        bytes += value.len();
        before < scan.bytes_max
    };
    let found: Vec<Pair> = match scan.direction {
        Direction::Up => range.map(pair).take(scan.items_max).take_while(&mut more).collect(),
        Direction::Down => range.rev().map(pair).take(scan.items_max).take_while(&mut more).collect(),
    };
    found.iter().try_for_each(|(key, _)| tables.check(scan.table, key))?;
    Ok(found)
}

fn is_vote(operation: &Operation) -> bool {
    matches!(operation, Operation::Put(Table::Log, key, _) if key == keys::log::VOTE)
}

impl Storage for OpenStore {
    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), StoreError> {
        let (lies, forgets_votes) = (self.disk.bugs.has(Bug::NoSync), self.disk.bugs.has(Bug::ReuseTermVote));
        self.with(|store, trouble| {
            if trouble == Trouble::Full {
                return Err(StoreError::Failed("no space left on device".into()));
            }
            let operations = batch.into_operations();
            operations.iter().for_each(|operation| store.current.apply(operation));
            store.unsynced.push_back(operations);
            match (durability, trouble) {
                (Durability::Buffered, _) => Ok(()),
                (Durability::Synced, Trouble::SyncFails) => Err(StoreError::Failed("a sync failed".into())),
                (Durability::Synced, _) => {
                    if !lies {
                        store.sync_but(|operation| forgets_votes && is_vote(operation));
                    }
                    Ok(())
                }
            }
        })
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.read(|tables| tables.get(table, key))
    }

    fn get_many(&self, table: Table, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.read(|tables| keys.iter().map(|key| tables.get(table, key)).collect())
    }

    fn scan(&self, scan: Scan) -> Result<Vec<Pair>, StoreError> {
        self.read(|tables| scan_in(tables, scan))
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.write(WriteBatch::default(), Durability::Synced)
    }

    fn approximate_bytes(&self, table: Table, start: &[u8], end: &[u8]) -> Result<u64, StoreError> {
        self.with(|store, _| {
            let range = store.current.keys[place(table)].range(start.to_vec()..end.to_vec());
            Ok(range.map(|(key, value)| (key.len() + value.len()) as u64).sum())
        })
    }

    fn reclaim(&self, _table: Table, _first: &[u8], _last: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }
}

impl StateStorage for OpenStore {
    fn checkpoint(&self, path: &Path) -> Result<(), StoreError> {
        let bugs = self.disk.bugs;
        let is_left_out = |table: usize, key: &[u8]| {
            let is_retry_index = bugs.has(Bug::ForgetRetries) && key.first() == Some(&keys::OCCURRENCE);
            let is_members = bugs.has(Bug::SnapshotWithoutMembers) && key == keys::MEMBERS;
            table == place(Table::Index) && (is_retry_index || is_members)
        };
        let bytes = self.with(|store, trouble| {
            if trouble != Trouble::None {
                return Err(StoreError::Failed("the disk fails".into()));
            }
            if !bugs.has(Bug::PurgeBeforeFlush) {
                store.sync();
            }
            Ok(store.current.encode(is_left_out))
        })?;
        let failed = |e: std::io::Error| StoreError::Failed(e.to_string());
        std::fs::create_dir_all(path).map_err(failed)?;
        std::fs::write(path.join(CURRENT_FILE), COPY_FILE).map_err(failed)?;
        std::fs::write(path.join(COPY_FILE), bytes).map_err(failed)
    }

    fn get_durable(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let forgets_early = self.disk.bugs.has(Bug::ForgetEarly);
        self.with(|store, _| if forgets_early { &store.current } else { &store.durable }.get(table, key))
    }

    fn forget_before(&self, height: Height, sequence: Sequence, task_number: TaskNumber) -> Result<(), StoreError> {
        if self.disk.bugs.has(Bug::KeepsAll) {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        let ranges = [
            (vec![keys::BATCH], keys::batch(height)),
            (vec![keys::CERTIFICATE], keys::certificate(height)),
            (vec![keys::SEQUENCE], keys::first_sequence(sequence)),
            (vec![keys::TASK_NUMBER], keys::first_task(task_number)),
        ];
        ranges.into_iter().for_each(|(start, end)| batch.delete_range(Table::Chain, start, end));
        self.write(batch, Durability::Buffered)?;
        let forgetting = Forgetting::default();
        forgetting.before(height, sequence, task_number);
        let mut inner = self.disk.inner.lock();
        let Inner { stores, random, .. } = &mut *inner;
        if let Some(store) = stores.get_mut(&self.path) {
            store.drop_forgotten(&forgetting, height, random);
        }
        Ok(())
    }

    fn bytes_on_disk(&self) -> u64 {
        let bytes =
            |tables: &Tables| tables.keys.iter().flatten().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        self.with(|store, _| Ok(bytes(&store.durable) as u64)).unwrap_or(0)
    }
}

/// A copy of a state, to look into.
struct Copy(Tables);

fn read_only() -> StoreError {
    StoreError::Failed("a copy is not written to".into())
}

impl Storage for Copy {
    fn write(&self, _batch: WriteBatch, _durability: Durability) -> Result<(), StoreError> {
        Err(read_only())
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.0.get(table, key)
    }

    fn get_many(&self, table: Table, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, StoreError> {
        keys.iter().map(|key| self.get(table, key)).collect()
    }

    fn scan(&self, scan: Scan) -> Result<Vec<Pair>, StoreError> {
        scan_in(&self.0, scan)
    }

    fn flush(&self) -> Result<(), StoreError> {
        Err(read_only())
    }

    fn approximate_bytes(&self, _table: Table, _start: &[u8], _end: &[u8]) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn reclaim(&self, _table: Table, _first: &[u8], _last: &[u8]) -> Result<(), StoreError> {
        Err(read_only())
    }
}

impl StateStorage for Copy {
    fn checkpoint(&self, _path: &Path) -> Result<(), StoreError> {
        Err(read_only())
    }

    fn get_durable(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.0.get(table, key)
    }

    fn forget_before(&self, _height: Height, _sequence: Sequence, _task: TaskNumber) -> Result<(), StoreError> {
        Err(read_only())
    }

    fn bytes_on_disk(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(store: &OpenStore, key: u8, durability: Durability) {
        let mut batch = WriteBatch::default();
        batch.put(Table::Index, vec![key], vec![key]);
        store.write(batch, durability).unwrap();
    }

    #[test]
    fn what_is_forgotten_goes_at_once_in_part_and_not_with_the_writes_before_it() {
        let (mut parts, heights) = (BTreeSet::new(), 1..=20);
        for seed in 0..20 {
            let disk = Disk::new(seed, Bugs::none());
            let store = disk.open(Path::new("state")).unwrap();
            let mut batch = WriteBatch::default();
            for height in heights.clone() {
                batch.put(Table::Chain, keys::batch(Height(height)), vec![1]);
                batch.put(Table::Index, keys::packed(Sequence(height)), vec![1]);
            }
            store.write(batch, Durability::Synced).unwrap();
            write(&store, 200, Durability::Buffered);
            store.forget_before(Height(15), Sequence(15), TaskNumber(15)).unwrap();
            assert!(store.get(Table::Chain, &keys::batch(Height(14))).unwrap().is_none());
            disk.inner.lock().stores.get_mut(Path::new("state")).unwrap().unsynced.clear();
            disk.lose_power();
            let store = disk.open(Path::new("state")).unwrap();
            assert!(store.get(Table::Index, &[200]).unwrap().is_none(), "it was not synced");
            let has = |table, key: Vec<u8>| store.get(table, &key).unwrap().is_some();
            let left = |height: &u64| {
                has(Table::Chain, keys::batch(Height(*height))) && has(Table::Index, keys::packed(Sequence(*height)))
            };
            assert!((15..=20).all(|height| left(&height)));
            parts.insert((1..15).filter(left).count());
        }
        assert!(parts.len() > 3 && !parts.contains(&14), "{parts:?}");
    }

    #[test]
    fn a_power_loss_leaves_what_was_synced_and_a_beginning_of_the_rest() {
        for seed in 0..20 {
            let disk = Disk::new(seed, Bugs::none());
            let store = disk.open(Path::new("state")).unwrap();
            write(&store, 1, Durability::Buffered);
            store.flush().unwrap();
            (2..6).for_each(|key| write(&store, key, Durability::Buffered));
            disk.lose_power();
            assert!(store.get(Table::Index, &[1]).is_err(), "who had it open has it no more");
            let store = disk.open(Path::new("state")).unwrap();
            let there: Vec<bool> = (1..6).map(|key| store.get(Table::Index, &[key]).unwrap().is_some()).collect();
            assert!(there[0]);
            assert!(there.is_sorted_by(|a, b| a >= b), "{there:?}");
        }
    }

    #[test]
    fn a_flipped_bit_is_an_error_until_it_is_written_anew() {
        let disk = Disk::new(3, Bugs::none());
        let store = disk.open(Path::new("state")).unwrap();
        write(&store, 1, Durability::Synced);
        disk.flip();
        assert!(disk.is_damaged() && !disk.was_damage_noticed());
        assert!(store.get(Table::Index, &[1]).is_err());
        assert!(store.get(Table::Index, &[2]).unwrap().is_none());
        assert!(disk.was_damage_noticed());
        write(&store, 1, Durability::Buffered);
        assert!(store.get(Table::Index, &[1]).is_ok(), "read from memory");
        disk.lose_power();
        let store = disk.open(Path::new("state")).unwrap();
        write(&store, 1, Durability::Synced);
        assert!(store.get(Table::Index, &[1]).is_ok() && !disk.is_damaged());
    }

    #[test]
    fn a_copy_is_a_store_again() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(1, Bugs::none());
        let store = disk.open(Path::new("state")).unwrap();
        write(&store, 1, Durability::Buffered);
        store.checkpoint(&dir.path().join("copy")).unwrap();
        let copy = disk.open_copy(&dir.path().join("copy")).unwrap();
        assert_eq!(copy.get(Table::Index, &[1]).unwrap().as_deref(), Some(&[1][..]));
        let again = disk.open_state(&dir.path().join("copy")).unwrap();
        write(&store, 2, Durability::Buffered);
        assert_eq!(again.get(Table::Index, &[1]).unwrap().as_deref(), Some(&[1][..]));
        assert_eq!(again.get(Table::Index, &[2]).unwrap(), None);
    }
}
