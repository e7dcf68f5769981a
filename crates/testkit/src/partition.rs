//! Networks between the nodes of a cluster that can be cut, without rights that a test does not have: a gate stands
//! before each node and carries the bytes of whoever dials it. While a pair of nodes is cut nothing of theirs moves
//! and nothing of it is told to either side, as with a pulled cable.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::background::Background;
use crate::http::local;
use crate::ports::free_port;
use crate::process::ProcessId;
use crate::sockets;

/// Bytes that one direction of a connection holds, beside what the kernel does.
const CHUNK_BYTES: usize = 64 << 10;
/// Pause after a connection could not be accepted, which happens when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Two nodes, by their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pair(usize, usize);

impl Pair {
    fn of(one: usize, other: usize) -> Self {
        Self(one.min(other), one.max(other))
    }
}

/// What becomes of connections that were cut when the cut ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Healing {
    /// What was held flows on.
    Flow,
    /// They are closed, and what was held is lost.
    Close,
}

#[derive(Debug, Default)]
struct State {
    cut: BTreeSet<Pair>,
    /// How often the connections of a pair were closed.
    closings: BTreeMap<Pair, u64>,
    /// Processes of the nodes, by place.
    processes: Vec<ProcessId>,
}

/// The network between the nodes of a cluster. Its gates run on a thread of their own, so that they work while a test
/// waits for a command. They end with the value.
#[derive(Debug)]
pub struct Fabric {
    state: watch::Sender<State>,
    gates: mpsc::UnboundedSender<Gate>,
    strangers: Arc<AtomicUsize>,
    _gates: Background,
}

impl Fabric {
    /// A network without nodes.
    pub fn start() -> Self {
        let (gates, mut added) = mpsc::unbounded_channel::<Gate>();
        let run = || async move {
            while let Some(gate) = added.recv().await {
                tokio::spawn(gate.run());
            }
        };
        let state = watch::Sender::new(State::default());
        Self { state, gates, strangers: Arc::default(), _gates: Background::spawn("fabric", run) }
    }

    /// Puts a gate before the node at the next place, which listens on `port` of the loopback address. Returns the
    /// port that the others are to dial.
    ///
    /// # Panics
    /// When no port is free.
    pub fn add(&self, process: ProcessId, port: u16) -> u16 {
        let address = local(free_port());
        let listener = std::net::TcpListener::bind(address).expect("a port that was free a moment ago");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let mut node = 0;
        self.state.send_modify(|state| {
            node = state.processes.len();
            state.processes.push(process);
        });
        let strangers = Arc::clone(&self.strangers);
        let gate = Gate { node, address, target: local(port), listener, state: self.state.subscribe(), strangers };
        self.gates.send(gate).expect("the thread lives as long as the sender");
        address.port()
    }

    /// Lets only nodes of the same group reach each other. Nodes in no group make up one more. Replaces the cuts that
    /// there are, and what they held flows on.
    pub fn partition(&self, groups: &[&[usize]]) {
        let group = |node: usize| groups.iter().position(|group| group.contains(&node));
        self.state.send_modify(|state| {
            let pairs = pairs(state.processes.len());
            state.cut = pairs.filter(|pair| group(pair.0) != group(pair.1)).collect();
        });
    }

    /// Cuts two nodes off from each other.
    pub fn cut(&self, one: usize, other: usize) {
        self.state.send_modify(|state| {
            state.cut.insert(Pair::of(one, other));
        });
    }

    /// Cuts a node off from all others, later ones excepted.
    pub fn isolate(&self, node: usize) {
        self.state.send_modify(|state| {
            let others = (0..state.processes.len()).filter(|other| *other != node);
            state.cut.extend(others.map(|other| Pair::of(node, other)));
        });
    }

    /// Ends all cuts.
    pub fn heal(&self, how: Healing) {
        self.state.send_modify(|state| {
            for pair in std::mem::take(&mut state.cut) {
                *state.closings.entry(pair).or_default() += u64::from(how == Healing::Close);
            }
        });
    }

    /// Whether two nodes are cut off from each other.
    pub fn is_cut(&self, one: usize, other: usize) -> bool {
        self.state.borrow().cut.contains(&Pair::of(one, other))
    }

    /// Connections so far of processes that are no nodes; they are carried always.
    pub fn strangers(&self) -> usize {
        self.strangers.load(Ordering::Relaxed)
    }
}

fn pairs(nodes: usize) -> impl Iterator<Item = Pair> {
    (0..nodes).flat_map(move |one| (one + 1..nodes).map(move |other| Pair(one, other)))
}

/// What stands before one node.
struct Gate {
    node: usize,
    address: SocketAddr,
    target: SocketAddr,
    listener: std::net::TcpListener,
    state: watch::Receiver<State>,
    strangers: Arc<AtomicUsize>,
}

impl Gate {
    async fn run(self) {
        let listener = self.listener.try_clone().and_then(TcpListener::from_std).expect("a listening socket");
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let line = self.line(from);
                    let target = self.target;
                    tokio::spawn(async move {
                        // However it ends, both sides see it by their sockets.
                        let _ = carry(stream, target, line).await;
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    /// The line that a new connection belongs to.
    fn line(&self, from: SocketAddr) -> Line {
        let state = self.state.borrow();
        let running: Vec<Option<u32>> = state.processes.iter().map(ProcessId::get).collect();
        let known: Vec<u32> = running.iter().copied().flatten().collect();
        let holder = sockets::holder(from, self.address, &known);
        let node = holder.and_then(|holder| running.iter().position(|process| *process == Some(holder)));
        if node.is_none() {
            self.strangers.fetch_add(1, Ordering::Relaxed);
        }
        let pair = node.map(|node| Pair::of(node, self.node));
        let closings = pair.and_then(|pair| state.closings.get(&pair).copied()).unwrap_or_default();
        Line { pair, closings, state: self.state.clone() }
    }
}

/// What one connection sees of the state.
#[derive(Clone)]
struct Line {
    /// `None` for a stranger's.
    pair: Option<Pair>,
    /// The pair's closings when the connection came.
    closings: u64,
    state: watch::Receiver<State>,
}

/// A connection that a healing has closed.
struct Closed;

impl From<Closed> for std::io::Error {
    fn from(_: Closed) -> Self {
        std::io::ErrorKind::ConnectionAborted.into()
    }
}

impl Line {
    /// Waits until bytes may move.
    async fn passable(&mut self) -> Result<(), Closed> {
        let Some(pair) = self.pair else { return Ok(()) };
        let state = self.state.wait_for(|state| !state.cut.contains(&pair)).await.map_err(|_| Closed)?;
        let closed = state.closings.get(&pair).is_some_and(|closings| *closings > self.closings);
        if closed { Err(Closed) } else { Ok(()) }
    }

    /// Waits until [`Line::passable`] is to be asked again.
    async fn interrupted(&mut self) {
        let Some(pair) = self.pair else { return std::future::pending().await };
        let closings = self.closings;
        let interrupted =
            |state: &State| state.cut.contains(&pair) || state.closings.get(&pair).is_some_and(|now| *now > closings);
        // An error is the end of the state, which `passable` tells.
        let _ = self.state.wait_for(interrupted).await;
    }
}

async fn carry(from: TcpStream, target: SocketAddr, mut line: Line) -> std::io::Result<()> {
    // While the pair is cut the node is not even told that somebody dials.
    line.passable().await?;
    let to = TcpStream::connect(target).await?;
    from.set_nodelay(true)?;
    to.set_nodelay(true)?;
    let (from_read, from_write) = from.into_split();
    let (to_read, to_write) = to.into_split();
    tokio::try_join!(pump(from_read, to_write, line.clone()), pump(to_read, from_write, line))?;
    Ok(())
}

/// Moves bytes one way until there are no more. What is not read yet stays with the kernel, whose buffers fill and
/// then hold the sender up.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut line: Line) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        line.passable().await?;
        let count = tokio::select! {
            biased;
            () = line.interrupted() => continue,
            count = from.read(&mut buffer) => count?,
        };
        if count == 0 {
            line.passable().await?;
            return to.shutdown().await;
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            line.passable().await?;
            tokio::select! {
                biased;
                () = line.interrupted() => {}
                written = to.write(rest) => rest = &rest[written?..],
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::eventually;

    /// Longer than a round trip on this machine, many times.
    const QUIET: Duration = Duration::from_millis(200);
    const SOON: Duration = Duration::from_secs(10);

    async fn echo(listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let (mut read, mut write) = stream.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await });
        }
    }

    /// This process as the node at place 0, and a server that echoes at place 1, behind the gate at the address.
    async fn network() -> (Fabric, SocketAddr) {
        let listener = TcpListener::bind(local(0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(echo(listener));
        let fabric = Fabric::start();
        let own = ProcessId::default();
        own.set(Some(std::process::id()));
        fabric.add(own, port);
        let gate = fabric.add(ProcessId::default(), port);
        (fabric, local(gate))
    }

    async fn says(stream: &mut TcpStream) -> std::io::Result<u8> {
        tokio::time::timeout(SOON, stream.read_u8()).await.unwrap()
    }

    async fn says_nothing(stream: &mut TcpStream) {
        let read = tokio::time::timeout(QUIET, stream.read_u8()).await;
        assert!(read.is_err(), "{read:?}");
    }

    #[tokio::test]
    async fn a_cut_holds_bytes_and_connections_and_a_healing_lets_them_go_on() {
        let (fabric, gate) = network().await;
        let mut old = TcpStream::connect(gate).await.unwrap();
        old.write_all(b"a").await.unwrap();
        assert_eq!(says(&mut old).await.unwrap(), b'a');
        fabric.isolate(1);
        assert!(fabric.is_cut(0, 1));
        old.write_all(b"b").await.unwrap();
        let mut new = TcpStream::connect(gate).await.unwrap();
        new.write_all(b"c").await.unwrap();
        says_nothing(&mut old).await;
        says_nothing(&mut new).await;
        fabric.heal(Healing::Flow);
        assert_eq!((says(&mut old).await.unwrap(), says(&mut new).await.unwrap()), (b'b', b'c'));
        assert_eq!(fabric.strangers(), 0);
    }

    #[tokio::test]
    async fn a_healing_can_close_what_was_cut_and_new_connections_work() {
        let (fabric, gate) = network().await;
        let mut old = TcpStream::connect(gate).await.unwrap();
        old.write_all(b"a").await.unwrap();
        assert_eq!(says(&mut old).await.unwrap(), b'a');
        fabric.partition(&[&[0]]);
        old.write_all(b"b").await.unwrap();
        says_nothing(&mut old).await;
        fabric.heal(Healing::Close);
        assert!(says(&mut old).await.is_err());
        let mut new = TcpStream::connect(gate).await.unwrap();
        new.write_all(b"c").await.unwrap();
        assert_eq!(says(&mut new).await.unwrap(), b'c');
    }

    #[tokio::test]
    async fn large_transfers_pass_whole_and_stop_in_the_middle_of_a_cut() {
        let (fabric, gate) = network().await;
        let (mut read, mut write) = TcpStream::connect(gate).await.unwrap().into_split();
        let sent: Vec<u8> = (0..16_u32 << 20).map(|n| n.to_le_bytes()[1]).collect();
        let expected = sent.clone();
        tokio::spawn(async move { write.write_all(&sent).await.unwrap() });
        let mut received = vec![0; 1 << 20];
        read.read_exact(&mut received).await.unwrap();
        fabric.cut(1, 0);
        // What was past the gate still arrives; then nothing more.
        let mut chunk = vec![0; CHUNK_BYTES];
        eventually("nothing moves", SOON, async || match tokio::time::timeout(QUIET, read.read(&mut chunk)).await {
            Ok(count) => Err(format!("{:?}", received.extend_from_slice(&chunk[..count.unwrap()]))),
            Err(_) => Ok(()),
        })
        .await;
        assert!(received.len() < expected.len(), "the cut came too late");
        fabric.heal(Healing::Flow);
        let at = received.len();
        received.resize(expected.len(), 0);
        read.read_exact(&mut received[at..]).await.unwrap();
        assert!(received == expected);
    }
}
