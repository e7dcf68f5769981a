//! What a node tells this crate at start, and what can be wrong with it.

use std::time::Duration;

use libp2p::identity::{Keypair, secp256k1};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use lockstep_types::{SigningKey, TaskNumber};
use tokio::sync::watch;

use crate::limits::{ATTEMPTS_MAX, BOOTSTRAP_MAX, PAUSE_MIN};

/// Everything that [`Announcer::bind`](crate::Announcer::bind) needs beside the feed.
#[derive(Debug, Clone)]
pub struct Options {
    /// The key of this node on W3bstream's network, and of nothing else.
    pub key: SigningKey,
    /// The chain of W3bstream's contracts; it is in the name of the Kademlia protocol.
    pub chain_id: u64,
    /// Multiaddresses to listen on.
    pub listen: Vec<String>,
    /// Multiaddresses that others are told, where those that it listens on are not the way in; empty: the listening
    /// ones.
    pub advertise: Vec<String>,
    /// Peers to begin with, each a multiaddress that ends in `/p2p/<peer id>`.
    pub bootstrap: Vec<String>,
    /// Announcements of one task at most.
    pub attempts_max: u32,
    /// Pause after a task's first announcement.
    pub pause_min: Duration,
    /// Number of the output's first task.
    pub first_task: TaskNumber,
    /// What [`TaskFeed::remember`](crate::TaskFeed::remember) kept last.
    pub remembered: Option<TaskNumber>,
    /// Number of the last task whose rows are committed; `None` while there is none, or it is not known.
    pub committed: watch::Receiver<Option<TaskNumber>>,
    /// Whether this node announces: the leader for an output of the network, always for one of the node.
    pub active: watch::Receiver<bool>,
}

impl Options {
    /// Options with the defaults of [`limits`](crate::limits), and no addresses.
    pub fn new(
        key: SigningKey,
        chain_id: u64,
        committed: watch::Receiver<Option<TaskNumber>>,
        active: watch::Receiver<bool>,
    ) -> Self {
        Self {
            key,
            chain_id,
            listen: Vec::new(),
            advertise: Vec::new(),
            bootstrap: Vec::new(),
            attempts_max: ATTEMPTS_MAX,
            pause_min: PAUSE_MIN,
            first_task: TaskNumber(0),
            remembered: None,
            committed,
            active,
        }
    }

    /// The bootstrap addresses with their peers.
    pub(crate) fn bootstrap(&self) -> Result<Vec<(PeerId, Multiaddr)>, AnnounceError> {
        if self.bootstrap.len() > BOOTSTRAP_MAX {
            return Err(AnnounceError::Options(format!("more than {BOOTSTRAP_MAX} bootstrap addresses")));
        }
        let read = |text: &String| {
            let mut address = multiaddr(text, "a bootstrap address")?;
            match address.pop() {
                Some(Protocol::P2p(peer)) => Ok((peer, address)),
                _ => Err(AnnounceError::Options(format!(
                    "the bootstrap address {text} does not end in /p2p/ and a peer id"
                ))),
            }
        };
        self.bootstrap.iter().map(read).collect()
    }

    pub(crate) fn listening(&self) -> Result<Vec<Multiaddr>, AnnounceError> {
        self.listen.iter().map(|text| multiaddr(text, "the listening address")).collect()
    }

    pub(crate) fn advertised(&self) -> Result<Vec<Multiaddr>, AnnounceError> {
        self.advertise.iter().map(|text| multiaddr(text, "the advertised address")).collect()
    }

    pub(crate) fn keypair(&self) -> Keypair {
        let secret =
            secp256k1::SecretKey::try_from_bytes(self.key.secret_bytes()).expect("SigningKey holds a valid scalar");
        secp256k1::Keypair::from(secret).into()
    }
}

/// Why tasks cannot be announced.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
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
    #[error("cannot set up the transport to W3bstream's network: {0}")]
    Transport(String),
}

fn multiaddr(text: &str, whose: &str) -> Result<Multiaddr, AnnounceError> {
    text.parse().map_err(|reason| {
        AnnounceError::Options(format!(
            "{whose} {text:?} is not a multiaddress such as /ip4/10.0.0.1/tcp/9200: {reason}"
        ))
    })
}
