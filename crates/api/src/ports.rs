//! What the doors need of the node.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use lockstep_identity::DeviceRequest;
use lockstep_types::{ContentId, ExportPage, Height, MessageId, Proof, Sequence, TaskId};

use crate::views::{BatchView, BatchesView, BoundariesView, MembersView, MessageView, StatusView, TaskView};

/// The ports that a server serves.
#[derive(Clone)]
pub struct Ports {
    /// Takes messages.
    pub submit: Arc<dyn Submit>,
    /// Answers questions.
    pub read: Arc<dyn Read>,
}

/// A message has its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The message's name.
    pub message_id: MessageId,
    /// The task that it is in; `None` while its group is open.
    pub task_id: Option<TaskId>,
    /// Its place in the order.
    pub sequence: Sequence,
    /// The batch that it is in.
    pub height: Height,
    /// Whether it had this position before: the request was a retry.
    pub duplicate: bool,
}

/// Whose limit on messages per second was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The device that signed.
    Device,
    /// All devices of the project, on this node.
    Project,
    /// The address that the request came from.
    Address,
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "this device",
            Self::Project => "this project",
            Self::Address => "this address",
        })
    }
}

/// A message has no position, or none that is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// No signer comes out of the signature.
    #[error("{0}")]
    Unauthenticated(String),
    /// The device or project is not permitted, or the message is unsigned and that is not allowed.
    #[error("{0}")]
    Forbidden(String),
    /// A field cannot be ordered.
    #[error("{0}")]
    Invalid(String),
    /// Larger than the network allows.
    #[error("data must be at most {max} bytes")]
    TooLarge {
        /// The limit in bytes.
        max: u64,
    },
    /// The pool or a quota is full. The message was not taken.
    #[error("too many messages at the moment, try again later")]
    Busy {
        /// When it may be worth trying again.
        retry_after_ms: u64,
    },
    /// A sender is faster than this node allows. The message was not taken.
    #[error("{sender} sends more than this node allows, try again later")]
    TooFast {
        /// Who.
        sender: Sender,
        /// When the next message is allowed.
        retry_after_ms: u64,
    },
    /// No majority was reached in time. The outcome is unknown; the same request again is safe.
    #[error("no majority of nodes answered in time; the outcome is unknown and a retry is safe")]
    Unavailable {
        /// What the message will be known by if it was ordered.
        content_id: ContentId,
        /// When it may be worth trying again.
        retry_after_ms: u64,
    },
    /// This node is shutting down. Try another one.
    #[error("this node is shutting down, try another one")]
    Stopping,
    /// The whole network acknowledges nothing until its operators act. The text says what is wrong.
    #[error("nothing is acknowledged until the operators of this network act: {0}")]
    Halted(String),
}

/// Orders messages.
#[async_trait]
pub trait Submit: Send + Sync {
    /// Authenticates one message and waits until it has a position.
    ///
    /// `Ok` promises that the message is on the disks of a majority of voters at that position. The same request
    /// within its project's retry window yields the first position. [`SubmitError::Unavailable`] means unknown; with
    /// any other error the message is not ordered by this call. It ends by itself within a bounded time. Dropping
    /// the future (the client went away) only stops the waiting: the message may still be ordered.
    async fn submit(&self, request: DeviceRequest) -> Result<Accepted, SubmitError>;

    /// Submits several messages together; the results stand in the order of the requests, and there are as many. Each is
    /// what [`Submit::submit`] would say. An implementation keeps the order of those that are ordered together.
    async fn submit_all(&self, requests: Vec<DeviceRequest>) -> Vec<Result<Accepted, SubmitError>> {
        join_all(requests.into_iter().map(|request| self.submit(request))).await
    }
}

/// A question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It was there, and is no longer kept.
    #[error("batches before {first} are no longer kept on this node")]
    Pruned {
        /// The first height that is kept.
        first: Height,
    },
    /// It is not final: no majority of voters has certified it yet.
    #[error("no majority of voters has certified this yet")]
    NotFinal {
        /// When it may be worth asking again.
        retry_after_ms: u64,
    },
    /// Not now: the node is starting, catching up or stopping.
    #[error("{reason}")]
    Unavailable {
        /// Why.
        reason: String,
        /// When it may be worth asking again.
        retry_after_ms: u64,
    },
    /// The node's store failed. The text is for its operator's log as well as for the reader.
    #[error("{0}")]
    Failed(String),
}

/// Answers questions about what is applied on this node. Payloads and signatures of messages whose project is not
/// public are left out by the implementation.
#[async_trait]
pub trait Read: Send + Sync {
    /// The node and its view of the network. Does not wait, and costs little: it is polled.
    fn status(&self) -> StatusView;

    /// Who belongs to the network, and which changes wait for approvals. Does not wait.
    fn members(&self) -> MembersView;

    /// Batches from a height upwards, at most `limit`; fewer where there are no more, or to bound the answer's size
    /// (but at least one where there is one).
    async fn batches(&self, from: Height, limit: usize) -> Result<BatchesView, ReadError>;

    /// One batch.
    async fn batch(&self, height: Height) -> Result<Option<BatchView>, ReadError>;

    /// One message, also while it waits for its position on this node.
    async fn message(&self, id: MessageId) -> Result<Option<MessageView>, ReadError>;

    /// One task.
    async fn task(&self, id: TaskId) -> Result<Option<TaskView>, ReadError>;

    /// The proof of a message's place, from the genesis on. [`ReadError::NotFinal`] while it has none.
    async fn proof(&self, id: MessageId) -> Result<Option<Proof>, ReadError>;

    /// Certified changes of the members from a height on, at most `limit`.
    async fn boundaries(&self, from: Height, limit: usize) -> Result<BoundariesView, ReadError>;

    /// Batches from a height on (from the oldest that is kept, where it is 0), with their certificates. It is bounded in bytes, but
    /// has at least one batch where there is one.
    async fn export(&self, from: Height) -> Result<ExportPage, ReadError>;

    /// Waits until `sequence` is applied here: true. False when `timeout` is over first. Cancel-safe.
    async fn wait_for_sequence(&self, sequence: Sequence, timeout: Duration) -> bool;

    /// Whether this node can take messages now; the text says why not. Does not wait.
    fn ready(&self) -> Result<(), String>;

    /// All metrics in the Prometheus text format.
    fn metrics(&self) -> String;
}
