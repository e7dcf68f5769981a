//! A node's files: bits that flip, and places for backups.
// Clippy's leave for tests does not reach the functions that they share.
#![allow(clippy::unwrap_used)]

mod bit_flips;
mod places;
