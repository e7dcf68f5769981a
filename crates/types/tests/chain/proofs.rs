//! Proofs of single messages.

use lockstep_types::proof::{Proof, ProofError, verify_proof};
use lockstep_types::*;
use proptest::prelude::*;
use serde_json::Value;

use super::builder::*;

/// The proof of a message, with the first certificate at or above its batch.
pub fn proof_of(net: &Net, sequence: u64) -> Proof {
    let at = net.batches.iter().position(|batch| batch.message_at(Sequence(sequence)).is_some()).unwrap();
    let (certified, certificate) = net.certificates.range(at as u64 + 1..).next().unwrap();
    let headers = net.batches[at + 1..*certified as usize].iter().map(|batch| batch.header.clone()).collect();
    let members = net.certifiers[*certified as usize - 1].clone();
    let way = (members, net.boundaries(*certified));
    Proof::new(&net.batches[at], Sequence(sequence), headers, certificate, way).unwrap()
}

/// Everything in a JSON document that can be altered, one at a time.
pub fn alterations(value: &Value) -> Vec<Value> {
    match value {
        Value::Number(n) => vec![Value::from(n.as_u64().unwrap() + 1)],
        Value::Bool(b) => vec![Value::Bool(!b)],
        Value::String(text) => {
            let flip = |at: usize| {
                let mut bytes = text.clone().into_bytes();
                bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
                Value::String(String::from_utf8(bytes).unwrap())
            };
            vec![flip(2), flip(text.len() - 1)]
        }
        Value::Array(items) => {
            let mut all = Vec::new();
            for (i, item) in items.iter().enumerate() {
                let mut less = items.clone();
                less.remove(i);
                all.push(Value::Array(less));
                for altered in alterations(item) {
                    let mut other = items.clone();
                    other[i] = altered;
                    all.push(Value::Array(other));
                }
            }
            all
        }
        Value::Object(fields) => {
            let mut all = Vec::new();
            for (name, field) in fields {
                for altered in alterations(field) {
                    let mut other = fields.clone();
                    other.insert(name.clone(), altered);
                    all.push(Value::Object(other));
                }
            }
            all
        }
        Value::Null => Vec::new(),
    }
}

#[test]
fn anything_altered_in_a_proof_makes_it_fail() {
    let mut net = Net::new(1);
    net.admit();
    net.batch((0..5).map(|i| signed(i, "a")).collect(), false, None);
    net.batch(vec![signed(0, "b")], false, None);
    net.certify(3);
    let proof = proof_of(&net, 3);
    let json = serde_json::to_value(&proof).unwrap();
    assert_eq!(serde_json::from_value::<Proof>(json.clone()).unwrap(), proof);
    let proven = verify_proof(&net.genesis, &proof, Some(b"a")).unwrap();
    assert_eq!((proven.height, proven.certified, proven.signers, proven.voters), (Height(2), Height(3), 2, 3));
    assert!(proven.data_compared && proven.changes == 1);
    let all = alterations(&json);
    assert!(all.len() > 100);
    for altered in all {
        let Ok(read) = serde_json::from_value::<Proof>(altered.clone()) else { continue };
        assert!(read == proof || verify_proof(&net.genesis, &read, None).is_err(), "{altered}");
    }
    assert!(matches!(verify_proof(&net.genesis, &proof, Some(b"b")), Err(ProofError::Data(_))));
    let elsewhere = genesis(2);
    assert!(matches!(verify_proof(&elsewhere, &proof, None), Err(ProofError::Network { .. })));
}

#[test]
fn signatures_in_json_are_as_ecrecover_wants_them() {
    let mut net = Net::new(1);
    net.batch(vec![signed(0, "a")], false, None);
    net.certify(1);
    let json = serde_json::to_value(proof_of(&net, 1)).unwrap();
    let text = json["certificate"]["signatures"][0]["signature"].as_str().unwrap().to_owned();
    assert!(text.len() == 132 && (text.ends_with("1b") || text.ends_with("1c")), "{text}");
    let mut raw = json.clone();
    let mut own = text;
    own.replace_range(130.., "00");
    raw["certificate"]["signatures"][0]["signature"] = own.into();
    assert!(serde_json::from_value::<Proof>(raw).is_err());
}

#[test]
fn a_proof_is_bounded() {
    let mut net = Net::new(1);
    net.batch(vec![signed(0, "a")], false, None);
    net.certify(1);
    let mut proof = proof_of(&net, 1);
    proof.headers = vec![proof.header.clone(); lockstep_types::proof::PROOF_HEADERS_MAX + 1];
    assert!(matches!(verify_proof(&net.genesis, &proof, None), Err(ProofError::TooLong { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn every_message_of_any_history_has_a_proof_and_it_fails_for_another_message(steps in steps()) {
        let net = net_of(2, &steps);
        let total: u64 = net.batches.iter().map(|batch| batch.messages.len() as u64).sum();
        for sequence in 1..=total {
            let proof = proof_of(&net, sequence);
            prop_assert!(verify_proof(&net.genesis, &proof, None).is_ok());
            for other in 1..=total {
                let mut forged = proof.clone();
                forged.message = proof_of(&net, other).message;
                prop_assert_eq!(verify_proof(&net.genesis, &forged, None).is_ok(), other == sequence);
            }
        }
    }
}
