//! The client, devices and their outbox against small servers that behave as told.
// Clippy's leave for tests does not reach the functions that they share.
#![allow(clippy::unwrap_used)]

mod client;
mod common;
mod device;
mod outbox;
