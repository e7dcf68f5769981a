//! A small network in memory with a history: what true encodings are made of, and what hostile commands run against.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use lockstep_identity::{DeviceRequest, SignedKey, TaskContent, TaskRequest, apinode, sign_body, sign_task};
use lockstep_ledger::{
    Aged, Applied, ChainCursor, Command, Device, Grant, GroupKey, Head, HighestNonce, History, Horizon, LastTaken,
    Ledger, LedgerParts, Members, Nonce, Occurrence, OpenGroup, OutputState, Project, RULES_NEWEST, RulesState,
    Standing, Waiting, Write, compile_rules, encode_batch,
};
use lockstep_types::certificate::sign_batch;
use lockstep_types::{
    Address, Batch, BatchHeader, Certificate, ChainEvent, ChainSource, ChainUpdate, Change, ContentId, DeviceEntry,
    DevicePolicy, Epoch, ExportPage, Genesis, Hash32, Height, Incarnation, Member, NetworkParams, NodeId, Order,
    OrderKind, OutputName, Place, ProjectId, ProjectSettings, Sequence, SignedOrder, SigningKey, Stage, TaskId,
    TaskNumber, TimeMs, VerifiedMessage,
};

/// A project whose devices any key may be.
pub const OPEN: ProjectId = ProjectId(7);
/// A project with an owner and a list of devices.
pub const OWNED: ProjectId = ProjectId(8);
const VERSION: &str = "0.1";

/// The key with these 32 bytes. Members have those of 1, 2 and 3, the owner of [`OWNED`] that of 50.
pub fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes([n; 32]).expect("these bytes are a secret key")
}

/// A member with [`key`].
pub fn member(n: u8) -> Member {
    Member {
        name: format!("node-{n}"),
        public_key: format!("{:?}", key(n).public()),
        incarnation: Incarnation([n; 16]),
        p2p: "/ip4/127.0.0.1/tcp/9100".into(),
        http: "http://127.0.0.1:9000".into(),
    }
}

/// The network.
pub static GENESIS: LazyLock<Genesis> = LazyLock::new(|| {
    let any = ProjectSettings { devices: Some(DevicePolicy::Any), group_messages_max: 2, ..ProjectSettings::default() };
    let listed = ProjectSettings { devices: Some(DevicePolicy::Listed), ..any.clone() };
    let chain = ChainSource {
        chain_id: 4689,
        registry: Address([1; 20]),
        project_device: Address([2; 20]),
        task_manager: Some(Address([3; 20])),
        start_block: 5,
        confirmations: 1,
        attestations: 1,
    };
    let params = NetworkParams {
        allow_unsigned: true,
        open_groups_max: 4,
        default_project: any.clone(),
        projects: [(OPEN, any), (OWNED, listed)].into(),
        owners: [(OWNED, key(50).address())].into(),
        chain: Some(chain),
        ..NetworkParams::default()
    };
    Genesis::new("fuzzed", (1..=3).map(member).collect(), params).expect("the genesis is valid")
});

/// A device's signed message, as it comes out of its request.
pub fn message(device: u8, data: &str) -> VerifiedMessage {
    let body = sign_body(&key(device), OPEN, VERSION, data);
    let request = apinode::parse(body.as_bytes()).expect("our own request is read");
    request.authenticate().expect("our own signature is good")
}

/// A message of the API of 2025.
pub fn task_message(device: u8, nonce: u64) -> VerifiedMessage {
    let keys = [SignedKey::new("timestamp").expect("a name")];
    let payload = format!("{{\"timestamp\":{nonce},\"t\":21.5}}");
    let content = TaskContent { nonce, project_id: OPEN, project_version: VERSION, payload: payload.as_bytes() };
    let body = sign_task(&key(device), content, &keys).expect("our own request is signed");
    let request = TaskRequest::parse(&body).expect("our own request is read");
    let by = request.candidates(&keys).expect("it has values to sign").remove(0);
    request.into_message(by, &keys).expect("our own request is good")
}

/// A message that node 1 vouches for.
pub fn vouched(data: &str) -> VerifiedMessage {
    let request = DeviceRequest {
        signature: None,
        ..apinode::parse(sign_body(&key(9), OPEN, VERSION, data).as_bytes()).expect("our own request is read")
    };
    request.vouch(&key(1))
}

/// An order of the owner of [`OWNED`].
pub fn order(number: u64, kind: OrderKind) -> SignedOrder {
    let order = Order { epoch: Epoch(0), project: OWNED, number, expires_ms: TimeMs(100_000), kind };
    order.sign(&GENESIS.id().expect("the genesis is valid"), &key(50))
}

/// A ledger with what it has stored.
#[derive(Debug)]
pub struct World {
    /// The ledger.
    pub ledger: Ledger,
    /// What is stored.
    pub view: View,
}

/// The stored state.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    occurrences: BTreeMap<ContentId, Occurrence>,
    /// Batches by height.
    pub batches: BTreeMap<Height, Batch>,
    /// Certificates by height.
    pub certificates: BTreeMap<Height, Certificate>,
    groups: BTreeMap<GroupKey, Bytes>,
    waiting: BTreeMap<Sequence, Waiting>,
    devices: BTreeMap<Address, Device>,
    grants: BTreeMap<(ProjectId, Address), Grant>,
    nonces: BTreeMap<Nonce, Sequence>,
    highest_nonces: BTreeMap<(ProjectId, Address), HighestNonce>,
    projects: BTreeMap<ProjectId, Project>,
    bundles: BTreeMap<Hash32, Bytes>,
    rules_states: BTreeMap<ProjectId, RulesState>,
    lasts: BTreeMap<(ProjectId, Address), LastTaken>,
    places: BTreeMap<(OutputName, TaskNumber), Place>,
    progress: BTreeMap<OutputName, TaskNumber>,
    outputs: BTreeMap<OutputName, OutputState>,
    members: Option<Members>,
    head: Option<Head>,
    chain: Option<ChainCursor>,
}

impl History for View {
    type Error = Infallible;

    fn header(&self, height: Height) -> Result<Option<BatchHeader>, Infallible> {
        Ok(self.batches.get(&height).map(|batch| batch.header.clone()))
    }

    fn occurrences(&self, ids: &[ContentId]) -> Result<Vec<Option<Occurrence>>, Infallible> {
        Ok(ids.iter().map(|id| self.occurrences.get(id).copied()).collect())
    }

    fn standings(&self, of: &[(ProjectId, Address)]) -> Result<Vec<Standing>, Infallible> {
        let standing = |pair: &(ProjectId, Address)| Standing {
            registered: self.devices.get(&pair.1).is_some_and(|device| device.registered),
            grant: self.grants.get(pair).copied().unwrap_or_default(),
        };
        Ok(of.iter().map(standing).collect())
    }

    fn lasts(&self, of: &[(ProjectId, Address)]) -> Result<Vec<Option<LastTaken>>, Infallible> {
        Ok(of.iter().map(|pair| self.lasts.get(pair).cloned()).collect())
    }

    fn device(&self, device: &Address) -> Result<Option<Device>, Infallible> {
        Ok(self.devices.get(device).cloned())
    }

    fn nonces(&self, of: &[Nonce]) -> Result<Vec<Option<Sequence>>, Infallible> {
        Ok(of.iter().map(|nonce| self.nonces.get(nonce).copied()).collect())
    }

    fn highest_nonces(&self, of: &[(ProjectId, Address)]) -> Result<Vec<Option<HighestNonce>>, Infallible> {
        Ok(of.iter().map(|device| self.highest_nonces.get(device).copied()).collect())
    }

    fn place_at(&self, output: &OutputName, task: TaskNumber) -> Result<Option<Place>, Infallible> {
        let of_output = (output.clone(), TaskNumber(0))..=(output.clone(), task);
        Ok(self.places.range(of_output).next_back().map(|(_, place)| place.clone()))
    }
}

impl View {
    fn store(&mut self, write: &Write) {
        match write {
            Write::Occurrence(id, occurrence) => drop(self.occurrences.insert(*id, *occurrence)),
            Write::Batch(batch) => drop(self.batches.insert(batch.header.height, (**batch).clone())),
            Write::Group(key, Some(record)) => drop(self.groups.insert(key.clone(), record.clone())),
            Write::Group(key, None) => drop(self.groups.remove(key)),
            Write::Waiting(sequence, Some(waiting)) => drop(self.waiting.insert(*sequence, *waiting)),
            Write::Waiting(sequence, None) => drop(self.waiting.remove(sequence)),
            Write::Device(address, device) => drop(self.devices.insert(*address, (**device).clone())),
            Write::Grant(project, device, grant) => drop(self.grants.insert((*project, *device), *grant)),
            Write::Nonce(used, by) => drop(self.nonces.insert(*used, *by)),
            Write::HighestNonce(project, device, highest) => {
                self.highest_nonces.insert((*project, *device), *highest);
            }
            Write::Rules(hash, Some(bundle)) => drop(self.bundles.insert(*hash, bundle.clone())),
            Write::Rules(hash, None) => drop(self.bundles.remove(hash)),
            Write::RulesState(project, state) => drop(self.rules_states.insert(*project, (**state).clone())),
            Write::Last(project, device, last) => drop(self.lasts.insert((*project, *device), last.clone())),
            Write::Project(id, project) => drop(self.projects.insert(*id, (**project).clone())),
            Write::Place(output, place) => drop(self.places.insert((output.clone(), place.first), place.clone())),
            Write::Progress(output, number) => drop(self.progress.insert(output.clone(), *number)),
            Write::Output(output, state) => {
                self.outputs.insert(output.clone(), *state);
                if *state == OutputState::Removed {
                    self.progress.remove(output);
                    self.places.retain(|(of, _), _| of != output);
                }
            }
            Write::Members(members) => self.members = Some((**members).clone()),
            Write::Certificate { certificate, .. } => {
                self.certificates.insert(certificate.height, certificate.clone());
            }
            Write::Chain(cursor) => self.chain = Some(*cursor),
            Write::Head(head) => self.head = Some(head.clone()),
            Write::MessagePlace(..)
            | Write::TaskPlace(..)
            | Write::Packed(..)
            | Write::Gap(..)
            | Write::Flags(..)
            | Write::TaskAlias(..) => {}
        }
    }

    fn parts(&self) -> LedgerParts {
        LedgerParts {
            network: GENESIS.id().expect("the genesis is valid"),
            epoch: Epoch(0),
            params: GENESIS.params.clone(),
            members: self.members.clone().unwrap_or_else(|| Members::genesis(&GENESIS).expect("the genesis is valid")),
            head: self.head.clone(),
            groups: OpenGroup::decode_all(self.groups.values().cloned(), self.waiting.clone())
                .expect("it was encoded here"),
            progress: self.progress.clone(),
            outputs: self.outputs.clone().into_iter().collect(),
            projects: self.projects.clone(),
            rules: self.bundles.values().map(|bundle| compile_rules(bundle).expect("it was compiled before")).collect(),
            rules_states: self.rules_states.clone(),
            chain: self.chain,
            rules_known: RULES_NEWEST,
        }
    }
}

impl World {
    /// A node that starts with this stored state.
    pub fn of(view: View) -> Self {
        Self { ledger: Ledger::new(view.parts()), view }
    }

    /// Applies a command and stores what follows.
    pub fn apply(&mut self, command: Command) -> Applied {
        let Ok(applied) = self.ledger.apply(&self.view, command);
        applied.writes.iter().for_each(|write| self.view.store(write));
        applied
    }

    fn run(&mut self, command: &Bytes) -> Applied {
        self.apply(Command::decode(command.clone()).expect("our own command is read"))
    }

    /// The certificate of the newest batch, by the first two members.
    pub fn certificate(&self) -> Certificate {
        let batch = self.view.batches.values().next_back().expect("there is a batch");
        let hash = batch.header.hash();
        let set = self.ledger.members().set();
        let of = |n: u8| {
            let address = key(n).address();
            let voter = set.0.iter().find(|member| member.address == address)?;
            Some((voter.node, sign_batch(&key(n), &hash)))
        };
        let mut signatures: Vec<_> = (1..=3).filter_map(of).take(2).collect();
        signatures.sort_unstable_by_key(|(node, _)| *node);
        Certificate { height: batch.header.height, hash, signatures }
    }
}

/// A history of every kind of command.
pub struct Past {
    /// The state after it.
    pub view: View,
    /// Each command, encoded.
    pub commands: Vec<Bytes>,
}

/// See [`Past`].
pub static PAST: LazyLock<Past> = LazyLock::new(|| {
    let mut world = World::of(View::default());
    let mut commands = Vec::new();
    let mut run = |world: &mut World, command: Bytes| {
        let applied = world.run(&command);
        commands.push(command);
        applied
    };
    let batch = |time, messages: Vec<VerifiedMessage>| {
        let aged = |message| Aged { message: Arc::new(message), age_ms: 7 };
        encode_batch(TimeMs(time), &messages.into_iter().map(aged).collect::<Vec<_>>(), Sequence(0))
    };
    let output: OutputName = "main".parse().expect("a name");
    run(&mut world, Command::encode_rules(RULES_NEWEST + 1));
    run(&mut world, batch(1_000, vec![message(100, "one"), message(100, "two"), vouched("three")]));
    let certificate = world.certificate();
    run(&mut world, Command::encode_certificate(&certificate));
    let devices = vec![DeviceEntry { device: key(100).address(), document: None }];
    let mut number = 1;
    for kind in [
        OrderKind::AddDevices(devices),
        OrderKind::Settings(ProjectSettings { strict_nonces: true, ..ProjectSettings::default() }),
        OrderKind::RevokeTokens(vec![key(100).address()]),
        OrderKind::RemoveDevices(vec![key(100).address()]),
        OrderKind::Owner(key(51).address()),
    ] {
        let applied = run(&mut world, Command::encode_order(TimeMs(2_000 + number), &order(number, kind)));
        // One that is refused is part of the past too.
        number += u64::from(applied.order.is_some_and(|(_, _, result)| result.is_ok()));
    }
    assert!(number > 4, "orders count");
    let approved = ChainEvent::Approved(OWNED, key(101).address());
    let (device, owner, hash) = (key(101).address(), Address([4; 20]), [6; 32]);
    let registered = ChainEvent::Device { device, owner, hash, uri: "ipfs://abc".into() };
    let events = vec![registered, approved, ChainEvent::Unapproved(OWNED, device), ChainEvent::Removed(device)];
    let update = ChainUpdate { first: 5, last: 9, parent_hash: [4; 32], last_hash: [9; 32], events };
    let digest = update.digest(world.ledger.network(), Epoch(0));
    let signatures = (1..=3).map(|n: u8| (NodeId(n.into()), key(n).sign(&digest))).collect();
    run(&mut world, Command::encode_chain(TimeMs(3_000), &update, &signatures));
    run(&mut world, batch(4_000, vec![task_message(102, 1), task_message(102, 2), message(103, "open group")]));
    let place = |first, last, height| Place {
        first: TaskNumber(first),
        last: TaskNumber(last),
        locator: "s3://bucket/blob".into(),
        commitment: vec![1, 2],
        height,
        stage: Stage::Included,
    };
    let report = lockstep_types::proto::OutputProgress {
        output: output.as_str().into(),
        task_number: 1,
        places: vec![place(1, 1, None).to_proto(), place(2, 2, Some(Height(9))).to_proto()],
    };
    let report = Command::progress(report).expect("our own report is within the limits");
    run(&mut world, report.clone());
    for state in [OutputState::Paused, OutputState::Running, OutputState::Removed, OutputState::Running] {
        run(&mut world, Command::encode_output(&output, state));
    }
    run(&mut world, report);
    let proposal = world.ledger.members().propose(Epoch(0), Change::Admit(member(4)), TimeMs(90_000));
    for n in 1..=2_u8 {
        let address = key(n).address();
        let node = world.ledger.members().set().0.iter().find(|m| m.address == address).map(|m| m.node);
        let network = *world.ledger.network();
        let approval = proposal.clone().approve(&network, node.expect("it is a member"), &key(n));
        run(&mut world, Command::encode_approval(TimeMs(5_000), &approval));
    }
    let certificate = world.certificate();
    run(&mut world, Command::encode_certificate(&certificate));
    run(&mut world, batch(6_000, vec![message(103, "closes the group"), message(100, "one")]));
    let header = &world.view.batches[&Height(2)].header;
    let (height, sequence, task_number) = (header.height, header.first_sequence, header.first_task_number);
    let horizon = Horizon { height, sequence, task_number };
    run(&mut world, Command::encode_horizon(&horizon));
    Past { view: world.view, commands }
});

/// Everything that [`PAST`] has, as a node exports it.
pub fn export() -> ExportPage {
    let view = &PAST.view;
    let head = view.batches.keys().next_back().copied().unwrap_or_default();
    ExportPage {
        network: GENESIS.id().expect("the genesis is valid"),
        epoch: Epoch(0),
        oldest_height: Height(1),
        oldest_sequence: Sequence(1),
        head,
        final_height: view.certificates.keys().next_back().copied().unwrap_or_default(),
        batches: view.batches.values().cloned().map(Into::into).collect(),
        certificates: view.certificates.values().cloned().collect(),
    }
}

/// A task id that is somewhere in [`PAST`].
pub fn task_id() -> TaskId {
    let tasks = PAST.view.batches.values().flat_map(|batch| &batch.tasks);
    tasks.map(|task| task.id).next().unwrap_or(TaskId([0; 32]))
}

/// Records of the stored state, each behind its key.
pub fn records() -> Vec<Vec<u8>> {
    let view = &PAST.view;
    let mut all = Vec::new();
    let mut put = |kind: u8, record: Vec<u8>| all.push([vec![kind], record].concat());
    view.occurrences.values().for_each(|occurrence| put(0, occurrence.encode().to_vec()));
    view.batches.values().for_each(|batch| put(1, batch.encode()));
    view.certificates.values().for_each(|certificate| put(2, certificate.encode()));
    view.groups.values().for_each(|record| put(3, record.to_vec()));
    view.devices.values().for_each(|device| put(4, device.encode()));
    view.projects.values().for_each(|project| put(5, project.encode()));
    view.places.values().for_each(|place| put(6, place.encode()));
    view.members.iter().for_each(|members| put(7, members.encode()));
    view.head.iter().for_each(|head| put(8, head.encode()));
    view.chain.iter().for_each(|cursor| put(9, cursor.encode()));
    view.grants.values().filter_map(|grant| grant.encode()).for_each(|grant| put(10, vec![grant]));
    all
}
