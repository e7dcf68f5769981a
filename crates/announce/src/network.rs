//! The swarm task: connections, finding peers, gossip. It never waits for anything but its next event.

use std::net::{IpAddr, TcpListener};
use std::time::Duration;

use futures::StreamExt as _;
use libp2p::core::transport::ListenerId;
use libp2p::kad::store::RecordStore as _;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, gossipsub, identify, kad};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::announcement::Announcement;
use crate::behaviour::{self, Behaviour, BehaviourEvent, kad_protocol, rendezvous, topic};
use crate::limits::{
    ADDRESSES_PER_PEER_MAX, CONNECT_TIMEOUT, PROVIDE_INTERVAL, PROVIDERS_DIALED_MAX, PUBLISH_QUEUE_MAX, ROUND_MAX,
    ROUND_MIN,
};
use crate::metrics;
use crate::options::{AnnounceError, Options};

/// Why an announcement did not go out; all of them may be tried again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishError {
    #[error("nobody on W3bstream's network listens to announcements")]
    Nobody,
    #[error("the peers on W3bstream's network take announcements too slowly")]
    Busy,
    #[error("an announcement cannot be sent: {0}")]
    Failed(String),
}

/// Something to be sent to all who listen.
#[derive(Debug)]
pub(crate) struct Publish {
    pub bytes: Vec<u8>,
    pub told: oneshot::Sender<Result<(), PublishError>>,
}

/// Where the one who announces reaches the swarm.
#[derive(Debug)]
pub(crate) struct Link {
    pub publish: mpsc::Sender<Publish>,
    /// Peers that listen to announcements.
    pub peers: watch::Receiver<usize>,
}

/// When to look for peers.
#[derive(Debug)]
struct Rounds {
    next: Instant,
    pause: Duration,
    /// When others were last told that this node is at the rendezvous.
    provided: Option<Instant>,
}

/// The network before and while it runs.
pub(crate) struct Network {
    swarm: Swarm<Behaviour>,
    kad_protocol: StreamProtocol,
    bootstrap: Vec<(PeerId, Multiaddr)>,
    rounds: Rounds,
    /// Whether addresses that listening gives are told to others.
    tells_listening: bool,
    /// Whether the operator wants it to listen on the loopback address: then others may be told.
    loopback: bool,
    publish: mpsc::Receiver<Publish>,
    peers: watch::Sender<usize>,
}

fn is_loopback(address: &Multiaddr) -> bool {
    address.iter().any(|part| match part {
        Protocol::Ip4(ip) => ip.is_loopback(),
        Protocol::Ip6(ip) => ip.is_loopback(),
        _ => false,
    })
}

/// Makes sure that a port is free. libp2p would share it with another process of the same user (SO_REUSEPORT), and each
/// would get some of the connections.
fn check_port(address: &Multiaddr) -> Result<(), String> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Ok(()),
    };
    let Some(Protocol::Tcp(port)) = parts.next() else { return Ok(()) };
    if port == 0 {
        return Ok(());
    }
    match TcpListener::bind((ip, port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Err(format!("port {port} is in use by another program"))
        }
        Err(error) => Err(error.to_string()),
    }
}

impl Network {
    /// Checks the options and opens the listening sockets, so that a used port is an error here and not later.
    /// Returns the addresses that were given.
    pub async fn bind(options: &Options) -> Result<(Self, Link, Vec<String>), AnnounceError> {
        let (bootstrap, listen) = (options.bootstrap()?, options.listening()?);
        let (publish, publish_out) = mpsc::channel(PUBLISH_QUEUE_MAX);
        let (peers, peers_out) = watch::channel(0);
        let mut network = Self {
            swarm: behaviour::swarm(options)?,
            kad_protocol: kad_protocol(options.chain_id)?,
            bootstrap,
            rounds: Rounds { next: Instant::now(), pause: ROUND_MIN, provided: None },
            tells_listening: options.advertise.is_empty(),
            loopback: listen.iter().any(is_loopback),
            publish: publish_out,
            peers,
        };
        let known = network.listen(listen).await?;
        Ok((network, Link { publish, peers: peers_out }, known))
    }

    /// Opens the sockets and waits until each has said its address.
    async fn listen(&mut self, addresses: Vec<Multiaddr>) -> Result<Vec<String>, AnnounceError> {
        let mut waiting: Vec<(ListenerId, Multiaddr)> = Vec::new();
        for address in addresses {
            let failed = |reason: String| AnnounceError::Listen { address: address.to_string(), reason };
            check_port(&address).map_err(failed)?;
            let id = self.swarm.listen_on(address.clone()).map_err(|error| failed(error.to_string()))?;
            waiting.push((id, address));
        }
        let (deadline, mut known) = (Instant::now() + CONNECT_TIMEOUT, Vec::new());
        while let Some((_, address)) = waiting.first() {
            let failed = |reason: String| AnnounceError::Listen { address: address.to_string(), reason };
            let event = tokio::time::timeout_at(deadline, self.swarm.select_next_some());
            match event.await.map_err(|_| failed("the socket gave no address in time".into()))? {
                SwarmEvent::ListenerError { error, .. } | SwarmEvent::ListenerClosed { reason: Err(error), .. } => {
                    return Err(failed(error.to_string()));
                }
                SwarmEvent::NewListenAddr { listener_id, address } => {
                    waiting.retain(|(id, _)| *id != listener_id);
                    known.push(address.to_string());
                    self.on_listening(address);
                }
                other => self.on_event(other),
            }
        }
        Ok(known)
    }

    pub fn peer_id(&self) -> PeerId {
        *self.swarm.local_peer_id()
    }

    /// Runs until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        self.count_peers();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                event = self.swarm.select_next_some() => self.on_event(event),
                Some(Publish { bytes, told }) = self.publish.recv() => {
                    // Whoever asked may be gone; then nobody counts on it.
                    let _ = told.send(self.publish(bytes));
                }
                () = tokio::time::sleep_until(self.rounds.next) => self.look_around(),
            }
        }
    }

    fn publish(&mut self, bytes: Vec<u8>) -> Result<(), PublishError> {
        match self.swarm.behaviour_mut().gossip.publish(topic(), bytes) {
            Ok(_) => Ok(()),
            Err(gossipsub::PublishError::NoPeersSubscribedToTopic) => Err(PublishError::Nobody),
            Err(gossipsub::PublishError::AllQueuesFull(_)) => Err(PublishError::Busy),
            Err(error) => Err(PublishError::Failed(error.to_string())),
        }
    }

    /// One round of looking for peers: those of the configuration, and those at the rendezvous.
    fn look_around(&mut self) {
        let now = Instant::now();
        for (peer, address) in self.bootstrap.clone() {
            self.dial(peer, vec![address]);
        }
        if self.knows_anybody() {
            let kad = &mut self.swarm.behaviour_mut().kad;
            kad.get_providers(rendezvous());
            if self.rounds.provided.is_none_or(|at| now >= at + PROVIDE_INTERVAL) {
                match kad.start_providing(rendezvous()) {
                    Ok(_) => self.rounds.provided = Some(now),
                    Err(error) => tracing::warn!(%error, "others are not told of this node at W3bstream's rendezvous"),
                }
            }
        }
        let quiet = *self.peers.borrow() > 0;
        self.rounds.pause = if quiet { ROUND_MAX } else { (self.rounds.pause * 2).min(ROUND_MAX) };
        self.rounds.next = now + self.rounds.pause.mul_f64(rand::random_range(0.75..1.0));
    }

    /// Looks around soon: something has changed.
    fn hurry(&mut self) {
        self.rounds.pause = ROUND_MIN;
        self.rounds.next = self.rounds.next.min(Instant::now() + ROUND_MIN);
    }

    fn knows_anybody(&mut self) -> bool {
        self.swarm.behaviour_mut().kad.kbuckets().any(|bucket| !bucket.is_empty())
    }

    /// Dials a peer that is neither connected nor being dialed, at these addresses and at those that the table has.
    fn dial(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let dial = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).addresses(addresses);
        // A new port for each dial: one bound to the listening port would meet the peer's own dial half way.
        let dial = dial.extend_addresses_through_behaviour().allocate_new_port().build();
        if let Err(error) = self.swarm.dial(dial) {
            tracing::trace!(%peer, %error, "not dialed");
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(event)) => self.on_gossip(event),
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.on_kad(event),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                self.on_identified(peer_id, info);
            }
            SwarmEvent::NewListenAddr { address, .. } => self.on_listening(address),
            SwarmEvent::ExpiredListenAddr { address, .. } => self.swarm.remove_external_address(&address),
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, cause, .. } => {
                tracing::debug!(peer = %peer_id, cause = cause.map(|c| c.to_string()), "disconnected");
                self.count_peers();
                self.hurry();
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                tracing::debug!(peer = peer_id.map(|p| p.to_string()), %error, "dial failed");
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listening socket"),
            SwarmEvent::ListenerClosed { addresses, reason: Err(error), .. } => {
                tracing::error!(?addresses, %error, "listening socket closed: W3bstream's peers can no longer connect to this node");
            }
            _ => {}
        }
    }

    /// Others learn the address with the provider record, unless the operator named other ones.
    fn on_listening(&mut self, address: Multiaddr) {
        if self.tells_listening && (self.loopback || !is_loopback(&address)) {
            self.swarm.add_external_address(address);
            self.rounds.provided = None;
            self.hurry();
        }
    }

    /// A peer said where it listens: that is how those that connected to this node come into the table.
    fn on_identified(&mut self, peer: PeerId, info: identify::Info) {
        if !info.protocols.contains(&self.kad_protocol) {
            return;
        }
        for address in info.listen_addrs.into_iter().take(ADDRESSES_PER_PEER_MAX) {
            self.swarm.behaviour_mut().kad.add_address(&peer, address);
        }
    }

    fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                // What is no announcement is not passed on.
                let acceptance = match Announcement::from_bytes(&message.data) {
                    Some(_) => gossipsub::MessageAcceptance::Accept,
                    None => gossipsub::MessageAcceptance::Reject,
                };
                let gossip = &mut self.swarm.behaviour_mut().gossip;
                gossip.report_message_validation_result(&message_id, &propagation_source, acceptance);
            }
            gossipsub::Event::Subscribed { .. } | gossipsub::Event::Unsubscribed { .. } => self.count_peers(),
            _ => {}
        }
    }

    fn on_kad(&mut self, event: kad::Event) {
        match event {
            kad::Event::InboundRequest { request: kad::InboundRequest::AddProvider { record: Some(record) } }
                if record.key == rendezvous() =>
            {
                // There is room for some; a full table is no fault.
                if let Err(error) = self.swarm.behaviour_mut().kad.store_mut().add_provider(record) {
                    tracing::debug!(%error, "a provider is not kept");
                }
            }
            kad::Event::OutboundQueryProgressed {
                result: kad::QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders { providers, .. })),
                ..
            } => {
                let own = *self.swarm.local_peer_id();
                for peer in providers.into_iter().filter(|peer| *peer != own).take(PROVIDERS_DIALED_MAX) {
                    self.dial(peer, Vec::new());
                }
            }
            kad::Event::RoutingUpdated { is_new_peer: true, peer, .. } => {
                tracing::debug!(%peer, "a peer of W3bstream's network");
                // It may be the one that is to keep this node's record.
                self.rounds.provided = None;
                self.hurry();
            }
            _ => {}
        }
    }

    /// Counts those who listen to announcements.
    fn count_peers(&mut self) {
        let topic = topic().hash();
        let gossip = &self.swarm.behaviour().gossip;
        let count = gossip.all_peers().filter(|(_, topics)| topics.contains(&&topic)).count();
        metrics::peers(count);
        self.peers.send_if_modified(|known| std::mem::replace(known, count) != count);
    }
}
