//! The reader against a real chain: anvil's, with contracts that have the real ones' events.

use lockstep_chain::{ChainError, ChainReader, ChainSource, Event, Range, Rpc, TaskState, URI_BYTES_MAX};
use lockstep_testkit::anvil::{Anvil, Contracts, bytecode, register_call, set_call};
use lockstep_types::message::PROJECT_ID_MAX;
use lockstep_types::{Address, ProjectId, TaskId};

const CHAIN: u64 = 4_690;
const OWNER: Address = Address([0x0e; 20]);
const DEVICE: Address = Address([0xd1; 20]);
const OTHER: Address = Address([0xd2; 20]);
const PROJECT: ProjectId = ProjectId(7);

fn reader(anvil: &Anvil, source: ChainSource) -> ChainReader {
    ChainReader::new(Rpc::new(anvil.endpoint()).unwrap(), source).unwrap()
}

fn device(device: Address, hash: u8, uri: &str, updated: bool) -> Event {
    Event::Device { device, owner: OWNER, hash: [hash; 32], uri: uri.into(), updated }
}

async fn next(reader: &ChainReader, first: u64) -> Option<Range> {
    reader.next_range(first).await.unwrap()
}

#[tokio::test]
async fn events_are_read_in_order_and_only_when_confirmed() {
    let anvil = Anvil::start(CHAIN).await;
    let contracts = Contracts::deploy(&anvil).await;
    let reader = reader(&anvil, contracts.source(&anvil));
    reader.check().await.unwrap();
    assert_eq!(next(&reader, 0).await, None);

    contracts.register(&anvil, DEVICE, OWNER, [1; 32], b"ipfs://one").await;
    contracts.register(&anvil, OTHER, OWNER, [2; 32], &[b'u'; URI_BYTES_MAX + 1]).await;
    contracts.approve(&anvil, PROJECT, &[OTHER, DEVICE]).await;
    contracts.register(&anvil, DEVICE, OWNER, [3; 32], b"ipfs://three").await;
    contracts.assign(&anvil, PROJECT, TaskId([5; 32]), OTHER, 99).await;
    anvil.send(contracts.project_device, &set_call([0xff; 32], &[DEVICE], true)).await;
    contracts.unapprove(&anvil, PROJECT, &[OTHER]).await;
    let last = contracts.remove(&anvil, OTHER, OWNER).await;

    let expected = [
        device(DEVICE, 1, "ipfs://one", false),
        device(OTHER, 2, "", false),
        Event::Approved { project: PROJECT, device: OTHER },
        Event::Approved { project: PROJECT, device: DEVICE },
        device(DEVICE, 3, "ipfs://three", true),
        Event::Unapproved { project: PROJECT, device: OTHER },
        Event::Removed { device: OTHER, owner: OWNER },
    ];
    let confirmations = reader.source().confirmations;
    anvil.mine(confirmations - 1).await;
    let before = next(&reader, 0).await.unwrap();
    assert_eq!((before.last, &before.events[..]), (last - 1, &expected[..6]));
    assert_eq!(reader.range(0, last).await, Err(ChainError::NotYet { block: last }));

    anvil.mine(1).await;
    let range = next(&reader, 0).await.unwrap();
    assert_eq!((range.first, range.last, range.ignored), (0, last, 1));
    assert_eq!(range.events, expected);
    assert_eq!(next(&reader, last + 1).await, None);
    assert_eq!(reader.range(0, last).await.unwrap(), range);

    // The same blocks in pieces, by a reader that asks for few at a time.
    let small = ChainSource { span_max: 3, ..reader.source().clone() };
    let small = self::reader(&anvil, small);
    assert_eq!(small.range(0, last).await.unwrap().digest(), range.digest());
    let mut pieces = vec![next(&small, 0).await.unwrap()];
    while let Some(piece) = next(&small, pieces[pieces.len() - 1].last + 1).await {
        assert!(piece.last - piece.first < 3 && piece.follows(&pieces[pieces.len() - 1]));
        pieces.push(piece);
    }
    let events: Vec<Event> = pieces.iter().flat_map(|piece| piece.events.clone()).collect();
    assert_eq!((events, pieces[pieces.len() - 1].last_hash), (range.events, range.last_hash));
}

#[tokio::test]
async fn contracts_without_indexed_parameters_are_read_too() {
    let anvil = Anvil::start(CHAIN).await;
    let plain = anvil.deploy(bytecode::PLAIN).await;
    let reader = reader(&anvil, ChainSource { confirmations: 0, ..ChainSource::new(CHAIN, plain, plain) });
    anvil.send(plain, &register_call(DEVICE, OWNER, [1; 32], b"ipfs://one")).await;
    let mut largest = [0; 32];
    largest[24..].copy_from_slice(&PROJECT_ID_MAX.to_be_bytes());
    anvil.send(plain, &set_call(largest, &[DEVICE], true)).await;
    anvil.send(plain, &set_call(largest, &[DEVICE], false)).await;
    let project = ProjectId(PROJECT_ID_MAX);
    let expected = [
        device(DEVICE, 1, "ipfs://one", false),
        Event::Approved { project, device: DEVICE },
        Event::Unapproved { project, device: DEVICE },
    ];
    assert_eq!(next(&reader, 0).await.unwrap().events, expected);
}

#[tokio::test]
async fn views_say_what_is_so_now() {
    let anvil = Anvil::start(CHAIN).await;
    let contracts = Contracts::deploy(&anvil).await;
    let reader = reader(&anvil, contracts.source(&anvil));
    assert_eq!(reader.document_uri(DEVICE).await, Ok(None));
    assert_eq!(reader.approved(PROJECT, DEVICE).await, Ok(false));
    let uri = "ipfs://a-uri-that-is-longer-than-a-single-word-of-32-bytes";
    contracts.register(&anvil, DEVICE, OWNER, [1; 32], uri.as_bytes()).await;
    contracts.approve(&anvil, PROJECT, &[DEVICE]).await;
    assert_eq!(reader.document_uri(DEVICE).await, Ok(Some(uri.into())));
    assert_eq!(reader.approved(PROJECT, DEVICE).await, Ok(true));
    assert_eq!(reader.approved(ProjectId(8), DEVICE).await, Ok(false));

    let nowhere = Address([0x77; 20]);
    let wrong = self::reader(&anvil, ChainSource::new(CHAIN, contracts.registry, nowhere));
    let missing = ChainError::NoContract { address: nowhere };
    assert_eq!(wrong.check().await, Err(missing.clone()));
    assert_eq!(wrong.approved(PROJECT, DEVICE).await, Err(missing));
}

#[tokio::test]
async fn task_states_are_read_apart_from_the_registry() {
    let anvil = Anvil::start(CHAIN).await;
    let contracts = Contracts::deploy(&anvil).await;
    let reader = reader(&anvil, contracts.source(&anvil));
    let (task, prover) = (TaskId([0x7a; 32]), Address([9; 20]));
    let first = contracts.assign(&anvil, PROJECT, task, prover, 99).await;
    contracts.register(&anvil, DEVICE, OWNER, [1; 32], b"").await;
    let last = contracts.settle(&anvil, PROJECT, task, prover).await;
    assert_eq!(reader.task_states(first, last).await, Err(ChainError::NotYet { block: last }));
    anvil.mine(reader.source().confirmations).await;
    let read = reader.task_states(first, last).await.unwrap();
    let expected = [
        TaskState::Assigned { project: PROJECT, task, prover, deadline: 99 },
        TaskState::Settled { project: PROJECT, task, prover },
    ];
    assert_eq!((read.states, read.ignored), (expected.to_vec(), 0));
    let range = reader.range(first, last).await.unwrap();
    assert_eq!((range.last_hash, range.events.len()), (read.last_hash, 1));
}

#[tokio::test]
async fn a_reorganisation_within_the_confirmations_changes_nothing_and_a_deeper_one_shows() {
    let anvil = Anvil::start(CHAIN).await;
    let contracts = Contracts::deploy(&anvil).await;
    let reader = reader(&anvil, contracts.source(&anvil));
    contracts.register(&anvil, DEVICE, OWNER, [1; 32], b"ipfs://one").await;
    anvil.mine(12).await;
    let range = next(&reader, 0).await.unwrap();
    assert_eq!(range.events.len(), 1);

    // Not confirmed, and then gone.
    contracts.approve(&anvil, PROJECT, &[DEVICE]).await;
    assert_eq!(anvil.head().await, range.last + 13);
    anvil.reorg(10).await;
    assert_eq!(anvil.head().await, range.last + 13);
    assert_eq!(reader.range(0, range.last).await.unwrap(), range);
    anvil.mine(20).await;
    let after = next(&reader, range.last + 1).await.unwrap();
    assert!(after.follows(&range) && after.events.is_empty());

    // Deeper than what was returned.
    anvil.reorg(20).await;
    anvil.mine(20).await;
    let other = next(&reader, after.last + 1).await.unwrap();
    assert!(!other.follows(&after));
    assert_ne!(reader.range(after.first, after.last).await.unwrap().digest(), after.digest());
}

#[tokio::test]
async fn an_endpoint_that_is_down_for_a_while_goes_on_where_it_was() {
    let mut anvil = Anvil::start(CHAIN).await;
    let contracts = Contracts::deploy(&anvil).await;
    let reader = reader(&anvil, contracts.source(&anvil));
    contracts.register(&anvil, DEVICE, OWNER, [1; 32], b"ipfs://one").await;
    anvil.mine(12).await;
    let range = next(&reader, 0).await.unwrap();

    anvil.stop().await;
    for _ in 0..3 {
        let down = reader.next_range(range.last + 1).await.unwrap_err();
        assert!(matches!(down, ChainError::Unreachable { .. }) && down.is_retryable(), "{down}");
    }
    anvil.start_again().await;
    assert_eq!(reader.range(0, range.last).await.unwrap(), range);
    contracts.approve(&anvil, PROJECT, &[DEVICE]).await;
    anvil.mine(12).await;
    let after = next(&reader, range.last + 1).await.unwrap();
    assert!(after.follows(&range));
    assert_eq!(after.events, [Event::Approved { project: PROJECT, device: DEVICE }]);
}

#[tokio::test]
async fn a_wrong_chain_is_refused() {
    let anvil = Anvil::start(CHAIN).await;
    let contracts = Contracts::deploy(&anvil).await;
    let reader = reader(&anvil, ChainSource { chain_id: 1, ..contracts.source(&anvil) });
    let wrong = ChainError::WrongChain { expected: 1, found: CHAIN };
    assert_eq!(reader.next_range(0).await, Err(wrong.clone()));
    assert_eq!(reader.range(0, 0).await, Err(wrong.clone()));
    assert_eq!(reader.task_states(0, 0).await, Err(wrong.clone()));
    assert_eq!(reader.approved(PROJECT, DEVICE).await, Err(wrong.clone()));
    assert_eq!(reader.check().await, Err(wrong.clone()));
    assert!(!wrong.is_retryable());
}
