//! What tests of several crates share: real servers, started and stopped by the test that needs them.
//!
//! For tests only: nothing here is part of a release, and failures are panics that say what to do.

pub mod postgres;
