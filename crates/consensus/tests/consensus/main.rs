//! Raft over real files: the log, snapshots and epochs.
// Clippy's leave for tests does not reach the functions that they share.
#![allow(clippy::unwrap_used)]

mod epochs;
mod files;
mod snapshots;
mod storage_suite;
