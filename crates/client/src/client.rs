//! Submitting and reading, at whichever node answers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use lockstep_types::{Height, MessageId, Sequence, TaskId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::time::Instant;

use crate::error::ClientError;
use crate::node::{Answer, Node, NodeOptions, Request};
use crate::outcome::{Failure, Outcome, Setback, failure_of, refused};
use crate::rounds::{Choice, Rounds};
use crate::url::Endpoint;

/// Limits of a client.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for one answer of one node.
    pub attempt_timeout: Duration,
    /// Pause after all nodes were tried in vain; doubles up to `backoff_max`.
    pub backoff_first: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// Longest time for a read, over all nodes.
    pub read_deadline: Duration,
    /// Connections kept for later, per node.
    pub idle_connections_max: usize,
    /// Largest answer that is read.
    pub answer_bytes_max: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            attempt_timeout: Duration::from_secs(15),
            backoff_first: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            read_deadline: Duration::from_secs(15),
            idle_connections_max: 256,
            answer_bytes_max: 64 << 20,
        }
    }
}

/// A message has its position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// The message's name.
    #[serde(rename = "messageID")]
    pub message_id: MessageId,
    /// Its task; `None` while its group is open.
    #[serde(rename = "taskID", default, deserialize_with = "empty_as_none")]
    pub task_id: Option<TaskId>,
    /// Its place in the order.
    pub sequence: Sequence,
    /// Its batch.
    pub height: Height,
    /// Whether it had this position before.
    #[serde(default)]
    pub duplicate: bool,
    /// The node that answered.
    #[serde(default)]
    pub url: String,
    /// How often the request was sent, this time included.
    #[serde(default)]
    pub attempts: u32,
}

pub(crate) fn empty_as_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TaskId>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(serde::de::Error::custom) }
}

/// A client of several nodes. It stays with a node while that answers. Cheap to share by reference; it needs a
/// tokio runtime.
pub struct Client {
    nodes: Vec<Node>,
    options: ClientOptions,
    preferred: AtomicUsize,
}

impl Client {
    /// A client with default limits.
    pub fn new(urls: Vec<String>) -> Result<Self, ClientError> {
        Self::with_options(urls, ClientOptions::default())
    }

    /// A client with limits of your own.
    pub fn with_options(urls: Vec<String>, options: ClientOptions) -> Result<Self, ClientError> {
        let node_options = NodeOptions {
            connect_timeout: options.connect_timeout,
            attempt_timeout: options.attempt_timeout,
            idle_connections_max: options.idle_connections_max,
            answer_bytes_max: options.answer_bytes_max,
        };
        let node = |endpoint| Node::new(endpoint, node_options.clone());
        let nodes = Endpoint::parse_all(&urls)?.into_iter().map(node).collect();
        Ok(Self { nodes, options, preferred: AtomicUsize::new(0) })
    }

    /// How many nodes it knows.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Submits the body of a `POST /message` (see [`lockstep_identity::sign_body`]) until a node orders it, refuses
    /// it, or `deadline` has passed.
    pub async fn submit(&self, body: impl Into<Bytes>, deadline: Duration) -> Result<Submitted, ClientError> {
        self.submit_from(self.preferred(), body, deadline).await
    }

    /// The same, beginning with the node of this number (modulo the number of nodes).
    pub async fn submit_from(
        &self,
        first: usize,
        body: impl Into<Bytes>,
        deadline: Duration,
    ) -> Result<Submitted, ClientError> {
        let found = self.ask(first, &Request::post("/message", body), deadline).await?;
        let submitted: Submitted = found.read()?;
        Ok(Submitted { url: found.node.endpoint.url.clone(), attempts: found.attempts, ..submitted })
    }

    /// Has an order of a project's owner carried out: a signed order as protobuf, sent to the first node once. Sent
    /// again it would be refused, because its number is used.
    pub async fn order(&self, order: impl Into<Bytes>) -> Result<(), ClientError> {
        let until = Instant::now() + self.options.attempt_timeout;
        match self.attempt(0, &Request::post("/api/orders", order).once(), until).await {
            Ok(_) => Ok(()),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Passing(Setback { text, outcome, .. })) => {
                Err(ClientError::Exhausted { attempts: 1, last: text, outcome })
            }
        }
    }

    /// Reads JSON from whichever node answers.
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let request = Request::get(path.to_owned());
        self.ask(self.preferred(), &request, self.options.read_deadline).await?.read()
    }

    /// Reads JSON from the node of this number (modulo the number of nodes) and from no other, once: for comparing
    /// nodes.
    pub async fn get_json_from<T: DeserializeOwned>(&self, node: usize, path: &str) -> Result<T, ClientError> {
        self.get_from(node, path).await?.read()
    }

    /// The same, for what is not JSON.
    pub async fn get_bytes_from(&self, node: usize, path: &str) -> Result<Bytes, ClientError> {
        Ok(self.get_from(node, path).await?.answer.body)
    }

    async fn get_from(&self, node: usize, path: &str) -> Result<Found<'_>, ClientError> {
        let place = node % self.nodes.len();
        let until = Instant::now() + self.options.attempt_timeout;
        let node = &self.nodes[place];
        let request = Request::get(path.to_owned());
        let answer = node.send(&request, until).await.map_err(|failed| {
            let Setback { text, outcome, .. } = Setback::unanswered(self.url(place), &failed);
            ClientError::Exhausted { attempts: 1, last: text, outcome }
        })?;
        if answer.status == StatusCode::OK {
            Ok(Found { node, answer, attempts: 1 })
        } else {
            Err(refused(self.url(place), &answer))
        }
    }

    /// Asks one node once.
    pub(crate) async fn attempt(&self, place: usize, request: &Request, until: Instant) -> Result<Answer, Failure> {
        let node = &self.nodes[place];
        let url = self.url(place);
        match node.send(request, until).await {
            Ok(answer) if answer.status == StatusCode::OK => Ok(answer),
            Ok(answer) => Err(failure_of(url, &answer)),
            Err(failed) => Err(Failure::Passing(Setback::unanswered(url, &failed))),
        }
    }

    /// A new request's way through the nodes.
    pub(crate) fn rounds(&self, first: usize) -> Rounds {
        Rounds::new(self.nodes.len(), first, (self.options.backoff_first, self.options.backoff_max))
    }

    /// The node that answered last.
    pub(crate) fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    pub(crate) fn prefer(&self, place: usize) {
        self.preferred.store(place, Ordering::Relaxed);
    }

    pub(crate) fn node(&self, place: usize) -> &Node {
        &self.nodes[place]
    }

    pub(crate) fn attempt_timeout(&self) -> Duration {
        self.options.attempt_timeout
    }

    /// First and longest pause after all nodes were tried in vain.
    pub(crate) fn backoff(&self) -> (Duration, Duration) {
        (self.options.backoff_first, self.options.backoff_max)
    }

    pub(crate) fn url(&self, place: usize) -> &str {
        &self.nodes[place].endpoint.url
    }

    async fn ask(&self, first: usize, request: &Request, deadline: Duration) -> Result<Found<'_>, ClientError> {
        let until = Instant::now() + deadline;
        let mut rounds = self.rounds(first);
        let (mut attempts, mut last, mut outcome) = (0_u32, "nothing was tried".to_owned(), Outcome::NotTaken);
        loop {
            let place = match rounds.choose(Instant::now()) {
                Choice::Try(place) => place,
                Choice::Pause(at) if at >= until => return Err(ClientError::Exhausted { attempts, last, outcome }),
                Choice::Pause(at) => {
                    tokio::time::sleep_until(at).await;
                    continue;
                }
            };
            attempts += 1;
            match self.attempt(place, request, until).await {
                Ok(answer) => {
                    self.prefer(place);
                    return Ok(Found { node: &self.nodes[place], answer, attempts });
                }
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::Passing(setback)) => {
                    tracing::debug!(attempts, last = %setback.text, "trying the next node");
                    outcome = outcome.max(setback.outcome);
                    last = setback.text;
                    rounds.failed(place, Instant::now(), setback.retry_after, rand::random());
                }
            }
            if Instant::now() >= until {
                return Err(ClientError::Exhausted { attempts, last, outcome });
            }
        }
    }
}

/// An answer with status 200.
struct Found<'a> {
    node: &'a Node,
    answer: Answer,
    attempts: u32,
}

impl Found<'_> {
    fn read<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        let wrong =
            |e: serde_json::Error| ClientError::Answer { url: self.node.endpoint.url.clone(), reason: e.to_string() };
        serde_json::from_slice(&self.answer.body).map_err(wrong)
    }
}
