//! Why a node does not start, or stopped: each one sentence for the operator.

use lockstep_api::ApiError;
use lockstep_consensus::ConsensusError;
use lockstep_ledger::RulesNeeded;
use lockstep_network::NetworkError;
use lockstep_store::StoreError;
use lockstep_types::GenesisError;

use crate::backup::PlaceError;

/// See the module's documentation.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration, a key file or the home directory is not what it must be. Nothing was started.
    #[error("{0}")]
    Config(String),
    /// The genesis is wrong.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// Its log may say what this program does not know how to do.
    #[error(transparent)]
    Rules(#[from] RulesNeeded),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The peer-to-peer network cannot start.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The HTTP interface cannot start.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The state cannot be read.
    #[error(transparent)]
    State(#[from] lockstep_consensus::ReadError),
    /// A backup cannot be read or written.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// An epoch cannot begin.
    #[error(transparent)]
    Epoch(#[from] lockstep_consensus::epoch::EpochError),
    /// Consensus cannot start.
    #[error(transparent)]
    Consensus(#[from] ConsensusError),
    /// A part without which the node cannot go on has ended.
    #[error("{part} has stopped: {reason}")]
    Stopped {
        /// Which part.
        part: String,
        /// Why.
        reason: String,
    },
}

impl NodeError {
    /// Whether an operator must change something before another start can succeed.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Config(_)
                | Self::Api(ApiError::Options(_) | ApiError::Tls(_))
                | Self::Genesis(_)
                | Self::Rules(_)
                | Self::Place(PlaceError::Missing(_) | PlaceError::Damaged { .. } | PlaceError::LeftOut(_))
                | Self::Store(StoreError::Open(_))
                | Self::Consensus(ConsensusError::Store(StoreError::Open(_)))
                | Self::Network(NetworkError::Options(_))
        )
    }
}
