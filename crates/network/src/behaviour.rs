//! The swarm: transports, who may connect, and how much of everything.

use std::time::Duration;

use libp2p::allow_block_list::{self, AllowedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::swarm::NetworkBehaviour;
use libp2p::{PeerId, Swarm, SwarmBuilder, gossipsub, identify, noise, ping, tcp, yamux};

use crate::gossip;
use crate::hello::Identity;
use crate::limits::{
    CONNECT_TIMEOUT, CONNECTIONS_MAX, CONNECTIONS_PER_PEER_MAX, PENDING_INBOUND_MAX, PENDING_OUTBOUND_MAX,
    PING_INTERVAL, SILENCE_MAX,
};
use crate::options::{NetworkError, Options, keypair};

/// Members stay connected whether or not they have something to say.
const IDLE_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// What runs on every connection. The order matters: whoever is over a limit or not a member is turned away before
/// `streams` keeps anything about it.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    limits: connection_limits::Behaviour,
    pub allowed: allow_block_list::Behaviour<AllowedPeers>,
    ping: ping::Behaviour,
    identify: identify::Behaviour,
    pub gossip: gossipsub::Behaviour,
    pub streams: libp2p_stream::Behaviour,
}

impl Behaviour {
    fn new(options: &Options, identity: &Identity, members: &[PeerId]) -> Result<Self, NetworkError> {
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(PENDING_INBOUND_MAX))
            .with_max_pending_outgoing(Some(PENDING_OUTBOUND_MAX))
            .with_max_established(Some(CONNECTIONS_MAX))
            .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX));
        let mut allowed = allow_block_list::Behaviour::default();
        for member in members {
            allowed.allow_peer(*member);
        }
        // Nothing is learned from identify but whether the peer speaks for the same network: addresses come from the
        // member list.
        let identify = identify::Config::new(identity.identify_protocol(), keypair(&options.key).public())
            .with_agent_version(concat!("lockstep/", env!("CARGO_PKG_VERSION")).into())
            .with_cache_size(0);
        Ok(Self {
            limits: connection_limits::Behaviour::new(limits),
            allowed,
            ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(SILENCE_MAX)),
            identify: identify::Behaviour::new(identify),
            gossip: gossip::behaviour(identity, options.gossip_bytes_max, members).map_err(NetworkError::Transport)?,
            streams: libp2p_stream::Behaviour::new(),
        })
    }
}

/// Builds the swarm; nothing listens or dials yet. Needs a tokio runtime.
pub(crate) fn swarm(
    options: &Options,
    identity: &Identity,
    members: &[PeerId],
) -> Result<Swarm<Behaviour>, NetworkError> {
    let transport = |error: &dyn std::fmt::Display| NetworkError::Transport(error.to_string());
    let behaviour = Behaviour::new(options, identity, members)?;
    // Of yamux the defaults hold: a stream's window starts at 256 KiB and doubles while a transfer fills it, up to
    // 1 GiB over all streams of a connection; only members ever get a connection.
    let builder = SwarmBuilder::with_existing_identity(keypair(&options.key))
        .with_tokio()
        .with_tcp(tcp::Config::new().nodelay(true), noise::Config::new, yamux::Config::default)
        .map_err(|error| transport(&error))?;
    #[cfg(feature = "quic")]
    let builder = builder.with_quic();
    let swarm = builder
        .with_dns()
        .map_err(|error| transport(&error))?
        .with_behaviour(|_| behaviour)
        .map_err(|error| transport(&error))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_TIMEOUT))
        .with_connection_timeout(CONNECT_TIMEOUT)
        .build();
    Ok(swarm)
}
