//! What stands before one node and carries the bytes of whoever dials it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Pace, Pair, State, Way};
use crate::process::ProcessId;
use crate::sockets;

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Bytes that are on their way in one direction of a connection at most, beside what the kernel holds.
const HELD_BYTES_MAX: usize = 1 << 20;
/// Bytes that a throttled line writes at once.
const DRIP_BYTES: usize = 4 << 10;
/// Pause after a connection could not be accepted, which happens when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// See the module's documentation.
pub(super) struct Gate {
    pub node: usize,
    pub address: SocketAddr,
    pub target: SocketAddr,
    pub listener: std::net::TcpListener,
    pub state: watch::Receiver<State>,
    pub strangers: Arc<AtomicUsize>,
}

impl Gate {
    pub async fn run(self) {
        let listener = self.listener.try_clone().and_then(TcpListener::from_std).expect("a listening socket");
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let (there, back) = self.lines(from);
                    let target = self.target;
                    tokio::spawn(async move {
                        // However it ends, both sides see it by their sockets.
                        let _ = carry(stream, target, there, back).await;
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    /// The lines to the node and from it that a new connection belongs to.
    fn lines(&self, from: SocketAddr) -> (Line, Line) {
        let state = self.state.borrow();
        let running: Vec<Option<u32>> = state.processes.iter().map(ProcessId::get).collect();
        let known: Vec<u32> = running.iter().copied().flatten().collect();
        let holder = sockets::holder(from, self.address, &known);
        let node = holder.and_then(|holder| running.iter().position(|process| *process == Some(holder)));
        if node.is_none() {
            self.strangers.fetch_add(1, Ordering::Relaxed);
        }
        let closings = |node: usize| state.closings.get(&Pair::of(node, self.node)).copied().unwrap_or_default();
        let line = |way: Option<Way>| Line { way, closings: node.map_or(0, closings), state: self.state.clone() };
        let there = node.map(|node| Way { from: node, to: self.node });
        (line(there), line(there.map(|way| Way { from: way.to, to: way.from })))
    }
}

/// What one direction of a connection sees of the state.
struct Line {
    /// `None` for a stranger's.
    way: Option<Way>,
    /// The pair's closings when the connection came.
    closings: u64,
    state: watch::Receiver<State>,
}

/// A connection that was closed on purpose.
struct Closed;

impl From<Closed> for std::io::Error {
    fn from(_: Closed) -> Self {
        std::io::ErrorKind::ConnectionAborted.into()
    }
}

impl Line {
    fn is_closed(&self, state: &State, way: Way) -> bool {
        state.closings.get(&Pair::of(way.from, way.to)).is_some_and(|closings| *closings > self.closings)
    }

    /// Waits until bytes may move, and says how fast.
    async fn passable(&mut self) -> Result<Pace, Closed> {
        let Some(way) = self.way else { return Ok(Pace::default()) };
        let mut state = self.state.clone();
        let state = state.wait_for(|state| !state.cut.contains(&way)).await.map_err(|_| Closed)?;
        if self.is_closed(&state, way) { Err(Closed) } else { Ok(state.slow.get(&way).copied().unwrap_or_default()) }
    }

    /// Waits until [`Line::passable`] is to be asked again.
    async fn interrupted(&self) {
        let Some(way) = self.way else { return std::future::pending().await };
        let mut state = self.state.clone();
        // An error is the end of the state, which `passable` tells.
        let _ = state.wait_for(|state| state.cut.contains(&way) || self.is_closed(state, way)).await;
    }
}

async fn carry(from: TcpStream, target: SocketAddr, mut there: Line, mut back: Line) -> std::io::Result<()> {
    // While the pair is cut the node is not even told that somebody dials: a connection needs both ways.
    there.passable().await?;
    back.passable().await?;
    let to = TcpStream::connect(target).await?;
    from.set_nodelay(true)?;
    to.set_nodelay(true)?;
    let (from_read, from_write) = from.into_split();
    let (to_read, to_write) = to.into_split();
    tokio::try_join!(pump(from_read, to_write, there), pump(to_read, from_write, back))?;
    Ok(())
}

/// Moves bytes one way until there are no more. What is not read yet stays with the kernel, whose buffers fill and
/// then hold the sender up.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut line: Line) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    // What is on its way, and when it arrives.
    let mut held: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let (mut held_bytes, mut has_ended, mut free_at) = (0, false, Instant::now());
    loop {
        let pace = line.passable().await?;
        if has_ended && held.is_empty() {
            return to.shutdown().await;
        }
        let due = held.front().map(|(at, _)| (*at).max(free_at));
        tokio::select! {
            biased;
            () = line.interrupted() => {}
            () = sleep_until(due.unwrap_or(free_at)), if due.is_some() => {
                let Some((at, bytes)) = held.pop_front() else { continue };
                let piece = if pace.bytes_per_second.is_some() { bytes.len().min(DRIP_BYTES) } else { bytes.len() };
                let written = tokio::select! {
                    biased;
                    () = line.interrupted() => 0,
                    written = to.write(&bytes[..piece]) => written?,
                };
                held_bytes -= written;
                if let Some(rate) = pace.bytes_per_second {
                    free_at = Instant::now() + Duration::from_secs_f64(written as f64 / f64::from(rate.max(1)));
                }
                if written < bytes.len() {
                    held.push_front((at, bytes[written..].to_vec()));
                }
            }
            count = from.read(&mut buffer), if !has_ended && held_bytes < HELD_BYTES_MAX => {
                let count = count?;
                has_ended = count == 0;
                if !has_ended {
                    held.push_back((Instant::now() + pace.delay, buffer[..count].to_vec()));
                    held_bytes += count;
                }
            }
        }
    }
}
