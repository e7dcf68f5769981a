//! Whether what clients were told, what every node shows and what every output holds is one and the same order. Pure:
//! it believes nobody, and compares.

use std::collections::HashMap;
use std::fmt;

use base64::Engine as _;
use lockstep_api::views::{BatchMessageView, BatchView, TaskView};
use lockstep_types::{Address, ContentId, Height, MessageId, Sequence, TaskId, TaskNumber};

use crate::history::{Content, Record};
use crate::outputs::{MessageRow, OutputRows};

/// Violations that are reported in words; more are only counted.
const REPORTED_MAX: usize = 20;

/// What a node shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeChain {
    /// What to call it in a failure.
    pub node: String,
    /// Its batches from height 1 up.
    pub batches: Vec<BatchView>,
    /// The tasks that its batches name, in that order.
    pub tasks: Vec<TaskView>,
}

/// Everything there is to compare.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// What clients were told.
    pub records: Vec<Record>,
    /// What the nodes show.
    pub chains: Vec<NodeChain>,
    /// What the outputs hold.
    pub outputs: Vec<OutputRows>,
    /// Number of the network's first task.
    pub first_task: TaskNumber,
    /// Whose signature each task in an output has.
    pub task_signer: Option<Address>,
}

/// A promise that was broken, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Promise {
    /// Batches form a chain, sequences have no gap and no repeat.
    Chain,
    /// Every node has the same.
    Agreement,
    /// What was acknowledged is there.
    Kept,
    /// It is where it was said to be.
    Position,
    /// The same content has one place.
    Once,
    /// Nothing is there that nobody submitted.
    Origin,
    /// Every message is in one task, and tasks are numbered without gaps.
    Packing,
    /// Outputs hold every task once, as it is.
    Output,
}

/// Broken promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violations(pub Vec<(Promise, String)>);

impl Violations {
    /// Which promises were broken.
    pub fn promises(&self) -> Vec<Promise> {
        let mut promises: Vec<Promise> = self.0.iter().map(|(promise, _)| *promise).collect();
        promises.sort();
        promises.dedup();
        promises
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} violations:", self.0.len())?;
        self.0.iter().take(REPORTED_MAX).try_for_each(|(promise, text)| writeln!(f, "  {promise:?}: {text}"))
    }
}

/// What was compared, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Calls that were answered with a position.
    pub acknowledged: usize,
    /// … of which the node said that it had the message before.
    pub duplicates: usize,
    /// Calls that were not.
    pub failed: usize,
    /// Messages in the order.
    pub messages: usize,
    /// Batches.
    pub batches: usize,
    /// Tasks.
    pub tasks: usize,
}

/// Compares everything with everything.
///
/// # Errors
/// Every violation found.
///
/// # Panics
/// When there is no chain to compare.
pub fn check(findings: &Findings) -> Result<Checked, Violations> {
    let mut violations = Violations(Vec::new());
    for chain in &findings.chains {
        check_chain(chain, findings.first_task, &mut violations);
    }
    let first = findings.chains.first().expect("at least one node to look at");
    for other in &findings.chains[1..] {
        check_agreement(first, other, &mut violations);
    }
    for chain in &findings.chains {
        check_promises(chain, &findings.records, &mut violations);
    }
    for output in &findings.outputs {
        check_output(first, output, findings.task_signer, &mut violations);
    }
    if !violations.0.is_empty() {
        return Err(violations);
    }
    let answers = || findings.records.iter().filter_map(Record::acknowledgement);
    let acknowledged = answers().count();
    Ok(Checked {
        acknowledged,
        duplicates: answers().filter(|answer| answer.duplicate).count(),
        failed: findings.records.len() - acknowledged,
        messages: first.messages().count(),
        batches: first.batches.len(),
        tasks: first.tasks.len(),
    })
}

impl Violations {
    fn add(&mut self, promise: Promise, text: String) {
        self.0.push((promise, text));
    }
}

impl NodeChain {
    fn messages(&self) -> impl Iterator<Item = (Height, &BatchMessageView)> {
        self.batches.iter().flat_map(|batch| batch.messages.iter().map(|message| (batch.height, message)))
    }
}

fn check_chain(chain: &NodeChain, first_task: TaskNumber, violations: &mut Violations) {
    let node = &chain.node;
    let (mut height, mut sequence) = (1, 1);
    let mut parent = None;
    for batch in &chain.batches {
        let mut wrong = |what: &str| violations.add(Promise::Chain, format!("{node}: batch {}: {what}", batch.height));
        if batch.height.0 != height {
            wrong(&format!("height {height} was expected"));
        }
        if parent.is_some_and(|parent| parent != batch.parent) {
            wrong("its parent is another one");
        }
        if batch.first_sequence.0 != sequence {
            wrong(&format!("its first sequence is {}, {sequence} was expected", batch.first_sequence));
        }
        for message in &batch.messages {
            if message.sequence.0 != sequence {
                wrong(&format!("sequence {} where {sequence} was expected", message.sequence));
            }
            sequence += 1;
        }
        height += 1;
        parent = Some(batch.hash);
    }
    check_packing(chain, first_task, violations);
}

fn check_packing(chain: &NodeChain, first_task: TaskNumber, violations: &mut Violations) {
    let node = &chain.node;
    let mut wrong = |what: String| violations.add(Promise::Packing, format!("{node}: {what}"));
    let named: Vec<(Height, TaskId)> =
        chain.batches.iter().flat_map(|batch| batch.tasks.iter().map(|task| (batch.height, *task))).collect();
    if named.len() != chain.tasks.len() {
        wrong(format!("batches name {} tasks, {} were found", named.len(), chain.tasks.len()));
    }
    let mut packed: HashMap<Sequence, usize> = HashMap::new();
    for ((number, (height, id)), task) in (first_task.0..).zip(named).zip(&chain.tasks) {
        if (task.number.0, task.id, task.height) != (number, id, height) {
            wrong(format!("task {} ({}) of batch {} where {number} was expected", task.number, task.id, task.height));
        }
        for message in &task.messages {
            *packed.entry(message.sequence).or_default() += 1;
        }
    }
    for (_, message) in chain.messages() {
        match packed.remove(&message.sequence) {
            Some(1) => {}
            Some(count) => wrong(format!("message {} is in {count} tasks", message.sequence)),
            None => wrong(format!("message {} is in no task", message.sequence)),
        }
    }
    packed.into_keys().for_each(|sequence| wrong(format!("a task has message {sequence}, which is in no batch")));
}

fn check_agreement(first: &NodeChain, other: &NodeChain, violations: &mut Violations) {
    let names = format!("{} and {}", first.node, other.node);
    let mut differ = |what: String| violations.add(Promise::Agreement, format!("{names} differ: {what}"));
    if first.batches.len() != other.batches.len() {
        differ(format!("{} and {} batches", first.batches.len(), other.batches.len()));
    }
    for (a, b) in first.batches.iter().zip(&other.batches).filter(|(a, b)| a != b) {
        differ(format!("batch {}: {a:?} and {b:?}", a.height));
    }
    // How far a task is published, each node knows for itself.
    let same = |a: &TaskView, b: &TaskView| {
        TaskView { status: b.status, chain: b.chain.clone(), receipts: b.receipts.clone(), ..a.clone() } == *b
    };
    for (a, b) in first.tasks.iter().zip(&other.tasks).filter(|(a, b)| !same(a, b)) {
        differ(format!("task {}: {a:?} and {b:?}", a.number));
    }
}

/// A message as a chain has it, with the content that its task shows.
struct Placed<'a> {
    height: Height,
    id: MessageId,
    content: Option<Content>,
    view: &'a BatchMessageView,
}

fn place_all(chain: &NodeChain) -> HashMap<Sequence, Placed<'_>> {
    // Of a repeated sequence the first is kept; the repeat is reported elsewhere.
    let mut placed: HashMap<Sequence, Placed<'_>> = HashMap::new();
    for (height, view) in chain.messages() {
        placed.entry(view.sequence).or_insert(Placed { height, id: view.id, content: None, view });
    }
    for task in &chain.tasks {
        for message in &task.messages {
            let data = message.data.as_deref().and_then(from_base64);
            if let (Some(place), Some(data)) = (placed.get_mut(&message.sequence), data) {
                place.content = Some(Content {
                    device: task.device,
                    project_id: task.project_id,
                    project_version: task.project_version.clone(),
                    data,
                });
            }
        }
    }
    placed
}

fn check_promises(chain: &NodeChain, records: &[Record], violations: &mut Violations) {
    let node = &chain.node;
    let placed = place_all(chain);
    let submitted: HashMap<ContentId, &Record> = records.iter().map(|record| (record.content.id(), record)).collect();
    let mut seen: HashMap<ContentId, Sequence> = HashMap::new();
    let mut order: Vec<_> = placed.iter().collect();
    order.sort_by_key(|(sequence, _)| **sequence);
    for (sequence, place) in order {
        let Some(content) = &place.content else {
            violations.add(Promise::Packing, format!("{node}: no task shows the payload of message {sequence}"));
            continue;
        };
        let id = content.id();
        if let Some(before) = seen.insert(id, *sequence) {
            violations
                .add(Promise::Once, format!("{node}: messages {before} and {sequence} say the same: {content:?}"));
        }
        if !submitted.contains_key(&id) {
            violations.add(Promise::Origin, format!("{node}: nobody submitted message {sequence}: {content:?}"));
        }
        let said = (&content.device, content.project_id, &content.project_version);
        if place.id.0 != id.0 || said != (&place.view.device, place.view.project_id, &place.view.project_version) {
            violations.add(Promise::Packing, format!("{node}: message {sequence} is another one in its task"));
        }
    }
    for record in records {
        let Some(answer) = record.acknowledgement() else { continue };
        let id = record.content.id();
        let Some(actual) = seen.get(&id) else {
            let text = format!("{node} does not have message {}, acknowledged by {}", answer.sequence, answer.node);
            violations.add(Promise::Kept, text);
            continue;
        };
        let height = placed.get(actual).map(|place| place.height);
        let is = (*actual, height, id.0);
        if is != (answer.sequence, Some(answer.height), answer.message_id.0) {
            let text = format!("{node} has it at {actual} in batch {height:?}, {} said: {answer:?}", answer.node);
            violations.add(Promise::Position, text);
        }
    }
}

fn check_output(chain: &NodeChain, output: &OutputRows, signer: Option<Address>, violations: &mut Violations) {
    let name = &output.name;
    let mut wrong = |what: String| violations.add(Promise::Output, format!("output {name}: {what}"));
    if output.tasks.len() != chain.tasks.len() {
        wrong(format!("{} tasks, the chain has {}", output.tasks.len(), chain.tasks.len()));
    }
    let mut expected: Vec<MessageRow> = Vec::with_capacity(output.messages.len());
    for task in &chain.tasks {
        expected.extend(task.messages.iter().map(|message| MessageRow {
            sequence: message.sequence,
            task_id: task.id,
            device: task.device.unwrap_or(Address::ZERO),
            project_id: task.project_id,
            project_version: task.project_version.clone(),
            data: message.data.as_deref().and_then(from_base64).unwrap_or_default(),
        }));
    }
    expected.sort_by_key(|row| row.sequence);
    for (task, row) in chain.tasks.iter().zip(&output.tasks) {
        let sequences: Vec<Sequence> = task.messages.iter().map(|message| message.sequence).collect();
        if (row.number, row.id, row.project_id, &row.sequences) != (task.number, task.id, task.project_id, &sequences) {
            wrong(format!("{row:?} where task {} ({}) was expected", task.number, task.id));
            break;
        }
        match (signer, output.signer_of(row)) {
            (None, _) => {}
            (Some(signer), Ok(found)) if signer == found => {}
            (Some(signer), found) => wrong(format!("task {} is signed by {found:?}, not by {signer}", row.number)),
        }
    }
    if expected.len() != output.messages.len() {
        wrong(format!("{} messages, the chain has {} in tasks", output.messages.len(), expected.len()));
    }
    if let Some((row, expected)) = output.messages.iter().zip(&expected).find(|(row, expected)| row != expected) {
        wrong(format!("{row:?} where {expected:?} was expected"));
    }
}

/// Bytes that a view or a vector shows in standard base64.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use lockstep_api::views::{Progress, RuledView, TaskMessageView, to_base64};
    use lockstep_types::{BatchHash, ProjectId, Signature, SigningKey, TimeMs, w3bstream};

    use super::*;
    use crate::history::{Acknowledgement, Outcome};
    use crate::outputs::TaskRow;

    const PROJECT: ProjectId = ProjectId(7);

    fn key() -> SigningKey {
        SigningKey::from_bytes([3; 32]).unwrap()
    }

    fn content(n: u64) -> Content {
        Content::signed(Address([u8::try_from(n).unwrap(); 20]), PROJECT, "1", format!("reading {n}").as_bytes())
    }

    fn record(n: u64) -> Record {
        let answer = Acknowledgement {
            node: "a".into(),
            message_id: MessageId(content(n).id().0),
            sequence: Sequence(n),
            height: Height(n),
            duplicate: false,
            at: Instant::now(),
        };
        Record { content: content(n), invoked_at: Instant::now(), outcome: Outcome::Acknowledged(answer) }
    }

    /// Batch `n` has message `n`, which is content `says`, in task `n`.
    fn push(chain: &mut NodeChain, n: u64, says: u64) {
        let hash = |n: u64| BatchHash([u8::try_from(n).unwrap(); 32]);
        let content = content(says);
        let id = MessageId(content.id().0);
        let task = TaskId([u8::try_from(n).unwrap(); 32]);
        chain.batches.push(BatchView {
            height: Height(n),
            hash: hash(n),
            parent: hash(n - 1),
            time_ms: TimeMs(n),
            first_sequence: Sequence(n),
            messages: vec![BatchMessageView {
                sequence: Sequence(n),
                id,
                project_id: PROJECT,
                project_version: "1".into(),
                device: content.device,
            }],
            tasks: vec![task],
        });
        chain.tasks.push(TaskView {
            id: task,
            number: TaskNumber(n),
            project_id: PROJECT,
            project_version: "1".into(),
            device: content.device,
            messages: vec![TaskMessageView { sequence: Sequence(n), id, data: Some(to_base64(&content.data)) }],
            status: Progress::Packed,
            signature: None,
            time_ms: TimeMs(n),
            height: Height(n),
            chain: Vec::new(),
            receipts: vec![],
            ruled: RuledView::default(),
        });
    }

    fn chain(node: &str, says: &[u64]) -> NodeChain {
        let mut chain = NodeChain { node: node.into(), batches: Vec::new(), tasks: Vec::new() };
        (1..).zip(says).for_each(|(n, says)| push(&mut chain, n, *says));
        chain
    }

    fn rows(chain: &NodeChain) -> OutputRows {
        let mut rows = OutputRows { name: "o".into(), ..OutputRows::default() };
        for task in &chain.tasks {
            let device = task.device.unwrap();
            let data = from_base64(task.messages[0].data.as_ref().unwrap()).unwrap();
            let digest = w3bstream::task_digest(&task.id, PROJECT, "1", &device, [&data[..]]);
            rows.tasks.push(TaskRow {
                number: task.number,
                id: task.id,
                project_id: PROJECT,
                sequences: vec![task.messages[0].sequence],
                signature: key().sign(&digest),
            });
            rows.messages.push(MessageRow {
                sequence: task.messages[0].sequence,
                task_id: task.id,
                device,
                project_id: PROJECT,
                project_version: "1".into(),
                data,
            });
        }
        rows
    }

    fn findings() -> Findings {
        let (a, b) = (chain("a", &[1, 2, 3]), chain("b", &[1, 2, 3]));
        Findings {
            records: (1..=3).map(record).collect(),
            outputs: vec![rows(&a)],
            chains: vec![a, b],
            first_task: TaskNumber(1),
            task_signer: Some(key().address()),
        }
    }

    fn broken(findings: &Findings) -> Vec<Promise> {
        check(findings).expect_err("a violation").promises()
    }

    #[test]
    fn what_agrees_passes() {
        let checked = check(&findings()).unwrap();
        assert_eq!((checked.acknowledged, checked.messages, checked.batches, checked.tasks), (3, 3, 3, 3));
    }

    #[test]
    fn a_lost_message_is_found() {
        let mut lost = findings();
        lost.chains = vec![chain("a", &[1, 2]), chain("b", &[1, 2])];
        lost.outputs = vec![rows(&lost.chains[0])];
        assert_eq!(broken(&lost), [Promise::Kept]);
    }

    #[test]
    fn a_moved_message_is_found() {
        let mut moved = findings();
        moved.chains = vec![chain("a", &[1, 3, 2]), chain("b", &[1, 3, 2])];
        moved.outputs = vec![rows(&moved.chains[0])];
        assert_eq!(broken(&moved), [Promise::Position]);
        let mut renamed = findings();
        let Outcome::Acknowledged(answer) = &mut renamed.records[0].outcome else { unreachable!() };
        answer.height = Height(2);
        assert_eq!(broken(&renamed), [Promise::Position]);
    }

    #[test]
    fn a_repeated_content_is_found_even_under_another_name() {
        let mut repeated = findings();
        for chain in &mut repeated.chains {
            push(chain, 4, 2);
        }
        repeated.outputs = vec![rows(&repeated.chains[0])];
        assert!(broken(&repeated).contains(&Promise::Once));
        for chain in &mut repeated.chains {
            let id = MessageId::of_occurrence(&content(2).id(), 2, Height(0));
            chain.batches[3].messages[0].id = id;
            chain.tasks[3].messages[0].id = id;
        }
        assert!(broken(&repeated).contains(&Promise::Once));
    }

    #[test]
    fn a_message_that_nobody_submitted_is_found() {
        let mut invented = findings();
        invented.records.pop();
        assert_eq!(broken(&invented), [Promise::Origin]);
    }

    #[test]
    fn a_differing_node_is_found() {
        let mut differing = findings();
        differing.chains[1].batches[1].hash = BatchHash([9; 32]);
        differing.chains[1].batches[2].parent = BatchHash([9; 32]);
        assert_eq!(broken(&differing), [Promise::Agreement]);
        let mut shorter = findings();
        shorter.chains[1] = chain("b", &[1, 2]);
        assert_eq!(broken(&shorter), [Promise::Agreement, Promise::Kept]);
        let mut task = findings();
        task.chains[1].tasks[0].time_ms = TimeMs(99);
        assert_eq!(broken(&task), [Promise::Agreement]);
    }

    #[test]
    fn gaps_repeats_and_broken_links_are_found() {
        type Change = fn(&mut NodeChain);
        let changes: [Change; 4] = [
            |chain| chain.batches[1].parent = BatchHash([9; 32]),
            |chain| chain.batches[1].height = Height(7),
            |chain| chain.batches[1].first_sequence = Sequence(1),
            |chain| chain.batches[1].messages[0].sequence = Sequence(1),
        ];
        for change in changes {
            let mut gap = findings();
            gap.chains.iter_mut().for_each(change);
            assert!(broken(&gap).contains(&Promise::Chain));
        }
    }

    #[test]
    fn a_message_in_two_tasks_or_in_none_is_found() {
        let mut twice = findings();
        for chain in &mut twice.chains {
            let extra = chain.tasks[0].messages[0].clone();
            chain.tasks[1].messages.insert(0, extra);
        }
        assert!(broken(&twice).contains(&Promise::Packing));
        let mut none = findings();
        for chain in &mut none.chains {
            chain.tasks.remove(2);
            chain.batches[2].tasks.clear();
        }
        assert!(broken(&none).contains(&Promise::Packing));
        let mut number = findings();
        number.chains.iter_mut().for_each(|chain| chain.tasks[1].number = TaskNumber(9));
        assert!(broken(&number).contains(&Promise::Packing));
    }

    #[test]
    fn missing_changed_and_foreign_rows_of_an_output_are_found() {
        type Change = fn(&mut OutputRows);
        let changes: [Change; 8] = [
            |rows| drop(rows.tasks.pop()),
            |rows| drop(rows.tasks.remove(1)),
            |rows| drop(rows.messages.remove(1)),
            |rows| rows.tasks.push(rows.tasks[2].clone()),
            |rows| rows.messages[1].data = b"other".to_vec(),
            |rows| rows.messages[1].project_version = "2".into(),
            |rows| rows.tasks[1].number = TaskNumber(9),
            |rows| rows.tasks[1].signature = Signature([1; 65]),
        ];
        for (n, change) in changes.into_iter().enumerate() {
            let mut wrong = findings();
            change(&mut wrong.outputs[0]);
            assert_eq!(broken(&wrong), [Promise::Output], "change {n}");
        }
    }
}
