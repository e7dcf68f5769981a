//! Gateways that are admitted, and those that are not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{DEADLINE, Node, eventually, key, options};
use bytes::Bytes;
use futures::future::join_all;
use lockstep_network::limits::{
    GATEWAY_ANSWER_BYTES_MAX, GATEWAY_REQUEST_BYTES_MAX, GATEWAY_STREAMS_PER_PEER_MAX, STRANGERS_MAX,
};
use lockstep_network::{Gateway, GatewayError, GatewayRefusal, GatewayService};
use lockstep_types::{Address, SigningKey};
use tokio::sync::Semaphore;

const GATEWAY: u64 = 50;

/// Answers with the gateway's address and the bundle; waits where the bundle says so.
#[derive(Default)]
struct Door {
    waiting: Arc<AtomicUsize>,
    go_on: Option<Arc<Semaphore>>,
}

impl GatewayService for Door {
    async fn handle(&self, from: Address, request: Bytes) -> Bytes {
        if let (b"wait", Some(go_on)) = (&request[..], &self.go_on) {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            go_on.acquire().await.unwrap().forget();
        }
        if &request[..] == b"much" {
            return vec![0; GATEWAY_ANSWER_BYTES_MAX as usize + 1].into();
        }
        Bytes::from([from.as_bytes(), &request].concat())
    }
}

async fn node(door: Door) -> Node {
    let mut options = options(1);
    options.gateways = vec![key(GATEWAY).address(), key(GATEWAY + 1).address()];
    let node = Node::start(options).await;
    node.handle.serve_gateways(door).unwrap();
    node
}

async fn connect(key: &SigningKey, node: &Node) -> Gateway {
    Gateway::connect(key, &node.address(), DEADLINE).await.unwrap()
}

async fn submit(gateway: &Gateway, bundle: &'static [u8]) -> Result<Bytes, GatewayError> {
    gateway.submit(Bytes::from_static(bundle), DEADLINE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admitted_gateway_is_answered_again_and_again_on_one_connection() {
    let node = node(Door::default()).await;
    let gateway = connect(&key(GATEWAY), &node).await;
    for _ in 0..50 {
        let answer = submit(&gateway, b"bundle").await.unwrap();
        assert_eq!(answer, [key(GATEWAY).address().as_bytes(), &b"bundle"[..]].concat());
    }
    let large = Bytes::from(vec![7; GATEWAY_REQUEST_BYTES_MAX as usize / 4]);
    assert_eq!(gateway.submit(large.clone(), DEADLINE).await.unwrap()[20..], large);
    let named = format!("{}/p2p/{}", node.address(), lockstep_network::peer_id_of(&key(1).public()));
    assert!(Gateway::connect(&key(GATEWAY), &named, DEADLINE).await.is_ok());
    node.stop().await;
    eventually("the end is noticed", || async {
        matches!(submit(&gateway, b"late").await, Err(GatewayError::Closed(_))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_not_admitted_is_told_so_and_stays_a_stranger() {
    let node = node(Door::default()).await;
    let mut strangers = Vec::new();
    for n in 0..STRANGERS_MAX as u64 {
        strangers.push(connect(&key(GATEWAY + 2 + n), &node).await);
    }
    for stranger in &strangers {
        let large = Bytes::from(vec![0; GATEWAY_REQUEST_BYTES_MAX as usize]);
        for bundle in [Bytes::from_static(b"let me in"), large] {
            let refused = stranger.submit(bundle, DEADLINE).await.unwrap_err();
            assert_eq!(refused, GatewayError::Refused(GatewayRefusal::NotAdmitted));
        }
    }
    // All places of strangers are taken; a gateway has its own.
    assert!(submit(&connect(&key(GATEWAY), &node).await, b"bundle").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_has_few_bundles_under_way_and_does_not_keep_others_out() {
    let go_on = Arc::new(Semaphore::new(0));
    let door = Door { waiting: Arc::default(), go_on: Some(go_on.clone()) };
    let waiting = door.waiting.clone();
    let node = node(door).await;
    let (gateway, other) = (connect(&key(GATEWAY), &node).await, connect(&key(GATEWAY + 1), &node).await);
    let slow = join_all((0..GATEWAY_STREAMS_PER_PEER_MAX).map(|_| submit(&gateway, b"wait")));
    let meanwhile = async {
        eventually("all places are taken", || async {
            (waiting.load(Ordering::SeqCst) == GATEWAY_STREAMS_PER_PEER_MAX).then_some(())
        })
        .await;
        assert_eq!(submit(&gateway, b"x").await, Err(GatewayError::Refused(GatewayRefusal::TooMany)));
        assert!(submit(&other, b"x").await.is_ok());
        go_on.add_permits(GATEWAY_STREAMS_PER_PEER_MAX);
    };
    let (slow, ()) = tokio::join!(slow, meanwhile);
    assert!(slow.iter().all(Result::is_ok), "{slow:?}");
    assert!(submit(&gateway, b"x").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_or_too_late_is_said() {
    let go_on = Arc::new(Semaphore::new(0));
    let node = node(Door { waiting: Arc::default(), go_on: Some(go_on) }).await;
    let gateway = connect(&key(GATEWAY), &node).await;
    let large = Bytes::from(vec![0; GATEWAY_REQUEST_BYTES_MAX as usize + 1]);
    assert_eq!(gateway.submit(large, DEADLINE).await, Err(GatewayError::Refused(GatewayRefusal::TooLarge)));
    assert!(matches!(submit(&gateway, b"much").await, Err(GatewayError::Other(reason)) if reason.contains("answer")));
    let late = gateway.submit(Bytes::from_static(b"wait"), Duration::from_millis(200)).await;
    assert_eq!(late, Err(GatewayError::Timeout(Duration::from_millis(200))));
    assert!(submit(&gateway, b"x").await.is_ok());
    // A node that serves no gateways, as before it is up.
    let starting = Node::start(options(2)).await;
    let refused = submit(&connect(&key(GATEWAY), &starting).await, b"x").await.unwrap_err();
    assert!(refused.to_string().contains("still starting"), "{refused}");
}
