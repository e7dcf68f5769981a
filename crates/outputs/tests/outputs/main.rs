//! Adapters against real servers and files, and the publisher on top of them.
// Clippy's leave for tests does not reach the functions that they share.
#![allow(clippy::unwrap_used)]

mod blobs;
mod conformance;
mod deposits;
mod nats;
mod object;
mod postgres;
mod publisher;
mod refusals;
mod sqlite;
mod stored;
mod support;
