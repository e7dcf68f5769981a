//! A Lockstep node: the place where all parts are wired.
//!
//! One message passes [`Ingress`](ingress::Ingress) (authenticated on the [`verify`] pool), waits in the
//! [`mempool`], goes to the leader with the [`forward`]er, is proposed by the [`proposer`], and is answered when the
//! [`tracker`] sees it applied. The [`reader`] serves what is stored, the [`publish`] module feeds the outputs.
//! [`Node`] starts them, in order, and stops them in the reverse of it.

mod bundle;
pub mod config;
mod error;
mod forward;
pub mod home;
mod inbound;
pub mod ingress;
mod limits;
mod mempool;
mod metrics;
mod node;
mod proofs;
mod proposer;
mod publish;
mod reader;
mod supervisor;
mod tracker;
mod transport;
mod verify;

pub use config::Config;
pub use error::NodeError;
pub use home::Home;
pub use lockstep_network::peer_id_of;
pub use node::Node;
