//! Blobs that check themselves.

use bytes::Bytes;
use lockstep_types::blob::{
    Anchor, BLOB_BYTES_MAX, BLOB_MAGIC, Blob, BlobError, BlobFault, BlobMessage, BlobTask, is_blob,
};
use lockstep_types::merkle;
use lockstep_types::proof::ProofError;
use lockstep_types::*;
use proptest::prelude::*;

use super::builder::*;

fn task_key() -> SigningKey {
    key(99)
}

/// The message at a place, as blobs have it.
fn message_at(net: &Net, sequence: Sequence) -> BlobMessage {
    let ordered = net.batches.iter().find_map(|batch| batch.message_at(sequence)).unwrap();
    let content = ordered.message.content_id();
    let count = BlobMessage::count_of(&content, &ordered.id, (100, Height(0))).unwrap();
    BlobMessage::new(sequence, ordered.id, (count, Height(0)), &ordered.message)
}

fn sign(task: &mut BlobTask) {
    let payloads = task.messages.iter().map(|m| &m.message.data[..]);
    let digest = w3bstream::task_digest(&task.id, task.project_id, &task.project_version, &task.device, payloads);
    task.signature = task_key().sign(&digest);
}

/// The blob of all tasks that a batch closed; `None` where it closed none.
pub fn blob_of(net: &Net, height: u64) -> Option<Blob> {
    let at = usize::try_from(height).unwrap() - 1;
    let batch = &net.batches[at];
    let (certified, certificate) = net.certificates.range(height..).next()?;
    let leaves: Vec<_> = batch.tasks.iter().map(Task::leaf).collect();
    let task = |(index, task): (usize, &Task)| {
        let mut made = BlobTask {
            number: task.number,
            id: task.id,
            project_id: task.project_id,
            project_version: task.project_version.clone(),
            device: task.device,
            path: merkle::proof(&leaves, index).unwrap().into_iter().map(Digest).collect(),
            signature: Signature([0; 65]),
            messages: task.sequences.iter().map(|sequence| message_at(net, *sequence)).collect(),
            ruled: task.ruled.clone(),
        };
        sign(&mut made);
        made
    };
    let anchor = Anchor {
        header: batch.header.clone(),
        headers: net.batches[at + 1..*certified as usize].iter().map(|batch| batch.header.clone()).collect(),
        certificate: certificate.clone(),
        members: net.certifiers[*certified as usize - 1].clone(),
        boundaries: net.boundaries(*certified),
    };
    let tasks: Vec<_> = batch.tasks.iter().enumerate().map(task).collect();
    (!tasks.is_empty()).then_some(Blob { anchor, part: 0, parts: 1, tasks })
}

fn verify(net: &Net, blob: &Blob) -> Result<blob::VerifiedBlob, BlobError> {
    blob.verify(&net.genesis, &Epochs::default(), Some(&task_key().address()))
}

/// A network with every kind of thing in it: a repeat, an unsigned message, a change of the members, and a certificate
/// that is two batches away.
fn example(group: u64) -> Net {
    let mut net = Net::new(group);
    net.batch(vec![signed(0, "a"), unsigned(&key(2), "u")], false, None);
    net.admit();
    net.batch(vec![signed(0, "a"), signed(1, "b"), unsigned(&key(2), "v")], true, None);
    net.batch(vec![signed(0, "c")], false, None);
    net.batch(vec![signed(1, "d")], true, None);
    net.certify(net.height());
    net
}

#[test]
fn a_blob_reads_back_and_says_what_it_proves() {
    let net = example(1);
    let blob = blob_of(&net, 3).unwrap();
    let bytes = blob.encode();
    assert!(is_blob(&bytes));
    assert_eq!(Blob::decode(bytes).unwrap(), blob);
    let proven = verify(&net, &blob).unwrap();
    assert_eq!((proven.height, proven.certified, proven.changes), (Height(3), Height(5), 1));
    assert_eq!((proven.first, proven.last, proven.of), (TaskNumber(102), TaskNumber(104), 3));
    assert_eq!((proven.messages, proven.sequences_unproven), (3, 0));
    assert_eq!((proven.signers, proven.voters, proven.task_signer), (2, 3, Some(task_key().address())));
    assert!(blob.verify(&net.genesis, &Epochs::default(), None).is_ok());
    let other = blob.verify(&net.genesis, &Epochs::default(), Some(&key(98).address()));
    assert!(matches!(other, Err(BlobError::Task { fault: BlobFault::Signer(_), .. })));
    let elsewhere = blob.verify(&genesis(7), &Epochs::default(), None);
    assert!(matches!(elsewhere, Err(BlobError::Way(ProofError::Network { .. }))));
}

#[test]
fn a_part_of_a_blob_proves_its_tasks_as_well() {
    let net = example(1);
    let whole = blob_of(&net, 3).unwrap();
    for (from, to) in [(0, 1), (1, 2), (1, 3), (2, 3)] {
        let part = Blob { tasks: whole.tasks[from..to].to_vec(), part: 1, parts: 2, ..whole.clone() };
        assert!(verify(&net, &part).is_ok());
    }
    // For a store that does not take all projects.
    let some =
        |places: &[usize]| Blob { tasks: places.iter().map(|p| whole.tasks[*p].clone()).collect(), ..whole.clone() };
    let proven = verify(&net, &some(&[0, 2])).unwrap();
    assert_eq!((proven.first, proven.last, proven.tasks, proven.of), (TaskNumber(102), TaskNumber(104), 2, 3));
    for bad in [&[2, 0][..], &[0, 0], &[1, 1, 2]] {
        assert!(matches!(verify(&net, &some(bad)), Err(BlobError::Place(_))), "{bad:?}");
    }
    for outside in [101, 105] {
        let mut moved = some(&[0, 2]);
        moved.tasks[0].number = TaskNumber(outside);
        assert!(matches!(verify(&net, &moved), Err(BlobError::Place(TaskNumber(n))) if n == outside || n == 104));
    }
    assert!(matches!(verify(&net, &Blob { tasks: Vec::new(), ..whole }), Err(BlobError::Empty)));
}

#[test]
fn every_flipped_bit_is_found() {
    let net = example(1);
    let blob = blob_of(&net, 3).unwrap();
    let bytes = blob.encode();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let Ok(read) = Blob::decode(flipped.into()) else { continue };
        // No hash commits to which of how many parts it calls itself.
        let of_parts = Blob { part: blob.part, parts: blob.parts, ..read.clone() };
        assert!(of_parts == blob || verify(&net, &read).is_err(), "bit {bit}");
    }
}

/// One alteration of a task; its signature is made again by the task key.
type Alter = fn(&mut BlobTask);

const ALTERATIONS: &[(&str, Alter)] = &[
    ("number", |t| t.number.0 += 1),
    ("id", |t| t.id.0[0] ^= 1),
    ("project", |t| t.project_id.0 += 1),
    ("project, of the messages too", |t| {
        t.project_id.0 += 1;
        t.messages.iter_mut().for_each(|m| m.message.project_id.0 += 1);
    }),
    ("version", |t| t.project_version.push('1')),
    ("device", |t| t.device.0[0] ^= 1),
    ("a sibling", |t| t.path[0].0[0] ^= 1),
    ("a sibling less", |t| t.path.truncate(t.path.len() - 1)),
    ("a sibling more", |t| t.path.push(Digest([0; 32]))),
    ("no message", |t| t.messages.clear()),
    ("a message twice", |t| t.messages.push(t.messages[0].clone())),
    ("sequence", |t| t.messages[0].sequence.0 += 1),
    ("message id", |t| t.messages[0].id.0[0] ^= 1),
    ("count", |t| t.messages[0].count += 1),
    ("count none", |t| t.messages[0].count = 0),
    ("since", |t| t.messages[0].since.0 += 1),
    ("data", |t| t.messages[0].message.data = "altered".into()),
    ("data and id", |t| {
        t.messages[0].message.data = "altered".into();
        t.messages[0].id = MessageId::of_occurrence(&t.messages[0].message.content_id(), 1, Height(0));
    }),
    ("nonce", |t| t.messages[0].message.nonce = "1".into()),
    ("api", |t| t.messages[0].message.api = Api::TaskV1),
    ("hint", |t| t.messages[0].message.via = NodeId(1)),
    ("evidence", |t| t.messages[0].message.evidence = Evidence::Device(Signature([0; 65]))),
];

#[test]
fn a_blob_altered_in_any_field_fails_also_with_the_task_key_at_hand() {
    for net in [example(1), example(2)] {
        let blob = blob_of(&net, 3).unwrap();
        assert!(blob.tasks.len() > 1 && verify(&net, &blob).is_ok());
        for place in 0..blob.tasks.len() {
            for (what, alter) in ALTERATIONS {
                let mut altered = blob.clone();
                alter(&mut altered.tasks[place]);
                sign(&mut altered.tasks[place]);
                assert!(verify(&net, &altered).is_err(), "{what} of task {place}");
            }
        }
        let mut others = blob.clone();
        others.tasks[0].signature = key(98).sign(&[1; 32]);
        assert!(matches!(verify(&net, &others), Err(BlobError::Task { fault: BlobFault::Signer(_), .. })));
        for (part, parts) in [(1, 1), (0, 0), (0, 9)] {
            assert!(matches!(verify(&net, &Blob { part, parts, ..blob.clone() }), Err(BlobError::Part { .. })));
        }
    }
}

#[test]
fn a_repeat_cannot_be_passed_off_as_another_reading_of_its_device() {
    let mut net = Net::new(1);
    net.batch(vec![signed(0, "a"), signed(0, "b"), signed(0, "a")], false, None);
    net.certify(1);
    let mut blob = blob_of(&net, 1).unwrap();
    assert_eq!(blob.tasks[2].messages[0].count, 2);
    assert!(verify(&net, &blob).is_ok());
    // A genuine reading of the same device in its place.
    blob.tasks[2].messages[0].message = blob.tasks[1].messages[0].message.clone();
    sign(&mut blob.tasks[2]);
    let fault = BlobFault::MessageId(Sequence(3));
    assert!(matches!(verify(&net, &blob), Err(BlobError::Task { fault: found, .. }) if found == fault));
}

#[test]
fn the_way_to_the_genesis_is_checked_as_that_of_a_proof() {
    let net = example(1);
    let blob = blob_of(&net, 3).unwrap();
    type AlterAnchor = fn(&mut Anchor);
    let alterations: [(&str, AlterAnchor); 6] = [
        ("a header less", |a| a.headers.truncate(1)),
        ("no headers", |a| a.headers.clear()),
        ("a signature less", |a| a.certificate.signatures.truncate(1)),
        ("members", |a| a.members.0[3].voter = true),
        ("no changes", |a| a.boundaries.clear()),
        ("a change twice", |a| a.boundaries.push(a.boundaries[0].clone())),
    ];
    for (what, alter) in alterations {
        let mut altered = blob.clone();
        alter(&mut altered.anchor);
        assert!(matches!(verify(&net, &altered), Err(BlobError::Way(_))), "{what}");
    }
}

#[test]
fn what_is_no_blob_is_refused_before_it_takes_memory() {
    let reason = |bytes: Vec<u8>| Blob::decode(bytes.into()).unwrap_err().to_string();
    assert!(reason(b"{}".to_vec()).contains("does not begin"));
    assert!(reason(vec![0; BLOB_BYTES_MAX + 1]).contains("at most"));
    // A million empty headers, or tasks with a million empty messages.
    let many = |field: u8, inner: &[u8]| {
        let each = [&[field << 3 | 2, u8::try_from(inner.len()).unwrap()][..], inner].concat();
        [BLOB_MAGIC, &each.repeat(1_000_000)].concat()
    };
    assert!(reason(many(5, &[])).contains("more parts"));
    assert!(reason(many(8, &[])).contains("more parts"));
    assert!(reason(many(11, &[8 << 3 | 2, 0])).contains("more parts"));
    let net = example(1);
    let bytes = blob_of(&net, 3).unwrap().encode();
    let whole_tasks = (0..bytes.len()).filter_map(|end| Blob::decode(bytes.slice(..end)).ok());
    let proving = whole_tasks.filter(|blob| verify(&net, blob).is_ok());
    assert_eq!(proving.map(|blob| blob.tasks.len()).collect::<Vec<_>>(), [1, 2]);
    // Another spelling of the same.
    let padded = [&bytes[..BLOB_MAGIC.len()], &[8, 0x81, 0], &bytes[BLOB_MAGIC.len() + 2..]].concat();
    assert!(reason(padded).contains("canonical"));
    let mut newer = bytes.to_vec();
    newer[BLOB_MAGIC.len() + 1] = 2;
    assert!(matches!(Blob::decode(Bytes::from(newer)), Err(DecodeError::Newer { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_task_of_any_history_has_a_blob(group in 1_u64..4, steps in steps()) {
        let net = net_of(group, &steps);
        for height in 1..=net.height() {
            let Some(blob) = blob_of(&net, height) else { continue };
            prop_assert!(verify(&net, &blob).is_ok());
            let bytes = blob.encode();
            prop_assert!(bytes.len() <= blob.anchor.frame_bytes() + blob.tasks.iter().map(BlobTask::encoded_bytes).sum::<usize>());
            prop_assert_eq!(Blob::decode(bytes).unwrap(), blob);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Blob::decode([BLOB_MAGIC, &bytes].concat().into());
    }
}
