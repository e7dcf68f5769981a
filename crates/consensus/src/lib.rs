//! Agreement on one log, by openraft: log storage, transport, the state machine that runs the ledger, and the
//! handle that the rest of the node uses.
//!
//! The crate reaches its peers through the port [`Transport`] and its disk through [`lockstep_store::Storage`], and
//! tells what became of messages through [`Observer`], so that a simulation can stand in for all three.

mod convert;
mod handle;
mod log_store;
mod membership;
mod pledges;
mod raft_types;
mod state_machine;
mod state_store;
mod transport;

pub use handle::{Consensus, ConsensusError, Options, Positions, ProposeError, RaftStatus, Role};
pub use log_store::LogStore;
pub use membership::SteerError;
pub use pledges::{PledgeError, Pledges, Signed};
pub use raft_types::{Payload, TypeConfig};
pub use state_machine::{Observer, StateMachine};
pub use state_store::{ReadError, SnapshotDirectory, StateStore};
pub use transport::{Connection, Transport, TransportError};
