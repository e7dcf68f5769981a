//! The test vectors of docs/formats.md, which `scripts/vectors.py` made without us.

use lockstep_types::blob::{Anchor, BlobMessage, BlobTask};
use lockstep_types::certificate::{certificate_digest, sign_batch};
use lockstep_types::message::message_leaf;
use lockstep_types::*;

use super::builder::key;

const DOCUMENTED: &str = include_str!("../../../../docs/formats.md");
const DATA: &str = r#"{"celsius":21.5}"#;

/// The page has this value, in a line of this name.
fn documented(what: &str, value: &[u8]) {
    let line = match value.len() {
        65 => {
            let (r, s, v) = (hex::encode(&value[..32]), hex::encode(&value[32..64]), hex::encode(&value[64..]));
            format!("| {what}, R ‖ S | `0x{r}` `{s}` |\n| V | `{v}` |")
        }
        _ => format!("| {what} | `0x{}` |", hex::encode(value)),
    };
    assert!(DOCUMENTED.contains(&line), "docs/formats.md lacks: {line}");
}

fn member(n: u8) -> Member {
    Member {
        name: format!("node-{n}"),
        public_key: hex::encode(key(n).public().compressed()),
        incarnation: Incarnation([n * 0x11; 16]),
        p2p: format!("/ip4/127.0.0.1/tcp/{}", 9099 + u16::from(n)),
        http: format!("http://127.0.0.1:{}", 8999 + u16::from(n)),
    }
}

fn example() -> Genesis {
    let projects = [(ProjectId(7), ProjectSettings::open())].into();
    let params = NetworkParams { allow_unsigned: true, projects, ..NetworkParams::default() };
    Genesis::new("example", vec![member(1)], params).unwrap()
}

fn device() -> SigningKey {
    SigningKey::from_hex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80").unwrap()
}

fn signed() -> Message {
    let digest = w3bstream::message_digest(ProjectId(7), "0.1", DATA);
    Message { device: device().address(), evidence: Evidence::Device(device().sign(&digest)), ..unsigned(Api::Apinode) }
}

fn unsigned(api: Api) -> Message {
    let mut message = Message {
        api,
        project_id: ProjectId(7),
        project_version: "0.1".into(),
        data: DATA.into(),
        device: Address::ZERO,
        nonce: Default::default(),
        evidence: Evidence::Device(Signature([0; 65])),
        via: NodeId(0),
    };
    let signature = key(1).sign(&Message::ingress_digest(&message.content_id()));
    message.evidence = Evidence::Ingress { node: key(1).address(), signature };
    message
}

fn signature_of(message: &Message) -> [u8; 65] {
    match &message.evidence {
        Evidence::Device(signature) | Evidence::Ingress { signature, .. } | Evidence::Envelope { signature, .. } => {
            signature.0
        }
        Evidence::Task(task) => task.signature.0,
    }
}

#[test]
fn messages_and_their_evidence() {
    documented("address of D", &device().address().0);
    documented("address of N", &key(1).address().0);
    documented("N, compressed", &key(1).public().compressed());
    let (message, id) = (signed(), signed().content_id());
    documented("its digest", &w3bstream::message_digest(ProjectId(7), "0.1", DATA));
    documented("signature of D", &signature_of(&message));
    documented("content id, first message id", &MessageId::of_occurrence(&id, 1, Height(0)).0);
    documented("second message id", &MessageId::of_occurrence(&id, 2, Height(0)).0);
    let back = "message id where it comes again for the first time after batches below 4 were forgotten";
    documented(back, &MessageId::of_occurrence(&id, 1, Height(4)).0);
    documented("the second time after that", &MessageId::of_occurrence(&id, 2, Height(4)).0);
    let (message, id) = (unsigned(Api::Unsigned), unsigned(Api::Unsigned).content_id());
    documented("content id", &id.0);
    documented("digest of the ingress word", &Message::ingress_digest(&id));
    documented("signature of N", &signature_of(&message));
}

#[test]
fn the_first_batch_and_its_certificate() {
    let genesis = example();
    let network = genesis.id().unwrap();
    let members = genesis.first_set().unwrap().hash();
    documented("network id", &network.0);
    documented("members hash", &members);
    let message = signed();
    let id = MessageId(message.content_id().0);
    let leaf = message_leaf(Sequence(1), &id, &message);
    documented("message leaf, messages root", &leaf);
    let task = Task {
        number: TaskNumber(1),
        id: Task::id_of(&network, ProjectId(7), Sequence(1), [id].iter(), None),
        project_id: ProjectId(7),
        project_version: "0.1".into(),
        device: device().address(),
        sequences: vec![Sequence(1)],
        ruled: None,
    };
    documented("task id", &task.id.0);
    documented("task leaf, tasks root", &task.leaf());
    ruled_task(&network, &id);
    let text = w3bstream::task_digest(&task.id, ProjectId(7), "0.1", &task.device, [DATA.as_bytes()]);
    documented("digest of the task text", &text);
    documented("task signature of N", &key(1).sign(&text).0);

    let effects = "fb14d934269b49dc2f2af92a730ed750c7477cee02df9edeb313c83006aab8c4";
    let header = BatchHeader {
        rules_version: 1,
        network,
        epoch: Epoch(0),
        height: Height(1),
        parent: BatchHash::ZERO,
        time_ms: TimeMs(1_795_338_000_000),
        first_sequence: Sequence(1),
        message_count: 1,
        messages_root: leaf,
        first_task_number: TaskNumber(1),
        task_count: 1,
        tasks_root: task.leaf(),
        members,
        next_members: members,
        effects: hex::decode(effects).unwrap().try_into().unwrap(),
    };
    documented("effects digest", &header.effects);
    documented("hash of batch 1", &header.hash().0);
    documented("digest that its certificate signs", &certificate_digest(&header.hash()));
    documented("signature of N in it", &sign_batch(&key(1), &header.hash()).0);

    let certificate = Certificate {
        height: Height(1),
        hash: header.hash(),
        signatures: vec![(NodeId(1), sign_batch(&key(1), &header.hash()))],
    };
    the_blob(&genesis, header, certificate, task, message, key(1).sign(&text));

    let second = unsigned(Api::Unsigned);
    let other = message_leaf(Sequence(2), &MessageId(second.content_id().0), &second);
    documented("its leaf", &other);
    documented("messages root", &merkle::root(vec![leaf, other]));
}

fn ruled_task(network: &NetworkId, id: &MessageId) {
    let outputs = ["tasks", "dash"].map(|name| name.parse().unwrap());
    let ruled = Ruled {
        group: "a".into(),
        window: Some(-1),
        payload: Some(r#"{"n":1}"#.into()),
        outputs: Some(outputs.into()),
    };
    documented("hash of what rules made of it", &ruled.hash(&Address::ZERO));
    let with_device = Some((&ruled, &Address::ZERO));
    let id = Task::id_of(network, ProjectId(7), Sequence(1), [*id].iter(), with_device);
    documented("id of a task that rules made", &id.0);
}

fn the_blob(
    genesis: &Genesis,
    header: BatchHeader,
    certificate: Certificate,
    task: Task,
    message: Message,
    signature: Signature,
) {
    let members = genesis.first_set().unwrap();
    let id = MessageId(message.content_id().0);
    let anchor = Anchor { header, headers: Vec::new(), certificate, members, boundaries: Vec::new() };
    let task = BlobTask {
        number: task.number,
        id: task.id,
        project_id: task.project_id,
        project_version: task.project_version,
        device: task.device,
        path: Vec::new(),
        signature,
        messages: vec![BlobMessage::new(Sequence(1), id, (1, Height(0)), &message)],
        ruled: None,
    };
    let blob = Blob { anchor, part: 0, parts: 1, tasks: vec![task] };
    let bytes = blob.encode();
    let proven = Blob::decode(bytes.clone()).unwrap().verify(genesis, &Epochs::default(), None).unwrap();
    assert_eq!(proven.task_signer, Some(key(1).address()));
    assert!(DOCUMENTED.contains(&format!("| its length | {} bytes |", bytes.len())), "{}", bytes.len());
    documented("keccak of the blob", &keccak256(&[&bytes]));
}

#[test]
fn proposals_and_members() {
    let genesis = example();
    let network = genesis.id().unwrap();
    let mut set = genesis.first_set().unwrap();
    let of = |change| Proposal {
        epoch: Epoch(0),
        number: 1,
        members: set.hash(),
        expires_ms: TimeMs(1_795_338_600_000),
        change,
    };
    let admit = of(Change::Admit(member(2)));
    documented("digest of the proposal to admit node-2", &admit.digest(&network));
    documented("approval of N", &admit.approve(&network, NodeId(1), &key(1)).signature.0);
    documented("digest of the proposal to promote node 2", &of(Change::Promote(NodeId(2))).digest(&network));
    documented("digest of the proposal to demote node 2", &of(Change::Demote(NodeId(2))).digest(&network));
    documented("digest of the proposal to remove node 2", &of(Change::Remove(NodeId(2))).digest(&network));
    set.0.push(SetMember { node: NodeId(2), address: key(2).address(), voter: false });
    documented("members hash after it", &set.hash());
}
