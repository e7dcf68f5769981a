//! The swarm: transports, who may connect, and what runs on a connection.

use std::time::Duration;

use libp2p::swarm::NetworkBehaviour;
use libp2p::{PeerId, Swarm, SwarmBuilder, gossipsub, identify, ping};

use crate::directory::SharedDirectory;
use crate::doors::Doors;
use crate::gossip;
use crate::hello::{GATEWAY_PROTOCOL, Identity, JOIN_PROTOCOL};
use crate::limits::{CONNECT_TIMEOUT, GATEWAY_STREAMS_MAX, JOIN_STREAMS_MAX, PING_INTERVAL, SILENCE_MAX};
use crate::lookup::Lookup;
use crate::members_only::MembersOnly;
use crate::open_streams::{self, Kind, Sink};
use crate::options::{NetworkError, Options, keypair, peer_id};
use crate::transport;

/// Members stay connected whether or not they have something to say; strangers' time is bounded elsewhere.
const IDLE_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// What runs on every connection. The order matters: whoever is turned away is so before anything else is kept of it.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    pub doors: Doors,
    /// For strangers too: a newcomer takes a connection on which nobody answers pings for broken.
    ping: ping::Behaviour,
    join: open_streams::Behaviour,
    /// For whoever asks, so that one that is not admitted is told so.
    gateways: open_streams::Behaviour,
    members: MembersOnly<Protocols>,
}

/// What runs on the connections of members.
#[derive(NetworkBehaviour)]
pub(crate) struct Protocols {
    identify: identify::Behaviour,
    pub gossip: gossipsub::Behaviour,
    pub lookup: Lookup,
    pub streams: libp2p_stream::Behaviour,
}

impl Behaviour {
    /// The protocols of members.
    pub fn of_members(&mut self) -> &mut Protocols {
        &mut self.members.inner
    }
}

fn protocols(options: &Options, identity: &Identity, members: &[PeerId]) -> Result<Protocols, NetworkError> {
    let keypair = keypair(&options.key);
    // Addresses that are advertised stand for the listening ones.
    let identify = identify::Config::new(identity.identify_protocol(), keypair.public())
        .with_agent_version(concat!("lockstep/", env!("CARGO_PKG_VERSION")).into())
        .with_hide_listen_addrs(!options.advertise.is_empty())
        .with_cache_size(0);
    Ok(Protocols {
        identify: identify::Behaviour::new(identify),
        gossip: gossip::behaviour(identity, options.gossip_bytes_max, members).map_err(NetworkError::Transport)?,
        lookup: Lookup::new(identity, peer_id(&options.key.public())),
        streams: libp2p_stream::Behaviour::new(),
    })
}

/// Where the streams go that others than members may open.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sinks {
    pub join: Sink,
    pub gateways: Sink,
}

/// Builds the swarm; nothing listens or dials yet. Needs a tokio runtime.
pub(crate) fn swarm(
    options: &Options,
    identity: &Identity,
    members: &[PeerId],
    directory: &SharedDirectory,
    sinks: &Sinks,
) -> Result<Swarm<Behaviour>, NetworkError> {
    let failed = |error: &dyn std::fmt::Display| NetworkError::Transport(error.to_string());
    let behaviour = Behaviour {
        doors: Doors::new(directory.clone()),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(SILENCE_MAX)),
        join: open_streams::Behaviour::new(Kind {
            protocol: JOIN_PROTOCOL,
            sink: sinks.join.clone(),
            waiting_max: JOIN_STREAMS_MAX,
        }),
        gateways: open_streams::Behaviour::new(Kind {
            protocol: GATEWAY_PROTOCOL,
            sink: sinks.gateways.clone(),
            waiting_max: GATEWAY_STREAMS_MAX,
        }),
        members: MembersOnly::new(protocols(options, identity, members)?, directory.clone()),
    };
    let mut swarm = SwarmBuilder::with_existing_identity(keypair(&options.key))
        .with_tokio()
        .with_other_transport(|key| Ok(transport::of_node(key, directory.clone())?))
        .map_err(|error| failed(&error))?
        .with_dns()
        .map_err(|error| failed(&error))?
        .with_behaviour(|_| behaviour)
        .map_err(|error| failed(&error))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_TIMEOUT))
        .with_connection_timeout(CONNECT_TIMEOUT)
        .build();
    for address in options.advertised()? {
        swarm.add_external_address(address);
    }
    Ok(swarm)
}
