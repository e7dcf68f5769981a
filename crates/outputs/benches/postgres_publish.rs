//! Publishing one-message tasks to a real PostgreSQL server, the whole way: read from a source, signed, and published.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lockstep_outputs::{
    FinalMessage, Layout, Options, Owner, Place, PostgresOptions, PostgresOutput, ProgressSink, Publisher, SourceError,
    TaskSigner, TaskSource, UnsignedTask,
};
use lockstep_testkit::postgres::Postgres;
use lockstep_types::{
    Address, Epoch, MessageId, NetworkId, OutputName, ProjectId, Sequence, SigningKey, TaskId, TaskNumber, TimeMs,
    keccak256,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Tasks of one round.
const ROUND: u64 = 20_000;
const OWNER: Owner = Owner { network: NetworkId([1; 32]), epoch: Epoch(0), first_task_number: TaskNumber(1) };

/// Every task up to the newest, of one message of 256 bytes.
struct Source(watch::Receiver<Option<TaskNumber>>);

fn task(number: u64) -> UnsignedTask {
    UnsignedTask {
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
        ruled: None,
        origin: None,
    }
}

#[async_trait]
impl TaskSource for Source {
    async fn tasks_after(
        &self,
        number: Option<TaskNumber>,
        max_tasks: usize,
        _max_bytes: usize,
    ) -> Result<Vec<UnsignedTask>, SourceError> {
        let newest = self.0.borrow().map_or(0, |newest| newest.0);
        Ok((OWNER.next(number).0..=newest).take(max_tasks).map(task).collect())
    }

    async fn parts_after(
        &self,
        _number: Option<TaskNumber>,
        _max_tasks: usize,
        _max_bytes: usize,
        _part_bytes: usize,
    ) -> Result<Vec<UnsignedTask>, SourceError> {
        Err(SourceError::Unavailable("these tasks have no origin".to_owned()))
    }
}

struct Sink;

#[async_trait]
impl ProgressSink for Sink {
    async fn record(&self, _output: &OutputName, _last: TaskNumber, _places: &[Place]) -> bool {
        true
    }

    async fn recorded(&self, _output: &OutputName) -> Option<TaskNumber> {
        None
    }
}

fn publish(criterion: &mut Criterion) {
    let server = Postgres::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut group = criterion.benchmark_group("postgres");
    group.throughput(Throughput::Elements(ROUND)).sample_size(10);
    for layout in [Layout::Apinode, Layout::Sprout] {
        let options = PostgresOptions { layout, ..PostgresOptions::in_schema(server.dsn(), layout.name()) };
        let output = Arc::new(PostgresOutput::new(options, OWNER).unwrap());
        let (newest, seen) = watch::channel(None);
        let (publisher, mut handle) = Publisher::new(Options {
            name: "bench".parse().unwrap(),
            owner: OWNER,
            output,
            source: Arc::new(Source(seen.clone())),
            sink: Arc::new(Sink),
            signer: TaskSigner::new(SigningKey::from_bytes([0x11; 32]).unwrap()),
            newest: seen,
            active: watch::channel(true).1,
            paused: watch::channel(false).1,
            projects: None,
            recorded: None,
        });
        let token = CancellationToken::new();
        let running = runtime.spawn(publisher.run(token.clone()));
        let mut round = || {
            let end = newest.borrow().map_or(0, |newest: TaskNumber| newest.0) + ROUND;
            let began = Instant::now();
            newest.send_replace(Some(TaskNumber(end)));
            runtime.block_on(async {
                while handle.status().last_published != Some(TaskNumber(end)) {
                    assert!(handle.changed().await, "the publisher ended");
                }
            });
            began.elapsed()
        };
        // Makes the tables.
        round();
        group.bench_function(BenchmarkId::new("publisher", layout), |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| round()).sum::<Duration>());
        });
        token.cancel();
        runtime.block_on(running).unwrap();
    }
    group.finish();
}

criterion_group!(benches, publish);
criterion_main!(benches);
