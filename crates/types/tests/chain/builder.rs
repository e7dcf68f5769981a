//! Makes valid histories, with changes of the members.

use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_types::certificate::sign_batch;
use lockstep_types::proof::Boundary;
use lockstep_types::verify::{ChainVerifier, Outline, VerifyError, check_evidence};
use lockstep_types::*;
use proptest::prelude::*;

/// Rules that the checker is told to know.
pub const RULES_KNOWN: u32 = 7;

pub fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes([n; 32]).unwrap()
}

fn member(n: u8) -> Member {
    Member {
        name: format!("node-{n}"),
        public_key: hex::encode(key(n).public().compressed()),
        incarnation: Incarnation([n; 16]),
        p2p: "/ip4/127.0.0.1/tcp/1".into(),
        http: "http://127.0.0.1:1".into(),
    }
}

/// Three members, with keys of 32 bytes 1, 2 and 3.
pub fn genesis(group_messages_max: u64) -> Genesis {
    let default_project = ProjectSettings { group_messages_max, ..ProjectSettings::default() };
    let params = NetworkParams { allow_unknown_projects: true, default_project, ..NetworkParams::default() };
    let params = NetworkParams { first_task_number: TaskNumber(100), open_groups_max: 16, ..params };
    Genesis::new("test", (1..=3).map(member).collect(), params).unwrap()
}

type GroupKey = (u64, String, Address);

/// A network that orders, packs, changes its members and certifies.
#[derive(Clone)]
pub struct Net {
    pub genesis: Genesis,
    pub epoch: u64,
    pub set: MemberSet,
    pub batches: Vec<Batch>,
    pub certificates: BTreeMap<u64, Certificate>,
    /// The set that certifies each batch.
    pub certifiers: Vec<MemberSet>,
    pub now_ms: u64,
    /// Rules of `apply` of the batches that are made.
    pub rules_version: u32,
    next_sequence: u64,
    next_task: u64,
    next_node: u64,
    waiting: BTreeMap<GroupKey, Vec<(Sequence, MessageId)>>,
    counts: BTreeMap<ContentId, u64>,
    keys: BTreeMap<Address, SigningKey>,
}

pub fn signed(device: u8, data: &str) -> Message {
    signed_of(device, "0.1", data)
}

pub fn signed_of(device: u8, version: &str, data: &str) -> Message {
    let key = key(100 + device);
    let project = ProjectId(7);
    let digest = w3bstream::message_digest(project, version, data);
    Message {
        api: Api::Apinode,
        project_id: project,
        project_version: version.into(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        device: key.address(),
        nonce: Bytes::new(),
        via: NodeId(1),
        evidence: Evidence::Device(key.sign(&digest)),
    }
}

pub fn unsigned(node: &SigningKey, data: &str) -> Message {
    let evidence = Evidence::Ingress { node: node.address(), signature: Signature([0; 65]) };
    let mut message = Message { api: Api::Unsigned, device: Address::ZERO, evidence, ..signed(0, data) };
    let signature = node.sign(&Message::ingress_digest(&message.content_id()));
    message.evidence = Evidence::Ingress { node: node.address(), signature };
    message
}

impl Net {
    pub fn new(group_messages_max: u64) -> Self {
        let genesis = genesis(group_messages_max);
        Self {
            set: genesis.first_set().unwrap(),
            next_task: genesis.params.first_task_number.0,
            genesis,
            epoch: 0,
            batches: Vec::new(),
            certificates: BTreeMap::new(),
            certifiers: Vec::new(),
            now_ms: 1_000,
            rules_version: 1,
            next_sequence: 1,
            next_node: 4,
            waiting: BTreeMap::new(),
            counts: BTreeMap::new(),
            keys: (1..=99).map(|n| (key(n).address(), key(n))).collect(),
        }
    }

    pub fn height(&self) -> u64 {
        self.batches.len() as u64
    }

    pub fn key_of(&self, set: &MemberSet, node: NodeId) -> SigningKey {
        let member = set.0.iter().find(|member| member.node == node).unwrap();
        self.keys[&member.address].clone()
    }

    fn close(&mut self, group: &GroupKey, tasks: &mut Vec<Task>) {
        let Some(messages) = self.waiting.remove(group) else { return };
        let network = self.genesis.id().unwrap();
        let (project_id, number) = (ProjectId(group.0), TaskNumber(self.next_task));
        self.next_task += 1;
        tasks.push(Task {
            number,
            id: Task::id_of(&network, project_id, messages[0].0, messages.iter().map(|(_, id)| id), None),
            project_id,
            project_version: group.1.clone(),
            device: group.2,
            sequences: messages.iter().map(|(sequence, _)| *sequence).collect(),
            ruled: None,
        });
    }

    /// Makes a batch. With `close` all groups that wait become tasks first.
    pub fn batch(&mut self, messages: Vec<Message>, close: bool, next_set: Option<MemberSet>) {
        let (first_sequence, first_task) = (Sequence(self.next_sequence), TaskNumber(self.next_task));
        let mut tasks = Vec::new();
        let open: Vec<GroupKey> = self.waiting.keys().cloned().collect();
        for group in open.iter().filter(|_| close) {
            self.close(group, &mut tasks);
        }
        let mut ordered = Vec::new();
        for message in messages {
            let content = message.content_id();
            let count = self.counts.entry(content).or_default();
            *count += 1;
            let id = MessageId::of_occurrence(&content, *count, Height(0));
            let group = (message.project_id.0, message.project_version.clone(), message.device);
            let waiting = self.waiting.entry(group.clone()).or_default();
            waiting.push((Sequence(self.next_sequence), id));
            self.next_sequence += 1;
            if waiting.len() as u64 >= self.genesis.params.default_project.group_messages_max {
                self.close(&group, &mut tasks);
            }
            ordered.push(OrderedMessage { id, message });
        }
        if ordered.is_empty() && tasks.is_empty() && next_set.is_none() {
            return;
        }
        self.append((first_sequence, ordered), (first_task, tasks), next_set);
    }

    /// Makes a batch of tasks as rules of the project pack them: of these sequences, what rules made of them, and a device.
    pub fn pack(&mut self, tasks: Vec<(Vec<u64>, Ruled, Address)>) {
        let (network, first_task) = (self.genesis.id().unwrap(), TaskNumber(self.next_task));
        let mut packed = Vec::new();
        for (sequences, ruled, device) in tasks {
            let sequences: Vec<Sequence> = sequences.into_iter().map(Sequence).collect();
            let ids: Vec<MessageId> = sequences.iter().map(|sequence| self.take(*sequence)).collect();
            let first = *sequences.iter().min().unwrap();
            packed.push(Task {
                number: TaskNumber(self.next_task),
                id: Task::id_of(&network, ProjectId(7), first, ids.iter(), Some((&ruled, &device))),
                project_id: ProjectId(7),
                project_version: "0.1".into(),
                device,
                sequences,
                ruled: Some(Box::new(ruled)),
            });
            self.next_task += 1;
        }
        self.append((Sequence(self.next_sequence), Vec::new()), (first_task, packed), None);
    }

    /// Takes a message out of those that wait.
    fn take(&mut self, sequence: Sequence) -> MessageId {
        let place = |group: &[(Sequence, MessageId)]| group.iter().position(|(waits, _)| *waits == sequence);
        self.waiting.values_mut().find_map(|group| place(group).map(|at| group.remove(at).1)).unwrap()
    }

    fn append(
        &mut self,
        (first_sequence, ordered): (Sequence, Vec<OrderedMessage>),
        (first_task, tasks): (TaskNumber, Vec<Task>),
        next_set: Option<MemberSet>,
    ) {
        self.now_ms += 7;
        let header = BatchHeader {
            rules_version: self.rules_version,
            network: self.genesis.id().unwrap(),
            epoch: Epoch(self.epoch),
            height: Height(self.height() + 1),
            parent: self.batches.last().map_or(BatchHash::ZERO, |batch| batch.header.hash()),
            time_ms: TimeMs(self.now_ms),
            first_sequence,
            message_count: ordered.len() as u64,
            messages_root: Batch::messages_root(first_sequence, &ordered),
            first_task_number: first_task,
            task_count: tasks.len() as u64,
            tasks_root: Batch::tasks_root(&tasks),
            members: self.set.hash(),
            next_members: next_set.as_ref().unwrap_or(&self.set).hash(),
            effects: keccak256(&[&self.height().to_be_bytes()]),
        };
        self.certifiers.push(self.set.clone());
        self.batches.push(Batch { header, messages: ordered, tasks, next_set: next_set.clone() });
        self.set = next_set.unwrap_or(self.set.clone());
    }

    /// A certificate of the batch at `height` by these nodes of the set in force there.
    pub fn signed_by(&self, height: u64, nodes: impl IntoIterator<Item = NodeId>) -> Certificate {
        let at = usize::try_from(height).unwrap() - 1;
        let (set, hash) = (&self.certifiers[at], self.batches[at].header.hash());
        let signatures = nodes.into_iter().map(|node| (node, sign_batch(&self.key_of(set, node), &hash))).collect();
        Certificate { height: Height(height), hash, signatures }
    }

    /// The smallest majority certifies a batch.
    pub fn certify(&mut self, height: u64) {
        let set = self.certifiers[usize::try_from(height).unwrap() - 1].clone();
        let voters: Vec<NodeId> = set.voters().map(|voter| voter.node).take(set.majority()).collect();
        let certificate = self.signed_by(height, voters);
        self.certificates.insert(height, certificate);
    }

    /// Changes the members, and has the old ones certify it, as a network does before anything else is certified.
    pub fn change(&mut self, change: impl FnOnce(&mut MemberSet)) {
        let mut next = self.set.clone();
        change(&mut next);
        if next == self.set || next.voters().count() == 0 {
            return;
        }
        self.batch(Vec::new(), false, Some(next));
        self.certify(self.height());
    }

    pub fn admit(&mut self) -> NodeId {
        let node = NodeId(self.next_node);
        let address = key(u8::try_from(self.next_node).unwrap()).address();
        self.next_node += 1;
        self.change(|set| set.0.push(SetMember { node, address, voter: false }));
        node
    }

    pub fn set_voter(&mut self, place: usize, voter: bool) {
        self.change(|set| {
            let len = set.0.len();
            set.0[place % len].voter = voter;
        });
    }

    pub fn remove(&mut self, place: usize) {
        self.change(|set| {
            set.0.remove(place % set.0.len());
        });
    }

    pub fn boundaries(&self, below: u64) -> Vec<Boundary> {
        let changes = self.batches.iter().filter(|batch| batch.next_set.is_some() && batch.header.height.0 < below);
        changes
            .map(|batch| Boundary {
                header: batch.header.clone(),
                members: batch.next_set.clone().unwrap(),
                certificate: (&self.certificates[&batch.header.height.0]).into(),
            })
            .collect()
    }

    /// Checks everything, and says up to which height it is final.
    pub fn check(&self) -> Result<ChainVerifier, VerifyError> {
        let verifier = ChainVerifier::from_genesis(&self.genesis, RULES_KNOWN).unwrap();
        check_all(verifier, &self.batches, &self.certificates)
    }
}

pub fn check_all(
    mut verifier: ChainVerifier,
    batches: &[Batch],
    certificates: &BTreeMap<u64, Certificate>,
) -> Result<ChainVerifier, VerifyError> {
    for batch in batches {
        let outline = Outline::of(batch)?;
        check_evidence(batch, &verifier.known())?;
        verifier.advance(&outline)?;
        if let Some(certificate) = certificates.get(&verifier.height().0) {
            verifier.certificate(certificate)?;
        }
    }
    Ok(verifier)
}

#[derive(Debug, Clone)]
pub enum Step {
    /// Of these devices (0 to 2: signed; 3: taken in by a member), with these data.
    Messages(Vec<(u8, u8)>),
    Close,
    Admit,
    SetVoter(usize, bool),
    Remove(usize),
    Certify,
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let messages = prop::collection::vec((0_u8..4, 0_u8..3), 1..6).prop_map(Step::Messages);
    let step = prop_oneof![
        6 => messages,
        1 => Just(Step::Close),
        1 => Just(Step::Admit),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(place, voter)| Step::SetVoter(place, voter)),
        1 => any::<usize>().prop_map(Step::Remove),
        3 => Just(Step::Certify),
    ];
    prop::collection::vec(step, 1..14)
}

/// A valid history that follows the steps; its last batch is certified.
pub fn net_of(group: u64, steps: &[Step]) -> Net {
    let mut net = Net::new(group);
    net.batch(vec![signed(0, "first"), unsigned(&key(2), "second")], false, None);
    for step in steps {
        match step {
            Step::Messages(messages) => {
                let member = net.set.0[messages.len() % net.set.0.len()].node;
                let ingress = net.key_of(&net.set, member);
                let make = |(device, data): &(u8, u8)| match device {
                    3 => unsigned(&ingress, &data.to_string()),
                    device => signed(*device, &data.to_string()),
                };
                let made = messages.iter().map(make).collect();
                net.batch(made, false, None);
            }
            Step::Close => net.batch(Vec::new(), true, None),
            Step::Admit => drop(net.admit()),
            Step::SetVoter(place, voter) => net.set_voter(*place, *voter),
            Step::Remove(place) => net.remove(*place),
            Step::Certify => net.certify(net.height()),
        }
    }
    net.certify(net.height());
    net
}
