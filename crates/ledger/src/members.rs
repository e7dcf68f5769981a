//! Membership as the log has it: who is and was a member, which changes voters approve, and the one that is under
//! way. Pure: what openraft must be brought to follows from it ([`Members::target`]).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lockstep_types::members::{member_from_proto, member_to_proto};
use lockstep_types::{
    Address, Approval, Change, DecodeError, Epoch, Genesis, GenesisError, Hash32, Height, Member, MemberRole,
    MemberSet, NetworkId, NodeId, ProjectId, Proposal, SetMember, Signature, TimeMs, proto,
};
use prost::Message as _;

/// Version of the stored record.
pub const MEMBERS_VERSION: u32 = 1;
/// Most members, removed ones not counted.
pub const MEMBERS_MAX: usize = lockstep_types::genesis::MEMBERS_MAX;
/// Most proposals that wait for approvals; a further one is refused until one expires.
pub const PROPOSALS_MAX: usize = 16;
/// Longest life of a proposal, so that an old approval does not lie in wait.
pub const PROPOSAL_LIFE_MS_MAX: u64 = 7 * 24 * 3600 * 1000;

/// A member, present or past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownMember {
    /// What its operator gave to the others.
    pub member: Member,
    /// What it may do.
    pub role: MemberRole,
    /// Height of the batch that admitted it; 0 at genesis.
    pub admitted: Height,
}

/// A change that is made, and that raft is being brought to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// The change.
    pub proposal: Proposal,
    /// Height of the batch with which it was made.
    pub height: Height,
}

/// A proposal with the approvals it has so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenProposal {
    /// The proposal.
    pub proposal: Proposal,
    /// Approvals by voter.
    pub approvals: BTreeMap<NodeId, Signature>,
}

/// The voters and observers that raft must have when no change is under way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    /// Voters.
    pub voters: BTreeSet<NodeId>,
    /// Observers.
    pub observers: BTreeSet<NodeId>,
}

/// Why an approval does not count. The same on every node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApprovalError {
    /// It was made for another state of the network.
    #[error(
        "the proposal was made for another state of the network (epoch, members or number of changes): propose it anew"
    )]
    Stale,
    /// Its time is over, or too far away.
    #[error("the proposal has expired, or expires more than seven days from now")]
    Expired,
    /// Another change is not finished.
    #[error("another change ({0}) is under way: wait for it to finish")]
    UnderWay(String),
    /// Whoever signed is no voter, or the signature is not over this proposal.
    #[error("the approval is not signed by a voter of this network")]
    Signer,
    /// The change makes no sense.
    #[error("{0}")]
    Change(String),
    /// No room.
    #[error("{PROPOSALS_MAX} proposals wait for approvals already: approve one of them or wait until it expires")]
    Full,
}

/// What became of an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Approved {
    /// More are needed.
    Waiting,
    /// The change is made.
    Made,
    /// Somebody owns a project.
    Project(ProjectId, Address),
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    known: BTreeMap<NodeId, KnownMember>,
    changes: u64,
    pending: Option<Pending>,
    proposals: BTreeMap<Hash32, OpenProposal>,
    /// The set before a change whose batch is not certified yet, and that batch.
    boundary: Option<(Height, MemberSet)>,
    set: MemberSet,
    hash: Hash32,
}

impl Members {
    /// The members of a genesis: all voters.
    pub fn genesis(genesis: &Genesis) -> Result<Self, GenesisError> {
        genesis.first_set()?;
        let known = |(node, member): (NodeId, &Member)| {
            (node, KnownMember { member: member.clone(), role: MemberRole::Voter, admitted: Height(0) })
        };
        let mut members = Self { known: genesis.nodes().map(known).collect(), ..Self::default() };
        members.renew_set();
        Ok(members)
    }

    /// The members of a new epoch: nobody of the old one, and `first` as the only voter, under an id that is above
    /// `last_id` and every id that was ever used. `parent` is the height that the epoch begins behind.
    pub fn found(&self, first: Member, last_id: NodeId, parent: Height) -> (NodeId, Self) {
        let node = self.known.keys().next_back().copied().unwrap_or_default().max(last_id).next();
        let gone = |(node, known): (&NodeId, &KnownMember)| {
            (*node, KnownMember { role: MemberRole::Removed, ..known.clone() })
        };
        let mut members =
            Self { known: self.known.iter().map(gone).collect(), changes: self.changes, ..Self::default() };
        members.known.insert(node, KnownMember { member: first, role: MemberRole::Voter, admitted: parent });
        members.renew_set();
        (node, members)
    }

    fn renew_set(&mut self) {
        let present = self.present().filter_map(|(node, known)| {
            let address = known.member.key().ok()?.address();
            Some(SetMember { node, address, voter: known.role == MemberRole::Voter })
        });
        self.set = MemberSet(present.collect());
        self.hash = self.set.hash();
    }

    /// All members ever, by id.
    pub fn all(&self) -> impl Iterator<Item = (NodeId, &KnownMember)> {
        self.known.iter().map(|(node, known)| (*node, known))
    }

    /// Voters and observers, by id.
    pub fn present(&self) -> impl Iterator<Item = (NodeId, &KnownMember)> {
        self.all().filter(|(_, known)| known.role != MemberRole::Removed)
    }

    /// One member, present or past.
    pub fn get(&self, node: NodeId) -> Option<&KnownMember> {
        self.known.get(&node)
    }

    /// The set that holds from the next batch on.
    pub fn set(&self) -> &MemberSet {
        &self.set
    }

    /// Its hash.
    pub fn hash(&self) -> Hash32 {
        self.hash
    }

    /// How many changes were finished.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The change that is under way.
    pub fn pending(&self) -> Option<&Pending> {
        self.pending.as_ref()
    }

    /// Proposals that wait for approvals, by digest.
    pub fn proposals(&self) -> &BTreeMap<Hash32, OpenProposal> {
        &self.proposals
    }

    /// Height of a change of the set whose batch has no certificate yet: nothing above it can be certified before.
    pub fn boundary(&self) -> Option<Height> {
        self.boundary.as_ref().map(|(height, _)| *height)
    }

    /// The set whose voters certify the batch at `height`, which is not final yet.
    pub fn set_at(&self, height: Height) -> &MemberSet {
        match &self.boundary {
            Some((boundary, before)) if height <= *boundary => before,
            _ => &self.set,
        }
    }

    /// What raft must be brought to; `None` while the old set has not certified the change.
    pub fn target(&self) -> Option<Target> {
        if self.boundary.is_some() {
            return None;
        }
        let with = |role| self.known.iter().filter(move |(_, known)| known.role == role).map(|(node, _)| *node);
        Some(Target { voters: with(MemberRole::Voter).collect(), observers: with(MemberRole::Observer).collect() })
    }

    /// The proposal of a change, for a voter to approve.
    pub fn propose(&self, epoch: Epoch, change: Change, expires_ms: TimeMs) -> Proposal {
        Proposal { epoch, number: self.changes + 1, members: self.hash, expires_ms, change }
    }

    /// Whether an approval counts at `now`. Costs one signature recovery.
    pub fn check(
        &self,
        approval: &Approval,
        network: &NetworkId,
        epoch: Epoch,
        now: TimeMs,
    ) -> Result<(), ApprovalError> {
        let proposal = &approval.proposal;
        if let Some(pending) = &self.pending {
            return Err(ApprovalError::UnderWay(pending.proposal.change.to_string()));
        }
        if proposal.epoch != epoch || proposal.number != self.changes + 1 || proposal.members != self.hash {
            return Err(ApprovalError::Stale);
        }
        if proposal.expires_ms <= now || proposal.expires_ms.0 - now.0 > PROPOSAL_LIFE_MS_MAX {
            return Err(ApprovalError::Expired);
        }
        let address = self.set.voter(approval.node).ok_or(ApprovalError::Signer)?;
        if approval.signer(network) != Some(address) {
            return Err(ApprovalError::Signer);
        }
        self.check_change(&proposal.change)?;
        let known = self.proposals.contains_key(&proposal.digest(network));
        let live = self.proposals.values().filter(|open| open.proposal.expires_ms > now).count();
        if !known && live >= PROPOSALS_MAX { Err(ApprovalError::Full) } else { Ok(()) }
    }

    fn check_change(&self, change: &Change) -> Result<(), ApprovalError> {
        let wrong = |reason: String| Err(ApprovalError::Change(reason));
        let role = |node: &NodeId| self.known.get(node).map(|known| known.role);
        let voters = self.set.voters().count();
        match change {
            Change::Admit(member) => self.check_newcomer(member),
            Change::Project(..) => Ok(()),
            Change::Promote(node) => match role(node) {
                Some(MemberRole::Observer) => Ok(()),
                Some(MemberRole::Voter) => wrong(format!("node {node} is a voter already")),
                _ => wrong(format!("there is no node {node} in this network")),
            },
            Change::Demote(node) | Change::Remove(node) => match role(node) {
                Some(MemberRole::Voter) if voters == 1 => wrong(format!("node {node} is the only voter")),
                Some(MemberRole::Observer) if matches!(change, Change::Demote(_)) => {
                    wrong(format!("node {node} is an observer already"))
                }
                Some(MemberRole::Voter | MemberRole::Observer) => Ok(()),
                _ => wrong(format!("there is no node {node} in this network")),
            },
        }
    }

    fn check_newcomer(&self, member: &Member) -> Result<(), ApprovalError> {
        let wrong = |reason: String| Err(ApprovalError::Change(reason));
        member.check().map_err(|e| ApprovalError::Change(e.to_string()))?;
        if self.present().count() >= MEMBERS_MAX {
            return wrong(format!("a network has at most {MEMBERS_MAX} members"));
        }
        for (node, known) in self.all() {
            if known.member.incarnation == member.incarnation {
                return wrong(format!("node {node} had this store already"));
            }
            if known.role == MemberRole::Removed {
                continue;
            }
            if known.member.name == member.name || known.member.key().ok() == member.key().ok() {
                return wrong(format!("node {node} has this name or key: remove it first"));
            }
        }
        Ok(())
    }

    /// Counts an approval that was [checked](Members::check); `height` is that of the batch it would make.
    pub(crate) fn count(&mut self, approval: Approval, network: &NetworkId, now: TimeMs, height: Height) -> Approved {
        self.proposals.retain(|_, open| open.proposal.expires_ms > now);
        let digest = approval.proposal.digest(network);
        let proposal = approval.proposal;
        let open = self
            .proposals
            .entry(digest)
            .or_insert_with(|| OpenProposal { proposal: proposal.clone(), approvals: BTreeMap::new() });
        open.approvals.insert(approval.node, approval.signature);
        if open.approvals.len() < self.set.majority() {
            return Approved::Waiting;
        }
        if let Change::Project(project, owner) = proposal.change {
            // No member changes: raft and certificates go on as they were.
            self.proposals.clear();
            self.changes += 1;
            return Approved::Project(project, owner);
        }
        self.make(proposal, height);
        Approved::Made
    }

    fn make(&mut self, proposal: Proposal, height: Height) {
        let mut set_role = |node: &NodeId, role| {
            if let Some(known) = self.known.get_mut(node) {
                known.role = role;
            }
        };
        match &proposal.change {
            Change::Admit(member) => {
                let node = self.known.keys().next_back().map_or(NodeId(1), |last| last.next());
                let known = KnownMember { member: member.clone(), role: MemberRole::Observer, admitted: height };
                self.known.insert(node, known);
            }
            Change::Promote(node) => set_role(node, MemberRole::Voter),
            Change::Demote(node) => set_role(node, MemberRole::Observer),
            Change::Remove(node) => set_role(node, MemberRole::Removed),
            Change::Project(..) => return,
        }
        // Every open proposal was made for the state before.
        self.proposals.clear();
        self.pending = Some(Pending { proposal, height });
        self.boundary = Some((height, self.set.clone()));
        self.renew_set();
    }

    /// The batch at `height` is final. Whether that was news.
    pub(crate) fn certified(&mut self, height: Height) -> bool {
        let done = self.boundary.as_ref().is_some_and(|(boundary, _)| *boundary <= height);
        if done {
            self.boundary = None;
        }
        done
    }

    /// Raft has this uniform configuration now. Whether that finished the change under way.
    pub(crate) fn raft_is(&mut self, raft: &Target) -> bool {
        let done = self.pending.is_some() && self.target().as_ref() == Some(raft);
        if done {
            self.pending = None;
            self.changes += 1;
        }
        done
    }

    /// The stored record.
    pub fn encode(&self) -> Vec<u8> {
        let role = |role: MemberRole| match role {
            MemberRole::Voter => 1,
            MemberRole::Observer => 2,
            MemberRole::Removed => 3,
        };
        let known = |(node, known): (NodeId, &KnownMember)| proto::KnownMember {
            node: node.0,
            record: Some(member_to_proto(&known.member)),
            role: role(known.role),
            admitted: known.admitted.0,
        };
        let signature = |(node, signature): (&NodeId, &Signature)| proto::VoterSignature {
            node: node.0,
            signature: Bytes::copy_from_slice(&signature.0),
        };
        let open = |open: &OpenProposal| proto::OpenProposal {
            proposal: Some(open.proposal.to_proto()),
            approvals: open.approvals.iter().map(signature).collect(),
        };
        proto::Members {
            version: MEMBERS_VERSION,
            members: self.all().map(known).collect(),
            changes: self.changes,
            pending: self
                .pending
                .as_ref()
                .map(|p| proto::Pending { proposal: Some(p.proposal.to_proto()), height: p.height.0 }),
            proposals: self.proposals.values().map(open).collect(),
            previous: self.boundary.as_ref().map(|(_, set)| set.to_proto()),
            boundary: self.boundary().unwrap_or_default().0,
        }
        .encode_to_vec()
    }

    /// Reads a stored record of the network.
    pub fn decode(record: Bytes, network: &NetworkId) -> Result<Self, DecodeError> {
        let bad = |reason: &str| DecodeError::malformed("members", reason);
        let read = proto::Members::decode(record).map_err(|e| bad(&e.to_string()))?;
        if read.version > MEMBERS_VERSION {
            return Err(DecodeError::Newer { what: "members", found: read.version, known: MEMBERS_VERSION });
        }
        let proposal =
            |p: Option<proto::Proposal>| Proposal::from_proto(p.ok_or_else(|| bad("a proposal is missing"))?);
        let mut members = Self { changes: read.changes, ..Self::default() };
        for known in read.members {
            let role = match known.role {
                1 => MemberRole::Voter,
                2 => MemberRole::Observer,
                3 => MemberRole::Removed,
                _ => return Err(bad("unknown role")),
            };
            let member = member_from_proto(known.record.ok_or_else(|| bad("a member is missing"))?)?;
            let known_member = KnownMember { member, role, admitted: Height(known.admitted) };
            members.known.insert(NodeId(known.node), known_member);
        }
        if let Some(pending) = read.pending {
            let height = Height(pending.height);
            members.pending = Some(Pending { proposal: proposal(pending.proposal)?, height });
        }
        for open in read.proposals {
            let proposal = proposal(open.proposal)?;
            let approval = |s: proto::VoterSignature| {
                let signature =
                    Signature::try_from(&s.signature[..]).map_err(|_| bad("a signature is not 65 bytes"))?;
                Ok((NodeId(s.node), signature))
            };
            let approvals = open.approvals.into_iter().map(approval).collect::<Result<_, DecodeError>>()?;
            members.proposals.insert(proposal.digest(network), OpenProposal { proposal, approvals });
        }
        if let Some(previous) = read.previous {
            members.boundary = Some((Height(read.boundary), MemberSet::from_proto(previous)?));
        }
        members.renew_set();
        Ok(members)
    }
}
