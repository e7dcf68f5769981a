//! Why a request was not answered as hoped.

use lockstep_identity::{EnvelopeError, RequestError};

use crate::outcome::Outcome;

/// A request that failed for good.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No URL was given.
    #[error("no node is given")]
    NoNodes,
    /// A URL that this client cannot use: it speaks plain HTTP only.
    #[error("{url:?} is not of the form http://host:port")]
    Url {
        /// The text.
        url: String,
    },
    /// The message cannot be sent as it is, and was not. Correct it.
    #[error("the message cannot be sent: {0}")]
    Message(#[from] RequestError),
    /// The message cannot be encrypted, and was not sent. Correct it.
    #[error("the message cannot be encrypted: {0}")]
    Envelope(#[from] EnvelopeError),
    /// A node refused; it would refuse again, and so would the others. Correct the request.
    #[error("{url} answered {status}: {error} ({code})")]
    Refused {
        /// Which node.
        url: String,
        /// Its HTTP status.
        status: u16,
        /// Its machine-readable word; empty where it gave none.
        code: String,
        /// Its sentence.
        error: String,
    },
    /// A node answered with something that is not an answer of Lockstep.
    #[error("{url} answered with something else than expected: {reason}")]
    Answer {
        /// Which node.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// No node answered in time. `outcome` says whether the message may have been ordered nevertheless.
    #[error("no node took the request after {attempts} attempts, {outcome}; the last: {last}")]
    Exhausted {
        /// How often it was tried.
        attempts: u32,
        /// What happened at the last attempt.
        last: String,
        /// What is known about the message.
        outcome: Outcome,
    },
    /// Making requests in advance failed.
    #[error("{0}")]
    Setup(String),
}

impl ClientError {
    /// What is known about a message whose submission ended so.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Exhausted { outcome, .. } => *outcome,
            Self::Answer { .. } => Outcome::Unknown,
            _ => Outcome::NotTaken,
        }
    }
}
