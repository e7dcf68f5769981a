//! The pure state machine of a Lockstep network: what waits ([`Pool`]), what the log says ([`Command`]) and what
//! follows from it ([`Ledger::apply`]).
//!
//! Nothing here knows of tokio, clocks, randomness or files: time is an argument, earlier state is read through the
//! one-method port [`Occurrences`], and results come back as data ([`Applied`]) for the caller to store and announce.

mod apply;
mod command;
mod effects;
mod groups;
mod pool;

pub use apply::{Applied, ApplyError, Ledger, LedgerParts, Occurrences, Outcome, RULES_VERSION, Rejection};
pub use command::{COMMAND_VERSION, Command, GroupClosing, ProposedBatch, encode_batch};
pub use effects::{Head, Occurrence, Write};
pub use groups::{GroupChange, GroupKey, OpenGroup};
pub use pool::{Inserted, Pool, PoolLimits};
