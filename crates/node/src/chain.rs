//! Follows the contracts on a chain that say which devices there are. The leader reads the next confirmed blocks at
//! its endpoint, voters with endpoints of their own read the same blocks again and sign, and what comes of it goes to
//! the log: from there on it is the same on every node, with an endpoint or without.
//!
//! `trouble` and the first half of `read` decide; `follow` and `attest` ask and act.

mod attest;
mod follow;
mod gateway;
pub(crate) mod limits;
mod read;
mod task_states;
mod task_store;
mod trouble;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_api::ProverStates;
use lockstep_api::views::ChainView;
use lockstep_chain::{ChainReader, ChainSource, Endpoint, RANGE_BLOCKS_MAX, Rpc, SPAN_MAX_DEFAULT};
use lockstep_consensus::StateStore;
use lockstep_types::{Epoch, NetworkId, SigningKey};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use self::follow::Follower;
pub use self::gateway::FetchError;
pub(crate) use self::gateway::Gateway;
use self::task_states::TaskFollower;
pub(crate) use self::task_states::TaskStates;
use self::trouble::Troubles;
use crate::config::{CHAIN_SPAN_MAX, CHAIN_SPAN_MAX_DEFAULT, ChainConfig};
use crate::coordinator::Coordinator;
use crate::error::NodeError;
use crate::home::{Home, Opened};
use crate::node::Parts;
use crate::supervisor::Supervisor;
use crate::tracker::Tracker;

// A program without the chain reads the same configuration.
const _: () = assert!(CHAIN_SPAN_MAX == RANGE_BLOCKS_MAX && CHAIN_SPAN_MAX_DEFAULT == SPAN_MAX_DEFAULT);

/// Where in the home it is kept what became of tasks.
const TASK_STATES_FILE: &str = "task-states.sqlite";

/// What a node has of the chain, and of those who follow it beside the network.
pub(crate) struct ChainServices {
    pub chain: Chain,
    pub task_states: TaskStates,
    /// Where documents come from.
    pub gateway: Option<Gateway>,
    /// Who is asked what became of tasks.
    pub prover: Option<Arc<dyn ProverStates>>,
}

impl ChainServices {
    /// Reads what the configuration says. Nobody is asked yet.
    ///
    /// # Errors
    /// A sentence that names the setting or the file.
    pub fn open(home: &Home, opened: &Opened, state: &StateStore, tracker: &Tracker) -> Result<Self, NodeError> {
        let source = opened.genesis.params.chain.clone();
        let access = ChainAccess::open(home, opened.config.chain.as_ref(), source.as_ref())?;
        let prover = Coordinator::open(home, opened.config.coordinator.as_ref())?;
        let task_states = TaskStates::open(&home.file(TASK_STATES_FILE), access.reader.as_ref())?;
        let chain = Chain::new(ChainParts {
            reader: access.reader,
            source,
            poll: access.poll,
            network: opened.genesis.id()?,
            epoch: opened.epoch(),
            key: opened.node_key.clone(),
            state: state.clone(),
            next_block: tracker.next_block.subscribe(),
        });
        let prover = prover.map(|coordinator| Arc::new(coordinator) as Arc<dyn ProverStates>);
        Ok(Self { chain, task_states, gateway: access.gateway.map(Gateway::new).transpose()?, prover })
    }
}

/// Starts following the chain. A node without an endpoint only waits.
pub(crate) fn start(supervisor: &mut Supervisor, parts: &Parts) {
    let follower = Follower {
        node: parts.opened.node,
        chain: parts.chain.clone(),
        consensus: parts.consensus.clone(),
        network: parts.network.clone(),
        tracker: parts.tracker.clone(),
    };
    supervisor.spawn_restarted_from("the chain", follower, Follower::run);
    let tasks = TaskFollower { chain: parts.chain.clone(), states: parts.task_states.clone() };
    supervisor.spawn_restarted_from("the states of tasks", tasks, TaskFollower::run);
}

/// What the configuration says about the chain, read and checked.
#[derive(Debug, Default)]
struct ChainAccess {
    reader: Option<ChainReader>,
    gateway: Option<Endpoint>,
    poll: Duration,
}

impl ChainAccess {
    /// Reads the files that the configuration names. Nobody is asked yet.
    ///
    /// # Errors
    /// A sentence that names the setting, and never what is in the file.
    fn open(
        home: &Home,
        config: Option<&ChainConfig>,
        source: Option<&lockstep_types::ChainSource>,
    ) -> Result<Self, NodeError> {
        let Some(config) = config else { return Ok(Self::default()) };
        let bad = |what: &str, e: &dyn std::fmt::Display| NodeError::Config(format!("config.toml: chain.{what}: {e}"));
        let rpc = endpoint_in(&home.path().join(&config.rpc_file), "rpc_file")?;
        let gateway = match (&config.gateway, &config.gateway_file) {
            (Some(text), _) => Some(text.parse().map_err(|e| bad("gateway", &e))?),
            (None, Some(file)) => Some(endpoint_in(&home.path().join(file), "gateway_file")?),
            (None, None) => None,
        };
        let Some(source) = source else {
            return Err(bad("rpc_file", &"this network reads no chain: remove the section [chain]"));
        };
        let source = ChainSource {
            chain_id: source.chain_id,
            registry: source.registry,
            project_device: source.project_device,
            task_manager: source.task_manager,
            start_block: source.start_block,
            confirmations: source.confirmations,
            span_max: config.span_max,
        };
        let rpc = Rpc::new(rpc).map_err(|e| bad("rpc_file", &e))?;
        let reader = ChainReader::new(rpc, source).map_err(|e| bad("span_max", &e))?;
        Ok(Self { reader: Some(reader), gateway, poll: Duration::from_millis(config.poll_ms) })
    }
}

fn endpoint_in(file: &Path, setting: &str) -> Result<Endpoint, NodeError> {
    let bad =
        |e: &dyn std::fmt::Display| NodeError::Config(format!("config.toml: chain.{setting}: {}: {e}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| bad(&e))?;
    text.parse().map_err(|e| bad(&e))
}

/// What was seen lately.
#[derive(Debug, Default)]
struct Seen {
    /// The last confirmed block, as this node's endpoint says.
    confirmed: Option<u64>,
    troubles: Troubles,
    /// What this node read otherwise than the leader, and up to which block.
    differs: Option<(u64, String)>,
}

struct Inner {
    /// None where this node has no endpoint.
    reader: Option<ChainReader>,
    /// Time between two looks of the leader.
    poll: Duration,
    attestations: u64,
    confirmations: u64,
    network: NetworkId,
    epoch: Epoch,
    key: SigningKey,
    state: StateStore,
    next_block: watch::Receiver<Option<u64>>,
    /// One range is read for others at a time.
    attesting: Semaphore,
    seen: Mutex<Seen>,
}

/// What a [`Chain`] works with.
struct ChainParts {
    reader: Option<ChainReader>,
    /// What the network reads, if it does.
    source: Option<lockstep_types::ChainSource>,
    poll: Duration,
    network: NetworkId,
    epoch: Epoch,
    key: SigningKey,
    state: StateStore,
    next_block: watch::Receiver<Option<u64>>,
}

/// This node's knowledge of the chain. Clones share it.
#[derive(Clone)]
pub(crate) struct Chain(Arc<Inner>);

impl Chain {
    fn new(parts: ChainParts) -> Self {
        let ChainParts { reader, source, poll, network, epoch, key, state, next_block } = parts;
        let (attestations, confirmations) = source.map_or((0, 0), |source| (source.attestations, source.confirmations));
        let (attesting, seen) = (Semaphore::new(1), Mutex::default());
        Self(Arc::new(Inner {
            reader,
            poll,
            attestations,
            confirmations,
            network,
            epoch,
            key,
            state,
            next_block,
            attesting,
            seen,
        }))
    }

    /// What an operator has to look at. `leads` tells whether this node leads.
    pub fn complaint(&self, leads: bool) -> Option<String> {
        if self.0.reader.is_none() {
            let reads = self.0.next_block.borrow().is_some();
            return (reads && leads).then(|| {
                "the chain is not followed while this node leads: config.toml has no section [chain]".to_owned()
            });
        }
        let (seen, next) = (self.0.seen.lock(), *self.0.next_block.borrow());
        // Once the blocks are in the log it is settled who was right.
        let open = seen.differs.as_ref().filter(|(last, _)| next.is_some_and(|next| next <= *last));
        seen.troubles.complaint(Instant::now()).or_else(|| open.map(|(_, reason)| reason.clone()))
    }

    /// How far the chain was followed; `None` where the network reads none.
    pub fn view(&self, leads: bool) -> Option<ChainView> {
        let next = (*self.0.next_block.borrow())?;
        let confirmed = self.0.seen.lock().confirmed;
        Some(ChainView {
            block: next.checked_sub(1),
            behind: confirmed.map(|confirmed| (confirmed + 1).saturating_sub(next)),
            problem: self.complaint(leads),
        })
    }
}
