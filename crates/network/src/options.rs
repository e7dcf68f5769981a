//! What a node tells this crate at start, and what can be wrong with it.

use libp2p::identity::{self, secp256k1};
use libp2p::{Multiaddr, PeerId};
use lockstep_types::{Epoch, Incarnation, NetworkId, NodeId, PublicKey, SigningKey};

use crate::handle::StoppedError;
use crate::limits;

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

impl Options {
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
