//! Why a request was not answered as hoped.

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
    /// No node answered in time. Whether the message was ordered is not known; submitting it again is safe.
    #[error("no node took the request after {attempts} attempts; the last: {last}")]
    Exhausted {
        /// How often it was tried.
        attempts: u32,
        /// What happened at the last attempt.
        last: String,
    },
    /// Making requests in advance failed.
    #[error("{0}")]
    Setup(String),
}
