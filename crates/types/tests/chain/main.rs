//! Whole histories: made valid, altered in every way, and checked.
#![allow(clippy::unwrap_used)]

mod altered;
mod blobs;
mod builder;
mod certificates;
mod epochs;
mod evm;
mod horizon;
mod proofs;
mod ruled;
mod vectors;
