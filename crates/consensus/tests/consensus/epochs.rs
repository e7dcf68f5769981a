//! Beginning an epoch from the store of a node that was lost.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_consensus::epoch::{apply_whole_log, begin_epoch, members_of, next_epoch};
use lockstep_consensus::rebuild::check_log;
use lockstep_consensus::{
    CompactionOptions, Connection, Consensus, Observer, Options, Role, StateStore, Transport, TransportError,
};
use lockstep_ledger::{Applied, COMMAND_VERSION, Ledger, RULES_NEWEST};
use lockstep_store::home::StoreHome;
use lockstep_types::{
    BatchHash, Epoch, EpochReason, Epochs, Genesis, Height, Incarnation, Member, MemberRole, NetworkParams, NodeId,
    SigningKey, TimeMs, proto,
};
use prost::Message as _;

use crate::files::copy_of_a_crash;

struct Quiet;

impl Observer for Quiet {
    fn applied(&self, _ledger: &Ledger, _applied: &Applied) {}
    fn loaded(&self, _ledger: &Ledger) {}
}

struct Nobody;

impl Transport for Nobody {
    fn connect(&self, _target: NodeId) -> Box<dyn Connection> {
        Box::new(Self)
    }

    fn connect_bulk(&self, _target: NodeId) -> Box<dyn Connection> {
        Box::new(Self)
    }
}

#[async_trait]
impl Connection for Nobody {
    async fn call(&mut self, _request: Bytes, _timeout: Duration) -> Result<Bytes, TransportError> {
        Err(TransportError::Unreachable("nobody is there".into()))
    }
}

fn member(n: u8) -> Member {
    let key = SigningKey::from_bytes([n; 32]).unwrap();
    let hex: String = key.public().compressed().iter().map(|b| format!("{b:02x}")).collect();
    Member {
        name: format!("n{n}"),
        public_key: hex,
        incarnation: Incarnation([n; 16]),
        p2p: format!("/ip4/127.0.0.1/tcp/{n}"),
        http: format!("http://127.0.0.1:{n}"),
    }
}

fn genesis() -> Genesis {
    let params = NetworkParams { allow_unknown_projects: true, ..NetworkParams::default() };
    Genesis::new("test", vec![member(1)], params).unwrap()
}

fn command(number: u64) -> Bytes {
    let message = proto::Message {
        api: 1,
        project_id: 7,
        project_version: "0.1".into(),
        data: number.to_be_bytes().to_vec().into(),
        device: Bytes::from_static(&[1; 20]),
        evidence: Bytes::from_static(&[2; 65]),
        ..proto::Message::default()
    };
    let batch = proto::ProposedBatch { time_ms: 1_000 + number, messages: vec![message], ..Default::default() };
    let kind = Some(proto::command::Kind::Batch(batch));
    proto::Command { version: COMMAND_VERSION, kind }.encode_to_vec().into()
}

async fn start(path: &Path, node: NodeId, epoch: Epoch) -> (Consensus, StateStore) {
    let store = StoreHome::open(path).unwrap();
    let state = StateStore::open(&store).unwrap();
    let options = Options {
        node,
        genesis: genesis(),
        epoch,
        store,
        election_timeout_ms: 400,
        heartbeat_ms: 100,
        compaction: CompactionOptions::default(),
        rules_known: RULES_NEWEST,
    };
    let consensus = Consensus::start(options, Arc::new(Nobody), state.clone(), Arc::new(Quiet)).await.unwrap();
    let mut status = consensus.status();
    let leads = status.wait_for(|status| status.role == Role::Leader);
    tokio::time::timeout(Duration::from_secs(20), leads).await.unwrap().unwrap();
    (consensus, state)
}

async fn propose(consensus: &Consensus, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = consensus.propose(command(number)).await {
            assert!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_begins_with_the_whole_log_and_one_new_voter() {
    let directory = tempfile::tempdir().unwrap();
    let [old, crashed, new] = ["old", "crashed", "new"].map(|name| directory.path().join(name));
    StoreHome::create(&old, Incarnation([1; 16])).unwrap();
    let (consensus, state) = start(&old, NodeId(1), Epoch(0)).await;
    propose(&consensus, 0..20).await;
    let head = state.head().unwrap().unwrap();
    // As a crash leaves it: the newest entries are in the log only.
    copy_of_a_crash(&old, &crashed);
    consensus.shutdown().await;
    drop((consensus, state));

    let genesis = genesis();
    let crashed = StoreHome::open(&crashed).unwrap();
    let standing = check_log(&crashed).unwrap();
    assert_eq!(standing.purged, None);
    let state = StateStore::open(&crashed).unwrap();
    assert!(state.head().unwrap().is_none_or(|before| before.height < head.height), "the test needs a crash");
    let applied = apply_whole_log(&crashed, &state, &genesis, (Epoch(0), RULES_NEWEST)).unwrap();
    assert_eq!((&applied.head, applied.applied, applied.damage), (&head, standing.last, None));

    let store = StoreHome::create(&new, Incarnation([9; 16])).unwrap();
    state.copy_to(&store.state_path().unwrap()).unwrap();
    drop(state);
    let state = StateStore::open(&store).unwrap();
    let (none, first) = (Epochs::default(), member(9));
    let record = next_epoch(&state, &genesis, &none, first, EpochReason::Recovery, TimeMs(5)).unwrap();
    assert_eq!((record.epoch, record.parent_height, record.parent_hash), (Epoch(1), head.height, head.hash));
    assert_eq!((record.members[0].node, record.next_sequence), (NodeId(2), head.next_sequence));
    let mut other = record.clone();
    other.parent_hash = BatchHash([3; 32]);
    assert!(begin_epoch(&store, &state, &genesis, &other).is_err());
    begin_epoch(&store, &state, &genesis, &record).unwrap();
    let members = members_of(&state, &genesis).unwrap();
    let roles: Vec<_> = members.all().map(|(node, known)| (node.0, known.role)).collect();
    assert_eq!(roles, [(1, MemberRole::Removed), (2, MemberRole::Voter)]);
    assert_eq!(members.set(), &record.set().unwrap());
    drop(state);

    let (consensus, state) = start(&new, NodeId(2), Epoch(1)).await;
    assert_eq!(state.head().unwrap().unwrap().final_height, head.height);
    propose(&consensus, 20..25).await;
    let batch = state.batch(head.height.next()).unwrap().unwrap();
    assert_eq!((batch.header.epoch, batch.header.parent), (Epoch(1), head.hash));
    assert_eq!((batch.header.first_sequence, batch.header.members), (head.next_sequence, members.hash()));
    consensus.shutdown().await;
    drop((consensus, state));

    // It comes back by itself, and another epoch's home is not taken for its own.
    let (consensus, state) = start(&new, NodeId(2), Epoch(1)).await;
    propose(&consensus, 25..26).await;
    assert_eq!(state.head().unwrap().unwrap().height, Height(head.height.0 + 6));
    consensus.shutdown().await;
    drop((consensus, state));
    let (store, state) = (StoreHome::open(&new).unwrap(), StateStore::open(&StoreHome::open(&new).unwrap()).unwrap());
    let options = Options {
        node: NodeId(2),
        genesis,
        epoch: Epoch(0),
        store,
        election_timeout_ms: 400,
        heartbeat_ms: 100,
        compaction: CompactionOptions::default(),
        rules_known: RULES_NEWEST,
    };
    let refused = Consensus::start(options, Arc::new(Nobody), state, Arc::new(Quiet)).await.err().unwrap();
    assert!(refused.to_string().contains("the state is of epoch 1"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_with_a_flipped_bit_is_not_taken_for_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    StoreHome::create(&path, Incarnation([1; 16])).unwrap();
    let (consensus, state) = start(&path, NodeId(1), Epoch(0)).await;
    propose(&consensus, 0..50).await;
    consensus.shutdown().await;
    drop((consensus, state));
    let store = StoreHome::open(&path).unwrap();
    check_log(&store).unwrap();
    let biggest = std::fs::read_dir(store.log_path()).unwrap().flatten();
    let biggest = biggest.filter(|entry| entry.path().extension().is_some_and(|kind| kind == "log" || kind == "sst"));
    let biggest = biggest.max_by_key(|entry| entry.metadata().unwrap().len()).unwrap().path();
    let mut content = std::fs::read(&biggest).unwrap();
    let middle = content.len() / 3;
    content[middle] ^= 4;
    std::fs::write(&biggest, content).unwrap();
    assert!(check_log(&store).is_err(), "{}", biggest.display());
}
