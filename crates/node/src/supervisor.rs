//! The one place where tasks of a node are started and awaited.

use std::future::Future;
use std::time::Duration;

use lockstep_consensus::runtime::inherit;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::NodeError;

/// Runs named parts. All of them are needed: the node stops when one ends before it was told to.
pub(crate) struct Supervisor {
    parts: JoinSet<&'static str>,
    stop: CancellationToken,
}

impl Supervisor {
    pub fn new() -> Self {
        Self { parts: JoinSet::new(), stop: CancellationToken::new() }
    }

    /// Cancelled when the parts must end.
    pub fn token(&self) -> CancellationToken {
        self.stop.clone()
    }

    pub fn spawn(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let part = async move {
            part.await;
            name
        };
        self.parts.spawn(inherit(Box::pin(part)));
    }

    /// Waits until a part ends, which none should.
    pub async fn ended(&mut self) -> NodeError {
        match self.parts.join_next().await {
            Some(Ok(part)) => NodeError::Stopped { part, reason: "it ended by itself".into() },
            Some(Err(error)) => NodeError::Stopped { part: "a task", reason: error.to_string() },
            None => std::future::pending().await,
        }
    }

    /// Tells all parts to end and waits for them, up to a limit.
    pub async fn stop(&mut self, limit: Duration) {
        self.stop.cancel();
        let all = async { while self.parts.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("some parts did not end in time and were cut off");
            self.parts.shutdown().await;
        }
    }
}
