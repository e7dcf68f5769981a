//! Members that may not speak any more: restored from an older copy, replaced, removed, or still starting.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::{DEADLINE, Node, answer, ask, cluster, connected, eventually, options, refusal};
use bytes::Bytes;
use lockstep_network::{CallError, Channel};
use lockstep_types::{Incarnation, NodeId};

/// Two members; the second is restored from a copy whose log ends at 90 though it acknowledged 100.
async fn rolled_back() -> [Node; 2] {
    let (one, two) = (Node::start(options(1)).await, Node::start(options(2)).await);
    one.log.last.store(100, Ordering::SeqCst);
    one.acknowledged(2, 100);
    two.log.last.store(90, Ordering::SeqCst);
    one.knows(2, None).await;
    two.knows(1, Some(one.address())).await;
    one.knows(2, Some(two.address())).await;
    [one, two]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolled_back_member_is_refused_on_both_sides_with_the_way_out() {
    let [one, two] = rolled_back().await;
    let inbound = refusal(&mut two.handle.client(NodeId(1), Channel::Raft)).await;
    let outbound = refusal(&mut one.handle.client(NodeId(2), Channel::Control)).await;
    assert_eq!(inbound, outbound);
    assert_eq!(
        inbound,
        "node 2's log ends at 90, but it acknowledged 100: its disk was restored from an older copy; join again under a \
         new node id (`lockstep init --join` in a new home)"
    );
    assert_eq!(two.handle.refusals(), [(NodeId(1), inbound)]);
    assert!(one.handle.refusals().is_empty(), "who refuses is not refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolled_back_member_that_only_listens_learns_of_it_too() {
    let [one, two] = rolled_back().await;
    refusal(&mut one.handle.client(NodeId(2), Channel::Raft)).await;
    let (node, reason) = eventually("the refusal", || async { two.handle.refusals().pop() }).await;
    assert!(node == NodeId(1) && reason.contains("older copy"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_forgotten_when_a_stream_begins_again_or_its_member_goes() {
    let [one, two] = rolled_back().await;
    refusal(&mut two.handle.client(NodeId(1), Channel::Raft)).await;
    assert_eq!(two.handle.refusals().len(), 1);
    two.log.last.store(100, Ordering::SeqCst);
    answer(&two.handle, 1).await;
    assert!(two.handle.refusals().is_empty());
    answer(&one.handle, 2).await;
    two.log.last.store(99, Ordering::SeqCst);
    refusal(&mut two.handle.client(NodeId(1), Channel::Bundle)).await;
    assert_eq!(two.handle.refusals().len(), 1);
    two.handle.remove_member(NodeId(1)).await.unwrap();
    eventually("no refusals", || async { two.handle.refusals().is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_store_knows_that_it_is_refused() {
    let one = Node::start(options(1)).await;
    one.knows(2, None).await;
    let mut wiped = options(2);
    wiped.incarnation = Incarnation([99; 16]);
    let two = Node::start(wiped).await;
    two.knows(1, Some(one.address())).await;
    let reason = refusal(&mut two.handle.client(NodeId(1), Channel::Raft)).await;
    assert!(reason.contains("its store was lost or replaced"), "{reason}");
    assert_eq!(two.handle.refusals(), [(NodeId(1), reason)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_under_way_never_make_a_good_log_look_too_short() {
    let nodes = cluster(2).await;
    let stop = tokio_util::sync::CancellationToken::new();
    // Each node's log grows as fast as can be, and the other knows of it at once.
    let mut growing = Vec::new();
    for (own, other) in [(0, 1), (1, 0)] {
        let (log, knows, stop) = (nodes[own].log.clone(), nodes[other].log.clone(), stop.clone());
        growing.push(std::thread::spawn(move || {
            while !stop.is_cancelled() {
                let index = log.last.fetch_add(1, Ordering::SeqCst) + 1;
                knows.acknowledged.lock().unwrap().insert(NodeId(own as u64 + 1), index);
                std::thread::yield_now();
            }
        }));
    }
    for i in 0..200 {
        let mut client = nodes[i % 2].handle.client(NodeId(2 - (i as u64 % 2)), Channel::Raft);
        ask(&mut client, b"a new stream").await.unwrap();
    }
    stop.cancel();
    for thread in growing {
        thread.join().unwrap();
    }
    assert!(nodes.iter().all(|node| node.handle.refusals().is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_its_log_neither_calls_nor_answers() {
    let (one, two) = (Node::start(options(1)).await, Node::start_without_log(options(2)).await);
    two.knows(1, None).await;
    one.knows(2, Some(two.address())).await;
    connected(&two.handle, 1).await;
    let error = ask(&mut two.handle.client(NodeId(1), Channel::Raft), b"x").await;
    assert_eq!(error, Err(CallError::Unreachable(NodeId(1))));
    let reason = refusal(&mut one.handle.client(NodeId(2), Channel::Raft)).await;
    assert_eq!(reason, "this node is still starting");
    assert!(one.handle.refusals().is_empty(), "that is no fault of this node");
    two.handle.set_log_view(two.log.clone());
    answer(&two.handle, 1).await;
    answer(&one.handle, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_is_cut_off_also_on_streams_that_are_open() {
    let nodes = cluster(3).await;
    let mut client = nodes[1].handle.client(NodeId(1), Channel::Raft);
    ask(&mut client, b"before").await.unwrap();
    let (begins, begun) = tokio::sync::oneshot::channel();
    let under_way = tokio::spawn(async move {
        begins.send(()).unwrap();
        let late = client.call(&[Bytes::from_static(b"sleep 15000")], DEADLINE).await;
        (late, client)
    });
    begun.await.unwrap();
    // Until the request is on its way; it is answered long after that.
    tokio::time::sleep(Duration::from_millis(200)).await;
    nodes[0].handle.remove_member(NodeId(2)).await.unwrap();
    let (late, mut client) = tokio::time::timeout(Duration::from_secs(10), under_way).await.unwrap().unwrap();
    assert!(matches!(late, Err(CallError::Closed(_))), "{late:?}");
    // It dials again, but only as a stranger.
    let again = eventually("a refusal", || {
        let mut client = nodes[1].handle.client(NodeId(1), Channel::Raft);
        async move {
            match ask(&mut client, b"after").await {
                Err(CallError::Refused(reason)) => Some(reason),
                Err(_) => None,
                Ok(_) => panic!("it was served"),
            }
        }
    })
    .await;
    assert!(again.contains("not a member there"), "{again}");
    assert!(ask(&mut client, b"after").await.is_err());
    answer(&nodes[1].handle, 3).await;
    answer(&nodes[0].handle, 3).await;
}
