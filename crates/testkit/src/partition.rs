//! Networks between the nodes of a cluster that can be cut, without rights that a test does not have: a gate stands
//! before each node and carries the bytes of whoever dials it. While a pair of nodes is cut nothing of theirs moves
//! and nothing of it is told to either side, as with a pulled cable.

mod gate;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use self::gate::Gate;
use crate::background::Background;
use crate::process::ProcessId;

/// Two nodes, by their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pair(usize, usize);

impl Pair {
    fn of(one: usize, other: usize) -> Self {
        Self(one.min(other), one.max(other))
    }
}

/// From one node to another, by their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    from: usize,
    to: usize,
}

/// How fast bytes move one way between two nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// Each byte is so much later.
    pub delay: Duration,
    /// Most bytes in a second; `None`: as many as come.
    pub bytes_per_second: Option<u32>,
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
    cut: BTreeSet<Way>,
    slow: BTreeMap<Way, Pace>,
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

    /// Puts a gate before the node at the next place, which listens at `target`. Returns the port that the others are to
    /// dial, on the same address.
    ///
    /// # Panics
    /// When no port is free.
    pub fn add(&self, process: ProcessId, target: SocketAddr) -> u16 {
        let listener = std::net::TcpListener::bind((target.ip(), 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let mut node = 0;
        self.state.send_modify(|state| {
            node = state.processes.len();
            state.processes.push(process);
        });
        let strangers = Arc::clone(&self.strangers);
        let gate = Gate { node, address, target, listener, state: self.state.subscribe(), strangers };
        self.gates.send(gate).expect("the thread lives as long as the sender");
        address.port()
    }

    /// Lets only nodes of the same group reach each other. Nodes in no group make up one more. Replaces the cuts that
    /// there are, and what they held flows on.
    pub fn partition(&self, groups: &[&[usize]]) {
        let group = |node: usize| groups.iter().position(|group| group.contains(&node));
        self.state.send_modify(|state| {
            state.cut = ways(state.processes.len()).filter(|way| group(way.from) != group(way.to)).collect();
        });
    }

    /// Cuts two nodes off from each other.
    pub fn cut(&self, one: usize, other: usize) {
        self.cut_ways(|way| Pair::of(way.from, way.to) == Pair::of(one, other));
    }

    /// Nothing gets from one node to another any more; what the other sends still arrives.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        self.cut_ways(|way| way == Way { from, to });
    }

    /// Cuts a node off from all others, later ones excepted.
    pub fn isolate(&self, node: usize) {
        self.cut_ways(|way| way.from == node || way.to == node);
    }

    /// Nothing gets from a node to any other any more; it still hears them.
    pub fn mute(&self, node: usize) {
        self.cut_ways(|way| way.from == node);
    }

    /// Nothing gets to a node any more; the others still hear it.
    pub fn deafen(&self, node: usize) {
        self.cut_ways(|way| way.to == node);
    }

    fn cut_ways(&self, which: impl Fn(Way) -> bool) {
        self.state.send_modify(|state| {
            let nodes = state.processes.len();
            state.cut.extend(ways(nodes).filter(|way| which(*way)));
        });
    }

    /// What a node sends and gets moves at this pace.
    pub fn slow(&self, node: usize, pace: Pace) {
        self.state.send_modify(|state| {
            let nodes = state.processes.len();
            let touched = ways(nodes).filter(|way| way.from == node || way.to == node);
            state.slow.extend(touched.map(|way| (way, pace)));
        });
    }

    /// Ends all connections of a node. It may make new ones.
    pub fn drop_connections(&self, node: usize) {
        self.state.send_modify(|state| {
            let nodes = state.processes.len();
            for other in (0..nodes).filter(|other| *other != node) {
                *state.closings.entry(Pair::of(node, other)).or_default() += 1;
            }
        });
    }

    /// Ends all cuts, and everything moves as fast as it can.
    pub fn heal(&self, how: Healing) {
        self.state.send_modify(|state| {
            state.slow.clear();
            let pairs: BTreeSet<Pair> =
                std::mem::take(&mut state.cut).into_iter().map(|way| Pair::of(way.from, way.to)).collect();
            for pair in pairs {
                *state.closings.entry(pair).or_default() += u64::from(how == Healing::Close);
            }
        });
    }

    /// Whether something that one of two nodes sends does not reach the other.
    pub fn is_cut(&self, one: usize, other: usize) -> bool {
        let state = self.state.borrow();
        state.cut.iter().any(|way| Pair::of(way.from, way.to) == Pair::of(one, other))
    }

    /// Connections so far of processes that are no nodes; they are carried always.
    pub fn strangers(&self) -> usize {
        self.strangers.load(Ordering::Relaxed)
    }
}

fn ways(nodes: usize) -> impl Iterator<Item = Way> {
    (0..nodes).flat_map(move |from| (0..nodes).map(move |to| Way { from, to })).filter(|way| way.from != way.to)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;

    use super::*;
    use crate::http::local;
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
        fabric.add(own, local(port));
        let gate = fabric.add(ProcessId::default(), local(port));
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
        let mut chunk = vec![0; 64 << 10];
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

    #[tokio::test]
    async fn a_cut_of_one_way_lets_the_other_way_pass() {
        let (fabric, gate) = network().await;
        let mut stream = TcpStream::connect(gate).await.unwrap();
        stream.write_all(b"a").await.unwrap();
        assert_eq!(says(&mut stream).await.unwrap(), b'a');
        fabric.deafen(0);
        assert!(fabric.is_cut(0, 1));
        // It arrives and is answered, and the answer waits.
        stream.write_all(b"b").await.unwrap();
        says_nothing(&mut stream).await;
        fabric.mute(0);
        fabric.heal(Healing::Flow);
        assert_eq!(says(&mut stream).await.unwrap(), b'b');
        fabric.cut_one_way(1, 0);
        stream.write_all(b"c").await.unwrap();
        says_nothing(&mut stream).await;
        fabric.drop_connections(0);
        fabric.heal(Healing::Flow);
        assert!(says(&mut stream).await.is_err());
    }

    #[tokio::test]
    async fn a_slow_line_delays_every_byte_and_lets_few_of_them_pass() {
        const PIECE: usize = 10_000;
        let (fabric, gate) = network().await;
        let mut stream = TcpStream::connect(gate).await.unwrap();
        fabric.slow(1, Pace { delay: Duration::from_millis(100), bytes_per_second: None });
        let begun = Instant::now();
        stream.write_all(b"a").await.unwrap();
        assert_eq!(says(&mut stream).await.unwrap(), b'a');
        assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
        fabric.slow(1, Pace { delay: Duration::ZERO, bytes_per_second: Some(50_000) });
        let begun = Instant::now();
        let sent = [7; PIECE * 3];
        let mut received = vec![0; sent.len()];
        stream.write_all(&sent).await.unwrap();
        stream.read_exact(&mut received).await.unwrap();
        assert!(received == sent && begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
        fabric.heal(Healing::Flow);
        stream.write_all(b"b").await.unwrap();
        assert_eq!(says(&mut stream).await.unwrap(), b'b');
    }
}
