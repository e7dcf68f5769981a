//! Those who are not members: they may ask to join, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::{DEADLINE, Node, answer, ask, cluster, connected, eventually, key, options, peer, warm_up};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use libp2p::swarm::{SwarmEvent, dial_opts::DialOpts, dummy};
use libp2p::{Multiaddr, SwarmBuilder, identity, noise, tcp, yamux};
use lockstep_network::limits::{
    JOIN_ANSWER_BYTES_MAX, JOIN_INTERVAL, JOIN_REQUEST_BYTES_MAX, JOIN_STREAMS_MAX, STRANGER_TIME_MAX, STRANGERS_MAX,
};
use lockstep_network::{AskError, CallError, Channel, JoinService, ask as ask_to_join, peer_id_of};
use lockstep_types::{NodeId, PublicKey, SigningKey};
use tokio::sync::watch;

/// Answers with the asker's key and the request; "large" gets more than an answer may hold, "sleep" waits for long and
/// is counted.
#[derive(Default)]
struct Door {
    sleeping: Arc<AtomicU64>,
}

impl JoinService for Door {
    async fn handle(&self, from: PublicKey, request: Bytes) -> Bytes {
        match &request[..] {
            b"large" => vec![0; JOIN_ANSWER_BYTES_MAX as usize + 1].into(),
            b"largest" => vec![0; JOIN_ANSWER_BYTES_MAX as usize].into(),
            b"sleep" => {
                self.sleeping.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(60)).await;
                Bytes::new()
            }
            _ => [&from.compressed()[..], &request].concat().into(),
        }
    }
}

/// Keys that nobody has: each asks for the first time.
fn fresh_key() -> SigningKey {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut secret = [9; 32];
    secret[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::SeqCst).to_be_bytes());
    SigningKey::from_bytes(secret).unwrap()
}

async fn request(key: &SigningKey, node: &Node, bytes: &'static [u8]) -> Result<Bytes, AskError> {
    ask_to_join(key, &node.address(), Bytes::from_static(bytes), DEADLINE).await
}

/// A connection of a stranger that wants nothing; says when it has closed, and is dropped with the receiver.
async fn hang_around(key: identity::Keypair, node: &Node) -> watch::Receiver<Option<Closed>> {
    let mut swarm = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_tcp(tcp::Config::new(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| dummy::Behaviour)
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(600)))
        .build();
    let address: Multiaddr = node.address().parse().unwrap();
    swarm.dial(DialOpts::unknown_peer_id().address(address).build()).unwrap();
    let (state, mut opened) = watch::channel(None);
    let closed = opened.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = state.closed() => return,
                event = swarm.select_next_some() => match event {
                    SwarmEvent::ConnectionEstablished { .. } => drop(state.send(Some(Closed(false)))),
                    SwarmEvent::ConnectionClosed { .. } => drop(state.send(Some(Closed(true)))),
                    _ => {}
                }
            }
        }
    });
    tokio::time::timeout(DEADLINE, opened.wait_for(Option::is_some)).await.unwrap().unwrap();
    closed
}

#[derive(Clone, Copy)]
struct Closed(bool);

fn is_closed(state: &Option<Closed>) -> bool {
    matches!(state, Some(Closed(true)))
}

async fn closes(connection: &mut watch::Receiver<Option<Closed>>, within: Duration) {
    tokio::time::timeout(within, connection.wait_for(is_closed)).await.expect("it is closed in time").unwrap();
}

fn secp256k1() -> identity::Keypair {
    identity::Keypair::generate_secp256k1()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_answered_and_known_by_its_key() {
    let node = Node::start(options(1)).await;
    let key = fresh_key();
    let early = request(&key, &node, b"hello").await;
    assert_eq!(early, Err(AskError::NotServed(node.address())), "not before it is served");
    node.handle.serve_join(Door::default()).unwrap();
    assert!(node.handle.serve_join(Door::default()).is_err(), "served once");
    let answer = request(&key, &node, b"hello").await.unwrap();
    assert_eq!(answer, [&key.public().compressed()[..], b"hello"].concat());
    let named = format!("{}/p2p/{}", node.address(), peer_id_of(&crate::support::key(1).public()));
    assert!(ask_to_join(&fresh_key(), &named, Bytes::new(), DEADLINE).await.is_ok());
    assert_eq!(request(&fresh_key(), &node, b"largest").await.unwrap().len() as u64, JOIN_ANSWER_BYTES_MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_in_vain_is_told_what_to_do() {
    let node = Node::start(options(1)).await;
    node.handle.serve_join(Door::default()).unwrap();
    let say = |result: Result<Bytes, AskError>| result.unwrap_err().to_string();
    let expect = |text: String, words: &[&str]| {
        println!("{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    let elsewhere = async |address: &str| say(ask_to_join(&fresh_key(), address, Bytes::new(), DEADLINE).await);
    expect(elsewhere("127.0.0.1:9100").await, &["not a multiaddress", "/ip4/10.0.0.1/tcp/9100"]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    expect(elsewhere(&format!("/ip4/127.0.0.1/tcp/{free}")).await, &["refused", "Check", "firewall"]);
    expect(elsewhere("/dns4/nobody.invalid/tcp/9100").await, &["no node can be reached at /dns4/nobody.invalid"]);
    let wrong = format!("{}/p2p/{}", node.address(), peer_id_of(&key(66).public()));
    expect(elsewhere(&wrong).await, &["has the key", &peer_id_of(&key(66).public()), "operator"]);
    let large = Bytes::from(vec![0; JOIN_REQUEST_BYTES_MAX as usize + 1]);
    expect(say(ask_to_join(&fresh_key(), &node.address(), large, DEADLINE).await), &["16384"]);
    expect(say(request(&fresh_key(), &node, b"large").await), &["refused", "answer", "1048576"]);
    let late = ask_to_join(&fresh_key(), &node.address(), "sleep".into(), Duration::from_secs(1)).await;
    expect(say(late), &["did not answer within 1 s"]);
    // Somebody accepts and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("/ip4/127.0.0.1/tcp/{}", silent.local_addr().unwrap().port());
    expect(elsewhere(&address).await, &["no node can be reached", "Check"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_asks_once_a_second() {
    let node = Node::start(options(1)).await;
    node.handle.serve_join(Door::default()).unwrap();
    let key = fresh_key();
    let (start, mut answered, mut refused) = (Instant::now(), 0, 0);
    while answered < 3 {
        match request(&key, &node, b"again").await {
            Ok(_) => answered += 1,
            Err(AskError::Refused { reason, .. }) => {
                assert!(reason.contains("once a second") || reason.contains("one request a second"), "{reason}");
                if refused == 0 {
                    request(&fresh_key(), &node, b"another").await.expect("other keys are served");
                }
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(start.elapsed() >= JOIN_INTERVAL * 2 && refused > 0, "{:?}, {refused} refused", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_are_served_at_a_time() {
    let (node, door) = (Node::start(options(1)).await, Door::default());
    let sleeping = door.sleeping.clone();
    node.handle.serve_join(door).unwrap();
    let mut slow = Vec::new();
    for _ in 0..JOIN_STREAMS_MAX {
        let (key, address) = (fresh_key(), node.address());
        slow.push(tokio::spawn(async move { ask_to_join(&key, &address, "sleep".into(), DEADLINE).await }));
    }
    eventually("all places are taken", || async {
        (sleeping.load(Ordering::SeqCst) == JOIN_STREAMS_MAX as u64).then_some(())
    })
    .await;
    let busy = request(&fresh_key(), &node, b"x").await.unwrap_err().to_string();
    assert!(busy.contains("too many ask"), "{busy}");
    // Ten seconds later the slow ones are given up.
    for slow in slow {
        assert!(matches!(slow.await.unwrap(), Err(AskError::Closed { .. })));
    }
    assert!(request(&fresh_key(), &node, b"x").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_no_other_stream_and_no_gossip() {
    let mut nodes = cluster(2).await;
    nodes[0].handle.serve_join(Door::default()).unwrap();
    // It claims to be node 2 in every respect but has another key.
    let mut claims = options(2);
    claims.key = key(66);
    let mut stranger = Node::start(claims).await;
    stranger.handle.set_member(peer(1, Some(nodes[0].address()))).await.unwrap();
    connected(&stranger.handle, 1).await;
    let first = nodes[0].handle.clone();
    warm_up(&first, &mut nodes[1..]).await;
    for channel in crate::support::CHANNELS {
        let error = ask(&mut stranger.handle.client(NodeId(1), channel), b"let me in").await.unwrap_err();
        assert!(matches!(&error, CallError::Refused(reason) if reason.contains("does not serve")), "{error}");
        assert!(ask(&mut nodes[1].handle.client(NodeId(1), channel), b"member").await.is_ok());
    }
    assert!(stranger.handle.refusals().is_empty(), "nobody refused it as a member");
    for i in 0..20 {
        stranger.handle.publish(Bytes::from(format!("stranger {i}")));
        first.publish(Bytes::from(format!("member {i}")));
    }
    let mut seen = 0;
    while seen < 20 {
        let message = tokio::time::timeout(DEADLINE, nodes[1].inbox.next()).await.unwrap().unwrap();
        assert!(!message.bytes.starts_with(b"stranger"));
        seen += u32::from(message.bytes.starts_with(b"member"));
        message.ticket.accept();
    }
    assert!(request(&key(66), &nodes[0], b"may I").await.is_ok(), "but it may ask");
    assert!(nodes[0].inbox.next().now_or_never().is_none());
    assert!(stranger.inbox.next().now_or_never().is_none());
    assert_eq!(first.peers().iter().filter(|peer| peer.connected).count(), 1, "it passes for nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_have_few_places_for_a_short_time_and_members_have_their_own() {
    let node = Node::start(options(1)).await;
    node.handle.serve_join(Door::default()).unwrap();
    let start = Instant::now();
    let mut others = Vec::new();
    for _ in 0..=STRANGERS_MAX {
        others.push(hang_around(secp256k1(), &node).await);
    }
    assert!(start.elapsed() < STRANGER_TIME_MAX / 2, "a slow machine");
    // Not always the last: a connection stands on this side a little before the node counts it.
    eventually("one too many is turned away", || async {
        others.iter().any(|other| is_closed(&other.borrow())).then_some(())
    })
    .await;
    others.retain(|other| !is_closed(&other.borrow()));
    assert_eq!(others.len(), STRANGERS_MAX);
    let turned_away = request(&fresh_key(), &node, b"me too").await.unwrap_err();
    assert!(matches!(turned_away, AskError::Closed { .. }), "{turned_away}");
    assert!(!others.iter().any(|other| is_closed(&other.borrow())), "the others stay");
    let member = Node::start(options(2)).await;
    node.knows(2, None).await;
    member.knows(1, Some(node.address())).await;
    answer(&member.handle, 1).await;
    answer(&node.handle, 2).await;
    for other in &mut others {
        closes(other, STRANGER_TIME_MAX + DEADLINE).await;
    }
    assert!(start.elapsed() >= STRANGER_TIME_MAX);
    assert!(request(&fresh_key(), &node, b"me too").await.is_ok(), "places are free again");
    answer(&member.handle, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_another_kind_is_turned_away() {
    let node = Node::start(options(1)).await;
    closes(&mut hang_around(identity::Keypair::generate_ed25519(), &node).await, DEADLINE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_that_becomes_a_member_gets_streams_and_gossip() {
    let mut nodes = cluster(2).await;
    let mut newcomer = [Node::start(options(3)).await];
    for (n, node) in (1..).zip(&nodes) {
        newcomer[0].handle.set_member(peer(n, Some(node.address()))).await.unwrap();
    }
    connected(&newcomer[0].handle, 2).await;
    let mut client = newcomer[0].handle.client(NodeId(1), Channel::Control);
    assert!(matches!(ask(&mut client, b"early").await, Err(CallError::Refused(_))));
    let start = Instant::now();
    for node in &nodes {
        node.handle.set_member(peer(3, None)).await.unwrap();
    }
    for n in [1, 2] {
        answer(&newcomer[0].handle, n).await;
    }
    assert!(start.elapsed() < STRANGER_TIME_MAX / 2, "not only when a stranger's time is over");
    for node in &nodes {
        connected(&node.handle, 2).await;
        answer(&node.handle, 3).await;
    }
    let (first, third) = (nodes[0].handle.clone(), newcomer[0].handle.clone());
    warm_up(&first, &mut newcomer).await;
    warm_up(&third, &mut nodes).await;
}
