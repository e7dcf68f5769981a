//! The program as operators and devices meet it: real processes, real sockets, real files.
// Clippy's leave for tests does not reach the functions that they share.
#![allow(clippy::unwrap_used)]

mod announce;
mod audits;
mod backlog;
mod bad_outputs;
mod blobs;
mod by_hand;
mod chain;
mod clocks;
mod conflicts;
mod coordinator;
mod epochs;
mod every_output;
mod failover;
mod feeds;
mod floods;
mod forgetting;
mod full_disk;
mod gateways;
mod grpc;
mod hostile;
mod idle;
mod joining;
mod lifetimes;
mod outputs;
mod partitions;
mod power_loss;
mod project_rules;
mod refills;
mod removed_outputs;
mod repeats;
mod rogue;
mod rolling;
mod rounds;
mod rules_examples;
mod rules_hostile;
mod sealed;
mod semantics;
mod shares;
mod snapshots;
mod stalls;
mod start_errors;
mod steps;
mod testnet;
mod turns;
mod vectors;
mod verify;
mod ways;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// Longest wait for something that takes well below a second on a machine with nothing else to do.
const SOON: Duration = Duration::from_secs(20);

/// The program under test. `LOCKSTEP_BINARY` names another build of it.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let built = || std::env::var_os("LOCKSTEP_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_lockstep").into());
    BINARY.get_or_init(|| built().into())
}
