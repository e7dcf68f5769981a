//! How long a synced append to the log takes: one entry alone, and many that share a sync.

use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::future::join_all;
use lockstep_consensus::{LogStore, Payload, TypeConfig};
use lockstep_store::{Kind, LogWriter, RocksStorage, Storage};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;

const ENTRY_BYTES: usize = 64 << 10;
const TOGETHER: u64 = 16;

fn bench(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let storage: Arc<dyn Storage> =
        Arc::new(RocksStorage::create(dir.path(), Kind::Log).expect("a store in a new directory"));
    let writer = Arc::new(LogWriter::spawn(storage.clone()).expect("a thread"));
    let mut log = LogStore::open(storage, writer).expect("an empty log");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let mut index = 0;
    let mut group = c.benchmark_group("synced append of 64 KiB entries");
    for together in [1, TOGETHER] {
        group.throughput(Throughput::Bytes(together * ENTRY_BYTES as u64));
        group.bench_function(format!("{together} under way"), |b| {
            b.iter(|| {
                runtime.block_on(async {
                    let mut written = Vec::new();
                    for _ in 0..together {
                        index += 1;
                        let (done, result) = TypeConfig::oneshot();
                        let entry = openraft::Entry {
                            log_id: openraft::alias::LogIdOf::<TypeConfig>::new_term_index(1, index),
                            payload: openraft::EntryPayload::Normal(Payload(vec![7; ENTRY_BYTES].into())),
                        };
                        log.append([entry], IOFlushed::signal(done)).await.expect("queued");
                        written.push(result);
                    }
                    join_all(written).await
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
