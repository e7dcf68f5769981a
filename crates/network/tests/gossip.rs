//! Gossip between real nodes on loopback.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use lockstep_network::Handle;
use lockstep_types::NodeId;
use support::{DEADLINE, Node, cluster, connected, options, peer};

/// Takes messages, each accepted, until one says `end`; counts how often each came.
async fn collect(node: &mut Node, end: &[u8]) -> HashMap<Bytes, u32> {
    let mut seen = HashMap::new();
    loop {
        let message = tokio::time::timeout(DEADLINE, node.inbox.next()).await.expect("gossip arrives").unwrap();
        assert!(message.from.is_some());
        message.ticket.accept();
        *seen.entry(message.bytes.clone()).or_default() += 1;
        if message.bytes == end {
            return seen;
        }
    }
}

/// Publishes fresh messages until each of `others` got one: subscriptions have arrived then.
async fn warm_up(from: &Handle, others: &mut [Node]) {
    for node in others {
        let mut n = 0_u64;
        loop {
            n += 1;
            from.publish(Bytes::from(format!("warm up {n} for {}", node.address())));
            if let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(50), node.inbox.next()).await {
                break;
            }
            assert!(n < 400, "no subscription arrived");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_reaches_all_others_once_each() {
    let mut nodes = cluster(4).await;
    let first = nodes[0].handle.clone();
    warm_up(&first, &mut nodes[1..]).await;
    for i in 0..200_u32 {
        let bytes = Bytes::from(format!("message {i}"));
        first.publish(bytes.clone());
        first.publish(bytes);
        // A queue that overflows would be right to drop; this test is about delivery.
        if i % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // Every copy that others pass on has to arrive before the end does.
    tokio::time::sleep(Duration::from_secs(1)).await;
    first.publish(Bytes::from_static(b"end"));
    for node in &mut nodes[1..] {
        let seen = collect(node, b"end").await;
        for i in 0..200_u32 {
            assert_eq!(seen.get(format!("message {i}").as_bytes()), Some(&1), "message {i}");
        }
        assert!(seen.values().all(|times| *times == 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_accepted_is_passed_on() {
    // A line: 1 and 3 know only 2.
    let mut nodes = [Node::start(options(1)).await, Node::start(options(2)).await, Node::start(options(3)).await];
    let middle = Some(nodes[1].address());
    for end in [0, 2] {
        nodes[end].handle.set_member(peer(2, middle.clone())).await.unwrap();
        nodes[1].handle.set_member(peer(end as u64 + 1, None)).await.unwrap();
    }
    connected(&nodes[1].handle, 2).await;
    let (first, second) = (nodes[0].handle.clone(), nodes[1].handle.clone());
    warm_up(&first, &mut nodes[1..2]).await;
    warm_up(&second, &mut nodes[2..]).await;
    let bad: [&[u8]; 3] = [b"ignored", b"rejected", b"dropped"];
    for text in bad.iter().chain([&&b"accepted"[..]]) {
        first.publish(Bytes::copy_from_slice(text));
    }
    loop {
        let message = tokio::time::timeout(DEADLINE, nodes[1].inbox.next()).await.unwrap().unwrap();
        match &message.bytes[..] {
            b"ignored" => message.ticket.ignore(),
            b"rejected" => message.ticket.reject(),
            b"accepted" => {
                assert_eq!(message.from, Some(NodeId(1)));
                message.ticket.accept();
                break;
            }
            _ => drop(message),
        }
    }
    let seen = collect(&mut nodes[2], b"accepted").await;
    assert!(bad.iter().all(|text| !seen.contains_key(*text)), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing_with_nobody_there_or_too_much_is_no_failure() {
    let alone = Node::start(options(1)).await;
    alone.handle.publish(Bytes::from_static(b"hello?"));
    alone.handle.publish(Bytes::from(vec![0; 2 << 20]));
    assert!(alone.handle.peers().is_empty());
    alone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_the_largest_size_passes() {
    let mut nodes = cluster(2).await;
    let first = nodes[0].handle.clone();
    warm_up(&first, &mut nodes[1..]).await;
    let large = vec![9; 1 << 20];
    first.publish(Bytes::from(large.clone()));
    let seen = collect(&mut nodes[1], &large).await;
    assert_eq!(seen.get(&large[..]), Some(&1));
}
