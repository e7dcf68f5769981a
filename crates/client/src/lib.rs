//! For devices and readers: submitting to whichever node answers, reading from it, and making load.
//!
//! [`Client`] goes from node to node until one orders a message; a retry is always safe, because the same content
//! within its project's retry window keeps its first position. [`fleet`] is made of devices that behave like that,
//! at a given rate; [`bench`] measures what nodes can take, as fast as they answer.

pub mod bench;
mod client;
mod conversation;
mod device;
mod error;
pub mod fleet;
mod histogram;
mod look_up;
mod node;
pub mod outbox;
mod outcome;
mod prepared;
mod raw;
mod receipt;
mod rounds;
mod sending;
mod url;

pub use bench::{BenchOptions, BenchReport};
pub use client::{Client, ClientOptions, Submitted};
pub use device::{Device, DeviceBuilder, DeviceOptions, MessageState, MessageStates};
pub use error::ClientError;
pub use fleet::{Acknowledgement, Fleet, FleetStats};
pub use outbox::{Outbox, OutboxError, OutboxNumber, OutboxOptions};
pub use outcome::Outcome;
pub use prepared::{Prepared, Way};
pub use receipt::Receipt;
pub use rounds::RETRY_AFTER_MAX;
pub use sending::POOL_TIME_MAX;
