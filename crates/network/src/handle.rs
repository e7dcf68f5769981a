//! The part of the network that the rest of the node holds.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use libp2p::PeerId;
use lockstep_types::NodeId;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::behaviour::Sinks;
use crate::client::StreamClient;
use crate::directory::SharedDirectory;
use crate::gateway::{self, GatewayService};
use crate::hello::{Channel, Identity};
use crate::join::{self, JoinService};
use crate::limits::{COMPLAINT_INTERVAL, CONTROL_BYTES_MAX, GATEWAY_STREAMS_MAX, JOIN_STREAMS_MAX, SNAPSHOT_BYTES_MAX};
use crate::log_view::LogView;
use crate::metrics;
use crate::options::{Member, NetworkError, Peer};
use crate::server::{self, ServeError, Service};
use crate::wire::{Client, Wire};

/// What is known about the connection to one other member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerState {
    /// The member.
    pub node: NodeId,
    /// Its operator's name for it.
    pub name: String,
    /// Whether there is a connection.
    pub connected: bool,
    /// The other end of the newest connection, as a multiaddress.
    pub address: Option<String>,
    /// Round trip of the last ping.
    pub rtt: Option<Duration>,
}

/// The network's task has ended; the node is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the network has stopped")]
pub struct StoppedError;

#[derive(Debug)]
pub(crate) enum Command {
    Set(Member),
    Remove(NodeId),
}

/// Each member with the addresses at which it may be dialed.
pub(crate) type KnownAddresses = Vec<(NodeId, Vec<String>)>;

/// What streams share with the swarm task. Locks are held for look-ups only.
pub(crate) struct Shared {
    pub identity: Identity,
    pub directory: SharedDirectory,
    pub log: OnceLock<Arc<dyn LogView>>,
    pub refusals: Refusals,
    pub peers: watch::Sender<Arc<[PeerState]>>,
    /// Written by the swarm task when it learns something.
    pub addresses: Mutex<KnownAddresses>,
    pub sinks: Sinks,
    pub raft_bytes_max: u64,
    pub bundle_bytes_max: u64,
    pub gossip_bytes_max: u64,
    pub complaints: Complaints,
    /// Tasks that serve streams; they end with `stopped`.
    pub tasks: TaskTracker,
    /// Cancelled when the network ends, or is to end because a part of it has.
    pub stopped: CancellationToken,
}

impl Shared {
    pub fn frame_max(&self, channel: Channel) -> u64 {
        match channel {
            Channel::Raft => self.raft_bytes_max,
            Channel::Bundle => self.bundle_bytes_max,
            Channel::Control => CONTROL_BYTES_MAX,
            Channel::Snapshot => SNAPSHOT_BYTES_MAX,
        }
    }

    pub fn spawn_door(&self, door: impl Future<Output = ()> + Send + 'static) {
        spawn_door(&self.tasks, &self.stopped, door);
    }

    /// Takes note that a member refuses this node.
    pub fn refused_by(&self, node: NodeId, reason: &str) {
        if self.directory.read().get(node).is_some() {
            self.refusals.0.lock().insert(node, reason.to_owned());
        }
    }

    pub fn connected(&self, node: NodeId) -> bool {
        self.peers.borrow().iter().any(|peer| peer.node == node && peer.connected)
    }
}

/// Runs a task that takes streams in. When it ends, also by a panic, the network ends with it: nobody else would notice
/// that a protocol is not served any more.
fn spawn_door(tasks: &TaskTracker, stopped: &CancellationToken, door: impl Future<Output = ()> + Send + 'static) {
    let network_ends = stopped.clone().drop_guard();
    tasks.spawn(async move {
        door.await;
        drop(network_ends);
    });
}

/// Why members refuse this node: for each the last reason, until a stream between the two begins. Of members only.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<BTreeMap<NodeId, String>>);

impl Refusals {
    pub fn clear(&self, node: NodeId) {
        self.0.lock().remove(&node);
    }
}

/// Says the same about the same peer once a minute.
#[derive(Debug, Default)]
pub(crate) struct Complaints(Mutex<HashMap<(PeerId, &'static str), Instant>>);

impl Complaints {
    /// Most complaints remembered at a time; the memory then starts over, which costs repeated lines.
    const MAX: usize = 1024;

    /// Whether it is time to log `what` about `peer`.
    pub fn due(&self, peer: PeerId, what: &'static str) -> bool {
        let (mut last, now) = (self.0.lock(), Instant::now());
        if last.get(&(peer, what)).is_some_and(|at| now - *at < COMPLAINT_INTERVAL) {
            return false;
        }
        if last.len() >= Self::MAX {
            last.clear();
        }
        last.insert((peer, what), now);
        true
    }
}

/// What a handle on a real network has.
#[derive(Clone)]
pub(crate) struct SwarmHandle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) control: libp2p_stream::Control,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) publish: mpsc::Sender<Bytes>,
    pub(crate) listening: Arc<[String]>,
}

#[derive(Clone)]
enum Kind {
    Swarm(SwarmHandle),
    Wire(Arc<dyn Wire>),
}

/// Opens and serves streams, publishes, and tells who is connected. Clones share one network.
#[derive(Clone)]
pub struct Handle(Kind);

impl From<SwarmHandle> for Handle {
    fn from(swarm: SwarmHandle) -> Self {
        Self(Kind::Swarm(swarm))
    }
}

impl Handle {
    /// A handle on what stands in for the network.
    pub fn on(wire: Arc<dyn Wire>) -> Self {
        Self(Kind::Wire(wire))
    }

    /// A client of one member. It opens its stream at the first call. Every client has a stream of its own, so
    /// requests that must not wait for each other get one each.
    pub fn client(&self, target: NodeId, channel: Channel) -> Client {
        match &self.0 {
            Kind::Swarm(swarm) => {
                let client = StreamClient::new(swarm.shared.clone(), swarm.control.clone(), target, channel);
                Client::on_stream(target, client)
            }
            Kind::Wire(wire) => Client::on_wire(target, wire.connect(target, channel)),
        }
    }

    /// Answers the streams that members open on `channel`, until the network stops.
    pub fn serve<S: Service>(&self, channel: Channel, service: S) -> Result<(), ServeError> {
        match &self.0 {
            Kind::Swarm(swarm) => swarm.serve(channel, service),
            Kind::Wire(wire) => {
                let service = Arc::new(service);
                let answer = move |from, request| {
                    let service = service.clone();
                    async move { service.handle(from, request).await }.boxed()
                };
                wire.serve(channel, Box::new(answer));
                Ok(())
            }
        }
    }

    /// Answers requests to join, of strangers too, until the network stops.
    pub fn serve_join<S: JoinService>(&self, service: S) -> Result<(), ServeError> {
        let Kind::Swarm(swarm) = &self.0 else { return Ok(()) };
        let (sink, streams) = mpsc::channel(JOIN_STREAMS_MAX);
        swarm.shared.sinks.join.set(sink).map_err(|_| ServeError::AlreadyServed("join"))?;
        swarm.shared.spawn_door(join::accept(swarm.shared.clone(), streams, service));
        Ok(())
    }

    /// Answers bundles of gateways, and refuses those of others, until the network stops.
    pub fn serve_gateways<S: GatewayService>(&self, service: S) -> Result<(), ServeError> {
        let Kind::Swarm(swarm) = &self.0 else { return Ok(()) };
        let (sink, streams) = mpsc::channel(GATEWAY_STREAMS_MAX);
        swarm.shared.sinks.gateways.set(sink).map_err(|_| ServeError::AlreadyServed("gateway"))?;
        swarm.shared.spawn_door(gateway::accept(swarm.shared.clone(), streams, service));
        Ok(())
    }

    /// Tells the network how to know how far logs reach; until then it neither opens nor takes streams. Set once: a
    /// second one has no effect.
    pub fn set_log_view(&self, log: Arc<dyn LogView>) {
        match &self.0 {
            Kind::Swarm(swarm) => drop(swarm.shared.log.set(log)),
            Kind::Wire(wire) => wire.set_log_view(log),
        }
    }

    /// The members that refuse this node as it is, by node id, each with its last reason: this node's store was lost
    /// or restored from an older copy, or it is set up for another network. A member is left out once a stream
    /// between the two began, and so is one that only could not take the stream.
    pub fn refusals(&self) -> Vec<(NodeId, String)> {
        let Kind::Swarm(swarm) = &self.0 else { return Vec::new() };
        swarm.shared.refusals.0.lock().iter().map(|(node, reason)| (*node, reason.clone())).collect()
    }

    /// Where each other member may be dialed, by node id, the best address first: what the member list, this node's
    /// configuration and the members themselves say, and where they answered. To be kept on disk and given back as
    /// [`Options::address_book`](crate::Options::address_book).
    pub fn known_addresses(&self) -> Vec<(NodeId, Vec<String>)> {
        let Kind::Swarm(swarm) = &self.0 else { return Vec::new() };
        swarm.shared.addresses.lock().clone()
    }

    /// Gossips `bytes` to all members that can be reached. A hint: whatever keeps it from going out is counted
    /// (nobody connected, queue full, the same content within a minute, too large), and the caller has another way.
    pub fn publish(&self, bytes: Bytes) {
        match &self.0 {
            Kind::Swarm(swarm) => swarm.publish(bytes),
            Kind::Wire(wire) => wire.publish(bytes),
        }
    }

    /// The other members, by node id, and whether each is connected.
    pub fn peers(&self) -> Arc<[PeerState]> {
        self.watch_peers().borrow().clone()
    }

    /// Follows [`Handle::peers`]; wakes on connections and members, not on round-trip times.
    pub fn watch_peers(&self) -> watch::Receiver<Arc<[PeerState]>> {
        match &self.0 {
            Kind::Swarm(swarm) => swarm.shared.peers.subscribe(),
            Kind::Wire(wire) => wire.watch_peers(),
        }
    }

    /// Multiaddresses of the listening sockets, with the ports that the system chose.
    pub fn listen_addresses(&self) -> &[String] {
        match &self.0 {
            Kind::Swarm(swarm) => &swarm.listening,
            Kind::Wire(_) => &[],
        }
    }

    /// Adds a member or changes it; a member with the same key under another node id is replaced. Where key or
    /// incarnation differ from before, its connections are closed, so that every stream says `Hello` anew; so are
    /// those that it opened as a stranger, so that it gets streams and gossip on the next ones. Takes effect shortly after it returns; waits while very many changes are under way.
    pub async fn set_member(&self, peer: Peer) -> Result<(), NetworkError> {
        match &self.0 {
            Kind::Swarm(swarm) => {
                Ok(swarm.commands.send(Command::Set(peer.try_into()?)).await.map_err(|_| StoppedError)?)
            }
            Kind::Wire(wire) => {
                wire.set_member(peer);
                Ok(())
            }
        }
    }

    /// Removes a member and closes its connections. It is a stranger then.
    pub async fn remove_member(&self, node: NodeId) -> Result<(), StoppedError> {
        match &self.0 {
            Kind::Swarm(swarm) => swarm.commands.send(Command::Remove(node)).await.map_err(|_| StoppedError),
            Kind::Wire(wire) => {
                wire.remove_member(node);
                Ok(())
            }
        }
    }
}

impl SwarmHandle {
    fn serve<S: Service>(&self, channel: Channel, service: S) -> Result<(), ServeError> {
        let protocol = self.shared.identity.protocol(channel);
        let incoming = self.control.clone().accept(protocol).map_err(|_| ServeError::AlreadyServed(channel.name()))?;
        self.shared.spawn_door(server::accept(self.shared.clone(), channel, incoming, service));
        Ok(())
    }

    fn publish(&self, bytes: Bytes) {
        if bytes.len() as u64 > self.shared.gossip_bytes_max {
            metrics::published("too_large");
        } else if self.publish.try_send(bytes).is_err() {
            metrics::published("queue_full");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_network_ends_with_a_task_that_takes_streams_in_also_when_that_panics() {
        for panics in [false, true] {
            let (tasks, stopped) = (TaskTracker::new(), CancellationToken::new());
            let (go, wait) = tokio::sync::oneshot::channel::<()>();
            spawn_door(&tasks, &stopped, async move {
                wait.await.unwrap();
                assert!(!panics, "on purpose");
            });
            assert!(!stopped.is_cancelled());
            go.send(()).unwrap();
            tokio::time::timeout(Duration::from_secs(20), stopped.cancelled()).await.expect("the network was told");
        }
    }
}
