//! What an object store's errors mean for the publisher.

use std::error::Error as _;

use lockstep_types::TaskNumber;
use object_store::Error;

use crate::output::OutputError;

/// Longest part of an error's text that is shown.
const REASON_CHARS_MAX: usize = 300;
/// What stores answer where an object is too large for them, or of a kind that they never take.
const REFUSALS: [&str; 3] = ["EntityTooLarge", "413 Payload Too Large", "413 Content Too Large"];

fn whole_text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

/// What happened, in one short sentence. Servers answer with XML, of which the code alone says something to people.
pub(super) fn reason(error: &Error) -> String {
    let text = whole_text(error);
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    let words = match code {
        Some((code, _)) => format!("the store answers {code}"),
        None => text.split('<').next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" "),
    };
    words.chars().take(REASON_CHARS_MAX).collect()
}

/// An error of a request that will pass, or that an operator has to look at meanwhile.
pub(super) fn retryable(error: Error) -> OutputError {
    let words = reason(&error);
    let denied = matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. });
    OutputError::Retryable(if denied {
        format!("{words}; look at the credentials and what they may do")
    } else {
        words
    })
}

/// As [`retryable`], of a request that carried the blob that begins with this task.
pub(super) fn of_blob(error: Error, task: TaskNumber) -> OutputError {
    if REFUSALS.iter().any(|refusal| whole_text(&error).contains(refusal)) {
        return OutputError::Refused { task, reason: reason(&error) };
    }
    retryable(error)
}
