//! Reads what devices send: published vectors, and bytes that are none.
// Clippy's leave for tests does not reach the functions that they share.
#![allow(clippy::unwrap_used)]

mod fuzz;
mod ioconnect;
mod vectors;
