//! A history whose beginning was forgotten.

use lockstep_types::verify::{ChainVerifier, Checkpoint, Fault};
use lockstep_types::*;
use proptest::prelude::*;

use super::builder::*;

fn checkpoint(net: &Net, below: u64) -> Checkpoint {
    let mut members = Checkpoint::genesis(&net.genesis).unwrap();
    for boundary in net.boundaries(below) {
        members.follow(&boundary.header, &boundary.members, &(&boundary.certificate).into()).unwrap();
    }
    members
}

fn from(net: &Net, start: u64) -> ChainVerifier {
    let first = net.batches[start as usize - 1].header.first_sequence;
    ChainVerifier::from_horizon(&net.genesis, RULES_KNOWN, checkpoint(net, start), Height(start), first)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_passes_from_any_height_on(
        group in 1_u64..4, steps in steps(), place in any::<prop::sample::Index>(),
    ) {
        let net = net_of(group, &steps);
        let at = place.index(net.batches.len());
        let start = at as u64 + 1;
        let checked = check_all(from(&net, start), &net.batches[at..], &net.certificates).unwrap();
        prop_assert_eq!(checked.final_height().0, net.height());
        prop_assert_eq!(checked.set(), &net.set);
    }

    #[test]
    fn a_forged_beginning_is_found_by_the_certificate_above_it(
        steps in steps(), place in any::<prop::sample::Index>(),
    ) {
        let mut net = net_of(1, &steps);
        let at = place.index(net.batches.len());
        let verifier = from(&net, at as u64 + 1);
        net.batches[at].header.parent.0[0] ^= 1;
        prop_assert!(check_all(verifier, &net.batches[at..], &net.certificates).is_err());
    }
}

#[test]
fn the_way_from_the_genesis_cannot_be_forged() {
    let mut net = Net::new(1);
    net.admit();
    net.set_voter(3, true);
    net.batch(vec![signed(0, "a")], false, None);
    let boundaries = net.boundaries(10);
    let mut start = Checkpoint::genesis(&net.genesis).unwrap();
    let first = &boundaries[0];
    // The second change without the first one.
    let skipped = start.follow(&boundaries[1].header, &boundaries[1].members, &(&boundaries[1].certificate).into());
    assert!(matches!(skipped.unwrap_err().fault, Fault::Members { .. }));
    // Another set than the certified one.
    let mut set = first.members.clone();
    set.0[3].address = Address([9; 20]);
    let error = start.follow(&first.header, &set, &(&first.certificate).into()).unwrap_err();
    assert_eq!(error.fault, Fault::NextSet);
    let mut header = first.header.clone();
    header.next_members = set.hash();
    let error = start.follow(&header, &set, &(&first.certificate).into()).unwrap_err();
    assert!(matches!(error.fault, Fault::CertificateHash { .. }));
    // A batch that changes nothing.
    let (plain, certificate) = (&net.batches[2].header, net.signed_by(3, [NodeId(1), NodeId(2), NodeId(3)]));
    let mut all = checkpoint(&net, 10);
    assert_eq!(all.follow(plain, &net.set, &certificate).unwrap_err().fault, Fault::NoBoundary);
    // The same change again.
    start.follow(&first.header, &first.members, &(&first.certificate).into()).unwrap();
    assert!(start.follow(&first.header, &first.members, &(&first.certificate).into()).is_err());
}

#[test]
fn what_reaches_back_to_forgotten_messages_is_counted_and_not_judged() {
    let mut net = Net::new(2);
    net.batch(vec![signed(0, "a"), signed(1, "x")], false, None);
    net.batch(vec![signed(0, "b"), signed(0, "a"), signed(1, "y")], false, None);
    net.certify(2);
    let checked = check_all(from(&net, 2), &net.batches[1..], &net.certificates).unwrap();
    let counts = checked.counts();
    // The tasks (1, 3) and (2, 5) began before; message 4 is the second one of its content.
    assert_eq!((counts.tasks, counts.tasks_unchecked, counts.ids_unchecked), (2, 2, 1));
    let wrong = check_all(from(&net, 2), &net.batches, &net.certificates).unwrap_err();
    assert_eq!(wrong.fault, Fault::Height(Height(2)));
}
