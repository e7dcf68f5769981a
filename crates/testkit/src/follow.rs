//! Checks a network while it runs, as far as it can be told then: each node's new batches against what any node has
//! shown before, and every acknowledgement against them. [`crate::audit`] checks all of it once there is no load.

use std::collections::{BTreeSet, HashMap, HashSet};

use anyhow::Context as _;
use lockstep_api::views::{BatchView, BatchesView};
use lockstep_client::Client;
use lockstep_types::{Height, MessageId, Sequence};

use crate::check::{Promise, Violations};
use crate::history::{Acknowledgement, History};

/// Batches asked for at a time.
const PAGE: usize = 100;

/// The order as nodes have shown it so far. Pure.
#[derive(Debug, Default)]
pub struct Order {
    /// Height 1 is at 0.
    batches: Vec<(BatchView, String)>,
    places: HashMap<MessageId, (Sequence, Height)>,
    next_sequence: u64,
    /// What was submitted by the calls before `known`.
    submitted: HashSet<MessageId>,
    known: usize,
    /// How far the order was compared with what was submitted.
    looked_for_origin: usize,
    /// Calls before this one have an outcome that is checked.
    settled: usize,
    /// Calls after it that are checked already.
    checked: BTreeSet<usize>,
    violations: Vec<(Promise, String)>,
}

impl Order {
    /// How many batches are known.
    pub fn height(&self) -> usize {
        self.batches.len()
    }

    /// How many messages are known.
    pub fn messages(&self) -> usize {
        self.places.len()
    }

    /// Takes a batch that `node` shows, which is known or the next one.
    pub fn show(&mut self, node: &str, batch: BatchView) {
        let at = usize::try_from(batch.height.0).unwrap_or_default();
        if let Some((known, by)) = at.checked_sub(1).and_then(|at| self.batches.get(at)) {
            if *known != batch {
                let text = format!("{node} and {by} differ at height {at}: {batch:?} and {known:?}");
                self.violations.push((Promise::Agreement, text));
            }
            return;
        }
        self.extend(node, batch);
    }

    fn extend(&mut self, node: &str, batch: BatchView) {
        let mut wrong =
            |text: String| self.violations.push((Promise::Chain, format!("{node}: batch {}: {text}", batch.height)));
        if batch.height.0 != self.batches.len() as u64 + 1 {
            wrong(format!("height {} was expected", self.batches.len() + 1));
            return;
        }
        if self.batches.last().is_some_and(|(parent, _)| parent.hash != batch.parent) {
            wrong("its parent is another one".into());
        }
        let mut expected = self.next_sequence.max(1);
        if batch.first_sequence.0 != expected {
            wrong(format!("its first sequence is {}, {expected} was expected", batch.first_sequence));
        }
        for message in &batch.messages {
            if message.sequence.0 != expected {
                wrong(format!("sequence {} where {expected} was expected", message.sequence));
            }
            expected += 1;
            if let Some((before, _)) = self.places.insert(message.id, (message.sequence, batch.height)) {
                wrong(format!("message {} is at {before} and at {}", message.id, message.sequence));
            }
        }
        self.next_sequence = expected;
        self.batches.push((batch, node.to_owned()));
    }

    /// Compares it with what clients submitted and were told.
    pub fn compare(&mut self, history: &History) {
        history.look(|records| {
            let submitted = records[self.known..].iter().map(|record| MessageId(record.content.id().0));
            self.submitted.extend(submitted);
            self.known = records.len();
            for (batch, node) in &self.batches[self.looked_for_origin..] {
                for message in batch.messages.iter().filter(|message| !self.submitted.contains(&message.id)) {
                    let text = format!("{node}: nobody submitted message {message:?}, or it was ordered before");
                    self.violations.push((Promise::Origin, text));
                }
            }
            self.looked_for_origin = self.batches.len();
            for (at, record) in records.iter().enumerate().skip(self.settled) {
                let Some(answer) = record.acknowledgement() else { continue };
                if self.checked.contains(&at) || answer.height.0 > self.batches.len() as u64 {
                    continue;
                }
                let content = MessageId(record.content.id().0);
                self.violations.extend(verdict(answer, content, self.places.get(&content).copied()));
                self.checked.insert(at);
            }
            while self.checked.remove(&self.settled)
                || records.get(self.settled).is_some_and(|record| record.is_failed())
            {
                self.settled += 1;
            }
        });
    }

    /// Acknowledgements that no node has shown the batch of yet.
    pub fn unseen(&self, history: &History) -> usize {
        let unseen = |answer: &&Acknowledgement| answer.height.0 > self.batches.len() as u64;
        history.look(|records| records.iter().filter_map(|record| record.acknowledgement()).filter(unseen).count())
    }

    /// What was found so far.
    ///
    /// # Errors
    /// Every violation.
    pub fn verdict(&self) -> Result<(), Violations> {
        if self.violations.is_empty() { Ok(()) } else { Err(Violations(self.violations.clone())) }
    }
}

fn verdict(
    answer: &Acknowledgement,
    content: MessageId,
    place: Option<(Sequence, Height)>,
) -> Option<(Promise, String)> {
    match place {
        None => Some((Promise::Kept, format!("no node has the message of {answer:?}"))),
        Some(place) if place != (answer.sequence, answer.height) || answer.message_id != content => {
            Some((Promise::Position, format!("the nodes have {content} at {place:?}, not as in {answer:?}")))
        }
        Some(_) => None,
    }
}

/// Reads what a node shows from `from` on, to its head, into the order. Returns the height to go on from.
///
/// # Errors
/// When the node stops answering; what was read until then is in the order.
pub async fn read_on(
    order: &mut Order,
    client: &Client,
    index: usize,
    node: &str,
    mut from: usize,
) -> anyhow::Result<usize> {
    loop {
        let path = format!("/api/batches?from={from}&limit={PAGE}");
        let page: BatchesView = client.get_json_from(index, &path).await.with_context(|| node.to_owned())?;
        let count = page.batches.len();
        from += count;
        page.batches.into_iter().for_each(|batch| order.show(node, batch));
        if count == 0 {
            return Ok(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use lockstep_api::views::BatchMessageView;
    use lockstep_client::Submitted;
    use lockstep_types::{Address, BatchHash, ProjectId, TimeMs};

    use super::*;
    use crate::history::Content;

    fn content(n: u8) -> Content {
        Content::signed(Address([n; 20]), ProjectId(7), "1", b"reading")
    }

    fn batch(n: u8, says: u8) -> BatchView {
        let message = BatchMessageView {
            sequence: Sequence(n.into()),
            id: MessageId(content(says).id().0),
            project_id: ProjectId(7),
            project_version: "1".into(),
            device: Some(Address([says; 20])),
        };
        BatchView {
            height: Height(n.into()),
            hash: BatchHash([n; 32]),
            parent: BatchHash([n - 1; 32]),
            time_ms: TimeMs(n.into()),
            first_sequence: Sequence(n.into()),
            messages: vec![message],
            tasks: vec![],
        }
    }

    /// Contents 1 to 3, the first two acknowledged at their own numbers.
    fn history() -> History {
        let history = History::new();
        for n in 1..=3_u8 {
            let call = history.invoke(content(n));
            if n < 3 {
                let submitted = Submitted {
                    message_id: MessageId(content(n).id().0),
                    task_id: None,
                    sequence: Sequence(n.into()),
                    height: Height(n.into()),
                    duplicate: false,
                    url: "a".into(),
                    attempts: 1,
                };
                history.acknowledge(call, &submitted);
            }
        }
        assert!(history.first_answer_to_calls_after(Instant::now()).is_none());
        history
    }

    fn broken(shown: &[(&str, BatchView)]) -> Vec<Promise> {
        let mut order = Order::default();
        for (node, batch) in shown {
            order.show(node, batch.clone());
            // Again and again, as a test that runs does.
            order.compare(&history());
        }
        order.verdict().map_or_else(|violations| violations.promises(), |()| vec![])
    }

    #[test]
    fn what_agrees_passes_and_a_batch_that_is_not_shown_yet_is_waited_for() {
        let mut order = Order::default();
        order.show("a", batch(1, 1));
        order.show("b", batch(1, 1));
        order.compare(&history());
        assert_eq!(order.unseen(&history()), 1);
        order.show("b", batch(2, 2));
        order.show("a", batch(2, 2));
        order.compare(&history());
        order.verdict().unwrap();
        assert_eq!((order.unseen(&history()), order.height(), order.messages(), order.settled), (0, 2, 2, 2));
    }

    #[test]
    fn differing_nodes_are_found() {
        let mut other = batch(2, 2);
        other.time_ms = TimeMs(9);
        assert_eq!(broken(&[("a", batch(1, 1)), ("a", batch(2, 2)), ("b", other)]), [Promise::Agreement]);
    }

    #[test]
    fn lost_moved_repeated_and_invented_messages_are_found() {
        assert_eq!(broken(&[("a", batch(1, 1)), ("a", batch(2, 3))]), [Promise::Kept]);
        assert_eq!(broken(&[("a", batch(1, 2)), ("a", batch(2, 1))]), [Promise::Kept, Promise::Position]);
        assert!(broken(&[("a", batch(1, 1)), ("a", batch(2, 2)), ("a", batch(3, 2))]).contains(&Promise::Chain));
        assert_eq!(broken(&[("a", batch(1, 1)), ("a", batch(2, 2)), ("a", batch(3, 9))]), [Promise::Origin]);
    }

    #[test]
    fn gaps_and_broken_links_are_found() {
        assert!(broken(&[("a", batch(1, 1)), ("a", batch(3, 3))]).contains(&Promise::Chain));
        let mut link = batch(2, 2);
        link.parent = BatchHash([9; 32]);
        assert_eq!(broken(&[("a", batch(1, 1)), ("a", link)]), [Promise::Chain]);
    }
}
