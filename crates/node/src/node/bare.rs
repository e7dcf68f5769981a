//! A node without doors, threads, and a network and stores of its own: what is decisive of one, wired as in every node,
//! for a simulation to run many of them in one process.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use lockstep_api::views::ProjectView;
use lockstep_api::{Feed, OrderProblem, Registry as _};
use lockstep_consensus::{Consensus, StateStore};
use lockstep_ledger::{Head, Members};
use lockstep_network::{GossipInbox, Handle, JoinService as _};
use lockstep_outputs::publisher;
use lockstep_store::Medium;
use lockstep_types::{Approval, Member, OutputName, ProjectId, PublicKey, SignedOrder, TaskNumber, TimeMs};
use metrics_exporter_prometheus::PrometheusBuilder;
use prost::Message as _;
use tokio::sync::watch;

use super::{Means, Parts, first_peers};
use crate::clock::Clock;
use crate::error::NodeError;
use crate::home::{Home, Opened};
use crate::ingress::Ingress;
use crate::join::{JoinAnswer, JoinError, join_request, read_join_answer};
use crate::lookout::AskMembers;
use crate::operator::Operator;
use crate::reader::Reader;
use crate::registry::Orders;
use crate::supervisor::Supervisor;

pub use super::OpenOutput;

/// What a [`Bare`] node is made of.
pub struct BareOptions {
    /// A directory for its small files.
    pub home: Home,
    /// Who it is.
    pub opened: Opened,
    /// Its log and state.
    pub medium: Arc<dyn Medium>,
    /// What stands in for the network.
    pub network: Handle,
    /// Gossip that comes in.
    pub inbox: GossipInbox,
    /// Its clock.
    pub clock: Clock,
    /// Its outputs.
    pub open_output: OpenOutput,
    /// How it asks others who the members are.
    pub ask_members: AskMembers,
}

/// See the module's documentation. Dropping it ends it at once, as a crash does.
pub struct Bare {
    parts: Parts,
    doors: BareDoors,
    supervisor: Supervisor,
}

impl Bare {
    /// Starts it. When this returns it takes part in consensus.
    ///
    /// # Errors
    /// As [`Node::start`](crate::Node::start).
    pub fn start(options: BareOptions) -> BoxFuture<'static, Result<Self, NodeError>> {
        // Boxed, so that this crate compiles it, and not each program that awaits it.
        Box::pin(Self::start_on(options))
    }

    async fn start_on(options: BareOptions) -> Result<Self, NodeError> {
        let BareOptions { home, opened, medium, network, inbox, clock, open_output, ask_members } = options;
        let inline = medium.works_inline();
        let state = StateStore::open_on(&opened.store, medium)?;
        let stored = state.members(&opened.genesis.id()?)?;
        let first_peers = first_peers(&opened, stored.as_ref())?;
        for peer in first_peers.iter().filter(|peer| peer.node != opened.node) {
            network.set_member(peer.clone()).await.map_err(|e| NodeError::Config(e.to_string()))?;
        }
        let members = stored.map_or_else(|| Members::genesis(&opened.genesis), Ok)?;
        let means = Means { clock, inline, open_output, ask_members, ..Means::default() };
        let parts = Parts::start((&home, opened), (network, Arc::default()), state, members, means).await?;
        let mut supervisor = Supervisor::new(parts.means.endings.clone());
        let outputs = parts.start_publishers(&mut supervisor)?;
        parts.start_tasks(&mut supervisor, inbox, &outputs, first_peers)?;
        // Nobody scrapes it: a recorder of its own that counts nothing.
        let prometheus = PrometheusBuilder::new().build_recorder().handle();
        let doors = BareDoors {
            operator: parts.operator.clone(),
            orders: parts.orders()?,
            members: parts.tracker.members(),
            reader: Arc::new(parts.reader(outputs, None, prometheus)),
        };
        Ok(Self { parts, doors, supervisor })
    }

    /// Where messages enter.
    pub fn ingress(&self) -> Arc<Ingress> {
        self.parts.ingress.clone()
    }

    /// Its part in consensus.
    pub fn consensus(&self) -> Consensus {
        self.parts.consensus.clone()
    }

    /// What it has applied.
    pub fn state(&self) -> StateStore {
        self.parts.state.clone()
    }

    /// Where its ledger stands.
    pub fn head(&self) -> watch::Receiver<Option<Head>> {
        self.parts.tracker.head()
    }

    /// How far outputs are known to be.
    pub fn progress(&self) -> watch::Receiver<std::collections::BTreeMap<OutputName, TaskNumber>> {
        self.parts.tracker.progress_changes()
    }

    /// Who signed two batches at one height, while that stops it.
    pub fn conflict(&self) -> Option<String> {
        self.parts.ingress.conflict()
    }

    /// What its publishers are doing.
    pub fn publishers(&self) -> Vec<(OutputName, publisher::Status)> {
        self.doors.reader.outputs.iter().map(|output| (output.name.clone(), output.handle.status())).collect()
    }

    /// What others reach of it.
    pub fn doors(&self) -> BareDoors {
        self.doors.clone()
    }

    /// Waits until one of its parts ends, which none should.
    pub async fn ended(&mut self) -> NodeError {
        self.supervisor.ended().await
    }
}

/// What operators, newcomers, owners of projects and readers reach of a node: what lies right below its doors. Clones are
/// of the same node.
#[derive(Clone)]
pub struct BareDoors {
    operator: Operator,
    orders: Orders,
    members: watch::Receiver<Arc<Members>>,
    reader: Arc<Reader>,
}

impl BareDoors {
    /// The members, as this node knows them.
    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.clone()
    }

    /// Batch time, as it would propose it.
    pub fn now(&self) -> TimeMs {
        self.operator.now()
    }

    /// Brings the approval of this node's operator into the log, by way of the leader.
    ///
    /// # Errors
    /// Why it was not taken.
    pub async fn approve(&self, approval: Approval) -> Result<(), String> {
        self.operator.approve(approval).await
    }

    /// A newcomer with the key `from` asks to be admitted, or how its request stands.
    ///
    /// # Errors
    /// If the network turns it away.
    pub async fn ask_to_join(&self, from: PublicKey, member: &Member) -> Result<JoinAnswer, JoinError> {
        read_join_answer(self.operator.handle(from, join_request(member)).await)
    }

    /// Newcomers that asked this node lately and are no members yet.
    pub fn newcomers(&self) -> Vec<Member> {
        self.operator.asks().into_iter().map(|ask| ask.member).collect()
    }

    /// Carries out an order of a project's owner, by way of the leader.
    ///
    /// # Errors
    /// Why it was not carried out, or not for sure.
    pub async fn order(&self, order: &SignedOrder) -> Result<(), OrderProblem> {
        self.orders.order(Bytes::from(order.to_proto().encode_to_vec())).await
    }

    /// A registered project, as this node knows it.
    pub fn project(&self, project: ProjectId) -> Option<ProjectView> {
        self.orders.known(project)
    }

    /// What readers follow.
    pub fn feed(&self) -> Arc<dyn Feed> {
        self.reader.clone()
    }
}
