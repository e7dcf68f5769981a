//! Rules of projects: what a project's owner says about its messages, without touching a node's code. A [`Document`] with
//! its files is a [`Bundle`]; [`Rules::compile`] makes [`Rules`] of it, and [`Rules::judge`] says what becomes of one message.
//!
//! Pure, and the same on every machine: no clock, no chance, no order of a hash map, no number that is not finite, and
//! mathematics in software. What a message costs has an end, whoever wrote the rules: every stage takes fuel.
//!
//! The feature `engine` brings the libraries that read and run rules. Without it all types are there, and nobody can make
//! [`Rules`] ([`RulesError::LeftOut`]).

mod bundle;
mod canonical;
mod document;
#[cfg(feature = "engine")]
mod engine;
#[cfg(not(feature = "engine"))]
#[path = "no_engine.rs"]
mod engine;
mod error;
mod group;
mod judge;
pub mod limits;
mod reduce;
mod rehearsal;

pub use bundle::{BUNDLE_VERSION, Bundle, hash_of};
pub use document::{
    Action, Aggregate, Code, DOCUMENT_VERSION, Decode, Document, Expect, Filter, Format, GroupBy, Reduce, Reduction,
    Route, Sort, SortBy, Validate,
};
pub use engine::Rules;
pub use error::RulesError;
pub use group::{Defaults, Group, Joining, LATE, Packed, Seen, Together};
pub use judge::{Accepted, Input, Judgement, Last, Note, Refusal, Stage};
pub use reduce::{Reduced, payload};
pub use rehearsal::{Cause, Made, Outcome, Rehearsal};

/// Whether this program can use rules.
pub const HAS_ENGINE: bool = cfg!(feature = "engine");
