//! A Lockstep node: the place where all parts are wired.
//!
//! One message passes [`Ingress`](ingress::Ingress) (authenticated on the [`verify`] pool), waits in the
//! [`mempool`], goes to the leader with the [`forward`]er, is proposed by the [`proposer`], and is answered when the
//! [`tracker`] sees it applied. Voters [`certify`] batches, the leader [`steer`]s certificates and changes of
//! membership, and follows the [`chain`] of the network's devices, whose [`documents`] are fetched when they are needed. Operators have their say by the [`operator`] module. The [`reader`] serves what is stored, the [`publish`] module feeds the outputs, and [`announce`] tells W3bstream of their tasks.
//! [`Node`] starts them, in order, and stops them in the reverse of it.

pub mod add_output;
pub mod admin;
mod adopt;
#[cfg(feature = "gossip")]
mod announce;
#[cfg(not(feature = "gossip"))]
#[path = "no_announce.rs"]
mod announce;
pub mod audit;
pub mod backup;
mod barrier;
mod batch_time;
pub mod blob_outputs;
mod bulk;
mod bundle;
mod certify;
#[cfg(feature = "chain")]
mod chain;
#[cfg(not(feature = "chain"))]
#[path = "no_chain.rs"]
mod chain;
pub mod check;
pub mod clock;
mod clock_guard;
pub mod config;
mod conflicts;
mod control;
#[cfg(feature = "chain")]
mod coordinator;
pub mod devices;
pub mod documents;
pub mod door_shares;
mod doors;
mod endings;
mod error;
mod evidence;
mod features;
mod feed;
mod forward;
#[doc(hidden)]
pub mod fuzz;
mod gaps;
pub mod gateways;
#[cfg(feature = "postgres")]
pub mod grants;
mod held_back;
pub mod home;
mod inbound;
pub mod ingress;
mod jobs;
mod join;
mod limits;
mod lookout;
mod mempool;
mod metrics;
mod node;
mod open_store;
mod operator;
mod origin;
pub mod output_desk;
mod output_views;
mod peers;
mod priority;
mod progress;
mod proofs;
mod proposer;
mod publish;
mod rates;
mod reach;
mod reader;
pub mod rebuild;
pub mod recover;
pub mod refill;
mod registry;
mod retention;
mod sealed;
pub mod secrets;
mod steer;
mod store_calls;
mod supervisor;
mod tracker;
mod transport;
mod turns;
mod verify;

pub use config::Config;
pub use error::NodeError;
pub use home::Home;
pub use join::{JoinAnswer, JoinError, ask_to_join, wait_for_admission};
pub use lockstep_ledger::RULES_NEWEST;
pub use lockstep_network::{Gateway, GatewayError, GatewayRefusal, peer_id_of};
pub use lookout::AskMembers;
pub use node::{Node, bare};
