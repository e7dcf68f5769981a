//! Streams between real nodes on loopback.

use std::time::{Duration, Instant};

use crate::support::{CHANNELS, DEADLINE, Node, ask, cluster, connected, eventually, options, peer, refusal};
use bytes::Bytes;
use lockstep_network::{CallError, Channel, NetworkError};
use lockstep_types::{Epoch, Incarnation, NetworkId, NodeId};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_call_each_other() {
    let nodes = cluster(3).await;
    for (from, node) in (1..=3).zip(&nodes) {
        for to in (1..=3).filter(|to| *to != from) {
            for channel in CHANNELS {
                let answer = ask(&mut node.handle.client(NodeId(to), channel), b"ping").await.unwrap();
                assert_eq!(answer[..8], u64::to_be_bytes(from), "the service knows who asks");
                assert_eq!(&answer[8..], b"ping");
            }
        }
    }
    let peers = nodes[0].handle.peers();
    assert_eq!(peers.iter().map(|p| p.node).collect::<Vec<_>>(), [NodeId(2), NodeId(3)]);
    assert!(peers.iter().all(|p| p.address.as_deref().is_some_and(|a| a.starts_with("/ip4/127.0.0.1/tcp/"))));
    eventually("a round-trip time", || async { nodes[0].handle.peers()[0].rtt }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_sequential_calls_are_answered_in_order() {
    let nodes = cluster(2).await;
    let mut client = nodes[0].handle.client(NodeId(2), Channel::Raft);
    ask(&mut client, b"open").await.unwrap();
    let mut times = Vec::new();
    for i in 0..1_000_u64 {
        let head = Bytes::copy_from_slice(&i.to_be_bytes());
        let start = Instant::now();
        let answer = client.call(&[head.clone(), Bytes::from_static(&[7; 1016])], DEADLINE).await.unwrap();
        times.push(start.elapsed());
        assert_eq!((answer.len(), &answer[8..16]), (1032, &head[..]));
    }
    times.sort_unstable();
    let mean = times.iter().sum::<Duration>() / 1_000;
    println!("1 KiB calls: mean {mean:?}, median {:?}, p99 {:?}, max {:?}", times[500], times[990], times[999]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_8_mib_frame_passes_on_the_raft_channel_and_not_on_the_others() {
    let nodes = cluster(2).await;
    let part = Bytes::from(vec![5; 1 << 20]);
    let parts = vec![part; 8];
    let mut raft = nodes[0].handle.client(NodeId(2), Channel::Raft);
    for round in 0..5 {
        let start = Instant::now();
        let answer = raft.call(&parts, DEADLINE).await.unwrap();
        println!("8 MiB there and back, round {round}: {:?}", start.elapsed());
        assert_eq!(answer.len(), 8 + (8 << 20));
        assert!(answer[8..].iter().all(|b| *b == 5));
    }
    for channel in [Channel::Bundle, Channel::Control, Channel::Snapshot] {
        let mut client = nodes[0].handle.client(NodeId(2), channel);
        let error = client.call(&parts, DEADLINE).await.unwrap_err();
        assert_eq!(error, CallError::TooLarge { bytes: 8 << 20, max: 4 << 20 });
        // The answer is longer by the asker's id.
        let fits = [parts.concat()[..(4 << 20) - 8].to_vec().into()];
        assert_eq!(client.call(&fits, DEADLINE).await.unwrap().len(), 4 << 20);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiver_refuses_a_frame_above_its_limit_and_serves_the_next_stream() {
    let mut small = options(2);
    small.raft_bytes_max = 64 << 10;
    let (a, b) = (Node::start(options(1)).await, Node::start(small).await);
    b.knows(1, None).await;
    a.knows(2, Some(b.address())).await;
    connected(&a.handle, 1).await;
    let mut client = a.handle.client(NodeId(2), Channel::Raft);
    let large = Bytes::from(vec![0; 8 << 20]);
    let reason = match client.call(&[large], DEADLINE).await {
        Err(CallError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert!(reason.contains("65536"), "{reason}");
    assert!(ask(&mut client, b"small").await.is_ok());
    // Its answer would be larger than the limit by the 8 bytes of the asker's id.
    let error = client.call(&[Bytes::from(vec![0; 64 << 10])], DEADLINE).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(reason) if reason.contains("answer")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_another_network_or_epoch_is_refused() {
    let one = Node::start(options(1)).await;
    one.knows(2, None).await;
    // The same first 16 hex digits, so that the protocol ids agree and only Hello can tell.
    let mut near = crate::support::NETWORK.0;
    near[31] ^= 1;
    let changes: [(&str, NetworkId, Epoch); 3] = [
        ("is not this network", NetworkId(near), Epoch(0)),
        ("is not this network's epoch", crate::support::NETWORK, Epoch(1)),
        ("another network", NetworkId([8; 32]), Epoch(0)),
    ];
    for (word, network, epoch) in changes {
        let mut wrong = options(2);
        (wrong.network, wrong.epoch) = (network, epoch);
        let two = Node::start(wrong).await;
        two.knows(1, Some(one.address())).await;
        let reason = refusal(&mut two.handle.client(NodeId(1), Channel::Raft)).await;
        assert!(reason.contains(word), "{reason}");
        two.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_another_store_is_refused_in_both_directions() {
    let one = Node::start(options(1)).await;
    one.knows(2, None).await;
    let mut replaced = options(2);
    replaced.incarnation = Incarnation([99; 16]);
    let two = Node::start(replaced).await;
    two.knows(1, Some(one.address())).await;
    let inbound = refusal(&mut two.handle.client(NodeId(1), Channel::Raft)).await;
    assert!(inbound.contains("incarnation") && inbound.contains("6363"), "{inbound}");
    let outbound = refusal(&mut one.handle.client(NodeId(2), Channel::Raft)).await;
    assert!(outbound.contains("incarnation"), "{outbound}");
    // Once the member list has the new store, the two talk.
    let mut admitted = peer(2, None);
    admitted.incarnation = Incarnation([99; 16]);
    one.handle.set_member(admitted).await.unwrap();
    let two = &two;
    eventually("a call of the admitted store", || async move {
        ask(&mut two.handle.client(NodeId(1), Channel::Raft), b"x").await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_is_reconnected_within_two_seconds() {
    let mut nodes = cluster(3).await;
    let two = nodes.remove(1);
    let address = two.address();
    let mut client = nodes[0].handle.client(NodeId(2), Channel::Raft);
    ask(&mut client, b"before").await.unwrap();
    two.stop().await;
    connected(&nodes[0].handle, 1).await;
    // The others dial it in vain, so their pauses have grown.
    let port: u16 = address.rsplit('/').next().unwrap().parse().unwrap();
    let in_vain = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    for _ in 0..4 {
        tokio::time::timeout(DEADLINE, in_vain.accept()).await.expect("the others dial").unwrap();
    }
    drop(in_vain);
    let mut again = options(2);
    again.listen = vec![address];
    // It knows nobody's address: the others have to find it by themselves.
    again.members = vec![peer(1, None), peer(3, None)];
    let start = Instant::now();
    let two = Node::start(again).await;
    connected(&two.handle, 2).await;
    connected(&nodes[0].handle, 2).await;
    println!("reconnected after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(ask(&mut client, b"after").await.is_ok(), "the old client goes on with a new stream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_port_is_one_clear_sentence() {
    let one = Node::start(options(1)).await;
    let mut second = options(2);
    second.listen = vec![one.address()];
    let error = lockstep_network::Network::bind(second).await.err().unwrap();
    let port = one.address().rsplit('/').next().unwrap().to_owned();
    let text = error.to_string();
    assert!(matches!(error, NetworkError::Listen { .. }));
    assert_eq!(text, format!("cannot listen on {}: port {port} is in use by another program", one.address()));
    let mut bad = options(2);
    bad.listen = vec!["127.0.0.1:9100".into()];
    assert!(matches!(lockstep_network::Network::bind(bad).await, Err(NetworkError::Options(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_to_a_dead_member_fails_at_once() {
    let mut nodes = cluster(2).await;
    let two = nodes.remove(1);
    let mut client = nodes[0].handle.client(NodeId(2), Channel::Raft);
    ask(&mut client, b"open").await.unwrap();
    two.stop().await;
    connected(&nodes[0].handle, 0).await;
    for mut client in [client, nodes[0].handle.client(NodeId(9), Channel::Raft)] {
        let start = Instant::now();
        assert_eq!(ask(&mut client, b"x").await, Err(CallError::Unreachable(client.target())));
        assert!(start.elapsed() < Duration::from_millis(50), "{:?}", start.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_under_way_ends_when_its_member_dies() {
    let mut nodes = cluster(2).await;
    let two = nodes.remove(1);
    let mut client = nodes[0].handle.client(NodeId(2), Channel::Raft);
    let call = tokio::spawn(async move { ask(&mut client, b"sleep 15000").await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let start = Instant::now();
    two.stop().await;
    assert!(matches!(call.await.unwrap(), Err(CallError::Closed(_))));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_never_mixed_up_after_timeouts_and_dropped_calls() {
    let nodes = cluster(2).await;
    let mut client = nodes[0].handle.client(NodeId(2), Channel::Raft);
    for i in 0..10_u64 {
        let late = client.call(&[Bytes::from_static(b"sleep 60")], Duration::from_millis(20)).await;
        assert_eq!(late, Err(CallError::Timeout(Duration::from_millis(20))));
        let request = format!("after timeout {i}");
        assert_eq!(&ask(&mut client, request.as_bytes()).await.unwrap()[8..], request.as_bytes());
        let slow = [Bytes::from_static(b"sleep 50")];
        tokio::select! {
            _ = client.call(&slow, DEADLINE) => panic!("too fast"),
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
        let request = format!("after drop {i}");
        assert_eq!(&ask(&mut client, request.as_bytes()).await.unwrap()[8..], request.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_one_member_are_bounded() {
    let nodes = cluster(2).await;
    let mut clients = Vec::new();
    for _ in 0..lockstep_network::limits::INBOUND_STREAMS_PER_PEER_MAX {
        let mut client = nodes[0].handle.client(NodeId(2), Channel::Raft);
        ask(&mut client, b"x").await.unwrap();
        clients.push(client);
    }
    let mut one_more = nodes[0].handle.client(NodeId(2), Channel::Raft);
    assert!(matches!(ask(&mut one_more, b"x").await, Err(CallError::Refused(reason)) if reason.contains("streams")));
    assert!(ask(&mut nodes[0].handle.client(NodeId(2), Channel::Bundle), b"x").await.is_ok(), "channels apart");
    clients.pop();
    let handle = &nodes[0].handle;
    eventually("a stream in the freed place", || async move {
        ask(&mut handle.client(NodeId(2), Channel::Raft), b"x").await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_is_cut_off_and_may_come_back() {
    let nodes = cluster(2).await;
    nodes[0].handle.remove_member(NodeId(2)).await.unwrap();
    let removed = &nodes[1].handle;
    eventually("a refusal", || async move {
        let result = ask(&mut removed.client(NodeId(1), Channel::Raft), b"x").await;
        result.is_err_and(|error| error.to_string().contains("not a member there")).then_some(())
    })
    .await;
    assert!(nodes[0].handle.peers().is_empty());
    nodes[0].handle.set_member(peer(2, Some(nodes[1].address()))).await.unwrap();
    let two = &nodes[1].handle;
    eventually("a call of the member that came back", || async move {
        ask(&mut two.client(NodeId(1), Channel::Raft), b"x").await.ok()
    })
    .await;
}

/// Forwards connections to `target` until `silent` says so; then keeps those that it has open without a word, and
/// forwards new ones.
async fn proxy(target: String, silent: tokio::sync::watch::Receiver<bool>) -> String {
    let port: u16 = target.rsplit('/').next().unwrap().parse().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("/ip4/127.0.0.1/tcp/{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut silent = silent.clone();
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                silent.mark_unchanged();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = silent.changed() => tokio::time::sleep(Duration::from_secs(60)).await,
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_fell_silent_is_given_up_and_replaced() {
    let (a, b) = (Node::start(options(1)).await, Node::start(options(2)).await);
    let (silence, silent) = tokio::sync::watch::channel(false);
    let address = proxy(b.address(), silent).await;
    b.knows(1, None).await;
    a.knows(2, Some(address)).await;
    connected(&a.handle, 1).await;
    let mut client = a.handle.client(NodeId(2), Channel::Raft);
    ask(&mut client, b"before").await.unwrap();
    silence.send(true).unwrap();
    let start = Instant::now();
    let timeout = Duration::from_millis(100);
    let error = client.call(&[Bytes::from(vec![0; 8 << 20])], timeout).await.unwrap_err();
    assert_eq!(error, CallError::Timeout(timeout), "buffers are full now, so closing cannot be orderly");
    // Whether it was unconnected in between is too short a moment to wait for; that calls work again is what counts.
    let mut failed = 0;
    while client.call(&[Bytes::from_static(b"after")], timeout).await.is_err() {
        failed += 1;
        assert!(start.elapsed() < Duration::from_secs(15), "{failed} calls failed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("answered after {:?}, {failed} calls failed before", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_found_by_name_at_a_node_that_listens_on_every_interface() {
    let mut everywhere = options(2);
    everywhere.listen = vec!["/ip4/0.0.0.0/tcp/0".into()];
    let (a, b) = (Node::start(options(1)).await, Node::start(everywhere).await);
    let port = b.address().rsplit('/').next().unwrap().to_owned();
    b.knows(1, None).await;
    a.knows(2, Some(format!("/dns4/localhost/tcp/{port}"))).await;
    connected(&a.handle, 1).await;
    assert!(ask(&mut a.handle.client(NodeId(2), Channel::Raft), b"x").await.is_ok());
}
