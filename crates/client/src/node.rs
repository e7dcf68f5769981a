//! One node over HTTP/1.1, with connections that are kept for the next request.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::url::Endpoint;

/// Limits of the connections to one node.
#[derive(Debug, Clone)]
pub(crate) struct NodeOptions {
    pub(crate) connect_timeout: Duration,
    pub(crate) attempt_timeout: Duration,
    pub(crate) idle_connections_max: usize,
    pub(crate) answer_bytes_max: usize,
}

/// A node, by its address.
pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    options: NodeOptions,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// What is sent to a node.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: Cow<'static, str>,
    pub(crate) body: Bytes,
    pub(crate) content_type: &'static str,
    /// Marked as sensitive by whoever makes it.
    pub(crate) authorization: Option<HeaderValue>,
    /// Whether a connection that breaks after the request went out ends the attempt, where otherwise a kept one is
    /// replaced.
    pub(crate) once: bool,
}

impl Request {
    pub(crate) fn get(path: impl Into<Cow<'static, str>>) -> Self {
        Self { method: Method::GET, ..Self::post(path, Bytes::new()) }
    }

    /// JSON.
    pub(crate) fn post(path: impl Into<Cow<'static, str>>, body: impl Into<Bytes>) -> Self {
        let content_type = "application/json";
        Self {
            method: Method::POST,
            path: path.into(),
            body: body.into(),
            content_type,
            authorization: None,
            once: false,
        }
    }

    /// The same, sent once at most.
    pub(crate) fn once(self) -> Self {
        Self { once: true, ..self }
    }

    fn for_node(&self, endpoint: &Endpoint) -> Result<hyper::Request<Full<Bytes>>, hyper::http::Error> {
        let mut request = hyper::Request::builder()
            .method(self.method.clone())
            .uri(&*self.path)
            .header(HOST, &endpoint.authority)
            .header(CONTENT_TYPE, self.content_type);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.body(Full::new(self.body.clone()))
    }
}

/// What a node answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// Only seconds are understood, which is what nodes say.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Bytes,
}

/// An answer whose body goes on.
pub(crate) struct Streaming {
    pub(crate) status: StatusCode,
    pub(crate) body: hyper::body::Incoming,
    _connection: SendRequest<Full<Bytes>>,
}

/// The request got no answer.
#[derive(Debug)]
pub(crate) struct Unanswered {
    pub(crate) reason: NoAnswer,
    /// Whether the node may have got it, and so may have acted on it.
    pub(crate) sent: bool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("no answer in time")]
    Timeout,
    #[error("the connection broke: {0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
}

impl Node {
    pub(crate) fn new(endpoint: Endpoint, options: NodeOptions) -> Self {
        Self { endpoint, options, idle: Mutex::new(Vec::new()) }
    }

    /// Sends and waits for the answer, at most until `until`.
    pub(crate) async fn send(&self, request: &Request, until: Instant) -> Result<Answer, Unanswered> {
        // Set by what the timeout may cut off.
        let sent = AtomicBool::new(false);
        let until = until.min(Instant::now() + self.options.attempt_timeout);
        let exchange = tokio::time::timeout_at(until, self.exchange(request, &sent)).await;
        exchange
            .unwrap_or(Err(NoAnswer::Timeout))
            .map_err(|reason| Unanswered { reason, sent: sent.load(Ordering::Relaxed) })
    }

    /// Sends on a connection of its own, and leaves the answer's body to be read as it comes.
    pub(crate) async fn open(&self, request: &Request, until: Instant) -> Result<Streaming, NoAnswer> {
        let opening = async {
            let mut connection = self.connect().await?;
            let request = request.for_node(&self.endpoint).map_err(|e| NoAnswer::Broken(e.into()))?;
            let response = connection.send_request(request).await.map_err(|e| NoAnswer::Broken(e.into()))?;
            let status = response.status();
            Ok(Streaming { status, body: response.into_body(), _connection: connection })
        };
        tokio::time::timeout_at(until, opening).await.unwrap_or(Err(NoAnswer::Timeout))
    }

    async fn exchange(&self, request: &Request, sent: &AtomicBool) -> Result<Answer, NoAnswer> {
        while let Some(kept) = self.take_idle() {
            // A kept connection may have been closed by the node in the meantime; that says nothing about the node.
            match self.on(kept, request, sent).await {
                Err(NoAnswer::Broken(error)) if !(request.once && sent.load(Ordering::Relaxed)) => {
                    tracing::debug!(%error, "a kept connection was of no use")
                }
                result => return result,
            }
        }
        let fresh = self.connect().await?;
        self.on(fresh, request, sent).await
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock();
        std::iter::from_fn(|| idle.pop()).find(|connection| !connection.is_closed())
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, NoAnswer> {
        let connecting = tokio::time::timeout(self.options.connect_timeout, TcpStream::connect(&self.endpoint.address));
        let stream = connecting.await.map_err(|_| NoAnswer::Timeout)?.map_err(NoAnswer::Connect)?;
        stream.set_nodelay(true).map_err(NoAnswer::Connect)?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| NoAnswer::Broken(e.into()))?;
        // Ends by itself when the sender is dropped or the node closes.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn on(
        &self,
        mut connection: SendRequest<Full<Bytes>>,
        request: &Request,
        sent: &AtomicBool,
    ) -> Result<Answer, NoAnswer> {
        let broken = |error: hyper::Error| NoAnswer::Broken(error.into());
        connection.ready().await.map_err(broken)?;
        let request = request.for_node(&self.endpoint).map_err(|e| NoAnswer::Broken(e.into()))?;
        let sent_before = sent.swap(true, Ordering::Relaxed);
        let response = connection.send_request(request).await.map_err(|error| {
            if error.is_canceled() {
                // Not one byte of it went out.
                sent.store(sent_before, Ordering::Relaxed);
            }
            broken(error)
        })?;
        let status = response.status();
        let retry_after =
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let body = Limited::new(response.into_body(), self.options.answer_bytes_max);
        let body = body.collect().await.map_err(NoAnswer::Broken)?.to_bytes();
        let mut idle = self.idle.lock();
        if idle.len() < self.options.idle_connections_max && !connection.is_closed() {
            idle.push(connection);
        }
        Ok(Answer { status, retry_after: retry_after.map(Duration::from_secs), body })
    }
}
