use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;

use bytes::Bytes;
use lockstep_types::{
    Address, Api, Evidence, Message, Place, ProjectId, ProjectSettings, Signature, SigningKey, message::message_leaf,
};
use proptest::prelude::*;

use super::*;
use crate::command::GroupClosing;
use crate::outputs::PAUSED_OUTPUTS_MAX;
use crate::rules::compile_rules;

#[path = "apply_tests/vectors.rs"]
mod vectors;

#[path = "apply_tests/life.rs"]
mod life;

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
    nonces: std::collections::BTreeSet<Nonce>,
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
    fn nonces(&self, of: &[Nonce]) -> Result<Vec<NonceState>, Infallible> {
        let state = |nonce: &Nonce| {
            let of_device = (nonce.0, nonce.1, 0)..=(nonce.0, nonce.1, u64::MAX);
            let highest = self.2.nonces.range(of_device).next_back().map(|(_, _, n)| *n);
            NonceState { used: self.2.nonces.contains(nonce), highest }
        };
        Ok(of.iter().map(state).collect())
    }
}

/// A ledger with its store: applies, and keeps what was written.
struct Node {
    ledger: Ledger,
    view: View,
    batches: Vec<Batch>,
    groups: BTreeMap<GroupKey, OpenGroup>,
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
        Self { ledger, view: View::default(), batches: Vec::new(), groups: BTreeMap::new() }
    }

    fn run(&mut self, command: Command) -> Applied {
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
                Write::Group(key, Some(group)) => {
                    self.groups.insert(key.clone(), group.clone());
                }
                Write::Group(key, None) => {
                    self.groups.remove(key);
                }
                Write::Device(address, device) => drop(self.view.2.devices.insert(*address, (**device).clone())),
                Write::Grant(project, device, grant) => drop(self.view.2.grants.insert((*project, *device), *grant)),
                Write::Nonce { used, forgotten } => {
                    if let Some(lower) = forgotten {
                        self.view.2.nonces.remove(&(used.0, used.1, *lower));
                    }
                    self.view.2.nonces.insert(*used);
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
        self.propose(time_ms, messages, &[])
    }

    fn propose(&mut self, time_ms: u64, messages: &[Message], closings: &[GroupClosing]) -> Vec<Outcome> {
        let proposal =
            ProposedBatch { time_ms: TimeMs(time_ms), messages: messages.to_vec(), closings: closings.to_vec() };
        self.run(Command::Batch(proposal)).outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// The same node after a restart: rebuilt from what was stored.
    fn restart(&mut self) {
        let params = self.ledger.params().clone();
        let stored = LedgerParts {
            head: Some(self.ledger.head.clone()),
            groups: self.groups.clone().into_iter().collect(),
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

#[test]
fn a_retry_within_the_window_gets_the_first_position_and_later_it_is_a_new_reading() {
    let mut node = Node::new(params(1));
    let first = node.batch(1_000, &[message("a"), message("b"), message("a")]);
    let places: Vec<_> = first.iter().map(sequence_of).collect();
    assert_eq!(places, [Some((1, false)), Some((2, false)), Some((1, true))]);
    assert_eq!(sequence_of(&node.batch(10_999, &[message("a")])[0]), Some((1, true)));
    assert_eq!(node.batches.len(), 1, "a batch of retries only is no batch");
    assert_eq!(sequence_of(&node.batch(11_000, &[message("a")])[0]), Some((3, false)));
    assert_eq!(sequence_of(&node.batch(11_001, &[message("a")])[0]), Some((3, true)));
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
    let key = GroupKey::of(&message("c"));
    let wrong = GroupClosing { key: key.clone(), first_sequence: Sequence(1) };
    node.propose(3, &[], &[wrong]);
    assert_eq!(node.batches.len(), 2, "a closing of a group that is gone changes nothing");
    node.propose(4, &[], &[GroupClosing { key, first_sequence: Sequence(3) }]);
    assert_eq!(node.batches[2].tasks[0].sequences, [Sequence(3)]);
    assert!(node.batches[2].messages.is_empty());

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
    assert_eq!(node.run(report(2)).writes.len(), 2);
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
    CloseOldest,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let batch = (0_u64..6_000, prop::collection::vec((0_u8..3, 0_u8..6), 0..8))
        .prop_map(|(advance_ms, messages)| Step::Batch { advance_ms, messages });
    prop::collection::vec(prop_oneof![6 => batch, 1 => Just(Step::CloseOldest), 1 => Just(Step::Restart)], 1..40)
}

proptest! {
    /// Two nodes with the same log, one of which restarts now and then, have the same bytes; sequences have no gap;
    /// every message is in at most one task, in order; the same content is never ordered twice within its window.
    #[test]
    fn the_same_log_gives_the_same_bytes(group in 1_u64..4, steps in steps()) {
        let (mut a, mut b) = (Node::new(params(group)), Node::new(params(group)));
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
                Step::CloseOldest => {
                    let oldest = a.ledger.open_groups().map(|(key, group)| (group.first_sequence(), key.clone())).min();
                    if let Some((first_sequence, key)) = oldest {
                        let closing = [GroupClosing { key, first_sequence }];
                        a.propose(now, &[], &closing);
                        b.propose(now, &[], &closing);
                    }
                }
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
