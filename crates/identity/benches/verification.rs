//! What one message costs at the door: reading it and recovering its signer. This bounds a node's rate.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lockstep_identity::{
    Curve, DeviceIdentity, Document, PartySecret, ServerIdentity, ServerSecret, SproutRequest, TaskContent,
    TaskRequest, apinode, sign_body, sign_task,
};
use lockstep_types::signature::{K256, Libsecp256k1, Recover};
use lockstep_types::{ProjectId, SigningKey, keccak256};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

fn verification(c: &mut Criterion) {
    let key = SigningKey::from_bytes([7; 32]).expect("a valid scalar");
    let mut group = c.benchmark_group("verification");
    group.throughput(Throughput::Elements(1));
    for bytes in [256, 4096] {
        let body = sign_body(&key, ProjectId(7), "v1.0.0", &"{\"t\":21.5}".repeat(bytes / 10));
        group.bench_function(format!("parse/{bytes}"), |b| b.iter(|| apinode::parse(black_box(body.as_bytes()))));
        group.bench_function(format!("parse_and_authenticate/{bytes}"), |b| {
            b.iter(|| apinode::parse(black_box(body.as_bytes())).and_then(apinode::DeviceRequest::authenticate));
        });
    }
    group.finish();
}

fn recovery(c: &mut Criterion) {
    let key = SigningKey::from_bytes([7; 32]).expect("a valid scalar");
    let digest = keccak256(&[b"message"]);
    let signature = key.sign(&digest);
    let mut group = c.benchmark_group("signer_recovery");
    group.throughput(Throughput::Elements(1));
    group.bench_function("libsecp256k1", |b| b.iter(|| Libsecp256k1.recover(black_box(&digest), &signature)));
    group.bench_function("k256", |b| b.iter(|| K256.recover(black_box(&digest), &signature)));
    group.bench_function("sign", |b| b.iter(|| key.sign(black_box(&digest))));
    group.finish();
}

/// The way of an encrypted message with 256 bytes of data, and its parts.
fn encrypted(c: &mut Criterion) {
    let mut random = StdRng::seed_from_u64(7);
    let server = ServerIdentity::new(ServerSecret::generate(Curve::Secp256k1, &mut random));
    let older = ServerIdentity::new(ServerSecret::generate(Curve::P256, &mut random));
    let device = DeviceIdentity::new(PartySecret::generate(Curve::Secp256k1, &mut random));
    let document = Document::parse(server.document().as_bytes()).expect("our own document");
    let body = lockstep_types::w3bstream::message_text(ProjectId(7), "v1.0.0", &"x".repeat(256));
    let sealed = device.encrypt_request(&document, &body, &mut random).expect("a request within limits");
    let (token, older_token) = (server.issue_token(&device.did(), 0), older.issue_token(&device.did(), 0));
    let mut group = c.benchmark_group("encrypted");
    group.throughput(Throughput::Elements(1));
    group.bench_function("decrypt_verify_token_and_parse/256", |b| {
        b.iter(|| {
            let token = server.verify_token(black_box(&token)).expect("our own token");
            let opened = server.decrypt_request(black_box(sealed.as_bytes())).expect("encrypted to us");
            (token, SproutRequest::parse(&opened.plaintext).expect("a request"))
        });
    });
    group.bench_function("decrypt/256", |b| b.iter(|| server.decrypt_request(black_box(sealed.as_bytes()))));
    group.bench_function("verify_token/secp256k1", |b| b.iter(|| server.verify_token(black_box(&token))));
    group.bench_function("verify_token/p256", |b| b.iter(|| older.verify_token(black_box(&older_token))));
    group
        .bench_function("encrypt/256", |b| b.iter(|| device.encrypt_request(&document, black_box(&body), &mut random)));
    group.bench_function("read_document", |b| b.iter(|| Document::parse(black_box(server.document().as_bytes()))));
    group.finish();
}

fn task_v1(c: &mut Criterion) {
    let key = SigningKey::from_bytes([7; 32]).expect("a valid scalar");
    let payload = format!("{{\"timestamp\":1,\"data\":\"{}\"}}", "x".repeat(256));
    let content =
        TaskContent { nonce: 1, project_id: ProjectId(7), project_version: "v1.0.0", payload: payload.as_bytes() };
    let body = sign_task(&key, content, &[]).expect("a task within limits");
    c.bench_function("task_v1/parse_and_candidates/256", |b| {
        b.iter(|| TaskRequest::parse(black_box(&body)).and_then(|request| request.candidates(&[])));
    });
}

criterion_group!(benches, verification, recovery, encrypted, task_v1);
criterion_main!(benches);
