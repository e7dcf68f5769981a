//! Who may connect, and how many: members in plenty, gateways and strangers a few and only inwards.

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::net::IpAddr;
use std::task::{Context, Poll, Waker};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};

use crate::directory::SharedDirectory;
use crate::limits::{
    CONNECTIONS_MAX, CONNECTIONS_PER_GATEWAY_MAX, CONNECTIONS_PER_PEER_MAX, PENDING_INBOUND_MAX,
    PENDING_INBOUND_PER_ADDRESS_MAX, PENDING_OUTBOUND_MAX, STRANGERS_MAX,
};
use crate::options::public_key;

/// Why a connection was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TurnedAway {
    #[error("{PENDING_INBOUND_MAX} connections are being set up already")]
    Inbound,
    #[error("{PENDING_INBOUND_PER_ADDRESS_MAX} connections from this address are being set up already")]
    Address,
    #[error("{PENDING_OUTBOUND_MAX} dials are under way already")]
    Outbound,
    #[error("{CONNECTIONS_MAX} connections of members are open already")]
    Members,
    #[error("{CONNECTIONS_PER_PEER_MAX} connections of this member are open already")]
    Member,
    #[error("{CONNECTIONS_PER_GATEWAY_MAX} connections of this gateway are open already")]
    Gateway,
    #[error("{STRANGERS_MAX} connections of strangers are open already")]
    Strangers,
    #[error("its key is not a secp256k1 key")]
    Key,
    #[error("it is not a member, and only members are dialed")]
    NotDialed,
}

/// Whose places a connection takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Member,
    Gateway,
    Stranger,
}

#[derive(Debug)]
struct Open {
    peer: PeerId,
    kind: Kind,
}

/// Counts connections and turns away those that are too many. Strangers have places of their own, and
/// so has each gateway.
pub(crate) struct Doors {
    directory: SharedDirectory,
    pending_inbound: HashMap<ConnectionId, Option<IpAddr>>,
    pending_outbound: HashSet<ConnectionId>,
    open: HashMap<ConnectionId, Open>,
    to_close: VecDeque<(PeerId, CloseConnection)>,
    waker: Option<Waker>,
}

impl Doors {
    pub fn new(directory: SharedDirectory) -> Self {
        Self {
            directory,
            pending_inbound: HashMap::new(),
            pending_outbound: HashSet::new(),
            open: HashMap::new(),
            to_close: VecDeque::new(),
            waker: None,
        }
    }

    /// Closes all connections of a key, also where it is a member again before the swarm gets to it.
    pub fn close(&mut self, peer: PeerId) {
        self.to_close.push_back((peer, CloseConnection::All));
        self.wake();
    }

    /// Closes the connections that a key opened while it was no member: they lack the protocols of members.
    pub fn close_strange(&mut self, peer: PeerId) {
        let strange = self.open.iter().filter(|(_, open)| open.peer == peer && open.kind != Kind::Member);
        self.to_close.extend(strange.map(|(id, _)| (peer, CloseConnection::One(*id))));
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn is_member(&self, peer: &PeerId) -> bool {
        self.directory.read().is_member(peer)
    }

    fn kind(&self, peer: &PeerId) -> Kind {
        let directory = self.directory.read();
        match directory.is_member(peer) {
            true => Kind::Member,
            false if directory.gateway(peer).is_some() => Kind::Gateway,
            false => Kind::Stranger,
        }
    }

    fn admit(&self, peer: &PeerId) -> Result<(), TurnedAway> {
        let count = |of: &dyn Fn(&Open) -> bool| self.open.values().filter(|open| of(open)).count();
        let all = |kind: Kind| count(&|open| open.kind == kind);
        let of_peer = || count(&|open| open.peer == *peer);
        match self.kind(peer) {
            Kind::Member if of_peer() >= CONNECTIONS_PER_PEER_MAX => Err(TurnedAway::Member),
            Kind::Member if all(Kind::Member) >= CONNECTIONS_MAX => Err(TurnedAway::Members),
            Kind::Gateway if of_peer() >= CONNECTIONS_PER_GATEWAY_MAX => Err(TurnedAway::Gateway),
            Kind::Stranger if public_key(peer).is_none() => Err(TurnedAway::Key),
            Kind::Stranger if all(Kind::Stranger) >= STRANGERS_MAX => Err(TurnedAway::Strangers),
            _ => Ok(()),
        }
    }

    fn knock(&mut self, id: ConnectionId, from: Option<IpAddr>) -> Result<(), TurnedAway> {
        if self.pending_inbound.len() >= PENDING_INBOUND_MAX {
            return Err(TurnedAway::Inbound);
        }
        let same = self.pending_inbound.values().filter(|address| **address == from);
        if from.is_some() && same.count() >= PENDING_INBOUND_PER_ADDRESS_MAX {
            return Err(TurnedAway::Address);
        }
        self.pending_inbound.insert(id, from);
        Ok(())
    }

    fn dial(&mut self, id: ConnectionId, peer: Option<PeerId>) -> Result<(), TurnedAway> {
        if !peer.is_some_and(|peer| self.is_member(&peer)) {
            return Err(TurnedAway::NotDialed);
        }
        if self.pending_outbound.len() >= PENDING_OUTBOUND_MAX {
            return Err(TurnedAway::Outbound);
        }
        self.pending_outbound.insert(id);
        Ok(())
    }
}

fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    address.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    })
}

impl NetworkBehaviour for Doors {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.knock(id, ip_of(remote)).map_err(ConnectionDenied::new)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.pending_inbound.remove(&id);
        self.admit(&peer).map_err(ConnectionDenied::new)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        _addresses: &[Multiaddr],
        _role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.dial(id, peer).map_err(ConnectionDenied::new)?;
        Ok(Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _address: &Multiaddr,
        _role: Endpoint,
        _port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.pending_outbound.remove(&id);
        if !self.is_member(&peer) {
            return Err(ConnectionDenied::new(TurnedAway::NotDialed));
        }
        self.admit(&peer).map_err(ConnectionDenied::new)?;
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                let kind = self.kind(&event.peer_id);
                self.open.insert(event.connection_id, Open { peer: event.peer_id, kind });
            }
            FromSwarm::ConnectionClosed(event) => {
                self.open.remove(&event.connection_id);
            }
            FromSwarm::DialFailure(event) => {
                self.pending_outbound.remove(&event.connection_id);
            }
            FromSwarm::ListenFailure(event) => {
                self.pending_inbound.remove(&event.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _peer: PeerId, _id: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some((peer_id, connection)) = self.to_close.pop_front() {
            return Poll::Ready(ToSwarm::CloseConnection { peer_id, connection });
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::{Incarnation, NodeId, SigningKey};
    use parking_lot::RwLock;

    use super::*;
    use crate::directory::Directory;
    use crate::options::{Member, peer_id};

    fn peer(n: u8) -> PeerId {
        peer_id(&SigningKey::from_bytes([n; 32]).unwrap().public())
    }

    fn doors(members: &[u8]) -> Doors {
        doors_with(members, &[])
    }

    fn doors_with(members: &[u8], gateways: &[u8]) -> Doors {
        let member = |n: &u8| Member {
            node: NodeId(u64::from(*n)),
            name: String::new(),
            peer: peer(*n),
            address: None,
            incarnation: Incarnation([*n; 16]),
        };
        let members: Vec<Member> = members.iter().map(member).collect();
        let address = |n: &u8| SigningKey::from_bytes([*n; 32]).unwrap().address();
        let gateways: Vec<_> = gateways.iter().map(address).collect();
        Doors::new(RwLock::new(Directory::new(&members).with_gateways(&gateways)).into())
    }

    fn open(doors: &mut Doors, id: usize, peer: PeerId) {
        let kind = doors.kind(&peer);
        doors.open.insert(ConnectionId::new_unchecked(id), Open { peer, kind });
    }

    #[test]
    fn strangers_fill_only_their_own_places() {
        let mut doors = doors(&[1]);
        for n in 0..STRANGERS_MAX {
            assert_eq!(doors.admit(&peer(n as u8 + 100)), Ok(()));
            open(&mut doors, n, peer(n as u8 + 100));
        }
        assert_eq!(doors.admit(&peer(99)), Err(TurnedAway::Strangers));
        for n in 0..CONNECTIONS_PER_PEER_MAX {
            assert_eq!(doors.admit(&peer(1)), Ok(()));
            open(&mut doors, 1000 + n, peer(1));
        }
        assert_eq!(doors.admit(&peer(1)), Err(TurnedAway::Member));
        doors.close_strange(peer(100));
        assert!(matches!(doors.to_close.pop_front(), Some((_, CloseConnection::One(_)))));
        assert!(doors.to_close.is_empty());
    }

    #[test]
    fn a_gateway_has_places_of_its_own_and_gets_no_more() {
        let mut doors = doors_with(&[1], &[2, 3]);
        for n in 0..STRANGERS_MAX {
            open(&mut doors, n, peer(n as u8 + 100));
        }
        for n in 0..CONNECTIONS_PER_GATEWAY_MAX {
            assert_eq!(doors.admit(&peer(2)), Ok(()));
            open(&mut doors, 1000 + n, peer(2));
        }
        assert_eq!(doors.admit(&peer(2)), Err(TurnedAway::Gateway));
        assert_eq!((doors.admit(&peer(3)), doors.admit(&peer(1))), (Ok(()), Ok(())));
        assert_eq!(doors.dial(ConnectionId::new_unchecked(1), Some(peer(3))), Err(TurnedAway::NotDialed));
    }

    #[test]
    fn strangers_are_not_dialed_and_other_kinds_of_keys_not_let_in() {
        let mut doors = doors(&[1]);
        let id = ConnectionId::new_unchecked(1);
        assert_eq!(doors.dial(id, Some(peer(1))), Ok(()));
        assert_eq!(doors.dial(id, Some(peer(2))), Err(TurnedAway::NotDialed));
        assert_eq!(doors.dial(id, None), Err(TurnedAway::NotDialed));
        assert_eq!(doors.admit(&PeerId::random()), Err(TurnedAway::Key));
    }

    #[test]
    fn one_address_cannot_take_all_places_of_connections_that_are_being_set_up() {
        let (mut doors, mut id) = (doors(&[]), 0);
        let mut knock = |ip: [u8; 4]| {
            id += 1;
            doors.knock(ConnectionId::new_unchecked(id), Some(ip.into()))
        };
        for _ in 0..PENDING_INBOUND_PER_ADDRESS_MAX {
            assert_eq!(knock([10, 0, 0, 1]), Ok(()));
        }
        assert_eq!(knock([10, 0, 0, 1]), Err(TurnedAway::Address));
        for n in 0..(PENDING_INBOUND_MAX - PENDING_INBOUND_PER_ADDRESS_MAX) {
            assert_eq!(knock([10, 0, 1, n as u8]), Ok(()));
        }
        assert_eq!(knock([10, 0, 0, 2]), Err(TurnedAway::Inbound));
    }
}
