//! Changes of membership as operators make them: approvals on their way into the log, and newcomers that ask.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_api::views::{MemberView, MembersView, ProposalView, RequestView};
use lockstep_consensus::{Consensus, ProposeError, Role};
use lockstep_ledger::{Command, KnownMember, Members, OpenProposal};
use lockstep_network::{Channel, Handle, JoinService};
use lockstep_types::members::{member_from_proto, member_to_proto};
use lockstep_types::{
    Address, Approval, Change, Epoch, Epochs, Genesis, Hash32, Member, MemberRole, NetworkId, NodeId, PublicKey,
    TimeMs, keccak256, proto,
};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::time::Instant;

use crate::control::forward_approval;
use crate::limits::{APPROVAL_TIMEOUT, JOIN_REQUEST_LIFE, JOIN_REQUESTS_MAX, PROMOTE_LAG_MAX};
use crate::tracker::Tracker;

/// Version of a join request.
pub(crate) const JOIN_VERSION: u32 = 1;

/// A newcomer that asks to join.
#[derive(Debug, Clone)]
pub(crate) struct JoinAsk {
    pub member: Member,
    pub since: Instant,
    last: Instant,
}

impl JoinAsk {
    fn view(&self) -> RequestView {
        RequestView {
            id: self.id(),
            name: self.member.name.clone(),
            address: self.member.key().map_or(Address::ZERO, |key| key.address()),
            p2p: self.member.p2p.clone(),
            http: self.member.http.clone(),
            asked_seconds_ago: self.since.elapsed().as_secs(),
            record: hex::encode(member_to_proto(&self.member).encode_to_vec()),
        }
    }

    /// Names the request: the first 8 bytes of a hash of the member's record.
    pub fn id(&self) -> String {
        let hash = keccak256(&[&member_to_proto(&self.member).encode_to_vec()]);
        format!("0x{}", hex::encode(&hash[..8]))
    }
}

/// What an [`Operator`] works with.
pub(crate) struct OperatorParts {
    pub node: NodeId,
    pub genesis: Genesis,
    pub network_id: NetworkId,
    pub epochs: Epochs,
    pub consensus: Consensus,
    pub network: Handle,
    pub tracker: Arc<Tracker>,
}

struct Inner {
    parts: OperatorParts,
    asks: Mutex<VecDeque<JoinAsk>>,
}

/// See the module's documentation. Clones share it.
#[derive(Clone)]
pub(crate) struct Operator(Arc<Inner>);

impl OperatorParts {
    fn epoch(&self) -> Epoch {
        self.epochs.current()
    }
}

impl Operator {
    pub fn new(parts: OperatorParts) -> Self {
        Self(Arc::new(Inner { parts, asks: Mutex::new(VecDeque::new()) }))
    }

    /// The time by this node's clock.
    pub fn now(&self) -> TimeMs {
        self.0.parts.tracker.now()
    }

    fn members(&self) -> Arc<Members> {
        self.0.parts.tracker.members().borrow().clone()
    }

    /// What there is to see of membership; newcomers that ask only for this node's operator.
    pub fn view(&self, with_requests: bool) -> MembersView {
        let parts = &self.0.parts;
        let members = self.members();
        let connected: Vec<NodeId> = parts.network.peers().iter().filter(|p| p.connected).map(|p| p.node).collect();
        let member = |(id, known): (NodeId, &KnownMember)| MemberView {
            id,
            name: known.member.name.clone(),
            role: known.role,
            address: known.member.key().map_or(Address::ZERO, |key| key.address()),
            p2p: known.member.p2p.clone(),
            http: known.member.http.clone(),
            admitted: known.admitted,
            connected: id == parts.node || connected.contains(&id),
        };
        let now = parts.tracker.now();
        let proposal = |(digest, open): (&Hash32, &OpenProposal)| ProposalView {
            id: format!("0x{}", hex::encode(digest)),
            change: open.proposal.change.to_string(),
            approvals: open.approvals.keys().copied().collect(),
            needed: members.set().majority(),
            expires_ms: open.proposal.expires_ms,
            record: hex::encode(open.proposal.to_proto().encode_to_vec()),
        };
        let live = members.proposals().iter().filter(|(_, open)| open.proposal.expires_ms > now);
        MembersView {
            network_id: parts.network_id,
            epoch: parts.epoch(),
            members_hash: format!("0x{}", hex::encode(members.hash())),
            changes: members.changes(),
            members: members.all().map(member).collect(),
            pending: members.pending().map(|pending| pending.proposal.change.to_string()),
            proposals: live.map(proposal).collect(),
            requests: if with_requests { self.asks().iter().map(JoinAsk::view).collect() } else { Vec::new() },
        }
    }

    /// Newcomers that asked lately and are no members yet.
    pub fn asks(&self) -> Vec<JoinAsk> {
        let members = self.members();
        let mut asks = self.0.asks.lock();
        asks.retain(|ask| {
            let is_member = members.present().any(|(_, known)| known.member.incarnation == ask.member.incarnation);
            !is_member && ask.last.elapsed() < JOIN_REQUEST_LIFE
        });
        asks.iter().cloned().collect()
    }

    /// Brings an approval into the log, by way of the leader.
    pub async fn approve(&self, approval: Approval) -> Result<(), String> {
        let parts = &self.0.parts;
        self.check(&self.members(), &approval)?;
        let status = parts.consensus.status().borrow().clone();
        if status.role == Role::Leader {
            return self.decide(approval).await;
        }
        let leader = status.leader.ok_or("no leader is known: wait for one and try again")?;
        let mut client = parts.network.client(leader, Channel::Control);
        forward_approval(&mut client, &approval, APPROVAL_TIMEOUT).await.map_err(|e| e.to_string())?;
        // Until it is seen here too, so that whoever asks next at this node is told the truth.
        let mut members = parts.tracker.members();
        let seen = members.wait_for(|members| self.counts(members, &approval));
        let _ = tokio::time::timeout(APPROVAL_TIMEOUT, seen).await;
        Ok(())
    }

    /// Whether an approval would count, by this node's state and clock.
    fn check(&self, members: &Members, approval: &Approval) -> Result<(), String> {
        let parts = &self.0.parts;
        members.check(approval, &parts.network_id, parts.epoch(), parts.tracker.now()).map_err(|e| e.to_string())
    }

    /// Whether the log has counted an approval.
    fn counts(&self, members: &Members, approval: &Approval) -> bool {
        let digest = approval.proposal.digest(&self.0.parts.network_id);
        let counted = members.proposals().get(&digest).is_some_and(|open| open.approvals.contains_key(&approval.node));
        let made = members.pending().is_some_and(|pending| pending.proposal == approval.proposal);
        counted || made || members.changes() >= approval.proposal.number
    }

    /// The leader's part of [`Operator::approve`].
    pub async fn decide(&self, approval: Approval) -> Result<(), String> {
        let parts = &self.0.parts;
        let members = self.members();
        self.check(&members, &approval)?;
        self.check_safe(&members, &approval.proposal.change)?;
        let command = Command::encode_approval(parts.tracker.now(), &approval);
        match tokio::time::timeout(APPROVAL_TIMEOUT, parts.consensus.propose(command)).await {
            Ok(Ok(())) => {}
            Ok(Err(ProposeError::NotLeader)) => return Err("the leader has changed: try again".into()),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("no majority answered in time: look at the members later, and try again".into()),
        }
        if self.counts(&self.members(), &approval) {
            Ok(())
        } else {
            Err("the network changed meanwhile and the approval does not count: look at the members and try again"
                .into())
        }
    }

    /// Whether the network would keep a majority that can act.
    fn check_safe(&self, members: &Members, change: &Change) -> Result<(), String> {
        let parts = &self.0.parts;
        let (acknowledged, committed) = (parts.consensus.acknowledged(), parts.consensus.committed());
        let connected: Vec<NodeId> = parts.network.peers().iter().filter(|p| p.connected).map(|p| p.node).collect();
        let lag = |node: NodeId| committed.saturating_sub(acknowledged.get(&node).copied().unwrap_or(0));
        let able = |node: NodeId| node == parts.node || (connected.contains(&node) && lag(node) <= PROMOTE_LAG_MAX);
        let voters = members.set().voters().map(|voter| voter.node);
        let after: Vec<NodeId> = match change {
            Change::Admit(_) | Change::Project(..) => return Ok(()),
            Change::Promote(node) => {
                if !connected.contains(node) {
                    return Err(format!("node {node} is not connected to the leader: start it first"));
                }
                if lag(*node) > PROMOTE_LAG_MAX {
                    return Err(format!(
                        "node {node} is {} log entries behind: wait until it has caught up, then promote it",
                        lag(*node)
                    ));
                }
                voters.chain([*node]).collect()
            }
            Change::Demote(leaver) | Change::Remove(leaver) => voters.filter(|node| node != leaver).collect(),
        };
        let (live, needed) = (after.iter().filter(|node| able(**node)).count(), after.len() / 2 + 1);
        if live < needed {
            return Err(format!(
                "of the {} voters that would remain only {live} are connected and caught up, and {needed} are needed for a majority",
                after.len()
            ));
        }
        Ok(())
    }

    fn take_ask(&self, from: &PublicKey, request: Bytes) -> Result<Option<NodeId>, String> {
        let request = proto::JoinRequest::decode(request).map_err(|e| e.to_string())?;
        if request.version > JOIN_VERSION {
            return Err(format!("join request version {} is not known here: upgrade this node first", request.version));
        }
        let member =
            member_from_proto(request.member.ok_or("the request names no member")?).map_err(|e| e.to_string())?;
        if member.key().ok().as_ref() != Some(from) {
            return Err("the request is for another key than the one that asks".into());
        }
        let members = self.members();
        let same_store = |known: &KnownMember| known.member.incarnation == member.incarnation;
        if let Some((node, known)) = members.all().find(|(_, known)| same_store(known)) {
            let leaving = members.pending().is_some_and(|p| p.proposal.change == Change::Remove(node));
            return match known.role {
                // It asks whether it may go: not before the change is made.
                MemberRole::Removed if leaving => Ok(Some(node)),
                MemberRole::Removed => Err(format!("node {node} was removed from this network: join with a new home")),
                _ => Ok(Some(node)),
            };
        }
        let same_name =
            |known: &KnownMember| known.member.name == member.name || known.member.key().ok().as_ref() == Some(from);
        if let Some((node, _)) = members.present().find(|(_, known)| same_name(known)) {
            return Err(format!(
                "node {node} has this name or key: choose another name, or have that node removed first"
            ));
        }
        let (mut asks, now) = (self.0.asks.lock(), Instant::now());
        if let Some(known) = asks.iter_mut().find(|ask| ask.member.incarnation == member.incarnation) {
            (known.member, known.last) = (member, now);
            return Ok(None);
        }
        asks.retain(|ask| ask.last.elapsed() < JOIN_REQUEST_LIFE);
        if asks.len() >= JOIN_REQUESTS_MAX {
            return Err("too many newcomers ask to join: try again later, or at another node".into());
        }
        tracing::info!(name = member.name, address = %from.address(), "a newcomer asks to join");
        asks.push_back(JoinAsk { member, since: now, last: now });
        Ok(None)
    }
}

impl JoinService for Operator {
    async fn handle(&self, from: PublicKey, request: Bytes) -> Bytes {
        let parts = &self.0.parts;
        let (node, refused) = match self.take_ask(&from, request) {
            Ok(node) => (node, String::new()),
            Err(reason) => (None, reason),
        };
        let members = lockstep_types::proto::Members::decode(Bytes::from(self.members().encode()));
        proto::JoinResponse {
            genesis: parts.genesis.to_text().unwrap_or_default(),
            members: members.map(|members| members.members).unwrap_or_default(),
            epoch: parts.epoch().0,
            node: node.unwrap_or_default().0,
            refused,
            epochs: if parts.epochs.is_empty() { String::new() } else { parts.epochs.to_text().unwrap_or_default() },
        }
        .encode_to_vec()
        .into()
    }
}

/// Time between two questions of a newcomer.
pub(crate) const ASK_INTERVAL: Duration = Duration::from_secs(2);
