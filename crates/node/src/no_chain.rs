//! In the place of the chain, in a program without the feature `chain`: a network that follows one was refused before, and
//! so was a configuration that asks for it.

use std::sync::Arc;

use lockstep_api::ProverStates;
use lockstep_api::views::ChainView;
use lockstep_consensus::StateStore;
use lockstep_types::{Hash32, ProjectId, TaskId, TimeMs, proto};

use crate::error::NodeError;
use crate::home::{Home, Opened};
use crate::node::Parts;
use crate::supervisor::Supervisor;
use crate::tracker::Tracker;

/// What a node has of a chain: nothing.
pub(crate) struct ChainServices {
    pub chain: Chain,
    pub task_states: TaskStates,
    pub gateway: Option<Gateway>,
    pub prover: Option<Arc<dyn ProverStates>>,
}

impl ChainServices {
    pub fn open(_home: &Home, _opened: &Opened, _state: &StateStore, _tracker: &Tracker) -> Result<Self, NodeError> {
        Ok(Self { chain: Chain, task_states: TaskStates, gateway: None, prover: None })
    }
}

/// Follows nothing.
pub(crate) fn start(_supervisor: &mut Supervisor, _parts: &Parts) {}

/// This node's knowledge of the chain: none.
#[derive(Clone)]
pub(crate) struct Chain;

impl Chain {
    /// Abstains, as a node without an endpoint does.
    pub async fn answer(&self, _wanted: &proto::AttestRequest) -> Result<proto::AttestResponse, String> {
        let kind = proto::attest_response::Kind::Abstains(proto::Done {});
        Ok(proto::AttestResponse { kind: Some(kind) })
    }

    pub fn complaint(&self, _leads: bool) -> Option<String> {
        None
    }

    pub fn view(&self, _leads: bool) -> Option<ChainView> {
        None
    }
}

/// What this node knows of tasks on the chain: nothing.
#[derive(Clone)]
pub(crate) struct TaskStates;

impl TaskStates {
    pub fn of(&self, _project: ProjectId, _task: &TaskId) -> Vec<(&'static str, TimeMs)> {
        Vec::new()
    }
}

/// Where documents would come from.
pub(crate) enum Gateway {}

/// Why a document does not come from there.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {}

impl Gateway {
    pub async fn fetch(&self, _uri: &str, _hash: &Hash32) -> Result<Vec<u8>, FetchError> {
        match *self {}
    }
}
