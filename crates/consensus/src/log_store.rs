//! Raft's log and vote on [`Storage`]. Entries are readable when `append` returns and acknowledged after the sync.
//! Raft's task writes nothing itself, and reads nothing from the disk: it hands over to the log's writer, and to threads
//! that may block.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::channel::oneshot;
use futures::{Stream, stream};
use lockstep_store::{Direction, LogWriter, Pending, Scan, Storage, StoreError, Table, WriteBatch, keys};
use lockstep_types::proto;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::Semaphore;

use crate::blocking::Blocking;
use crate::convert::{decode_entry, entry_to, log_id_from, log_id_to, vote_from, vote_to};
use crate::log_size::LogSize;
use crate::raft_types::{Entry, LogId, TypeConfig, Vote};

/// Newest entries kept in memory, for replication and `apply`; older ones are read from disk.
const TAIL_BYTES_MAX: usize = 8 << 20;
/// Most entries, and bytes, that one read returns; readers come back for the rest.
const READ_ENTRIES_MAX: usize = 64;
const READ_BYTES_MAX: usize = 4 << 20;
/// Most appends that wait for the disk. Raft waits with the next one; the writer has room for more than these and the
/// few other writes that there are, so that handing over to it never blocks.
const APPENDS_WAITING_MAX: usize = 128;

struct TailEntry {
    entry: Entry,
    bytes: usize,
}

/// The newest entries: contiguous, up to the last one.
#[derive(Default)]
struct Tail {
    entries: VecDeque<TailEntry>,
    bytes: usize,
    /// Index up to which entries are on disk: only those may be dropped from memory.
    synced: u64,
    last: Option<LogId>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    size: LogSize,
}

impl Tail {
    fn first_index(&self) -> Option<u64> {
        self.entries.front().map(|e| e.entry.log_id.index)
    }

    /// Entries from `start` on, up to the read limits; `None` where they begin before those in memory.
    fn read(&self, start: u64, end: u64) -> Option<Vec<Entry>> {
        let skip = start.checked_sub(self.first_index()?)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for cached in self.entries.iter().skip(usize::try_from(skip).ok()?).take(READ_ENTRIES_MAX) {
            if cached.entry.log_id.index >= end || (bytes >= READ_BYTES_MAX && !entries.is_empty()) {
                break;
            }
            bytes += cached.bytes;
            entries.push(cached.entry.clone());
        }
        Some(entries)
    }

    fn push(&mut self, entry: Entry, bytes: usize) {
        self.last = Some(entry.log_id);
        self.bytes += bytes;
        self.entries.push_back(TailEntry { entry, bytes });
    }

    fn truncate_after(&mut self, index: Option<u64>) {
        while let Some(last) = self.entries.back().filter(|e| Some(e.entry.log_id.index) > index) {
            self.bytes -= last.bytes;
            self.entries.pop_back();
        }
        self.synced = self.synced.min(index.unwrap_or(0));
        self.size.truncated(index.unwrap_or(0));
    }

    fn drop_synced(&mut self, bytes_max: usize, purged: Option<u64>) {
        while let Some(first) = self.entries.front() {
            let index = first.entry.log_id.index;
            let spare = self.bytes > bytes_max && index <= self.synced;
            if !spare && Some(index) > purged {
                break;
            }
            self.bytes -= first.bytes;
            self.entries.pop_front();
        }
    }
}

/// See the module's documentation. Clones share the log.
#[derive(Clone)]
pub struct LogStore {
    storage: Arc<dyn Storage>,
    writer: Arc<LogWriter>,
    tail: Arc<Mutex<Tail>>,
    /// See [`LogStore::withhold`].
    withheld: Arc<AtomicU64>,
    /// Places for appends that wait for the disk.
    room: Arc<Semaphore>,
}

fn io_error(error: StoreError) -> io::Error {
    io::Error::other(error)
}

fn damaged(what: &str, error: impl std::fmt::Display) -> io::Error {
    let out =
        "a member whose log is damaged must join again under a new node id (`lockstep init --join` in a new home)";
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is damaged: {error}; {out}"))
}

fn decode<M: prost::Message + Default>(what: &str, bytes: Option<Bytes>) -> io::Result<Option<M>> {
    bytes.map(|b| M::decode(b).map_err(|e| damaged(what, e))).transpose()
}

impl LogStore {
    /// Opens the log in `storage`. All synced writes go through `writer`, which must write to the same storage.
    ///
    /// # Errors
    /// If the storage fails, or a record is damaged.
    pub fn open(storage: Arc<dyn Storage>, writer: Arc<LogWriter>) -> io::Result<Self> {
        let get = |key: &[u8]| storage.get(Table::Log, key).map_err(io_error);
        let purged = decode::<proto::LogId>("the purge position", get(keys::log::PURGED)?)?;
        let vote = decode::<proto::Vote>("the vote", get(keys::log::VOTE)?)?;
        let committed = decode::<proto::LogId>("the committed position", get(keys::log::COMMITTED)?)?;
        let newest = storage
            .scan(Scan {
                table: Table::Log,
                start: keys::log::entry(0),
                end: keys::end_of(keys::log::ENTRY),
                direction: Direction::Down,
                items_max: 1,
                bytes_max: usize::MAX,
            })
            .map_err(io_error)?;
        let newest = newest.into_iter().next().map(|(_, value)| decode_entry(value)).transpose();
        let last = newest.map_err(|e| damaged("the newest log entry", e))?.map(|entry| entry.log_id);
        let purged = purged.as_ref().map(log_id_from);
        let (start, end) = (keys::log::entry(0), keys::end_of(keys::log::ENTRY));
        let bytes = storage.approximate_bytes(Table::Log, &start, &end).map_err(io_error)?;
        let (before, newest) = (purged.map_or(0, |id| id.index), last.or(purged).map_or(0, |id| id.index));
        let tail = Tail {
            size: LogSize::found(before, newest, bytes),
            synced: last.map_or(0, |id| id.index),
            last: last.or(purged),
            purged,
            vote: vote.as_ref().map(vote_from),
            committed: committed.as_ref().map(log_id_from),
            ..Tail::default()
        };
        let room = Arc::new(Semaphore::new(APPENDS_WAITING_MAX));
        Ok(Self { storage, writer, tail: Arc::new(Mutex::new(tail)), withheld: Arc::default(), room })
    }

    /// Position of the last entry; `None` in an empty log.
    pub fn last_index(&self) -> Option<u64> {
        self.tail.lock().last.map(|id| id.index)
    }

    /// Position of the newest entry that was purged; `None` where none was.
    pub(crate) fn purged_index(&self) -> Option<u64> {
        self.tail.lock().purged.map(|id| id.index)
    }

    /// Position that was known to be committed when it was last noted; it may be behind.
    pub(crate) fn committed_index(&self) -> u64 {
        self.tail.lock().committed.map_or(0, |id| id.index)
    }

    /// Position up to which entries are on disk, or were purged because the state on disk has them.
    pub(crate) fn durable_index(&self) -> u64 {
        let tail = self.tail.lock();
        tail.synced.max(tail.purged.map_or(0, |id| id.index))
    }

    /// Looks at how large the log is.
    pub(crate) fn size<T>(&self, look: impl FnOnce(&LogSize) -> T) -> T {
        look(&self.tail.lock().size)
    }

    /// Lets entries up to `upto` not be sent to members any more, although they are still there, so that openraft
    /// purges them instead of waiting for a member that takes them too slowly.
    pub(crate) fn withhold(&self, upto: Option<u64>) {
        self.withheld.store(upto.map_or(0, |index| index + 1), Ordering::Relaxed);
    }

    /// Whether the entry at `index` is withheld.
    pub(crate) fn is_withheld(&self, index: u64) -> bool {
        index < self.withheld.load(Ordering::Relaxed)
    }

    /// Gives the disk back what purged entries still take. Blocks.
    ///
    /// # Errors
    /// If the disk fails.
    pub(crate) fn reclaim(&self) -> Result<(), StoreError> {
        let Some(purged) = self.tail.lock().purged else { return Ok(()) };
        self.storage.reclaim(Table::Log, &keys::log::entry(0), &keys::log::entry(purged.index))
    }

    /// What the log's writer is writing now.
    pub(crate) fn writing(&self) -> &Pending {
        self.writer.writing()
    }

    async fn write_synced(&self, batch: WriteBatch) -> io::Result<()> {
        let (done, result) = oneshot::channel();
        // The receiver is gone only if the caller was dropped; then nobody waits for the answer.
        self.writer.submit(batch, Box::new(move |written| drop(done.send(written))));
        result.await.map_err(|_| io::Error::other("the log writer has stopped"))?.map_err(io_error)
    }

    /// As [`LogStore::read`], for an async task: what is not in memory is read where it may block.
    async fn read_aside(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        if let Some(entries) = self.tail.lock().read(start, end) {
            return Ok(entries);
        }
        let blocking = if self.writer.has_thread() { Blocking::Threads } else { Blocking::Inline };
        let log = self.clone();
        blocking.run(move || log.read(start, end)).await.map_err(io::Error::other)?
    }

    /// Reads entries from `start` on, up to the read limits, without a gap. May block.
    pub(crate) fn read(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let entries = self.read_from_first(start, end)?;
        // Entries that were purged are missing by right; behind them there is no hole.
        let purged = self.tail.lock().purged;
        match entries.first() {
            Some(first) if first.log_id.index > start && purged.is_some_and(|id| id.index < start) => {
                Err(damaged("the log", format!("entry {start} is missing")))
            }
            _ => Ok(entries),
        }
    }

    fn read_from_first(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let tail_first = {
            let tail = self.tail.lock();
            if let Some(entries) = tail.read(start, end) {
                return Ok(entries);
            }
            tail.first_index().unwrap_or(u64::MAX)
        };
        let pairs = self.storage.scan(Scan {
            table: Table::Log,
            start: keys::log::entry(start),
            end: keys::log::entry(end.min(tail_first)),
            direction: Direction::Up,
            items_max: READ_ENTRIES_MAX,
            bytes_max: READ_BYTES_MAX,
        });
        for (_, value) in pairs.map_err(io_error)? {
            let entry = decode_entry(value).map_err(|e| damaged("a log entry", e))?;
            let expected = entries.last().map_or(entry.log_id.index, |before: &Entry| before.log_id.index + 1);
            if entry.log_id.index != expected {
                return Err(damaged("the log", format!("entry {expected} is missing")));
            }
            entries.push(entry);
        }
        // Nothing on disk from `start` to the entries in memory: right at the beginning of the log, else a hole.
        if entries.is_empty() && tail_first < end {
            if self.has_entry_before(start)? {
                return Err(damaged("the log", format!("entry {start} is missing")));
            }
            return self.read_from_first(tail_first, end);
        }
        Ok(entries)
    }

    fn has_entry_before(&self, index: u64) -> io::Result<bool> {
        let newest = self.storage.scan(Scan {
            table: Table::Log,
            start: keys::log::entry(0),
            end: keys::log::entry(index),
            direction: Direction::Down,
            items_max: 1,
            bytes_max: usize::MAX,
        });
        Ok(!newest.map_err(io_error)?.is_empty())
    }
}

fn limits<R: RangeBounds<u64>>(range: &R) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        let (mut start, end) = limits(&range);
        let mut entries = Vec::new();
        while start < end {
            let more = self.read_aside(start, end).await?;
            let Some(last) = more.last() else { break };
            start = last.log_id.index + 1;
            entries.extend(more);
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.tail.lock().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let entries = self.read_aside(start, end).await?;
        // Purged while a member was to get them: without `start`, what follows must not be sent as if it came next.
        // Nothing is sent then, and openraft turns to a snapshot.
        let was_purged = entries.first().is_some_and(|first| first.log_id.index != start);
        Ok(if was_purged { Vec::new() } else { entries })
    }

    /// Reads in pieces, so that a long replay after a restart holds a few MiB at a time.
    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = io::Result<Entry>> + Send
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (start, end) = limits(&range);
        let pieces = stream::unfold((self.clone(), start), move |(log, start)| async move {
            if start >= end {
                return None;
            }
            match log.read_aside(start, end).await {
                Ok(entries) => {
                    let next = entries.last()?.log_id.index + 1;
                    Some((stream::iter(entries.into_iter().map(Ok).collect::<Vec<_>>()), (log, next)))
                }
                Err(error) => Some((stream::iter(vec![Err(error)]), (log, end))),
            }
        });
        Box::pin(futures::StreamExt::flatten(pieces))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let tail = self.tail.lock();
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        batch.put(Table::Log, keys::log::VOTE.to_vec(), vote_to(vote).encode_to_vec());
        self.write_synced(batch).await?;
        self.tail.lock().vote = Some(*vote);
        Ok(())
    }

    /// Kept so that reads do not go back in time after a restart. It may be lost, so nobody waits for it: the writer takes
    /// the newest one along when it syncs something.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed else { return Ok(()) };
        self.tail.lock().committed = Some(committed);
        let tail = self.tail.clone();
        let make = move || {
            let mut batch = WriteBatch::default();
            if let Some(committed) = &tail.lock().committed {
                batch.put(Table::Log, keys::log::COMMITTED.to_vec(), log_id_to(committed).encode_to_vec());
            }
            batch
        };
        self.writer.note("the committed position", Box::new(make));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let tail = self.tail.lock();
        // After a torn tail the position may be past the last entry.
        Ok(tail.committed.min(tail.last))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let place = self.room.clone().acquire_owned().await.map_err(io::Error::other)?;
        let mut batch = WriteBatch::default();
        let mut last = 0;
        {
            let mut tail = self.tail.lock();
            for entry in entries {
                last = entry.log_id.index;
                let record = Bytes::from(entry_to(&entry).encode_to_vec());
                let bytes = record.len();
                batch.put(Table::Log, keys::log::entry(last), record);
                tail.push(entry, bytes);
                tail.size.appended(last, bytes as u64);
            }
        }
        let tail = self.tail.clone();
        let done = move |written: Result<(), StoreError>| {
            drop(place);
            if written.is_ok() {
                let mut tail = tail.lock();
                // A truncation in between has lowered the end of the log; it is written behind this batch.
                tail.synced = tail.synced.max(last.min(tail.last.map_or(0, |id| id.index)));
                tail.drop_synced(TAIL_BYTES_MAX, None);
            }
            callback.io_completed(written.map_err(io_error));
        };
        self.writer.submit(batch, Box::new(done));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        let start = last.map_or(0, |id| id.index + 1);
        batch.delete_range(Table::Log, keys::log::entry(start), keys::end_of(keys::log::ENTRY));
        {
            let mut tail = self.tail.lock();
            tail.truncate_after(last.map(|id| id.index));
            // There may be nothing after that position; then the log ends where it did.
            if tail.last.map(|id| id.index) > last.map(|id| id.index) {
                tail.last = last.or(tail.purged);
            }
        }
        self.write_synced(batch).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        batch.put(Table::Log, keys::log::PURGED.to_vec(), log_id_to(&upto).encode_to_vec());
        batch.delete_range(Table::Log, keys::log::entry(0), keys::log::entry(upto.index + 1));
        self.write_synced(batch).await?;
        let mut tail = self.tail.lock();
        tail.purged = Some(upto);
        tail.last = tail.last.max(Some(upto));
        tail.drop_synced(TAIL_BYTES_MAX, Some(upto.index));
        tail.size.purged(upto.index);
        Ok(())
    }
}
