//! Orders of projects' owners on their way into the log, and what the registry holds.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_api::views::{DeviceView, DevicesView, ProjectView, ProjectsView};
use lockstep_api::{OrderProblem, ReadError, Registry};
use lockstep_consensus::{Consensus, ProposeError, Role, StateStore};
use lockstep_ledger::{Command, Document, History as _, Project};
use lockstep_network::{Channel, Handle};
use lockstep_types::{Address, Epoch, NetworkId, ProjectId, SignedOrder, proto};
use prost::Message as _;

use crate::clock::now_ms;
use crate::control::{ControlError, forward_order};
use crate::limits::APPROVAL_TIMEOUT;
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
    /// What can be told at once, so that strangers cannot fill the log: that the owner signed the next order. `apply`
    /// checks all of it again.
    fn check(&self, signed: &SignedOrder) -> Result<(), OrderProblem> {
        let refused = |text: String| Err(OrderProblem::Refused(text));
        let order = &signed.order;
        let projects = self.tracker.projects().borrow().clone();
        let Some(project) = projects.get(order.project) else {
            return refused(format!(
                "project {} is not registered in this network: a majority of its operators can register it",
                order.project
            ));
        };
        match project.owner {
            None => refused(format!("project {} has no owner", order.project)),
            Some(owner) if signed.signer(&self.network_id) != Some(owner) => {
                refused(format!("the order is not signed by the project's owner {owner}"))
            }
            Some(_) if order.number != project.orders + 1 || order.epoch != self.epoch => refused(format!(
                "the order has number {} of epoch {}, the next one is number {} of epoch {}: sign it again",
                order.number,
                order.epoch,
                project.orders + 1,
                self.epoch
            )),
            Some(_) => Ok(()),
        }
    }

    /// The leader's part of an order.
    pub async fn decide(&self, signed: SignedOrder) -> Result<(), OrderProblem> {
        self.check(&signed)?;
        let (project, number) = (signed.order.project, signed.order.number);
        let verdicts = self.tracker.order_verdict(project, number);
        let command = Command::encode_order(now_ms(), &signed);
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
            Ok(Err(reason)) => Err(OrderProblem::Refused(reason.to_string())),
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
        let (status, checked) = (self.consensus.status().borrow().clone(), self.check(&signed));
        if status.role == Role::Leader {
            return self.decide(signed).await;
        }
        // A node that lags may take the next order for one to come; the leader knows.
        if let Err(problem) = checked
            && status.leader.is_none()
        {
            return Err(problem);
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

    fn view((id, project): (ProjectId, &Project)) -> ProjectView {
        ProjectView { id, owner: project.owner, orders: project.orders, settings: project.settings.clone() }
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

#[async_trait]
impl Registry for Orders {
    async fn order(&self, order: Bytes) -> Result<(), OrderProblem> {
        let malformed = |e: &dyn std::fmt::Display| OrderProblem::Malformed(e.to_string());
        let signed = proto::SignedOrder::decode(order).map_err(|e| malformed(&e))?;
        let signed = SignedOrder::from_proto(signed).map_err(|e| malformed(&e))?;
        if let lockstep_types::OrderKind::AddDevices(entries) = &signed.order.kind {
            for entry in entries {
                let Some(text) = &entry.document else { continue };
                let document = lockstep_identity::Document::parse(text.as_bytes()).map_err(|e| malformed(&e))?;
                if document.did.address() != entry.device {
                    return Err(OrderProblem::Malformed(format!("the document is of {}", document.did)));
                }
            }
        }
        self.carry_out(signed).await
    }

    fn projects(&self) -> ProjectsView {
        let projects = self.tracker.projects().borrow().clone();
        let projects = projects.all().map(Self::view).collect();
        ProjectsView { network_id: self.network_id, epoch: self.epoch, projects }
    }

    fn project(&self, project: ProjectId) -> Option<ProjectView> {
        let projects = self.tracker.projects().borrow().clone();
        Some(Self::view((project, projects.get(project)?)))
    }

    async fn devices(&self, project: ProjectId, from: Address, limit: usize) -> Result<DevicesView, ReadError> {
        let orders = self.clone();
        let listed = tokio::task::spawn_blocking(move || orders.list(project, from, limit));
        listed.await.map_err(|e| ReadError::Failed(e.to_string()))?
    }
}
