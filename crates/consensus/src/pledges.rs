//! What this node has bound itself to, and what it knows the others are bound to: the newest header that it signed,
//! and up to which index each member has acknowledged committed entries. Kept beside the log, never in a snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::channel::oneshot;
use lockstep_store::{LogWriter, Storage, StoreError, Table, WriteBatch, keys};
use lockstep_types::{BatchHash, Epoch, Height, NodeId};
use parking_lot::Mutex;

const SIGNED_BYTES: usize = 48;
const MARK_BYTES: usize = 16;
/// Most members whose marks are kept.
const MARKS_MAX: usize = 1024;

/// A header that this node signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its height.
    pub height: Height,
    /// Its hash.
    pub hash: BatchHash,
}

/// A header must not be signed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PledgeError {
    /// A newer one, or another one at this height, was signed before.
    #[error("this node has signed batch {} at height {} already", .0.hash, .0.height)]
    SignedBefore(Signed),
    /// It could not be written down first.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was written down cannot be read.
    #[error("the record of what this node signed or learned is damaged; the node must join again under a new id")]
    Damaged,
}

/// See the module's documentation. Clones share it.
#[derive(Clone)]
pub struct Pledges {
    writer: Arc<LogWriter>,
    state: Arc<Mutex<State>>,
    /// Held by who pledges: one at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    /// What is on the disk for sure.
    signed: Option<Signed>,
    marks: BTreeMap<NodeId, u64>,
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

impl Signed {
    fn encode(&self) -> Vec<u8> {
        [&self.epoch.0.to_be_bytes()[..], &self.height.0.to_be_bytes(), &self.hash.0].concat()
    }

    pub(crate) fn decode(record: &[u8]) -> Result<Self, PledgeError> {
        if record.len() != SIGNED_BYTES {
            return Err(PledgeError::Damaged);
        }
        let hash = BatchHash::try_from(&record[16..]).map_err(|_| PledgeError::Damaged)?;
        Ok(Self { epoch: Epoch(number(&record[..8])), height: Height(number(&record[8..16])), hash })
    }
}

fn encode_marks(marks: &BTreeMap<NodeId, u64>) -> Vec<u8> {
    marks.iter().flat_map(|(node, index)| [node.0.to_be_bytes(), index.to_be_bytes()].concat()).collect()
}

pub(crate) fn decode_marks(record: &[u8]) -> Result<BTreeMap<NodeId, u64>, PledgeError> {
    if !record.len().is_multiple_of(MARK_BYTES) {
        return Err(PledgeError::Damaged);
    }
    Ok(record.chunks(MARK_BYTES).map(|mark| (NodeId(number(&mark[..8])), number(&mark[8..]))).collect())
}

impl Pledges {
    /// Reads what was written down.
    ///
    /// # Errors
    /// If it cannot be read: then the node must not vote.
    pub fn open(storage: &dyn Storage, writer: Arc<LogWriter>) -> Result<Self, PledgeError> {
        let signed = storage.get(Table::Log, keys::log::SIGNED)?.map(|record| Signed::decode(&record)).transpose()?;
        let marks = storage.get(Table::Log, keys::log::MARKS)?.map(|record| decode_marks(&record)).transpose()?;
        let state = State { signed, marks: marks.unwrap_or_default() };
        Ok(Self { writer, state: Arc::new(Mutex::new(state)), turn: Arc::default() })
    }

    /// The newest header that this node signed.
    pub fn signed(&self) -> Option<Signed> {
        self.state.lock().signed
    }

    /// Writes down, synced, that this node signs a header. Only after `Ok` may the key be used. Calls wait for each
    /// other, so that nobody goes by what another has not written down yet.
    ///
    /// # Errors
    /// If it is not above everything signed before in this epoch, and not the very same.
    pub async fn pledge(&self, next: Signed) -> Result<(), PledgeError> {
        let _turn = self.turn.lock().await;
        match self.signed() {
            Some(before) if before == next => return Ok(()),
            Some(before) if (before.epoch, before.height) >= (next.epoch, next.height) => {
                return Err(PledgeError::SignedBefore(before));
            }
            _ => {}
        }
        let (done, written) = oneshot::channel();
        let mut batch = WriteBatch::default();
        batch.put(Table::Log, keys::log::SIGNED.to_vec(), next.encode());
        self.writer.submit(batch, Box::new(move |result| drop(done.send(result))));
        written.await.map_err(|_| StoreError::Closed("the log writer has stopped".into()))??;
        self.state.lock().signed = Some(next);
        Ok(())
    }

    /// Up to which index a member is known to have acknowledged committed entries.
    pub fn mark(&self, node: NodeId) -> u64 {
        self.state.lock().marks.get(&node).copied().unwrap_or(0)
    }

    /// Learns marks; they never go down. They are written with what is synced next: they are a second line of defence,
    /// and nobody waits for them.
    pub fn learn(&self, news: impl IntoIterator<Item = (NodeId, u64)>) {
        {
            let mut state = self.state.lock();
            let mut changed = false;
            for (node, index) in news {
                if state.marks.len() >= MARKS_MAX && !state.marks.contains_key(&node) {
                    continue;
                }
                let mark = state.marks.entry(node).or_default();
                if index > *mark {
                    (*mark, changed) = (index, true);
                }
            }
            if !changed {
                return;
            }
        }
        let known = self.state.clone();
        let make = move || {
            let mut batch = WriteBatch::default();
            batch.put(Table::Log, keys::log::MARKS.to_vec(), encode_marks(&known.lock().marks));
            batch
        };
        self.writer.note("marks", Box::new(make));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use lockstep_store::MemoryStorage;

    use super::*;

    fn open(storage: &Arc<MemoryStorage>) -> Pledges {
        Pledges::open(&**storage, Arc::new(LogWriter::inline(storage.clone()))).unwrap()
    }

    fn header(epoch: u64, height: u64, byte: u8) -> Signed {
        Signed { epoch: Epoch(epoch), height: Height(height), hash: BatchHash([byte; 32]) }
    }

    #[tokio::test]
    async fn no_second_header_is_ever_signed_at_a_height_also_not_after_a_power_loss() {
        let storage = Arc::new(MemoryStorage::default());
        let pledges = open(&storage);
        pledges.pledge(header(0, 5, 1)).await.unwrap();
        pledges.pledge(header(0, 5, 1)).await.unwrap();
        let again = open(&Arc::new(storage.after_power_loss()));
        for refused in [header(0, 5, 2), header(0, 4, 1)] {
            assert!(matches!(again.pledge(refused).await, Err(PledgeError::SignedBefore(_))));
        }
        again.pledge(header(0, 6, 2)).await.unwrap();
        again.pledge(header(1, 2, 2)).await.unwrap();
        assert!(again.pledge(header(0, 9, 2)).await.is_err());
    }

    #[tokio::test]
    async fn marks_only_rise_and_survive() {
        let storage = Arc::new(MemoryStorage::default());
        let pledges = open(&storage);
        pledges.learn([(NodeId(2), 7), (NodeId(3), 9)]);
        pledges.learn([(NodeId(2), 6)]);
        pledges.pledge(header(0, 5, 1)).await.unwrap();
        let again = open(&Arc::new(storage.after_power_loss()));
        assert_eq!((again.mark(NodeId(2)), again.mark(NodeId(3)), again.mark(NodeId(4))), (7, 9, 0));
    }

    #[tokio::test]
    async fn a_pledge_counts_when_it_is_synced_for_whoever_asks_again_too() {
        let storage = Arc::new(MemoryStorage::default());
        let (writer, queue) = LogWriter::queued(storage.clone(), Box::new(|| {}));
        let pledges = Pledges::open(&*storage, Arc::new(writer)).unwrap();
        let mut first = Box::pin(pledges.pledge(header(0, 5, 1)));
        let mut again = Box::pin(pledges.pledge(header(0, 5, 1)));
        assert!(first.as_mut().now_or_never().is_none() && again.as_mut().now_or_never().is_none());
        assert_eq!((pledges.signed(), queue.waiting().len()), (None, 1));
        queue.write_group();
        first.await.unwrap();
        again.await.unwrap();
        assert_eq!((pledges.signed(), queue.is_empty()), (Some(header(0, 5, 1)), true));
    }

    #[tokio::test]
    async fn a_pledge_that_could_not_be_written_does_not_count_nor_does_one_that_was_left() {
        let storage = Arc::new(MemoryStorage::default());
        let (writer, queue) = LogWriter::queued(storage.clone(), Box::new(|| {}));
        let pledges = Pledges::open(&*storage, Arc::new(writer)).unwrap();
        assert!(pledges.pledge(header(0, 4, 1)).now_or_never().is_none());
        assert_eq!(pledges.signed(), None);
        storage.fail_syncs(true);
        let mut first = Box::pin(pledges.pledge(header(0, 5, 1)));
        let mut again = Box::pin(pledges.pledge(header(0, 5, 1)));
        assert!(first.as_mut().now_or_never().is_none() && again.as_mut().now_or_never().is_none());
        queue.write_group();
        assert!(first.await.is_err());
        assert!(again.as_mut().now_or_never().is_none());
        queue.write_group();
        assert!(again.await.is_err());
        assert_eq!(pledges.signed(), None);
    }
}
