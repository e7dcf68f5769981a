//! A balancer as operators put one before their nodes (deploy/haproxy.cfg), reduced to what a test needs: it asks each
//! node whether it is ready, and gives every new connection to the next node that is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, timeout};

use crate::background::Background;
use crate::http::{local, request};
use crate::ports::free_port;

/// Between two checks of a node.
pub const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// A check without an answer for this long has failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// Checks in a row that must fail before a node gets no connections any more, and that must succeed before it gets
/// some again.
const CHECKS_IN_A_ROW: usize = 2;
/// A node that does not take a connection for this long gets none now; the next one is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Target {
    address: SocketAddr,
    up: AtomicBool,
}

#[derive(Debug)]
struct Shared {
    targets: Vec<Target>,
    next: AtomicUsize,
    turned_away: AtomicUsize,
}

/// A balancer on a port of its own. It ends with the value.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    shared: Arc<Shared>,
    _work: Background,
}

impl Balancer {
    /// A balancer of these nodes. It takes them to be ready until its checks say otherwise.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start(nodes: &[SocketAddr]) -> Self {
        let target = |address: &SocketAddr| Target { address: *address, up: AtomicBool::new(true) };
        let targets = nodes.iter().map(target).collect();
        let shared = Arc::new(Shared { targets, next: AtomicUsize::new(0), turned_away: AtomicUsize::new(0) });
        let address = local(free_port());
        let listener = std::net::TcpListener::bind(address).expect("a port that was free a moment ago");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let work = {
            let shared = Arc::clone(&shared);
            || async move {
                for target in 0..shared.targets.len() {
                    tokio::spawn(check(Arc::clone(&shared), target));
                }
                let listener = TcpListener::from_std(listener).expect("a listening socket");
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(carry(Arc::clone(&shared), stream));
                }
            }
        };
        Self { address, shared, _work: Background::spawn("balancer", work) }
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections for which there was no node.
    pub fn turned_away(&self) -> usize {
        self.shared.turned_away.load(Ordering::Relaxed)
    }
}

async fn check(shared: Arc<Shared>, target: usize) {
    let target = &shared.targets[target];
    let mut ticks = tokio::time::interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut others = 0;
    loop {
        ticks.tick().await;
        let answer = timeout(CHECK_TIMEOUT, request(target.address, "GET", "/readyz", b"")).await;
        let ready = matches!(answer, Ok(Ok(answer)) if answer.status == 200);
        if ready == target.up.load(Ordering::Relaxed) {
            others = 0;
            continue;
        }
        others += 1;
        if others == CHECKS_IN_A_ROW {
            target.up.store(ready, Ordering::Relaxed);
            others = 0;
        }
    }
}

async fn carry(shared: Arc<Shared>, mut client: TcpStream) {
    let count = shared.targets.len();
    let first = shared.next.fetch_add(1, Ordering::Relaxed);
    // Each node is tried once, those that are up only.
    for turn in 0..count {
        let target = &shared.targets[first.wrapping_add(turn) % count];
        if !target.up.load(Ordering::Relaxed) {
            continue;
        }
        if let Ok(Ok(mut node)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(target.address)).await {
            let nodelay = client.set_nodelay(true).and_then(|()| node.set_nodelay(true));
            if nodelay.is_ok() {
                // However it ends, both sides see it by their sockets.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut node).await;
            }
            return;
        }
    }
    shared.turned_away.fetch_add(1, Ordering::Relaxed);
}
