//! Orders of projects' owners on their way into the log, and what the registry holds.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_api::views::{DeviceView, DevicesView, ProjectView, ProjectsView, RulesFigures, RulesView};
use lockstep_api::{OrderProblem, ReadError, Registry};
use lockstep_consensus::{Consensus, ProposeError, Role, StateStore};
use lockstep_ledger::{Command, Document, History as _, OrderError, Project, compile_rules};
use lockstep_network::{Channel, Handle};
use lockstep_types::{Address, Digest, Epoch, Height, NetworkId, OrderKind, ProjectId, RulesOrder, SignedOrder};

use crate::control::{ControlError, forward_order};
use crate::limits::APPROVAL_TIMEOUT;
use crate::proofs;
use crate::tracker::Tracker;

/// Where orders go. Clones share it.
#[derive(Clone)]
pub(crate) struct Orders {
    pub network_id: NetworkId,
    pub epoch: Epoch,
    pub consensus: Consensus,
    pub network: Handle,
    pub tracker: Arc<Tracker>,
    pub state: StateStore,
}

const UNKNOWN: &str = "no majority answered in time: look at the project later, and sign the order again if need be";

impl Orders {
    /// What can be told at once, so that strangers cannot fill the log. `apply` checks all of it again.
    fn check(&self, signed: &SignedOrder) -> Result<(), OrderError> {
        let projects = self.tracker.projects().borrow().clone();
        projects.check_order(signed, (&self.network_id, self.epoch), self.tracker.now())
    }

    /// The leader's part of an order.
    pub async fn decide(&self, signed: SignedOrder) -> Result<(), OrderProblem> {
        self.check(&signed).map_err(refused)?;
        let (project, number) = (signed.order.project, signed.order.number);
        let verdicts = self.tracker.order_verdict(project, number);
        let command = Command::encode_order(self.tracker.now(), &signed);
        match tokio::time::timeout(APPROVAL_TIMEOUT, self.consensus.propose(command)).await {
            Ok(Ok(())) => {}
            Ok(Err(ProposeError::NotLeader)) => {
                return Err(OrderProblem::Unavailable("the leader has changed: try again".into()));
            }
            Ok(Err(error)) => return Err(OrderProblem::Unavailable(error.to_string())),
            Err(_) => return Err(OrderProblem::Unavailable(UNKNOWN.into())),
        }
        match verdicts.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(refused(reason)),
            Err(_) => Err(OrderProblem::Unavailable(UNKNOWN.into())),
        }
    }

    /// Until an order is seen here too, so that whoever asks next at this node is told the truth.
    async fn seen(&self, project: ProjectId, number: u64) {
        let mut projects = self.tracker.projects();
        let seen = projects.wait_for(|projects| projects.get(project).is_some_and(|p| p.orders >= number));
        let _ = tokio::time::timeout(APPROVAL_TIMEOUT, seen).await;
    }

    async fn carry_out(&self, signed: SignedOrder) -> Result<(), OrderProblem> {
        let status = self.consensus.status().borrow().clone();
        if status.role == Role::Leader {
            return self.decide(signed).await;
        }
        let leader = status.leader.ok_or_else(|| OrderProblem::Unavailable("no leader is known: try again".into()))?;
        let mut client = self.network.client(leader, Channel::Control);
        match forward_order(&mut client, &signed, APPROVAL_TIMEOUT + Duration::from_secs(1)).await {
            Ok(()) => {
                self.seen(signed.order.project, signed.order.number).await;
                Ok(())
            }
            Err(ControlError::Refused(text)) => Err(OrderProblem::Refused(text)),
            Err(error) => Err(OrderProblem::Unavailable(error.to_string())),
        }
    }

    /// `next` is the height of the next batch.
    fn view((id, project): (ProjectId, &Project), next: Height) -> ProjectView {
        let holds = project.rules.iter().rev().find(|rules| rules.from <= next).map(|rules| rules.from);
        let rules = project.rules.iter().map(|rules| RulesView {
            from_height: rules.from,
            hash: rules.hash.map(Digest),
            holds: Some(rules.from) == holds,
        });
        ProjectView {
            id,
            owner: project.owner,
            orders: project.orders,
            settings: project.settings.clone(),
            rules: rules.collect(),
            figures: None,
        }
    }

    /// A project as it is kept in memory: without figures.
    pub(crate) fn known(&self, project: ProjectId) -> Option<ProjectView> {
        let projects = self.tracker.projects().borrow().clone();
        Some(Self::view((project, projects.get(project)?), self.next_height()))
    }

    fn next_height(&self) -> Height {
        self.tracker.head().borrow().as_ref().map_or(Height(0), |head| head.height).next()
    }

    fn list(&self, project: ProjectId, from: Address, limit: usize) -> Result<DevicesView, ReadError> {
        let failed = |e: lockstep_consensus::ReadError| ReadError::Failed(e.to_string());
        let projects = self.tracker.projects().borrow().clone();
        let (policy, chain) = (
            projects.settings(project).map(lockstep_types::ProjectSettings::policy),
            projects.params().chain.is_some(),
        );
        let mut grants = self.state.grants(project, &from, limit + 1).map_err(failed)?;
        let next = grants.get(limit).map(|(device, _)| *device);
        grants.truncate(limit);
        let of: Vec<_> = grants.iter().map(|(device, _)| (project, *device)).collect();
        let standings = self.state.standings(&of).map_err(failed)?;
        let devices = grants.into_iter().zip(standings).map(|((device, grant), standing)| {
            let known = self.state.device(&device).map_err(failed)?.unwrap_or_default();
            Ok(DeviceView {
                device,
                registered: standing.registered,
                listed: grant.listed,
                approved: grant.approved,
                permitted: policy.is_some_and(|policy| standing.allows(policy, chain)),
                has_document: known.document != Document::Absent,
            })
        });
        Ok(DevicesView { devices: devices.collect::<Result<_, ReadError>>()?, next })
    }
}

fn refused(reason: OrderError) -> OrderProblem {
    OrderProblem::Refused(reason.to_string())
}

/// Whether each document in an order is its device's own, and whether rules can be used.
fn check_content(signed: &SignedOrder) -> Result<(), OrderProblem> {
    if let OrderKind::Rules(RulesOrder { bundle: Some(bundle), .. }) = &signed.order.kind {
        return compile_rules(bundle).map(drop).map_err(|error| refused(OrderError::ProjectRules(error)));
    }
    let OrderKind::AddDevices(entries) = &signed.order.kind else { return Ok(()) };
    for entry in entries {
        let Some(text) = &entry.document else { continue };
        let document = lockstep_identity::Document::parse(text.as_bytes());
        let document = document.map_err(|e| OrderProblem::Malformed(format!("document of {}: {e}", entry.device)))?;
        if document.did.address() != entry.device {
            return Err(OrderProblem::Malformed(format!("the document of {} is of {}", entry.device, document.did)));
        }
    }
    Ok(())
}

#[async_trait]
impl Registry for Orders {
    async fn order(&self, order: Bytes) -> Result<(), OrderProblem> {
        let malformed = |e: &dyn std::fmt::Display| OrderProblem::Malformed(e.to_string());
        let signed = SignedOrder::decode(order).map_err(|e| malformed(&e))?;
        match self.check(&signed) {
            // A node that lags takes the next order for one to come; the leader knows.
            Ok(()) | Err(OrderError::Stale { .. }) => {}
            Err(reason) => return Err(refused(reason)),
        }
        // Documents and rules are read after the signature was checked, and where reading them holds up nobody.
        let signed = self.state.blocking().run(move || check_content(&signed).map(|()| signed));
        let signed = signed.await.map_err(|e| OrderProblem::Unavailable(e.to_string()))??;
        self.carry_out(signed).await
    }

    fn projects(&self) -> ProjectsView {
        let projects = self.tracker.projects().borrow().clone();
        let next = self.next_height();
        let projects = projects.all().map(|project| Self::view(project, next)).collect();
        ProjectsView { network_id: self.network_id, epoch: self.epoch, projects }
    }

    async fn project(&self, project: ProjectId) -> Option<ProjectView> {
        let view = self.known(project)?;
        let state = proofs::look(&self.state, move |state| state.rules_state(project)).await;
        let figures = state.ok().flatten().map(|state| RulesFigures {
            taken: state.taken,
            flagged: state.flagged,
            late: state.late,
            tasks: state.tasks,
            refused: state.refused,
        });
        Some(ProjectView { figures, ..view })
    }

    async fn devices(&self, project: ProjectId, from: Address, limit: usize) -> Result<DevicesView, ReadError> {
        let orders = self.clone();
        let listed = proofs::short(self.state.blocking(), move || orders.list(project, from, limit));
        listed.await.map_err(|e| ReadError::Failed(e.to_string()))?
    }
}
