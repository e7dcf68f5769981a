//! When to dial whom and where, and which connection to give up: one link for each other member, with its addresses,
//! its connections and its back-off. Pure: time and randomness are arguments.
//!
//! A member's addresses are dialed in rounds, one after the other, until one answers. After a round without success
//! comes a pause, and the time to ask others where the member is.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use lockstep_types::NodeId;
use tokio::time::Instant;

use crate::addresses::{Addresses, Origin, is_loopback, usable};
use crate::limits::{ADDRESSES_MAX, DIAL_STAGGER, REDIAL_MAX, REDIAL_MIN, SILENCE_MAX};
use crate::options::Member;

#[derive(Debug)]
struct Connection {
    id: ConnectionId,
    remote: Multiaddr,
    opened: Instant,
    /// When it opened or last answered a ping.
    heard: Instant,
}

/// The state of the connections to one member.
#[derive(Debug)]
pub(crate) struct Link {
    pub peer: PeerId,
    pub name: String,
    pub addresses: Addresses,
    connections: Vec<Connection>,
    /// What is left of this round.
    round: VecDeque<Multiaddr>,
    dialing: Vec<ConnectionId>,
    dial_at: Instant,
    pause: Duration,
    /// Round trip of the last ping.
    pub rtt: Option<Duration>,
}

/// What to do about a member that is not connected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Dial it there.
    Dial(NodeId, PeerId, Multiaddr),
    /// Nobody said where it is: ask.
    Find(PeerId),
}

/// What a failed dial was.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub node: NodeId,
    /// Set where it was the last of a round: time to ask where the member is.
    pub find: Option<PeerId>,
}

impl Link {
    fn new(member: &Member, now: Instant) -> Self {
        Self {
            peer: member.peer,
            name: member.name.clone(),
            addresses: Addresses::default(),
            connections: Vec::new(),
            round: VecDeque::new(),
            dialing: Vec::new(),
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

    /// Where the other end of one connection is.
    pub fn remote_of(&self, connection: ConnectionId) -> Option<&Multiaddr> {
        self.connections.iter().find(|c| c.id == connection).map(|c| &c.remote)
    }

    fn dial_due(&self) -> Option<Instant> {
        // At the end of a round the dials that are still under way decide what is next.
        let wanted = !self.connected() && (!self.round.is_empty() || self.dialing.is_empty());
        wanted.then_some(self.dial_at)
    }

    /// Starts a pause after a round; each is twice as long as the one before.
    fn rest(&mut self, now: Instant, jitter: f64) {
        self.dial_at = now + self.pause.mul_f64(jitter);
        self.pause = (self.pause * 2).min(REDIAL_MAX);
    }

    /// Puts an address before the others and dials it at once.
    fn dial_next(&mut self, address: Multiaddr, now: Instant) {
        if !self.connected() {
            self.round.retain(|other| *other != address);
            self.round.push_front(address);
            self.round.truncate(ADDRESSES_MAX);
            self.dial_at = now;
        }
    }

    fn due(&mut self, node: NodeId, now: Instant) -> Due {
        if self.round.is_empty() {
            self.round.extend(self.addresses.iter().cloned());
        }
        match self.round.pop_front() {
            Some(address) => {
                self.dial_at = now + DIAL_STAGGER;
                Due::Dial(node, self.peer, address)
            }
            None => {
                self.rest(now, 1.0);
                Due::Find(self.peer)
            }
        }
    }
}

/// The links to all other members.
#[derive(Debug, Default)]
pub(crate) struct Links(BTreeMap<NodeId, Link>);

impl Links {
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Link)> {
        self.0.iter().map(|(node, link)| (*node, link))
    }

    pub fn get(&self, node: NodeId) -> Option<&Link> {
        self.0.get(&node)
    }

    /// Adds a member, or takes over its new name and address and dials it at once where it is not connected.
    pub fn set(&mut self, member: &Member, now: Instant) {
        let link = self.0.entry(member.node).or_insert_with(|| Link::new(member, now));
        if link.peer != member.peer {
            *link = Link::new(member, now);
        }
        link.name.clone_from(&member.name);
        (link.dial_at, link.pause) = (now, REDIAL_MIN);
        if link.addresses.list(member.address.clone())
            && let Some(address) = &member.address
        {
            link.dial_next(address.clone(), now);
        }
    }

    pub fn remove(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    /// Takes note of addresses of a member, the best first, and dials new ones where it is not connected. True where
    /// something was learned.
    pub fn learn(&mut self, node: NodeId, addresses: Vec<Multiaddr>, origin: Origin, now: Instant) -> bool {
        let loopback = self.on_one_machine();
        let Some(link) = self.0.get_mut(&node) else { return false };
        let (peer, mut learned) = (link.peer, false);
        for address in addresses.into_iter().rev().filter_map(|address| usable(address, &peer, loopback)) {
            if link.addresses.add(address.clone(), origin) {
                learned = true;
                link.dial_next(address, now);
            }
        }
        learned
    }

    /// Whether any member is known to be at a loopback address.
    fn on_one_machine(&self) -> bool {
        let places = |link: &Link| link.addresses.listed().into_iter().chain(link.remote()).any(is_loopback);
        self.0.values().any(places)
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

    /// What is to be done now. Each dial counts as under way once [`Links::dialing`] named it, and until
    /// [`Links::dial_failed`] or [`Links::opened`].
    pub fn due(&mut self, now: Instant) -> Vec<Due> {
        let due = self.0.iter_mut().filter(|(_, link)| link.dial_due().is_some_and(|at| at <= now));
        due.map(|(node, link)| link.due(*node, now)).collect()
    }

    /// Notes that a dial of a member goes by this connection id.
    pub fn dialing(&mut self, node: NodeId, connection: ConnectionId) {
        if let Some(link) = self.0.get_mut(&node) {
            link.dialing.push(connection);
        }
    }

    /// Notes that one of our dials failed. The next address follows at once; after the last one comes a pause, times
    /// `jitter` from 0.5 to 1.
    pub fn dial_failed(&mut self, connection: ConnectionId, now: Instant, jitter: f64) -> Option<Failed> {
        let (node, link) = self.0.iter_mut().find(|(_, link)| link.dialing.contains(&connection))?;
        link.dialing.retain(|id| *id != connection);
        let mut find = None;
        if !link.round.is_empty() {
            link.dial_at = now;
        } else if link.dialing.is_empty() {
            link.rest(now, jitter);
            find = Some(link.peer);
        }
        Some(Failed { node: *node, find })
    }

    /// Notes a new connection. True where the member was not connected before.
    pub fn opened(&mut self, node: NodeId, connection: ConnectionId, remote: Multiaddr, now: Instant) -> bool {
        let Some(link) = self.0.get_mut(&node) else { return false };
        // What becomes of other dials does not matter any more.
        link.dialing.clear();
        link.round.clear();
        link.connections.push(Connection { id: connection, remote, opened: now, heard: now });
        link.connections.len() == 1
    }

    /// Notes that a connection is gone, or given up and about to be closed. True where it was the member's last;
    /// the member is then due at once, or after a pause where the connection did not live long: the other end turned
    /// it away.
    pub fn closed(&mut self, node: NodeId, connection: ConnectionId, now: Instant) -> bool {
        let Some(link) = self.0.get_mut(&node) else { return false };
        let Some(place) = link.connections.iter().position(|c| c.id == connection) else { return false };
        let gone = link.connections.remove(place);
        if link.connected() {
            return false;
        }
        link.rtt = None;
        if now - gone.opened >= REDIAL_MAX {
            (link.dial_at, link.pause) = (now, REDIAL_MIN);
        } else {
            link.rest(now, 1.0);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::Incarnation;

    use super::*;

    const NODE: NodeId = NodeId(2);

    /// Dials what is due, in order.
    fn dial(links: &mut Links, first_id: usize, now: Instant) -> Vec<String> {
        let mut dialed = Vec::new();
        for (id, due) in (first_id..).zip(links.due(now)) {
            match due {
                Due::Dial(node, _, address) => {
                    links.dialing(node, ConnectionId::new_unchecked(id));
                    dialed.push(address.to_string());
                }
                Due::Find(_) => dialed.push("find".into()),
            }
        }
        dialed
    }

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
            assert_eq!(dial(&mut links, i, now), ["/ip4/127.0.0.1/tcp/1"]);
            assert!(links.due(now).is_empty(), "one dial at a time");
            let failed = links.dial_failed(ConnectionId::new_unchecked(i), now, 1.0).unwrap();
            assert!(failed.node == NODE && failed.find.is_some());
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
        now += REDIAL_MAX;
        assert!(links.closed(NodeId(2), other, now));
        assert_eq!(links.next_due(), Some(now), "after a connection that lived");
        assert!(!links.closed(NodeId(2), other, now), "a connection given up closes once");
        for pause in [200, 400, 800] {
            links.opened(NODE, id, Multiaddr::empty(), now);
            assert!(links.closed(NODE, id, now));
            assert_eq!(links.next_due(), Some(now + Duration::from_millis(pause)), "turned away");
        }
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
    fn a_member_without_address_is_looked_up_in_growing_intervals() {
        let (mut links, now) = (Links::default(), Instant::now());
        links.set(&member(None), now);
        assert_eq!(dial(&mut links, 0, now), ["find"]);
        assert_eq!(links.next_due(), Some(now + REDIAL_MIN));
        assert_eq!(dial(&mut links, 0, now + REDIAL_MIN), ["find"]);
        assert_eq!(links.next_due(), Some(now + REDIAL_MIN * 3));
    }

    #[test]
    fn addresses_are_dialed_one_after_the_other_and_new_ones_at_once() {
        let (mut links, now) = (Links::default(), Instant::now());
        let [one, two, three] = [1, 2, 3].map(|port| format!("/ip4/127.0.0.1/tcp/{port}"));
        links.set(&member(Some(&one)), now);
        assert!(links.learn(NODE, vec![two.parse().unwrap()], Origin::Said, now));
        assert_eq!(dial(&mut links, 1, now), [&*two], "the newest first");
        assert_eq!(links.next_due(), Some(now + DIAL_STAGGER), "the next waits for it a while");
        let failed = links.dial_failed(ConnectionId::new_unchecked(1), now, 1.0).unwrap();
        assert_eq!(failed.find, None);
        assert_eq!(dial(&mut links, 2, now), [&*one]);
        assert_eq!(links.next_due(), None, "the round ends with its last dial");
        assert!(links.dial_failed(ConnectionId::new_unchecked(2), now, 1.0).unwrap().find.is_some());
        assert_eq!(links.next_due(), Some(now + REDIAL_MIN));
        assert!(links.learn(NODE, vec![three.parse().unwrap()], Origin::Heard, now));
        assert_eq!(dial(&mut links, 3, now), [&*three], "hearing of an address ends the pause");
        assert!(!links.learn(NODE, vec![three.parse().unwrap()], Origin::Heard, now));
        links.opened(NODE, ConnectionId::new_unchecked(3), Multiaddr::empty(), now);
        assert!(links.learn(NODE, vec![three.parse().unwrap()], Origin::Proven, now));
        links.closed(NODE, ConnectionId::new_unchecked(3), now + REDIAL_MAX);
        assert_eq!(dial(&mut links, 4, now + REDIAL_MAX), [&*three], "where it answered last comes first");
    }

    #[test]
    fn a_dial_without_an_answer_does_not_keep_the_next_address_waiting() {
        let (mut links, now) = (Links::default(), Instant::now());
        links.set(&member(Some("/ip4/10.0.0.1/tcp/1")), now);
        links.learn(NODE, vec!["/ip4/10.0.0.2/tcp/1".parse().unwrap()], Origin::Said, now);
        links.learn(NODE, vec!["/ip4/127.0.0.1/tcp/1".parse().unwrap()], Origin::Said, now);
        assert_eq!(dial(&mut links, 1, now), ["/ip4/10.0.0.2/tcp/1"], "loopback is not taken from afar");
        let later = now + DIAL_STAGGER;
        assert_eq!(dial(&mut links, 2, later), ["/ip4/10.0.0.1/tcp/1"]);
        assert!(links.dial_failed(ConnectionId::new_unchecked(2), later, 1.0).unwrap().find.is_none());
        assert!(links.dial_failed(ConnectionId::new_unchecked(1), later, 1.0).unwrap().find.is_some());
    }
}
