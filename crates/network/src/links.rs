//! When to dial whom and which connection to give up: one link for each other member, with its connections and its
//! back-off. Pure: time and randomness are arguments.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use lockstep_types::NodeId;
use tokio::time::Instant;

use crate::limits::{REDIAL_MAX, REDIAL_MIN, SILENCE_MAX};
use crate::options::Member;

#[derive(Debug)]
struct Connection {
    id: ConnectionId,
    remote: Multiaddr,
    /// When it opened or last answered a ping.
    heard: Instant,
}

/// The state of the connections to one member.
#[derive(Debug)]
pub(crate) struct Link {
    pub peer: PeerId,
    pub name: String,
    address: Option<Multiaddr>,
    connections: Vec<Connection>,
    dialing: Option<ConnectionId>,
    dial_at: Instant,
    pause: Duration,
    /// Round trip of the last ping.
    pub rtt: Option<Duration>,
}

impl Link {
    fn new(member: &Member, now: Instant) -> Self {
        Self {
            peer: member.peer,
            name: member.name.clone(),
            address: member.address.clone(),
            connections: Vec::new(),
            dialing: None,
            dial_at: now,
            pause: REDIAL_MIN,
            rtt: None,
        }
    }

    pub fn connected(&self) -> bool {
        !self.connections.is_empty()
    }

    /// Where the member is connected from, of the newest connection.
    pub fn remote(&self) -> Option<&Multiaddr> {
        self.connections.last().map(|connection| &connection.remote)
    }

    fn dial_due(&self) -> Option<Instant> {
        let wanted = self.address.is_some() && self.dialing.is_none() && !self.connected();
        wanted.then_some(self.dial_at)
    }
}

/// The links to all other members.
#[derive(Debug, Default)]
pub(crate) struct Links(BTreeMap<NodeId, Link>);

impl Links {
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Link)> {
        self.0.iter().map(|(node, link)| (*node, link))
    }

    /// Adds a member, or takes over its new name and address and dials it at once where it is not connected.
    pub fn set(&mut self, member: &Member, now: Instant) {
        let link = self.0.entry(member.node).or_insert_with(|| Link::new(member, now));
        if link.peer != member.peer {
            *link = Link::new(member, now);
        }
        link.name.clone_from(&member.name);
        link.address.clone_from(&member.address);
        (link.dial_at, link.pause) = (now, REDIAL_MIN);
    }

    pub fn remove(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    /// The earliest moment at which a dial is due or a connection has been silent for too long.
    pub fn next_due(&self) -> Option<Instant> {
        let dials = self.0.values().filter_map(Link::dial_due);
        let silences = self.0.values().flat_map(|link| &link.connections).map(|c| c.heard + SILENCE_MAX);
        dials.chain(silences).min()
    }

    /// Connections to give up now: closing them is the caller's part. ping's own failure comes too late, because it
    /// forgives the first one.
    pub fn silent(&self, now: Instant) -> Vec<(NodeId, ConnectionId)> {
        let all = self.iter().flat_map(|(node, link)| link.connections.iter().map(move |c| (node, c)));
        all.filter(|(_, c)| c.heard + SILENCE_MAX <= now).map(|(node, c)| (node, c.id)).collect()
    }

    /// Notes the answer to a ping.
    pub fn heard(&mut self, node: NodeId, connection: ConnectionId, rtt: Duration, now: Instant) {
        let Some(link) = self.0.get_mut(&node) else { return };
        link.rtt = Some(rtt);
        if let Some(connection) = link.connections.iter_mut().find(|c| c.id == connection) {
            connection.heard = now;
        }
    }

    /// Members to dial now. Each counts as being dialed until [`Links::dial_failed`] or [`Links::opened`].
    pub fn due(&mut self, now: Instant) -> Vec<(PeerId, Multiaddr, NodeId)> {
        let due = self.0.iter().filter(|(_, link)| link.dial_due().is_some_and(|at| at <= now));
        due.filter_map(|(node, link)| Some((link.peer, link.address.clone()?, *node))).collect()
    }

    /// Notes that the dial of a member goes by this connection id.
    pub fn dialing(&mut self, node: NodeId, connection: ConnectionId) {
        if let Some(link) = self.0.get_mut(&node) {
            link.dialing = Some(connection);
        }
    }

    /// Notes that one of our dials failed, and puts the next one off: twice as long as the last time, times
    /// `jitter` from 0.5 to 1. Says which member it was for.
    pub fn dial_failed(&mut self, connection: ConnectionId, now: Instant, jitter: f64) -> Option<NodeId> {
        let (node, link) = self.0.iter_mut().find(|(_, link)| link.dialing == Some(connection))?;
        link.dialing = None;
        link.dial_at = now + link.pause.mul_f64(jitter);
        link.pause = (link.pause * 2).min(REDIAL_MAX);
        Some(*node)
    }

    /// Notes a new connection. True where the member was not connected before.
    pub fn opened(&mut self, node: NodeId, connection: ConnectionId, remote: Multiaddr, now: Instant) -> bool {
        let Some(link) = self.0.get_mut(&node) else { return false };
        if link.dialing == Some(connection) {
            link.dialing = None;
        }
        link.pause = REDIAL_MIN;
        link.connections.push(Connection { id: connection, remote, heard: now });
        link.connections.len() == 1
    }

    /// Notes that a connection is gone, or given up and about to be closed. True where it was the member's last;
    /// the member is then due at once.
    pub fn closed(&mut self, node: NodeId, connection: ConnectionId, now: Instant) -> bool {
        let Some(link) = self.0.get_mut(&node) else { return false };
        let before = link.connections.len();
        link.connections.retain(|c| c.id != connection);
        let last = before > 0 && link.connections.is_empty();
        if last {
            (link.dial_at, link.pause, link.rtt) = (now, REDIAL_MIN, None);
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::Incarnation;

    use super::*;

    fn member(address: Option<&str>) -> Member {
        Member {
            node: NodeId(2),
            name: "two".into(),
            peer: PeerId::random(),
            address: address.map(|text| text.parse().unwrap()),
            incarnation: Incarnation([2; 16]),
        }
    }

    #[test]
    fn back_off_doubles_to_its_limit_and_starts_over_after_a_connection() {
        let (mut links, mut now) = (Links::default(), Instant::now());
        links.set(&member(Some("/ip4/127.0.0.1/tcp/1")), now);
        let mut pauses = Vec::new();
        for i in 0..8 {
            assert_eq!(links.due(now).len(), 1);
            let id = ConnectionId::new_unchecked(i);
            links.dialing(NodeId(2), id);
            assert!(links.due(now).is_empty(), "one dial at a time");
            assert_eq!(links.dial_failed(id, now, 1.0), Some(NodeId(2)));
            let next = links.next_due().unwrap();
            pauses.push((next - now).as_millis());
            now = next;
        }
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        let (id, other) = (ConnectionId::new_unchecked(100), ConnectionId::new_unchecked(101));
        assert!(links.opened(NodeId(2), id, Multiaddr::empty(), now));
        assert!(!links.opened(NodeId(2), other, Multiaddr::empty(), now));
        assert!(links.due(now + REDIAL_MAX).is_empty());
        assert!(!links.closed(NodeId(2), id, now));
        assert!(links.closed(NodeId(2), other, now));
        assert_eq!(links.next_due(), Some(now));
        assert!(!links.closed(NodeId(2), other, now), "a connection given up closes once");
    }

    #[test]
    fn a_connection_is_given_up_when_its_pings_stay_without_answer() {
        let (mut links, now) = (Links::default(), Instant::now());
        links.set(&member(None), now);
        let [old, new] = [1, 2].map(ConnectionId::new_unchecked);
        links.opened(NodeId(2), old, Multiaddr::empty(), now);
        links.opened(NodeId(2), new, Multiaddr::empty(), now);
        assert_eq!(links.next_due(), Some(now + SILENCE_MAX));
        let later = now + SILENCE_MAX;
        links.heard(NodeId(2), new, Duration::from_millis(1), later);
        assert_eq!(links.silent(later), [(NodeId(2), old)]);
        assert!(!links.closed(NodeId(2), old, later));
        assert_eq!(links.next_due(), Some(later + SILENCE_MAX));
    }

    #[test]
    fn a_member_without_address_is_never_dialed() {
        let (mut links, now) = (Links::default(), Instant::now());
        links.set(&member(None), now);
        assert_eq!(links.next_due(), None);
    }
}
