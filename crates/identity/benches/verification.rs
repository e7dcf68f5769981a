//! What one message costs at the door: reading it and recovering its signer. This bounds a node's rate.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lockstep_identity::{apinode, sign_body};
use lockstep_types::signature::{K256, Libsecp256k1, Recover};
use lockstep_types::{ProjectId, SigningKey, keccak256};

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

criterion_group!(benches, verification, recovery);
criterion_main!(benches);
