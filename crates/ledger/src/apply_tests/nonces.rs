//! What is taken once, and for how long: nonces of the API of 2025, and envelopes.

use lockstep_types::OrderKind;

use super::life::certify;
use super::registry::{NOW, PROJECT, any, give, node, of, outcome, task};
use super::*;

fn sealed(envelope: u8, data: &str) -> Message {
    let envelope = [envelope; 32];
    let signature = Signature([0; 65]);
    let evidence = Evidence::Envelope { node: Address([0xaa; 20]), envelope, signature };
    Message { api: Api::Encrypted, evidence, ..of(1, data) }
}

#[test]
fn a_nonce_is_used_once() {
    for together in [true, false] {
        let mut node = node(any(false, &[]));
        let messages = [task(5, "1", &[]), task(5, "1", &[]), task(5, "2", &[]), task(4, "3", &[])];
        let outcomes = match together {
            true => node.batch(NOW, &messages),
            false => messages.iter().map(|m| node.batch(NOW, std::slice::from_ref(m))[0].clone()).collect(),
        };
        assert!(matches!(outcomes[0], Outcome::Ordered { task_id: Some(_), .. }), "a task of its own");
        assert!(matches!(outcomes[1], Outcome::Duplicate { .. }), "a retry");
        assert_eq!(outcomes[2], Outcome::Rejected(Rejection::Nonce));
        assert!(matches!(outcomes[3], Outcome::Ordered { .. }), "a lower one that is new");
        let late = node.batch(NOW + 1_000_000, &messages[..1]);
        assert!(matches!(late[0], Outcome::Duplicate { .. }), "however late");
        assert_eq!(node.view.2.aliases[&messages[0].task_alias().unwrap()], Sequence(1));
    }
}

#[test]
fn strict_nonces_ascend_and_only_the_highest_is_kept() {
    let mut node = node(any(true, &[]));
    let outcomes = node.batch(NOW, &[task(5, "1", &[]), task(4, "2", &[]), task(6, "3", &[])]);
    assert!(matches!(outcomes[0], Outcome::Ordered { .. }));
    assert_eq!(outcomes[1], Outcome::Rejected(Rejection::Nonce));
    assert!(matches!(outcomes[2], Outcome::Ordered { .. }));
    assert_eq!(outcome(&mut node, task(6, "4", &[])), Err(Rejection::Nonce));
    assert_eq!(outcome(&mut node, task(9, "5", &[])), Ok(3));
    assert!(node.view.2.nonces.is_empty());
    let highest = HighestNonce { forgotten_with: HighestNonce::FOR_EVER, nonce: 9 };
    assert_eq!(node.view.2.highest_nonces.values().collect::<Vec<_>>(), [&highest]);
}

#[test]
fn an_envelope_is_taken_once_however_late_it_comes_again_while_it_is_kept() {
    let mut node = node(any(true, &[]));
    let late = NOW + 1_000_000;
    let window = node.ledger.projects().settings(PROJECT).unwrap().retry_window_ms;
    assert!(late > NOW + window);
    let first = node.batch(late, &[sealed(1, "a"), sealed(2, "a"), sealed(1, "a")]);
    assert!(matches!(first[0], Outcome::Ordered { .. }));
    assert!(matches!(first[1..], [Outcome::Duplicate { .. }, Outcome::Duplicate { .. }]), "retries in the window");
    node.restart();
    let later = late + 1_000_000;
    assert!(matches!(node.batch(later, &[sealed(3, "a")])[0], Outcome::Ordered { .. }), "a reading of its own");
    let replayed = node.batch(later + 1_000_000, &[sealed(1, "a"), sealed(3, "a")]);
    assert!(matches!(replayed[..], [Outcome::Duplicate { .. }, Outcome::Duplicate { .. }]));
    assert_eq!(outcome(&mut node, sealed(1, "b")), Err(Rejection::Nonce));
    // Strict nonces are of the API of 2025, and envelopes leave them alone.
    let data = "{}";
    assert!(matches!(node.batch(later, &[task(5, data, &[])])[0], Outcome::Ordered { .. }));
}

/// Every message is a task at once, so that no open group keeps anything.
fn alone(strict_nonces: bool) -> NetworkParams {
    let mut params = any(strict_nonces, &[]);
    params.projects.values_mut().for_each(|settings| settings.group_messages_max = 1);
    params
}

/// Forgets everything before the newest batch. `filtered` tells whether this node's disk has dropped it already: that must
/// make no difference.
fn forget(node: &mut Node, filtered: bool) {
    let newest = node.batches.len();
    certify(node, newest, &[1, 2]);
    let horizon = horizon_at(node, newest);
    node.run(Command::Horizon(horizon));
    assert_eq!(node.ledger.head.horizon, horizon);
    if filtered {
        let (kept, stored) = (horizon.sequence, &mut node.view);
        stored.0.retain(|_, occurrence| occurrence.height >= horizon.height);
        stored.2.nonces.retain(|_, by| *by >= kept);
        stored.2.highest_nonces.retain(|_, highest| highest.forgotten_with >= kept);
    }
    node.restart();
}

#[test]
fn nonces_and_envelopes_are_forgotten_with_their_messages_whatever_the_disk_has_still() {
    let mut ends = Vec::new();
    for filtered in [false, true] {
        let mut node = node(alone(false));
        assert!(matches!(
            node.batch(NOW, &[task(5, "1", &[]), sealed(1, "a")])[..],
            [Outcome::Ordered { .. }, Outcome::Ordered { .. }]
        ));
        node.batch(NOW, &[task(6, "2", &[]), sealed(2, "b")]);
        forget(&mut node, filtered);
        // Those of the batch at the horizon are kept.
        let kept = [task(6, "2", &[]), sealed(2, "b"), task(6, "other", &[]), sealed(2, "other")];
        let far = NOW + 1_000_000;
        let outcomes = node.batch(far, &kept);
        assert!(matches!(outcomes[..2], [Outcome::Duplicate { .. }, Outcome::Duplicate { .. }]), "{outcomes:?}");
        assert_eq!(outcomes[2..], [Outcome::Rejected(Rejection::Nonce), Outcome::Rejected(Rejection::Nonce)]);
        // What was forgotten is new: the same, or something else.
        let outcomes = node.batch(far, &[task(5, "other", &[]), sealed(1, "a")]);
        assert!(matches!(outcomes[..], [Outcome::Ordered { .. }, Outcome::Ordered { .. }]), "{outcomes:?}");
        assert_eq!(node.batch(far, &[task(5, "third", &[])]), [Outcome::Rejected(Rejection::Nonce)], "used anew");
        ends.push(node.ledger.head.clone());
    }
    assert_eq!(ends[0], ends[1]);
}

#[test]
fn where_nonces_ascend_a_replay_is_refused_also_when_its_first_one_is_forgotten() {
    let mut ends = Vec::new();
    for filtered in [false, true] {
        let mut node = node(alone(true));
        let first = task(5, "1", &[]);
        assert_eq!(outcome(&mut node, first.clone()), Ok(1));
        assert_eq!(outcome(&mut node, first.clone()), Ok(1), "a retry");
        assert_eq!(outcome(&mut node, sealed(1, "a")), Ok(2));
        forget(&mut node, filtered);
        assert_eq!(outcome(&mut node, first.clone()), Err(Rejection::Nonce));
        assert_eq!(outcome(&mut node, task(4, "2", &[])), Err(Rejection::Nonce));
        assert_eq!(outcome(&mut node, task(6, "3", &[])), Ok(3));
        forget(&mut node, filtered);
        assert_eq!(outcome(&mut node, first), Err(Rejection::Nonce));
        ends.push(node.ledger.head.clone());
    }
    assert_eq!(ends[0], ends[1]);
}

#[test]
fn the_highest_nonce_from_before_an_order_that_makes_them_ascend_counts_as_long_as_its_device_is_remembered() {
    let mut ends = Vec::new();
    for filtered in [false, true] {
        for speaks_on in [true, false] {
            let mut node = node(alone(false));
            for nonce in [7, 9, 3] {
                node.batch(NOW, &[task(nonce, "1", &[])]);
            }
            // Nonces 7 and 9 are forgotten; the device is only where it has said something since.
            let last = if speaks_on { task(4, "2", &[]) } else { of(1, "another's") };
            node.batch(NOW, &[last]);
            forget(&mut node, filtered);
            let ascend =
                ProjectSettings { strict_nonces: true, ..node.ledger.projects().settings(PROJECT).unwrap().clone() };
            give(&mut node, 50, PROJECT, OrderKind::Settings(ascend)).unwrap();
            let expected = if speaks_on { Err(Rejection::Nonce) } else { Ok(5) };
            assert_eq!(outcome(&mut node, task(9, "3", &[])), expected);
            assert!(outcome(&mut node, task(10, "4", &[])).is_ok());
            forget(&mut node, filtered);
            node.batch(NOW, &[of(1, "more")]);
            forget(&mut node, filtered);
            assert_eq!(outcome(&mut node, task(10, "5", &[])), Err(Rejection::Nonce), "for ever from now on");
            ends.push((speaks_on, node.ledger.head.clone()));
        }
    }
    assert_eq!(ends[..2], ends[2..]);
}
