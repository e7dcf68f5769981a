//! Whose turn it is to feed an output of the network: the leader's. Where the leader does not have the output in its
//! configuration, the member with the lowest id that has it stands in, until another leads. Several that publish at once
//! do no harm, but cost: stores keep all but one of them out, or get the same bytes twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_consensus::{Consensus, Role};
use lockstep_network::{Channel, Client, Handle};
use lockstep_types::{NodeId, OutputName};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::control::{ControlError, ask_outputs};
use crate::limits::{CONTROL_TIMEOUT, TURN_INTERVAL};
use crate::tracker::Tracker;

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Turns {
    pub node: NodeId,
    pub consensus: Consensus,
    pub network: Handle,
    pub tracker: Arc<Tracker>,
    pub outputs: BTreeMap<OutputName, watch::Sender<bool>>,
}

impl Turns {
    /// For these outputs of the network.
    pub fn new(
        node: NodeId,
        (consensus, network, tracker): (Consensus, Handle, Arc<Tracker>),
        outputs: impl Iterator<Item = OutputName>,
    ) -> Self {
        let outputs = outputs.map(|name| (name, watch::Sender::new(false))).collect();
        Self { node, consensus, network, tracker, outputs }
    }

    /// Whether it is this node's turn to feed an output.
    pub fn of(&self, output: &OutputName) -> Option<watch::Receiver<bool>> {
        Some(self.outputs.get(output)?.subscribe())
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut status = self.consensus.status();
        let mut known = None;
        loop {
            let (role, leader) = {
                let status = status.borrow_and_update();
                (status.role, status.leader)
            };
            let changed = known.replace((role == Role::Leader, leader)) != Some((role == Role::Leader, leader));
            let leads = role == Role::Leader;
            if changed {
                // Whoever led before does not publish while it finds out.
                self.set(|_| leads);
            }
            let next = async {
                if !leads && let Some(leader) = leader {
                    let lacking = self.lacking(leader).await;
                    self.set(|name| lacking.contains(name));
                }
                tokio::time::sleep(TURN_INTERVAL).await;
            };
            let changes = async {
                let changed = status.wait_for(|status| Some((status.role == Role::Leader, status.leader)) != known);
                changed.await.is_ok()
            };
            let goes_on = tokio::select! {
                () = stop.cancelled() => return,
                goes_on = changes => goes_on,
                () = next => true,
            };
            if !goes_on {
                // Consensus ends, and the node with it.
                return stop.cancelled().await;
            }
        }
    }

    fn set(&self, turn: impl Fn(&OutputName) -> bool) {
        for (name, sender) in &self.outputs {
            let now = turn(name);
            let changed = sender.send_if_modified(|known| std::mem::replace(known, now) != now);
            if now && changed && self.consensus.status().borrow().role != Role::Leader {
                tracing::warn!(output = %name, "the leader has no such output: this node feeds it meanwhile. Give all nodes the network's outputs");
            }
        }
    }

    /// Outputs of this node that it has to feed although `leader` leads.
    async fn lacking(&self, leader: NodeId) -> Vec<OutputName> {
        let fed = self.ask(leader).await;
        let own = self.outputs.keys().filter(|name| !self.tracker.is_removed(name));
        let mut lacking = without(own.cloned().collect(), &[fed]);
        let members = self.tracker.members().borrow().clone();
        let before = members.set().0.iter().map(|member| member.node).filter(|node| *node < self.node);
        for node in before.filter(|node| *node != leader).collect::<Vec<_>>() {
            if lacking.is_empty() {
                break;
            }
            // One that does not answer does not feed either, as far as this node can know.
            let others = self.ask(node).await.or_else(|error| match error {
                ControlError::Call(_) => Ok(Vec::new()),
                error => Err(error),
            });
            lacking = without(lacking, &[others]);
        }
        lacking
    }

    async fn ask(&self, node: NodeId) -> Result<Vec<OutputName>, ControlError> {
        let mut client: Client = self.network.client(node, Channel::Control);
        ask_outputs(&mut client, CONTROL_TIMEOUT).await
    }
}

/// What is left of `names` without what others have. One that does not say, as an older program does not, has all.
fn without(names: Vec<OutputName>, others: &[Result<Vec<OutputName>, ControlError>]) -> Vec<OutputName> {
    let has = |name: &OutputName| others.iter().any(|other| other.as_ref().map_or(true, |names| names.contains(name)));
    names.into_iter().filter(|name| !has(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_does_not_say_has_everything() {
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<OutputName>>();
        let own = || names(&["a", "b", "c"]);
        assert_eq!(without(own(), &[Ok(names(&[]))]), own());
        assert_eq!(without(own(), &[Ok(names(&["b", "d"]))]), names(&["a", "c"]));
        assert_eq!(without(own(), &[Ok(names(&["a"])), Ok(names(&["c"]))]), names(&["b"]));
        assert_eq!(without(own(), &[Err(ControlError::Refused("older".into()))]), names(&[]));
    }
}
