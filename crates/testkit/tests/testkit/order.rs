//! The checker that simulation and chaos share can fail: each way to break a promise is seen as that promise.

use std::time::Duration;

use bytes::Bytes;
use lockstep_testkit::order::{At, Call, Chain, Evidence, Promise, Row, Sighting, Store, Told, check};
use lockstep_types::{
    Address, Api, Batch, BatchHash, BatchHeader, Height, Message, MessageId, NetworkId, NodeId, OrderedMessage,
    ProjectId, Sequence, Signature, Task, TaskId, TaskNumber, TimeMs,
};

const BATCHES: u64 = 4;

fn at(seconds: u64) -> At {
    Duration::from_secs(seconds)
}

fn message(n: u64) -> Message {
    Message {
        api: Api::Apinode,
        project_id: ProjectId(7),
        project_version: "1".into(),
        data: Bytes::from(format!("reading {n}")),
        device: Address([1; 20]),
        nonce: Bytes::new(),
        evidence: lockstep_types::Evidence::Device(Signature([0; 65])),
        via: NodeId(0),
    }
}

fn id(n: u64) -> MessageId {
    MessageId(message(n).content_id().0)
}

fn task(n: u64) -> Task {
    Task {
        number: TaskNumber(n),
        id: TaskId([u8::try_from(n).expect("a few tasks"); 32]),
        project_id: ProjectId(7),
        project_version: "1".into(),
        device: Address([1; 20]),
        sequences: vec![Sequence(n)],
        ruled: None,
    }
}

/// Batch `n` has message `n` in task `n`.
fn chain(node: u64) -> Chain {
    let (mut batches, mut parent): (Vec<Batch>, _) = (Vec::new(), BatchHash::ZERO);
    for n in 1..=BATCHES {
        let header = BatchHeader {
            parent,
            first_sequence: Sequence(n),
            message_count: 1,
            first_task_number: TaskNumber(n),
            task_count: 1,
            ..BatchHeader::of_nothing(NetworkId([0; 32]), Height(n))
        };
        parent = header.hash();
        let messages = vec![OrderedMessage { id: id(n), message: message(n) }];
        batches.push(Batch { header, messages, tasks: vec![task(n)], next_set: None });
    }
    Chain { node: NodeId(node), batches, certificates: vec![], registry: String::new() }
}

/// Message `n` was submitted at 10 n, answered a second later, final a second after that, and published then.
fn evidence() -> Evidence {
    let call = |n| Call {
        content: message(n).content_id(),
        node: NodeId(1),
        invoked: at(10 * n),
        answered: Some(at(10 * n + 1)),
        told: if n % 2 == 0 {
            Told::Taken { message_id: Some(id(n)) }
        } else {
            Told::Ordered { sequence: Sequence(n), height: Height(n), message_id: id(n) }
        },
    };
    let hashes: Vec<BatchHash> = chain(1).batches.iter().map(|batch| batch.header.hash()).collect();
    let sighting = |n: u64| Sighting {
        at: at(10 * n + 2),
        node: NodeId(1),
        life: 1,
        height: Height(n),
        hash: hashes[usize::try_from(n).expect("a few batches") - 1],
        final_height: Height(n),
    };
    let row = |n| Row {
        at: at(10 * n + 3),
        number: TaskNumber(n),
        id: task(n).id,
        messages: vec![(Sequence(n), message(n).data.to_vec())],
    };
    Evidence {
        calls: (1..=BATCHES).map(call).collect(),
        chains: vec![chain(1), chain(2)],
        sightings: (1..=BATCHES).map(sighting).collect(),
        stores: vec![Store { name: "table".into(), once: true, rows: (1..=BATCHES).map(row).collect() }],
        first_task: TaskNumber(1),
        ..Evidence::default()
    }
}

#[test]
fn what_is_whole_passes() {
    let violations = check(&evidence());
    assert_eq!(violations.count, 0, "{violations}");
}

#[test]
fn each_broken_promise_is_seen() {
    type Break = (Promise, &'static str, fn(&mut Evidence));
    let ways: [Break; 17] = [
        (Promise::Kept, "an acknowledged message is gone", |e| e.calls[0].content = message(9).content_id()),
        (Promise::Kept, "a taken message is gone", |e| e.calls[1].content = message(9).content_id()),
        (Promise::Kept, "it is somewhere else", |e| {
            e.calls[0].told = Told::Ordered { sequence: Sequence(2), height: Height(2), message_id: id(1) };
        }),
        (Promise::Kept, "it has another name", |e| e.calls[1].told = Told::Taken { message_id: Some(id(1)) }),
        (Promise::Agreement, "a node has another batch", |e| {
            e.chains[1].batches[2].messages[0].message.via = NodeId(9)
        }),
        (Promise::Agreement, "a node had another batch", |e| e.sightings[1].hash = BatchHash([9; 32])),
        (Promise::Chain, "a batch hangs on another parent", |e| {
            e.chains[0].batches[2].header.parent = BatchHash([9; 32])
        }),
        (Promise::Chain, "a gap", |e| {
            for chain in &mut e.chains {
                chain.batches.remove(1);
            }
        }),
        (Promise::Once, "a message has two places", |e| {
            for chain in &mut e.chains {
                chain.batches[2].messages = chain.batches[1].messages.clone();
            }
        }),
        (Promise::Origin, "nobody submitted it", |e| {
            e.calls.remove(2);
        }),
        (Promise::Origin, "it was refused", |e| e.calls[2].told = Told::Refused),
        (Promise::Order, "what was acknowledged first stands behind", |e| e.calls[2].invoked = at(99)),
        (Promise::Forward, "a node went back", |e| e.sightings.swap(1, 2)),
        (Promise::Packing, "a message is in two tasks", |e| {
            for chain in &mut e.chains {
                chain.batches[2].tasks[0].sequences = vec![Sequence(2), Sequence(3)];
            }
        }),
        (Promise::Output, "a task is missing", |e| drop(e.stores[0].rows.remove(1))),
        (Promise::Output, "a task is there again", |e| {
            let again = e.stores[0].rows[1].clone();
            e.stores[0].rows.push(again);
        }),
        (Promise::Output, "a task came before it was final", |e| e.stores[0].rows[3].at = at(30)),
    ];
    for (promise, what, break_it) in ways {
        let mut broken = evidence();
        break_it(&mut broken);
        let violations = check(&broken);
        assert!(violations.show(&[promise]), "{what}: {violations}");
    }
}

#[test]
fn a_content_has_no_more_places_than_its_calls_allow_whatever_the_time_of_batches() {
    // When message 2 was submitted, in seconds, and whether it may have a second place where windows have 20 s.
    let table: [(&[u64], bool); 6] = [
        (&[20], false),
        (&[20, 39], false),
        (&[20, 40], true),
        (&[39, 20, 30], false),
        (&[40, 30, 20], true),
        (&[20, 30, 39, 45], true),
    ];
    for (submitted, may_be_twice) in table {
        let mut evidence = Evidence { window_ms: Some(20_000), ..evidence() };
        let content = message(2).content_id();
        evidence.calls.retain(|call| call.content != content);
        evidence.calls.extend(submitted.iter().map(|seconds| Call {
            content,
            node: NodeId(1),
            invoked: at(*seconds),
            answered: None,
            told: Told::Unknown,
        }));
        for chain in &mut evidence.chains {
            chain.batches[2].messages = chain.batches[1].messages.clone();
            chain.batches[2].header.time_ms = TimeMs(60_000);
        }
        let violations = check(&evidence);
        assert_eq!(violations.show(&[Promise::Once]), !may_be_twice, "{submitted:?}: {violations}");
        // A call that was refused made no place.
        let refused = evidence.calls.iter_mut().filter(|call| call.content == content).skip(1);
        refused.for_each(|call| call.told = Told::Refused);
        assert!(check(&evidence).show(&[Promise::Once]), "{submitted:?}");
    }
}

#[test]
fn a_reading_long_after_the_window_is_not_told_the_old_place() {
    // Message 1 was answered at 11 s; a window of 20 s, a margin of 6 s, and 10 s for clocks.
    for (window_ms, again, is_lost) in [(None, 999, false), (Some(20_000), 47, false), (Some(20_000), 48, true)] {
        let mut evidence = Evidence { window_ms, ..evidence() };
        let call = Call { invoked: at(again), answered: Some(at(again + 1)), ..evidence.calls[0].clone() };
        evidence.calls.push(call);
        let violations = check(&evidence);
        assert_eq!(violations.show(&[Promise::Once]), is_lost, "{again}: {violations}");
    }
}
