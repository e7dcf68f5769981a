//! Messages that nodes refused for good, kept beside the outbox: one JSON object in each line, for people.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::Serialize;

use crate::outbox::error::OutboxError;
use crate::outbox::log::{failure, sync_directory};
use crate::prepared::Prepared;

#[derive(Serialize)]
struct Line<'a> {
    number: u64,
    content_id: String,
    /// Why, in the node's words.
    reason: &'a str,
    /// The request's body; before encryption, where it went encrypted.
    body: &'a str,
}

/// Appends and syncs. After a crash the same message may be there twice, and a line may be incomplete.
pub(super) fn set_aside(
    path: &Path,
    bytes_max: u64,
    (number, prepared): (u64, &Prepared),
    reason: &str,
) -> Result<(), OutboxError> {
    let failed = failure(path);
    let content_id = prepared.content_id.to_string();
    let line = Line { number, content_id, reason, body: prepared.text() };
    let line = serde_json::to_string(&line).map_err(|error| failed(error.into()))?;
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(&failed)?;
    let bytes = file.metadata().map_err(&failed)?.len();
    if bytes + line.len() as u64 + 2 > bytes_max {
        return Err(OutboxError::RefusedFull { path: path.to_owned() });
    }
    // The empty line keeps this one apart from half of another.
    file.write_all(format!("\n{line}\n").as_bytes()).and_then(|()| file.sync_all()).map_err(&failed)?;
    sync_directory(path).map_err(failed)
}
