//! A certificate proves finality only where a majority of the voters of its height signed it.

use lockstep_types::certificate::{CertificateError, sign_batch};
use lockstep_types::verify::{Fault, VerifyError};
use lockstep_types::*;

use super::builder::*;

/// Five voters, two of whom came later; batch 9 is of them all.
fn five() -> Net {
    let mut net = Net::new(1);
    for _ in 0..2 {
        net.admit();
    }
    for place in [3, 4] {
        net.set_voter(place, true);
    }
    net.batch(vec![signed(0, "a")], false, None);
    net
}

fn with(net: &Net, certificate: Certificate) -> Result<Height, VerifyError> {
    let mut net = net.clone();
    net.certificates.insert(certificate.height.0, certificate);
    net.check().map(|checked| checked.final_height())
}

fn nodes(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

#[test]
fn one_signature_too_few_is_no_certificate() {
    let net = five();
    let height = net.height();
    assert_eq!(with(&net, net.signed_by(height, nodes(&[1, 2, 5]))), Ok(Height(height)));
    let error = with(&net, net.signed_by(height, nodes(&[1, 2]))).unwrap_err();
    let few = CertificateError::TooFew { found: 2, needed: 3, voters: 5 };
    assert_eq!((error.height.0, error.fault), (height, Fault::Certificate(few)));
    let twice = with(&net, net.signed_by(height, nodes(&[1, 2, 2]))).unwrap_err();
    assert_eq!(twice.fault, Fault::Certificate(CertificateError::Order));
}

#[test]
fn a_signer_who_had_left_or_lost_its_vote_or_came_later_does_not_count() {
    let mut net = five();
    // Node 5 leaves, node 4 becomes an observer.
    net.remove(4);
    net.set_voter(3, false);
    net.batch(vec![signed(0, "b")], false, None);
    let (height, hash) = (net.height(), net.batches.last().unwrap().header.hash());
    assert_eq!(with(&net, net.signed_by(height, nodes(&[1, 3]))), Ok(Height(height)));
    for gone in [5, 4] {
        let mut certificate = net.signed_by(height, nodes(&[1]));
        certificate.signatures.push((NodeId(gone), sign_batch(&key(gone as u8), &hash)));
        let error = with(&net, certificate).unwrap_err();
        assert_eq!(error.fault, Fault::Certificate(CertificateError::NotAVoter(NodeId(gone))));
    }
    // At height 1 node 4 was no member yet.
    let mut early = net.signed_by(1, nodes(&[1, 2]));
    early.signatures.push((NodeId(4), sign_batch(&key(4), &early.hash)));
    let error = with(&net, early).unwrap_err();
    assert_eq!(error.fault, Fault::Certificate(CertificateError::NotAVoter(NodeId(4))));
}

#[test]
fn another_key_hash_height_network_or_epoch_does_not_count() {
    let net = five();
    let height = net.height();
    let good = || net.signed_by(height, nodes(&[1, 2, 3]));
    let mut other = good();
    other.signatures[1].1 = sign_batch(&key(99), &other.hash);
    assert_eq!(with(&net, other).unwrap_err().fault, Fault::Certificate(CertificateError::Signature(NodeId(2))));
    let mut other = good();
    other.hash = BatchHash([9; 32]);
    assert!(matches!(with(&net, other).unwrap_err().fault, Fault::CertificateHash { .. }));
    let mut misplaced = net.clone();
    misplaced.certificates.insert(height, net.signed_by(1, nodes(&[1, 2])));
    assert_eq!(misplaced.check().unwrap_err().fault, Fault::CertificateHeight(Height(1)));
    // A batch of another epoch or network has another hash: signatures over it are of no use here.
    type Edit = fn(&mut BatchHeader);
    let edits: [Edit; 2] = [|h| h.epoch.0 += 1, |h| h.network.0[0] ^= 1];
    for edit in edits {
        let mut header = net.batches.last().unwrap().header.clone();
        edit(&mut header);
        let mut elsewhere = good();
        for (node, signature) in &mut elsewhere.signatures {
            *signature = sign_batch(&net.key_of(&net.set, *node), &header.hash());
        }
        assert!(matches!(
            with(&net, elsewhere).unwrap_err().fault,
            Fault::Certificate(CertificateError::Signature(NodeId(1)))
        ));
        let mut whole = net.clone();
        whole.batches.last_mut().unwrap().header = header;
        whole.certify(height);
        assert!(whole.check().is_err());
    }
}

#[test]
fn a_change_of_the_members_is_certified_by_the_set_before_and_first() {
    let mut net = Net::new(1);
    net.admit();
    net.set_voter(3, true);
    net.batch(vec![signed(0, "a")], false, None);
    net.certify(net.height());
    net.check().unwrap();

    let mut missing = net.clone();
    missing.certificates.remove(&2);
    let error = missing.check().unwrap_err();
    assert_eq!((error.height.0, error.fault), (3, Fault::BoundaryNotCertified(Height(2))));

    // Certified by the new set: node 4 has no vote yet at that height.
    let mut late = net.clone();
    let mut certificate = net.signed_by(2, nodes(&[1, 2]));
    certificate.signatures.push((NodeId(4), sign_batch(&key(4), &certificate.hash)));
    late.certificates.insert(2, certificate);
    assert!(late.check().is_err());

    // Without any certificate above it, the change is only not final yet.
    let mut open = net.clone();
    open.certificates.retain(|height, _| *height < 2);
    assert_eq!(open.check().unwrap().final_height(), Height(1));
}

#[test]
fn two_changes_without_a_certificate_between_them_fail() {
    let mut net = Net::new(1);
    net.admit();
    net.admit();
    net.certificates.clear();
    assert_eq!(net.check().unwrap_err().fault, Fault::BoundaryNotCertified(Height(1)));
}
