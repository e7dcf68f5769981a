//! Submitting and reading, at whichever node answers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use lockstep_types::{Height, MessageId, Sequence, TaskId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::time::Instant;

use crate::error::ClientError;
use crate::node::{Answer, Node, NodeOptions};
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

fn empty_as_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TaskId>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(serde::de::Error::custom) }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorBody {
    error: String,
    code: String,
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
        self.submit_from(self.preferred.load(Ordering::Relaxed), body, deadline).await
    }

    /// The same, beginning with the node of this number (modulo the number of nodes).
    pub async fn submit_from(
        &self,
        first: usize,
        body: impl Into<Bytes>,
        deadline: Duration,
    ) -> Result<Submitted, ClientError> {
        let found = self.ask(first, Method::POST, "/message", body.into(), deadline).await?;
        let submitted: Submitted = found.read()?;
        Ok(Submitted { url: found.node.endpoint.url.clone(), attempts: found.attempts, ..submitted })
    }

    /// Reads JSON from whichever node answers.
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let first = self.preferred.load(Ordering::Relaxed);
        self.ask(first, Method::GET, path, Bytes::new(), self.options.read_deadline).await?.read()
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
        let node = &self.nodes[node % self.nodes.len()];
        let exhausted = |last: String| ClientError::Exhausted { attempts: 1, last };
        let answer = node
            .send(Method::GET, path, Bytes::new())
            .await
            .map_err(|error| exhausted(format!("{}: {error}", node.endpoint.url)))?;
        if answer.status == StatusCode::OK {
            Ok(Found { node, answer, attempts: 1 })
        } else {
            Err(refused(node, &answer))
        }
    }

    async fn ask(
        &self,
        first: usize,
        method: Method,
        path: &str,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Found<'_>, ClientError> {
        let until = Instant::now() + deadline;
        let mut backoff = self.options.backoff_first;
        let mut attempts = 0_u32;
        loop {
            let place = first.wrapping_add(attempts as usize) % self.nodes.len();
            let node = &self.nodes[place];
            attempts += 1;
            let sent = tokio::time::timeout_at(until, node.send(method.clone(), path, body.clone())).await;
            let last = match sent {
                Ok(Ok(answer)) if answer.status == StatusCode::OK => {
                    self.preferred.store(place, Ordering::Relaxed);
                    return Ok(Found { node, answer, attempts });
                }
                Ok(Ok(answer)) if is_worth_a_retry(answer.status) => refused(node, &answer).to_string(),
                Ok(Ok(answer)) => return Err(refused(node, &answer)),
                Ok(Err(error)) => format!("{}: {error}", node.endpoint.url),
                Err(_) => format!("{}: no answer before the deadline", node.endpoint.url),
            };
            tracing::debug!(attempts, %last, "trying the next node");
            let mut pause = Duration::ZERO;
            if (attempts as usize).is_multiple_of(self.nodes.len()) {
                // Spread over half the pause, so that devices that failed together do not come back together.
                pause = backoff.mul_f64(0.75 + 0.5 * (rand::random::<f64>() - 0.5));
                backoff = (backoff * 2).min(self.options.backoff_max);
            }
            if Instant::now() + pause >= until {
                return Err(ClientError::Exhausted { attempts, last });
            }
            tokio::time::sleep(pause).await;
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

/// Too slow, too many, or something that another node may not have.
fn is_worth_a_retry(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) || status.is_server_error()
}

fn refused(node: &Node, answer: &Answer) -> ClientError {
    let body: ErrorBody = serde_json::from_slice(&answer.body).unwrap_or_default();
    ClientError::Refused {
        url: node.endpoint.url.clone(),
        status: answer.status.as_u16(),
        code: body.code,
        error: body.error,
    }
}
