//! Keeps the network's list of members as the log has it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lockstep_consensus::Blocking;
use lockstep_ledger::{KnownMember, MEMBERS_MAX, Members};
use lockstep_network::{Handle, Peer};
use lockstep_types::{GenesisError, Height, Member, MemberRole, NodeId, SigningKey};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::join::{JoinError, ask_to_join};

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

/// How often a node that was removed asks whether it may go.
const DEPARTURE_TICK: Duration = Duration::from_secs(1);

/// Returns when this node was removed from the network and is needed no more: until the change is made it still votes
/// on it and certifies it. Nobody sends it the end of the change any more, so it asks, as a newcomer would.
/// `on_removal` is called at once.
pub(crate) async fn departed(
    own: NodeId,
    key: SigningKey,
    mut members: watch::Receiver<Arc<Members>>,
    on_removal: impl FnOnce(),
) {
    let removed = |members: &Arc<Members>| members.get(own).is_some_and(|known| known.role == MemberRole::Removed);
    let Ok(known) = members.wait_for(removed).await.map(|members| members.clone()) else {
        return std::future::pending().await;
    };
    tracing::warn!("this node is being removed from the network: it takes no more messages");
    on_removal();
    let Some(record) = known.get(own).map(|known| known.member.clone()) else { return };
    while members.borrow().pending().is_some() {
        for (_, other) in known.present() {
            if let Err(JoinError::Refused(_)) = ask_to_join(&key, &other.member.p2p, &record).await {
                return;
            }
        }
        tokio::time::sleep(DEPARTURE_TICK).await;
    }
}

/// What the network has to be told so that it has the members that the log has.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    set: Vec<Peer>,
    remove: Vec<NodeId>,
}

/// `given` is what the network has. A newcomer knows better whom it found than its log does until that tells of its own
/// admission, and of whom the log does not know even then it keeps what it found.
fn difference(own: NodeId, given: &BTreeMap<NodeId, Peer>, members: &Members) -> Difference {
    if members.get(own).is_none() {
        return Difference { set: Vec::new(), remove: Vec::new() };
    }
    let wanted = peers(members);
    let remove = given.keys().filter(|node| !wanted.contains_key(*node) && members.get(**node).is_some());
    let remove = remove.copied().collect();
    let is_new = |peer: &Peer| peer.node != own && given.get(&peer.node) != Some(peer);
    Difference { set: wanted.into_values().filter(is_new).collect(), remove }
}

/// Follows the members until `stop`. `given` is what the network was started with, which may be older than what the
/// log has by now; `found` are members that others named, which it may not know yet.
pub(crate) async fn run_peers(
    own: NodeId,
    given: Vec<Peer>,
    mut members: watch::Receiver<Arc<Members>>,
    network: Handle,
    mut found: mpsc::Receiver<Vec<(NodeId, Member)>>,
    stop: CancellationToken,
) {
    let mut given: BTreeMap<NodeId, Peer> = given.into_iter().map(|peer| (peer.node, peer)).collect();
    loop {
        let Difference { set, remove } = difference(own, &given, &members.borrow_and_update());
        for peer in set {
            if let Err(error) = network.set_member(peer.clone()).await {
                tracing::error!(node = %peer.node, %error, "a member cannot be reached: its record is wrong");
            }
            given.insert(peer.node, peer);
        }
        for node in remove {
            given.remove(&node);
            if network.remove_member(node).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = members.changed() => if changed.is_err() { return },
            Some(named) = found.recv() => {
                let known = members.borrow().clone();
                let_in(own, &mut given, named, &known, &network).await;
            }
        }
    }
}

/// Lets those in whom the log does not know yet. Whom it knows it knows better, also as removed.
async fn let_in(
    own: NodeId,
    given: &mut BTreeMap<NodeId, Peer>,
    named: Vec<(NodeId, Member)>,
    members: &Members,
    network: &Handle,
) {
    let is_new = |(node, _): &(NodeId, Member)| *node != own && members.get(*node).is_none();
    for (node, member) in named.into_iter().filter(is_new) {
        let known = KnownMember { member, role: MemberRole::Observer, admitted: Height(0) };
        let Ok(peer) = peer(node, &known) else { continue };
        if given.get(&node) == Some(&peer) || given.len() > MEMBERS_MAX {
            continue;
        }
        tracing::info!(%node, name = peer.name, "a member that this node has not heard of yet");
        if let Err(error) = network.set_member(peer.clone()).await {
            tracing::warn!(%node, %error, "a member cannot be reached: its record is wrong");
        }
        given.insert(node, peer);
    }
}

/// How often it is looked whether members were found elsewhere.
const BOOK_INTERVAL: Duration = Duration::from_secs(30);

/// Reads the address book; without one, or with a damaged one, members are found as at the first start.
pub(crate) fn read_book(path: &Path) -> Vec<(NodeId, Vec<String>)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Keeps the address book on disk, written only when something in it changed.
pub(crate) async fn run_book(network: Handle, path: PathBuf, blocking: Blocking, stop: CancellationToken) {
    let own = path.clone();
    let mut kept = blocking.run(move || read_book(&own)).await.unwrap_or_default();
    while tokio::time::timeout(BOOK_INTERVAL, stop.cancelled()).await.is_err() {
        let known = network.known_addresses();
        if known == kept {
            continue;
        }
        let (path, next) = (path.clone(), path.with_extension("next"));
        let text = serde_json::to_string_pretty(&known).unwrap_or_default();
        let write = move || std::fs::write(&next, text).and_then(|()| std::fs::rename(&next, &path));
        match blocking.run(write).await.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
            Ok(()) => kept = known,
            Err(error) => tracing::debug!(%error, "the address book cannot be written"),
        }
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::{Genesis, Incarnation, NetworkParams};

    use super::*;

    fn member(n: u8) -> Member {
        let key = SigningKey::from_bytes([n; 32]).unwrap();
        Member {
            name: format!("n{n}"),
            public_key: hex::encode(key.public().compressed()),
            incarnation: Incarnation([n; 16]),
            p2p: format!("/ip4/127.0.0.1/tcp/{n}"),
            http: format!("http://127.0.0.1:{n}"),
        }
    }

    fn of(names: &[u8]) -> Members {
        let members = names.iter().map(|n| member(*n)).collect();
        Members::genesis(&Genesis::new("test", members, NetworkParams::default()).unwrap()).unwrap()
    }

    #[test]
    fn the_network_hears_of_members_that_the_log_had_before_it_was_followed() {
        let members = of(&[1, 2, 3]);
        let all = peers(&members);
        let (own, other) = (*all.keys().next().unwrap(), *all.keys().last().unwrap());
        let mut older = all.clone();
        older.remove(&other);
        let told = difference(own, &older, &members);
        assert_eq!((told.set, told.remove), (vec![all[&other].clone()], vec![]));
        assert_eq!(difference(own, &all, &members), Difference { set: vec![], remove: vec![] });
    }

    #[test]
    fn whom_a_newcomer_found_stays_although_its_log_does_not_know_them_yet() {
        let members = of(&[1, 2]);
        let nothing = Difference { set: vec![], remove: vec![] };
        // In a later epoch the key of a member of the genesis may have another id.
        let later = Peer { node: NodeId(9), ..peers(&members).values().next().unwrap().clone() };
        let found = BTreeMap::from([(NodeId(9), later.clone())]);
        assert_eq!(difference(NodeId(10), &found, &members), nothing, "not admitted yet, as far as its log says");
        let mut found = peers(&members);
        found.insert(NodeId(9), later);
        assert_eq!(difference(NodeId(1), &found, &members), nothing);
    }
}
