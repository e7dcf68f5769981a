//! Why an outbox does not do what it is asked to.

use std::io;
use std::path::PathBuf;

use crate::error::ClientError;

/// Why an outbox does not do what it is asked to.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The message was not taken. Send what is there first, or make room by raising the limits.
    #[error("the outbox is full: {messages} messages of {bytes} bytes wait")]
    Full {
        /// Messages that wait.
        messages: usize,
        /// Their bytes in the file.
        bytes: u64,
    },
    /// The message was not taken: its request is too large for any node.
    #[error("the message's request has {bytes} bytes, more than an outbox takes")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// The message was not taken: nodes would take it for a retry of one that waits. Put a time or a counter into it.
    #[error("a message that says the same waits already; nodes would take this one for its retry")]
    Repeats,
    /// Another process, or another `Outbox` of this one, has the file open.
    #[error("{} is in use", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Not a file of an outbox. It was left alone.
    #[error("{} is not an outbox", .path.display())]
    NotAnOutbox {
        /// The file.
        path: PathBuf,
    },
    /// Bytes in the middle of the file are not what was written. It was left alone; what lies before can be read by hand.
    #[error("{} is damaged at byte {at}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
    },
    /// The disk failed. What was not acknowledged is not in the outbox.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A write failed such that nobody knows what is on the disk. Open the outbox again.
    #[error("the outbox failed earlier and takes nothing more; open it again")]
    Broken,
    /// The file of refused messages is full. Look into it, and remove it.
    #[error("{} is full", .path.display())]
    RefusedFull {
        /// The file.
        path: PathBuf,
    },
    /// Sending failed. The messages that are not ordered wait further.
    #[error(transparent)]
    Client(#[from] ClientError),
}
