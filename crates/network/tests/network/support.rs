//! Nodes on real loopback sockets, for this crate's tests.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lockstep_network::{CallError, Channel, Client, GossipInbox, Handle, LogView, Network, Options, Peer, Service};
use lockstep_types::{Epoch, Incarnation, NetworkId, NodeId, SigningKey};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a condition may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub const NETWORK: NetworkId = NetworkId([7; 32]);

/// Answers each request with the node's id, the asker's and the request itself; sleeps first where the request says
/// for how many milliseconds.
pub struct Echo;

impl Service for Echo {
    async fn handle(&self, from: NodeId, request: Bytes) -> Bytes {
        if let Some(ms) = request.strip_prefix(b"sleep ") {
            let ms: u64 = std::str::from_utf8(ms).unwrap().parse().unwrap();
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        Bytes::from([&from.0.to_be_bytes()[..], &request].concat())
    }
}

pub const CHANNELS: [Channel; 4] = [Channel::Raft, Channel::Bundle, Channel::Control, Channel::Snapshot];

/// A log that ends where a test says, and what it says that others acknowledged.
#[derive(Default)]
pub struct Log {
    pub last: AtomicU64,
    pub acknowledged: Mutex<HashMap<NodeId, u64>>,
}

impl LogView for Log {
    fn last_index(&self) -> u64 {
        self.last.load(Ordering::SeqCst)
    }

    fn acknowledged(&self, node: NodeId) -> u64 {
        self.acknowledged.lock().unwrap().get(&node).copied().unwrap_or_default()
    }
}

pub struct Node {
    pub handle: Handle,
    pub inbox: GossipInbox,
    pub log: Arc<Log>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Node {
    pub async fn start(options: Options) -> Self {
        let node = Self::start_without_log(options).await;
        node.handle.set_log_view(node.log.clone());
        node
    }

    /// Like a node that has not opened its log yet.
    pub async fn start_without_log(options: Options) -> Self {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let (network, handle, inbox) = Network::bind(options).await.unwrap();
        for channel in CHANNELS {
            handle.serve(channel, Echo).unwrap();
        }
        let stop = CancellationToken::new();
        let task = tokio::spawn(network.run(stop.clone()));
        Self { handle, inbox, log: Arc::default(), stop, task }
    }

    /// Makes `n` a member here, and returns when it is one: whoever connects before that is a stranger.
    pub async fn knows(&self, n: u64, address: Option<String>) {
        self.handle.set_member(peer(n, address)).await.unwrap();
        let mut peers = self.handle.watch_peers();
        let taken = peers.wait_for(|peers| peers.iter().any(|peer| peer.node == NodeId(n)));
        tokio::time::timeout(DEADLINE, taken).await.expect("a member is set in time").unwrap();
    }

    pub fn acknowledged(&self, node: u64, index: u64) {
        self.log.acknowledged.lock().unwrap().insert(NodeId(node), index);
    }

    pub fn address(&self) -> String {
        self.handle.listen_addresses()[0].clone()
    }

    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.expect("a stopped network ends").unwrap();
    }
}

pub fn key(n: u64) -> SigningKey {
    SigningKey::from_bytes([n as u8; 32]).unwrap()
}

pub fn options(n: u64) -> Options {
    let mut options = Options::new(key(n), NETWORK, Epoch(0), NodeId(n), Incarnation([n as u8; 16]));
    options.listen = vec!["/ip4/127.0.0.1/tcp/0".into()];
    options
}

pub fn peer(n: u64, address: Option<String>) -> Peer {
    Peer {
        node: NodeId(n),
        name: format!("node-{n}"),
        key: key(n).public(),
        address,
        incarnation: Incarnation([n as u8; 16]),
    }
}

pub async fn ask(client: &mut Client, request: &[u8]) -> Result<Bytes, CallError> {
    client.call(&[Bytes::copy_from_slice(request)], DEADLINE).await
}

/// Asks until there is an answer, however long the two need to connect.
pub async fn answer(handle: &Handle, of: u64) -> Bytes {
    let mut client = handle.client(NodeId(of), Channel::Raft);
    let deadline = Instant::now() + DEADLINE;
    loop {
        match ask(&mut client, b"x").await {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < deadline, "no answer of node {of}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A refusal of the first call, however long the two need to connect.
pub async fn refusal(client: &mut Client) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match ask(client, b"x").await {
            Err(CallError::Refused(reason)) => return reason,
            Err(CallError::Unreachable(_) | CallError::Closed(_)) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Starts nodes 1 to `count` that know each other, and waits until all are connected.
pub async fn cluster(count: u64) -> Vec<Node> {
    let mut nodes = Vec::new();
    for n in 1..=count {
        nodes.push(Node::start(options(n)).await);
    }
    // All know all before anyone dials.
    for dial in [false, true] {
        for (own, node) in (1..).zip(&nodes) {
            for (n, other) in (1..).zip(&nodes).filter(|(n, _)| *n != own) {
                node.knows(n, dial.then(|| other.address())).await;
            }
        }
    }
    for node in &nodes {
        connected(&node.handle, count as usize - 1).await;
    }
    nodes
}

/// Waits until exactly `count` members are connected; says how long it took.
pub async fn connected(handle: &Handle, count: usize) -> Duration {
    let (start, mut peers) = (Instant::now(), handle.watch_peers());
    let reached = peers.wait_for(|peers| peers.iter().filter(|peer| peer.connected).count() == count);
    tokio::time::timeout(DEADLINE, reached).await.expect("members connect and part in time").unwrap();
    start.elapsed()
}

/// Tries until `attempt` gives something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut attempt: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        if let Some(done) = attempt().await {
            return done;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not in time: {what}");
}

/// Publishes fresh messages until each of `others` got one: subscriptions have arrived then.
pub async fn warm_up(from: &Handle, others: &mut [Node]) {
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
