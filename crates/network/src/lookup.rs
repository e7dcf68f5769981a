//! Finds members that moved, by Kademlia among the members. It only asks where a member is: dialing, one address at
//! a time, is the swarm task's part, so that a wrong key at one address does not spoil the others.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::kad::store::{MemoryStore, MemoryStoreConfig};
use libp2p::kad::{self, BucketInserts, Mode, StoreInserts};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

use crate::hello::Identity;
use crate::limits::{ADDRESSES_MAX, LOOKUP_TIMEOUT, LOOKUPS_MAX};

/// Places in one bucket of the routing table. Distances are random, so half of all members are in one bucket; it has
/// to hold them all.
const BUCKET_MEMBERS_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// Findings that wait for the swarm; one more is dropped and found again.
const FOUND_MAX: usize = 256;

/// Addresses that others gave for a peer. Nothing is proven by them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub peer: PeerId,
    pub addresses: Vec<Multiaddr>,
}

/// Kademlia as a way to look members up. Answers others' questions from the addresses that it was told by
/// [`Lookup::tell`]; stores nothing for anyone.
pub(crate) struct Lookup {
    kad: kad::Behaviour<MemoryStore>,
    found: VecDeque<Found>,
}

impl Lookup {
    pub fn new(identity: &Identity, own: PeerId) -> Self {
        let mut config = kad::Config::new(identity.kad_protocol());
        config
            .set_query_timeout(LOOKUP_TIMEOUT)
            .set_kbucket_inserts(BucketInserts::Manual)
            .set_kbucket_size(BUCKET_MEMBERS_MAX)
            .set_record_filtering(StoreInserts::FilterBoth)
            .set_replication_interval(None)
            .set_publication_interval(None)
            .set_provider_publication_interval(None)
            .set_periodic_bootstrap_interval(None);
        let nothing = MemoryStoreConfig { max_records: 0, max_provided_keys: 0, ..MemoryStoreConfig::default() };
        let mut kad = kad::Behaviour::with_config(own, MemoryStore::with_config(own, nothing), config);
        kad.set_mode(Some(Mode::Server));
        Self { kad, found: VecDeque::new() }
    }

    /// Sets what others are told of a member.
    pub fn tell(&mut self, peer: &PeerId, addresses: impl IntoIterator<Item = Multiaddr>) {
        self.kad.remove_peer(peer);
        for address in addresses {
            self.kad.add_address(peer, address);
        }
    }

    /// Tells nothing more of a peer.
    pub fn forget(&mut self, peer: &PeerId) {
        self.kad.remove_peer(peer);
    }

    /// Asks the connected members where a peer is. What they say comes as [`Found`], maybe several times.
    pub fn find(&mut self, peer: PeerId) {
        if self.kad.iter_queries().count() >= LOOKUPS_MAX {
            return;
        }
        // A query begins with the peers that are known, and never comes back to one that it could not reach. So the
        // peer must not be known when it begins, or what others say of it would be in vain.
        let known = self.kad.remove_peer(&peer);
        self.kad.get_closest_peers(peer);
        for address in known.iter().flat_map(|entry| entry.node.value.iter()) {
            self.kad.add_address(&peer, address.clone());
        }
    }

    /// Kademlia wants to dial a peer that it heard of, at addresses that it keeps to itself until then.
    fn note(&mut self, peer: PeerId, mut addresses: Vec<Multiaddr>) {
        addresses.truncate(ADDRESSES_MAX);
        let found = Found { peer, addresses };
        if !found.addresses.is_empty() && self.found.len() < FOUND_MAX && !self.found.contains(&found) {
            self.found.push_back(found);
        }
    }
}

impl NetworkBehaviour for Lookup {
    type ConnectionHandler = THandler<kad::Behaviour<MemoryStore>>;
    type ToSwarm = Found;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad.handle_established_inbound_connection(id, peer, local, remote)
    }

    /// Gives the swarm no address, so a dial that a behaviour asked for fails at once.
    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let found = self.kad.handle_pending_outbound_connection(id, peer, addresses, role)?;
        if let (Some(peer), true) = (peer, addresses.is_empty()) {
            self.note(peer, found);
        }
        Ok(Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad.handle_established_outbound_connection(id, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        // A new listening address makes Kademlia look for others, and warn where there are none yet.
        if !matches!(event, FromSwarm::NewListenAddr(_)) {
            self.kad.on_swarm_event(event);
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.kad.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(found) = self.found.pop_front() {
                return Poll::Ready(ToSwarm::GenerateEvent(found));
            }
            match std::task::ready!(self.kad.poll(cx)) {
                ToSwarm::GenerateEvent(_) => {}
                other => return Poll::Ready(other.map_out(|_| unreachable!("events were taken out above"))),
            }
        }
    }
}
