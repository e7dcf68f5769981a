//! What the doors need of the node.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use lockstep_identity::{DeviceRequest, Did, TaskRequest};
use lockstep_types::{
    Address, ContentId, ExportPage, Height, MessageId, ProjectId, Proof, Sequence, TaskId, TaskNumber,
};
use serde::Serialize;

use crate::viewer::Viewer;
use crate::views::{
    BatchView, BatchesView, BoundariesView, DevicesView, MembersView, MessageView, ProjectView, ProjectsView,
    StatusView, TaskView, TasksView,
};

/// The ports that a server serves.
#[derive(Clone)]
pub struct Ports {
    /// Takes messages.
    pub submit: Arc<dyn Submit>,
    /// Answers questions.
    pub read: Arc<dyn Read>,
    /// Serves devices that encrypt.
    pub sealed: Arc<dyn Sealed>,
    /// Takes orders of projects' owners, and shows what there is.
    pub registry: Arc<dyn Registry>,
    /// Tells readers what has become final.
    pub feed: Arc<dyn Feed>,
    /// Says what became of tasks where they are proved, if this node knows whom to ask.
    pub prover: Option<Arc<dyn ProverStates>>,
}

/// Why a device that encrypts gets no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
    /// This node has no server secret.
    #[error("this node serves no encrypted messages: its operator has given it no server secret")]
    NoSecret,
    /// The token is not one of this server's, or is revoked.
    #[error("{0}")]
    Token(String),
    /// The device is not known, or may not do this.
    #[error("{0}")]
    Denied(String),
    /// The envelope cannot be opened, or what is in it is no request.
    #[error("{0}")]
    Unreadable(String),
    /// The message has no position.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// A question has no answer.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Not now.
    #[error("{0}")]
    Unavailable(String),
}

/// Serves devices that show a token and encrypt (vectors/ioconnect). Envelopes are JWE texts.
#[async_trait]
pub trait Sealed: Send + Sync {
    /// The server's DID document; `None` where this node has no server secret. Does not wait.
    fn did_document(&self) -> Option<Arc<str>>;

    /// A token for a device, in an envelope to it. [`SealedError::Denied`] where the device is not known.
    async fn issue_token(&self, device: Did) -> Result<String, SealedError>;

    /// Orders the message in an envelope, as [`Submit::submit`] does; the answer is in an envelope to the device.
    async fn submit(&self, token: &str, envelope: Bytes) -> Result<String, SealedError>;

    /// The states of a message of the token's device, in an envelope to it.
    async fn states(&self, token: &str, message: &str) -> Result<String, SealedError>;
}

/// An order was not carried out, or that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderProblem {
    /// It cannot be read.
    #[error("{0}")]
    Malformed(String),
    /// It does not count; the text says why.
    #[error("{0}")]
    Refused(String),
    /// No majority answered in time: look later, and sign another one if need be.
    #[error("{0}")]
    Unavailable(String),
}

/// The registry of projects and devices.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Carries out an order: a signed order as protobuf. `Ok` promises that it holds on a majority of voters.
    async fn order(&self, order: Bytes) -> Result<(), OrderProblem>;

    /// All registered projects. Does not wait.
    fn projects(&self) -> ProjectsView;

    /// One project.
    async fn project(&self, project: ProjectId) -> Option<ProjectView>;

    /// Devices that somebody let submit to a project, from an address on.
    async fn devices(&self, project: ProjectId, from: Address, limit: usize) -> Result<DevicesView, ReadError>;
}

/// What a coordinator says of a task. The words and times are its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProverState {
    /// `dispatched`, `proved`, `outputted` or `failed`.
    pub state: String,
    /// When, in RFC 3339.
    pub time: String,
    /// Why, where there is something to say.
    pub comment: String,
    /// What came out.
    pub result: String,
}

/// Knows what became of tasks where they are proved.
#[async_trait]
pub trait ProverStates: Send + Sync {
    /// The states of a task, in order. Whatever goes wrong, it ends within a second or so, and then knows of none.
    async fn states(&self, project: ProjectId, task: TaskNumber) -> Vec<ProverState>;
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
    /// The gateway that sent the bundle.
    Gateway,
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "this device",
            Self::Project => "this project",
            Self::Address => "this address",
            Self::Gateway => "this gateway",
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
    /// The device has used the nonce before, with something else.
    #[error("{0}")]
    NonceUsed(String),
    /// A field cannot be ordered.
    #[error("{0}")]
    Invalid(String),
    /// The project's rules do not take the message.
    #[error("{text}")]
    Rules {
        /// The document's word for why.
        reason: String,
        /// A sentence.
        text: String,
    },
    /// The project's rules have taken all the fuel that they may take for now. The message was not taken.
    #[error("the rules of this project have taken all the fuel that they may take at the moment, try again later")]
    RulesFuel {
        /// When it may be worth trying again.
        retry_after_ms: u64,
    },
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

    /// The same for a request of the API of 2025; with the name that this API gives the task.
    async fn submit_task(&self, request: TaskRequest) -> Result<(TaskId, Accepted), SubmitError>;

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

/// Which final tasks to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TasksQuery {
    /// Only this project's; `None`: those of all projects.
    pub project: Option<ProjectId>,
    /// Those after this number; `None` or 0: from the oldest that is kept.
    pub after: Option<TaskNumber>,
    /// Without `after`: from the first task of this height or above.
    pub from_height: Option<Height>,
    /// Most tasks.
    pub limit: usize,
    /// Who reads.
    pub viewer: Viewer,
}

/// Tells readers what has become final, in order. Every node has the same under the same numbers.
#[async_trait]
pub trait Feed: Send + Sync {
    /// Final tasks by ascending number, without leaving any out. It is bounded in bytes and in what is looked at, so there
    /// may be fewer than are wanted, or none, before the end: [`TasksView::next`] says where to go on.
    async fn tasks(&self, query: TasksQuery) -> Result<TasksView, ReadError>;

    /// Waits until a task after this number is final; for ever if the node ends. Cancel-safe.
    async fn wait_for_task(&self, after: Option<TaskNumber>);

    /// Final batches from a height on (from the oldest that is kept, where it is 0), with their certificates: at least one
    /// where there is one.
    async fn final_batches(&self, from: Height, viewer: Viewer) -> Result<ExportPage, ReadError>;

    /// Waits until the batch at a height is final; for ever if the node ends. Cancel-safe.
    async fn wait_for_final(&self, height: Height);
}

/// Answers questions about what is applied on this node. Payloads and signatures of messages whose project is not
/// public are left out by the implementation, but for whoever shows the project's reader token.
#[async_trait]
pub trait Read: Send + Sync {
    /// The node and its view of the network. It costs little, for it is polled, and waits for the store for a moment at
    /// most: what cannot be read then is as it was known last.
    async fn status(&self) -> StatusView;

    /// Who belongs to the network, and which changes wait for approvals. Does not wait.
    fn members(&self) -> MembersView;

    /// Batches from a height upwards, at most `limit`; fewer where there are no more, or to bound the answer's size
    /// (but at least one where there is one).
    async fn batches(&self, from: Height, limit: usize) -> Result<BatchesView, ReadError>;

    /// One batch.
    async fn batch(&self, height: Height) -> Result<Option<BatchView>, ReadError>;

    /// Waits until whatever was ordered by any node before this call is applied here, and whatever lay in any node's log
    /// then either is too or never will be: a message that [`Read::message`] does not find after this was not ordered by
    /// anything that had reached a leader's log. [`ReadError::Unavailable`] where that cannot be had in a bounded time.
    async fn confirm(&self) -> Result<(), ReadError>;

    /// One message, also while it waits for its position on this node.
    async fn message(&self, id: MessageId, viewer: Viewer) -> Result<Option<MessageView>, ReadError>;

    /// The task that another name stands for, which its device's signature gave it.
    async fn task_of_alias(&self, alias: TaskId) -> Result<Option<TaskId>, ReadError>;

    /// One task.
    async fn task(&self, id: TaskId, viewer: Viewer) -> Result<Option<TaskView>, ReadError>;

    /// The proof of a message's place, from the genesis on. [`ReadError::NotFinal`] while it has none.
    async fn proof(&self, id: MessageId) -> Result<Option<Proof>, ReadError>;

    /// Certified changes of the members from a height on, at most `limit`.
    async fn boundaries(&self, from: Height, limit: usize) -> Result<BoundariesView, ReadError>;

    /// Batches from a height on (from the oldest that is kept, where it is 0), with their certificates. It is bounded in bytes, but
    /// has at least one batch where there is one.
    async fn export(&self, from: Height, viewer: Viewer) -> Result<ExportPage, ReadError>;

    /// Waits until `sequence` is applied here: true. False when `timeout` is over first. Cancel-safe.
    async fn wait_for_sequence(&self, sequence: Sequence, timeout: Duration) -> bool;

    /// Whether this node can take messages now; the text says why not. Does not wait.
    fn ready(&self) -> Result<(), String>;

    /// All metrics in the Prometheus text format. Waits as [`Read::status`] does.
    async fn metrics(&self) -> String;
}
