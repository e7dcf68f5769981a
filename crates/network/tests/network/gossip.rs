//! Gossip between real nodes on loopback.

use std::collections::HashMap;

use crate::support::{DEADLINE, Node, cluster, connected, options, peer, warm_up};
use bytes::Bytes;
use lockstep_types::NodeId;

/// Takes messages, each accepted, until all of `wanted` came; counts how often each came in `seen`.
async fn collect(node: &mut Node, wanted: &[Bytes], seen: &mut HashMap<Bytes, u32>) {
    while !wanted.iter().all(|bytes| seen.contains_key(bytes)) {
        let message = tokio::time::timeout(DEADLINE, node.inbox.next()).await.expect("gossip arrives").unwrap();
        assert!(message.from.is_some());
        message.ticket.accept();
        *seen.entry(message.bytes).or_default() += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_reaches_all_others_once_each() {
    let mut nodes = cluster(4).await;
    let first = nodes[0].handle.clone();
    warm_up(&first, &mut nodes[1..]).await;
    let mut seen = vec![HashMap::new(); 3];
    // In portions: a queue that overflows would be right to drop, and this test is about delivery.
    for portion in 0..4_u32 {
        let messages: Vec<Bytes> = (0..50).map(|i| format!("message {portion}.{i}").into()).collect();
        for bytes in &messages {
            first.publish(bytes.clone());
            first.publish(bytes.clone());
        }
        for (node, seen) in nodes[1..].iter_mut().zip(&mut seen) {
            collect(node, &messages, seen).await;
        }
    }
    // Each node's last word follows the copies that it passed on.
    let ends: Vec<Bytes> = (0..4).map(|n| format!("end of node {n}").into()).collect();
    for (node, end) in nodes.iter().zip(&ends) {
        node.handle.publish(end.clone());
    }
    for (n, (node, seen)) in (1..).zip(nodes[1..].iter_mut().zip(&mut seen)) {
        let of_others: Vec<Bytes> =
            ends.iter().enumerate().filter(|(e, _)| *e != n).map(|(_, end)| end.clone()).collect();
        collect(node, &of_others, seen).await;
        assert_eq!(seen.keys().filter(|bytes| bytes.starts_with(b"message")).count(), 200);
        let repeated: Vec<_> = seen.iter().filter(|(_, times)| **times != 1).collect();
        assert!(repeated.is_empty(), "{repeated:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_accepted_is_passed_on() {
    // A line: 1 and 3 know only 2.
    let mut nodes = [Node::start(options(1)).await, Node::start(options(2)).await, Node::start(options(3)).await];
    let middle = Some(nodes[1].address());
    for end in [0, 2] {
        nodes[1].knows(end as u64 + 1, None).await;
        nodes[end].knows(2, middle.clone()).await;
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
    let mut seen = HashMap::new();
    collect(&mut nodes[2], &[Bytes::from_static(b"accepted")], &mut seen).await;
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
    let large = [Bytes::from(vec![9; 1 << 20])];
    first.publish(large[0].clone());
    collect(&mut nodes[1], &large, &mut HashMap::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_follows_members_that_come_go_and_come_back() {
    let mut nodes = cluster(2).await;
    let mut late = [Node::start(options(3)).await];
    let first = nodes[0].handle.clone();
    for round in 0..2 {
        late[0].handle.set_member(peer(1, Some(nodes[0].address()))).await.unwrap();
        nodes[0].handle.set_member(peer(3, None)).await.unwrap();
        warm_up(&first, &mut late).await;
        first.remove_member(NodeId(3)).await.unwrap();
        connected(&late[0].handle, 0).await;
        let word = [Bytes::from(format!("round {round} is over"))];
        first.publish(word[0].clone());
        collect(&mut nodes[1], &word, &mut HashMap::new()).await;
        late[0].handle.remove_member(NodeId(1)).await.unwrap();
        connected(&late[0].handle, 0).await;
        while let Some(Some(message)) = futures::FutureExt::now_or_never(late[0].inbox.next()) {
            assert_ne!(message.bytes, word[0], "a removed member gets no gossip");
        }
    }
}
