//! The reader of a chain, and of what it finds there, against real and misbehaving endpoints.
// Clippy's leave for tests does not reach the functions that they share.
#![allow(clippy::unwrap_used)]

mod chain;
mod documents;
mod endpoint;
mod support;
