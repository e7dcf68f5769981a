//! Three nodes in one process, and a network between them that can be cut, slowed and lied on.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_consensus::{
    CompactionOptions, Connection, Consensus, ConsensusError, Observer, Options, Role, StateStore, Transport,
    TransportError,
};
use lockstep_ledger::{Applied, COMMAND_VERSION, Head, Ledger};
use lockstep_store::home::StoreHome;
use lockstep_types::{Genesis, Incarnation, Member, NetworkParams, NodeId, SigningKey, keccak256, proto};
use parking_lot::Mutex;
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use crate::files::copy_of_a_crash;

/// Long enough for a busy machine; what is awaited usually comes within a second.
pub const SOON: Duration = Duration::from_secs(60);
/// How long a proposal is waited for before whoever leads is asked again.
const PROPOSAL_TIME_MAX: Duration = Duration::from_secs(5);
/// Bytes of one proposed message.
pub const MESSAGE_BYTES: usize = 60_000;

struct Quiet;

impl Observer for Quiet {
    fn applied(&self, _ledger: &Ledger, _applied: &Applied) {}
    fn loaded(&self, _ledger: &Ledger) {}
}

/// What happens to answers on the snapshot channel.
type Tamper =
    Box<dyn FnMut(proto::PieceRequest, Result<Bytes, TransportError>) -> Result<Bytes, TransportError> + Send>;

#[derive(Default)]
pub struct Wires {
    nodes: Mutex<HashMap<u64, Consensus>>,
    down: Mutex<HashSet<u64>>,
    tamper: Mutex<Option<Tamper>>,
    pub bulk_bytes: AtomicU64,
    /// Time that a piece takes.
    pub piece_ms: AtomicU64,
    /// Requests of raft to this node take so long.
    pub slow: Mutex<Option<(u64, Duration)>>,
}

impl Wires {
    fn is_cut(&self, a: NodeId, b: NodeId) -> bool {
        let down = self.down.lock();
        down.contains(&a.0) || down.contains(&b.0)
    }

    /// Takes a node off the network, or puts it back.
    pub fn set_down(&self, node: u64, is_down: bool) {
        if is_down {
            self.down.lock().insert(node)
        } else {
            self.down.lock().remove(&node)
        };
    }

    pub fn tamper(&self, tamper: Option<Tamper>) {
        *self.tamper.lock() = tamper;
    }
}

struct Wire {
    wires: Arc<Wires>,
    from: NodeId,
    to: NodeId,
    is_bulk: bool,
}

pub struct Port {
    wires: Arc<Wires>,
    node: NodeId,
}

impl Transport for Port {
    fn connect(&self, target: NodeId) -> Box<dyn Connection> {
        Box::new(Wire { wires: self.wires.clone(), from: self.node, to: target, is_bulk: false })
    }

    fn connect_bulk(&self, target: NodeId) -> Box<dyn Connection> {
        Box::new(Wire { wires: self.wires.clone(), from: self.node, to: target, is_bulk: true })
    }
}

#[async_trait]
impl Connection for Wire {
    async fn call(&mut self, request: Bytes, _timeout: Duration) -> Result<Bytes, TransportError> {
        tokio::task::yield_now().await;
        let node = self.wires.nodes.lock().get(&self.to.0).cloned();
        let Some(node) = node.filter(|_| !self.wires.is_cut(self.from, self.to)) else {
            return Err(TransportError::Unreachable("cut".into()));
        };
        if !self.is_bulk {
            let slow = self.wires.slow.lock().filter(|(node, _)| *node == self.to.0);
            if let Some((_, time)) = slow {
                tokio::time::sleep(time).await;
            }
            return Ok(node.serve(self.from, request).await);
        }
        let asked = proto::BulkRequest::decode(request.clone()).ok().and_then(|request| request.kind);
        let answer = node.serve_bulk(self.from, request).await;
        tokio::time::sleep(Duration::from_millis(self.wires.piece_ms.load(Ordering::Relaxed))).await;
        if self.wires.is_cut(self.from, self.to) {
            return Err(TransportError::Broken("cut".into()));
        }
        self.wires.bulk_bytes.fetch_add(answer.len() as u64, Ordering::Relaxed);
        let Some(proto::bulk_request::Kind::Piece(piece)) = asked else { return Ok(answer) };
        match &mut *self.wires.tamper.lock() {
            Some(tamper) => tamper(piece, Ok(answer)),
            None => Ok(answer),
        }
    }
}

/// A node, with its files.
struct Running {
    consensus: Consensus,
    state: StateStore,
    stop: CancellationToken,
    compaction: tokio::task::JoinHandle<()>,
    path: PathBuf,
}

pub struct Network {
    pub wires: Arc<Wires>,
    genesis: Genesis,
    compaction: CompactionOptions,
    running: HashMap<u64, Running>,
    directory: tempfile::TempDir,
    copies: u64,
    proposed: u64,
}

fn genesis(nodes: u64) -> Genesis {
    let member = |n: u64| {
        let key = SigningKey::from_bytes(keccak256(&[&n.to_be_bytes()])).expect("test set-up");
        let hex: String = key.public().compressed().iter().map(|b| format!("{b:02x}")).collect();
        Member {
            name: format!("n{n}"),
            public_key: hex,
            incarnation: Incarnation([n as u8; 16]),
            p2p: format!("/ip4/127.0.0.1/tcp/{n}"),
            http: format!("http://127.0.0.1:{n}"),
        }
    };
    let params = NetworkParams { allow_unknown_projects: true, ..NetworkParams::default() };
    Genesis::new("test", (1..=nodes).map(member).collect(), params).expect("test set-up")
}

/// A log is large when it has more than some ten messages.
pub fn small_logs() -> CompactionOptions {
    CompactionOptions { log_bytes_max: 600_000, log_entries_max: 1000, log_kept_entries: 5 }
}

pub fn bytes_in(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(about) if about.is_dir() => bytes_in(&entry.path()),
        Ok(about) => about.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

impl Network {
    pub async fn start(nodes: u64, compaction: CompactionOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut network = Self {
            wires: Arc::default(),
            genesis: genesis(nodes),
            compaction,
            running: HashMap::new(),
            directory,
            copies: 0,
            proposed: 0,
        };
        for node in 1..=nodes {
            let path = network.directory.path().join(format!("node-{node}"));
            StoreHome::create(&path, Incarnation([node as u8; 16])).unwrap();
            network.start_node(node, path).await.unwrap();
        }
        network
    }

    pub async fn start_node(&mut self, node: u64, path: PathBuf) -> Result<(), ConsensusError> {
        let store = StoreHome::open(&path).unwrap();
        let state = StateStore::open(&store)?;
        let options = Options {
            epoch: lockstep_types::Epoch(0),
            node: NodeId(node),
            genesis: self.genesis.clone(),
            store,
            election_timeout_ms: 400,
            heartbeat_ms: 100,
            compaction: self.compaction,
            rules_known: lockstep_ledger::RULES_NEWEST,
        };
        let port = Arc::new(Port { wires: self.wires.clone(), node: NodeId(node) });
        let consensus = Consensus::start(options, port, state.clone(), Arc::new(Quiet)).await?;
        self.wires.nodes.lock().insert(node, consensus.clone());
        let (stop, upkeep) = (CancellationToken::new(), consensus.clone());
        let token = stop.clone();
        let compaction = tokio::spawn(async move { upkeep.run_compaction(token).await });
        self.running.insert(node, Running { consensus, state, stop, compaction, path });
        Ok(())
    }

    pub fn node(&self, node: u64) -> &Consensus {
        &self.running[&node].consensus
    }

    pub fn path(&self, node: u64) -> &Path {
        &self.running[&node].path
    }

    pub fn head(&self, node: u64) -> Option<Head> {
        self.running[&node].state.head().unwrap()
    }

    /// Ends a node as a crash does, and gives the files that the crash leaves: as they are now, without what an
    /// orderly end would still write.
    pub async fn crash(&mut self, node: u64) -> PathBuf {
        self.copies += 1;
        let copy = self.directory.path().join(format!("node-{node}-{}", self.copies));
        copy_of_a_crash(self.path(node), &copy);
        self.stop(node).await;
        copy
    }

    pub async fn stop(&mut self, node: u64) {
        self.wires.nodes.lock().remove(&node);
        let running = self.running.remove(&node).unwrap();
        running.stop.cancel();
        running.compaction.await.unwrap();
        running.consensus.shutdown().await;
    }

    /// Whoever leads the others; one that was cut off may still think that it does.
    pub async fn leader(&self) -> u64 {
        eventually("there is a leader", || {
            let down = self.wires.down.lock();
            let leads = |node: &&u64| !down.contains(node) && self.node(**node).status().borrow().role == Role::Leader;
            self.running.keys().find(leads).copied().ok_or_else(|| "none".into())
        })
        .await
    }

    /// Puts messages into the log, one an entry.
    pub async fn propose(&mut self, count: usize) {
        for _ in 0..count {
            self.proposed += 1;
            let command = command(self.proposed);
            let deadline = Instant::now() + SOON;
            loop {
                let leader = self.leader().await;
                // A leader that loses its place may never answer. A command that is committed twice counts once.
                match tokio::time::timeout(PROPOSAL_TIME_MAX, self.node(leader).propose(command.clone())).await {
                    Ok(Ok(())) => break,
                    failed => assert!(Instant::now() < deadline, "{failed:?}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    pub async fn wait_equal(&self) -> Head {
        eventually("all nodes have the same head", || {
            let heads: Vec<_> = self.running.keys().map(|node| self.head(*node)).collect();
            match heads[0].clone() {
                Some(head) if heads.iter().all(|other| other.as_ref() == Some(&head)) => Ok(head),
                _ => Err(format!("{:?}", heads.iter().map(|h| h.as_ref().map(|h| h.height)).collect::<Vec<_>>())),
            }
        })
        .await
    }

    /// Waits until a node's log begins behind entry `index`.
    pub async fn wait_purged(&self, node: u64, index: u64) {
        eventually("the log is purged", || match self.node(node).log_figures() {
            figures if figures.purged >= index => Ok(()),
            figures => Err(format!("{figures:?}")),
        })
        .await;
    }

    pub async fn end(mut self) {
        for node in self.running.keys().copied().collect::<Vec<_>>() {
            self.stop(node).await;
        }
    }
}

/// A batch with one message that does not compress.
fn command(number: u64) -> Bytes {
    let blocks = (0..MESSAGE_BYTES as u64 / 32).map(|i| keccak256(&[&number.to_be_bytes(), &i.to_be_bytes()]));
    let message = proto::Message {
        api: 1,
        project_id: 7,
        project_version: "0.1".into(),
        data: blocks.flatten().collect::<Vec<u8>>().into(),
        device: Bytes::from_static(&[1; 20]),
        evidence: Bytes::from_static(&[2; 65]),
        ..proto::Message::default()
    };
    let batch = proto::ProposedBatch { time_ms: 1_000 + number, messages: vec![message], ..Default::default() };
    let kind = Some(proto::command::Kind::Batch(batch));
    proto::Command { version: COMMAND_VERSION, kind }.encode_to_vec().into()
}

pub async fn eventually<T>(what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(missing) => assert!(Instant::now() < deadline, "{what}: not in time; {missing}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
