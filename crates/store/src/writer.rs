//! The one writer of synced data: what waits is grouped into one write and one sync.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;

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

/// Most batches that wait for the writer; a further one waits to be taken. Consensus has far fewer under way.
const WAITING_BATCHES_MAX: usize = 1024;
/// Most batches that share one sync, so that the first of them does not wait for ever.
const GROUPED_BATCHES_MAX: usize = 256;

struct Job {
    batch: WriteBatch,
    done: Waiting,
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
    closed: Arc<Mutex<Option<String>>>,
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
            write_group(&*self.storage, group, &self.closed);
        }
        found
    }

    /// Whether something waits.
    pub fn is_empty(&self) -> bool {
        self.jobs.lock().is_empty()
    }

    /// What waits, in order: a power loss may find any part of it on the disk.
    pub fn waiting(&self) -> Vec<WriteBatch> {
        self.jobs.lock().iter().map(|job| job.batch.clone()).collect()
    }
}

/// Writes batches in the order of submission. After the first failure every batch fails with
/// [`StoreError::Closed`], until the process restarts: what is on disk is no longer known.
pub struct LogWriter {
    mode: Mode,
    closed: Arc<Mutex<Option<String>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl LogWriter {
    /// A writer with a thread of its own.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn spawn(storage: Arc<dyn Storage>) -> Result<Self, StoreError> {
        let (sender, receiver) = sync_channel(WAITING_BATCHES_MAX);
        let closed = Arc::new(Mutex::new(None));
        let latch = closed.clone();
        let thread = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || write_all(&*storage, &receiver, &latch))
            .map_err(|e| StoreError::Open(format!("cannot start the log writer: {e}")))?;
        Ok(Self { mode: Mode::Thread(sender), closed, thread: Mutex::new(Some(thread)) })
    }

    /// A writer that writes before `submit` returns: for simulation, where nothing may run beside the test.
    pub fn inline(storage: Arc<dyn Storage>) -> Self {
        Self { mode: Mode::Inline(storage), closed: Arc::default(), thread: Mutex::new(None) }
    }

    /// A writer whose batches wait until somebody calls [`QueuedWrites::write_group`], who is told by `wake` when there
    /// is one: for a simulated disk, which takes its time.
    pub fn queued(storage: Arc<dyn Storage>, wake: Box<dyn Fn() + Send + Sync>) -> (Self, Arc<QueuedWrites>) {
        let closed: Arc<Mutex<Option<String>>> = Arc::default();
        let queue = Arc::new(QueuedWrites { storage, jobs: Mutex::default(), closed: closed.clone(), wake });
        (Self { mode: Mode::Queue(queue.clone()), closed, thread: Mutex::new(None) }, queue)
    }

    /// Hands over a batch. `done` is called exactly once, after the sync.
    pub fn submit(&self, batch: WriteBatch, done: WriteDone) {
        let done = Waiting(Some(done));
        match &self.mode {
            Mode::Inline(storage) => write_group(&**storage, vec![Job { batch, done }], &self.closed),
            Mode::Queue(queue) => {
                queue.jobs.lock().push_back(Job { batch, done });
                (queue.wake)();
            }
            Mode::Thread(sender) => {
                // Where the thread has ended the job comes back, and with it whoever waits is told.
                drop(sender.send(Job { batch, done }));
            }
        }
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

fn write_all(storage: &dyn Storage, jobs: &Receiver<Job>, closed: &Mutex<Option<String>>) {
    while let Ok(first) = jobs.recv() {
        let mut group = vec![first];
        group.extend(jobs.try_iter().take(GROUPED_BATCHES_MAX - 1));
        write_group(storage, group, closed);
    }
}

fn write_group(storage: &dyn Storage, group: Vec<Job>, closed: &Mutex<Option<String>>) {
    let (mut merged, mut waiting) = (WriteBatch::default(), Vec::with_capacity(group.len()));
    for job in group {
        merged.append(job.batch);
        waiting.push(job.done);
    }
    let earlier = closed.lock().clone();
    let result = match earlier {
        Some(reason) => Err(StoreError::Closed(reason)),
        None => storage.write(merged, Durability::Synced),
    };
    if let Err(error) = &result {
        let mut reason = closed.lock();
        if reason.is_none() {
            tracing::error!(%error, "a sync of the log failed: this node writes nothing more until it is restarted");
            *reason = Some(error.to_string());
        }
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
}
