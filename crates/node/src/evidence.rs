//! What a voter still has to check before it may sign a batch. Evidence that was checked when a message came in is not
//! checked again; the rest is handed from `apply` to the verification threads, without a way through the store.

use std::collections::{HashMap, VecDeque};

use lockstep_ledger::{Applied, Outcome};
use lockstep_types::{Batch, ContentId, Evidence, Height, Message, Sequence};
use parking_lot::Mutex;

use crate::limits::{EVIDENCE_BYTES_MAX, EVIDENCE_KNOWN_MAX};

/// Bytes that a message takes here beside its payload, about.
const MESSAGE_OVERHEAD_BYTES: usize = 256;

/// An ordered message with its place and name.
pub(crate) type Named = (Sequence, ContentId, Message);

/// The messages of a batch whose evidence this node has not checked.
#[derive(Debug)]
pub(crate) struct Unchecked {
    pub height: Height,
    pub messages: Vec<Named>,
}

impl Unchecked {
    /// Everything in a batch that was read from the store.
    pub fn all_of(batch: Batch) -> Self {
        let sequences = (batch.header.first_sequence.0..).map(Sequence);
        let named = |(sequence, message): (Sequence, Message)| (sequence, message.content_id(), message);
        let messages = sequences.zip(batch.messages.into_iter().map(|ordered| ordered.message)).map(named).collect();
        Self { height: batch.header.height, messages }
    }

    fn bytes(&self) -> usize {
        let of = |(_, _, message): &Named| message.data.len() + MESSAGE_OVERHEAD_BYTES;
        MESSAGE_OVERHEAD_BYTES + self.messages.iter().map(of).sum::<usize>()
    }
}

#[derive(Default)]
struct Inner {
    /// Checked and not ordered yet, in two generations: what is not ordered while as many others come in is forgotten,
    /// and checked once more.
    known: [HashMap<ContentId, Evidence>; 2],
    /// By height, perhaps with gaps: what is not here is in the store.
    waiting: VecDeque<Unchecked>,
    bytes: usize,
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct EvidenceQueue(Mutex<Inner>);

impl EvidenceQueue {
    /// Notes evidence that this node has checked, before its message can be ordered.
    pub fn add_known(&self, checked: impl Iterator<Item = (ContentId, Evidence)>) {
        let mut inner = self.0.lock();
        inner.known[0].extend(checked);
        if inner.known[0].len() >= EVIDENCE_KNOWN_MAX {
            inner.known.swap(0, 1);
            inner.known[0].clear();
        }
    }

    /// Queues what an entry ordered. Above a limit it is left out: it is in the store.
    pub fn applied(&self, applied: &Applied) {
        let Some(batch) = applied.batch() else { return };
        let ordered = applied.outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Ordered { .. }));
        let sequences = (batch.header.first_sequence.0..).map(Sequence);
        let mut inner = self.0.lock();
        let mut unchecked = Unchecked { height: batch.header.height, messages: Vec::new() };
        for ((sequence, (id, _)), message) in sequences.zip(ordered).zip(&batch.messages) {
            if !inner.take_known(id, &message.message.evidence) {
                unchecked.messages.push((sequence, *id, message.message.clone()));
            }
        }
        let bytes = unchecked.bytes();
        if inner.bytes + bytes <= EVIDENCE_BYTES_MAX {
            inner.bytes += bytes;
            inner.waiting.push_back(unchecked);
        }
    }

    /// What is to be checked from `height` on, without a gap, up to about `messages_max` messages; empty where only the
    /// store knows. Lower heights are not asked for any more.
    pub fn take(&self, height: Height, messages_max: usize) -> Vec<Unchecked> {
        let mut inner = self.0.lock();
        let (mut next, mut count, mut taken) = (height, 0, Vec::new());
        while count < messages_max
            && let Some(first) = inner.waiting.pop_front_if(|first| first.height <= next)
        {
            inner.bytes -= first.bytes();
            if first.height == next {
                (next, count) = (next.next(), count + first.messages.len());
                taken.push(first);
            }
        }
        taken
    }
}

impl Inner {
    fn take_known(&mut self, id: &ContentId, evidence: &Evidence) -> bool {
        self.known.iter_mut().any(|generation| generation.remove(id).is_some_and(|known| known == *evidence))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lockstep_ledger::Write;
    use lockstep_types::{
        Address, Api, BatchHeader, MessageId, NetworkId, NodeId, OrderedMessage, ProjectId, Signature,
    };

    use super::*;

    fn message(n: u8, payload: usize) -> Message {
        Message {
            api: Api::Apinode,
            project_id: ProjectId(1),
            project_version: "0.1".into(),
            data: Bytes::from(vec![n; payload]),
            device: Address([n; 20]),
            nonce: Bytes::new(),
            evidence: Evidence::Device(Signature([n; 65])),
            via: NodeId(1),
        }
    }

    /// What `apply` makes of `messages`, after a retry that it did not order.
    fn applied(height: u64, messages: &[Message]) -> Applied {
        let zero = [0; 32];
        let (first_sequence, height) = (Sequence(height * 100), Height(height));
        let header = BatchHeader {
            first_sequence,
            message_count: messages.len() as u64,
            ..BatchHeader::of_nothing(NetworkId(zero), height)
        };
        let retry = Outcome::Duplicate { message_id: MessageId(zero), sequence: Sequence(1), height: Height(1) };
        let mut outcomes = vec![(ContentId(zero), retry)];
        let mut ordered = Vec::new();
        for message in messages {
            let (id, via) = (message.content_id(), message.via);
            let message_id = MessageId(id.0);
            let place = Outcome::Ordered { message_id, sequence: first_sequence, height, task_id: None, via };
            outcomes.push((id, place));
            ordered.push(OrderedMessage { id: message_id, message: message.clone() });
        }
        let batch = Batch { header, messages: ordered, tasks: Vec::new(), next_set: None };
        Applied { outcomes, writes: vec![Write::Batch(Box::new(batch))], ..Applied::default() }
    }

    fn know(queue: &EvidenceQueue, message: &Message) {
        queue.add_known(std::iter::once((message.content_id(), message.evidence.clone())));
    }

    #[test]
    fn what_was_checked_on_its_way_in_is_left_out_and_other_evidence_for_it_is_not() {
        let queue = EvidenceQueue::default();
        let (known, other, forged) = (message(1, 10), message(2, 10), message(3, 10));
        know(&queue, &known);
        know(&queue, &forged);
        let forged = Message { evidence: Evidence::Device(Signature([9; 65])), ..forged };
        queue.applied(&applied(1, &[known.clone(), other.clone(), forged.clone()]));
        let unchecked = queue.take(Height(1), 1).remove(0);
        let expected =
            vec![(Sequence(101), other.content_id(), other), (Sequence(102), forged.content_id(), forged.clone())];
        assert_eq!(unchecked.messages, expected);
        // Nothing is kept of what has its place.
        queue.applied(&applied(2, &[known]));
        assert_eq!(queue.take(Height(2), 1)[0].messages.len(), 1);
    }

    #[test]
    fn what_is_read_from_the_store_is_named_as_what_is_applied() {
        let queue = EvidenceQueue::default();
        let made = applied(4, &[message(1, 10), message(2, 10)]);
        queue.applied(&made);
        let stored = Unchecked::all_of(made.batch().unwrap().clone());
        assert_eq!(queue.take(Height(4), 1)[0].messages, stored.messages);
        assert_eq!(stored.height, Height(4));
    }

    #[test]
    fn heights_are_taken_in_order_and_gaps_are_for_the_store() {
        let queue = EvidenceQueue::default();
        for height in [2, 3, 4, 5, 7] {
            queue.applied(&applied(height, &[message(1, 10), message(2, 10)]));
        }
        let take = |height, max| queue.take(Height(height), max).iter().map(|u| u.height.0).collect::<Vec<_>>();
        assert!(take(1, 100).is_empty());
        assert_eq!(take(3, 3), [3, 4]);
        assert_eq!(take(5, 100), [5]);
        assert!(take(6, 100).is_empty());
        assert_eq!(take(7, 1), [7]);
        assert_eq!(queue.0.lock().bytes, 0);
    }

    #[test]
    fn the_queue_is_bounded_by_bytes_and_what_was_checked_by_number() {
        let queue = EvidenceQueue::default();
        for height in 1..=20 {
            queue.applied(&applied(height, &[message(1, EVIDENCE_BYTES_MAX / 10)]));
        }
        assert!(queue.0.lock().bytes <= EVIDENCE_BYTES_MAX);
        let kept = queue.take(Height(1), usize::MAX);
        assert_eq!(kept.last().map(|last| last.height), Some(Height(9)));
        let id = |n: usize| ContentId(lockstep_types::keccak256(&[&n.to_be_bytes()]));
        let evidence = Evidence::Device(Signature([1; 65]));
        for n in 0..3 * EVIDENCE_KNOWN_MAX {
            queue.add_known(std::iter::once((id(n), evidence.clone())));
        }
        assert!(queue.0.lock().known.iter().map(HashMap::len).sum::<usize>() <= 2 * EVIDENCE_KNOWN_MAX);
        assert!(queue.0.lock().take_known(&id(3 * EVIDENCE_KNOWN_MAX - 1), &evidence));
    }
}
