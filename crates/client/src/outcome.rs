//! What is known about a request that got no good answer.

use std::fmt;
use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;

use crate::error::ClientError;
use crate::node::{Answer, Unanswered};

/// What is known about a message that was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// No node has ordered it. Sending it again is safe at any time.
    NotTaken,
    /// It may have been ordered. Sending it again is safe within its project's retry window only.
    Unknown,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotTaken => "it was not ordered",
            Self::Unknown => "whether it was ordered is unknown",
        })
    }
}

/// Why one attempt at one node failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Every node would say so.
    Refused(ClientError),
    /// Another node, or this one later, may do better.
    Passing(Setback),
}

/// A failure that may pass.
#[derive(Debug)]
pub(crate) struct Setback {
    pub(crate) text: String,
    /// When the node wants to be asked again.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) outcome: Outcome,
}

impl Setback {
    pub(crate) fn new(outcome: Outcome, text: String) -> Self {
        Self { text, retry_after: None, outcome }
    }

    pub(crate) fn unanswered(url: &str, failed: &Unanswered) -> Self {
        let outcome = if failed.sent { Outcome::Unknown } else { Outcome::NotTaken };
        Self::new(outcome, format!("{url}: {}", failed.reason))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorBody {
    error: String,
    code: String,
}

/// What an answer other than 200 means.
pub(crate) fn failure_of(url: &str, answer: &Answer) -> Failure {
    let error = refused(url, answer);
    let ClientError::Refused { code, .. } = &error else { return Failure::Refused(error) };
    if is_worth_a_retry(answer.status) {
        let outcome = outcome_of(answer.status, code);
        Failure::Passing(Setback { text: error.to_string(), retry_after: answer.retry_after, outcome })
    } else {
        Failure::Refused(error)
    }
}

/// The node's words.
pub(crate) fn refused(url: &str, answer: &Answer) -> ClientError {
    let ErrorBody { error, code } = serde_json::from_slice(&answer.body).unwrap_or_default();
    ClientError::Refused { url: url.to_owned(), status: answer.status.as_u16(), code, error }
}

/// Too slow, too many, or something that another node may not have.
pub(crate) fn is_worth_a_retry(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) || status.is_server_error()
}

/// A node says `outcome_unknown` where it does not know. What stands between it and us may have lost its answer, so
/// a 5xx in other words than a node's is unknown too.
pub(crate) fn outcome_of(status: StatusCode, code: &str) -> Outcome {
    match status {
        _ if !status.is_server_error() => Outcome::NotTaken,
        StatusCode::SERVICE_UNAVAILABLE if matches!(code, "stopping" | "halted" | "busy") => Outcome::NotTaken,
        _ => Outcome::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_node_says_in_its_own_words_was_not_taken() {
        for (status, code, outcome) in [
            (429, "", Outcome::NotTaken),
            (408, "", Outcome::NotTaken),
            (503, "stopping", Outcome::NotTaken),
            (503, "outcome_unknown", Outcome::Unknown),
            (503, "", Outcome::Unknown),
            (502, "stopping", Outcome::Unknown),
            (500, "", Outcome::Unknown),
        ] {
            assert_eq!(outcome_of(StatusCode::from_u16(status).unwrap(), code), outcome, "{status} {code}");
        }
    }
}
