//! Bringing raft's configuration to what the ledger says, one step at a time. Every leader goes on where the last one
//! stopped, also in the middle of a joint configuration, which openraft finishes only at the next change.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_ledger::Target;
use lockstep_types::NodeId;
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};

use crate::handle::Consensus;
use crate::raft_types::{Membership, TypeConfig};

/// What the next step of a change is.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Raft is where it should be.
    Done,
    /// Let these follow.
    Follow(BTreeSet<u64>),
    /// This node must not lead any more.
    HandOver,
    /// These vote, and no others; also finishes a joint configuration.
    Vote(BTreeSet<u64>),
    /// These are no part of it any more.
    Forget(BTreeSet<u64>),
}

fn step(own: u64, raft: &Membership, target: &Target) -> Step {
    let voters: BTreeSet<u64> = target.voters.iter().map(|id| id.0).collect();
    let wanted: BTreeSet<u64> = target.observers.iter().map(|id| id.0).chain(voters.iter().copied()).collect();
    let nodes: BTreeSet<u64> = raft.nodes().map(|(id, _)| *id).collect();
    let missing: BTreeSet<u64> = wanted.difference(&nodes).copied().collect();
    if !missing.is_empty() {
        return Step::Follow(missing);
    }
    if raft.get_joint_config().len() != 1 || raft.get_joint_config()[0] != voters {
        return if voters.contains(&own) { Step::Vote(voters) } else { Step::HandOver };
    }
    let extra: BTreeSet<u64> = nodes.difference(&wanted).copied().collect();
    if extra.is_empty() { Step::Done } else { Step::Forget(extra) }
}

/// A step was not made. The next leader, or the next try, makes it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct SteerError(String);

impl Consensus {
    /// Takes the next step towards `target`, if this node leads. True when raft is there.
    ///
    /// # Errors
    /// If the step was not committed: try again.
    pub async fn steer(&self, target: &Target) -> Result<bool, SteerError> {
        let own = *self.raft().node_id();
        let raft = self.raft().metrics().borrow_watched().membership_config.membership().clone();
        let step = step(own, &raft, target);
        if step != Step::Done {
            tracing::info!(?step, "changing the members of consensus");
        }
        let result = match step {
            Step::Done => return Ok(true),
            Step::HandOver => {
                let voters: Vec<NodeId> = target.voters.iter().copied().collect();
                self.hand_over(&voters).await;
                return Ok(false);
            }
            Step::Follow(nodes) => {
                let nodes: BTreeMap<u64, _> = nodes.into_iter().map(|id| (id, openraft::EmptyNode {})).collect();
                self.raft().change_membership(ChangeMembers::AddNodes(nodes), true).await
            }
            // Whoever votes no more stays as an observer until the last step.
            Step::Vote(voters) => self.raft().change_membership(ChangeMembers::ReplaceAllVoters(voters), true).await,
            Step::Forget(nodes) => self.raft().change_membership(ChangeMembers::RemoveNodes(nodes), true).await,
        };
        let text = |e: RaftError<TypeConfig, ClientWriteError<TypeConfig>>| SteerError(e.to_string());
        result.map(|_| false).map_err(text)
    }

    /// For a leader: which index each follower and observer has acknowledged. Empty elsewhere.
    pub fn acknowledged(&self) -> BTreeMap<NodeId, u64> {
        let metrics = self.raft().data_metrics();
        let data = metrics.borrow_watched();
        let followers = data.replication.iter().flatten();
        followers.map(|(id, matched)| (NodeId(*id), matched.as_ref().map_or(0, |id| id.index))).collect()
    }

    /// Index of the newest entry that this node knows to be committed.
    pub fn committed(&self) -> u64 {
        let metrics = self.raft().data_metrics();
        let data = metrics.borrow_watched();
        data.local_committed.max(data.cluster_committed).map_or(0, |id| id.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership(configs: &[&[u64]], learners: &[u64]) -> Membership {
        let configs: Vec<BTreeSet<u64>> = configs.iter().map(|ids| ids.iter().copied().collect()).collect();
        let ids = configs.iter().flatten().copied().chain(learners.iter().copied());
        let nodes: BTreeMap<u64, openraft::EmptyNode> = ids.map(|id| (id, openraft::EmptyNode {})).collect();
        Membership::new(configs, nodes).unwrap()
    }

    fn target(voters: &[u64], observers: &[u64]) -> Target {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
        Target { voters: ids(voters), observers: ids(observers) }
    }

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    #[test]
    fn every_configuration_leads_to_the_target_step_by_step() {
        let wanted = target(&[1, 2, 4], &[5]);
        assert_eq!(step(1, &membership(&[&[1, 2, 3]], &[]), &wanted), Step::Follow(set(&[4, 5])));
        assert_eq!(step(1, &membership(&[&[1, 2, 3]], &[4, 5]), &wanted), Step::Vote(set(&[1, 2, 4])));
        // A leader crashed half-way: the next one finishes the joint configuration first.
        assert_eq!(step(2, &membership(&[&[1, 2, 3], &[1, 2, 4]], &[5]), &wanted), Step::Vote(set(&[1, 2, 4])));
        assert_eq!(step(1, &membership(&[&[1, 2, 4]], &[3, 5]), &wanted), Step::Forget(set(&[3])));
        assert_eq!(step(1, &membership(&[&[1, 2, 4]], &[5]), &wanted), Step::Done);
    }

    #[test]
    fn a_leader_that_is_to_leave_hands_over_first() {
        assert_eq!(step(3, &membership(&[&[1, 2, 3]], &[]), &target(&[1, 2], &[])), Step::HandOver);
        assert_eq!(step(1, &membership(&[&[1, 2, 3]], &[]), &target(&[1, 2], &[])), Step::Vote(set(&[1, 2])));
    }
}
