//! Which node has which key and store: written by the swarm task, read by streams.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use libp2p::PeerId;
use lockstep_types::{Address, NodeId};
use parking_lot::RwLock;

use crate::options::{Member, public_key};

/// The directory as the swarm task, its behaviours and the streams share it. Only the swarm task writes to it.
pub(crate) type SharedDirectory = Arc<RwLock<Directory>>;

/// The other members, found by node id and by peer id. Each node id has one peer id and the other way round. Beside
/// them the gateways that this node's operator admits, by the addresses of their keys.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    members: HashMap<NodeId, Member>,
    nodes: HashMap<PeerId, NodeId>,
    gateways: HashSet<Address>,
}

impl Directory {
    pub fn new(members: &[Member]) -> Self {
        let mut directory = Self::default();
        for member in members {
            directory.set(member.clone());
        }
        directory
    }

    /// The same directory, which admits these gateways for good.
    pub fn with_gateways(mut self, gateways: &[Address]) -> Self {
        self.gateways = gateways.iter().copied().collect();
        self
    }

    /// The address of a gateway's key, if the peer is a gateway that is admitted.
    pub fn gateway(&self, peer: &PeerId) -> Option<Address> {
        // Mostly there are none: no need to look at the key.
        if self.gateways.is_empty() {
            return None;
        }
        self.gateways.get(&public_key(peer)?.address()).copied()
    }

    pub fn get(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node)
    }

    pub fn by_peer(&self, peer: &PeerId) -> Option<&Member> {
        self.members.get(self.nodes.get(peer)?)
    }

    pub fn is_member(&self, peer: &PeerId) -> bool {
        self.nodes.contains_key(peer)
    }

    /// Adds or replaces a member and returns those that it replaces: its former self, and another node with the
    /// same key (a node that lost its store comes back with its key under a new id).
    pub fn set(&mut self, member: Member) -> Vec<Member> {
        let mut replaced: Vec<Member> = self.remove(member.node).into_iter().collect();
        let same_key = self.nodes.get(&member.peer).copied();
        replaced.extend(same_key.and_then(|node| self.remove(node)));
        self.nodes.insert(member.peer, member.node);
        self.members.insert(member.node, member);
        replaced
    }

    pub fn remove(&mut self, node: NodeId) -> Option<Member> {
        let member = self.members.remove(&node)?;
        self.nodes.remove(&member.peer);
        Some(member)
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::Incarnation;

    use super::*;

    #[test]
    fn a_key_under_a_new_node_id_replaces_the_old_member() {
        let peer = PeerId::random();
        let member = |node: u64| Member {
            node: NodeId(node),
            name: String::new(),
            peer,
            address: None,
            incarnation: Incarnation([node as u8; 16]),
        };
        let mut directory = Directory::new(&[member(2)]);
        assert_eq!(directory.set(member(4)).len(), 1);
        assert!(directory.get(NodeId(2)).is_none());
        assert_eq!(directory.by_peer(&peer).map(|m| m.node), Some(NodeId(4)));
    }
}
