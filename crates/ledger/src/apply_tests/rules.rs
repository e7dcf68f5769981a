//! Rules of projects: from which batch on they hold, what they refuse, what they cost, and that all of it comes out of the
//! log alone.

use lockstep_rules::{Bundle, Stage};
use lockstep_types::{NetworkParams, Order, OrderKind, ProjectSettings, RulesOrder};

use super::*;
use crate::rules::check_rules;

pub(super) const PROJECT: ProjectId = ProjectId(7);
pub(super) const OTHER: ProjectId = ProjectId(8);
const NOW: u64 = 100_000;

const RISING: &str = "version = 1\n\
    [[validate.expect]]\nthat = \"message.n < 100\"\nreason = \"too_much\"\n\
    [[validate.expect]]\nthat = \"last == null || message.n > last.message.n\"\nreason = \"not_rising\"\n\
    [[filter]]\nwhen = \"message.n == 50\"\ndo = \"flag\"\nreason = \"half\"\n";

pub(super) fn params() -> NetworkParams {
    let settings = ProjectSettings { devices: Some(lockstep_types::DevicePolicy::Any), ..ProjectSettings::default() };
    NetworkParams {
        projects: [(PROJECT, settings.clone()), (OTHER, settings)].into(),
        owners: [(PROJECT, key(50).address())].into(),
        ..NetworkParams::default()
    }
}

pub(super) fn node() -> Node {
    Node::new(params())
}

pub(super) fn bundle(document: &str, files: &[(&str, &[u8])]) -> Bytes {
    let files = files.iter().map(|(name, content)| ((*name).to_owned(), Bytes::copy_from_slice(content))).collect();
    Bundle { document: document.into(), files }.encode().into()
}

pub(super) fn set(node: &mut Node, bundle: Option<Bytes>, from: u64) -> Result<(), OrderError> {
    let number = node.ledger.projects().get(PROJECT).map_or(0, |project| project.orders) + 1;
    let kind = OrderKind::Rules(RulesOrder { bundle, from: Height(from) });
    let order = Order { epoch: Epoch(0), project: PROJECT, number, expires_ms: TimeMs(NOW + 60_000), kind };
    let order = Box::new(order.sign(&NetworkId([7; 32]), &key(50)));
    node.run(Command::Order { time_ms: TimeMs(NOW), order }).order.unwrap().2
}

pub(super) fn of(project: ProjectId, device: u8, data: &str) -> Message {
    Message { project_id: project, device: Address([device; 20]), ..message(data) }
}

pub(super) fn n(device: u8, n: u64) -> Message {
    of(PROJECT, device, &format!("{{\"n\":{n}}}"))
}

/// `ok`, or the reason.
pub(super) fn words(outcomes: &[Outcome]) -> Vec<String> {
    let word = |outcome: &Outcome| match outcome {
        Outcome::Rejected(Rejection::Rules(refusal)) => refusal.reason.clone(),
        Outcome::Rejected(rejection) => format!("{rejection:?}"),
        _ => "ok".to_owned(),
    };
    outcomes.iter().map(word).collect()
}

#[test]
fn rules_hold_from_their_batch_on_and_until_others_do() {
    let mut node = node();
    let head = |node: &Node| node.ledger.head().height.0;
    assert_eq!(words(&node.batch(NOW, &[n(1, 200)])), ["ok"]);
    // Two batches from now.
    let from = head(&node) + 2;
    set(&mut node, Some(bundle(RISING, &[])), from).unwrap();
    assert_eq!(words(&node.batch(NOW + 1, &[n(1, 201)])), ["ok"]);
    assert_eq!(words(&node.batch(NOW + 2, &[n(1, 202), n(1, 5)])), ["too_much", "ok"]);
    set(&mut node, None, 0).unwrap();
    assert_eq!(words(&node.batch(NOW + 3, &[n(1, 203)])), ["ok"]);
    let rules = &node.ledger.projects().get(PROJECT).unwrap().rules;
    assert_eq!(
        rules.iter().map(|rules| (rules.from.0, rules.hash.is_some())).collect::<Vec<_>>(),
        [(3, true), (4, false)]
    );
    // Those that can hold no more are forgotten, with their bundles.
    for _ in 0..40 {
        set(&mut node, None, 0).unwrap();
        node.batch(NOW + 4, &[n(2, node.batches.len() as u64 + 300)]);
    }
    assert!(node.view.2.rules.is_empty());
    assert!(!node.ledger.projects().have_rules());
}

#[test]
fn a_network_without_rules_refuses_every_order_that_sets_some_and_goes_on() {
    let mut node = Node::new(NetworkParams { rules_fuel_per_second: Some(0), ..params() });
    let good = || Some(bundle(RISING, &[]));
    let before = node.ledger.head().clone();
    // It is refused before anything is read: of what is no bundle it says the same.
    for bundle in [good(), Some(Bytes::from_static(b"no bundle")), None] {
        assert_eq!(set(&mut node, bundle, 0), Err(OrderError::NoRules));
    }
    assert_eq!((node.ledger.head(), node.ledger.projects().have_rules()), (&before, false));
    assert_eq!(words(&node.batch(NOW, &[n(1, 200)])), ["ok"]);
    let settings = Order {
        epoch: Epoch(0),
        project: PROJECT,
        number: 1,
        expires_ms: TimeMs(NOW + 60_000),
        kind: OrderKind::Settings(ProjectSettings::open()),
    };
    let order = Box::new(settings.sign(&NetworkId([7; 32]), &key(50)));
    assert_eq!(
        node.run(Command::Order { time_ms: TimeMs(NOW), order }).order.unwrap().2,
        Ok(()),
        "others are carried out"
    );
}

#[test]
fn only_a_network_without_rules_takes_programs_without_them() {
    for (fuel, with, without) in [(None, true, false), (Some(1_000), true, false), (Some(0), true, true)] {
        let params = NetworkParams { rules_fuel_per_second: fuel, ..params() };
        assert_eq!(check_rules(&params, true).is_ok(), with, "{fuel:?}");
        assert_eq!(check_rules(&params, false).is_ok(), without, "{fuel:?}");
    }
    let refusal = check_rules(&params(), false).unwrap_err().to_string();
    assert!(refusal.contains("rules_fuel_per_second") && refusal.contains("feature rules"), "{refusal}");
}

#[test]
fn what_was_taken_last_is_known_within_a_batch_across_batches_and_after_a_restart() {
    let (mut node, mut other) = (node(), self::node());
    for node in [&mut node, &mut other] {
        set(node, Some(bundle(RISING, &[])), 0).unwrap();
    }
    let batches: [&[Message]; 4] = [
        &[n(1, 1), n(1, 3), n(1, 2), n(2, 2), of(OTHER, 1, "anything")],
        &[n(1, 3), n(1, 99), n(1, 200)],
        &[n(1, 50), n(2, 50)],
        // Nothing of it is taken, and it counts all the same.
        &[n(1, 51)],
    ];
    let expected: [&[&str]; 4] = [
        &["ok", "ok", "not_rising", "ok", "ok"],
        &["not_rising", "ok", "too_much"],
        &["not_rising", "ok"],
        &["not_rising"],
    ];
    for (time, (batch, expected)) in (NOW..).step_by(20_000).zip(batches.iter().zip(expected)) {
        assert_eq!(words(&node.batch(time, batch)), expected);
        // The other one is started again before each batch.
        other.restart();
        assert_eq!(words(&other.batch(time, batch)), expected);
        assert_eq!(node.ledger.head(), other.ledger.head());
        assert_eq!(node.ledger.rules_states(), other.ledger.rules_states());
    }
    let state = &node.ledger.rules_states()[&PROJECT];
    assert_eq!((state.taken, state.flagged), (5, 1));
    let refused: Vec<_> = state.refused.iter().map(|(what, count)| (what.as_str(), *count)).collect();
    assert_eq!(refused, [("expect:not_rising", 4), ("expect:too_much", 1)]);
    assert_eq!(node.view.2.flags.into_values().collect::<Vec<_>>(), [["half"]]);
}

#[test]
fn a_module_without_an_end_costs_its_project_alone() {
    let mut node = node();
    let wasm = b"\0asm\x01\0\0\0\x01\x05\x01\x60\0\x01\x7f\x03\x02\x01\0\x05\x03\x01\0\x01\x07\x12\x02\x06memory\x02\0\x05check\0\0\x0a\x0b\x01\x09\0\x03\x40\x0c\0\x0b\x41\0\x0b";
    let document = "version = 1\n[code]\nmodule = \"m\"\nfuel = 2000000\n";
    set(&mut node, Some(bundle(document, &[("m", wasm)])), 0).unwrap();
    let hostile = |round: u64| (0..100).map(move |k| of(PROJECT, 1, &format!("{{\"n\":{}}}", round * 1_000 + k)));
    let mut ran = 0;
    for second in 0..5 {
        let mut messages: Vec<_> = hostile(second).collect();
        messages.push(of(OTHER, 2, &format!("good {second}")));
        let said = words(&node.batch(NOW + second * 1_000, &messages));
        assert_eq!(said.last().unwrap(), "ok");
        ran += said.iter().filter(|word| *word == "fuel").count();
        assert!(said[..100].iter().all(|word| word == "fuel" || word == "Fuel"), "{said:?}");
    }
    // What is saved up, then one second's worth each second.
    assert!((8..=13).contains(&ran), "{ran}");
    let state = &node.ledger.rules_states()[&PROJECT];
    assert_eq!(state.refused.get("code:fuel"), Some(&(ran as u64)));
}

#[test]
fn rules_that_cannot_be_used_change_nothing() {
    let mut node = node();
    let before = node.ledger.head().clone();
    let bad = [
        bundle("version = 2", &[]),
        bundle("version = 1\n[[filter]]\nwhen = \"nonsense(\"\ndo = \"drop\"\nreason = \"x\"", &[]),
        bundle("version = 1\n[code]\nmodule = \"m\"", &[("m", b"nonsense")]),
        Bytes::from_static(b"\xff"),
    ];
    for bundle in bad {
        assert!(matches!(set(&mut node, Some(bundle), 0), Err(OrderError::ProjectRules(_))));
        assert_eq!(*node.ledger.head(), before);
    }
    assert_eq!(Stage::Expect.to_string(), "expect");
}

proptest! {
    /// Rules come and go at any batch, nodes are started again at any time, and all have the same.
    #[test]
    fn the_log_alone_decides(
        steps in proptest::collection::vec((0_u8..6, 0_u8..3, 0_u64..120, 0_u64..4), 1..40),
    ) {
        let (mut one, mut two) = (node(), node());
        for (at, (what, device, number, from)) in (0..).zip(steps) {
            let time = NOW + at * 700;
            let height = one.ledger.head().height.0;
            let mut told = Vec::new();
            for node in [&mut one, &mut two] {
                told.push(match what {
                    0 => format!("{:?}", set(node, Some(bundle(RISING, &[])), height + from)),
                    1 => format!("{:?}", set(node, None, height + from)),
                    _ => format!("{:?}", node.batch(time, &[n(device, number), n(device, number / 2), of(OTHER, device, "x")])),
                });
            }
            prop_assert_eq!(&told[0], &told[1]);
            if number % 3 == 0 {
                two.restart();
            }
            prop_assert_eq!(one.ledger.head(), two.ledger.head());
        }
    }
}
