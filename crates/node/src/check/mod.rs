//! Checking a whole history: that of a stopped node's home, or one that another node hands over.
//!
//! What is right and wrong is decided in `lockstep_types::verify`; here is the driving of it: reading, using all cores,
//! saying how far it is, and a verdict that tells the operator what to do.

mod chain;
mod home;

pub use chain::{ChainCheck, Page, way_from_genesis};
pub use home::{HomeReport, check_home};
use lockstep_types::verify::{Counts, VerifyError};
use lockstep_types::{BatchHash, EpochRecord, Height};

/// Told how far a check is.
pub trait Progress {
    /// A part begins; `total` is in the part's own units, 0 where it is not known.
    fn begin(&mut self, part: &str, total: u64);

    /// So many units more are done.
    fn advance(&mut self, units: u64);
}

/// For whoever does not want to know.
impl Progress for () {
    fn begin(&mut self, _part: &str, _total: u64) {}
    fn advance(&mut self, _units: u64) {}
}

/// Which part of what was checked is not right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The log, or what the node has bound itself to.
    Log,
    /// What follows from the log.
    State,
    /// Files beside them.
    Home,
    /// A history that another node handed over.
    Remote,
}

impl Part {
    /// What an operator does about it.
    pub fn way_out(self) -> &'static str {
        match self {
            Self::Log => {
                "This node must not vote any more: do not start it. Join again under a new id (`lockstep init --join` in a new home), and have the members remove the old one. The other nodes have what it had."
            }
            Self::State => {
                "The state follows from the log: make it again with `lockstep rebuild --home DIR`. If that says the same, compare with another node (`lockstep verify --url`)."
            }
            Self::Home => "Put the file back as it was. If it cannot be had, join again under a new id.",
            Self::Remote => {
                "Do not rely on this node. Ask another one; if all say the same, the network's history is not what its genesis and members vouch for."
            }
        }
    }
}

/// A check did not end well.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Something is damaged, or wrong.
    #[error("{reason}")]
    Bad {
        /// Which part.
        part: Part,
        /// What and where.
        reason: String,
    },
    /// It could not be checked.
    #[error("{0}")]
    Unable(String),
}

impl CheckError {
    /// Something of a part is not right.
    pub fn bad(part: Part, reason: impl ToString) -> Self {
        Self::Bad { part, reason: reason.to_string() }
    }

    /// It cannot be told whether something is right.
    pub fn unable(reason: impl ToString) -> Self {
        Self::Unable(reason.to_string())
    }

    fn of(part: Part, error: &VerifyError) -> Self {
        if error.needs_newer_program() { Self::unable(error) } else { Self::bad(part, error) }
    }
}

/// What a good history has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainReport {
    /// Height that it begins with.
    pub first: Height,
    /// Its newest batch; 0 where it has none.
    pub head: Height,
    /// That batch's hash.
    pub hash: BatchHash,
    /// The newest batch that is final.
    pub final_height: Height,
    /// What was counted.
    pub counts: Counts,
    /// Messages whose payload and evidence were not shown.
    pub withheld: u64,
    /// Changes of the members since genesis.
    pub changes: u64,
    /// Epochs after the first that began in it. Nothing vouches for where they did but the list of them.
    pub epochs: Vec<EpochRecord>,
    /// Voters after the newest batch.
    pub voters: usize,
    /// Observers after it.
    pub observers: usize,
}

impl ChainReport {
    /// Whether a certificate vouches for the beginning: without one, a history that does not begin with the genesis
    /// hangs in the air.
    pub fn is_anchored(&self) -> bool {
        self.first.0 <= 1 || self.final_height >= self.first
    }
}
