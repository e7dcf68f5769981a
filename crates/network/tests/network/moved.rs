//! Members that changed their address.

use crate::support::{Node, answer, connected, eventually, key, options, peer};
use lockstep_network::{NetworkError, Options, peer_id_of};
use lockstep_types::NodeId;

/// An address where nothing listens.
fn nowhere() -> String {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!("/ip4/127.0.0.1/tcp/{port}")
}

/// A member as everybody knew it before it moved.
fn with_members(n: u64, members: &[(u64, String)]) -> Options {
    let mut options = options(n);
    options.members = members.iter().map(|(n, address)| peer(*n, Some(address.clone()))).collect();
    options
}

async fn told(node: &Node, of: u64, address: &str) {
    eventually(&format!("{address} in what is known of node {of}"), || async {
        let known = node.handle.known_addresses();
        known.iter().any(|(n, all)| *n == NodeId(of) && all.iter().any(|a| a == address)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_moved_find_each_other_through_a_third() {
    // 1 and 3 moved and were restarted: each knows only the other's old address. 2 stayed.
    let two = Node::start(with_members(2, &[(1, nowhere()), (3, nowhere())])).await;
    let one = Node::start(with_members(1, &[(2, two.address()), (3, nowhere())])).await;
    let three = Node::start(with_members(3, &[(1, nowhere()), (2, two.address())])).await;
    for node in [&one, &two, &three] {
        connected(&node.handle, 2).await;
    }
    answer(&one.handle, 3).await;
    answer(&three.handle, 1).await;
    told(&two, 1, &one.address()).await;
    told(&two, 3, &three.address()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_without_a_known_address_are_found_as_well() {
    let two = Node::start(with_members(2, &[])).await;
    let moved = [Node::start(options(1)).await, Node::start(options(3)).await];
    for n in [1, 3] {
        two.knows(n, None).await;
    }
    for (node, other) in moved.iter().zip([3, 1]) {
        node.knows(2, Some(two.address())).await;
        node.knows(other, None).await;
    }
    answer(&moved[0].handle, 3).await;
    answer(&moved[1].handle, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_at_the_old_address_does_not_hide_the_new_one() {
    // 1 now has the address that 3 had, and the other way round.
    let (one, three) = (Node::start(options(1)).await, Node::start(options(3)).await);
    let two = Node::start(with_members(2, &[(1, three.address()), (3, one.address())])).await;
    for (node, other, address) in [(&one, 3, one.address()), (&three, 1, three.address())] {
        node.knows(2, Some(two.address())).await;
        node.knows(other, Some(address)).await;
    }
    answer(&one.handle, 3).await;
    answer(&three.handle, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_book_brings_back_what_was_known_before_a_restart() {
    let (one, two) = (Node::start(options(1)).await, Node::start(with_members(2, &[(1, nowhere())])).await);
    one.knows(2, Some(two.address())).await;
    told(&two, 1, &one.address()).await;
    let (book, old_address) = (two.handle.known_addresses(), one.address());
    two.stop().await;
    // Nobody else is there to ask, and 1 does not know the way back.
    one.knows(2, Some(nowhere())).await;
    let mut again = with_members(2, &[(1, nowhere())]);
    again.address_book = book;
    again.address_book.push((NodeId(7), vec!["not an address".into()]));
    let two = Node::start(again).await;
    answer(&two.handle, 1).await;
    let first = two.handle.known_addresses()[0].1[0].clone();
    assert_eq!(first, old_address, "where it answered comes first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bootstrap_addresses_are_tried_and_hold_for_members_that_come_later() {
    let one = Node::start(options(1)).await;
    one.knows(2, None).await;
    let mut configured = options(2);
    configured.bootstrap = vec![format!("{}/p2p/{}", one.address(), peer_id_of(&key(1).public()))];
    let two = Node::start(configured).await;
    two.knows(1, Some(nowhere())).await;
    answer(&two.handle, 1).await;
    let mut bad = options(3);
    bad.bootstrap = vec![one.address()];
    let error = lockstep_network::Network::bind(bad).await.err().unwrap();
    assert!(matches!(&error, NetworkError::Options(text) if text.contains("/p2p/")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_advertised_address_stands_for_the_listening_one() {
    let (one, elsewhere) = (Node::start(options(1)).await, "/dns4/one.example/tcp/9100");
    let mut mapped = options(2);
    mapped.advertise = vec![elsewhere.into()];
    let two = Node::start(mapped).await;
    one.knows(2, None).await;
    two.knows(1, Some(one.address())).await;
    told(&one, 2, elsewhere).await;
    let known = one.handle.known_addresses();
    assert!(known.iter().all(|(_, all)| !all.contains(&two.address())), "{known:?}");
}
