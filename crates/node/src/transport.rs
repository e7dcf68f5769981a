//! Joins consensus' port to the network.

use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_consensus::{Connection, Positions, Transport, TransportError};
use lockstep_network::{CallError, Channel, Client, Handle, LogView};
use lockstep_types::NodeId;
use parking_lot::Mutex;

pub(crate) struct NetworkTransport(pub Handle);

/// The mutex is never contended: it makes a client, which only its owner calls, shareable by type.
struct NetworkConnection(Mutex<Client>);

impl Transport for NetworkTransport {
    fn connect(&self, target: NodeId) -> Box<dyn Connection> {
        Box::new(NetworkConnection(Mutex::new(self.0.client(target, Channel::Raft))))
    }

    fn connect_bulk(&self, target: NodeId) -> Box<dyn Connection> {
        Box::new(NetworkConnection(Mutex::new(self.0.client(target, Channel::Snapshot))))
    }
}

#[async_trait]
impl Connection for NetworkConnection {
    async fn call(&mut self, request: Bytes, timeout: Duration) -> Result<Bytes, TransportError> {
        self.0.get_mut().call(&[request], timeout).await.map_err(|error| match error {
            CallError::Unreachable(_) | CallError::Refused(_) | CallError::TooLarge { .. } => {
                TransportError::Unreachable(error.to_string())
            }
            CallError::Timeout(_) | CallError::Closed(_) => TransportError::Broken(error.to_string()),
        })
    }
}

/// What members' logs are held against.
#[derive(Default)]
pub(crate) struct LogPositions {
    /// Where the log ends while raft does not run yet.
    pub before: u64,
    /// Set once raft runs.
    pub positions: OnceLock<Positions>,
}

impl LogView for LogPositions {
    fn last_index(&self) -> u64 {
        self.positions.get().map_or(self.before, Positions::last_index)
    }

    fn acknowledged(&self, node: NodeId) -> u64 {
        self.positions.get().map_or(0, |positions| positions.acknowledged(node))
    }
}
