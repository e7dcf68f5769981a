//! What follows from the log, on [`Storage`]: one write an entry, and the reads that the ledger and the node's
//! interfaces need. Clones share the store.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lockstep_ledger::{
    Device, Gap, Grant, GroupKey, Head, HighestNonce, History, Horizon, LastTaken, Members, Nonce, Occurrence,
    OpenGroup, OutputState, OutputStates, Standing, Waiting, Write,
};
use lockstep_rules::RulesError;
use lockstep_store::home::StoreHome;
use lockstep_store::{
    Direction, Durability, Medium, Pair, Pending, RocksMedium, Scan, StateStorage, StoreError, Table, WriteBatch, keys,
};
use lockstep_types::{
    Address, Batch, BatchHeader, Certificate, ContentId, DecodeError, Epoch, Height, MessageId, NetworkId, OutputName,
    Place, ProjectId, Sequence, Task, TaskId, TaskNumber, proto,
};
use parking_lot::{Mutex, RwLock};
use prost::Message as _;

use crate::blocking::Blocking;
use crate::convert::{decode_stored_membership, encode_stored_membership, log_id_from, log_id_to};
use crate::raft_types::{LogId, StoredMembership};
use crate::shelf::{Shelf, SnapshotDirectory};
use crate::snapshot::SnapshotMeta;
use crate::writes::put;

mod registry;

/// State could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record is not what was written.
    #[error("a stored record is damaged: {0}; stop the node and run `lockstep rebuild`")]
    Damaged(#[from] DecodeError),
    /// Rules of a project cannot be used.
    #[error("rules of a project, which the network uses, cannot be used by this program: {0}; upgrade it")]
    Rules(RulesError),
    /// The state belongs to another epoch than the home.
    #[error(
        "the state is of epoch {found}, epoch.json says {expected}: store/ and epoch.json of a home belong together; put the right ones back, or run `lockstep recover` again where it was interrupted"
    )]
    Epoch {
        /// Epoch of the state.
        found: Epoch,
        /// Epoch of the home.
        expected: Epoch,
    },
}

/// Most groups and outputs that are loaded at start; the network's own limits are below.
const LOAD_ITEMS_MAX: usize = 10_000_000;

/// See the module's documentation.
#[derive(Clone)]
pub struct StateStore {
    home: StoreHome,
    medium: Arc<dyn Medium>,
    /// Replaced as a whole when a snapshot is installed.
    storage: Arc<RwLock<Arc<dyn StateStorage>>>,
    copies: Arc<Copies>,
    applying: Pending,
    flushing: Pending,
}

/// Copies of the state, and what keeps the making of one and the change to another state apart.
#[derive(Default)]
struct Copies {
    shelf: Shelf,
    changing: Mutex<()>,
    made: AtomicU64,
}

pub(crate) fn number(bytes: &[u8]) -> Result<u64, DecodeError> {
    Ok(u64::from_be_bytes(bytes.try_into().map_err(|_| DecodeError::malformed("number", "not 8 bytes"))?))
}

impl StateStore {
    /// Opens the state of a node.
    ///
    /// # Errors
    /// With a sentence for the operator.
    pub fn open(home: &StoreHome) -> Result<Self, StoreError> {
        Self::open_on(home, Arc::new(RocksMedium))
    }

    /// As [`StateStore::open`], on another medium. The log of the node is on the same.
    ///
    /// # Errors
    /// With a sentence for the operator.
    pub fn open_on(home: &StoreHome, medium: Arc<dyn Medium>) -> Result<Self, StoreError> {
        let storage = medium.open_state(&home.state_path()?)?;
        // Only now: an open state is locked against a second process on this home.
        home.remove_leftovers()?;
        Ok(Self::of(home, medium, storage))
    }

    fn of(home: &StoreHome, medium: Arc<dyn Medium>, storage: Arc<dyn StateStorage>) -> Self {
        Self {
            home: home.clone(),
            medium,
            storage: Arc::new(RwLock::new(storage)),
            copies: Arc::default(),
            applying: Pending::default(),
            flushing: Pending::default(),
        }
    }

    /// Opens the state of a stopped node to look into it; nothing is changed.
    ///
    /// # Errors
    /// If there is none, or it is damaged.
    pub fn open_to_read(home: &StoreHome) -> Result<Self, StoreError> {
        Self::open_copy(home, &home.state_path()?)
    }

    /// Opens a copy of a state that lies elsewhere, to look into it, in the name of a node with this home. Nothing is
    /// changed.
    ///
    /// # Errors
    /// If it is not a whole copy.
    pub fn open_copy(home: &StoreHome, path: &Path) -> Result<Self, StoreError> {
        let storage = RocksMedium.open_copy(path)?;
        Ok(Self::of(home, Arc::new(RocksMedium), storage))
    }

    /// Groups that are not yet tasks.
    pub fn open_groups(&self) -> Result<Vec<(GroupKey, OpenGroup)>, ReadError> {
        self.groups()
    }

    /// Index of the newest applied log entry.
    pub fn applied_index(&self) -> Result<Option<u64>, ReadError> {
        Ok(self.applied()?.0.map(|id| id.index))
    }

    pub(crate) fn shelf(&self) -> &Shelf {
        &self.copies.shelf
    }

    pub(crate) fn home(&self) -> &StoreHome {
        &self.home
    }

    pub(crate) fn storage(&self) -> Arc<dyn StateStorage> {
        self.storage.read().clone()
    }

    /// What this node's stores are kept on.
    pub(crate) fn medium(&self) -> &Arc<dyn Medium> {
        &self.medium
    }

    /// How work that blocks for the store is done.
    pub fn blocking(&self) -> Blocking {
        if self.medium.works_inline() { Blocking::Inline } else { Blocking::Threads }
    }

    /// The entry that is being applied.
    pub(crate) fn applying(&self) -> &Pending {
        &self.applying
    }

    /// What is being synced of the state.
    pub(crate) fn flushing(&self) -> &Pending {
        &self.flushing
    }

    /// Stores everything that one entry changed, together with its position.
    pub(crate) fn write(
        &self,
        applied: &LogId,
        membership: Option<&StoredMembership>,
        writes: &[Write],
    ) -> Result<(), StoreError> {
        let mut batch = WriteBatch::with_capacity(writes.len() + 4);
        for write in writes {
            put(&mut batch, write);
        }
        batch.put(Table::Index, keys::APPLIED.to_vec(), log_id_to(applied).encode_to_vec());
        if let Some(membership) = membership {
            batch.put(Table::Index, keys::MEMBERSHIP.to_vec(), encode_stored_membership(membership));
        }
        self.storage().write(batch, Durability::Buffered)
    }

    /// Writes what is in memory to disk, so that a restart has nothing to apply again.
    pub fn flush(&self) -> Result<(), StoreError> {
        let _under_way = self.flushing.begin();
        self.storage().flush()
    }

    pub(crate) fn applied(&self) -> Result<(Option<LogId>, StoredMembership), ReadError> {
        applied_in(&*self.storage())
    }

    /// The ledger's head; `None` before the first batch.
    pub fn head(&self) -> Result<Option<Head>, ReadError> {
        Ok(self.storage().get(Table::Index, keys::HEAD)?.map(Head::decode).transpose()?)
    }

    /// The epoch that the state belongs to; `None` in a state in which nothing was applied yet.
    pub fn epoch(&self) -> Result<Option<Epoch>, ReadError> {
        let (storage, record) = (self.storage(), self.storage().get(Table::Index, keys::EPOCH)?);
        match record {
            Some(record) => Ok(Some(Epoch(number(&record)?))),
            None => Ok(applied_in(&*storage)?.0.map(|_| Epoch(0))),
        }
    }

    /// Makes this the state that an epoch begins with, in one synced write.
    pub(crate) fn begin_epoch(
        &self,
        epoch: Epoch,
        (head, members): (&Head, &Members),
        (applied, membership): (&LogId, &StoredMembership),
    ) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        put(&mut batch, &Write::Members(Box::new(members.clone())));
        put(&mut batch, &Write::Head(head.clone()));
        batch.put(Table::Index, keys::EPOCH.to_vec(), Bytes::copy_from_slice(&epoch.0.to_be_bytes()));
        batch.put(Table::Index, keys::APPLIED.to_vec(), log_id_to(applied).encode_to_vec());
        batch.put(Table::Index, keys::MEMBERSHIP.to_vec(), encode_stored_membership(membership));
        self.storage().write(batch, Durability::Synced)
    }

    fn load(&self, table: Table, prefix: u8) -> Result<Vec<Pair>, StoreError> {
        self.storage().scan(Scan {
            table,
            start: vec![prefix],
            end: keys::end_of(prefix),
            direction: Direction::Up,
            items_max: LOAD_ITEMS_MAX,
            bytes_max: usize::MAX,
        })
    }

    pub(crate) fn groups(&self) -> Result<Vec<(GroupKey, OpenGroup)>, ReadError> {
        let records = self.load(Table::Open, keys::GROUP)?.into_iter().map(|(_, record)| record);
        let waiting = |(key, record): Pair| Ok((Sequence(number(&key[1..])?), Waiting::decode(&record)?));
        let waiting =
            self.load(Table::Open, keys::WAITING)?.into_iter().map(waiting).collect::<Result<Vec<_>, ReadError>>()?;
        Ok(OpenGroup::decode_all(records, waiting)?)
    }

    /// The members; `None` before the first change of them.
    pub fn members(&self, network: &NetworkId) -> Result<Option<Members>, ReadError> {
        let record = self.storage().get(Table::Index, keys::MEMBERS)?;
        Ok(record.map(|record| Members::decode(record, network)).transpose()?)
    }

    /// The first certificate at or above a height.
    pub fn certificate_from(&self, height: Height) -> Result<Option<Certificate>, ReadError> {
        let found = self.storage().scan(Scan {
            table: Table::Chain,
            start: keys::certificate(height),
            end: keys::end_of(keys::CERTIFICATE),
            direction: Direction::Up,
            items_max: 1,
            bytes_max: usize::MAX,
        })?;
        Ok(found.into_iter().next().map(|(_, record)| Certificate::decode(record)).transpose()?)
    }

    /// Every batch after which the member set changed, from a height on, with its certificate where it has one yet.
    pub fn boundaries(&self, from: Height, items_max: usize) -> Result<Vec<(Batch, Option<Certificate>)>, ReadError> {
        let storage = self.storage();
        let batches = storage.scan(Scan {
            table: Table::Chain,
            start: keys::boundary(from),
            end: keys::end_of(keys::BOUNDARY),
            direction: Direction::Up,
            items_max,
            bytes_max: usize::MAX,
        })?;
        let with_certificate = |(_, record): Pair| {
            let batch = Batch::decode(record)?;
            let certificate = storage.get(Table::Chain, &keys::boundary_certificate(batch.header.height))?;
            Ok((batch, certificate.map(Certificate::decode).transpose()?))
        };
        batches.into_iter().map(with_certificate).collect()
    }

    /// Tasks that an output never got, because they were forgotten before it had them.
    pub fn gaps(&self, output: &OutputName) -> Result<Vec<Gap>, ReadError> {
        let start = keys::gap(output, TaskNumber(0));
        let end = keys::gap(output, TaskNumber(u64::MAX));
        let (table, direction) = (Table::Index, Direction::Up);
        let pairs =
            self.storage().scan(Scan { table, start, end, direction, items_max: 1024, bytes_max: usize::MAX })?;
        let gap = |(key, value): Pair| {
            let first = TaskNumber(number(&key[key.len() - 8..])?);
            Ok(Gap { first, last: TaskNumber(number(&value)?) })
        };
        pairs.into_iter().map(gap).collect()
    }

    /// How far each output is known to be.
    pub fn progress(&self) -> Result<BTreeMap<OutputName, TaskNumber>, ReadError> {
        let bad = |_| DecodeError::malformed("output name", "not a name");
        let pair = |(key, value): Pair| {
            let name = std::str::from_utf8(&key[1..]).map_err(|e| DecodeError::malformed("output name", e))?;
            Ok((name.parse().map_err(bad)?, TaskNumber(number(&value)?)))
        };
        self.load(Table::Index, keys::PROGRESS)?.into_iter().map(pair).collect()
    }

    /// What the network wants of its outputs.
    pub fn output_states(&self) -> Result<OutputStates, ReadError> {
        let pair = |(key, value): Pair| {
            let name = std::str::from_utf8(&key[1..]).map_err(|e| DecodeError::malformed("output name", e))?;
            let name = name.parse().map_err(|_| DecodeError::malformed("output name", "not a name"))?;
            Ok((name, OutputState::decode(&value)?))
        };
        self.load(Table::Index, keys::OUTPUT_STATE)?.into_iter().map(pair).collect()
    }

    /// Where an output has a task, as far as was reported.
    pub fn place_of(&self, output: &OutputName, task: TaskNumber) -> Result<Option<Place>, ReadError> {
        Ok(self.place_at(output, task)?.filter(|place| place.has(task)))
    }

    /// Where an output has tasks from `first` on, by ascending number, at most `items_max` runs of them.
    pub fn places_from(
        &self,
        output: &OutputName,
        first: TaskNumber,
        items_max: usize,
    ) -> Result<Vec<Place>, ReadError> {
        let start = self.place_of(output, first)?.map_or(first, |place| place.first);
        let found = self.storage().scan(Scan {
            table: Table::Index,
            start: keys::place(output, start),
            end: keys::place(output, TaskNumber(u64::MAX)),
            direction: Direction::Up,
            items_max,
            bytes_max: usize::MAX,
        })?;
        found.into_iter().map(|(_, record)| Ok(Place::decode(record)?)).collect()
    }

    /// Devices that somebody let submit to a project, from an address on.
    pub fn grants(
        &self,
        project: ProjectId,
        from: &Address,
        items_max: usize,
    ) -> Result<Vec<(Address, Grant)>, ReadError> {
        let pairs = self.storage().scan(Scan {
            table: Table::Index,
            start: keys::grant(project, from),
            end: keys::grant(project.next(), &Address::ZERO),
            direction: Direction::Up,
            items_max,
            bytes_max: usize::MAX,
        })?;
        let pair = |(key, value): Pair| {
            let device = Address::try_from(&key[9..]).map_err(|e| DecodeError::malformed("grant", e))?;
            Ok((device, Grant::decode(&value)?))
        };
        pairs.into_iter().map(pair).collect()
    }

    /// Where the message stands whose task has this other name.
    pub fn sequence_of_alias(&self, alias: &TaskId) -> Result<Option<Sequence>, ReadError> {
        let place = self.storage().get(Table::Index, &keys::task_alias(alias))?;
        Ok(place.map(|place| number(&place)).transpose()?.map(Sequence))
    }

    /// What the state on the disk has forgotten. After a crash that state is what there is, and the entries behind it are
    /// applied again: they need what it has not forgotten.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn durable_horizon(&self) -> Result<Horizon, ReadError> {
        durable_horizon(&*self.storage())
    }

    /// Removes what the ledger has forgotten from disk, up to `wanted`, as far as the state on the disk has forgotten it
    /// too. Returns how far that is. Blocks.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn forget(&self, wanted: &Horizon) -> Result<Horizon, ReadError> {
        // What is read of one state must not be removed from another.
        let _no_change = self.copies.changing.lock();
        let storage = self.storage();
        let durable = durable_horizon(&*storage)?;
        let horizon = if durable.height < wanted.height { durable } else { *wanted };
        storage.forget_before(horizon.height, horizon.sequence, horizon.task_number)?;
        let mut batch = WriteBatch::default();
        for output in self.progress()?.keys() {
            // A run that goes on beyond the horizon stays whole.
            let kept = self.place_of(output, horizon.task_number)?.map_or(horizon.task_number, |place| place.first);
            batch.delete_range(Table::Index, keys::place(output, TaskNumber(0)), keys::place(output, kept));
        }
        storage.write(batch, Durability::Buffered)?;
        Ok(horizon)
    }

    /// Bytes on disk.
    pub fn bytes_on_disk(&self) -> u64 {
        self.storage().bytes_on_disk()
    }

    /// The batch at a height.
    pub fn batch(&self, height: Height) -> Result<Option<Batch>, ReadError> {
        let record = self.storage().get(Table::Chain, &keys::batch(height))?;
        Ok(record.map(Batch::decode).transpose()?)
    }

    /// Batches from a height on, up to a count and, after the first, about `bytes_max` bytes.
    pub fn batches(&self, from: Height, items_max: usize, bytes_max: usize) -> Result<Vec<Batch>, ReadError> {
        let pairs = self.storage().scan(Scan {
            table: Table::Chain,
            start: keys::batch(from),
            end: keys::end_of(keys::BATCH),
            direction: Direction::Up,
            items_max,
            bytes_max,
        })?;
        pairs.into_iter().map(|(_, record)| Ok(Batch::decode(record)?)).collect()
    }

    /// The height whose key is the greatest at or below `key`.
    fn height_at(&self, prefix: u8, key: Vec<u8>) -> Result<Option<Height>, ReadError> {
        let mut end = key;
        end.push(0);
        let found = self.storage().scan(Scan {
            table: Table::Chain,
            start: vec![prefix],
            end,
            direction: Direction::Down,
            items_max: 1,
            bytes_max: usize::MAX,
        })?;
        Ok(found.first().map(|(_, value)| number(value)).transpose()?.map(Height))
    }

    /// The batch that has the message with this sequence.
    pub fn batch_of_message(&self, sequence: Sequence) -> Result<Option<Batch>, ReadError> {
        let height = self.height_at(keys::SEQUENCE, keys::first_sequence(sequence))?;
        let batch = height.map(|height| self.batch(height)).transpose()?.flatten();
        Ok(batch.filter(|batch| batch.message_at(sequence).is_some()))
    }

    /// The batch that closed the task with this number.
    pub fn batch_of_task(&self, number: TaskNumber) -> Result<Option<Batch>, ReadError> {
        let height = self.height_at(keys::TASK_NUMBER, keys::first_task(number))?;
        let batch = height.map(|height| self.batch(height)).transpose()?.flatten();
        Ok(batch.filter(|batch| batch.task_at(number).is_some()))
    }

    /// The newest occurrence of a content.
    pub fn occurrence(&self, id: &ContentId) -> Result<Option<Occurrence>, ReadError> {
        let record = self.storage().get(Table::Index, &keys::occurrence(id))?;
        Ok(record.map(|record| Occurrence::decode(&record)).transpose()?)
    }

    /// Where the message with this id stands.
    pub fn sequence_of(&self, id: &MessageId) -> Result<Option<Sequence>, ReadError> {
        if let Some(place) = self.storage().get(Table::Index, &keys::message_place(id))? {
            return Ok(Some(Sequence(number(&place)?)));
        }
        // A content's first occurrence has the content id for its message id, and no entry of its own. After older ones
        // were forgotten it has another id; who asks by the content id means the newest.
        let occurrence = self.occurrence(&ContentId(id.0))?;
        let named = |o: &Occurrence| o.count == 1 || o.since.0 > 0;
        Ok(occurrence.filter(named).map(|occurrence| occurrence.sequence))
    }

    /// The number of the task with this id.
    pub fn task_number(&self, id: &TaskId) -> Result<Option<TaskNumber>, ReadError> {
        let place = self.storage().get(Table::Index, &keys::task_place(id))?;
        Ok(place.map(|place| number(&place)).transpose()?.map(TaskNumber))
    }

    /// The task that has the message with this sequence, which stands in `batch`.
    pub fn task_of(&self, batch: &Batch, sequence: Sequence) -> Result<Option<Task>, ReadError> {
        if let Some(task) = batch.tasks.iter().find(|task| task.sequences.contains(&sequence)) {
            return Ok(Some(task.clone()));
        }
        let Some(place) = self.storage().get(Table::Index, &keys::packed(sequence))? else { return Ok(None) };
        let number = TaskNumber(number(&place)?);
        Ok(self.batch_of_task(number)?.and_then(|batch| batch.task_at(number).cloned()))
    }

    /// Writes a consistent copy to `path`, which must not exist yet: what is in it is on the disk. Returns which state
    /// it is of: equal names of table files mean equal files only while that number stays the same. Blocks.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn copy_to(&self, path: &Path) -> Result<u64, StoreError> {
        let _no_change = self.copies.changing.lock();
        self.storage().checkpoint(path)?;
        Ok(self.copies.shelf.lineage())
    }

    /// Makes a consistent copy and puts it on the shelf. What is in a copy is on the disk, and in the state on the disk
    /// too. Blocks, while entries go on being applied: the copy itself tells up to where it goes.
    pub(crate) fn make_copy(&self) -> Result<SnapshotMeta, ReadError> {
        let _no_change = self.copies.changing.lock();
        self.make_copy_of(&*self.storage())
    }

    fn make_copy_of(&self, storage: &dyn StateStorage) -> Result<SnapshotMeta, ReadError> {
        let parent = self.home.snapshots_path();
        let path = parent.join(format!("copy-{}", self.copies.made.fetch_add(1, Ordering::Relaxed)));
        let failed = |e: std::io::Error| StoreError::Failed(format!("{}: {e}", path.display()));
        std::fs::create_dir_all(&parent).map_err(failed)?;
        let directory = SnapshotDirectory::made(path.clone());
        storage.checkpoint(&path)?;
        let (last_log_id, last_membership) = applied_in(&*self.medium.open_copy(&path)?)?;
        let meta = SnapshotMeta { last_log_id, last_membership };
        self.copies.shelf.put(meta.clone(), directory);
        Ok(meta)
    }

    /// Replaces the state by a received copy, by one synced switch. Blocks.
    pub(crate) fn install(&self, received: &SnapshotDirectory, meta: &SnapshotMeta) -> Result<(), ReadError> {
        let _no_copy = self.copies.changing.lock();
        let old = self.home.state_path()?;
        let name = meta.last_log_id.map_or("empty".into(), |id| format!("{}-{}", *id.leader_id, id.index));
        let path = self.home.switch_state(received.path(), &name)?;
        let opened = self.medium.open_state(&path)?;
        *self.storage.write() = opened.clone();
        if old != path {
            // Readers may still hold the old store: its files live until they are closed, only the names go.
            let _ = std::fs::remove_dir_all(&old);
        }
        self.copies.shelf.begin_lineage();
        self.make_copy_of(&*opened).map(drop)
    }
}

fn durable_horizon(storage: &dyn StateStorage) -> Result<Horizon, ReadError> {
    let head = storage.get_durable(Table::Index, keys::HEAD)?.map(Head::decode).transpose()?;
    Ok(head.map(|head| head.horizon).unwrap_or_default())
}

fn applied_in(storage: &dyn StateStorage) -> Result<(Option<LogId>, StoredMembership), ReadError> {
    let applied = storage.get(Table::Index, keys::APPLIED)?;
    let applied = applied.map(|b| proto::LogId::decode(b).map_err(|e| DecodeError::malformed("position", e)));
    let membership = storage.get(Table::Index, keys::MEMBERSHIP)?.map(decode_stored_membership).transpose()?;
    Ok((applied.transpose()?.as_ref().map(log_id_from), membership.unwrap_or_default()))
}

/// Looks whether a received copy is a whole store, and of the entry and membership that it was offered with.
pub(crate) fn check_copy(medium: &dyn Medium, path: &Path, meta: &SnapshotMeta) -> Result<(), ReadError> {
    let (last_log_id, last_membership) = applied_in(&*medium.open_copy(path)?)?;
    if (last_log_id, &last_membership) == (meta.last_log_id, &meta.last_membership) {
        return Ok(());
    }
    Err(DecodeError::malformed("received state", "it is not of the entry and membership that it was offered with")
        .into())
}

impl History for StateStore {
    type Error = ReadError;

    fn header(&self, height: Height) -> Result<Option<BatchHeader>, ReadError> {
        Ok(self.batch(height)?.map(|batch| batch.header))
    }

    fn occurrences(&self, ids: &[ContentId]) -> Result<Vec<Option<Occurrence>>, ReadError> {
        let keys: Vec<_> = ids.iter().map(keys::occurrence).collect();
        let records = self.storage().get_many(Table::Index, &keys)?;
        let decode = |record: Option<Bytes>| record.map(|r| Occurrence::decode(&r)).transpose();
        Ok(records.into_iter().map(decode).collect::<Result<_, _>>()?)
    }

    fn standings(&self, of: &[(ProjectId, Address)]) -> Result<Vec<Standing>, ReadError> {
        let storage = self.storage();
        let devices: Vec<_> = of.iter().map(|(_, device)| keys::device(device)).collect();
        let grants: Vec<_> = of.iter().map(|(project, device)| keys::grant(*project, device)).collect();
        let devices = storage.get_many(Table::Index, &devices)?.into_iter();
        let pairs = devices.zip(storage.get_many(Table::Index, &grants)?);
        let standing = |(device, grant): (Option<Bytes>, Option<Bytes>)| {
            let registered = device.map(Device::decode).transpose()?.is_some_and(|device| device.registered);
            let grant = grant.map(|grant| Grant::decode(&grant)).transpose()?.unwrap_or_default();
            Ok(Standing { registered, grant })
        };
        pairs.map(standing).collect()
    }

    fn lasts(&self, of: &[(ProjectId, Address)]) -> Result<Vec<Option<LastTaken>>, ReadError> {
        let keys: Vec<_> = of.iter().map(|(project, device)| keys::last(*project, device)).collect();
        let found = self.storage().get_many(Table::Index, &keys)?.into_iter();
        found.map(|record| Ok(record.map(LastTaken::decode).transpose()?)).collect()
    }

    fn device(&self, device: &Address) -> Result<Option<Device>, ReadError> {
        Ok(self.storage().get(Table::Index, &keys::device(device))?.map(Device::decode).transpose()?)
    }

    fn place_at(&self, output: &OutputName, task: TaskNumber) -> Result<Option<Place>, ReadError> {
        let mut end = keys::place(output, task);
        end.push(0);
        let found = self.storage().scan(Scan {
            table: Table::Index,
            start: keys::place(output, TaskNumber(0)),
            end,
            direction: Direction::Down,
            items_max: 1,
            bytes_max: usize::MAX,
        })?;
        Ok(found.into_iter().next().map(|(_, record)| Place::decode(record)).transpose()?)
    }

    fn nonces(&self, of: &[Nonce]) -> Result<Vec<Option<Sequence>>, ReadError> {
        let keys: Vec<_> = of.iter().map(|(project, holder, nonce)| keys::nonce(*project, holder, *nonce)).collect();
        let found = self.storage().get_many(Table::Index, &keys)?.into_iter();
        found.map(|record| Ok(record.map(|by| number(&by)).transpose()?.map(Sequence))).collect()
    }

    fn highest_nonces(&self, of: &[(ProjectId, Address)]) -> Result<Vec<Option<HighestNonce>>, ReadError> {
        let keys: Vec<_> = of.iter().map(|(project, device)| keys::highest_nonce(*project, device)).collect();
        let found = self.storage().get_many(Table::Index, &keys)?.into_iter();
        found.map(|record| Ok(record.map(|record| HighestNonce::decode(&record)).transpose()?)).collect()
    }
}
