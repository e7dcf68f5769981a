//! The swarm task: connections, members and gossip. It never waits for anything but its next event.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use libp2p::core::ConnectedPoint;
use libp2p::core::transport::ListenerId;
use libp2p::gossipsub::PublishError;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, gossipsub, identify, ping};
use lockstep_types::NodeId;
use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::behaviour::{self, Behaviour, BehaviourEvent};
use crate::directory::Directory;
use crate::gossip::{self, Deliveries, GossipInbox, Verdict};
use crate::handle::{Command, Complaints, Handle, PeerState, Shared};
use crate::hello::Identity;
use crate::limits::{COMMANDS_MAX, CONNECT_TIMEOUT, PUBLISH_QUEUE_MAX};
use crate::links::Links;
use crate::metrics;
use crate::options::{Member, NetworkError, Options, multiaddr};

/// The network before and while it runs. [`Network::run`] is its one task.
pub struct Network {
    swarm: Swarm<Behaviour>,
    shared: Arc<Shared>,
    links: Links,
    topic: gossipsub::IdentTopic,
    deliveries: Deliveries,
    verdicts: mpsc::Receiver<Verdict>,
    commands: mpsc::Receiver<Command>,
    publish: mpsc::Receiver<Bytes>,
}

impl Network {
    /// Checks the options and opens the listening sockets, so that a used port is an error here and not later.
    /// Nothing is dialed or answered before [`Network::run`].
    pub async fn bind(options: Options) -> Result<(Self, Handle, GossipInbox), NetworkError> {
        let members = options.others()?;
        let identity = Identity {
            network: options.network,
            epoch: options.epoch,
            node: options.node,
            incarnation: options.incarnation,
        };
        let addresses = listen_addresses(&options.listen)?;
        let peers: Vec<PeerId> = members.iter().map(|member| member.peer).collect();
        let swarm = behaviour::swarm(&options, &identity, &peers)?;
        let (inbox, deliveries, verdicts) = gossip::inbox(options.gossip_bytes_max);
        let (commands, commands_out) = mpsc::channel(COMMANDS_MAX);
        let (publish, publish_out) = mpsc::channel(PUBLISH_QUEUE_MAX);
        let topic = gossip::topic(&identity);
        let shared = Arc::new(Shared {
            identity,
            directory: RwLock::new(Directory::new(&members)),
            peers: watch::Sender::new(Arc::from([])),
            raft_bytes_max: options.raft_bytes_max,
            bundle_bytes_max: options.bundle_bytes_max,
            gossip_bytes_max: options.gossip_bytes_max,
            complaints: Complaints::default(),
            tasks: TaskTracker::new(),
            stopped: CancellationToken::new(),
        });
        let mut links = Links::default();
        for member in &members {
            links.set(member, Instant::now());
        }
        let mut network = Self {
            swarm,
            shared: shared.clone(),
            links,
            topic,
            deliveries,
            verdicts,
            commands: commands_out,
            publish: publish_out,
        };
        network.tell_peers();
        let listening = network.listen(addresses).await?;
        let control = network.swarm.behaviour().streams.new_control();
        let handle = Handle { shared, control, commands, publish, listening: listening.into() };
        Ok((network, handle, inbox))
    }

    /// Opens the sockets and waits until each has said its address.
    async fn listen(&mut self, addresses: Vec<Multiaddr>) -> Result<Vec<String>, NetworkError> {
        let mut waiting: Vec<(ListenerId, Multiaddr)> = Vec::new();
        for address in addresses {
            let failed = |reason| NetworkError::Listen { address: address.to_string(), reason };
            let id = self.swarm.listen_on(address.clone()).map_err(|error| failed(error.to_string()))?;
            waiting.push((id, address));
        }
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let mut known = Vec::new();
        while let Some((_, address)) = waiting.first() {
            let failed = |reason| NetworkError::Listen { address: address.to_string(), reason };
            let event = tokio::time::timeout_at(deadline, self.swarm.select_next_some());
            match event.await.map_err(|_| failed("the socket gave no address in time".into()))? {
                SwarmEvent::NewListenAddr { listener_id, address } => {
                    waiting.retain(|(id, _)| *id != listener_id);
                    known.push(address.to_string());
                }
                SwarmEvent::ListenerError { listener_id, error }
                | SwarmEvent::ListenerClosed { listener_id, reason: Err(error), .. } => {
                    let (_, address) = waiting.iter().find(|(id, _)| *id == listener_id).unwrap_or(&waiting[0]);
                    return Err(NetworkError::Listen { address: address.to_string(), reason: error.to_string() });
                }
                other => self.on_event(other),
            }
        }
        Ok(known)
    }

    /// Runs until `stop` is cancelled; then ends all streams and connections and waits for the tasks that served
    /// them.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let due_at = self.links.next_due().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                () = stop.cancelled() => break,
                event = self.swarm.select_next_some() => self.on_event(event),
                Some(bytes) = self.publish.recv() => self.publish(bytes),
                Some(verdict) = self.verdicts.recv() => self.judge(verdict),
                Some(command) = self.commands.recv() => self.on_command(command),
                () = tokio::time::sleep_until(due_at) => {
                    self.give_up_silent();
                    self.dial_due();
                }
            }
        }
        // Dropping the rest closes listeners and connections, and fails what handles still ask for.
        let shared = self.shared.clone();
        drop(self);
        shared.tasks.wait().await;
    }

    fn dial_due(&mut self) {
        for (peer, address, node) in self.links.due(Instant::now()) {
            // A new port for each dial: one bound to the listening port would meet the peer's own dial half way.
            let dial = DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(vec![address]);
            let dial = dial.allocate_new_port().build();
            let connection = dial.connection_id();
            self.links.dialing(node, connection);
            if let Err(error) = self.swarm.dial(dial) {
                self.dial_failed(connection, &error);
            }
        }
    }

    fn give_up_silent(&mut self) {
        for (node, connection) in self.links.silent(Instant::now()) {
            metrics::connection("silent");
            tracing::debug!(%node, "no answer to pings, closing the connection");
            self.give_up(node, connection);
        }
    }

    /// Forgets a connection before it is closed: closing may wait for a peer that never reads again.
    fn give_up(&mut self, node: NodeId, connection: ConnectionId) {
        self.on_closed(node, connection);
        self.swarm.close_connection(connection);
    }

    fn dial_failed(&mut self, connection: ConnectionId, error: &DialError) {
        // Behaviours also dial, without addresses; those failures say nothing.
        let jitter = rand::random_range(0.5..1.0);
        let Some(node) = self.links.dial_failed(connection, Instant::now(), jitter) else { return };
        metrics::connection("dial_failed");
        match error {
            DialError::WrongPeerId { obtained, address } if self.shared.complaints.due(*obtained, "wrong key") => {
                tracing::warn!(%node, %address, %obtained, "another key answers at this member's address");
            }
            _ => tracing::debug!(%node, %error, "dial failed"),
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_opened(peer_id, connection_id, endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                metrics::connection("closed");
                let Some(node) = self.node_of(&peer_id) else { return };
                tracing::debug!(%node, cause = cause.map(|c| c.to_string()), "connection closed");
                self.on_closed(node, connection_id);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.dial_failed(connection_id, &error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                metrics::connection("inbound_failed");
                tracing::debug!(%send_back_addr, %error, "inbound connection failed");
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listening socket"),
            SwarmEvent::ListenerClosed { addresses, reason: Err(error), .. } => {
                tracing::error!(?addresses, %error, "listening socket closed: members can no longer connect to this node");
            }
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Ping(ping::Event { peer, connection, result }) => self.on_ping(peer, connection, result),
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                let from = self.node_of(&propagation_source);
                let refused = self.deliveries.deliver(message_id, propagation_source, from, message.data);
                if let Some(verdict) = refused {
                    self.judge(verdict);
                }
            }
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                let own = self.shared.identity.identify_protocol();
                if info.protocol_version != own && self.shared.complaints.due(peer_id, "other network") {
                    let theirs = info.protocol_version;
                    tracing::warn!(%peer_id, theirs, own, "a member's key speaks for another network");
                }
            }
            _ => {}
        }
    }

    fn on_opened(&mut self, peer: PeerId, connection: ConnectionId, endpoint: ConnectedPoint) {
        metrics::connection("opened");
        let Some(node) = self.node_of(&peer) else { return };
        tracing::debug!(%node, remote = %endpoint.get_remote_address(), "connected");
        self.links.opened(node, connection, endpoint.get_remote_address().clone(), Instant::now());
        self.tell_peers();
    }

    fn on_closed(&mut self, node: NodeId, connection: ConnectionId) {
        self.links.closed(node, connection, Instant::now());
        self.tell_peers();
    }

    fn on_ping(&mut self, peer: PeerId, connection: ConnectionId, result: Result<Duration, ping::Failure>) {
        let Some(node) = self.node_of(&peer) else { return };
        match result {
            Ok(rtt) => {
                self.links.heard(node, connection, rtt, Instant::now());
                let peers = self.snapshot();
                self.shared.peers.send_if_modified(|known| {
                    *known = peers;
                    false
                });
            }
            Err(error) => {
                tracing::debug!(%node, %error, "ping failed, closing the connection");
                self.give_up(node, connection);
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Set(member) => self.set_member(member),
            Command::Remove(node) => {
                let removed = self.shared.directory.write().remove(node);
                if let Some(member) = removed {
                    self.part(&member);
                }
            }
        }
        self.tell_peers();
    }

    fn set_member(&mut self, member: Member) {
        if member.node == self.shared.identity.node || member.peer == *self.swarm.local_peer_id() {
            return;
        }
        let replaced = self.shared.directory.write().set(member.clone());
        for old in replaced {
            let same = old.node == member.node && old.peer == member.peer;
            if !same || old.incarnation != member.incarnation {
                self.part(&old);
            }
        }
        self.swarm.behaviour_mut().allowed.allow_peer(member.peer);
        self.swarm.behaviour_mut().gossip.add_explicit_peer(&member.peer);
        self.links.set(&member, Instant::now());
    }

    /// Forgets a member and closes its connections, also where it is allowed again before the swarm gets to it.
    fn part(&mut self, member: &Member) {
        self.links.remove(member.node);
        self.swarm.behaviour_mut().gossip.remove_explicit_peer(&member.peer);
        self.swarm.behaviour_mut().allowed.disallow_peer(member.peer);
    }

    fn publish(&mut self, bytes: Bytes) {
        let topic = self.topic.clone();
        let result = match self.swarm.behaviour_mut().gossip.publish(topic, bytes) {
            Ok(_) => "sent",
            Err(PublishError::NoPeersSubscribedToTopic) => "no_peers",
            Err(PublishError::Duplicate) => "duplicate",
            Err(PublishError::AllQueuesFull(_)) => "queue_full",
            Err(PublishError::MessageTooLarge) => "too_large",
            Err(error) => {
                tracing::debug!(%error, "gossip not published");
                "failed"
            }
        };
        metrics::published(result);
    }

    fn judge(&mut self, verdict: Verdict) {
        let Verdict { message, from, acceptance } = verdict;
        self.swarm.behaviour_mut().gossip.report_message_validation_result(&message, &from, acceptance);
    }

    fn node_of(&self, peer: &PeerId) -> Option<NodeId> {
        self.shared.directory.read().by_peer(peer).map(|member| member.node)
    }

    fn snapshot(&self) -> Arc<[PeerState]> {
        let state = |(node, link): (NodeId, &crate::links::Link)| PeerState {
            node,
            name: link.name.clone(),
            connected: link.connected(),
            address: link.remote().map(ToString::to_string),
            rtt: link.rtt,
        };
        self.links.iter().map(state).collect()
    }

    fn tell_peers(&self) {
        let peers = self.snapshot();
        metrics::members_connected(peers.iter().filter(|peer| peer.connected).count());
        self.shared.peers.send_if_modified(|known| {
            let modified = *known != peers;
            *known = peers;
            modified
        });
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Also when it never ran: services must not wait for streams that cannot come.
        self.shared.stopped.cancel();
        self.shared.tasks.close();
        self.shared.peers.send_replace(Arc::from([]));
    }
}

/// Reads the addresses and makes sure that each port is free. libp2p would share a port with another process of the
/// same user (SO_REUSEPORT), and each would get some of the connections.
fn listen_addresses(listen: &[String]) -> Result<Vec<Multiaddr>, NetworkError> {
    let mut addresses = Vec::new();
    for text in listen {
        let address = multiaddr(text, "the listening address")?;
        if let Some(socket) = tcp_socket(&address) {
            TcpListener::bind(socket).map_err(|error| NetworkError::Listen {
                address: text.clone(),
                reason: match error.kind() {
                    std::io::ErrorKind::AddrInUse => format!("port {} is in use by another program", socket.port()),
                    _ => error.to_string(),
                },
            })?;
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn tcp_socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) if port != 0 => Some((ip, port).into()),
        _ => None,
    }
}
