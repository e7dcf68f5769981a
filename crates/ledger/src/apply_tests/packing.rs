//! Rules that say what belongs together: groups, windows, order within tasks, what tasks come to, and when.

use super::rules::{PROJECT, bundle, n, node, set, words};
use lockstep_types::Task;

use super::*;

const NOW: u64 = 100_000;

const HOURLY: &str = "version = 1\ntime = \"message.ts\"\n\
    [sort]\nby = \"time\"\nhold_ms = 1000\n\
    [aggregate]\nby = \"field\"\nfield = \"message.station\"\ncount = 100\nwindow_ms = 3600000\n\
    [aggregate.reduce]\nmean = { of = \"message.n\", with = \"mean\" }\nlast = { of = \"message.n\", with = \"last\" }\n\
    [route]\noutputs = [\"weather\"]\n";

fn reading(device: u8, station: &str, ts: u64, n: u64) -> Message {
    super::rules::of(PROJECT, device, &format!("{{\"station\":\"{station}\",\"ts\":{ts},\"n\":{n}}}"))
}

fn with(document: &str) -> Node {
    let mut node = node();
    set(&mut node, Some(bundle(document, &[])), 0).unwrap();
    node
}

/// Group, window, sequences and payload of all tasks.
fn tasks(node: &Node) -> Vec<(String, Option<i64>, Vec<u64>, String)> {
    let of = |task: &Task| {
        let ruled = task.ruled.as_deref().cloned().unwrap_or_default();
        let payload = String::from_utf8(ruled.payload.unwrap_or_default().to_vec()).unwrap();
        (ruled.group, ruled.window, task.sequences.iter().map(|sequence| sequence.0).collect(), payload)
    };
    node.batches.iter().flat_map(|batch| &batch.tasks).map(of).collect()
}

fn task(group: &str, window: Option<i64>, sequences: &[u64], payload: &str) -> (String, Option<i64>, Vec<u64>, String) {
    (group.into(), window, sequences.to_vec(), payload.into())
}

const HOUR: u64 = 3_600_000;

#[test]
fn windows_wait_for_what_comes_late_and_flag_what_comes_later() {
    let mut node = with(HOURLY);
    let first = [reading(1, "a", HOUR + 20, 1), reading(2, "a", HOUR + 10, 2), reading(2, "b", HOUR, 7)];
    assert_eq!(words(&node.batch(NOW, &first)), ["ok"; 3]);
    // A later window has begun; for a second its group is waited for.
    node.batch(NOW + 10, &[reading(1, "a", 2 * HOUR, 4)]);
    node.batch(NOW + 1_009, &[reading(2, "a", HOUR + 15, 6)]);
    assert!(tasks(&node).is_empty());
    node.restart();
    // An empty proposal is enough, and nothing but its time counts.
    node.propose(NOW + 1_010, &[], 0);
    // In the order of the devices' time: 2, 5, 1; the mean of 1, 2 and 6, and the last is 1.
    assert_eq!(tasks(&node), [task("a", Some(1), &[2, 5, 1], "{\"last\":1,\"mean\":3.0}")]);
    let made = node.batches.last().unwrap().tasks[0].clone();
    assert_eq!(made.device, Address::ZERO);
    assert!(made.is_for(&"weather".parse().unwrap()) && !made.is_for(&"other".parse().unwrap()));
    // Too late: it is ordered, marked, and makes a task of its own.
    node.batch(NOW + 2_000, &[reading(1, "a", HOUR + 30, 9)]);
    node.propose(NOW + 3_000, &[], 0);
    assert_eq!(tasks(&node)[1..], [task("a", Some(1), &[6], "{\"last\":9,\"mean\":9.0}")]);
    assert_eq!(node.view.2.flags.get(&Sequence(6)).unwrap(), &["late"]);
    assert_eq!(node.view.2.flags.len(), 1);
    let state = &node.ledger.rules_states()[&PROJECT];
    assert_eq!((state.taken, state.flagged, state.late, state.tasks), (6, 1, 1, 2));
    // Windows that no later one ends have an age.
    let age = HOUR + 1_000 + node.ledger.params().default_project.group_age_max_ms;
    node.propose(NOW + age - 1, &[], 0);
    assert_eq!(node.ledger.open_groups().count(), 2);
    node.propose(NOW + age + 10, &[], 0);
    assert_eq!(node.ledger.open_groups().count(), 0);
    assert_eq!(tasks(&node)[2..].iter().map(|task| task.2.clone()).collect::<Vec<_>>(), [[3], [4]]);
    // Nothing is open, and what one device measures for many says nothing of each.
    node.batch(NOW + age + 20, &[reading(1, "a", HOUR + 40, 1), reading(1, "c", HOUR, 1)]);
    assert_eq!(node.view.2.flags.keys().copied().collect::<Vec<_>>(), [Sequence(6)]);
}

/// Sequences of messages that are flagged.
fn flagged(node: &Node) -> Vec<u64> {
    node.view.2.flags.keys().map(|sequence| sequence.0).collect()
}

#[test]
fn a_devices_own_time_tells_what_is_late_for_as_long_as_the_same_rules_hold() {
    let hourly = "version = 1\ntime = \"message.n\"\n[sort]\nhold_ms = 500\n[aggregate]\ncount = 100\nwindow_ms = 10\n";
    let mut node = with(hourly);
    node.batch(NOW, &[n(1, 11), n(2, 11)]);
    node.batch(NOW + 10, &[n(1, 21)]);
    // By now both windows of the first device are tasks.
    let age = 510 + node.ledger.params().default_project.group_age_max_ms;
    node.propose(NOW + 10 + age, &[], 0);
    assert_eq!(node.ledger.open_groups().count(), 0);
    node.restart();
    // The first is late, and so is what joins it; the other device has never been further.
    node.batch(NOW + 20 + age, &[n(1, 12), n(2, 12)]);
    node.restart();
    node.batch(NOW + 21 + age, &[n(1, 13), n(2, 13)]);
    assert_eq!(flagged(&node), [4, 6]);
    assert_eq!(node.ledger.rules_states()[&PROJECT].late, 2);
    // Other rules: their windows, or what they think the time is, are not those of before.
    set(&mut node, Some(bundle(&hourly.replace("message.n", "message.n / 10"), &[])), 0).unwrap();
    node.batch(NOW + 22 + age, &[n(1, 40)]);
    assert_eq!(flagged(&node), [4, 6]);
}

#[test]
fn groups_close_by_count_bytes_age_and_expression() {
    let by = |more: &str| with(&format!("version = 1\n[aggregate]\nby = \"project\"\n{more}"));
    let five = [n(1, 1), n(2, 2), n(1, 3), n(2, 4), n(1, 5)];
    let mut node = by("count = 2\n");
    node.batch(NOW, &five);
    assert_eq!(tasks(&node), [task("", None, &[1, 2], ""), task("", None, &[3, 4], "")]);
    let mut node = by("count = 100\nbytes = 14\n");
    node.batch(NOW, &five);
    assert_eq!(tasks(&node), [task("", None, &[1, 2], ""), task("", None, &[3, 4], "")]);
    let mut node = by("count = 100\nage_ms = 50\n");
    node.batch(NOW, &five[..3]);
    node.batch(NOW + 49, &five[3..4]);
    // No leader closes it before its time.
    node.propose(NOW + 49, &[], 100);
    assert!(tasks(&node).is_empty());
    node.batch(NOW + 50, &five[4..]);
    assert_eq!(tasks(&node), [task("", None, &[1, 2, 3, 4], "")]);
    let mut node = by("count = 100\nclose = \"message.n == 2\"\n");
    node.batch(NOW, &five);
    assert_eq!(tasks(&node), [task("", None, &[1, 2], "")]);
}

#[test]
fn a_group_becomes_a_task_by_the_rules_that_it_began_with() {
    let sum = "version = 1\n[aggregate]\nby = \"project\"\ncount = 100\n[aggregate.reduce]\nx = { of = \"message.n\", with = \"sum\" }\n";
    let mut node = with(sum);
    node.batch(NOW, &[n(1, 1), n(2, 2)]);
    let next = node.ledger.head().height.0 + 2;
    // From the batch after the next one on.
    set(&mut node, Some(bundle(&sum.replace("sum", "max"), &[])), next).unwrap();
    node.restart();
    node.batch(NOW + 1, &[n(1, 3)]);
    assert!(tasks(&node).is_empty());
    node.restart();
    node.batch(NOW + 2, &[n(1, 4), n(1, 5)]);
    assert_eq!(tasks(&node), [task("", None, &[1, 2, 3], "{\"x\":6.0}")]);
    set(&mut node, None, 0).unwrap();
    // Without rules, it is as if there never were any.
    node.batch(NOW + 3, &[n(1, 6)]);
    assert_eq!(tasks(&node)[1], task("", None, &[4, 5], "{\"x\":5.0}"));
    let last = node.batches.last().unwrap().tasks.last().unwrap().clone();
    assert_eq!((last.ruled, last.sequences, last.device), (None, vec![Sequence(6)], Address([1; 20])));
}

#[test]
fn a_project_that_opens_many_groups_closes_its_own() {
    let mut node =
        with("version = 1\n[aggregate]\nby = \"field\"\nfield = \"string(message.n)\"\ncount = 2\nage_ms = 99999999\n");
    let many = crate::groups::RULED_GROUPS_MAX as u64 + 3;
    for chunk in (0..many).collect::<Vec<_>>().chunks(500) {
        let messages: Vec<_> = chunk.iter().map(|k| n(1, *k)).collect();
        // Each pays for what is stored of it.
        let time = node.ledger.head().time_ms.0 + 1_000;
        assert!(words(&node.batch(time.max(NOW), &messages)).iter().all(|word| word == "ok"));
    }
    assert_eq!(node.ledger.open_groups().count(), crate::groups::RULED_GROUPS_MAX);
    assert_eq!(tasks(&node).iter().map(|task| task.2[0]).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_project_whose_groups_keep_much_closes_its_own() {
    let value = "{ of = \"message.text\", with = \"last\" }\n";
    let reduced: String = (0..32).map(|k| format!("v{k} = {value}")).collect();
    let mut node = with(&format!(
        "version = 1\n[aggregate]\nby = \"field\"\nfield = \"string(message.n)\"\ncount = 2\nage_ms = 99999999\n\
         [aggregate.reduce]\n{reduced}"
    ));
    for k in 0..150 {
        let text = "x".repeat(4_000);
        let message = super::rules::of(PROJECT, 1, &format!("{{\"n\":{k},\"text\":\"{text}\"}}"));
        assert_eq!(words(&node.batch(NOW + 1_000 * k, &[message])), ["ok"]);
    }
    // Each keeps 32 texts of 4,002 bytes.
    let open = crate::groups::RULED_BYTES_MAX / (32 * 4_002);
    assert_eq!(node.ledger.open_groups().count(), open);
    node.restart();
    assert_eq!(node.ledger.open_groups().count(), open);
    assert_eq!(tasks(&node).len(), 150 - open);
}

#[test]
fn where_too_many_groups_are_open_the_project_with_most_closes_one() {
    let mut params = NetworkParams { open_groups_max: 4, ..super::rules::params() };
    params.projects.get_mut(&super::rules::OTHER).unwrap().group_messages_max = 100;
    let mut node = Node::new(params);
    let document = "version = 1\n[aggregate]\ncount = 100\nage_ms = 99999999\n";
    set(&mut node, Some(bundle(document, &[])), 0).unwrap();
    // The oldest group is alone in its project.
    let other = super::rules::of(super::rules::OTHER, 1, "{}");
    let all: Vec<_> = std::iter::once(other).chain((1..=6).map(|device| n(device, 1))).collect();
    node.batch(NOW, &all);
    let open: Vec<u64> = node.ledger.open_groups().map(|(_, group)| group.first_sequence().0).collect();
    assert_eq!(open.len(), 4);
    assert!(open.contains(&1), "{open:?}");
    assert_eq!(tasks(&node).iter().map(|task| task.2[0]).collect::<Vec<_>>(), [2, 3, 4]);
}

#[test]
fn groups_end_where_a_network_forgets_and_only_there() {
    let closes = |retention: lockstep_types::Retention, after: u64| {
        let mut params = NetworkParams { retention, ..super::rules::params() };
        let other = params.projects.get_mut(&super::rules::OTHER).unwrap();
        (other.group_messages_max, other.group_age_max_ms) = (100, 2_000_000_000);
        let mut node = Node::new(params);
        let document = "version = 1\n[aggregate]\nby = \"field\"\nfield = \"string(message.n)\"\ncount = 100\nage_ms = 2000000000\n";
        set(&mut node, Some(bundle(document, &[])), 0).unwrap();
        node.batch(NOW, &[n(1, 1), n(2, 1)]);
        // Other projects' groups, of a name and plain, are in the way no less.
        let plain = super::rules::of(super::rules::OTHER, 1, "{}");
        node.batch(NOW + 1, &[plain]);
        node.propose(NOW + after, &[], 1);
        assert!(tasks(&node).is_empty(), "it begins with the first message that is kept");
        node.propose(NOW + after, &[], 2);
        let closes = tasks(&node).len() == 1;
        if closes {
            node.propose(NOW + after + 1, &[], 4);
            assert_eq!(tasks(&node).len(), 2);
        }
        closes
    };
    let of = lockstep_types::Retention::default;
    assert!(!closes(of(), 1_000_000_000));
    assert!(!closes(lockstep_types::Retention { age_ms: 20_000, ..of() }, 19_999));
    assert!(closes(lockstep_types::Retention { age_ms: 20_000, ..of() }, 20_000));
    assert!(closes(lockstep_types::Retention { hard_bytes: 1 << 30, ..of() }, 1));
}

#[test]
fn payloads_of_tasks_cost_their_project_fuel() {
    let last = "with = \"last\" }\n";
    let reduced: String = (0..32).map(|k| format!("v{k} = {{ of = \"message.text\", {last}")).collect();
    let mut node = with(&format!("version = 1\n[aggregate]\ncount = 1\n[aggregate.reduce]\n{reduced}"));
    let message = |k: u64| {
        let text = "x".repeat(3_900);
        super::rules::of(PROJECT, 1, &format!("{{\"n\":{k},\"text\":\"{text}\"}}"))
    };
    let messages: Vec<_> = (0..100).map(message).collect();
    let said = words(&node.batch(NOW, &messages));
    // Each makes 125,000 bytes of the task's payload.
    let taken = said.iter().filter(|word| *word == "ok").count();
    assert!((10..40).contains(&taken), "{taken}: {said:?}");
}

/// Bytes that a batch stores of groups and of the messages in them.
fn group_bytes(writes: &[Write]) -> usize {
    let bytes = |write: &Write| match write {
        Write::Group(key, record) => key.encode().len() + record.as_ref().map_or(0, Bytes::len),
        Write::Waiting(_, waiting) => 8 + waiting.map_or(0, |waiting| waiting.encode().len()),
        _ => 0,
    };
    writes.iter().map(bytes).sum()
}

#[test]
fn a_message_costs_the_same_in_a_large_group_as_in_a_small_one() {
    let document = "version = 1\n[aggregate]\nby = \"project\"\ncount = 10000\nage_ms = 99999999\n";
    let mut plain = super::rules::params();
    let settings = plain.projects.get_mut(&PROJECT).unwrap();
    (settings.group_messages_max, settings.group_age_max_ms) = (10_000, 99_999_999);
    for mut node in [with(document), Node::new(plain)] {
        let written = |node: &mut Node, from: u64| {
            let messages = (from..from + 50).map(|k| n(1, k)).collect();
            let proposal = ProposedBatch { time_ms: TimeMs(NOW + 1_000 * from), messages, ..ProposedBatch::default() };
            group_bytes(&node.run(Command::Batch(proposal)).writes)
        };
        let of_few = written(&mut node, 100);
        let of_many = (3..190).map(|round| written(&mut node, round * 50)).max().unwrap();
        assert_eq!(node.ledger.open_groups().next().unwrap().1.messages.len(), 9_400);
        // Numbers in its record become longer.
        assert!(of_many <= of_few + 16, "{of_few} {of_many}");
    }
}

#[test]
fn a_message_that_makes_its_project_too_large_is_told_the_task_that_it_ended_in() {
    let mut node = Node::new(NetworkParams { open_groups_max: 1, ..params(100) });
    let from = |n: u8| Message { device: Address([n; 20]), ..message("x") };
    node.batch(NOW, &[from(1)]);
    let outcome = node.batch(NOW, &[from(2)]).remove(0);
    assert!(matches!(outcome, Outcome::Ordered { task_id: None, .. }), "{outcome:?}: the older one ended");
    assert_eq!(tasks(&node), [task("", None, &[1], "")]);
}

proptest! {
    /// Whatever the rules, the messages and the times are: every message is in one task or one open group, nodes that were
    /// started again have the same, and nothing whose time has come is left.
    #[test]
    fn every_message_is_packed_once_and_the_log_alone_decides(
        steps in proptest::collection::vec((0_u8..9, 0_u8..3, 0_u64..7, 0_u64..4, 0_u64..4_000), 1..40),
    ) {
        let documents = [
            HOURLY.replace("3600000", "5000"),
            HOURLY.replace("count = 100", "count = 3").replace("\"time\"\nhold_ms", "\"nonce\"\nhold_ms").replace("version = 1\n", "version = 1\nnonce = \"message.n\"\n"),
            "version = 1\n[aggregate]\nby = \"project\"\ncount = 4\nage_ms = 3000\n\
             [aggregate.reduce]\nx = { of = \"message\", with = \"merge\" }\n".to_owned(),
            "version = 1\n[aggregate]\nclose = \"message.n == 3\"\ncount = 9\n".to_owned(),
        ];
        let (mut one, mut two) = (node(), node());
        let mut time = NOW;
        for (what, device, number, ts, passed) in steps {
            time += passed;
            let mut told = Vec::new();
            for node in [&mut one, &mut two] {
                let from = node.ledger.head().height.0 + ts;
                let station = ["a", "b"][usize::from(device % 2)];
                let messages = [0, 2, 1].map(|k| reading(device, station, ts * 5_000 + k * 2_500, number + k + time));
                told.push(match what {
                    0 => {
                        let document = &documents[number as usize % documents.len()];
                        format!("{:?}", set(node, Some(bundle(document, &[])), from))
                    }
                    1 => format!("{:?}", set(node, None, from)),
                    _ => format!("{:?}", node.batch(time, &messages)),
                });
            }
            prop_assert_eq!(&told[0], &told[1]);
            if number % 3 == 0 {
                two.restart();
            }
            prop_assert_eq!(one.ledger.head(), two.ledger.head());
        }
        let head = one.ledger.head();
        for (key, group) in one.ledger.open_groups() {
            prop_assert!(group.due() > head.time_ms, "{key:?}");
        }
        let open = one.ledger.open_groups().flat_map(|(_, group)| group.messages.iter().map(|(sequence, _)| sequence.0));
        let mut all: Vec<u64> = tasks(&one).into_iter().flat_map(|task| task.2).chain(open).collect();
        all.sort_unstable();
        prop_assert_eq!(all, (1..head.next_sequence.0).collect::<Vec<_>>());
    }
}
