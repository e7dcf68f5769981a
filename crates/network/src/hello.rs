//! Protocol ids, and the `Hello` with which both ends of a stream say who they are.
//!
//! The end that answers speaks first. So each end notes what the other has acknowledged *before* the other looks up
//! where its own log ends, and an acknowledgement that is under way on another stream never makes a good log look too
//! short.

use bytes::Bytes;
use libp2p::StreamProtocol;
use lockstep_types::genesis::FORMAT;
use lockstep_types::{Epoch, Incarnation, NetworkId, NodeId, proto};

use crate::options::Member;

/// Version of streams between members and of their `Hello`.
pub(crate) const WIRE_VERSION: u32 = 1;
/// Protocol id of requests to join. Without the network's id, which a newcomer does not know yet.
pub(crate) const JOIN_PROTOCOL: StreamProtocol = StreamProtocol::new("/lockstep/join/1");
/// Protocol id of bundles of gateways. Without the network's id as well: a gateway knows a node by its key.
pub(crate) const GATEWAY_PROTOCOL: StreamProtocol = StreamProtocol::new("/lockstep/gateway/1");

/// A kind of stream between members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Consensus: appends, votes, transfers.
    Raft,
    /// Bundles of device messages for the leader.
    Bundle,
    /// What members tell each other beside the log: votes for certificates, marks, approvals.
    Control,
    /// Snapshots, in pieces.
    Snapshot,
}

impl Channel {
    /// The channel's name in protocol ids, logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raft => "raft",
            Self::Bundle => "bundle",
            Self::Control => "control",
            Self::Snapshot => "snapshot",
        }
    }
}

/// Who this node is, as it says on every stream.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub network: NetworkId,
    pub epoch: Epoch,
    pub node: NodeId,
    pub incarnation: Incarnation,
}

impl Identity {
    fn prefix(&self) -> String {
        format!("/lockstep/{}", hex::encode(&self.network.as_bytes()[..8]))
    }

    pub fn protocol(&self, channel: Channel) -> StreamProtocol {
        self.stream_protocol(&format!("{}/{WIRE_VERSION}", channel.name()))
    }

    /// Protocol id of gossip; also the name of its one topic.
    pub fn gossip_protocol(&self) -> String {
        format!("{}/gossip/1", self.prefix())
    }

    /// What identify says for the protocol family, so that nodes of different networks notice.
    pub fn identify_protocol(&self) -> String {
        format!("{}/id/1", self.prefix())
    }

    /// Protocol id of Kademlia, through which members are found that moved.
    pub fn kad_protocol(&self) -> StreamProtocol {
        self.stream_protocol("kad/1")
    }

    fn stream_protocol(&self, rest: &str) -> StreamProtocol {
        StreamProtocol::try_from_owned(format!("{}/{rest}", self.prefix())).expect("a protocol id starts with a slash")
    }

    /// What this node says of itself, with its log ending at `last_index`.
    pub fn hello(&self, last_index: u64) -> proto::Hello {
        proto::Hello {
            version: WIRE_VERSION,
            network: Bytes::copy_from_slice(self.network.as_bytes()),
            epoch: self.epoch.0,
            node: self.node.0,
            incarnation: Bytes::copy_from_slice(self.incarnation.as_bytes()),
            last_index,
            format: FORMAT,
        }
    }

    /// Compares what a peer says with what is known of the member whose key its connection proved, and which has
    /// acknowledged the log up to `acknowledged`. The error is a sentence that is sent to the peer and logged.
    pub fn check(&self, hello: &proto::Hello, member: &Member, acknowledged: u64) -> Result<(), String> {
        if hello.version != WIRE_VERSION {
            return Err(format!("wire version {} is not spoken here, {WIRE_VERSION} is", hello.version));
        }
        if hello.format != FORMAT {
            return Err(format!(
                "format {} is not this program's, {FORMAT}: before the first release all members run the same program",
                hello.format
            ));
        }
        if hello.network != self.network.as_bytes() {
            return Err(format!("network 0x{} is not this network, {}", hex::encode(&hello.network), self.network));
        }
        if hello.epoch != self.epoch.0 {
            return Err(format!(
                "epoch {} is not this network's epoch, {}: the network was restored or recovered; who is of an earlier epoch joins again in a new home (`lockstep init --join`)",
                hello.epoch, self.epoch
            ));
        }
        if hello.node != member.node.0 {
            return Err(format!("the key belongs to node {}, not to node {}", member.node, hello.node));
        }
        check_store(member.node, (&hello.incarnation, &member.incarnation), (hello.last_index, acknowledged))
    }
}

/// Compares what the member `node` says of its store with what is known of it: its incarnation, and up to where its log
/// goes with what it has acknowledged.
///
/// # Errors
/// Why it must not take part, in a sentence.
pub fn check_store(
    node: NodeId,
    (incarnation, known): (&[u8], &Incarnation),
    (last_index, acknowledged): (u64, u64),
) -> Result<(), String> {
    if incarnation != known.as_bytes() {
        return Err(format!(
            "node {node} is known with incarnation {known}, not 0x{}: its store was lost or replaced; join again under a new node id",
            hex::encode(incarnation)
        ));
    }
    if last_index < acknowledged {
        return Err(format!(
            "node {node}'s log ends at {last_index}, but it acknowledged {acknowledged}: its disk was restored from an older copy; \
             join again under a new node id (`lockstep init --join` in a new home)"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;

    use super::*;

    #[test]
    fn every_field_of_a_hello_is_compared() {
        let identity = |node: u64| Identity {
            network: NetworkId([1; 32]),
            epoch: Epoch(0),
            node: NodeId(node),
            incarnation: Incarnation([node as u8; 16]),
        };
        let member = Member {
            node: NodeId(2),
            name: "two".into(),
            peer: PeerId::random(),
            address: None,
            incarnation: Incarnation([2; 16]),
        };
        let good = identity(2).hello(7);
        assert_eq!(identity(1).check(&good, &member, 7), Ok(()));
        type Change = fn(&mut proto::Hello);
        let changes: [(&str, Change); 6] = [
            ("version", |h| h.version += 1),
            ("network", |h| h.network = Bytes::from_static(&[2; 32])),
            ("epoch", |h| h.epoch += 1),
            ("node", |h| h.node += 1),
            ("incarnation", |h| h.incarnation.clear()),
            ("node 2's log ends at 6, but it acknowledged 7", |h| h.last_index -= 1),
        ];
        for (word, change) in changes {
            let mut hello = good.clone();
            change(&mut hello);
            assert!(identity(1).check(&hello, &member, 7).is_err_and(|reason| reason.contains(word)), "{word}");
        }
    }
}
