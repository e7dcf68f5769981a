//! What anybody who checks a history reads: pages of it, proofs, blobs, the genesis.

use std::sync::LazyLock;

use bytes::Bytes;
use lockstep_ledger::RULES_NEWEST;
use lockstep_types::verify::ChainVerifier;
use lockstep_types::{
    Batch, Blob, Certificate, Epochs, ExportPage, Genesis, Height, Message, Place, Proof, Sequence, TaskNumber, proto,
    verify_proof,
};
use prost::Message as _;

use crate::target::Target;
use crate::world::{GENESIS, PAST, export, message, records, task_message, vouched};

pub(super) const TARGETS: &[Target] = &[
    Target::new("message", message_seeds, read_message),
    // A node's own records.
    Target::new("batch", || of_kind(1), read_batch).with_factor(512),
    Target::new("certificate", || of_kind(2), read_certificate),
    Target::new("export", || vec![export().encode()], read_export).with_factor(128),
    Target::new("proof", proof_seeds, read_proof),
    Target::new("blob", blob_seeds, read_blob).with_factor(512),
    Target::new("place", || of_kind(6), |bytes| round_trip(bytes, Place::decode, Place::encode)),
    Target::new("genesis", genesis_seeds, read_genesis),
];

/// The stored records of one kind.
fn of_kind(kind: u8) -> Vec<Vec<u8>> {
    records().into_iter().filter(|record| record[0] == kind).map(|record| record[1..].to_vec()).collect()
}

/// What is decoded is the same when it is written and read again.
fn round_trip<T: PartialEq + std::fmt::Debug, E: std::fmt::Debug>(
    bytes: &[u8],
    decode: impl Fn(Bytes) -> Result<T, E>,
    encode: impl Fn(&T) -> Vec<u8>,
) -> bool {
    let Ok(read) = decode(Bytes::copy_from_slice(bytes)) else { return false };
    let written = encode(&read);
    let again = decode(written.clone().into()).expect("what we write is read");
    assert_eq!(encode(&again), written, "an encoding is the same each time");
    assert_eq!(again, read);
    true
}

fn message_seeds() -> Vec<Vec<u8>> {
    let all = [message(100, "21.5"), task_message(101, 7), vouched("x")];
    all.iter().map(|message| message.message().to_proto().encode_to_vec()).collect()
}

fn read_message(bytes: &[u8]) -> bool {
    let decode =
        |bytes: Bytes| proto::Message::decode(bytes).map_err(drop).and_then(|m| Message::from_proto(m).map_err(drop));
    let Ok(message) = decode(Bytes::copy_from_slice(bytes)) else { return false };
    let id = message.content_id();
    if message.evidence_holds(&id, |_| true) {
        // Whoever alters what was signed is found out.
        let mut other = message.clone();
        other.data = [&message.data[..], b"x"].concat().into();
        assert!(!other.evidence_holds(&other.content_id(), |_| true));
        assert!(message.clone().verify(|_| true).is_ok_and(|verified| verified.content_id() == id));
    }
    round_trip(bytes, decode, |message| message.to_proto().encode_to_vec())
}

fn read_batch(bytes: &[u8]) -> bool {
    if let Ok(batch) = Batch::decode(Bytes::copy_from_slice(bytes)) {
        let _ = (batch.message_at(Sequence(u64::MAX)), batch.task_at(TaskNumber(u64::MAX)), batch.header.hash());
        if let Ok(mut verifier) = ChainVerifier::from_genesis(&GENESIS, RULES_NEWEST) {
            let _ = verifier.batch(&batch);
        }
    }
    round_trip(bytes, Batch::decode, Batch::encode)
}

fn read_certificate(bytes: &[u8]) -> bool {
    if let Ok(certificate) = Certificate::decode(Bytes::copy_from_slice(bytes)) {
        let set = GENESIS.first_set().expect("the genesis is valid");
        if certificate.verify(&set).is_ok() {
            let known = PAST.view.certificates.values().any(|ours| ours.hash == certificate.hash);
            assert!(known, "nobody else has the members' keys");
        }
    }
    round_trip(bytes, Certificate::decode, Certificate::encode)
}

fn read_export(bytes: &[u8]) -> bool {
    let Ok(page) = ExportPage::decode(Bytes::copy_from_slice(bytes)) else { return false };
    let mut verifier = ChainVerifier::from_genesis(&GENESIS, RULES_NEWEST).expect("the genesis is valid");
    for batch in &page.batches {
        let Ok(outline) = batch.outline() else { break };
        let origins = batch.origins().is_ok_and(|origins| origins.check(&verifier.known()).is_ok());
        if verifier.advance(&outline).is_err() {
            break;
        }
        let ours = &PAST.view.batches[&outline_height(&verifier)];
        let same = verifier.hash() == ours.header.hash();
        let certified =
            page.certificates.iter().any(|c| c.height == verifier.height() && verifier.certificate(c).is_ok());
        assert!(same || !certified, "only what the members signed is final");
        let _ = origins;
        if !PAST.view.batches.contains_key(&Height(verifier.height().0.saturating_add(1))) {
            break;
        }
    }
    round_trip(bytes, ExportPage::decode, ExportPage::encode)
}

fn outline_height(verifier: &ChainVerifier) -> Height {
    verifier.height()
}

static PROOFS: LazyLock<Vec<Proof>> = LazyLock::new(|| {
    let view = &PAST.view;
    let proof = |batch: &Batch| {
        let set = GENESIS.first_set().ok()?;
        let certificate = view.certificates.get(&batch.header.height)?;
        Proof::new(batch, batch.header.first_sequence, Vec::new(), certificate, (set, Vec::new()))
    };
    view.batches.values().filter_map(proof).collect()
});

fn proof_seeds() -> Vec<Vec<u8>> {
    PROOFS.iter().filter_map(|proof| serde_json::to_vec(proof).ok()).collect()
}

fn read_proof(bytes: &[u8]) -> bool {
    let Ok(proof) = serde_json::from_slice::<Proof>(bytes) else { return false };
    if verify_proof(&GENESIS, &proof, None).is_ok() {
        let says =
            |other: &Proof| (other.message.sequence, other.message.id) == (proof.message.sequence, proof.message.id);
        assert!(PROOFS.iter().any(says), "only what is in the history is proved");
    }
    let text = serde_json::to_vec(&proof).expect("a proof is written");
    assert!(serde_json::from_slice::<Proof>(&text).is_ok_and(|again| again == proof));
    true
}

fn blob_seeds() -> Vec<Vec<u8>> {
    // Made here, because a blob needs a task's path; the numbers are those of the first batch with a task.
    let view = &PAST.view;
    let Some(batch) =
        view.batches.values().find(|b| !b.tasks.is_empty() && view.certificates.contains_key(&b.header.height))
    else {
        return Vec::new();
    };
    let anchor = lockstep_types::blob::Anchor {
        header: batch.header.clone(),
        headers: Vec::new(),
        certificate: view.certificates[&batch.header.height].clone(),
        members: GENESIS.first_set().expect("the genesis is valid"),
        boundaries: Vec::new(),
    };
    vec![Blob { anchor, part: 0, parts: 1, tasks: Vec::new() }.encode().to_vec()]
}

fn read_blob(bytes: &[u8]) -> bool {
    let Ok(blob) = Blob::decode(Bytes::copy_from_slice(bytes)) else { return false };
    assert_eq!(blob.encode(), bytes, "a blob has one form");
    let _ = blob.verify(&GENESIS, &Epochs::default(), None);
    true
}

fn genesis_seeds() -> Vec<Vec<u8>> {
    vec![GENESIS.to_text().expect("the genesis is written").into_bytes()]
}

fn read_genesis(bytes: &[u8]) -> bool {
    let text = super::text(bytes);
    let _ = lockstep_node::fuzz::epochs(text, &GENESIS);
    let Ok(genesis) = Genesis::parse(text) else { return false };
    let again = genesis.to_text().and_then(|text| Genesis::parse(&text)).expect("what we write is read");
    assert_eq!(genesis.id().ok(), again.id().ok());
    let _ = ChainVerifier::from_genesis(&genesis, RULES_NEWEST);
    true
}
