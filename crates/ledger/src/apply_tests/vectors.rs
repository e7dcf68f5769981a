//! The test vectors of docs/formats.md, which `scripts/vectors.py` made without us.

use lockstep_types::certificate::sign_batch;
use lockstep_types::{Certificate, Change, Genesis, Incarnation, Member, w3bstream};

use super::*;

const DOCUMENTED: &str = include_str!("../../../../docs/formats.md");
const TIME: u64 = 1_795_338_000_000;

/// The page has this value, in a line of this name.
fn documented(what: &str, value: &[u8]) {
    let line = format!("| {what} | `0x{}` |", hex_of(value));
    assert!(DOCUMENTED.contains(&line), "docs/formats.md lacks: {line}");
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn member(n: u8) -> Member {
    Member {
        name: format!("node-{n}"),
        public_key: format!("{:?}", key(n).public()),
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

fn celsius() -> Message {
    let data = r#"{"celsius":21.5}"#;
    let digest = w3bstream::message_digest(ProjectId(7), "0.1", data);
    let evidence = Evidence::Device(device().sign(&digest));
    let project_version = "0.1".into();
    Message { data: Bytes::from(data), project_version, device: device().address(), evidence, ..message("") }
}

fn celsius_unsigned() -> Message {
    let evidence = Evidence::Ingress { node: key(1).address(), signature: Signature([0; 65]) };
    Message { api: Api::Unsigned, device: Address::ZERO, evidence, ..celsius() }
}

fn certify(node: &mut Node) {
    let header = &node.batches.last().unwrap().header;
    let (height, hash) = (header.height, header.hash());
    let signatures = vec![(NodeId(1), sign_batch(&key(1), &hash))];
    node.run(Command::Certificate(Certificate { height, hash, signatures }));
    assert_eq!(node.ledger.head.final_height, height);
}

#[test]
fn digests_and_hashes_are_those_that_are_documented() {
    let genesis = example();
    let mut node = Node::new(genesis.params.clone());
    let network = genesis.id().unwrap();
    let members = Members::genesis(&genesis).unwrap();
    node.ledger = Ledger::new(LedgerParts { network, members, ..parts(genesis.params.clone()) });
    let effects = |node: &Node, what: &str| documented(what, &node.ledger.head.effects);
    let hash = |node: &Node, height: usize| {
        documented(&format!("hash of batch {height}"), &node.batches[height - 1].header.hash().0);
    };

    node.batch(TIME, &[celsius()]);
    effects(&node, "effects digest");
    hash(&node, 1);
    let output: OutputName = "tasks".parse().unwrap();
    node.run(Command::OutputProgress { output, task_number: TaskNumber(1), places: Vec::new() });
    effects(&node, "effects digest");
    node.run(Command::Rules(2));
    effects(&node, "effects digest after rules 2");
    certify(&mut node);

    let proposal = node.ledger.members.propose(Epoch(0), Change::Admit(member(2)), TimeMs(TIME + 600_000));
    let approval = Box::new(proposal.approve(&network, NodeId(1), &key(1)));
    let applied = node.run(Command::Approval { time_ms: TimeMs(TIME + 1_000), approval });
    assert_eq!(applied.refused, None);
    documented("keccak of the members record", &lockstep_types::keccak256(&[&node.ledger.members.encode()]));
    hash(&node, 2);
    certify(&mut node);
    let raft = Target { voters: [NodeId(1)].into(), observers: [NodeId(2)].into() };
    node.ledger.apply_raft_members(&raft);
    effects(&node, "effects digest once the change is done");

    node.batch(TIME + 20_000, &[celsius()]);
    effects(&node, "effects digest after batch 3");
    hash(&node, 3);
    node.batch(TIME + 20_001, &[celsius_unsigned()]);
    hash(&node, 4);
    certify(&mut node);
    node.run(Command::Horizon(horizon_at(&node, 4)));
    effects(&node, "effects digest after batches below 4 were forgotten");
    node.batch(TIME + 20_002, &[celsius()]);
    hash(&node, 5);
}
