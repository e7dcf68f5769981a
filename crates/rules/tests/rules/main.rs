//! Rules of projects: the documented examples, and what strangers write.
// Clippy's leave for tests does not reach the functions that they share.
#![allow(clippy::unwrap_used)]

mod examples;
mod rules;
