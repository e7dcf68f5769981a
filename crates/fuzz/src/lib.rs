//! Fuzz targets: every reader of bytes that a peer, a client, a store or a disk can reach, as plain functions. A test of
//! this crate runs each for a bounded time with mutations of true encodings; `make fuzz` runs the same functions with
//! libFuzzer, which sees what they cover (docs/hostile.md).

pub mod allocation;
pub mod mutate;
pub mod random;
pub mod target;
mod targets;
pub mod world;

pub use allocation::Counting;
pub use random::Random;
pub use target::Target;
pub use targets::{find, targets};
