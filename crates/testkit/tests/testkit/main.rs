//! The simulation and its checker.
// Clippy's leave for tests does not reach the functions that they share.
#![allow(clippy::unwrap_used)]

mod order;
mod simulation;
