//! For devices and readers: submitting to whichever node answers, reading from it, and making load.
//!
//! [`Client`] goes from node to node until one orders a message; a retry is always safe, because the same content
//! within its project's retry window keeps its first position. [`fleet`] is made of devices that behave like that,
//! at a given rate; [`bench`] measures what nodes can take, as fast as they answer.

pub mod bench;
mod client;
mod error;
pub mod fleet;
mod histogram;
mod node;
mod outcome;
mod raw;
mod rounds;
mod sending;
mod url;

pub use bench::{BenchOptions, BenchReport};
pub use client::{Client, ClientOptions, Submitted};
pub use error::ClientError;
pub use outcome::Outcome;
pub use fleet::{Acknowledgement, Fleet, FleetStats};
