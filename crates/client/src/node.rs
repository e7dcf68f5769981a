//! One node over HTTP/1.1, with connections that are kept for the next request.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;

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

/// What a node answered.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// The request got no answer. Whether the node acted on it is not known.
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

    pub(crate) async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, NoAnswer> {
        let exchange = self.exchange(method, path, body);
        tokio::time::timeout(self.options.attempt_timeout, exchange).await.unwrap_or(Err(NoAnswer::Timeout))
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, NoAnswer> {
        while let Some(kept) = self.take_idle() {
            // A kept connection may have been closed by the node in the meantime; that says nothing about the node.
            match self.on(kept, method.clone(), path, body.clone()).await {
                Err(NoAnswer::Broken(error)) => tracing::debug!(%error, "a kept connection was of no use"),
                result => return result,
            }
        }
        let fresh = self.connect().await?;
        self.on(fresh, method, path, body).await
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
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, NoAnswer> {
        let broken = |error: hyper::Error| NoAnswer::Broken(error.into());
        connection.ready().await.map_err(broken)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.endpoint.authority)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| NoAnswer::Broken(e.into()))?;
        let response = connection.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), self.options.answer_bytes_max);
        let body = body.collect().await.map_err(NoAnswer::Broken)?.to_bytes();
        let mut idle = self.idle.lock();
        if idle.len() < self.options.idle_connections_max && !connection.is_closed() {
            idle.push(connection);
        }
        Ok(Answer { status, body })
    }
}
