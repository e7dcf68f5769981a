//! The one writer of synced data: what waits is grouped into one write and one sync.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::pending::Pending;
use crate::storage::{Durability, Storage, StoreError, WriteBatch};

/// Told when a submitted batch is on disk, or that it may not be. Called on the writer's thread: must not block.
pub type WriteDone = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Whoever waits for a batch. Is told that it may not be on disk also where the writer panics over it.
struct Waiting(Option<WriteDone>);

impl Waiting {
    fn tell(mut self, result: Result<(), StoreError>) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(StoreError::Closed("the log writer has stopped".into())));
        }
    }
}

/// Makes the batch of a note when it is written. Called on the writer's thread: must not block.
pub type NoteMaker = Box<dyn FnOnce() -> WriteBatch + Send>;

/// Most batches that wait for the writer; a further one waits to be taken. Consensus has far fewer under way.
const WAITING_BATCHES_MAX: usize = 1024;
/// Most batches that share one sync, so that the first of them does not wait for ever.
const GROUPED_BATCHES_MAX: usize = 256;

/// A batch to be synced, and who waits for that.
struct Job(WriteBatch, Waiting);

/// What all ways to write share.
#[derive(Default)]
struct Shared {
    /// Why nothing is written any more.
    closed: Mutex<Option<String>>,
    /// See [`LogWriter::note`].
    notes: Mutex<BTreeMap<&'static str, NoteMaker>>,
}

enum Mode {
    Thread(SyncSender<Job>),
    Inline(Arc<dyn Storage>),
    Queue(Arc<QueuedWrites>),
}

/// What waits for a writer without a thread: see [`LogWriter::queued`].
pub struct QueuedWrites {
    storage: Arc<dyn Storage>,
    jobs: Mutex<VecDeque<Job>>,
    shared: Arc<Shared>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl QueuedWrites {
    /// Writes what waits, up to what shares one sync, as the writer's thread does. Says whether there was something.
    pub fn write_group(&self) -> bool {
        let group: Vec<Job> = {
            let mut jobs = self.jobs.lock();
            let count = jobs.len().min(GROUPED_BATCHES_MAX);
            jobs.drain(..count).collect()
        };
        let found = !group.is_empty();
        if found {
            write_group(&*self.storage, group, &self.shared);
        }
        found
    }

    /// Whether something waits.
    pub fn is_empty(&self) -> bool {
        self.jobs.lock().is_empty()
    }

    /// What waits to be synced, in order: a power loss may find any part of it on the disk.
    pub fn waiting(&self) -> Vec<WriteBatch> {
        self.jobs.lock().iter().map(|Job(batch, _)| batch.clone()).collect()
    }
}

/// Writes batches in the order of submission. After the first failure every batch fails with
/// [`StoreError::Closed`], until the process restarts: what is on disk is no longer known.
pub struct LogWriter {
    mode: Mode,
    shared: Arc<Shared>,
    writing: Pending,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl LogWriter {
    /// A writer with a thread of its own.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn spawn(storage: Arc<dyn Storage>) -> Result<Self, StoreError> {
        let (sender, receiver) = sync_channel(WAITING_BATCHES_MAX);
        let (shared, writing) = (Arc::<Shared>::default(), Pending::default());
        let (of_thread, under_way) = (shared.clone(), writing.clone());
        let thread = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || write_all(&*storage, &receiver, &of_thread, &under_way))
            .map_err(|e| StoreError::Open(format!("cannot start the log writer: {e}")))?;
        Ok(Self { mode: Mode::Thread(sender), shared, writing, thread: Mutex::new(Some(thread)) })
    }

    /// A writer that writes before `submit` returns: for simulation, where nothing may run beside the test.
    pub fn inline(storage: Arc<dyn Storage>) -> Self {
        Self {
            mode: Mode::Inline(storage),
            shared: Arc::default(),
            writing: Pending::default(),
            thread: Mutex::new(None),
        }
    }

    /// A writer whose batches wait until somebody calls [`QueuedWrites::write_group`], who is told by `wake` when there
    /// is one: for a simulated disk, which takes its time.
    pub fn queued(storage: Arc<dyn Storage>, wake: Box<dyn Fn() + Send + Sync>) -> (Self, Arc<QueuedWrites>) {
        let shared = Arc::<Shared>::default();
        let queue = Arc::new(QueuedWrites { storage, jobs: Mutex::default(), shared: shared.clone(), wake });
        let mode = Mode::Queue(queue.clone());
        (Self { mode, shared, writing: Pending::default(), thread: Mutex::new(None) }, queue)
    }

    /// Hands over a batch. `done` is called exactly once, after the sync.
    pub fn submit(&self, batch: WriteBatch, done: WriteDone) {
        let done = Waiting(Some(done));
        match &self.mode {
            Mode::Inline(storage) => write_group(&**storage, vec![Job(batch, done)], &self.shared),
            Mode::Queue(queue) => {
                queue.jobs.lock().push_back(Job(batch, done));
                (queue.wake)();
            }
            Mode::Thread(sender) => {
                // Where the thread has ended the job comes back, and with it whoever waits is told.
                drop(sender.send(Job(batch, done)));
            }
        }
    }

    /// Hands over something that may be lost: `make` is asked for it when something is synced, and it is synced with that. A
    /// later note of the same name takes the place of one that waits. Nothing is ever written without a sync, so that a
    /// power loss finds one write at most that is not whole: see [`crate::records`].
    pub fn note(&self, name: &'static str, make: NoteMaker) {
        self.shared.notes.lock().insert(name, make);
    }

    /// What is being written now; always nothing for a writer without a thread.
    pub fn writing(&self) -> &Pending {
        &self.writing
    }

    /// Whether this writer has a thread of its own, so that others may block too.
    pub fn has_thread(&self) -> bool {
        matches!(self.mode, Mode::Thread(_))
    }
}

impl Drop for LogWriter {
    /// Waits for what was submitted.
    fn drop(&mut self) {
        let (sender, _) = sync_channel(1);
        self.mode = Mode::Thread(sender);
        if let Some(thread) = self.thread.lock().take() {
            // The thread ends when the last sender is gone. If it panicked, those who waited were told.
            let _ = thread.join();
        }
    }
}

fn write_all(storage: &dyn Storage, jobs: &Receiver<Job>, shared: &Shared, writing: &Pending) {
    while let Ok(first) = jobs.recv() {
        let mut group = vec![first];
        group.extend(jobs.try_iter().take(GROUPED_BATCHES_MAX - 1));
        let _under_way = writing.begin();
        write_group(storage, group, shared);
    }
    // A node that stops in peace loses no note either.
    if !shared.notes.lock().is_empty() {
        write_group(storage, Vec::new(), shared);
    }
}

fn write_group(storage: &dyn Storage, group: Vec<Job>, shared: &Shared) {
    let closed = shared.closed.lock().clone();
    if let Some(reason) = closed {
        group.into_iter().for_each(|Job(_, done)| done.tell(Err(StoreError::Closed(reason.clone()))));
        return;
    }
    let (mut merged, mut waiting) = (WriteBatch::default(), Vec::with_capacity(group.len()));
    for Job(batch, done) in group {
        merged.append(batch);
        waiting.push(done);
    }
    let notes = std::mem::take(&mut *shared.notes.lock());
    notes.into_values().for_each(|make| merged.append(make()));
    let result = storage.write(merged, Durability::Synced);
    if let Err(error) = &result {
        tracing::error!(%error, "a write of the log failed: this node writes nothing more until it is restarted");
        shared.closed.lock().get_or_insert_with(|| error.to_string());
    }
    for done in waiting {
        done.tell(result.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::memory::MemoryStorage;
    use crate::storage::Table;

    fn submit(writer: &LogWriter, key: u8) -> mpsc::Receiver<Result<(), StoreError>> {
        let (sender, receiver) = mpsc::channel();
        let mut batch = WriteBatch::default();
        batch.put(Table::Log, vec![key], vec![key]);
        writer.submit(batch, Box::new(move |result| sender.send(result).unwrap()));
        receiver
    }

    #[test]
    fn what_was_reported_done_survives_a_power_loss() {
        let storage = Arc::new(MemoryStorage::default());
        let writer = LogWriter::spawn(storage.clone()).unwrap();
        let pending: Vec<_> = (0..100).map(|key| submit(&writer, key)).collect();
        for (key, done) in pending.iter().enumerate() {
            done.recv().unwrap().unwrap();
            assert!(storage.after_power_loss().get(Table::Log, &[key as u8]).unwrap().is_some());
        }
    }

    #[test]
    fn a_writer_that_panics_leaves_nobody_waiting_and_writes_nothing_more() {
        let writer = LogWriter::spawn(Arc::new(MemoryStorage::default())).unwrap();
        let panics: WriteDone = Box::new(|_| panic!("on purpose"));
        writer.submit(WriteBatch::default(), panics);
        let mut told = 0;
        while told < 3 {
            // The first ones may have been written with the one that panics.
            match submit(&writer, 1).recv().unwrap() {
                Ok(()) => {}
                Err(error) => {
                    assert!(matches!(error, StoreError::Closed(_)), "{error}");
                    told += 1;
                }
            }
        }
    }

    #[test]
    fn after_a_failed_sync_nothing_is_written_any_more() {
        let storage = Arc::new(MemoryStorage::default());
        let writer = LogWriter::inline(storage.clone());
        storage.fail_syncs(true);
        assert!(submit(&writer, 1).recv().unwrap().is_err());
        storage.fail_syncs(false);
        assert!(matches!(submit(&writer, 2).recv().unwrap(), Err(StoreError::Closed(_))));
        assert!(storage.get(Table::Log, &[2]).unwrap().is_none());
    }

    #[test]
    fn a_note_says_what_is_newest_when_something_is_synced_and_is_never_written_alone() {
        let storage = Arc::new(MemoryStorage::default());
        let (writer, queue) = LogWriter::queued(storage.clone(), Box::new(|| {}));
        let newest = Arc::new(Mutex::new(1_u8));
        let note = |name: &'static str, key: u8| {
            let newest = newest.clone();
            let make = move || {
                let mut batch = WriteBatch::default();
                batch.put(Table::Log, vec![key], vec![*newest.lock()]);
                batch
            };
            writer.note(name, Box::new(make));
        };
        note("one", 6);
        note("one", 7);
        note("another", 9);
        assert!(!queue.write_group());
        assert!(storage.get(Table::Log, &[7]).unwrap().is_none());
        *newest.lock() = 2;
        let done = submit(&writer, 8);
        queue.write_group();
        done.recv().unwrap().unwrap();
        let left = storage.after_power_loss();
        for key in [7, 9] {
            assert_eq!(left.get(Table::Log, &[key]).unwrap().as_deref(), Some(&[2][..]));
        }
        assert!(left.get(Table::Log, &[6]).unwrap().is_none(), "a later note took its place");
    }

    #[test]
    fn a_writer_that_ends_writes_the_note_that_waits() {
        let storage = Arc::new(MemoryStorage::default());
        let writer = LogWriter::spawn(storage.clone()).unwrap();
        let make = || {
            let mut batch = WriteBatch::default();
            batch.put(Table::Log, vec![7], vec![1]);
            batch
        };
        writer.note("one", Box::new(make));
        drop(writer);
        assert!(storage.after_power_loss().get(Table::Log, &[7]).unwrap().is_some());
    }

    #[test]
    fn a_write_that_waits_for_the_disk_is_seen() {
        let storage = Arc::new(MemoryStorage::default());
        let writer = LogWriter::spawn(storage).unwrap();
        assert_eq!(writer.writing().age(), None);
        let (go_on, gate) = mpsc::channel::<()>();
        let (told, stands) = mpsc::channel();
        // The note is made on the writer's thread, within the write.
        let make = move || {
            told.send(()).unwrap();
            gate.recv().unwrap();
            WriteBatch::default()
        };
        writer.note("one", Box::new(make));
        let done = submit(&writer, 1);
        stands.recv().unwrap();
        assert!(writer.writing().age().is_some());
        go_on.send(()).unwrap();
        done.recv().unwrap().unwrap();
    }
}
