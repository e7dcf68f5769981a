//! Keeps the network's list of members as the log has it.

use std::collections::BTreeMap;

use lockstep_ledger::{KnownMember, Members};
use lockstep_network::{Handle, Peer};
use lockstep_types::{GenesisError, MemberRole, NodeId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) fn peer(node: NodeId, known: &KnownMember) -> Result<Peer, GenesisError> {
    let member = &known.member;
    Ok(Peer {
        node,
        name: member.name.clone(),
        key: member.key()?,
        address: Some(member.p2p.clone()),
        incarnation: member.incarnation,
    })
}

/// Those whom the network talks to: everyone present, and whoever leaves until that is done, because it still votes
/// on it and certifies it.
pub(crate) fn peers(members: &Members) -> BTreeMap<NodeId, Peer> {
    let leaving = members.pending().and_then(|pending| match pending.proposal.change {
        lockstep_types::Change::Remove(node) => Some(node),
        _ => None,
    });
    let wanted = |(node, known): &(NodeId, &KnownMember)| known.role != MemberRole::Removed || Some(*node) == leaving;
    members.all().filter(wanted).filter_map(|(node, known)| Some((node, peer(node, known).ok()?))).collect()
}

/// Follows the members until `stop`.
pub(crate) async fn run_peers(
    own: NodeId,
    mut members: watch::Receiver<std::sync::Arc<Members>>,
    network: Handle,
    stop: CancellationToken,
) {
    let mut known = peers(&members.borrow_and_update());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = members.changed() => if changed.is_err() { return },
        }
        let wanted = peers(&members.borrow_and_update());
        for (node, peer) in wanted.iter().filter(|(node, peer)| **node != own && known.get(*node) != Some(*peer)) {
            if let Err(error) = network.set_member(peer.clone()).await {
                tracing::error!(%node, %error, "a member cannot be reached: its record is wrong");
            }
        }
        for node in known.keys().filter(|node| !wanted.contains_key(*node)) {
            if network.remove_member(*node).await.is_err() {
                return;
            }
        }
        known = wanted;
    }
}
