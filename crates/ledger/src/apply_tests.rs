use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;

use bytes::Bytes;
use lockstep_types::genesis::{AGE_MS_MAX, RETRY_MARGIN_MS};
use lockstep_types::{
    Address, Api, Evidence, Message, Place, ProjectId, ProjectSettings, Signature, SigningKey, VerifiedMessage,
    message::message_leaf, proto,
};
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::command::encode_batch;
use crate::outputs::PAUSED_OUTPUTS_MAX;
use crate::pool::Aged;
use crate::rules::compile_rules;

#[path = "apply_tests/vectors.rs"]
mod vectors;

#[path = "apply_tests/life.rs"]
mod life;

#[path = "apply_tests/nonces.rs"]
mod nonces;

#[path = "apply_tests/packing.rs"]
mod packing;

#[path = "apply_tests/rules.rs"]
mod rules;

#[path = "apply_tests/registry.rs"]
mod registry;

#[derive(Default)]
struct View(HashMap<ContentId, Occurrence>, BTreeMap<Height, BatchHeader>, Registry);

/// What is stored of devices and nonces.
#[derive(Default)]
struct Registry {
    devices: BTreeMap<Address, Device>,
    grants: BTreeMap<(ProjectId, Address), crate::Grant>,
    nonces: BTreeMap<Nonce, Sequence>,
    highest_nonces: BTreeMap<(ProjectId, Address), HighestNonce>,
    projects: BTreeMap<ProjectId, Project>,
    aliases: BTreeMap<TaskId, Sequence>,
    places: BTreeMap<(OutputName, TaskNumber), Place>,
    outputs: BTreeMap<OutputName, OutputState>,
    progress: BTreeMap<OutputName, TaskNumber>,
    gaps: BTreeMap<(OutputName, TaskNumber), Gap>,
    rules: BTreeMap<Hash32, Bytes>,
    rules_states: BTreeMap<ProjectId, RulesState>,
    lasts: BTreeMap<(ProjectId, Address), LastTaken>,
    flags: BTreeMap<Sequence, Vec<String>>,
}

impl History for View {
    type Error = Infallible;
    fn header(&self, height: Height) -> Result<Option<BatchHeader>, Infallible> {
        Ok(self.1.get(&height).cloned())
    }
    fn occurrences(&self, ids: &[ContentId]) -> Result<Vec<Option<Occurrence>>, Infallible> {
        Ok(ids.iter().map(|id| self.0.get(id).copied()).collect())
    }
    fn standings(&self, of: &[(ProjectId, Address)]) -> Result<Vec<Standing>, Infallible> {
        let standing = |pair: &(ProjectId, Address)| Standing {
            registered: self.2.devices.get(&pair.1).is_some_and(|device| device.registered),
            grant: self.2.grants.get(pair).copied().unwrap_or_default(),
        };
        Ok(of.iter().map(standing).collect())
    }
    fn lasts(&self, of: &[(ProjectId, Address)]) -> Result<Vec<Option<LastTaken>>, Infallible> {
        Ok(of.iter().map(|pair| self.2.lasts.get(pair).cloned()).collect())
    }
    fn device(&self, device: &Address) -> Result<Option<Device>, Infallible> {
        Ok(self.2.devices.get(device).cloned())
    }
    fn place_at(&self, output: &OutputName, task: TaskNumber) -> Result<Option<Place>, Infallible> {
        Ok(self
            .2
            .places
            .range((output.clone(), TaskNumber(0))..=(output.clone(), task))
            .next_back()
            .map(|(_, p)| p.clone()))
    }
    fn nonces(&self, of: &[Nonce]) -> Result<Vec<Option<Sequence>>, Infallible> {
        Ok(of.iter().map(|nonce| self.2.nonces.get(nonce).copied()).collect())
    }
    fn highest_nonces(&self, of: &[(ProjectId, Address)]) -> Result<Vec<Option<HighestNonce>>, Infallible> {
        Ok(of.iter().map(|device| self.2.highest_nonces.get(device).copied()).collect())
    }
}

/// A ledger with its store: applies, and keeps what was written.
struct Node {
    ledger: Ledger,
    view: View,
    batches: Vec<Batch>,
    groups: BTreeMap<GroupKey, Bytes>,
    waiting: BTreeMap<Sequence, crate::Waiting>,
}

/// The horizon whose oldest batch is the one at a height.
fn horizon_at(node: &Node, height: usize) -> Horizon {
    let header = &node.batches[height - 1].header;
    Horizon { height: header.height, sequence: header.first_sequence, task_number: header.first_task_number }
}

fn params(group_messages_max: u64) -> NetworkParams {
    let devices = Some(lockstep_types::DevicePolicy::Any);
    let default_project = ProjectSettings { group_messages_max, devices, ..ProjectSettings::default() };
    NetworkParams { allow_unknown_projects: true, default_project, ..NetworkParams::default() }
}

/// Three members, whose keys are 32 bytes of 1, 2 and 3, in the order of their public keys.
fn genesis() -> lockstep_types::Genesis {
    let member = |n: u8| lockstep_types::Member {
        name: format!("node-{n}"),
        public_key: format!("{:?}", key(n).public()),
        incarnation: lockstep_types::Incarnation([n; 16]),
        p2p: "/ip4/127.0.0.1/tcp/1".into(),
        http: "http://127.0.0.1:1".into(),
    };
    lockstep_types::Genesis::new("test", (1..=3).map(member).collect(), NetworkParams::default()).unwrap()
}

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes([n; 32]).unwrap()
}

fn parts(params: NetworkParams) -> LedgerParts {
    LedgerParts {
        network: NetworkId([7; 32]),
        epoch: Epoch(0),
        params,
        members: Members::genesis(&genesis()).unwrap(),
        head: None,
        groups: Vec::new(),
        progress: BTreeMap::new(),
        outputs: OutputStates::default(),
        projects: BTreeMap::new(),
        rules: BTreeMap::new(),
        rules_states: BTreeMap::new(),
        chain: None,
        rules_known: RULES_NEWEST,
    }
}

impl Node {
    fn new(params: NetworkParams) -> Self {
        let ledger = Ledger::new(parts(params));
        Self { ledger, view: View::default(), batches: Vec::new(), groups: BTreeMap::new(), waiting: BTreeMap::new() }
    }

    /// Applies a command as it comes out of the log.
    fn run(&mut self, command: Command) -> Applied {
        let encoded = command.encode();
        let command = Command::decode(encoded).unwrap();
        let applied = self.ledger.apply(&self.view, command).unwrap();
        for write in &applied.writes {
            match write {
                Write::Occurrence(id, occurrence) => {
                    assert_eq!(Occurrence::decode(&occurrence.encode()).unwrap(), *occurrence);
                    self.view.0.insert(*id, *occurrence);
                }
                Write::Batch(batch) => {
                    self.view.1.insert(batch.header.height, batch.header.clone());
                    self.batches.push((**batch).clone());
                }
                Write::Group(key, Some(record)) => drop(self.groups.insert(key.clone(), record.clone())),
                Write::Group(key, None) => drop(self.groups.remove(key)),
                Write::Waiting(sequence, Some(waiting)) => {
                    assert_eq!(crate::Waiting::decode(&waiting.encode()).unwrap(), *waiting);
                    self.waiting.insert(*sequence, *waiting);
                }
                Write::Waiting(sequence, None) => drop(self.waiting.remove(sequence)),
                Write::Device(address, device) => drop(self.view.2.devices.insert(*address, (**device).clone())),
                Write::Grant(project, device, grant) => drop(self.view.2.grants.insert((*project, *device), *grant)),
                Write::Nonce(used, by) => drop(self.view.2.nonces.insert(*used, *by)),
                Write::HighestNonce(project, device, highest) => {
                    assert_eq!(HighestNonce::decode(&highest.encode()).unwrap(), *highest);
                    self.view.2.highest_nonces.insert((*project, *device), *highest);
                }
                Write::Project(id, project) => {
                    assert_eq!(Project::decode(project.encode().into()).unwrap(), **project);
                    self.view.2.projects.insert(*id, (**project).clone());
                }
                Write::Place(output, place) => {
                    self.view.2.places.insert((output.clone(), place.first), place.clone());
                }
                Write::Progress(output, number) => drop(self.view.2.progress.insert(output.clone(), *number)),
                Write::Gap(output, gap) => drop(self.view.2.gaps.insert((output.clone(), gap.first), *gap)),
                Write::Output(output, state) => {
                    let stored = &mut self.view.2;
                    stored.outputs.insert(output.clone(), *state);
                    if *state == OutputState::Removed {
                        stored.progress.remove(output);
                        stored.places.retain(|(of, _), _| of != output);
                        stored.gaps.retain(|(of, _), _| of != output);
                    }
                }
                Write::Rules(hash, Some(bundle)) => drop(self.view.2.rules.insert(*hash, bundle.clone())),
                Write::Rules(hash, None) => drop(self.view.2.rules.remove(hash)),
                Write::RulesState(project, state) => {
                    assert_eq!(RulesState::decode(state.encode().into()).unwrap(), **state);
                    self.view.2.rules_states.insert(*project, (**state).clone());
                }
                Write::Last(project, device, last) => {
                    assert_eq!(LastTaken::decode(last.encode().into()).unwrap(), *last);
                    self.view.2.lasts.insert((*project, *device), last.clone());
                }
                Write::Flags(sequence, flags) => drop(self.view.2.flags.insert(*sequence, flags.clone())),
                Write::TaskAlias(alias, sequence) => drop(self.view.2.aliases.insert(*alias, *sequence)),
                _ => {}
            }
        }
        applied
    }

    fn batch(&mut self, time_ms: u64, messages: &[Message]) -> Vec<Outcome> {
        self.propose(time_ms, messages, 0)
    }

    fn propose(&mut self, time_ms: u64, messages: &[Message], make_room_before: u64) -> Vec<Outcome> {
        let (time_ms, make_room_before) = (TimeMs(time_ms), Sequence(make_room_before));
        let proposal =
            ProposedBatch { time_ms, messages: messages.to_vec(), make_room_before, ..ProposedBatch::default() };
        self.run(Command::Batch(proposal)).outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// Proposes one message of some age.
    fn aged(&mut self, time_ms: u64, message: &Message, age_ms: u64) -> Outcome {
        let messages = vec![message.clone()];
        let proposal =
            ProposedBatch { time_ms: TimeMs(time_ms), messages, ages_ms: vec![age_ms], ..ProposedBatch::default() };
        self.run(Command::Batch(proposal)).outcomes.remove(0).1
    }

    /// The same node after a restart: rebuilt from what was stored.
    fn restart(&mut self) {
        let params = self.ledger.params().clone();
        let stored = LedgerParts {
            head: Some(self.ledger.head.clone()),
            groups: OpenGroup::decode_all(self.groups.values().cloned(), self.waiting.clone()).unwrap(),
            members: Members::decode(self.ledger.members.encode().into(), &self.ledger.network).unwrap(),
            progress: self.view.2.progress.clone(),
            outputs: self.view.2.outputs.clone().into_iter().collect(),
            projects: self.view.2.projects.clone(),
            rules: self.view.2.rules.values().map(|bundle| compile_rules(bundle).unwrap()).collect(),
            rules_states: self.view.2.rules_states.clone(),
            chain: self.ledger.chain,
            ..parts(params)
        };
        self.ledger = Ledger::new(stored);
    }
}

fn message(data: &str) -> Message {
    Message {
        api: Api::Apinode,
        project_id: ProjectId(7),
        project_version: "1".into(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        device: Address([1; 20]),
        nonce: Bytes::new(),
        via: lockstep_types::NodeId(0),
        evidence: Evidence::Device(Signature([0; 65])),
    }
}

fn sequence_of(outcome: &Outcome) -> Option<(u64, bool)> {
    match outcome {
        Outcome::Ordered { sequence, .. } => Some((sequence.0, false)),
        Outcome::Duplicate { sequence, .. } => Some((sequence.0, true)),
        Outcome::Rejected(_) => None,
    }
}

/// From when on what was ordered at 1,000 counts as new in a project with the default window.
const LATER: u64 = 1_000 + 10_000 + RETRY_MARGIN_MS;

#[test]
fn a_repeat_is_judged_by_when_its_request_came_in_and_the_first_one_by_its_batch() {
    // Age of the first copy; time and age of the repeat; whether it is new.
    let table = [
        (0, 1_000, 0, false),
        (0, LATER - 1, 0, false),
        (0, LATER, 0, true),
        // However late it is proposed.
        (0, LATER, 1, false),
        (0, LATER + 9_999, 10_000, false),
        (0, LATER + 10_000, 10_000, true),
        (0, LATER + AGE_MS_MAX, AGE_MS_MAX, true),
        // A node that calls the first copy old, or the second one, gets it no second place.
        (AGE_MS_MAX, LATER - 1, 0, false),
        (0, LATER, AGE_MS_MAX, false),
        // Before the first copy, or before all time.
        (0, 1_001, 500, false),
        (0, 1_001, AGE_MS_MAX, false),
        (AGE_MS_MAX, u64::MAX, 0, true),
        (0, u64::MAX, AGE_MS_MAX, true),
    ];
    for (first_age, time, age, is_new) in table {
        let mut node = Node::new(params(1));
        node.aged(1_000, &message("a"), first_age);
        let outcome = node.aged(time, &message("a"), age);
        let expected = if is_new { (2, false) } else { (1, true) };
        assert_eq!(sequence_of(&outcome), Some(expected), "{first_age} {time} {age}");
    }
    // The batch's own time counts, also where the leader's clock is behind it.
    let mut node = Node::new(params(1));
    node.aged(1_000, &message("a"), 0);
    node.aged(LATER, &message("b"), 0);
    assert_eq!(sequence_of(&node.aged(1, &message("a"), 0)), Some((3, false)));
    assert_eq!(sequence_of(&node.aged(1, &message("b"), 5)), Some((2, true)));
}

#[test]
fn what_is_taken_once_is_a_repeat_for_ever_and_a_saturated_window_has_no_end() {
    let mut settings = params(1);
    settings.default_project.retry_window_ms = u64::MAX - 1;
    let mut node = Node::new(settings);
    node.aged(0, &message("a"), 0);
    assert_eq!(sequence_of(&node.aged(u64::MAX - 1, &message("a"), 0)), Some((1, true)));
}

#[test]
fn ages_are_as_many_as_messages_or_none_and_no_greater_than_one_may_be() {
    let decode = |ages_ms: &[u64], messages: usize| {
        let messages = vec![message("a").to_proto(); messages];
        let batch = proto::ProposedBatch { time_ms: 1, messages, ages_ms: ages_ms.to_vec(), ..Default::default() };
        let kind = Some(proto::command::Kind::Batch(batch));
        let bytes = proto::Command { version: 1, kind }.encode_to_vec();
        match Command::decode(bytes.into()) {
            Ok(Command::Batch(batch)) => Some(batch.ages_ms),
            _ => None,
        }
    };
    assert_eq!(decode(&[], 2), Some(vec![]));
    assert_eq!(decode(&[0, AGE_MS_MAX], 2), Some(vec![0, AGE_MS_MAX]));
    assert_eq!(decode(&[0, AGE_MS_MAX + 1], 2), None);
    assert_eq!(decode(&[u64::MAX, 0], 2), None);
    assert_eq!((decode(&[1], 2), decode(&[1, 2, 3], 2), decode(&[1], 0)), (None, None, None));

    let aged = |age_ms| Aged { age_ms, ..Aged::fresh(Arc::new(VerifiedMessage::from_recovered(message("a")))) };
    let encoded = |ages: &[u64]| {
        let messages: Vec<Aged> = ages.iter().copied().map(aged).collect();
        match Command::decode(encode_batch(TimeMs(1), &messages, Sequence(0))) {
            Ok(Command::Batch(batch)) => batch.ages_ms,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(encoded(&[0, 7]), [0, 7]);
    assert_eq!(encoded(&[u64::MAX]), [AGE_MS_MAX], "nothing is encoded that no node reads");
    assert!(encoded(&[0, 0]).is_empty());
}

#[test]
fn a_retry_within_the_window_gets_the_first_position_and_later_it_is_a_new_reading() {
    let mut node = Node::new(params(1));
    let first = node.batch(1_000, &[message("a"), message("b"), message("a")]);
    let places: Vec<_> = first.iter().map(sequence_of).collect();
    assert_eq!(places, [Some((1, false)), Some((2, false)), Some((1, true))]);
    assert_eq!(sequence_of(&node.batch(LATER - 1, &[message("a")])[0]), Some((1, true)));
    assert_eq!(node.batches.len(), 1, "a batch of retries only is no batch");
    assert_eq!(sequence_of(&node.batch(LATER, &[message("a")])[0]), Some((3, false)));
    assert_eq!(sequence_of(&node.batch(LATER + 1, &[message("a")])[0]), Some((3, true)));
    let ids: Vec<_> = node.batches.iter().flat_map(|b| b.messages.iter().map(|m| m.id)).collect();
    assert_ne!(ids[0], ids[2], "a new reading has an id of its own");
}

#[test]
fn time_never_goes_back() {
    let mut node = Node::new(params(1));
    node.batch(5_000, &[message("a")]);
    node.batch(4_000, &[message("b")]);
    assert_eq!(node.batches[1].header.time_ms, TimeMs(5_000));
}

#[test]
fn groups_close_by_count_bytes_and_age() {
    let mut node = Node::new(params(2));
    node.batch(1, &[message("a")]);
    assert!(node.batches[0].tasks.is_empty());
    node.batch(2, &[message("b"), message("c")]);
    assert_eq!(node.batches[1].tasks.len(), 1);
    assert_eq!(node.batches[1].tasks[0].sequences, [Sequence(1), Sequence(2)]);
    // Its age counts from its first message, by the time of batches, also over a restart.
    let age_ms = node.ledger.params().default_project.group_age_max_ms;
    node.propose(1 + age_ms, &[], 0);
    node.restart();
    node.propose(2 + age_ms - 1, &[], 100);
    assert_eq!(node.batches.len(), 2, "no leader ends it before that");
    assert_eq!(node.ledger.next_due(), Some(TimeMs(2 + age_ms)));
    node.propose(2 + age_ms, &[], 0);
    assert_eq!(node.batches[2].tasks[0].sequences, [Sequence(3)]);
    assert!(node.batches[2].messages.is_empty());
    assert_eq!((node.ledger.next_due(), node.waiting.len(), node.groups.len()), (None, 0, 0));

    let settings = ProjectSettings { group_messages_max: 100, group_bytes_max: 4, ..ProjectSettings::default() };
    let mut node = Node::new(NetworkParams { default_project: settings, ..params(1) });
    node.batch(1, &[message("ab"), message("cd"), message("e")]);
    assert_eq!(node.batches[0].tasks[0].sequences.len(), 2);
}

#[test]
fn the_oldest_group_is_closed_when_there_would_be_too_many() {
    let mut node = Node::new(NetworkParams { open_groups_max: 2, ..params(10) });
    let from = |n: u8| Message { device: Address([n; 20]), ..message("x") };
    node.batch(1, &[from(1), from(2), from(3)]);
    assert_eq!(node.batches[0].tasks.len(), 1);
    assert_eq!(node.batches[0].tasks[0].device, Address([1; 20]));
    assert_eq!(node.ledger.open_groups().count(), 2);
}

#[test]
fn what_is_not_permitted_changes_nothing() {
    let mut node = Node::new(NetworkParams { allow_unknown_projects: false, ..params(1) });
    assert_eq!(node.batch(1, &[message("a")]), [Outcome::Rejected(Rejection::UnknownProject)]);
    let mut node = Node::new(NetworkParams { message_bytes_max: 1, ..params(1) });
    let key = SigningKey::from_bytes([1; 32]).unwrap();
    let evidence = Evidence::Ingress { node: key.address(), signature: Signature([0; 65]) };
    let unsigned = Message { api: Api::Unsigned, evidence, ..message("a") };
    let before = node.ledger.head.clone();
    let outcomes = node.batch(1, &[message("ab"), unsigned, message("")]);
    let reasons = [Rejection::TooLarge, Rejection::Unsigned, Rejection::Malformed];
    assert_eq!(outcomes, reasons.map(Outcome::Rejected));
    assert_eq!(node.ledger.head, before);
}

#[test]
fn progress_of_an_output_only_goes_forward_and_never_past_the_tasks() {
    let mut node = Node::new(params(1));
    node.batch(1, &[message("a"), message("b")]);
    let output: OutputName = "pg".parse().unwrap();
    let report = |n: u64| Command::OutputProgress {
        output: "pg".parse().unwrap(),
        task_number: TaskNumber(n),
        places: Vec::new(),
    };
    assert!(node.run(report(3)).writes.is_empty());
    assert_eq!(node.run(report(2)).writes, [Write::Progress(output.clone(), TaskNumber(2))]);
    assert!(node.run(report(1)).writes.is_empty());
    assert_eq!(node.ledger.progress()[&output], TaskNumber(2));
}

#[test]
fn headers_commit_to_messages_tasks_and_the_batch_before() {
    let mut node = Node::new(params(1));
    node.batch(1, &[message("a"), message("b")]);
    node.batch(2, &[message("c")]);
    let [first, second] = &node.batches[..] else { panic!("two batches") };
    assert_eq!(second.header.parent, first.header.hash());
    assert_eq!(first.header.messages_root, Batch::messages_root(Sequence(1), &first.messages));
    let leaves: Vec<_> =
        first.messages.iter().zip(1..).map(|(m, s)| message_leaf(Sequence(s), &m.id, &m.message)).collect();
    let proof = lockstep_types::merkle::proof(&leaves, 1).unwrap();
    assert!(lockstep_types::merkle::verify(leaves[1], &proof, &first.header.messages_root));
    let decoded = Batch::decode(first.encode().into()).unwrap();
    assert_eq!(&decoded, first);
}

#[derive(Debug, Clone)]
enum Step {
    Batch { advance_ms: u64, messages: Vec<(u8, u8)> },
    MakeRoom { before: u64 },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let batch = (0_u64..6_000, prop::collection::vec((0_u8..3, 0_u8..6), 0..8))
        .prop_map(|(advance_ms, messages)| Step::Batch { advance_ms, messages });
    prop::collection::vec(
        prop_oneof![6 => batch, 1 => (0_u64..60).prop_map(|before| Step::MakeRoom { before }), 1 => Just(Step::Restart)],
        1..40,
    )
}

proptest! {
    /// Two nodes with the same log, one of which restarts now and then, have the same bytes; sequences have no gap;
    /// every message is in at most one task, in order; the same content is never ordered twice within its window.
    #[test]
    fn the_same_log_gives_the_same_bytes(group in 1_u64..4, steps in steps()) {
        let retention = lockstep_types::Retention { hard_bytes: 1 << 30, ..Default::default() };
        let params = NetworkParams { retention, ..params(group) };
        let (mut a, mut b) = (Node::new(params.clone()), Node::new(params));
        let mut now = 0;
        for step in steps {
            match step {
                Step::Batch { advance_ms, messages } => {
                    now += advance_ms;
                    let messages: Vec<_> = messages.iter()
                        .map(|(device, n)| Message { device: Address([*device; 20]), ..message(&n.to_string()) })
                        .collect();
                    prop_assert_eq!(a.batch(now, &messages), b.batch(now, &messages));
                }
                Step::MakeRoom { before } => prop_assert_eq!(a.propose(now, &[], before), b.propose(now, &[], before)),
                Step::Restart => b.restart(),
            }
        }
        prop_assert_eq!(&a.batches, &b.batches);
        prop_assert_eq!(&a.ledger.head, &b.ledger.head);
        let mut next = 1;
        let mut packed = std::collections::BTreeSet::new();
        let mut last_seen: HashMap<ContentId, u64> = HashMap::new();
        for (i, batch) in a.batches.iter().enumerate() {
            prop_assert_eq!(batch.header.height.0, i as u64 + 1);
            prop_assert_eq!(batch.header.first_sequence.0, next);
            next += batch.messages.len() as u64;
            for task in &batch.tasks {
                prop_assert!(task.sequences.is_sorted() && !task.sequences.is_empty());
                for s in &task.sequences {
                    prop_assert!(packed.insert(*s), "packed twice");
                }
            }
            for m in &batch.messages {
                let time = batch.header.time_ms.0;
                if let Some(before) = last_seen.insert(m.message.content_id(), time) {
                    prop_assert!(time - before >= 10_000, "ordered twice within the window");
                }
            }
        }
    }

    #[test]
    fn decoding_any_bytes_as_a_command_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Command::decode(bytes.into());
    }
}
