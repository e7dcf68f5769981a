//! openraft's own storage test suite on our log store and state machine, on RocksDB, and what it does not cover.

use std::sync::Arc;

use lockstep_consensus::{LogStore, Observer, StateMachine, StateStore, TypeConfig};
use lockstep_ledger::{Applied, Ledger, RULES_NEWEST};
use lockstep_store::home::StoreHome;
use lockstep_store::{Kind, LogWriter, MemoryStorage, RocksStorage, Storage};
use lockstep_types::{Genesis, Incarnation, Member, NetworkParams, SigningKey};
use openraft::StorageError;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;

struct Silent;

impl Observer for Silent {
    fn loaded(&self, _ledger: &Ledger) {}

    fn applied(&self, _ledger: &Ledger, _applied: &Applied) {}
}

fn genesis() -> Genesis {
    let key = SigningKey::from_bytes([1; 32]).expect("test set-up");
    let member = Member {
        name: "a".into(),
        public_key: hex_of(&key.public().compressed()),
        incarnation: Incarnation([1; 16]),
        p2p: "/ip4/127.0.0.1/tcp/1".into(),
        http: "http://127.0.0.1:1".into(),
    };
    Genesis::new("test", vec![member], NetworkParams::default()).expect("test set-up")
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("test set-up");
        let home = StoreHome::create(&dir.path().join("store"), Incarnation([1; 16])).expect("test set-up");
        let storage: Arc<dyn Storage> = Arc::new(RocksStorage::open(&home.log_path(), Kind::Log).expect("test set-up"));
        let writer = Arc::new(LogWriter::spawn(storage.clone()).expect("test set-up"));
        let log = LogStore::open(storage, writer).expect("test set-up");
        let state = StateStore::open(&home).expect("test set-up");
        let machine = StateMachine::open(&genesis(), (lockstep_types::Epoch(0), RULES_NEWEST), state, Arc::new(Silent))
            .expect("test set-up");
        Ok((dir, log, machine))
    }
}

#[test]
fn the_storage_suite_of_openraft_passes() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Builder)).unwrap();
}

type Entry = openraft::alias::EntryOf<TypeConfig>;
type LogId = openraft::alias::LogIdOf<TypeConfig>;
type Vote = openraft::alias::VoteOf<TypeConfig>;

fn entry(term: u64, index: u64) -> Entry {
    openraft::Entry {
        log_id: LogId::new_term_index(term, index),
        payload: openraft::EntryPayload::Normal(lockstep_consensus::Payload(vec![7; 1000].into())),
    }
}

fn memory_log(storage: &Arc<MemoryStorage>) -> LogStore {
    let storage: Arc<dyn Storage> = storage.clone();
    LogStore::open(storage.clone(), Arc::new(LogWriter::spawn(storage).expect("test set-up"))).expect("test set-up")
}

async fn append(log: &mut LogStore, entries: Vec<Entry>) -> std::io::Result<()> {
    let (sender, receiver) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(sender)).await.expect("test set-up");
    receiver.await.expect("test set-up")
}

#[tokio::test]
async fn acknowledged_entries_and_votes_survive_a_power_loss() {
    let storage = Arc::new(MemoryStorage::default());
    let mut log = memory_log(&storage);
    let vote = Vote { leader_id: openraft::impls::leader_id_std::LeaderId { term: 3, voted_for: 2 }, committed: true };
    log.save_vote(&vote).await.unwrap();
    for index in 1..=100 {
        append(&mut log, vec![entry(3, index)]).await.unwrap();
        let mut after = memory_log(&Arc::new(storage.after_power_loss()));
        assert_eq!(after.last_index(), Some(index));
        assert_eq!(after.read_vote().await.unwrap(), Some(vote));
    }
    log.truncate_after(Some(LogId::new_term_index(3, 50))).await.unwrap();
    let mut after = memory_log(&Arc::new(storage.after_power_loss()));
    assert_eq!(after.last_index(), Some(50));
    assert_eq!(after.try_get_log_entries(1..).await.unwrap().len(), 50);
}

#[tokio::test]
async fn a_failed_sync_is_reported_and_closes_the_log_for_good() {
    let storage = Arc::new(MemoryStorage::default());
    let mut log = memory_log(&storage);
    append(&mut log, vec![entry(1, 1)]).await.unwrap();
    storage.fail_syncs(true);
    assert!(append(&mut log, vec![entry(1, 2)]).await.is_err());
    storage.fail_syncs(false);
    assert!(append(&mut log, vec![entry(1, 3)]).await.is_err());
    assert_eq!(memory_log(&Arc::new(storage.after_power_loss())).last_index(), Some(1));
}

#[tokio::test]
async fn entries_are_read_alike_from_memory_and_from_disk() {
    let storage = Arc::new(MemoryStorage::default());
    let mut log = memory_log(&storage);
    for first in (1..=300).step_by(10) {
        append(&mut log, (first..first + 10).map(|index| entry(1, index)).collect()).await.unwrap();
    }
    let mut reopened = memory_log(&storage);
    append(&mut reopened, vec![entry(2, 301)]).await.unwrap();
    for range in [1..302, 290..302, 300..302, 301..302, 1..2] {
        let mut entries = Vec::new();
        let mut stream = std::pin::pin!(reopened.entries_stream(range.clone()).await);
        while let Some(next) = futures::StreamExt::next(&mut stream).await {
            entries.push(next.unwrap().log_id.index);
        }
        assert_eq!(entries, range.clone().collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_missing_entry_in_the_middle_is_found() {
    use lockstep_store::{Durability, Table, WriteBatch, keys};
    let storage = Arc::new(MemoryStorage::default());
    let mut log = memory_log(&storage);
    append(&mut log, (1..=10).map(|index| entry(1, index)).collect()).await.unwrap();
    let mut hole = WriteBatch::default();
    hole.delete(Table::Log, keys::log::entry(5));
    storage.write(hole, Durability::Synced).unwrap();
    let error = memory_log(&storage).try_get_log_entries(1..11).await.unwrap_err();
    assert!(error.to_string().contains("entry 5 is missing"), "{error}");
}
