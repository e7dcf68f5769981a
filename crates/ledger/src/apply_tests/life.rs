//! Certificates, changes of membership, the horizon and rules.

use lockstep_types::certificate::sign_batch;
use lockstep_types::{Approval, Certificate, Change, Incarnation, Member, MemberRole};

use super::*;

/// The key of a genesis member, whatever its id became.
fn key_of(node: &Node, id: NodeId) -> SigningKey {
    let address = node.ledger.members.get(id).unwrap().member.key().unwrap().address();
    (1..=9).map(key).find(|key| key.address() == address).unwrap()
}

fn certificate(node: &Node, height: usize, signers: &[u64]) -> Certificate {
    let hash = node.batches[height - 1].header.hash();
    let sign = |id: &u64| (NodeId(*id), sign_batch(&key_of(node, NodeId(*id)), &hash));
    Certificate { height: Height(height as u64), hash, signatures: signers.iter().map(sign).collect() }
}

pub(super) fn certify(node: &mut Node, height: usize, signers: &[u64]) -> Height {
    let certificate = certificate(node, height, signers);
    node.run(Command::Certificate(certificate));
    node.ledger.head.final_height
}

fn newcomer(n: u8) -> Member {
    Member {
        name: format!("node-{n}"),
        public_key: format!("{:?}", key(n).public()),
        incarnation: Incarnation([n; 16]),
        p2p: "/ip4/127.0.0.1/tcp/4".into(),
        http: "http://127.0.0.1:4".into(),
    }
}

fn approval(node: &Node, change: Change, by: u64, expires_ms: u64) -> Approval {
    let proposal = node.ledger.members.propose(Epoch(0), change, TimeMs(expires_ms));
    proposal.approve(&node.ledger.network, NodeId(by), &key_of(node, NodeId(by)))
}

fn approve(node: &mut Node, change: &Change, by: &[u64]) -> Option<ApprovalError> {
    let mut refused = None;
    for voter in by {
        let approval = Box::new(approval(node, change.clone(), *voter, 50_000));
        refused = node.run(Command::Approval { time_ms: TimeMs(1_000), approval }).refused;
    }
    refused
}

fn raft(voters: &[u64], observers: &[u64]) -> Target {
    let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
    Target { voters: ids(voters), observers: ids(observers) }
}

#[test]
fn a_certificate_of_a_majority_makes_its_batch_and_all_before_it_final() {
    let mut node = Node::new(params(1));
    for n in 0..3 {
        node.batch(n, &[message(&n.to_string())]);
    }
    assert_eq!(certify(&mut node, 2, &[1]), Height(0));
    assert_eq!(certify(&mut node, 2, &[1, 3]), Height(2));
    // Late, or ahead of the log.
    assert_eq!(certify(&mut node, 1, &[1, 2]), Height(2));
    let mut ahead = certificate(&node, 3, &[1, 2]);
    ahead.height = Height(4);
    node.run(Command::Certificate(ahead));
    assert_eq!(node.ledger.head.final_height, Height(2));
}

#[test]
fn a_certificate_over_another_batch_shows_that_this_state_is_wrong_and_changes_nothing() {
    let mut node = Node::new(params(1));
    node.batch(1, &[message("a")]);
    let hash = BatchHash([9; 32]);
    let signatures = [1, 2].map(|id| (NodeId(id), sign_batch(&key_of(&node, NodeId(id)), &hash))).to_vec();
    let before = node.ledger.head.clone();
    let applied = node.run(Command::Certificate(Certificate { height: Height(1), hash, signatures }));
    assert!(matches!(applied.diverged, Some(Divergence::Certified { own, .. }) if own == before.hash));
    assert_eq!(node.ledger.head, before);
    assert!(applied.writes.is_empty());
}

#[test]
fn a_newcomer_is_admitted_and_promoted_by_majorities_one_change_at_a_time() {
    let mut node = Node::new(params(1));
    let admit = Change::Admit(newcomer(4));
    assert_eq!(approve(&mut node, &admit, &[1]), None);
    assert_eq!(node.ledger.members.proposals().len(), 1);
    // The same voter twice is no majority, and survives a restart.
    approve(&mut node, &admit, &[1]);
    node.restart();
    assert!(node.ledger.members.pending().is_none());
    approve(&mut node, &admit, &[2]);
    let boundary = &node.batches[0];
    assert!(boundary.header.is_boundary() && boundary.messages.is_empty());
    assert_eq!(boundary.next_set.as_ref().unwrap().hash(), boundary.header.next_members);
    assert_eq!(node.ledger.members.get(NodeId(4)).unwrap().role, MemberRole::Observer);
    // Raft is driven on only after the set before has certified the change.
    assert_eq!(node.ledger.members.target(), None);
    assert!(matches!(approve(&mut node, &Change::Promote(NodeId(4)), &[1]), Some(ApprovalError::UnderWay(_))));
    assert_eq!(certify(&mut node, 1, &[1, 2]), Height(1));
    node.restart();
    assert_eq!(node.ledger.members.target(), Some(raft(&[1, 2, 3], &[4])));
    node.ledger.apply_raft_members(&raft(&[1, 2, 3], &[]));
    assert!(node.ledger.members.pending().is_some());
    node.ledger.apply_raft_members(&raft(&[1, 2, 3], &[4]));
    assert!(node.ledger.members.pending().is_none());

    assert_eq!(approve(&mut node, &Change::Promote(NodeId(4)), &[1, 3]), None);
    assert_eq!(node.batches[1].header.members, node.batches[0].header.next_members);
    assert_eq!(node.ledger.members.set().voters().count(), 4);
}

#[test]
fn a_change_is_certified_by_the_set_before_and_nothing_above_it_earlier() {
    let mut node = Node::new(params(1));
    approve(&mut node, &Change::Remove(NodeId(3)), &[1, 2]);
    node.batch(2_000, &[message("a")]);
    // Batch 2 is of the new set, but batch 1 has no certificate yet.
    assert_eq!(certify(&mut node, 2, &[1, 2]), Height(0));
    // Node 3 still counts for the batch with which it left.
    assert_eq!(certify(&mut node, 1, &[1, 3]), Height(1));
    assert_eq!(certify(&mut node, 2, &[1, 3]), Height(1));
    assert_eq!(certify(&mut node, 2, &[1, 2]), Height(2));
}

#[test]
fn approvals_count_once_for_this_state_and_only_from_voters() {
    let mut node = Node::new(params(1));
    let old = approval(&node, Change::Remove(NodeId(3)), 1, 50_000);
    let run = |node: &mut Node, approval: Approval| {
        node.run(Command::Approval { time_ms: TimeMs(1_000), approval: Box::new(approval) }).refused
    };
    let mut forged = old.clone();
    forged.node = NodeId(2);
    assert_eq!(run(&mut node, forged), Some(ApprovalError::Signer));
    let expired = approval(&node, Change::Remove(NodeId(3)), 1, 900);
    assert_eq!(run(&mut node, expired), Some(ApprovalError::Expired));
    for nonsense in [Change::Promote(NodeId(1)), Change::Remove(NodeId(9)), Change::Admit(newcomer(1))] {
        let approval = approval(&node, nonsense, 1, 50_000);
        assert!(matches!(run(&mut node, approval), Some(ApprovalError::Change(_))));
    }
    approve(&mut node, &Change::Demote(NodeId(3)), &[1, 2]);
    certify(&mut node, 1, &[1, 2]);
    node.ledger.apply_raft_members(&raft(&[1, 2], &[3]));
    // Made for the state before the change.
    assert_eq!(run(&mut node, old), Some(ApprovalError::Stale));
    let observer = approval(&node, Change::Remove(NodeId(3)), 3, 50_000);
    assert_eq!(run(&mut node, observer), Some(ApprovalError::Signer));
    assert_eq!(approve(&mut node, &Change::Remove(NodeId(3)), &[1, 2]), None);
    assert_eq!(node.ledger.members.get(NodeId(3)).unwrap().role, MemberRole::Removed);
}

#[test]
fn the_last_voter_cannot_go_and_ids_are_never_used_again() {
    let mut node = Node::new(params(1));
    for (height, leaver, by) in [(1, 3, [1, 2]), (2, 2, [1, 2])] {
        assert_eq!(approve(&mut node, &Change::Remove(NodeId(leaver)), &by), None);
        certify(&mut node, height, &by);
        let voters: Vec<u64> = (1..leaver).collect();
        node.ledger.apply_raft_members(&raft(&voters, &[]));
    }
    assert!(matches!(approve(&mut node, &Change::Remove(NodeId(1)), &[1]), Some(ApprovalError::Change(_))));
    // A member that left may come back with its key, never with its store, and gets another id.
    let mut back = node.ledger.members.get(NodeId(3)).unwrap().member.clone();
    assert!(matches!(approve(&mut node, &Change::Admit(back.clone()), &[1]), Some(ApprovalError::Change(_))));
    back.incarnation = Incarnation([77; 16]);
    assert_eq!(approve(&mut node, &Change::Admit(back), &[1]), None);
    assert_eq!(node.ledger.members.get(NodeId(4)).unwrap().role, MemberRole::Observer);
}

#[test]
fn what_is_below_the_horizon_is_forgotten_and_ids_never_come_again() {
    let mut node = Node::new(params(1));
    let first = node.batch(1, &[message("a")]);
    node.batch(50_000, &[message("b")]);
    node.run(Command::OutputProgress { output: "pg".parse().unwrap(), task_number: TaskNumber(1), places: Vec::new() });
    // Not final yet.
    let horizon = horizon_at(&node, 2);
    assert!(node.run(Command::Horizon(horizon)).writes.is_empty());
    certify(&mut node, 2, &[1, 2]);
    node.batch(50_001, &[message("c")]);
    node.run(Command::Horizon(horizon));
    assert_eq!(horizon, Horizon { height: Height(2), sequence: Sequence(2), task_number: TaskNumber(2) });
    assert_eq!(node.ledger.head.horizon, horizon);
    node.restart();
    let again = node.batch(50_002, &[message("a"), message("b"), message("a")]);
    let (Outcome::Ordered { message_id: id, .. }, Outcome::Ordered { message_id, .. }) =
        (first[0].clone(), again[0].clone())
    else {
        panic!("both are readings of their own")
    };
    assert_ne!(id, message_id);
    assert_eq!(
        again[1],
        Outcome::Duplicate {
            message_id: MessageId(message("b").content_id().0),
            sequence: Sequence(2),
            height: Height(2),
        }
    );
    assert!(matches!(again[2], Outcome::Duplicate { message_id: same, .. } if same == message_id));
}

/// Five batches of one message each, all of them final, of which two were forgotten.
fn with_a_horizon() -> Node {
    let mut node = Node::new(params(1));
    for n in 1..=5 {
        node.batch(n, &[message(&n.to_string())]);
    }
    certify(&mut node, 4, &[1, 2]);
    node.run(Command::Horizon(horizon_at(&node, 3)));
    assert_eq!(node.ledger.head.horizon.height, Height(3));
    node
}

#[test]
fn a_horizon_with_other_numbers_than_its_batch_has_no_effect() {
    let mut node = with_a_horizon();
    let (before, right) = (node.ledger.head.clone(), horizon_at(&node, 4));
    let (sequence, task_number) = (right.sequence, right.task_number);
    for wrong in [
        Horizon { sequence: sequence.next(), ..right },
        Horizon { sequence: Sequence(sequence.0 - 1), ..right },
        Horizon { task_number: task_number.next(), ..right },
        Horizon { task_number: TaskNumber(task_number.0 - 1), ..right },
        // Below what is forgotten already, or above what there is.
        Horizon { sequence: Sequence(0), ..right },
        Horizon { sequence: Sequence(u64::MAX), ..right },
        Horizon { task_number: TaskNumber(0), ..right },
        Horizon { task_number: TaskNumber(u64::MAX), ..right },
        Horizon { height: Height(3), ..right },
        Horizon { height: Height(2), ..right },
        Horizon { height: Height(5), ..right },
        Horizon { height: Height(u64::MAX), ..right },
    ] {
        let applied = node.run(Command::Horizon(wrong));
        assert_eq!((applied.writes, applied.diverged), (Vec::new(), None), "{wrong:?}");
        assert_eq!(node.ledger.head, before);
    }
    node.run(Command::Horizon(right));
    assert_eq!(node.ledger.head.horizon, right);
}

#[test]
fn a_horizon_reads_nothing_that_is_forgotten() {
    let (mut whole, mut torn) = (with_a_horizon(), with_a_horizon());
    torn.view.1.retain(|height, _| *height >= Height(3));
    for height in [1, 2, 3, 4] {
        let horizon = horizon_at(&whole, height);
        let (a, b) = (whole.run(Command::Horizon(horizon)), torn.run(Command::Horizon(horizon)));
        assert_eq!((&a.writes, a.diverged), (&b.writes, b.diverged), "{height}");
    }
    assert_eq!(whole.ledger.head, torn.ledger.head);
    assert_eq!(whole.ledger.head.horizon.height, Height(4));
}

#[test]
fn a_batch_that_is_not_forgotten_and_not_there_shows_that_this_state_is_wrong_and_changes_nothing() {
    let mut node = with_a_horizon();
    let (before, horizon, higher) = (node.ledger.head.clone(), horizon_at(&node, 4), certificate(&node, 5, &[1, 2]));
    node.view.1.clear();
    for (command, height) in [(Command::Horizon(horizon), 4), (Command::Certificate(higher), 5)] {
        let applied = node.run(command);
        assert_eq!(applied.diverged, Some(Divergence::Missing(Height(height))));
        assert!(applied.writes.is_empty());
        assert_eq!(node.ledger.head, before);
    }
}

#[test]
fn an_output_that_was_overtaken_by_the_horizon_has_a_gap() {
    let mut node = Node::new(params(1));
    node.batch(1, &[message("a"), message("b")]);
    node.batch(2, &[message("c")]);
    node.run(Command::OutputProgress { output: "pg".parse().unwrap(), task_number: TaskNumber(1), places: Vec::new() });
    certify(&mut node, 2, &[1, 2]);
    let applied = node.run(Command::Horizon(horizon_at(&node, 2)));
    let gap = Gap { first: TaskNumber(2), last: TaskNumber(2) };
    assert!(applied.writes.contains(&Write::Gap("pg".parse().unwrap(), gap)));
    assert_eq!(node.ledger.progress()[&"pg".parse().unwrap()], TaskNumber(2));
}

#[test]
fn where_outputs_have_tasks_is_kept_and_a_table_is_one_place() {
    let mut node = Node::new(params(1));
    let output: OutputName = "db".parse().unwrap();
    let messages = ["a", "b", "c", "d", "e"].map(message);
    node.batch(1, &messages);
    let place = |first: u64, last: u64, commitment: &[u8]| Place {
        first: TaskNumber(first),
        last: TaskNumber(last),
        locator: "here".into(),
        commitment: commitment.to_vec(),
        height: None,
        stage: lockstep_types::Stage::Final,
    };
    let report = |n: u64, places: &[Place]| Command::OutputProgress {
        output: "db".parse().unwrap(),
        task_number: TaskNumber(n),
        places: places.to_vec(),
    };
    let kept = |node: &Node| node.view.2.places.values().cloned().collect::<Vec<_>>();
    let effects = node.ledger.head.effects;
    node.run(report(2, &[place(1, 1, b""), place(2, 2, b"")]));
    assert_eq!(kept(&node), [place(1, 2, b"")]);
    // Once more, as after a change of publishers, and on.
    node.run(report(3, &[place(2, 3, b"")]));
    assert_eq!(kept(&node), [place(1, 3, b"")]);
    // Each blob is a place of its own; what is told late is as true. Tasks that do not exist are nowhere.
    node.run(report(3, &[place(4, 4, b"x"), place(5, 5, b"y"), place(6, 6, b"z")]));
    assert_eq!(kept(&node), [place(1, 3, b""), place(4, 4, b"x"), place(5, 5, b"y")]);
    assert_eq!(node.ledger.progress()[&output], TaskNumber(3));
    assert_eq!(node.ledger.head.effects, effects, "it says nothing about the order");
}

#[test]
fn an_output_is_held_up_until_it_is_let_go_on_whoever_leads() {
    let mut node = Node::new(params(1));
    let (db, other): (OutputName, OutputName) = ("db".parse().unwrap(), "other".parse().unwrap());
    let pause = |output: &OutputName, paused| Command::Output {
        output: output.clone(),
        state: if paused { OutputState::Paused } else { OutputState::Running },
    };
    let held = |node: &Node| node.ledger.outputs().held().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let effects = node.ledger.head.effects;
    for (output, paused, expected) in [
        (&db, true, vec![db.clone()]),
        (&db, true, vec![db.clone()]),
        (&other, false, vec![db.clone()]),
        (&other, true, vec![db.clone(), other.clone()]),
        (&db, false, vec![other.clone()]),
    ] {
        node.run(pause(output, paused));
        assert_eq!(held(&node), expected);
        node.restart();
        assert_eq!(held(&node), expected);
    }
    assert_eq!(node.ledger.head.effects, effects, "it says nothing about the order");
    // No more than there is room for.
    for n in 0..2 * PAUSED_OUTPUTS_MAX {
        node.run(pause(&format!("o{n}").parse().unwrap(), true));
    }
    assert_eq!(held(&node).len(), PAUSED_OUTPUTS_MAX);
}

#[test]
fn a_removed_output_leaves_nothing_and_comes_back_only_when_it_is_added_anew() {
    let mut node = Node::new(params(1));
    let (db, other): (OutputName, OutputName) = ("db".parse().unwrap(), "other".parse().unwrap());
    let place = Place {
        first: TaskNumber(1),
        last: TaskNumber(1),
        locator: "here".into(),
        commitment: Vec::new(),
        height: None,
        stage: lockstep_types::Stage::Final,
    };
    let report = |output: &OutputName, n: u64| Command::OutputProgress {
        output: output.clone(),
        task_number: TaskNumber(n),
        places: vec![place.clone()],
    };
    let change = |state| Command::Output { output: db.clone(), state };
    node.batch(1, &["a", "b", "c"].map(message));
    node.batch(2, &[message("d")]);
    node.batch(3, &[message("e")]);
    node.run(report(&db, 1));
    node.run(report(&other, 1));
    certify(&mut node, 3, &[1, 2]);
    node.run(Command::Horizon(horizon_at(&node, 2)));
    assert_eq!(node.view.2.gaps.len(), 2);
    let effects = node.ledger.head.effects;
    node.run(change(OutputState::Removed));
    for _ in 0..2 {
        assert_eq!(node.ledger.progress().keys().collect::<Vec<_>>(), [&other]);
        assert!(node.view.2.places.keys().chain(node.view.2.gaps.keys()).all(|(output, _)| *output == other));
        // Late reports, an operator that has not heard of it, and one that has.
        for command in [report(&db, 4), change(OutputState::Paused), change(OutputState::Removed)] {
            assert!(node.run(command).writes.is_empty());
        }
        assert!(node.ledger.outputs().is_removed(&db));
        node.restart();
    }
    assert_eq!(node.ledger.head.effects, effects, "it says nothing about the order");
    // What is forgotten meanwhile is no gap in it.
    let applied = node.run(Command::Horizon(horizon_at(&node, 3)));
    let gaps = applied.writes.iter().filter_map(|write| match write {
        Write::Gap(output, _) => Some(output),
        _ => None,
    });
    assert_eq!(gaps.collect::<Vec<_>>(), [&other]);
    // It begins as one that was never there.
    node.run(change(OutputState::Running));
    node.restart();
    assert!(!node.ledger.progress().contains_key(&db) && node.ledger.outputs().held().next().is_none());
    node.run(report(&db, 5));
    assert_eq!(node.ledger.progress()[&db], TaskNumber(5));
}

#[test]
fn rules_are_activated_by_the_log_and_never_go_back() {
    let mut node = Node::new(params(1));
    node.batch(1, &[message("a"), message("b")]);
    assert_eq!(node.batches[0].header.rules_version, RULES_FIRST);
    let before = node.ledger.head.effects;
    node.run(Command::Rules(2));
    assert_ne!(node.ledger.head.effects, before);
    assert!(node.run(Command::Rules(1)).writes.is_empty());
    assert!(node.run(Command::Rules(2)).writes.is_empty());
    node.batch(2, &[message("c")]);
    assert_eq!(node.batches[1].header.rules_version, 2);
}
