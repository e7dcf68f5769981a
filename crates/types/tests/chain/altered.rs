//! A history in which anything at all was altered fails.

use lockstep_types::verify::{Fault, TaskFault};
use lockstep_types::*;
use proptest::prelude::*;

use super::builder::*;

/// One alteration of a batch; false where it does not apply.
type Alter = fn(&mut Batch) -> bool;

fn first_message(batch: &mut Batch, alter: impl FnOnce(&mut OrderedMessage)) -> bool {
    batch.messages.first_mut().map(alter).is_some()
}

fn first_task(batch: &mut Batch, alter: impl FnOnce(&mut Task)) -> bool {
    batch.tasks.first_mut().map(alter).is_some()
}

fn header(batch: &mut Batch, alter: impl FnOnce(&mut BatchHeader)) -> bool {
    alter(&mut batch.header);
    true
}

fn flip_signature(evidence: &mut Evidence, at: usize) {
    match evidence {
        Evidence::Device(signature) | Evidence::Ingress { signature, .. } | Evidence::Envelope { signature, .. } => {
            signature.0[at] ^= 1;
        }
        Evidence::Task(task) => task.signature.0[at] ^= 1,
    }
}

/// Every field that a batch record has.
const ALTERATIONS: &[(&str, Alter)] = &[
    ("rules up", |b| header(b, |h| h.rules_version += 1)),
    ("rules down", |b| header(b, |h| h.rules_version = 0)),
    ("rules unknown", |b| header(b, |h| h.rules_version = 99)),
    ("network", |b| header(b, |h| h.network.0[0] ^= 1)),
    ("epoch", |b| header(b, |h| h.epoch.0 += 1)),
    ("height up", |b| header(b, |h| h.height.0 += 1)),
    ("height down", |b| header(b, |h| h.height.0 -= 1)),
    ("height huge", |b| header(b, |h| h.height.0 = u64::MAX)),
    ("parent", |b| header(b, |h| h.parent.0[31] ^= 1)),
    ("time later", |b| header(b, |h| h.time_ms.0 += 1)),
    ("time earlier", |b| header(b, |h| h.time_ms.0 = 0)),
    ("first sequence", |b| header(b, |h| h.first_sequence.0 += 1)),
    ("first sequence huge", |b| header(b, |h| h.first_sequence.0 = u64::MAX)),
    ("message count", |b| header(b, |h| h.message_count += 1)),
    ("message count huge", |b| header(b, |h| h.message_count = u64::MAX)),
    ("messages root", |b| header(b, |h| h.messages_root[0] ^= 1)),
    ("first task number", |b| header(b, |h| h.first_task_number.0 += 1)),
    ("first task number huge", |b| header(b, |h| h.first_task_number.0 = u64::MAX)),
    ("task count", |b| header(b, |h| h.task_count += 1)),
    ("tasks root", |b| header(b, |h| h.tasks_root[0] ^= 1)),
    ("members", |b| header(b, |h| h.members[0] ^= 1)),
    ("next members", |b| header(b, |h| h.next_members[0] ^= 1)),
    ("effects", |b| header(b, |h| h.effects[0] ^= 1)),
    ("message id", |b| first_message(b, |m| m.id.0[0] ^= 1)),
    ("api", |b| {
        first_message(b, |m| {
            m.message.api = if m.message.api == Api::Apinode { Api::Unsigned } else { Api::Apinode };
        })
    }),
    ("project", |b| first_message(b, |m| m.message.project_id.0 += 1)),
    ("project version", |b| first_message(b, |m| m.message.project_version.push('1'))),
    ("data", |b| first_message(b, |m| m.message.data = "altered".into())),
    ("device", |b| first_message(b, |m| m.message.device.0[0] ^= 1)),
    ("nonce", |b| first_message(b, |m| m.message.nonce = "1".into())),
    ("evidence R", |b| first_message(b, |m| flip_signature(&mut m.message.evidence, 0))),
    ("evidence S", |b| first_message(b, |m| flip_signature(&mut m.message.evidence, 40))),
    ("evidence V", |b| first_message(b, |m| flip_signature(&mut m.message.evidence, 64))),
    ("ingress", |b| match b.messages.iter_mut().find(|m| m.message.api == Api::Unsigned) {
        Some(OrderedMessage { message: Message { evidence: Evidence::Ingress { node, .. }, .. }, .. }) => {
            node.0[0] ^= 1;
            true
        }
        _ => false,
    }),
    ("a message less", |b| b.messages.pop().is_some()),
    ("a message twice", |b| {
        let last = b.messages.last().cloned();
        last.map(|m| b.messages.push(m)).is_some()
    }),
    ("messages in another order", |b| {
        let differ = b.messages.len() > 1 && b.messages[0] != b.messages[1];
        if differ {
            b.messages.swap(0, 1);
        }
        differ
    }),
    ("task number", |b| first_task(b, |t| t.number.0 += 1)),
    ("task id", |b| first_task(b, |t| t.id.0[0] ^= 1)),
    ("task project", |b| first_task(b, |t| t.project_id.0 += 1)),
    ("task version", |b| first_task(b, |t| t.project_version.push('1'))),
    ("task device", |b| first_task(b, |t| t.device.0[0] ^= 1)),
    ("task sequence", |b| first_task(b, |t| t.sequences[0].0 = 0)),
    ("task sequence later", |b| first_task(b, |t| t.sequences[0].0 += 1)),
    ("task sequence huge", |b| first_task(b, |t| t.sequences.push(Sequence(u64::MAX)))),
    ("a task without messages", |b| first_task(b, |t| t.sequences.clear())),
    ("a task's message less", |b| {
        first_task(b, |t| {
            t.sequences.pop();
        })
    }),
    ("a task less", |b| b.tasks.pop().is_some()),
    ("a task twice", |b| {
        let last = b.tasks.last().cloned();
        last.map(|t| b.tasks.push(t)).is_some()
    }),
    ("a set's member less", |b| b.next_set.as_mut().is_some_and(|set| set.0.pop().is_some())),
    ("a set's node id", |b| b.next_set.as_mut().map(|set| set.0[0].node.0 += 100).is_some()),
    ("a set's address", |b| b.next_set.as_mut().map(|set| set.0[0].address.0[0] ^= 1).is_some()),
    ("a set's voter", |b| b.next_set.as_mut().map(|set| set.0[0].voter ^= true).is_some()),
    ("a set less", |b| b.next_set.take().is_some()),
    ("a set that nobody needs", |b| {
        let none = b.next_set.is_none();
        if none {
            b.next_set = Some(MemberSet(vec![SetMember { node: NodeId(1), address: Address([1; 20]), voter: true }]));
        }
        none
    }),
];

/// Makes headers fit again after an alteration: what someone would do who wants it to go unseen.
fn chain_again(net: &mut Net, from: usize) {
    for at in from..net.batches.len() {
        let parent = at.checked_sub(1).map_or(BatchHash::ZERO, |before| net.batches[before].header.hash());
        let batch = &mut net.batches[at];
        batch.header.parent = parent;
        if at == from {
            batch.header.message_count = batch.messages.len() as u64;
            batch.header.task_count = batch.tasks.len() as u64;
            if batch.header.first_sequence.0 < u64::MAX / 2 {
                batch.header.messages_root = Batch::messages_root(batch.header.first_sequence, &batch.messages);
            }
            batch.header.tasks_root = Batch::tasks_root(&batch.tasks);
            let next = batch.next_set.as_ref().map(MemberSet::hash);
            batch.header.next_members = next.unwrap_or(batch.header.next_members);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_valid_history_with_changes_of_the_members_passes(group in 1_u64..4, steps in steps()) {
        let net = net_of(group, &steps);
        let checked = net.check().unwrap();
        prop_assert_eq!(checked.height().0, net.height());
        prop_assert_eq!(checked.final_height().0, net.height());
        prop_assert_eq!(checked.hash(), net.batches.last().unwrap().header.hash());
        prop_assert_eq!(checked.set(), &net.set);
        let counts = checked.counts();
        prop_assert_eq!((counts.ids_unchecked, counts.tasks_unchecked), (0, 0));
        prop_assert_eq!(counts.messages, net.batches.iter().map(|b| b.messages.len() as u64).sum::<u64>());
        prop_assert_eq!(counts.certificates, net.certificates.len() as u64);
    }

    #[test]
    fn a_history_altered_in_any_field_fails_also_with_its_hashes_made_again(
        group in 1_u64..4, steps in steps(), place in any::<prop::sample::Index>(),
    ) {
        let net = net_of(group, &steps);
        let at = place.index(net.batches.len());
        for (what, alter) in ALTERATIONS {
            let mut altered = net.clone();
            if !alter(&mut altered.batches[at]) {
                continue;
            }
            prop_assert!(altered.check().is_err(), "{} of batch {}", what, at + 1);
            chain_again(&mut altered, at);
            if altered.batches == net.batches {
                continue;
            }
            prop_assert!(altered.check().is_err(), "{} of batch {}, chained again", what, at + 1);
        }
    }

    #[test]
    fn a_batch_less_or_twice_or_elsewhere_fails(steps in steps(), place in any::<prop::sample::Index>()) {
        let net = net_of(1, &steps);
        let at = place.index(net.batches.len());
        let mut less = net.clone();
        less.batches.remove(at);
        prop_assert!(less.check().is_err() || at + 1 == net.batches.len());
        let mut twice = net.clone();
        twice.batches.insert(at, net.batches[at].clone());
        prop_assert!(twice.check().is_err());
        let mut swapped = net.clone();
        swapped.batches.swap(0, at);
        prop_assert!(at == 0 || swapped.check().is_err());
    }
}

#[test]
fn every_flipped_bit_of_a_record_is_found_but_in_the_hint_of_who_took_a_message_in() {
    let mut net = Net::new(2);
    net.batch(vec![signed(0, "a")], false, None);
    net.batch(vec![signed(0, "b"), unsigned(&key(1), "c"), signed(0, "a")], false, None);
    net.admit();
    net.certify(net.height());
    for at in 0..net.batches.len() {
        let record = net.batches[at].encode();
        for bit in 0..record.len() * 8 {
            let mut flipped = record.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let Ok(batch) = Batch::decode(flipped.into()) else { continue };
            let mut altered = net.clone();
            altered.batches[at] = batch.clone();
            if altered.check().is_err() {
                continue;
            }
            let mut without_hints = batch;
            for (message, original) in without_hints.messages.iter_mut().zip(&net.batches[at].messages) {
                message.message.via = original.message.via;
            }
            assert_eq!(without_hints, net.batches[at], "bit {bit} of batch {}", at + 1);
        }
    }
}

#[test]
fn errors_name_the_height_and_what_is_wrong() {
    let mut net = Net::new(1);
    net.batch(vec![signed(0, "a"), signed(1, "b")], false, None);
    net.batch(vec![signed(0, "c")], false, None);
    net.certify(2);
    let fault = |alter: fn(&mut Net)| {
        let mut altered = net.clone();
        alter(&mut altered);
        let error = altered.check().unwrap_err();
        (error.height.0, error.fault)
    };
    let id = net.batches[0].messages[1].id;
    assert_eq!(
        fault(|net| flip_signature(&mut net.batches[0].messages[1].message.evidence, 3)),
        (1, Fault::Evidence { sequence: Sequence(2), id })
    );
    let parent = net.batches[0].header.hash();
    assert!(matches!(
        fault(|net| net.batches[0].header.time_ms.0 += 1),
        (2, Fault::Parent { found, .. }) if found == parent
    ));
    let number = TaskNumber(102);
    assert_eq!(
        fault(|net| {
            net.batches[1].tasks[0].device.0[0] ^= 1;
            net.batches[1].header.tasks_root = Batch::tasks_root(&net.batches[1].tasks);
        }),
        (2, Fault::Task { number, fault: TaskFault::Message(Sequence(3)) })
    );
    assert_eq!(
        fault(|net| net.batches[1].header.rules_version = 9),
        (2, Fault::RulesUnknown { found: 9, known: RULES_KNOWN })
    );
    let mut newer = net.clone();
    newer.batches[1].header.rules_version = 9;
    assert!(newer.check().unwrap_err().needs_newer_program());
    net.check().unwrap();
}

#[test]
fn a_word_counts_only_of_who_is_or_was_a_member() {
    let mut net = Net::new(1);
    let newcomer = key(4);
    let mut early = net.clone();
    early.batch(vec![unsigned(&newcomer, "x")], false, None);
    assert!(matches!(early.check().unwrap_err().fault, Fault::Evidence { .. }));
    net.admit();
    net.batch(vec![unsigned(&newcomer, "x")], false, None);
    net.remove(3);
    net.batch(vec![unsigned(&newcomer, "y")], false, None);
    net.check().unwrap();
}

#[test]
fn messages_wait_in_their_groups_and_too_many_groups_fail() {
    let mut net = Net::new(10);
    net.genesis.params.open_groups_max = 1;
    // A group of a project's rules may have messages of as many devices and versions as it has messages.
    let allowed = lockstep_types::task::GROUP_MESSAGES_MAX;
    let of_version = |version: u64| signed_of(0, &version.to_string(), "x");
    net.batch((0..allowed).map(of_version).collect(), false, None);
    net.check().unwrap();
    net.batch(vec![of_version(allowed)], false, None);
    let found = usize::try_from(allowed).unwrap() + 1;
    assert_eq!(net.check().unwrap_err().fault, Fault::OpenGroups { found, allowed });
}
