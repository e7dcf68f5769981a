//! Checking a network's history against its genesis, without trusting whoever hands it over.
//!
//! Three parts, all pure. [`Outline::of`] does what needs one batch only (roots, content ids) and [`check_evidence`]
//! the signatures of its messages ([`crate::ExportedBatch::origins`] does that without knowing the members): both may run
//! on many threads, and they are nearly all of the work.
//! [`ChainVerifier`] takes outlines and certificates in order and checks what goes from batch to batch. Where the
//! beginning of the history was forgotten, a [`Checkpoint`] leads from the genesis to the member set in force.
//!
//! What is *not* covered, because no hash commits to it: a message's `via`, which is a hint, and which of its two
//! spellings (S or n − S) a device's signature has.

mod chain;
mod checkpoint;
mod error;
mod identity;
mod outline;
mod packing;

pub use chain::{ChainVerifier, Counts};
pub use checkpoint::Checkpoint;
pub(crate) use checkpoint::check_certificate;
pub use error::{Fault, TaskFault, VerifyError};
pub use outline::{MessageOutline, Outline, PackKey, check_evidence};
