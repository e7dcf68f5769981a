#![allow(clippy::unwrap_used)]
//! Layouts of events, and logs that do not fit together.

use lockstep_types::ProjectId;
use lockstep_types::message::PROJECT_ID_MAX;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::abi::{address_word, number_word};

const REGISTRY: Address = Address([0xaa; 20]);
const PROJECTS: Address = Address([0xbb; 20]);
const DEVICE: Address = Address([0xd1; 20]);
const OWNER: Address = Address([0x0e; 20]);

fn source() -> ChainSource {
    ChainSource::new(1, REGISTRY, PROJECTS)
}

fn log(address: Address, topics: &[Word], data: &[u8]) -> Log {
    Log { address, topics: topics.to_vec(), data: data.to_vec(), block: 5, block_hash: [5; 32], index: 0 }
}

/// A string as the only tail of `head` words.
fn tail(head: usize, text: &[u8]) -> (Word, Vec<u8>) {
    let mut bytes = number_word(text.len() as u64).to_vec();
    bytes.extend(text);
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    (number_word(32 * head as u64), bytes)
}

/// `NewDevice` with its first `indexed` parameters as topics.
fn new_device(indexed: usize, uri: &[u8]) -> Log {
    let fixed = [address_word(&DEVICE), address_word(&OWNER), [0xab; 32]];
    let (offset, tail) = tail(4 - indexed, uri);
    let topics = [&[TOPICS.new_device], &fixed[..indexed]].concat();
    log(REGISTRY, &topics, &[&fixed[indexed..].concat(), &offset[..], &tail].concat())
}

fn read_device(uri: &str) -> Decoded<Event> {
    let (device, owner, uri) = (DEVICE, OWNER, uri.to_owned());
    Decoded::Event(Event::Device { device, owner, hash: [0xab; 32], uri, updated: false })
}

#[test]
fn a_device_is_the_same_however_many_of_its_parameters_are_indexed() {
    for indexed in 0..=3 {
        assert_eq!(registry_event(&source(), &new_device(indexed, b"ipfs://x")), read_device("ipfs://x"), "{indexed}");
    }
}

#[test]
fn a_device_with_an_unusable_uri_is_still_a_device() {
    let long = [b'a'; URI_BYTES_MAX + 1];
    for uri in [&long[..], b"\xff\xfe"] {
        assert_eq!(registry_event(&source(), &new_device(1, uri)), read_device(""));
    }
    let longest = "a".repeat(URI_BYTES_MAX);
    assert_eq!(registry_event(&source(), &new_device(1, longest.as_bytes())), read_device(&longest));
    let mut cut = new_device(1, b"ipfs://x");
    cut.data.truncate(32 * 4);
    assert_eq!(registry_event(&source(), &cut), read_device(""));
    cut.data.truncate(32 * 2);
    assert_eq!(registry_event(&source(), &cut), Decoded::Ignored);
}

#[test]
fn an_approval_is_the_same_in_each_layout() {
    let (project, device) = (number_word(7), address_word(&DEVICE));
    let approved = Decoded::Event(Event::Approved { project: ProjectId(7), device: DEVICE });
    let topic = TOPICS.approve;
    assert_eq!(registry_event(&source(), &log(PROJECTS, &[topic], &[project, device].concat())), approved);
    assert_eq!(registry_event(&source(), &log(PROJECTS, &[topic, device], &project)), approved);
    assert_eq!(registry_event(&source(), &log(PROJECTS, &[topic, project, device], &[])), approved);
    let unapproved = Decoded::Event(Event::Unapproved { project: ProjectId(7), device: DEVICE });
    assert_eq!(registry_event(&source(), &log(PROJECTS, &[TOPICS.unapprove, device], &project)), unapproved);
}

#[test]
fn a_project_that_no_message_can_name_is_ignored() {
    let approve = |project: Word| log(PROJECTS, &[TOPICS.approve, address_word(&DEVICE)], &project);
    assert!(matches!(registry_event(&source(), &approve(number_word(PROJECT_ID_MAX))), Decoded::Event(_)));
    for project in [number_word(PROJECT_ID_MAX + 1), [1; 32]] {
        assert_eq!(registry_event(&source(), &approve(project)), Decoded::Ignored);
    }
}

#[test]
fn an_event_of_the_other_contract_is_nobodys() {
    let approve = log(REGISTRY, &[TOPICS.approve, address_word(&DEVICE)], &number_word(7));
    assert_eq!(registry_event(&source(), &approve), Decoded::Other);
    let device = Log { address: PROJECTS, ..new_device(1, b"") };
    assert_eq!(registry_event(&source(), &device), Decoded::Other);
    assert_eq!(registry_event(&source(), &log(REGISTRY, &[], &[])), Decoded::Other);
}

#[test]
fn task_states_are_the_same_in_each_layout() {
    let (manager, prover) = (Address([0xcc; 20]), Address([0x9; 20]));
    let words = [number_word(7), [0x7a; 32], address_word(&prover), number_word(99)];
    let assigned = TaskState::Assigned { project: ProjectId(7), task: TaskId([0x7a; 32]), prover, deadline: 99 };
    for indexed in 0..=3 {
        let topics = [&[TOPICS.assigned], &words[..indexed]].concat();
        let read = task_state(&manager, &log(manager, &topics, &words[indexed..].concat()));
        assert_eq!(read, Decoded::Event(assigned.clone()), "{indexed}");
    }
    let settled = TaskState::Settled { project: ProjectId(7), task: TaskId([0x7a; 32]), prover };
    for indexed in 0..=3 {
        let topics = [&[TOPICS.settled], &words[..indexed]].concat();
        let read = task_state(&manager, &log(manager, &topics, &words[indexed..3].concat()));
        assert_eq!(read, Decoded::Event(settled.clone()), "{indexed}");
    }
}

#[test]
fn logs_that_cannot_be_of_one_chain_are_refused() {
    let block = |number: u64, byte: u8| Block { number, hash: [byte; 32], parent_hash: [byte - 1; 32] };
    let at =
        |number: u64, byte: u8, index: u64| Log { block: number, block_hash: [byte; 32], index, ..new_device(1, b"") };
    let (first, last) = (block(5, 5), block(9, 9));
    let check = |logs: &[Log]| in_order(logs.to_vec(), &first, &last);
    let good = [at(5, 5, 1), at(7, 7, 0), at(7, 7, 3), at(9, 9, 0)];
    assert_eq!(check(&good).unwrap(), good);
    let mut turned = good.clone();
    turned.reverse();
    assert_eq!(check(&turned).unwrap(), good);
    for bad in [
        &[at(4, 4, 0)][..],
        &[at(10, 9, 0)],
        &[at(5, 6, 0)],
        &[at(9, 8, 0)],
        &[at(7, 7, 0), at(7, 8, 1)],
        &[at(7, 7, 0), at(7, 7, 0)],
    ] {
        assert!(matches!(check(bad), Err(ChainError::Changed { .. })), "{bad:?}");
    }
}

#[test]
fn a_log_that_was_removed_or_is_in_no_block_is_refused() {
    let json = |change: &str, with: &str| {
        let text = format!(
            r#"{{"address":"{REGISTRY}","topics":["0x{}"],"data":"0x","blockNumber":"0x5","blockHash":"0x{}","logIndex":"0x0","removed":false}}"#,
            "11".repeat(32),
            "05".repeat(32)
        );
        Log::try_from(serde_json::from_str::<LogJson>(&text.replace(change, with)).unwrap())
    };
    assert_eq!(json("", "").unwrap(), log(REGISTRY, &[[0x11; 32]], &[]));
    assert!(matches!(json("\"removed\":false", "\"removed\":true"), Err(ChainError::Changed { .. })));
    assert!(matches!(json("\"blockNumber\":\"0x5\"", "\"blockNumber\":null"), Err(ChainError::Changed { .. })));
    assert_eq!(json("\"0x5\"", "\"0x+5\""), Err(MALFORMED));
    assert_eq!(json("\"data\":\"0x\"", "\"data\":\"0x1\""), Err(MALFORMED));
}

proptest! {
    /// Whoever may emit an event chooses its bytes; words are often small, so that offsets often point somewhere.
    #[test]
    fn no_log_makes_the_decoder_panic(
        event in 0_usize..7,
        topics in vec(prop_oneof![any::<Word>(), any::<u8>().prop_map(|n| number_word(n.into()))], 0..5),
        words in vec(prop_oneof![any::<Word>(), any::<u8>().prop_map(|n| number_word(n.into()))], 0..8),
        rest in vec(any::<u8>(), 0..32),
    ) {
        let events = [TOPICS.of_registry(), TOPICS.of_tasks()].concat();
        let topics = [&[events[event]], &topics[..]].concat();
        let data = [words.concat(), rest].concat();
        for address in [REGISTRY, PROJECTS] {
            let log = log(address, &topics, &data);
            let uri = match registry_event(&source(), &log) {
                Decoded::Event(Event::Device { uri, .. }) => uri,
                _ => String::new(),
            };
            prop_assert!(uri.len() <= URI_BYTES_MAX);
            task_state(&address, &log);
        }
    }
}
