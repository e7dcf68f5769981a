//! The server over fake ports: requests over real sockets, and what strangers can do to them.
// Clippy's leave for tests does not reach the functions that they share.
#![allow(clippy::unwrap_used)]

mod bulk;
mod common;
mod devices;
mod feed;
mod grpc;
mod limits;
mod messages;
mod openapi;
mod rates;
mod reads;
mod stream;
mod tls;
