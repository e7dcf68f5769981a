//! The swarm task: connections, members and gossip. It never waits for anything but its next event.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use libp2p::core::ConnectedPoint;
use libp2p::core::transport::ListenerId;
use libp2p::gossipsub::PublishError;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, gossipsub, identify, ping};
use lockstep_types::NodeId;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::addresses::{Origin, at_host_of};
use crate::behaviour::{self, Behaviour, BehaviourEvent, Protocols, ProtocolsEvent, Sinks};
use crate::directory::Directory;
use crate::gossip::{self, Deliveries, GossipInbox, Verdict};
use crate::handle::{Command, Complaints, Handle, PeerState, Refusals, Shared, SwarmHandle};
use crate::hello::Identity;
use crate::hints::Hints;
use crate::limits::{ADDRESSES_PER_MESSAGE_MAX, COMMANDS_MAX, CONNECT_TIMEOUT, PUBLISH_QUEUE_MAX};
use crate::links::{Due, Links};
use crate::listen::listen_addresses;
use crate::lookup::Found;
use crate::metrics;
use crate::options::{Member, NetworkError, Options, split_peer};

/// The network before and while it runs. [`Network::run`] is its one task.
pub struct Network {
    swarm: Swarm<Behaviour>,
    shared: Arc<Shared>,
    links: Links,
    hints: Hints,
    topic: gossipsub::IdentTopic,
    deliveries: Deliveries,
    verdicts: mpsc::Receiver<Verdict>,
    commands: mpsc::Receiver<Command>,
    publish: mpsc::Receiver<Bytes>,
}

impl Network {
    /// Checks the options and opens the listening sockets, so that a used port is an error here and not later.
    /// Nothing is dialed or answered before [`Network::run`].
    pub fn bind(options: Options) -> BoxFuture<'static, Result<(Self, Handle, GossipInbox), NetworkError>> {
        // Boxed, so that this crate compiles it, and not each program that awaits it.
        Box::pin(Self::bind_to(options))
    }

    async fn bind_to(options: Options) -> Result<(Self, Handle, GossipInbox), NetworkError> {
        let members = options.others()?;
        let identity = Identity {
            network: options.network,
            epoch: options.epoch,
            node: options.node,
            incarnation: options.incarnation,
        };
        let addresses = listen_addresses(&options.listen)?;
        let hints = Hints::new(&options)?;
        let peers: Vec<PeerId> = members.iter().map(|member| member.peer).collect();
        let directory = Arc::new(RwLock::new(Directory::new(&members).with_gateways(&options.gateways)));
        let sinks = Sinks::default();
        let swarm = behaviour::swarm(&options, &identity, &peers, &directory, &sinks)?;
        let (inbox, deliveries, verdicts) = gossip::inbox(options.gossip_bytes_max);
        let (commands, commands_out) = mpsc::channel(COMMANDS_MAX);
        let (publish, publish_out) = mpsc::channel(PUBLISH_QUEUE_MAX);
        let topic = gossip::topic(&identity);
        let shared = Arc::new(Shared {
            identity,
            directory,
            log: OnceLock::new(),
            refusals: Refusals::default(),
            addresses: Mutex::default(),
            sinks,
            peers: watch::Sender::new(Arc::from([])),
            raft_bytes_max: options.raft_bytes_max,
            bundle_bytes_max: options.bundle_bytes_max,
            gossip_bytes_max: options.gossip_bytes_max,
            complaints: Complaints::default(),
            tasks: TaskTracker::new(),
            stopped: CancellationToken::new(),
        });
        let mut network = Self {
            swarm,
            shared: shared.clone(),
            links: Links::default(),
            hints,
            topic,
            deliveries,
            verdicts,
            commands: commands_out,
            publish: publish_out,
        };
        for member in &members {
            network.link(member);
        }
        network.tell_peers();
        let listening = network.listen(addresses).await?;
        let control = network.of_members().streams.new_control();
        let handle = SwarmHandle { shared, control, commands, publish, listening: listening.into() }.into();
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

    /// Runs until `stop` is cancelled, or a task ends that takes streams in; then ends all streams and connections and
    /// waits for the tasks that served them.
    pub fn run(self, stop: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(self.run_until(stop))
    }

    async fn run_until(mut self, stop: CancellationToken) {
        let stopped = self.shared.stopped.clone();
        loop {
            let due_at = self.links.next_due().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                () = stop.cancelled() => break,
                () = stopped.cancelled() => break,
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

    fn of_members(&mut self) -> &mut Protocols {
        self.swarm.behaviour_mut().of_members()
    }

    fn dial_due(&mut self) {
        for due in self.links.due(Instant::now()) {
            match due {
                Due::Dial(node, peer, address) => self.dial(node, peer, address),
                Due::Find(peer) => self.find(peer),
            }
        }
    }

    fn dial(&mut self, node: NodeId, peer: PeerId, address: Multiaddr) {
        // A new port for each dial: one bound to the listening port would meet the peer's own dial half way.
        let dial = DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(vec![address]);
        let dial = dial.allocate_new_port().build();
        let connection = dial.connection_id();
        self.links.dialing(node, connection);
        if let Err(error) = self.swarm.dial(dial) {
            self.dial_failed(connection, &error);
        }
    }

    /// Asks the others where a member is.
    fn find(&mut self, peer: PeerId) {
        if self.links.iter().any(|(_, link)| link.connected()) {
            self.of_members().lookup.find(peer);
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
        let Some(failed) = self.links.dial_failed(connection, Instant::now(), jitter) else { return };
        metrics::connection("dial_failed");
        let node = failed.node;
        match error {
            DialError::WrongPeerId { obtained, address } if self.is_listed(node, address) => {
                if self.shared.complaints.due(*obtained, "wrong key") {
                    tracing::warn!(%node, %address, %obtained, "another key answers at this member's address");
                }
            }
            _ => tracing::debug!(%node, %error, "dial failed"),
        }
        if let Some(peer) = failed.find {
            self.find(peer);
        }
    }

    /// Whether the member list, and not only hearsay, says that a member is there.
    fn is_listed(&self, node: NodeId, address: &Multiaddr) -> bool {
        let listed = self.links.get(node).and_then(|link| link.addresses.listed());
        listed.is_some_and(|listed| split_peer(address.clone()).0 == *listed)
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
        let event = match event {
            BehaviourEvent::Members(event) => event,
            BehaviourEvent::Ping(ping::Event { peer, connection, result }) => {
                return self.on_ping(peer, connection, result);
            }
            BehaviourEvent::Doors(never) | BehaviourEvent::Join(never) | BehaviourEvent::Gateways(never) => {
                match never {}
            }
        };
        match event {
            ProtocolsEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                let from = self.node_of(&propagation_source);
                let refused = self.deliveries.deliver(message_id, propagation_source, from, message.data);
                if let Some(verdict) = refused {
                    self.judge(verdict);
                }
            }
            ProtocolsEvent::Identify(identify::Event::Received { peer_id, connection_id, info }) => {
                self.on_identified(peer_id, connection_id, info);
            }
            ProtocolsEvent::Lookup(Found { peer, addresses }) => {
                if let Some(node) = self.node_of(&peer) {
                    self.learn(node, addresses, Origin::Heard);
                }
            }
            _ => {}
        }
    }

    /// A member said who it is and where it listens.
    fn on_identified(&mut self, peer: PeerId, connection: ConnectionId, info: identify::Info) {
        let own = self.shared.identity.identify_protocol();
        if info.protocol_version != own {
            if self.shared.complaints.due(peer, "other network") {
                let theirs = info.protocol_version;
                tracing::warn!(%peer, theirs, own, "a member's key speaks for another network");
            }
            return;
        }
        let Some(node) = self.node_of(&peer) else { return };
        let said = info.listen_addrs.into_iter().take(ADDRESSES_PER_MESSAGE_MAX);
        let seen = self.links.get(node).and_then(|link| link.remote_of(connection)).cloned();
        let mut addresses: Vec<Multiaddr> = Vec::new();
        for said in said {
            let way_in = seen.as_ref().and_then(|seen| at_host_of(seen, &split_peer(said.clone()).0));
            addresses.extend(way_in.into_iter().chain([said]));
        }
        addresses.truncate(ADDRESSES_PER_MESSAGE_MAX);
        self.learn(node, addresses, Origin::Said);
    }

    fn learn(&mut self, node: NodeId, addresses: Vec<Multiaddr>, origin: Origin) {
        if self.links.learn(node, addresses, origin, Instant::now()) {
            tracing::debug!(%node, ?origin, "learned addresses of a member");
            self.tell_addresses(node);
        }
    }

    /// Lets others, and the node's address book, know where a member is.
    fn tell_addresses(&mut self, node: NodeId) {
        if let Some(link) = self.links.get(node) {
            let (peer, addresses) = (link.peer, link.addresses.to_tell().cloned().collect::<Vec<_>>());
            self.of_members().lookup.tell(&peer, addresses);
        }
        let texts = |link: &crate::links::Link| link.addresses.to_tell().map(ToString::to_string).collect();
        *self.shared.addresses.lock() = self.links.iter().map(|(node, link)| (node, texts(link))).collect();
    }

    fn on_opened(&mut self, peer: PeerId, connection: ConnectionId, endpoint: ConnectedPoint) {
        let Some(node) = self.node_of(&peer) else {
            let gateway = self.shared.directory.read().gateway(&peer).is_some();
            metrics::connection(if gateway { "gateway" } else { "stranger" });
            tracing::debug!(%peer, gateway, remote = %endpoint.get_remote_address(), "no member connected");
            return;
        };
        metrics::connection("opened");
        tracing::debug!(%node, remote = %endpoint.get_remote_address(), "connected");
        self.links.opened(node, connection, endpoint.get_remote_address().clone(), Instant::now());
        if let ConnectedPoint::Dialer { address, .. } = endpoint {
            self.learn(node, vec![address], Origin::Proven);
        }
        self.tell_peers();
    }

    fn on_closed(&mut self, node: NodeId, connection: ConnectionId) {
        self.links.closed(node, connection, Instant::now());
        self.tell_peers();
    }

    fn on_ping(&mut self, peer: PeerId, connection: ConnectionId, result: Result<Duration, ping::Failure>) {
        let Some(node) = self.node_of(&peer) else {
            // A stranger's time is over soon, a gateway's never: a dead connection must not keep its place.
            if result.is_err() && self.shared.directory.read().gateway(&peer).is_some() {
                self.swarm.close_connection(connection);
            }
            return;
        };
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
        self.swarm.behaviour_mut().doors.close_strange(member.peer);
        self.of_members().gossip.add_explicit_peer(&member.peer);
        self.link(&member);
    }

    /// Begins to look after the connections to a member.
    fn link(&mut self, member: &Member) {
        let now = Instant::now();
        self.links.set(member, now);
        self.links.learn(member.node, self.hints.of(member), Origin::Said, now);
        self.tell_addresses(member.node);
    }

    /// Forgets a member and closes its connections, also where it is a member again before the swarm gets to it.
    fn part(&mut self, member: &Member) {
        self.links.remove(member.node);
        self.shared.refusals.clear(member.node);
        let protocols = self.of_members();
        protocols.gossip.remove_explicit_peer(&member.peer);
        protocols.lookup.forget(&member.peer);
        self.swarm.behaviour_mut().doors.close(member.peer);
        self.tell_addresses(member.node);
    }

    fn publish(&mut self, bytes: Bytes) {
        let topic = self.topic.clone();
        let result = match self.of_members().gossip.publish(topic, bytes) {
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
        self.of_members().gossip.report_message_validation_result(&message, &from, acceptance);
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
