//! Agreement on one log, by openraft: log storage, transport, the state machine that runs the ledger, and the
//! handle that the rest of the node uses.
//!
//! A member that needs entries that the log no longer has gets a copy of the state: the leader offers it (`offer`), the
//! member fetches it in pieces (`receive`, `fetch`) that the leader serves (`shelf`). `compaction` keeps the log short.
//!
//! The crate reaches its peers through the port [`Transport`] and its disk through [`lockstep_store::Storage`], and
//! tells what became of messages through [`Observer`], so that a simulation can stand in for all three.

pub mod audit;
mod blocking;
mod compaction;
mod convert;
pub mod copy;
pub mod epoch;
mod fetch;
#[doc(hidden)]
pub mod fuzz;
mod handle;
pub mod left_out;
pub mod limits;
mod log_size;
mod log_store;
mod membership;
mod offer;
mod plausible;
mod pledges;
mod pulse;
mod raft_types;
pub mod rebuild;
mod receive;
pub mod runtime;
mod shelf;
mod snapshot;
mod state_machine;
mod state_store;
mod transport;
mod writes;

pub use blocking::{Blocking, NotDone};
pub use compaction::CompactionOptions;
pub use handle::{Consensus, ConsensusError, LogFigures, Options, Positions, ProposeError, RaftStatus, Role};
pub use log_store::LogStore;
pub use membership::SteerError;
pub use pledges::{PledgeError, Pledges, Signed};
pub use raft_types::{Payload, TypeConfig};
pub use shelf::SnapshotDirectory;
pub use snapshot::{SnapshotProgress, SnapshotStage};
pub use state_machine::{Observer, StateMachine};
pub use state_store::{ReadError, StateStore};
pub use transport::{Connection, Transport, TransportError};
