//! What stands in for the network between members: a simulation's. And the client of a member, on either.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use lockstep_types::NodeId;
use tokio::sync::watch;

use crate::client::{CallError, StreamClient};
use crate::handle::PeerState;
use crate::hello::Channel;
use crate::log_view::LogView;
use crate::options::Peer;

/// Answers a request of a member.
pub type Answer = Box<dyn Fn(NodeId, Bytes) -> BoxFuture<'static, Bytes> + Send + Sync>;

/// One node's end of what stands in for the network. It keeps the promises of [`Handle`](crate::Handle): streams only
/// between members whose stores are those that are known ([`check_store`](crate::check_store)), gossip without any
/// promise at all.
pub trait Wire: Send + Sync + 'static {
    /// A stream to a member, opened at its first call.
    fn connect(&self, target: NodeId, channel: Channel) -> Box<dyn WireClient>;

    /// From now on requests on a channel are answered so.
    fn serve(&self, channel: Channel, answer: Answer);

    /// How to know how far logs reach; before it is known there are no streams.
    fn set_log_view(&self, log: Arc<dyn LogView>);

    /// Gossips to all members that can be reached.
    fn publish(&self, bytes: Bytes);

    /// The other members, and whether each is connected.
    fn watch_peers(&self) -> watch::Receiver<Arc<[PeerState]>>;

    /// Adds a member or changes it.
    fn set_member(&self, peer: Peer);

    /// Removes a member.
    fn remove_member(&self, node: NodeId);
}

/// One stream. A call that fails or is dropped half-way must not let its answer pass for that of a later call.
pub trait WireClient: Send {
    /// Sends a request and waits for the answer.
    fn call(&mut self, request: Bytes, timeout: Duration) -> BoxFuture<'_, Result<Bytes, CallError>>;
}

enum Kind {
    Stream(Box<StreamClient>),
    Wire(Box<dyn WireClient>),
}

/// Asks one member on one channel, one request at a time, over a stream that stays open.
pub struct Client {
    target: NodeId,
    kind: Kind,
}

impl Client {
    pub(crate) fn on_stream(target: NodeId, client: StreamClient) -> Self {
        Self { target, kind: Kind::Stream(Box::new(client)) }
    }

    pub(crate) fn on_wire(target: NodeId, client: Box<dyn WireClient>) -> Self {
        Self { target, kind: Kind::Wire(client) }
    }

    /// Whom it asks.
    pub fn target(&self) -> NodeId {
        self.target
    }

    /// Sends `parts` as one request and waits for the answer. Parts are sent one after the other without being
    /// joined first. Without a connection it fails at once. After an error, a timeout, or when the future is dropped,
    /// the stream is gone and the next call opens another: an answer never reaches a later request.
    pub async fn call(&mut self, parts: &[Bytes], timeout: Duration) -> Result<Bytes, CallError> {
        match &mut self.kind {
            Kind::Stream(client) => client.call(parts, timeout).await,
            Kind::Wire(client) => client.call(parts.concat().into(), timeout).await,
        }
    }
}
