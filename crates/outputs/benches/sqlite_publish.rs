//! Publishing one-message tasks to SQLite in batches of 512, every commit synced.
#![allow(missing_docs, clippy::unwrap_used)]

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lockstep_outputs::{FinalMessage, FinalTask, Output, Owner, SqliteOptions, SqliteOutput};
use lockstep_types::{
    Address, Epoch, MessageId, NetworkId, ProjectId, Sequence, Signature, TaskId, TaskNumber, TimeMs, keccak256,
};

const BATCH: u64 = 512;

fn tasks(first: u64) -> Vec<FinalTask> {
    let task = |number: u64| FinalTask {
        number: TaskNumber(number),
        id: TaskId(keccak256(&[&number.to_be_bytes()])),
        project_id: ProjectId(7),
        project_version: "v1.0.0".to_owned(),
        device: Address([2; 20]),
        time_ms: TimeMs(1_790_000_000_000),
        messages: vec![FinalMessage {
            sequence: Sequence(number),
            id: MessageId(keccak256(&[b"message", &number.to_be_bytes()])),
            data: Bytes::from_static(&[b'x'; 256]),
        }],
        signature: Signature([3; 65]),
        origin: None,
    };
    (first..first + BATCH).map(task).collect()
}

fn publish(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let owner = Owner { network: NetworkId([1; 32]), epoch: Epoch(0), first_task_number: TaskNumber(1) };
    let output = SqliteOutput::new(SqliteOptions::new(directory.path().join("tasks.db")), owner);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut last = None;
    let mut group = criterion.benchmark_group("sqlite");
    group.throughput(Throughput::Elements(BATCH)).sample_size(20);
    group.bench_function("publish_512", |bencher| {
        bencher.iter_custom(|rounds| {
            let mut spent = std::time::Duration::ZERO;
            for _ in 0..rounds {
                let batch = tasks(owner.next(last).0);
                let began = std::time::Instant::now();
                last = Some(runtime.block_on(output.publish(&batch, last)).unwrap().last);
                spent += began.elapsed();
            }
            spent
        });
    });
    group.finish();
}

criterion_group!(benches, publish);
criterion_main!(benches);
