//! Final tasks with all that their blobs need: out of the node's state or a backup's.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lockstep_api::ReadError as AnswerError;
use lockstep_consensus::{ReadError, StateStore};
use lockstep_ledger::History as _;
use lockstep_outputs::{Origin, Part, UnsignedTask};
use lockstep_types::blob::{Anchor, BlobMessage, BlobTask, cut};
use lockstep_types::merkle::Tree;
use lockstep_types::{
    Batch, ContentId, DecodeError, Digest, Height, OrderedMessage, Sequence, Signature, Task, TaskNumber,
};

use crate::limits::READ_BYTES_MAX;
use crate::proofs::{History, headers_between, way_to};
use crate::publish::{TaskReader, UntilTorn};

/// Contents of which it is remembered how often they were met, so that a device that says the same for ever is not
/// counted from its newest message each time.
const COUNTS_MAX: usize = 65_536;
/// Batches of one read.
const PAGE_BATCHES: usize = 16;

/// Why parts cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartError {
    /// The state.
    #[error(transparent)]
    State(#[from] ReadError),
    /// The way to the certificate.
    #[error(transparent)]
    Way(#[from] AnswerError),
    /// No certificate covers a batch.
    #[error("no certificate covers batch {0}")]
    NotFinal(Height),
}

type Find<'a> = Box<dyn FnMut(Sequence) -> Result<Option<Batch>, ReadError> + 'a>;

/// See the module's documentation.
pub(crate) struct PartReader<'a> {
    state: &'a StateStore,
    history: &'a History,
    /// What is older may be forgotten.
    oldest: Sequence,
    part_bytes: usize,
    reader: TaskReader<Find<'a>>,
    counts: HashMap<ContentId, u64>,
    /// The anchor of the batch before: the next one's is often the rest of it.
    anchor: Option<Anchor>,
}

/// A task before it has an origin and a signature.
struct Whole {
    task: UnsignedTask,
    messages: Vec<BlobMessage>,
    path: Vec<Digest>,
}

impl Whole {
    /// Bytes that it takes in a blob.
    fn blob_bytes(&self) -> usize {
        let blob = BlobTask {
            number: self.task.number,
            id: self.task.id,
            project_id: self.task.project_id,
            project_version: self.task.project_version.clone(),
            device: self.task.device,
            path: self.path.clone(),
            signature: Signature([0; 65]),
            messages: self.messages.clone(),
            ruled: self.task.ruled.as_deref().cloned().map(Box::new),
        };
        blob.encoded_bytes()
    }

    fn payload_bytes(&self) -> usize {
        self.messages.iter().map(|m| m.message.data.len()).sum()
    }

    fn of(self, part: &Arc<Part>) -> UnsignedTask {
        let ruled = self.task.ruled.clone();
        let origin = Origin { part: Arc::clone(part), path: self.path, messages: self.messages, ruled };
        UnsignedTask { origin: Some(Arc::new(origin)), ..self.task }
    }
}

/// A batch's tasks, cut.
struct CutBatch {
    batch: Batch,
    tree: Tree,
    /// With first and last task.
    parts: Vec<(Arc<Part>, TaskNumber, TaskNumber)>,
    /// The tasks, where they are few enough to be kept from the first reading.
    kept: Option<BTreeMap<TaskNumber, Whole>>,
}

fn damaged(reason: String) -> PartError {
    ReadError::Damaged(DecodeError::malformed("chain", reason)).into()
}

impl<'a> PartReader<'a> {
    /// For parts of at most `part_bytes`; messages before `oldest` may be gone.
    pub fn new(state: &'a StateStore, history: &'a History, oldest: Sequence, part_bytes: usize) -> Self {
        let find: Find<'a> = Box::new(|sequence| state.batch_of_message(sequence));
        let reader = TaskReader::new(find);
        Self { state, history, oldest, part_bytes, reader, counts: HashMap::new(), anchor: None }
    }

    /// Tasks from `first` on, whole parts, until there are `max_tasks` or `max_bytes` of payload; up to one of which
    /// messages were forgotten.
    pub fn read(&mut self, first: TaskNumber, (max_tasks, max_bytes): (usize, usize)) -> Result<UntilTorn, PartError> {
        let Some(start) = self.state.batch_of_task(first)? else { return Ok((Vec::new(), None)) };
        let (mut tasks, mut bytes) = (Vec::new(), 0);
        let mut height = start.header.height;
        let mut batches = vec![start];
        loop {
            for batch in std::mem::take(&mut batches) {
                // What is behind the last final task has no certificate yet.
                if tasks.len() >= max_tasks || (bytes >= max_bytes && !tasks.is_empty()) {
                    return Ok((tasks, None));
                }
                height = batch.header.height.next();
                let torn = self.last_torn(&batch)?;
                if let Some(torn) = torn.filter(|torn| *torn >= first) {
                    return Ok((tasks, Some(torn)));
                }
                if batch.tasks.is_empty() {
                    continue;
                }
                let mut cut = self.cut(batch, torn, max_bytes)?;
                let parts = std::mem::take(&mut cut.parts);
                for (part, begin, end) in parts.iter().filter(|(_, _, end)| *end >= first) {
                    if tasks.len() >= max_tasks || (bytes >= max_bytes && !tasks.is_empty()) {
                        return Ok((tasks, None));
                    }
                    for number in (begin.0.max(first.0)..=end.0).map(TaskNumber) {
                        let whole = self.whole(&mut cut, number)?;
                        bytes += whole.payload_bytes();
                        tasks.push(whole.of(part));
                    }
                }
            }
            if tasks.len() >= max_tasks || bytes >= max_bytes {
                return Ok((tasks, None));
            }
            batches = self.state.batches(height, PAGE_BATCHES, READ_BYTES_MAX)?;
            if batches.is_empty() {
                return Ok((tasks, None));
            }
        }
    }

    /// The last task of a batch of which messages were forgotten.
    fn last_torn(&self, batch: &Batch) -> Result<Option<TaskNumber>, PartError> {
        for task in batch.tasks.iter().rev() {
            // It may still be on this disk.
            let first = task.first_sequence();
            let reaches_back = first < self.oldest && first < batch.header.first_sequence;
            if reaches_back && self.state.batch_of_message(first)?.is_none() {
                return Ok(Some(task.number));
            }
        }
        Ok(None)
    }

    /// Cuts the tasks of a batch behind `torn` into parts.
    fn cut(&mut self, batch: Batch, torn: Option<TaskNumber>, max_bytes: usize) -> Result<CutBatch, PartError> {
        let anchor = self.anchor_of(&batch)?;
        let tree = Tree::new(batch.tasks.iter().map(Task::leaf).collect());
        let first = torn.map_or(batch.header.first_task_number, TaskNumber::next);
        let mut found = CutBatch { batch, tree, parts: Vec::new(), kept: Some(BTreeMap::new()) };
        let (mut sizes, mut bytes) = (Vec::new(), 0);
        let end = found.batch.header.first_task_number.0 + found.batch.tasks.len() as u64;
        for number in (first.0..end).map(TaskNumber) {
            let whole = self.read_task(&found, number)?;
            sizes.push(whole.blob_bytes());
            bytes += whole.payload_bytes();
            if bytes > max_bytes {
                found.kept = None;
            }
            if let Some(kept) = &mut found.kept {
                kept.insert(number, whole);
            }
        }
        let counts = cut(anchor.frame_bytes(), sizes, self.part_bytes);
        let parts = u32::try_from(counts.len()).unwrap_or(u32::MAX);
        let mut next = first;
        for (part, count) in (0..).zip(counts) {
            let last = TaskNumber(next.0 + count as u64 - 1);
            found.parts.push((Arc::new(Part { anchor: anchor.clone(), part, parts }), next, last));
            next = last.next();
        }
        Ok(found)
    }

    fn whole(&mut self, cut: &mut CutBatch, number: TaskNumber) -> Result<Whole, PartError> {
        match cut.kept.as_mut().and_then(|kept| kept.remove(&number)) {
            Some(whole) => Ok(whole),
            None => self.read_task(cut, number),
        }
    }

    fn read_task(&mut self, cut: &CutBatch, number: TaskNumber) -> Result<Whole, PartError> {
        let batch = &cut.batch;
        let index = usize::try_from(number.0 - batch.header.first_task_number.0).unwrap_or(usize::MAX);
        let missing = || damaged(format!("task {number} is missing in its batch"));
        let (task, path) = batch.tasks.get(index).zip(cut.tree.path(index)).ok_or_else(missing)?;
        let mut ordered = Vec::with_capacity(task.sequences.len());
        let unsigned = self.reader.read(batch, task, |message| ordered.push(message.clone()))?;
        let numbered = task.sequences.iter().copied().zip(&ordered);
        let messages = numbered.map(|(sequence, message)| self.message(sequence, message)).collect::<Result<_, _>>()?;
        Ok(Whole { task: unsigned, messages, path: path.into_iter().map(Digest).collect() })
    }

    /// A message with which occurrence of its content it is: no record says so, but that of the newest one is there.
    fn message(&mut self, sequence: Sequence, ordered: &OrderedMessage) -> Result<BlobMessage, PartError> {
        let (content, id) = (ordered.message.content_id(), &ordered.id);
        let missing = || damaged(format!("which occurrence of its content message {sequence} is cannot be found"));
        let newest = self.state.occurrences(&[content])?.pop().flatten().ok_or_else(missing)?;
        let next = self.counts.get(&content).map(|count| count + 1).filter(|count| *count <= newest.count);
        let near = next.and_then(|next| BlobMessage::count_of(&content, id, (next, newest.since)));
        let found = near.or_else(|| BlobMessage::count_of(&content, id, (newest.count, newest.since)));
        let count = found.ok_or_else(missing)?;
        if count > 1 || next.is_some() {
            if self.counts.len() >= COUNTS_MAX {
                self.counts.clear();
            }
            self.counts.insert(content, count);
        }
        Ok(BlobMessage::new(sequence, *id, (count, newest.since), &ordered.message))
    }

    fn anchor_of(&mut self, batch: &Batch) -> Result<Anchor, PartError> {
        let height = batch.header.height;
        let rest =
            self.anchor.take().filter(|anchor| anchor.header.height < height && height <= anchor.certificate.height);
        let anchor = match rest {
            Some(mut anchor) => {
                anchor.headers.retain(|header| header.height > height);
                Anchor { header: batch.header.clone(), ..anchor }
            }
            None => {
                let certificate = self.state.certificate_from(height)?.ok_or(PartError::NotFinal(height))?;
                let headers = headers_between(self.state, batch, &certificate)?;
                let certified = headers.last().unwrap_or(&batch.header);
                let (members, boundaries) = way_to(self.state, self.history, certified)?;
                Anchor { header: batch.header.clone(), headers, certificate, members, boundaries }
            }
        };
        self.anchor = Some(anchor.clone());
        Ok(anchor)
    }
}
