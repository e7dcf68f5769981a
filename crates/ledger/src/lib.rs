//! The pure state machine of a Lockstep network: what waits ([`Pool`]), what the log says ([`Command`]) and what
//! follows from it ([`Ledger::apply`]).
//!
//! Nothing here knows of tokio, clocks, randomness or files: time is an argument, earlier state is read through the
//! small port [`History`], and results come back as data ([`Applied`]) for the caller to store and announce.

mod apply;
mod command;
mod devices;
mod effects;
mod groups;
mod members;
mod outputs;
mod pool;
mod projects;
mod rules;
mod turns;

pub use apply::{
    Applied, ApplyError, ChainRefusal, Divergence, History, Ledger, LedgerParts, ORDER_LIFE_MS_MAX, OrderError,
    Outcome, RULES_FIRST, RULES_NEWEST, Rejection, rules_input,
};
pub use command::{COMMAND_VERSION, Command, ProposedBatch, decode_ages, encode_ages, encode_batch};
pub use devices::{ChainCursor, Device, Document, Grant, HighestNonce, Nonce, Standing};
pub use effects::{Gap, Head, Horizon, Occurrence, Write};
pub use groups::{GroupKey, GroupRecord, OpenGroup, Waiting};
pub use members::{
    ApprovalError, KnownMember, MEMBERS_MAX, Members, OpenProposal, PROPOSAL_LIFE_MS_MAX, PROPOSALS_MAX, Pending,
    Target,
};
pub use outputs::{OutputRefusal, OutputState, OutputStates, PAUSED_OUTPUTS_MAX, REMOVED_OUTPUTS_MAX};
pub use pool::{Aged, Inserted, Pool, PoolLimits};
pub use projects::{Project, Projects};
pub use rules::{LastTaken, ProjectFuel, Reached, RulesFrom, RulesNeeded, RulesState, check_rules, compile_rules};
pub use turns::Turns;
