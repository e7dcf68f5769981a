//! What a node tells this crate at start, and what can be wrong with it.

use libp2p::identity::{self, secp256k1};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use lockstep_types::{Address, Epoch, Incarnation, NetworkId, NodeId, PublicKey, SigningKey};

use crate::handle::StoppedError;
use crate::limits::{self, BOOTSTRAP_MAX, GATEWAYS_MAX};

/// Everything that [`Network::bind`](crate::Network::bind) needs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The node's key; its libp2p peer id comes from it.
    pub key: SigningKey,
    /// The network; its first 16 hex digits are in every protocol id, all of it in every `Hello`.
    pub network: NetworkId,
    /// The network's epoch; members of another one are refused.
    pub epoch: Epoch,
    /// This node's id.
    pub node: NodeId,
    /// The number made with this node's store.
    pub incarnation: Incarnation,
    /// All members. An entry for this node itself is checked against `key` and otherwise left aside.
    pub members: Vec<Peer>,
    /// Multiaddresses to listen on; may be empty for a node that only dials.
    pub listen: Vec<String>,
    /// Multiaddresses at which others reach this node, where those that it listens on are not it (port mapping, a
    /// proxy). Members are told these instead of the listening ones; empty: the listening ones.
    pub advertise: Vec<String>,
    /// Further addresses of members from the configuration, each ending in `/p2p/<peer id>`. Those of keys that are
    /// not a member's are kept until they are.
    pub bootstrap: Vec<String>,
    /// What [`Handle::known_addresses`](crate::Handle::known_addresses) told before the last stop. What cannot be
    /// read is left aside.
    pub address_book: Vec<(NodeId, Vec<String>)>,
    /// Addresses of the keys of gateways that may send bundles to this node.
    pub gateways: Vec<Address>,
    /// Largest gossip message in bytes.
    pub gossip_bytes_max: u64,
    /// Largest frame on the raft channel in bytes, below 2 GiB.
    pub raft_bytes_max: u64,
    /// Largest frame on the bundle channel in bytes, below 2 GiB.
    pub bundle_bytes_max: u64,
}

impl Options {
    /// Options with the defaults of [`limits`], no members and no listening address.
    pub fn new(key: SigningKey, network: NetworkId, epoch: Epoch, node: NodeId, incarnation: Incarnation) -> Self {
        Self {
            key,
            network,
            epoch,
            node,
            incarnation,
            members: Vec::new(),
            listen: Vec::new(),
            advertise: Vec::new(),
            bootstrap: Vec::new(),
            address_book: Vec::new(),
            gateways: Vec::new(),
            gossip_bytes_max: limits::GOSSIP_BYTES_MAX,
            raft_bytes_max: limits::RAFT_BYTES_MAX,
            bundle_bytes_max: limits::BUNDLE_BYTES_MAX,
        }
    }
}

/// A member as the others know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub node: NodeId,
    /// Its operator's name for it, for logs.
    pub name: String,
    /// Its key.
    pub key: PublicKey,
    /// Multiaddress at which it can be dialed; `None` where it is not known: then the member has to dial us.
    pub address: Option<String>,
    /// The number made with its store.
    pub incarnation: Incarnation,
}

/// Why the network cannot start, or a member cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A setting is wrong; the operator has to correct it.
    #[error("{0}")]
    Options(String),
    /// A listening socket cannot be had; the operator frees the port or chooses another.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// The address as configured.
        address: String,
        /// One clause for the operator.
        reason: String,
    },
    /// The transport cannot be set up on this machine.
    #[error("cannot set up the peer-to-peer transport: {0}")]
    Transport(String),
    /// The network's task has ended: nothing can be set any more.
    #[error(transparent)]
    Stopped(#[from] StoppedError),
}

/// The libp2p peer id of a key, as text, for operators and logs.
pub fn peer_id_of(key: &PublicKey) -> String {
    peer_id(key).to_string()
}

pub(crate) fn peer_id(key: &PublicKey) -> PeerId {
    let key = secp256k1::PublicKey::try_from_bytes(&key.compressed()).expect("PublicKey is known to be on the curve");
    identity::PublicKey::from(key).to_peer_id()
}

/// The key in a peer id, which holds a secp256k1 key whole. `None` for other kinds of keys: nodes have none.
pub(crate) fn public_key(peer: &PeerId) -> Option<PublicKey> {
    const WHOLE: u64 = 0;
    let hash = peer.as_ref();
    let encoded = (hash.code() == WHOLE).then(|| hash.digest())?;
    let key = identity::PublicKey::try_decode_protobuf(encoded).ok()?.try_into_secp256k1().ok()?;
    PublicKey::from_sec1(&key.to_bytes()).ok()
}

pub(crate) fn keypair(key: &SigningKey) -> identity::Keypair {
    let secret = secp256k1::SecretKey::try_from_bytes(key.secret_bytes()).expect("SigningKey holds a valid scalar");
    secp256k1::Keypair::from(secret).into()
}

/// A [`Peer`] whose parts were read.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub node: NodeId,
    pub name: String,
    pub peer: PeerId,
    pub address: Option<Multiaddr>,
    pub incarnation: Incarnation,
}

impl TryFrom<Peer> for Member {
    type Error = NetworkError;
    fn try_from(peer: Peer) -> Result<Self, NetworkError> {
        let address = peer.address.as_deref().map(|text| multiaddr(text, &peer.name)).transpose()?;
        let id = peer_id(&peer.key);
        Ok(Self { node: peer.node, name: peer.name, peer: id, address, incarnation: peer.incarnation })
    }
}

pub(crate) fn multiaddr(text: &str, whose: &str) -> Result<Multiaddr, NetworkError> {
    text.parse().map_err(|reason| {
        NetworkError::Options(format!(
            "{whose}: {text:?} is not a multiaddress such as /ip4/10.0.0.1/tcp/9100: {reason}"
        ))
    })
}

/// Takes the peer id off the end of an address.
pub(crate) fn split_peer(mut address: Multiaddr) -> (Multiaddr, Option<PeerId>) {
    let peer = match address.iter().last() {
        Some(Protocol::P2p(peer)) => {
            address.pop();
            Some(peer)
        }
        _ => None,
    };
    (address, peer)
}

impl Options {
    /// The bootstrap addresses with their peers.
    pub(crate) fn bootstrap(&self) -> Result<Vec<(PeerId, Multiaddr)>, NetworkError> {
        if self.bootstrap.len() > BOOTSTRAP_MAX {
            return Err(NetworkError::Options(format!("more than {BOOTSTRAP_MAX} bootstrap addresses")));
        }
        let read = |text: &String| {
            let (address, peer) = split_peer(multiaddr(text, "a bootstrap address")?);
            let peer = peer.ok_or_else(|| {
                NetworkError::Options(format!("the bootstrap address {text} does not end in /p2p/ and a peer id"))
            })?;
            Ok((peer, address))
        };
        self.bootstrap.iter().map(read).collect()
    }

    /// The addresses that others are told, where they are not those to listen on.
    pub(crate) fn advertised(&self) -> Result<Vec<Multiaddr>, NetworkError> {
        self.advertise.iter().map(|text| Ok(split_peer(multiaddr(text, "the advertised address")?).0)).collect()
    }

    /// The other members, checked against each other and against this node.
    pub(crate) fn others(&self) -> Result<Vec<Member>, NetworkError> {
        let own = peer_id(&self.key.public());
        let mut others: Vec<Member> = Vec::new();
        for peer in &self.members {
            let member = Member::try_from(peer.clone())?;
            let wrong = |what: &str| Err(NetworkError::Options(format!("member {} ({}) {what}", peer.node, peer.name)));
            if member.node == self.node {
                if member.peer != own || member.incarnation != self.incarnation {
                    return wrong("is this node, but the member list gives it another key or another store");
                }
            } else if member.peer == own {
                return wrong("has this node's key under another node id");
            } else if others.iter().any(|o| o.node == member.node || o.peer == member.peer) {
                return wrong("shares its node id or key with another member");
            } else {
                others.push(member);
            }
        }
        if self.gateways.len() > GATEWAYS_MAX {
            return Err(NetworkError::Options(format!("more than {GATEWAYS_MAX} gateways")));
        }
        for (name, bytes) in [
            ("raft_bytes_max", self.raft_bytes_max),
            ("bundle_bytes_max", self.bundle_bytes_max),
            ("gossip_bytes_max", self.gossip_bytes_max),
        ] {
            if !(1024..1 << 31).contains(&bytes) {
                return Err(NetworkError::Options(format!("{name} must be from 1 KiB to below 2 GiB")));
            }
        }
        Ok(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_id_gives_back_its_key_and_other_kinds_of_keys_give_none() {
        let key = SigningKey::from_bytes([5; 32]).unwrap().public();
        assert_eq!(public_key(&peer_id(&key)), Some(key));
        assert_eq!(public_key(&identity::Keypair::generate_ed25519().public().to_peer_id()), None);
        assert_eq!(public_key(&PeerId::random()), None);
    }
}
