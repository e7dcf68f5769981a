//! How long the ledger takes for a batch: encoding the proposal, decoding it, and `apply`. Also where another project has
//! rules, which must cost this one nothing.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use lockstep_ledger::{
    Aged, Command, Device, HighestNonce, History, LastTaken, Ledger, LedgerParts, Members, Nonce, Occurrence,
    RULES_NEWEST, Standing, Write, encode_batch,
};
use lockstep_rules::Bundle;
use lockstep_types::{
    Address, Api, BatchHeader, ContentId, Epoch, Evidence, Height, Message, NetworkId, NetworkParams, Order, OrderKind,
    OutputName, Place, ProjectId, ProjectSettings, RulesOrder, Sequence, Signature, SigningKey, TaskNumber, TimeMs,
    VerifiedMessage,
};

const MESSAGES: u64 = 256;
const PAYLOAD_BYTES: usize = 256;

#[derive(Default)]
struct View(HashMap<ContentId, Occurrence>);

impl History for View {
    type Error = Infallible;
    fn header(&self, _height: Height) -> Result<Option<BatchHeader>, Infallible> {
        Ok(None)
    }
    fn occurrences(&self, ids: &[ContentId]) -> Result<Vec<Option<Occurrence>>, Infallible> {
        Ok(ids.iter().map(|id| self.0.get(id).copied()).collect())
    }
    fn standings(&self, of: &[(ProjectId, Address)]) -> Result<Vec<Standing>, Infallible> {
        Ok(vec![Standing::default(); of.len()])
    }
    fn lasts(&self, of: &[(ProjectId, Address)]) -> Result<Vec<Option<LastTaken>>, Infallible> {
        Ok(vec![None; of.len()])
    }
    fn device(&self, _device: &Address) -> Result<Option<Device>, Infallible> {
        Ok(None)
    }
    fn place_at(&self, _output: &OutputName, _task: TaskNumber) -> Result<Option<Place>, Infallible> {
        Ok(None)
    }
    fn nonces(&self, of: &[Nonce]) -> Result<Vec<Option<Sequence>>, Infallible> {
        Ok(vec![None; of.len()])
    }
    fn highest_nonces(&self, of: &[(ProjectId, Address)]) -> Result<Vec<Option<HighestNonce>>, Infallible> {
        Ok(vec![None; of.len()])
    }
}

fn messages(round: u64) -> Vec<Aged> {
    let message = |n: u64| {
        let mut data = vec![b'x'; PAYLOAD_BYTES];
        data[..16].copy_from_slice(&[round.to_be_bytes(), n.to_be_bytes()].concat());
        let message = VerifiedMessage::from_recovered(Message {
            api: Api::Apinode,
            project_id: PROJECT,
            project_version: "0.1".into(),
            data: data.into(),
            device: Address([n as u8; 20]),
            nonce: Bytes::new(),
            via: lockstep_types::NodeId(0),
            evidence: Evidence::Device(Signature([0; 65])),
        });
        Aged::fresh(Arc::new(message))
    };
    (0..MESSAGES).map(message).collect()
}

/// The project that sends, and one that has rules.
const PROJECT: ProjectId = ProjectId(7);
const WITH_RULES: ProjectId = ProjectId(8);

fn owner() -> SigningKey {
    SigningKey::from_bytes([50; 32]).unwrap()
}

fn ledger() -> Ledger {
    Ledger::new(LedgerParts {
        network: NetworkId([7; 32]),
        epoch: Epoch(0),
        params: NetworkParams {
            projects: [PROJECT, WITH_RULES].map(|project| (project, ProjectSettings::open())).into(),
            owners: [(WITH_RULES, owner().address())].into(),
            ..NetworkParams::default()
        },
        members: Members::default(),
        head: None,
        groups: Vec::new(),
        progress: Default::default(),
        outputs: Default::default(),
        projects: Default::default(),
        rules: Default::default(),
        rules_states: Default::default(),
        chain: None,
        rules_known: RULES_NEWEST,
    })
}

/// A ledger; with rules of another project where that is asked for.
fn ledger_with(has_rules: bool) -> Ledger {
    let mut ledger = ledger();
    let mut run = |command| ledger.apply(&View::default(), command).unwrap_or_else(|never| match never.0 {});
    if has_rules {
        let document = "version = 1\n[[filter]]\nwhen = \"message.n > 1\"\ndo = \"drop\"\nreason = \"large\"\n";
        let bundle = Bundle { document: document.into(), files: Default::default() }.encode();
        let kind = OrderKind::Rules(RulesOrder { bundle: Some(bundle.into()), from: Height(0) });
        let order = Order { epoch: Epoch(0), project: WITH_RULES, number: 1, expires_ms: TimeMs(60_000), kind };
        let order = Box::new(order.sign(&NetworkId([7; 32]), &owner()));
        run(Command::Order { time_ms: TimeMs(1), order }).order.unwrap().2.unwrap();
        assert!(ledger.projects().have_rules());
    }
    ledger
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch of 256 messages of 256 bytes");
    group.throughput(Throughput::Elements(MESSAGES));
    let batch = messages(0);
    group.bench_function("encode", |b| b.iter(|| encode_batch(TimeMs(1), black_box(&batch), Sequence(0))));
    let encoded = encode_batch(TimeMs(1), &batch, Sequence(0));
    group.bench_function("decode", |b| b.iter(|| Command::decode(black_box(encoded.clone()))));
    for (name, has_rules) in [("apply", false), ("apply, beside a project with rules", true)] {
        let (mut ledger, mut view, mut round) = (ledger_with(has_rules), View::default(), 0);
        group.bench_function(name, |b| {
            b.iter_batched(
                || {
                    round += 1;
                    Command::decode(encode_batch(TimeMs(round), &messages(round), Sequence(0))).expect("just encoded")
                },
                |command| {
                    let applied = ledger.apply(&view, command).unwrap_or_else(|never| match never.0 {});
                    for write in &applied.writes {
                        if let Write::Occurrence(id, occurrence) = write {
                            view.0.insert(*id, *occurrence);
                        }
                    }
                    applied
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
