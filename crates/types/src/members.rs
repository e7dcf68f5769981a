//! Who belongs to a network: the sets that headers commit to, and the changes of membership that voters approve.

use bytes::Bytes;

use crate::genesis::{GenesisError, Member};
use crate::hash::{Hash32, keccak256};
use crate::ids::{Address, Epoch, Incarnation, NetworkId, NodeId, ProjectId, TimeMs};
use crate::message::{DecodeError, PROJECT_ID_MAX};
use crate::proto;
use crate::signature::{PublicKey, Signature, SigningKey, recover_address};

const MEMBERS_DOMAIN: &[u8] = b"lockstep/members/v1";
const PROPOSAL_DOMAIN: &[u8] = b"lockstep/proposal/v1";
/// Longest p2p address or URL of a member, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 256;

/// What a member may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    /// Takes part in consensus and certifies.
    Voter,
    /// Follows, serves devices and readers.
    Observer,
    /// Has left. Its id is never used again.
    Removed,
}

/// One place in a [`MemberSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SetMember {
    /// Its id.
    pub node: NodeId,
    /// Address of its key.
    pub address: Address,
    /// Whether it votes; else it observes.
    pub voter: bool,
}

/// The members of a network at one height, by ascending id: what headers commit to.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct MemberSet(pub Vec<SetMember>);

impl MemberSet {
    /// keccak256 over the members: id (8 bytes), address (20 bytes) and 1 for a voter, 0 for an observer
    /// (docs/formats.md, "Members hash").
    pub fn hash(&self) -> Hash32 {
        let mut bytes = Vec::with_capacity(29 * self.0.len());
        for member in &self.0 {
            bytes.extend_from_slice(&member.node.0.to_be_bytes());
            bytes.extend_from_slice(&member.address.0);
            bytes.push(u8::from(member.voter));
        }
        keccak256(&[MEMBERS_DOMAIN, &(self.0.len() as u64).to_be_bytes(), &bytes])
    }

    /// The voters.
    pub fn voters(&self) -> impl Iterator<Item = &SetMember> {
        self.0.iter().filter(|member| member.voter)
    }

    /// How many signatures are a majority of the voters.
    pub fn majority(&self) -> usize {
        self.voters().count() / 2 + 1
    }

    /// Address of the voter with this id.
    pub fn voter(&self, node: NodeId) -> Option<Address> {
        self.voters().find(|member| member.node == node).map(|member| member.address)
    }

    /// Whether this is the address of a member.
    pub fn has(&self, address: &Address) -> bool {
        self.0.iter().any(|member| member.address == *address)
    }

    /// The storage form.
    pub fn to_proto(&self) -> proto::MemberSet {
        let member = |m: &SetMember| proto::SetMember {
            node: m.node.0,
            address: Bytes::copy_from_slice(&m.address.0),
            voter: m.voter,
        };
        proto::MemberSet { members: self.0.iter().map(member).collect() }
    }

    /// Reads the storage form.
    pub fn from_proto(set: proto::MemberSet) -> Result<Self, DecodeError> {
        let member = |m: proto::SetMember| {
            let address = Address::try_from(&m.address[..]).map_err(|e| DecodeError::malformed("member set", e))?;
            Ok(SetMember { node: NodeId(m.node), address, voter: m.voter })
        };
        let members: Vec<_> = set.members.into_iter().map(member).collect::<Result<_, DecodeError>>()?;
        if !members.is_sorted_by(|a, b| a.node < b.node) {
            return Err(DecodeError::malformed("member set", "ids do not ascend"));
        }
        Ok(Self(members))
    }
}

/// A change of membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A newcomer becomes an observer, under the next free id.
    Admit(Member),
    /// An observer becomes a voter.
    Promote(NodeId),
    /// A voter becomes an observer.
    Demote(NodeId),
    /// A member leaves, for good.
    Remove(NodeId),
    /// Somebody becomes the owner of a project, which is registered with it. No member changes.
    Project(ProjectId, Address),
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Admit(member) => write!(f, "admit {}", member.name),
            Self::Promote(node) => write!(f, "promote node {node}"),
            Self::Demote(node) => write!(f, "demote node {node}"),
            Self::Remove(node) => write!(f, "remove node {node}"),
            Self::Project(project, owner) => write!(f, "give project {project} to {owner}"),
        }
    }
}

/// A change together with everything that an approval of it is bound to, so that none counts twice or elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The network's epoch.
    pub epoch: Epoch,
    /// One more than the number of changes that were made so far.
    pub number: u64,
    /// Hash of the set that it changes.
    pub members: Hash32,
    /// From this time on (batch time) approvals of it count no more.
    pub expires_ms: TimeMs,
    /// What changes.
    pub change: Change,
}

/// A voter's approval of a proposal. Nothing is checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// What it approves.
    pub proposal: Proposal,
    /// The voter.
    pub node: NodeId,
    /// Its signature over [`Proposal::digest`].
    pub signature: Signature,
}

fn counted(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_be_bytes()[..], bytes].concat()
}

/// A member's fields as they are hashed: name, key (33 bytes), incarnation, p2p address, URL.
fn member_bytes(member: &Member) -> Vec<u8> {
    let key = member.key().map(|key| key.compressed()).unwrap_or([0; 33]);
    [
        &counted(member.name.as_bytes())[..],
        &key,
        &member.incarnation.0,
        &counted(member.p2p.as_bytes()),
        &counted(member.http.as_bytes()),
    ]
    .concat()
}

impl Proposal {
    /// What approvals sign, and the proposal's name (docs/formats.md, "Proposals and approvals").
    pub fn digest(&self, network: &NetworkId) -> Hash32 {
        let (kind, body) = match &self.change {
            Change::Admit(member) => (1_u8, member_bytes(member)),
            Change::Promote(node) => (2, node.0.to_be_bytes().to_vec()),
            Change::Demote(node) => (3, node.0.to_be_bytes().to_vec()),
            Change::Remove(node) => (4, node.0.to_be_bytes().to_vec()),
            Change::Project(project, owner) => (5, [&project.0.to_be_bytes()[..], &owner.0].concat()),
        };
        keccak256(&[
            PROPOSAL_DOMAIN,
            &network.0,
            &self.epoch.0.to_be_bytes(),
            &self.number.to_be_bytes(),
            &self.members,
            &self.expires_ms.0.to_be_bytes(),
            &[kind],
            &body,
        ])
    }

    /// Approves it with a voter's key.
    pub fn approve(self, network: &NetworkId, node: NodeId, key: &SigningKey) -> Approval {
        let signature = key.sign(&self.digest(network));
        Approval { proposal: self, node, signature }
    }

    /// The wire and storage form.
    pub fn to_proto(&self) -> proto::Proposal {
        use proto::proposal::Change as Kind;
        let change = match &self.change {
            Change::Admit(member) => Kind::Admit(member_to_proto(member)),
            Change::Promote(node) => Kind::Promote(node.0),
            Change::Demote(node) => Kind::Demote(node.0),
            Change::Remove(node) => Kind::Remove(node.0),
            Change::Project(project, owner) => {
                Kind::Project(proto::ProjectGrant { project_id: project.0, owner: Bytes::copy_from_slice(&owner.0) })
            }
        };
        proto::Proposal {
            epoch: self.epoch.0,
            number: self.number,
            members: Bytes::copy_from_slice(&self.members),
            expires_ms: self.expires_ms.0,
            change: Some(change),
        }
    }

    /// Reads the wire and storage form.
    pub fn from_proto(p: proto::Proposal) -> Result<Self, DecodeError> {
        use proto::proposal::Change as Kind;
        let bad = |reason: &str| DecodeError::malformed("proposal", reason);
        Ok(Self {
            epoch: Epoch(p.epoch),
            number: p.number,
            members: p.members[..].try_into().map_err(|_| bad("the members hash is not 32 bytes"))?,
            expires_ms: TimeMs(p.expires_ms),
            change: match p.change.ok_or_else(|| bad("no change, or one of a newer version"))? {
                Kind::Admit(member) => Change::Admit(member_from_proto(member)?),
                Kind::Promote(node) => Change::Promote(NodeId(node)),
                Kind::Demote(node) => Change::Demote(NodeId(node)),
                Kind::Remove(node) => Change::Remove(NodeId(node)),
                Kind::Project(grant) => {
                    if grant.project_id == 0 || grant.project_id > PROJECT_ID_MAX {
                        return Err(bad("project id out of range"));
                    }
                    let owner = Address::try_from(&grant.owner[..]).map_err(|_| bad("the owner is not 20 bytes"))?;
                    Change::Project(ProjectId(grant.project_id), owner)
                }
            },
        })
    }
}

impl Approval {
    /// The address that signed.
    pub fn signer(&self, network: &NetworkId) -> Option<Address> {
        recover_address(&self.proposal.digest(network), &self.signature).ok()
    }

    /// The wire and storage form.
    pub fn to_proto(&self) -> proto::Approval {
        proto::Approval {
            proposal: Some(self.proposal.to_proto()),
            node: self.node.0,
            signature: Bytes::copy_from_slice(&self.signature.0),
        }
    }

    /// Reads the wire and storage form.
    pub fn from_proto(a: proto::Approval) -> Result<Self, DecodeError> {
        let bad = |reason: &str| DecodeError::malformed("approval", reason);
        Ok(Self {
            proposal: Proposal::from_proto(a.proposal.ok_or_else(|| bad("the proposal is missing"))?)?,
            node: NodeId(a.node),
            signature: Signature::try_from(&a.signature[..]).map_err(|_| bad("the signature is not 65 bytes"))?,
        })
    }
}

/// The wire and storage form of a member. A key that is not one becomes empty bytes, which no reader takes.
pub fn member_to_proto(member: &Member) -> proto::MemberRecord {
    let key = member.key().map(|key| Bytes::copy_from_slice(&key.compressed()));
    proto::MemberRecord {
        name: member.name.clone(),
        public_key: key.unwrap_or_default(),
        incarnation: Bytes::copy_from_slice(&member.incarnation.0),
        p2p: member.p2p.clone(),
        http: member.http.clone(),
    }
}

/// Reads the wire and storage form of a member, and checks it.
pub fn member_from_proto(m: proto::MemberRecord) -> Result<Member, DecodeError> {
    let bad = |reason: &dyn std::fmt::Display| DecodeError::malformed("member", reason.to_string());
    let key = PublicKey::from_sec1(&m.public_key).map_err(|e| bad(&e))?;
    let member = Member {
        name: m.name,
        public_key: format!("0x{}", hex::encode(key.compressed())),
        incarnation: Incarnation::try_from(&m.incarnation[..]).map_err(|e| bad(&e))?,
        p2p: m.p2p,
        http: m.http,
    };
    member.check().map_err(|e: GenesisError| bad(&e))?;
    Ok(member)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newcomer() -> Member {
        Member {
            name: "node-4".into(),
            public_key: format!("0x{}", hex::encode(SigningKey::from_bytes([4; 32]).unwrap().public().compressed())),
            incarnation: Incarnation([4; 16]),
            p2p: "/ip4/127.0.0.1/tcp/9104".into(),
            http: "http://127.0.0.1:9004".into(),
        }
    }

    fn proposal(change: Change) -> Proposal {
        Proposal { epoch: Epoch(0), number: 1, members: [5; 32], expires_ms: TimeMs(1_000), change }
    }

    #[test]
    fn an_approval_survives_its_wire_form_and_names_its_signer() {
        let key = SigningKey::from_bytes([1; 32]).unwrap();
        let network = NetworkId([9; 32]);
        for change in [
            Change::Admit(newcomer()),
            Change::Promote(NodeId(4)),
            Change::Demote(NodeId(4)),
            Change::Remove(NodeId(4)),
            Change::Project(ProjectId(4), Address([7; 20])),
        ] {
            let approval = proposal(change).approve(&network, NodeId(1), &key);
            let again = Approval::from_proto(approval.to_proto()).unwrap();
            assert_eq!(again, approval);
            assert_eq!(again.signer(&network), Some(key.address()));
            assert_ne!(again.signer(&NetworkId([8; 32])), Some(key.address()));
        }
    }

    #[test]
    fn every_field_of_a_proposal_is_signed() {
        let network = NetworkId([9; 32]);
        let base = proposal(Change::Admit(newcomer()));
        let mut all = vec![base.clone(), proposal(Change::Promote(NodeId(4))), proposal(Change::Demote(NodeId(4)))];
        all.push(proposal(Change::Remove(NodeId(4))));
        all.push(proposal(Change::Remove(NodeId(5))));
        all.push(Proposal { epoch: Epoch(1), ..base.clone() });
        all.push(Proposal { number: 2, ..base.clone() });
        all.push(Proposal { members: [6; 32], ..base.clone() });
        all.push(Proposal { expires_ms: TimeMs(1_001), ..base.clone() });
        type Edit = fn(&mut Member);
        let edits: [Edit; 5] = [
            |m| m.name.push('x'),
            |m| m.incarnation.0[0] ^= 1,
            |m| m.p2p.push('1'),
            |m| m.http.push('1'),
            |m| m.public_key = hex::encode(SigningKey::from_bytes([5; 32]).unwrap().public().compressed()),
        ];
        for edit in edits {
            let mut member = newcomer();
            edit(&mut member);
            all.push(proposal(Change::Admit(member)));
        }
        let digests: std::collections::BTreeSet<_> = all.iter().map(|p| p.digest(&network)).collect();
        assert_eq!(digests.len(), all.len());
    }

    #[test]
    fn a_set_commits_to_ids_keys_and_votes() {
        let member = |node: u64, byte: u8, voter| SetMember { node: NodeId(node), address: Address([byte; 20]), voter };
        let base = MemberSet(vec![member(1, 1, true), member(2, 2, true), member(3, 3, false)]);
        assert_eq!(base.majority(), 2);
        assert_eq!(MemberSet::from_proto(base.to_proto()).unwrap(), base);
        for other in [member(4, 3, false), member(3, 4, false), member(3, 3, true)] {
            let mut set = base.clone();
            set.0[2] = other;
            assert_ne!(set.hash(), base.hash());
        }
        let unsorted = MemberSet(vec![member(2, 2, true), member(1, 1, true)]);
        assert!(MemberSet::from_proto(unsorted.to_proto()).is_err());
    }
}
