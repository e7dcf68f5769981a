//! The program as operators and devices meet it: real processes, real sockets, real files.
// Clippy's leave for tests does not reach the functions that they share.
#![allow(clippy::unwrap_used)]

mod by_hand;
mod failover;
mod full_disk;
mod grpc;
mod hostile;
mod idle;
mod semantics;
mod snapshots;
mod start_errors;
mod testnet;
mod vectors;

use std::path::Path;
use std::time::Duration;

/// Longest wait for something that takes well below a second on a machine with nothing else to do.
const SOON: Duration = Duration::from_secs(20);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_lockstep"))
}
