//! The doors of a node: HTTP and gRPC on one port.
//!
//! Handlers know two small ports, [`Submit`] and [`Read`], which the node implements; this crate decides nothing
//! about order. It owns what a stranger can do to a socket: sizes, times and counts are limited in [`Options`], and
//! reaching a limit has a defined answer. [`Server::bind`] takes the address, [`Bound::run`] serves until told to stop.

mod admission;
mod bulk;
mod caller;
mod connection;
mod feed;
#[doc(hidden)]
pub mod fuzz;
mod gateway;
mod grpc;
mod grpc_feed;
mod message;
mod metrics;
mod options;
mod per_address;
mod ports;
mod problem;
pub mod rate;
mod reads;
mod registry;
mod routes;
mod sealed;
mod server;
mod stream;
mod task_v1;
mod time;
mod tls;
mod viewer;
pub mod views;

pub use caller::TrustedProxy;
pub use gateway::{Bundles, GatewayRights};
pub use options::Options;
pub use ports::{
    Accepted, Feed, OrderProblem, Ports, ProverState, ProverStates, Read, ReadError, Registry, Sealed, SealedError,
    Sender, Submit, SubmitError, TasksQuery,
};
pub use sealed::{MessageStates, find_message};
pub use server::{ApiError, Bound, Open, Server};
pub use time::rfc3339;
pub use tls::TlsFiles;
pub use viewer::Viewer;
