//! Histories that went on after a restore or a recovery.

use lockstep_types::verify::{ChainVerifier, Checkpoint, Fault, VerifyError};
use lockstep_types::*;

use crate::builder::{Net, RULES_KNOWN, check_all, key, signed, unsigned};
use crate::proofs::proof_of;

fn member(n: u8) -> Member {
    Member {
        name: format!("node-{n}"),
        public_key: hex::encode(key(n).public().compressed()),
        incarnation: Incarnation([n; 16]),
        p2p: "/ip4/127.0.0.1/tcp/1".into(),
        http: "http://127.0.0.1:1".into(),
    }
}

/// Goes on with another member alone, behind the newest batch.
fn begin_epoch(net: &mut Net, n: u8) -> EpochRecord {
    net.epoch += 1;
    let header = &net.batches.last().unwrap().header;
    let record = EpochRecord {
        epoch: Epoch(net.epoch),
        parent_height: header.height,
        parent_hash: header.hash(),
        next_sequence: Sequence(header.first_sequence.0 + header.message_count),
        next_task_number: TaskNumber(header.first_task_number.0 + header.task_count),
        members: vec![EpochMember::new(NodeId(u64::from(n)), member(n))],
        reason: EpochReason::Recovery,
        possible_loss: "a tail".into(),
        time_ms: TimeMs(1),
    };
    net.set = record.set().unwrap();
    record
}

fn check(net: &Net, records: &[EpochRecord]) -> Result<ChainVerifier, VerifyError> {
    let epochs = Epochs::new(records.to_vec(), &net.genesis).unwrap();
    let verifier = ChainVerifier::from_genesis(&net.genesis, RULES_KNOWN).unwrap().with_epochs(&epochs).unwrap();
    check_all(verifier, &net.batches, &net.certificates)
}

/// Three epochs: the end of the first was never certified, the second ends with a change that was not.
fn net() -> (Net, Vec<EpochRecord>) {
    let mut net = Net::new(2);
    net.batch(vec![signed(0, "a"), unsigned(&key(2), "b")], false, None);
    net.certify(1);
    net.batch(vec![signed(0, "c")], false, None);
    let first = begin_epoch(&mut net, 9);
    // Nothing of its first batch depends on who the members are but its header.
    net.batch(vec![signed(1, "d")], false, None);
    net.batch(vec![signed(1, "f"), unsigned(&key(9), "e")], true, None);
    net.certify(4);
    let mut grown = net.set.clone();
    grown.0.push(SetMember { node: NodeId(10), address: key(10).address(), voter: true });
    net.batch(Vec::new(), false, Some(grown));
    let second = begin_epoch(&mut net, 11);
    net.batch(vec![unsigned(&key(11), "g")], true, None);
    net.certify(6);
    (net, vec![first, second])
}

#[test]
fn a_history_of_several_epochs_holds_with_their_records_and_only_with_them() {
    let (net, records) = net();
    let verifier = check(&net, &records).unwrap();
    assert_eq!((verifier.height(), verifier.final_height()), (Height(6), Height(6)));
    assert_eq!(verifier.epochs().map(|record| record.parent_height.0).collect::<Vec<_>>(), [2, 5]);
    assert_eq!(verifier.set(), &records[1].set().unwrap());
    let fault = |records: &[EpochRecord]| check(&net, records).unwrap_err();
    assert_eq!(fault(&[]).fault, Fault::Epoch { found: Epoch(1), expected: Epoch(0) });
    assert_eq!(fault(&records[..1]).height, Height(6));
}

#[test]
fn a_record_of_another_beginning_does_not_fit() {
    let (net, records) = net();
    let with = |edit: &dyn Fn(&mut EpochRecord)| {
        let mut records = records.clone();
        edit(&mut records[0]);
        check(&net, &records).unwrap_err()
    };
    assert!(matches!(with(&|r| r.parent_hash = BatchHash([1; 32])).fault, Fault::Parent { .. }));
    assert!(matches!(with(&|r| r.parent_height = Height(1)).fault, Fault::Epoch { .. }));
    assert!(matches!(with(&|r| r.parent_height = Height(3)).fault, Fault::Epoch { .. }));
    assert!(matches!(with(&|r| r.members[0] = EpochMember::new(NodeId(10), member(9))).fault, Fault::Members { .. }));
    assert!(matches!(with(&|r| r.members[0] = EpochMember::new(NodeId(9), member(8))).fault, Fault::Members { .. }));
}

#[test]
fn what_the_old_members_ordered_beyond_the_parent_is_not_part_of_it() {
    let (net, records) = net();
    let mut fork = Net::new(2);
    fork.batch(vec![signed(0, "a"), unsigned(&key(2), "b")], false, None);
    fork.certify(1);
    fork.batch(vec![signed(0, "c")], false, None);
    assert_eq!(fork.batches[..], net.batches[..2]);
    fork.batch(vec![signed(0, "more")], false, None);
    fork.certify(3);
    fork.check().unwrap();
    let refused = check(&fork, &records[..1]).unwrap_err();
    assert_eq!(refused.fault, Fault::Epoch { found: Epoch(0), expected: Epoch(1) });
}

#[test]
fn from_a_horizon_the_epochs_are_followed_too() {
    let (net, records) = net();
    let epochs = Epochs::new(records, &net.genesis).unwrap();
    let members = Checkpoint::genesis(&net.genesis).unwrap().with_epochs(&epochs).unwrap();
    let start = &net.batches[3].header;
    let verifier = ChainVerifier::from_horizon(&net.genesis, RULES_KNOWN, members, start.height, start.first_sequence);
    let verifier = check_all(verifier, &net.batches[3..], &net.certificates).unwrap();
    assert_eq!((verifier.final_height(), verifier.epochs().count()), (Height(6), 2));
}

#[test]
fn a_message_is_proven_in_the_epoch_that_made_it_final() {
    let (mut net, records) = net();
    let epochs = Epochs::new(records, &net.genesis).unwrap();
    let proof = proof_of(&net, 4);
    assert!(verify_proof(&net.genesis, &proof, None).is_err());
    assert_eq!(verify_proof_in(&net.genesis, &epochs, &proof, Some(b"d")).unwrap().certified, Height(4));
    // The end of epoch 0, which only what was certified in epoch 1 makes final.
    net.certificates.remove(&1);
    let proof = proof_of(&net, 3);
    assert_eq!(proof.header.epoch, Epoch(0));
    assert_eq!(verify_proof_in(&net.genesis, &epochs, &proof, Some(b"c")).unwrap().certified, Height(4));
    let mut forged = proof.clone();
    forged.header.time_ms = TimeMs(5);
    assert!(verify_proof_in(&net.genesis, &epochs, &forged, None).is_err());
}
