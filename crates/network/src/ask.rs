//! Asking to join, from outside: one connection, one request, one answer. Needs no running network. Gateways ask in the
//! same way (`gateway_client`).

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, SwarmBuilder, ping};
use libp2p_stream::{Control, OpenStreamError};
use lockstep_types::SigningKey;

use crate::frame::{self, FrameError};
use crate::hello::JOIN_PROTOCOL;
use crate::limits::{CONNECT_TIMEOUT, JOIN_ANSWER_BYTES_MAX, JOIN_REQUEST_BYTES_MAX};
use crate::options::{keypair, split_peer};
use crate::transport;

/// After the connection closed, its answer may have come already: how long to look for it.
pub(crate) const LAST_WORD: Duration = Duration::from_millis(100);

/// Why there is no answer. Each says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The address cannot be read.
    #[error("{0:?} is not a multiaddress such as /ip4/10.0.0.1/tcp/9100 or /dns4/node.example/tcp/9100: correct it")]
    Address(String),
    /// The request is larger than any node takes; a mistake in the program.
    #[error("the request has {0} bytes, and nodes take {JOIN_REQUEST_BYTES_MAX} at most: ask for less")]
    TooLarge(u64),
    /// Nothing of a node is there.
    #[error(
        "no node can be reached at {address}: {reason}. Check that the address and port are right, that the node runs, \
         and that no firewall is between"
    )]
    Unreachable {
        /// Where.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// Somebody else is there.
    #[error(
        "the node at {address} has the key {found}, not {expected}: the address belongs to another node, or somebody \
         stands between. Get the right address from the node's operator, on a way that you trust"
    )]
    WrongKey {
        /// Where.
        address: String,
        /// The peer id in the address.
        expected: String,
        /// The peer id that the connection proved.
        found: String,
    },
    /// The node does not speak the protocol, or not yet.
    #[error(
        "the node at {0} does not take such requests: it is still starting, or its version is too old. Try again in a \
         minute, or ask another member"
    )]
    NotServed(String),
    /// The node's sentence.
    #[error("the node at {address} refused: {reason}")]
    Refused {
        /// Where.
        address: String,
        /// Its sentence.
        reason: String,
    },
    /// The connection ended without an answer.
    #[error(
        "the node at {address} ended the connection ({reason}): it may be busy with others who ask, or stopping. Try \
         again in half a minute, or ask another member"
    )]
    Closed {
        /// Where.
        address: String,
        /// What is known of why.
        reason: String,
    },
    /// No answer in time.
    #[error("the node at {address} did not answer within {} s: try again, or ask another member", .timeout.as_secs())]
    Timeout {
        /// Where.
        address: String,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The transport cannot be set up on this machine.
    #[error("cannot set up the peer-to-peer transport: {0}")]
    Transport(String),
}

/// Pings are answered because a member that asks is pinged as one.
#[derive(NetworkBehaviour)]
pub(crate) struct Asking {
    ping: ping::Behaviour,
    pub streams: libp2p_stream::Behaviour,
}

/// Asks the node at `address`, a multiaddress with or without `/p2p/<peer id>`, and returns its answer. With a peer id
/// the node's key is checked. `key` is what the node will know the asker by. Needs a tokio runtime; nothing is left
/// running when it returns or is dropped.
pub async fn ask(key: &SigningKey, address: &str, request: Bytes, timeout: Duration) -> Result<Bytes, AskError> {
    let bytes = request.len() as u64;
    if bytes > JOIN_REQUEST_BYTES_MAX {
        return Err(AskError::TooLarge(bytes));
    }
    let asking = Ask { address: address.to_owned() };
    let answer = asking.run(key, request);
    match tokio::time::timeout(timeout, answer).await {
        Ok(result) => result,
        Err(_) => Err(AskError::Timeout { address: address.to_owned(), timeout }),
    }
}

/// Where it is asked, for the errors.
pub(crate) struct Ask {
    pub address: String,
}

impl Ask {
    /// Connects to the node, whose key is checked where the address has one. Whoever drives the swarm keeps the
    /// connection.
    pub async fn connect(&self, key: &SigningKey) -> Result<(Swarm<Asking>, PeerId), AskError> {
        let address: Multiaddr = self.address.parse().map_err(|_| AskError::Address(self.address.clone()))?;
        let mut swarm = swarm(key)?;
        let (address, expected) = split_peer(address);
        let dial = match expected {
            Some(peer) => DialOpts::peer_id(peer).addresses(vec![address]).build(),
            None => DialOpts::unknown_peer_id().address(address).build(),
        };
        swarm.dial(dial).map_err(|error| self.not_dialed(&error))?;
        let peer = self.connected(&mut swarm).await?;
        Ok((swarm, peer))
    }

    async fn run(&self, key: &SigningKey, request: Bytes) -> Result<Bytes, AskError> {
        let (mut swarm, peer) = self.connect(key).await?;
        let mut talk = std::pin::pin!(self.talk(swarm.behaviour().streams.new_control(), peer, request));
        let closed = tokio::select! {
            biased;
            result = &mut talk => return result,
            reason = closed(&mut swarm) => AskError::Closed { address: self.address.clone(), reason },
        };
        tokio::time::timeout(LAST_WORD, talk).await.unwrap_or(Err(closed))
    }

    async fn connected(&self, swarm: &mut Swarm<Asking>) -> Result<PeerId, AskError> {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished { peer_id, .. } => return Ok(peer_id),
                SwarmEvent::OutgoingConnectionError { error, .. } => return Err(self.not_dialed(&error)),
                _ => {}
            }
        }
    }

    async fn talk(&self, mut control: Control, peer: PeerId, request: Bytes) -> Result<Bytes, AskError> {
        let address = || self.address.clone();
        let mut stream = control.open_stream(peer, JOIN_PROTOCOL).await.map_err(|error| match error {
            OpenStreamError::UnsupportedProtocol(_) => AskError::NotServed(address()),
            other => AskError::Closed { address: address(), reason: other.to_string() },
        })?;
        frame::exchange(&mut stream, &[request], JOIN_ANSWER_BYTES_MAX).await.map_err(|error| match error {
            FrameError::Refused(reason) => AskError::Refused { address: address(), reason },
            other => AskError::Closed { address: address(), reason: other.to_string() },
        })
    }

    fn not_dialed(&self, error: &DialError) -> AskError {
        let address = self.address.clone();
        match error {
            DialError::WrongPeerId { obtained, .. } => {
                let expected = self.address.rsplit('/').next().unwrap_or_default().to_owned();
                AskError::WrongKey { address, expected, found: obtained.to_string() }
            }
            DialError::LocalPeerId { .. } => AskError::Unreachable { address, reason: "it is this node itself".into() },
            DialError::Transport(errors) => {
                let reason = errors.first().map_or_else(|| "no address".into(), |(_, error)| root_cause(error));
                AskError::Unreachable { address, reason }
            }
            other => AskError::Unreachable { address, reason: other.to_string() },
        }
    }
}

/// The innermost cause: the outer ones name the layers of the transport.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn swarm(key: &SigningKey) -> Result<Swarm<Asking>, AskError> {
    let failed = |error: &dyn std::fmt::Display| AskError::Transport(error.to_string());
    let behaviour = Asking { ping: ping::Behaviour::default(), streams: libp2p_stream::Behaviour::new() };
    Ok(SwarmBuilder::with_existing_identity(keypair(key))
        .with_tokio()
        .with_other_transport(|key| Ok(transport::of_asker(key)?))
        .map_err(|error| failed(&error))?
        .with_dns()
        .map_err(|error| failed(&error))?
        .with_behaviour(|_| behaviour)
        .map_err(|error| failed(&error))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(3600)))
        .with_connection_timeout(CONNECT_TIMEOUT)
        .build())
}

/// Drives the swarm until its connection is gone.
pub(crate) async fn closed(swarm: &mut Swarm<Asking>) -> String {
    loop {
        if let SwarmEvent::ConnectionClosed { cause, .. } = swarm.select_next_some().await {
            return cause.map_or_else(|| "closed".into(), |cause| cause.to_string());
        }
    }
}
