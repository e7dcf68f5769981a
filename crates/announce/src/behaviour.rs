//! What runs on the connections of W3bstream's network, and how bytes travel on them.

use std::num::NonZeroUsize;

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade::Version;
use libp2p::gossipsub::{self, IdentTopic, MessageAuthenticity, ValidationMode};
use libp2p::identity::Keypair;
use libp2p::kad::store::{MemoryStore, MemoryStoreConfig};
use libp2p::swarm::NetworkBehaviour;
use libp2p::{
    PeerId, StreamProtocol, Swarm, SwarmBuilder, Transport, connection_limits, identify, kad, noise, ping, tcp,
};
use sha2::{Digest as _, Sha256};

use crate::announcement::TOPIC;
use crate::limits::{
    CONNECT_TIMEOUT, CONNECTIONS_PER_PEER_MAX, DUPLICATE_MEMORY, GOSSIP_BYTES_MAX, GOSSIP_PEER_QUEUE_MAX, IDLE_TIMEOUT,
    INBOUND_MAX, OUTBOUND_MAX, PENDING_INBOUND_MAX, PENDING_OUTBOUND_MAX, PROVIDE_INTERVAL, QUERY_TIMEOUT,
};
use crate::multiplexer::Multiplexer;
use crate::options::{AnnounceError, Options};

/// The gossip protocol, the only one of its kind that is offered: what is forwarded stays within the reference's rules.
const GOSSIP_PROTOCOL: &str = "/meshsub/1.1.0";
/// By which W3bstream's nodes would find each other.
const RENDEZVOUS: &str = "w3bstream";
/// A multihash: SHA2-256, of 32 bytes.
const SHA2_256: [u8; 2] = [0x12, 0x20];
/// What identify says; nobody compares it.
const IDENTIFY_PROTOCOL: &str = "ipfs/0.1.0";
/// Peers that one question is put to at a time.
const QUERY_PARALLEL: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");

/// The order matters: whoever is one too many is turned away before anything else is kept of it.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    limits: connection_limits::Behaviour,
    ping: ping::Behaviour,
    identify: identify::Behaviour,
    pub kad: kad::Behaviour<MemoryStore>,
    pub gossip: gossipsub::Behaviour,
}

/// The key of the provider record by which peers are found.
pub(crate) fn rendezvous() -> kad::RecordKey {
    let digest: [u8; 32] = Sha256::digest(RENDEZVOUS).into();
    kad::RecordKey::new(&[&SHA2_256[..], &digest].concat())
}

pub(crate) fn topic() -> IdentTopic {
    IdentTopic::new(TOPIC)
}

/// The name of the Kademlia protocol.
pub(crate) fn kad_protocol(chain_id: u64) -> Result<StreamProtocol, AnnounceError> {
    let name = format!("/iotex{chain_id}/kad/1.0.0");
    StreamProtocol::try_from_owned(name).map_err(|error| AnnounceError::Transport(error.to_string()))
}

fn limits() -> connection_limits::Behaviour {
    let limits = connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(PENDING_INBOUND_MAX))
        .with_max_pending_outgoing(Some(PENDING_OUTBOUND_MAX))
        .with_max_established_incoming(Some(INBOUND_MAX))
        .with_max_established_outgoing(Some(OUTBOUND_MAX))
        .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX));
    connection_limits::Behaviour::new(limits)
}

/// A server of the network's table. Of what others bring only providers of the rendezvous are kept; see
/// `network::Network::on_kad`.
fn kademlia(own: PeerId, protocol: StreamProtocol) -> kad::Behaviour<MemoryStore> {
    let mut config = kad::Config::new(protocol);
    config
        .set_query_timeout(QUERY_TIMEOUT)
        .set_parallelism(QUERY_PARALLEL)
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_provider_publication_interval(Some(PROVIDE_INTERVAL));
    let store = MemoryStoreConfig { max_records: 0, max_provided_keys: 1, ..MemoryStoreConfig::default() };
    let mut kad = kad::Behaviour::with_config(own, MemoryStore::with_config(own, store), config);
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

/// Messages name their author, with a sequence number and a signature, and are passed on once they were looked at.
fn gossip(key: &Keypair) -> Result<gossipsub::Behaviour, String> {
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id(GOSSIP_PROTOCOL, gossipsub::Version::V1_1)
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(GOSSIP_BYTES_MAX)
        .flood_publish(true)
        .duplicate_cache_time(DUPLICATE_MEMORY)
        .connection_handler_queue_len(GOSSIP_PEER_QUEUE_MAX)
        .build()
        .map_err(|error| error.to_string())?;
    let mut gossip = gossipsub::Behaviour::new(MessageAuthenticity::Signed(key.clone()), config)?;
    // Who listens also passes on what others announce: a prover may be connected to this node only.
    gossip.subscribe(&topic()).map_err(|error| error.to_string())?;
    Ok(gossip)
}

fn transport(key: &Keypair) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error> {
    let tcp = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(key)?)
        .multiplex(Multiplexer::default());
    Ok(tcp.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed())
}

/// Builds the swarm; nothing listens or dials yet. Needs a tokio runtime.
pub(crate) fn swarm(options: &Options) -> Result<Swarm<Behaviour>, AnnounceError> {
    let failed = |error: &dyn std::fmt::Display| AnnounceError::Transport(error.to_string());
    let key = options.keypair();
    let advertised = options.advertised()?;
    let identify = identify::Config::new(IDENTIFY_PROTOCOL.into(), key.public())
        .with_agent_version(concat!("lockstep/", env!("CARGO_PKG_VERSION")).into())
        .with_hide_listen_addrs(!advertised.is_empty())
        .with_cache_size(0);
    let behaviour = Behaviour {
        limits: limits(),
        ping: ping::Behaviour::default(),
        identify: identify::Behaviour::new(identify),
        kad: kademlia(key.public().to_peer_id(), kad_protocol(options.chain_id)?),
        gossip: gossip(&key).map_err(AnnounceError::Transport)?,
    };
    let mut swarm = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_other_transport(|key| Ok(transport(key)?))
        .map_err(|error| failed(&error))?
        .with_dns()
        .map_err(|error| failed(&error))?
        .with_behaviour(|_| behaviour)
        .map_err(|error| failed(&error))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_TIMEOUT))
        .with_connection_timeout(CONNECT_TIMEOUT)
        .build();
    for address in advertised {
        swarm.add_external_address(address);
    }
    Ok(swarm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rendezvous_is_the_multihash_of_its_name() {
        // As sha256sum says of the nine letters.
        let digest: [u8; 32] = [
            0xba, 0x23, 0xe0, 0xd0, 0xaf, 0x2e, 0x6a, 0xb0, 0xa2, 0x28, 0xd8, 0x42, 0xb9, 0x4d, 0x06, 0x16, 0x05, 0x8e,
            0xca, 0x0b, 0x83, 0xa5, 0x71, 0x73, 0x0a, 0x7b, 0xbb, 0x26, 0xbc, 0xdf, 0x45, 0xd1,
        ];
        assert_eq!(rendezvous().to_vec(), [&[0x12, 0x20], &digest[..]].concat());
    }
}
