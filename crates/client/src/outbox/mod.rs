//! Messages that wait on the disk until a node can be reached.
//!
//! [`Outbox::enqueue`] returns when the message, signed already, is synced to the file. [`Outbox::drain`] and
//! [`Outbox::run`] bring the messages to the nodes in order. A process that is killed at any moment loses none of them
//! and makes none of them a second message: before a message is sent, the file says so, and what may have been sent
//! earlier is looked up before it is sent again. That works by the message's content, so each must be unique. With
//! `POST /v1/task` a nonce sees to that; elsewhere put a time, a counter or the name that [`Outbox::enqueue_with`]
//! offers into the data. Equal messages that wait at the same time are refused.

mod drain;
mod error;
mod log;
pub(crate) mod record;
mod refused;

use std::path::Path;
use std::sync::Arc;

use lockstep_types::ProjectId;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::device::Device;
use crate::outbox::log::Log;

pub use drain::Drained;
pub use error::OutboxError;
pub use record::BODY_BYTES_MAX;

/// Most messages that are sent in one request.
pub const BULK_MESSAGES_MAX: usize = 256;
/// Most bytes of one such request.
pub const BULK_BYTES_MAX: u64 = 4 << 20;

/// Limits of an outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxOptions {
    /// Most messages that wait; one more is refused.
    pub messages_max: usize,
    /// Most bytes of messages that wait; over it a message is refused. The file is at most three times as large, and
    /// 1 MiB. When it is opened, it is held in memory for a moment.
    pub bytes_max: u64,
    /// Most bytes of messages that nodes refused, in a file beside; over it nothing is sent any more.
    pub refused_bytes_max: u64,
    /// Most messages in one request (`POST /messages`), up to [`BULK_MESSAGES_MAX`]. Where a node takes some of them and
    /// is too busy for others, those come later than they would have one by one: 1 keeps the order whatever happens.
    pub bulk_messages_max: usize,
}

impl Default for OutboxOptions {
    fn default() -> Self {
        Self {
            messages_max: 100_000,
            bytes_max: 64 << 20,
            refused_bytes_max: 16 << 20,
            bulk_messages_max: BULK_MESSAGES_MAX,
        }
    }
}

/// A message's number in its outbox, from 1. It grows with every message and never comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutboxNumber(pub u64);

/// Messages that wait in a file.
pub struct Outbox {
    log: Arc<Mutex<Log>>,
    arrived: Notify,
    /// Messages go out one after the other.
    draining: tokio::sync::Mutex<()>,
}

impl Outbox {
    /// Opens the file, or makes it, with default limits. Blocks. Beside it there will be a file that ends in `.lock`.
    ///
    /// # Errors
    /// If it is in use, is no outbox, or is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OutboxError> {
        Self::open_with(path, OutboxOptions::default())
    }

    /// The same with other limits. What waits already is kept even if it is more than they allow.
    ///
    /// # Errors
    /// As [`Outbox::open`].
    pub fn open_with(path: impl AsRef<Path>, options: OutboxOptions) -> Result<Self, OutboxError> {
        let log = Arc::new(Mutex::new(Log::open(path.as_ref(), options)?));
        Ok(Self { log, arrived: Notify::new(), draining: tokio::sync::Mutex::new(()) })
    }

    /// Takes a message of `device`. When it returns, the message is on the disk. Blocks for one sync, so that async
    /// code should call it where blocking is allowed.
    ///
    /// # Errors
    /// If the message cannot be sent by any node, repeats one that waits, or there is no room. Then it was not taken.
    pub fn enqueue(
        &self,
        device: &Device,
        project: ProjectId,
        version: &str,
        data: &str,
    ) -> Result<OutboxNumber, OutboxError> {
        self.enqueue_with(device, project, version, |_| data.to_owned())
    }

    /// The same for data that is made of a name which no other message has: put it somewhere into the data.
    ///
    /// # Errors
    /// As [`Outbox::enqueue`].
    pub fn enqueue_with(
        &self,
        device: &Device,
        project: ProjectId,
        version: &str,
        data: impl FnOnce(&str) -> String,
    ) -> Result<OutboxNumber, OutboxError> {
        let mut log = self.log.lock();
        let data = data(&log.next_name());
        let number = log.append(device.prepare(project, version, &data)?)?;
        drop(log);
        self.arrived.notify_one();
        Ok(OutboxNumber(number))
    }

    /// How many messages wait.
    pub fn waiting(&self) -> usize {
        self.log.lock().len()
    }
}
