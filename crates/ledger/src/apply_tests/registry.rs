//! Orders of owners, updates from a chain, and what they let devices do.

use lockstep_types::genesis::RETRY_WINDOW_FOR_EVER_MS;
use lockstep_types::registry::DevicePolicy;
use lockstep_types::task_v1::{Content, SignedKey};
use lockstep_types::{ChainEvent, ChainSource, ChainUpdate, DeviceEntry, Order, OrderKind, SignedOrder, TaskEvidence};

use super::*;
use crate::devices::Document;

pub(super) const PROJECT: ProjectId = ProjectId(7);
pub(super) const NOW: u64 = 100_000;

fn owned(settings: ProjectSettings) -> NetworkParams {
    NetworkParams {
        projects: [(PROJECT, settings.clone()), (ProjectId(8), settings)].into(),
        owners: [(PROJECT, key(50).address()), (ProjectId(8), key(51).address())].into(),
        allow_unsigned: true,
        ..NetworkParams::default()
    }
}

pub(super) fn node(params: NetworkParams) -> Node {
    Node::new(params)
}

fn order(node: &Node, project: ProjectId, kind: OrderKind) -> Order {
    let orders = node.ledger.projects().get(project).map_or(0, |project| project.orders);
    Order { epoch: Epoch(0), project, number: orders + 1, expires_ms: TimeMs(NOW + 60_000), kind }
}

fn run(node: &mut Node, signed: SignedOrder) -> Result<(), OrderError> {
    let before = node.ledger.head.clone();
    let applied = node.run(Command::Order { time_ms: TimeMs(NOW), order: Box::new(signed) });
    match applied.order.unwrap().2 {
        Ok(()) => Ok(()),
        Err(reason) => {
            assert_eq!((node.ledger.head.clone(), applied.writes.len()), (before, 0), "a refusal changes nothing");
            Err(reason)
        }
    }
}

pub(super) fn give(node: &mut Node, by: u8, project: ProjectId, kind: OrderKind) -> Result<(), OrderError> {
    let signed = order(node, project, kind).sign(&NetworkId([7; 32]), &key(by));
    run(node, signed)
}

fn entry(device: Address, document: Option<&str>) -> OrderKind {
    OrderKind::AddDevices(vec![DeviceEntry { device, document: document.map(str::to_owned) }])
}

pub(super) fn of(n: u8, data: &str) -> Message {
    Message { device: Address([n; 20]), ..message(data) }
}

pub(super) fn outcome(node: &mut Node, message: Message) -> Result<u64, Rejection> {
    match node.batch(NOW, &[message])[0].clone() {
        Outcome::Ordered { sequence, .. } => Ok(sequence.0),
        Outcome::Duplicate { sequence, .. } => Ok(sequence.0),
        Outcome::Rejected(reason) => Err(reason),
    }
}

#[test]
fn only_devices_that_the_owner_added_may_submit() {
    let mut node = node(owned(ProjectSettings::default()));
    assert_eq!(outcome(&mut node, of(1, "early")), Err(Rejection::Device));
    give(&mut node, 50, PROJECT, entry(Address([1; 20]), None)).unwrap();
    assert_eq!(outcome(&mut node, of(1, "a")), Ok(1));
    assert_eq!(outcome(&mut node, of(2, "a")), Err(Rejection::Device));
    let elsewhere = Message { project_id: ProjectId(8), ..of(1, "a") };
    assert_eq!(outcome(&mut node, elsewhere), Err(Rejection::Device), "for that project only");
    node.restart();
    give(&mut node, 50, PROJECT, OrderKind::RemoveDevices(vec![Address([1; 20])])).unwrap();
    assert_eq!(outcome(&mut node, of(1, "a")), Err(Rejection::Device), "not even a retry is answered");
    let unsigned = Message { api: Api::Unsigned, device: Address::ZERO, ..message("nobody") };
    assert_eq!(outcome(&mut node, unsigned), Ok(2), "nobody to ask about");
}

#[test]
fn an_order_counts_once_and_only_from_the_owner() {
    let mut node = node(owned(ProjectSettings::default()));
    let add = || entry(Address([1; 20]), None);
    assert_eq!(give(&mut node, 51, PROJECT, add()), Err(OrderError::Signer(key(50).address())));
    assert_eq!(give(&mut node, 50, ProjectId(9), add()), Err(OrderError::UnknownProject(ProjectId(9))));
    let signed = order(&node, PROJECT, add()).sign(&NetworkId([7; 32]), &key(50));
    let elsewhere = order(&node, PROJECT, add()).sign(&NetworkId([8; 32]), &key(50));
    assert_eq!(run(&mut node, elsewhere), Err(OrderError::Signer(key(50).address())));
    let late = Order { expires_ms: TimeMs(NOW), ..order(&node, PROJECT, add()) };
    assert_eq!(run(&mut node, late.sign(&NetworkId([7; 32]), &key(50))), Err(OrderError::Expired));
    let far = Order { expires_ms: TimeMs(NOW + ORDER_LIFE_MS_MAX + 1), ..order(&node, PROJECT, add()) };
    assert_eq!(run(&mut node, far.sign(&NetworkId([7; 32]), &key(50))), Err(OrderError::Expired));
    run(&mut node, signed.clone()).unwrap();
    assert!(matches!(run(&mut node, signed), Err(OrderError::Stale { found: 1, expected: 2, .. })));
    give(&mut node, 50, PROJECT, OrderKind::Owner(key(52).address())).unwrap();
    assert_eq!(give(&mut node, 50, PROJECT, add()), Err(OrderError::Signer(key(52).address())));
    give(&mut node, 52, PROJECT, add()).unwrap();
}

#[test]
fn a_device_belongs_to_who_registered_it() {
    let mut node = node(owned(ProjectSettings::default()));
    let device = Address([1; 20]);
    give(&mut node, 50, PROJECT, entry(device, Some("first"))).unwrap();
    let refused = give(&mut node, 51, ProjectId(8), entry(device, Some("second")));
    assert_eq!(refused, Err(OrderError::OthersDevice { device, by: key(50).address() }));
    give(&mut node, 51, ProjectId(8), entry(device, None)).unwrap();
    assert_eq!(outcome(&mut node, Message { project_id: ProjectId(8), ..of(1, "a") }), Ok(1));
    assert_eq!(node.view.2.devices[&device].document, Document::Text("first".into()));
    let revoke = || OrderKind::RevokeTokens(vec![device]);
    assert_eq!(give(&mut node, 51, ProjectId(8), revoke()), Err(OrderError::NotRegistered(device)));
    give(&mut node, 50, PROJECT, revoke()).unwrap();
    assert_eq!(node.view.2.devices[&device].tokens_from, TimeMs(NOW));
    give(&mut node, 50, PROJECT, OrderKind::RemoveDevices(vec![device, device])).unwrap();
    give(&mut node, 51, ProjectId(8), entry(device, Some("second"))).unwrap();
    assert_eq!(node.view.2.devices[&device].tokens_from, TimeMs(NOW), "old tokens stay revoked");
}

#[test]
fn settings_hold_from_their_order_on() {
    let mut node = node(owned(ProjectSettings::default()));
    let open =
        ProjectSettings { devices: Some(DevicePolicy::Any), group_messages_max: 2, ..ProjectSettings::default() };
    give(&mut node, 50, PROJECT, OrderKind::Settings(open.clone())).unwrap();
    node.restart();
    assert_eq!(node.ledger.projects().settings(PROJECT), Some(&open));
    let outcomes = node.batch(NOW, &[of(1, "a"), of(1, "b")]);
    assert!(matches!(outcomes[0], Outcome::Ordered { task_id: None, .. }));
    assert!(matches!(outcomes[1], Outcome::Ordered { task_id: Some(_), .. }));
    let strict = ProjectSettings { strict_nonces: true, ..open.clone() };
    give(&mut node, 50, PROJECT, OrderKind::Settings(strict)).unwrap();
    assert_eq!(give(&mut node, 50, PROJECT, OrderKind::Settings(open)), Err(OrderError::StrictNonces));
}

#[test]
fn a_retry_window_is_ordered_as_long_as_the_network_keeps_messages_or_for_ever() {
    let late_ms = RETRY_MARGIN_MS + AGE_MS_MAX;
    for (age_ms, window_ms, expected) in [
        (0, u64::MAX - 1, Ok(())),
        (60_000 + late_ms, 60_000, Ok(())),
        (60_000 + late_ms, 60_001, Err(OrderError::Window(60_000))),
        (60_000 + late_ms, RETRY_WINDOW_FOR_EVER_MS - 1, Err(OrderError::Window(60_000))),
        (60_000 + late_ms, RETRY_WINDOW_FOR_EVER_MS, Ok(())),
    ] {
        let retention = lockstep_types::Retention { age_ms, ..lockstep_types::Retention::default() };
        let mut node = node(NetworkParams { retention, ..owned(ProjectSettings::default()) });
        let settings = ProjectSettings { retry_window_ms: window_ms, ..ProjectSettings::default() };
        assert_eq!(give(&mut node, 50, PROJECT, OrderKind::Settings(settings)), expected, "{age_ms} {window_ms}");
    }
}

#[test]
fn a_majority_of_voters_registers_a_project() {
    let mut node = node(NetworkParams::default());
    let change = lockstep_types::Change::Project(PROJECT, key(50).address());
    let proposal = node.ledger.members().propose(Epoch(0), change, TimeMs(NOW + 1_000));
    for (voter, signer) in [(1, 1), (2, 2), (3, 3)] {
        let Some((id, _)) = node.ledger.members().all().find(|(_, m)| m.member.name == format!("node-{signer}")) else {
            panic!("node {voter}");
        };
        let approval = proposal.clone().approve(&NetworkId([7; 32]), id, &key(signer));
        let applied = node.run(Command::Approval { time_ms: TimeMs(NOW), approval: Box::new(approval) });
        assert_eq!(applied.refused.is_some(), voter == 3, "two of three are enough");
    }
    assert!(node.ledger.members().pending().is_none());
    assert_eq!(node.ledger.projects().get(PROJECT).unwrap().owner, Some(key(50).address()));
    give(&mut node, 50, PROJECT, entry(Address([1; 20]), None)).unwrap();
    assert_eq!(outcome(&mut node, of(1, "a")), Ok(1));
}

pub(super) fn task(nonce: u64, payload: &'static str, signed: &[(&str, u64)]) -> Message {
    let payload_is_json = true;
    let content =
        Content { nonce, project_id: PROJECT, project_version: "1", payload: payload.as_bytes(), payload_is_json };
    let signature = key(60).sign(&content.digest(signed.iter().map(|(_, value)| *value)));
    let signed = signed.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    Message {
        api: Api::TaskV1,
        device: key(60).address(),
        nonce: Bytes::copy_from_slice(&nonce.to_be_bytes()),
        evidence: Evidence::Task(TaskEvidence { signature, is_json: true, signed }),
        ..message(payload)
    }
}

pub(super) fn any(strict_nonces: bool, signed_keys: &[&str]) -> NetworkParams {
    let signed_keys = signed_keys.iter().map(|key| SignedKey::new(key).unwrap()).collect();
    let devices = Some(DevicePolicy::Any);
    owned(ProjectSettings { devices, strict_nonces, signed_keys, group_messages_max: 10, ..ProjectSettings::default() })
}

#[test]
fn what_the_project_wants_signed_must_be_signed() {
    let mut node = node(any(false, &["timestamp"]));
    let payload = r#"{"timestamp":7}"#;
    assert_eq!(outcome(&mut node, task(1, payload, &[])), Err(Rejection::SignedKeys));
    assert_eq!(outcome(&mut node, task(1, payload, &[("timestamp", 7)])), Ok(1));
}

fn chained(attestations: u64) -> NetworkParams {
    let chain = ChainSource {
        chain_id: 31337,
        registry: Address([1; 20]),
        project_device: Address([2; 20]),
        task_manager: None,
        start_block: 10,
        confirmations: 12,
        attestations,
    };
    NetworkParams { chain: Some(chain), ..owned(ProjectSettings::default()) }
}

fn update(first: u64, last: u64, parent: u8, events: Vec<ChainEvent>) -> ChainUpdate {
    ChainUpdate { first, last, parent_hash: [parent; 32], last_hash: [last as u8; 32], events }
}

fn follow(node: &mut Node, update: ChainUpdate, voters: &[u8]) -> Option<ChainRefusal> {
    let digest = update.digest(&NetworkId([7; 32]), Epoch(0));
    let id = |n: &u8| node.ledger.members().all().find(|(_, m)| m.member.name == format!("node-{n}")).unwrap().0;
    let signatures = voters.iter().map(|n| (id(n), key(*n).sign(&digest))).collect();
    node.run(Command::Chain { time_ms: TimeMs(NOW), update: Box::new(update), signatures }).chain_refused
}

#[test]
fn a_chain_registers_and_approves_devices() {
    let mut node = node(chained(1));
    let device = Address([1; 20]);
    let registered = ChainEvent::Device { device, owner: Address([9; 20]), hash: [3; 32], uri: "ipfs://x".into() };
    let approved = ChainEvent::Approved(PROJECT, device);
    assert_eq!(node.ledger.next_block(), Some(10));
    assert_eq!(follow(&mut node, update(10, 20, 0, vec![registered]), &[1]), None);
    assert_eq!(outcome(&mut node, of(1, "a")), Err(Rejection::Device), "registered, not approved");
    assert_eq!(follow(&mut node, update(21, 21, 20, vec![approved.clone()]), &[1]), None);
    assert_eq!(outcome(&mut node, of(1, "a")), Ok(1));
    node.restart();
    assert_eq!(node.ledger.next_block(), Some(22));
    let refused = give(&mut node, 50, PROJECT, entry(device, Some("{}")));
    assert_eq!(refused, Err(OrderError::FromChain(device)));
    let events = vec![approved, ChainEvent::Unapproved(PROJECT, device)];
    assert_eq!(follow(&mut node, update(22, 30, 21, events), &[1]), None);
    assert_eq!(outcome(&mut node, of(1, "b")), Err(Rejection::Device), "the last word counts");
}

#[test]
fn an_update_must_follow_and_be_attested() {
    let mut node = node(chained(2));
    let next = |parent| update(21, 30, parent, Vec::new());
    let few = Some(ChainRefusal::Attestations { found: 1, needed: 2 });
    assert_eq!(follow(&mut node, update(10, 20, 0, Vec::new()), &[1]), few);
    assert_eq!(follow(&mut node, update(10, 20, 0, Vec::new()), &[1, 3]), None);
    assert_eq!(follow(&mut node, next(19), &[1, 2]), Some(ChainRefusal::Reorganised(20)));
    let not_next = Some(ChainRefusal::NotNext { found: 10, expected: 21 });
    assert_eq!(follow(&mut node, update(10, 20, 0, Vec::new()), &[1, 2]), not_next);
    assert_eq!(follow(&mut node, next(20), &[2, 3]), None);
    let mut without = super::registry::node(owned(ProjectSettings::default()));
    assert_eq!(follow(&mut without, update(10, 20, 0, Vec::new()), &[1, 2]), Some(ChainRefusal::NoChain));
}
