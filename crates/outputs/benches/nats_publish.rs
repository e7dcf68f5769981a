//! Publishing one-message tasks to a stream that three real servers keep three times, the whole way: read from a source,
//! signed, made a blob each, and published.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lockstep_outputs::{
    FinalMessage, NatsOptions, NatsOutput, Options, Origin, Owner, Part, Place, ProgressSink, Publisher, SourceError,
    TaskSigner, TaskSource, UnsignedTask,
};
use lockstep_testkit::nats::Nats;
use lockstep_types::blob::{Anchor, BlobMessage};
use lockstep_types::certificate::sign_batch;
use lockstep_types::{
    Address, Api, BatchHash, BatchHeader, Certificate, Digest, Epoch, Evidence, Height, MemberSet, Message, MessageId,
    NetworkId, NodeId, OutputName, ProjectId, Sequence, Signature, SigningKey, TaskId, TaskNumber, TimeMs, keccak256,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Tasks of one round.
const ROUND: u64 = 20_000;
const OWNER: Owner = Owner { network: NetworkId([1; 32]), epoch: Epoch(0), first_task_number: TaskNumber(1) };

/// Every task up to the newest, of one message of 256 bytes, each a part of its own.
struct Source {
    newest: watch::Receiver<Option<TaskNumber>>,
    anchor: Anchor,
}

/// How a batch of a thousand tasks hangs on its genesis.
fn anchor() -> Anchor {
    let members = MemberSet::default();
    let header = BatchHeader {
        rules_version: 1,
        network: OWNER.network,
        epoch: OWNER.epoch,
        height: Height(1),
        parent: BatchHash([3; 32]),
        time_ms: TimeMs(1_790_000_000_000),
        first_sequence: Sequence(1),
        message_count: 1_000,
        messages_root: [4; 32],
        first_task_number: TaskNumber(1),
        task_count: 1_000,
        tasks_root: [5; 32],
        members: members.hash(),
        next_members: members.hash(),
        effects: [6; 32],
    };
    let hash = header.hash();
    let sign = |node: u8| (NodeId(u64::from(node)), sign_batch(&SigningKey::from_bytes([node; 32]).unwrap(), &hash));
    let certificate = Certificate { height: Height(1), hash, signatures: [1, 2].map(sign).to_vec() };
    Anchor { header, headers: Vec::new(), certificate, members, boundaries: Vec::new() }
}

fn task(number: u64, anchor: &Anchor) -> UnsignedTask {
    let (project_id, project_version, device) = (ProjectId(7), "v1.0.0".to_owned(), Address([2; 20]));
    let message = Message {
        api: Api::Apinode,
        project_id,
        project_version: project_version.clone(),
        data: Bytes::from_static(&[b'x'; 256]),
        device,
        nonce: Default::default(),
        evidence: Evidence::Device(Signature([7; 65])),
        via: NodeId(0),
    };
    let (sequence, id) = (Sequence(number), MessageId(keccak256(&[b"message", &number.to_be_bytes()])));
    let part = Arc::new(Part { anchor: anchor.clone(), part: 0, parts: 1_000 });
    let messages = vec![BlobMessage::new(sequence, id, (1, Height(0)), &message)];
    UnsignedTask {
        number: TaskNumber(number),
        id: TaskId(keccak256(&[&number.to_be_bytes()])),
        project_id,
        project_version,
        device,
        time_ms: anchor.header.time_ms,
        messages: vec![FinalMessage { sequence, id, data: message.data }],
        ruled: None,
        origin: Some(Arc::new(Origin { part, path: vec![Digest([9; 32]); 10], messages, ruled: None })),
    }
}

#[async_trait]
impl TaskSource for Source {
    async fn tasks_after(
        &self,
        _number: Option<TaskNumber>,
        _max_tasks: usize,
        _max_bytes: usize,
    ) -> Result<Vec<UnsignedTask>, SourceError> {
        Err(SourceError::Unavailable("a store of blobs asks for parts".to_owned()))
    }

    async fn parts_after(
        &self,
        number: Option<TaskNumber>,
        max_tasks: usize,
        _max_bytes: usize,
        _part_bytes: usize,
    ) -> Result<Vec<UnsignedTask>, SourceError> {
        let newest = self.newest.borrow().map_or(0, |newest| newest.0);
        Ok((OWNER.next(number).0..=newest).take(max_tasks).map(|number| task(number, &self.anchor)).collect())
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
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut group = criterion.benchmark_group("nats");
    group.throughput(Throughput::Elements(ROUND)).sample_size(10);
    for (name, jetstream) in [("as_it_comes", ""), ("sync_always", "sync_interval: always")] {
        let servers = Nats::start_with(3, "", jetstream);
        let output = Arc::new(NatsOutput::new(&NatsOptions::new(servers.urls()), OWNER).unwrap());
        let (newest, seen) = watch::channel(None);
        let (publisher, mut handle) = Publisher::new(Options {
            name: "bench".parse().unwrap(),
            owner: OWNER,
            output,
            source: Arc::new(Source { newest: seen.clone(), anchor: anchor() }),
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
        // Makes the stream.
        round();
        group.bench_function(BenchmarkId::new("publisher", name), |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| round()).sum::<Duration>());
        });
        token.cancel();
        runtime.block_on(running).unwrap();
    }
    group.finish();
}

criterion_group!(benches, publish);
criterion_main!(benches);
