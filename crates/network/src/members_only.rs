//! Hides strangers from the protocols of members.

use std::collections::{HashMap, HashSet};
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::derive_prelude::Either;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};

use crate::directory::SharedDirectory;

/// Runs `B` on the connections of members. A stranger's connection has none of its protocols, and `B` never hears of
/// it. Whether a connection is a member's is decided once, when it opens; who becomes a member, or ceases to be one,
/// has its connections closed.
pub(crate) struct MembersOnly<B> {
    pub inner: B,
    directory: SharedDirectory,
    /// Connections that have a handler of `inner` and are not established yet.
    granted: HashSet<ConnectionId>,
    /// Connections that `inner` knows; of each member the oldest first.
    known: HashMap<PeerId, Vec<ConnectionId>>,
}

impl<B> MembersOnly<B> {
    pub fn new(inner: B, directory: SharedDirectory) -> Self {
        Self { inner, directory, granted: HashSet::new(), known: HashMap::new() }
    }

    fn grant(&mut self, connection: ConnectionId, peer: &PeerId) -> bool {
        let member = self.directory.read().is_member(peer);
        if member {
            self.granted.insert(connection);
        }
        member
    }

    fn knows(&self, peer: &PeerId, connection: ConnectionId) -> bool {
        self.known.get(peer).is_some_and(|known| known.contains(&connection))
    }

    /// Forgets a connection; says how many `inner` still knows of its peer, or `None` where it never knew this one.
    fn forget(&mut self, peer: &PeerId, connection: ConnectionId) -> Option<usize> {
        let known = self.known.get_mut(peer)?;
        let place = known.iter().position(|id| *id == connection)?;
        known.remove(place);
        let left = known.len();
        if left == 0 {
            self.known.remove(peer);
        }
        Some(left)
    }

    /// To which connection an event for a handler goes: never to one without a handler of `inner`.
    fn route(&self, peer: &PeerId, to: &NotifyHandler) -> Option<ConnectionId> {
        match to {
            NotifyHandler::One(connection) => self.knows(peer, *connection).then_some(*connection),
            NotifyHandler::Any => self.known.get(peer)?.last().copied(),
        }
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for MembersOnly<B> {
    type ConnectionHandler = Either<THandler<B>, dummy::ConnectionHandler>;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner.handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if !self.grant(id, &peer) {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        self.inner.handle_established_inbound_connection(id, peer, local, remote).map(Either::Left)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if !self.grant(id, &peer) {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        self.inner.handle_established_outbound_connection(id, peer, address, role, port_use).map(Either::Left)
    }

    /// Passes on what concerns members, with counts of connections that leave strangers' ones out: behaviours take a
    /// peer for known when there is another connection of it.
    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(mut event) => {
                if self.granted.remove(&event.connection_id) {
                    let known = self.known.entry(event.peer_id).or_default();
                    event.other_established = known.len();
                    known.push(event.connection_id);
                    self.inner.on_swarm_event(FromSwarm::ConnectionEstablished(event));
                }
            }
            FromSwarm::ConnectionClosed(mut event) => {
                if let Some(left) = self.forget(&event.peer_id, event.connection_id) {
                    event.remaining_established = left;
                    self.inner.on_swarm_event(FromSwarm::ConnectionClosed(event));
                }
            }
            FromSwarm::AddressChange(event) => {
                if self.knows(&event.peer_id, event.connection_id) {
                    self.inner.on_swarm_event(FromSwarm::AddressChange(event));
                }
            }
            FromSwarm::DialFailure(event) => {
                self.granted.remove(&event.connection_id);
                self.inner.on_swarm_event(FromSwarm::DialFailure(event));
            }
            FromSwarm::ListenFailure(event) => {
                self.granted.remove(&event.connection_id);
                self.inner.on_swarm_event(FromSwarm::ListenFailure(event));
            }
            other => self.inner.on_swarm_event(other),
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {
            Either::Left(event) => {
                if self.knows(&peer, id) {
                    self.inner.on_connection_handler_event(peer, id, event);
                }
            }
            Either::Right(never) => match never {},
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            let action = std::task::ready!(self.inner.poll(cx));
            if let ToSwarm::NotifyHandler { peer_id, handler, event } = action {
                let Some(id) = self.route(&peer_id, &handler) else { continue };
                let (handler, event) = (NotifyHandler::One(id), Either::Left(event));
                return Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler, event });
            }
            return Poll::Ready(action.map_in(Either::Left));
        }
    }
}
