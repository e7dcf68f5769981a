//! Nodes, members, gateways and strangers on loopback sockets.
// Clippy's leave for tests does not reach the functions that they share.
#![allow(clippy::unwrap_used)]

mod gateways;
mod gossip;
mod members;
mod moved;
mod strangers;
mod streams;
mod support;
