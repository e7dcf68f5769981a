//! Takes in a kind of stream that others than members may open, and hands it to the task that answers.
//!
//! `libp2p_stream`, which members' streams use, remembers every connection it ever saw: too much to offer strangers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use libp2p::core::upgrade::{DeniedUpgrade, UpgradeInfo};
use libp2p::core::{Endpoint, InboundUpgrade, transport::PortUse};
use libp2p::swarm::handler::{ConnectionEvent, FullyNegotiatedInbound};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol};
use tokio::sync::mpsc;

/// Where streams go; empty until the protocol is served, and until then it is not offered.
pub(crate) type Sink = Arc<OnceLock<mpsc::Sender<(PeerId, Stream)>>>;

/// What is offered, where its streams go, and how many of one connection wait to go there; beyond, one is dropped.
#[derive(Clone)]
pub(crate) struct Kind {
    pub protocol: StreamProtocol,
    pub sink: Sink,
    pub waiting_max: usize,
}

/// Offers the protocol on every connection.
pub(crate) struct Behaviour {
    kind: Kind,
}

impl Behaviour {
    pub fn new(kind: Kind) -> Self {
        Self { kind }
    }

    fn handler(&self) -> Handler {
        Handler { kind: self.kind.clone(), streams: VecDeque::new() }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _id: ConnectionId,
        _peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _id: ConnectionId,
        _peer: PeerId,
        _address: &Multiaddr,
        _role: Endpoint,
        _port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn on_swarm_event(&mut self, _event: FromSwarm) {}

    fn on_connection_handler_event(&mut self, peer: PeerId, _id: ConnectionId, stream: THandlerOutEvent<Self>) {
        // Without room the stream is dropped, which resets it.
        if let Some(sink) = self.kind.sink.get() {
            let _ = sink.try_send((peer, stream));
        }
    }

    fn poll(&mut self, _cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

/// One connection's part.
pub(crate) struct Handler {
    kind: Kind,
    streams: VecDeque<Stream>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Stream;
    type InboundProtocol = Offer;
    type OutboundProtocol = DeniedUpgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        SubstreamProtocol::new(Offer(self.kind.sink.get().map(|_| self.kind.protocol.clone())), ())
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn poll(&mut self, _cx: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<DeniedUpgrade, (), Stream>> {
        // A stream is only ever added by the event that comes before the next poll, so there is nothing to wake.
        match self.streams.pop_front() {
            Some(stream) => Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(stream)),
            None => Poll::Pending,
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<Offer, DeniedUpgrade>) {
        if let ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) = event
            && self.streams.len() < self.kind.waiting_max
        {
            self.streams.push_back(protocol);
        }
    }
}

/// The protocol, where it is offered.
pub(crate) struct Offer(Option<StreamProtocol>);

impl UpgradeInfo for Offer {
    type Info = StreamProtocol;
    type InfoIter = std::option::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Offer {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, _protocol: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}
