//! The asking side of a stream.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use libp2p::{PeerId, Stream};
use libp2p_stream::{Control, OpenStreamError};
use lockstep_types::{NodeId, proto};
use prost::Message;

use crate::frame::{self, FrameError};
use crate::handle::Shared;
use crate::hello::Channel;
use crate::limits::{HELLO_BYTES_MAX, OPEN_ATTEMPTS_MAX};
use crate::metrics;

/// Pause before a stream is opened again that ended before its `Hello`; twice as long each time.
const REOPEN_PAUSE: Duration = Duration::from_millis(2);

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The member is not connected, or not known, or this node is still starting: nothing was sent. Back off; the
    /// network dials it by itself.
    #[error("node {0} is not connected")]
    Unreachable(NodeId),
    /// No answer in time; the request may have been carried out. Ask again, or elsewhere.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The member does not talk with this node, or not about this: its sentence. An operator has to look.
    #[error("refused: {0}")]
    Refused(String),
    /// The request is larger than the channel allows: nothing was sent. Split it.
    #[error("a request of {bytes} bytes exceeds the channel's limit of {max}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The stream ended; the request may have been carried out. The next call opens a new stream.
    #[error("the stream ended: {0}")]
    Closed(String),
}

impl CallError {
    fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Timeout(_) => "timeout",
            Self::Refused(_) => "refused",
            Self::TooLarge { .. } => "too_large",
            Self::Closed(_) => "closed",
        }
    }
}

impl From<FrameError> for CallError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Refused(reason) => Self::Refused(reason),
            other => Self::Closed(other.to_string()),
        }
    }
}

/// Asks one member on one channel, one request at a time, over a stream that stays open.
pub(crate) struct StreamClient {
    shared: Arc<Shared>,
    control: Control,
    target: NodeId,
    channel: Channel,
    stream: Option<Stream>,
}

impl StreamClient {
    pub fn new(shared: Arc<Shared>, control: Control, target: NodeId, channel: Channel) -> Self {
        Self { shared, control, target, channel, stream: None }
    }

    /// Sends `parts` as one request and waits for the answer. Parts are sent one after the other without being
    /// joined first. Without a connection it fails at once. After an error, a timeout, or when the future is dropped,
    /// the stream is gone and the next call opens another: an answer never reaches a later request.
    pub async fn call(&mut self, parts: &[Bytes], timeout: Duration) -> Result<Bytes, CallError> {
        let result = self.try_call(parts, timeout).await;
        if let Err(error) = &result {
            metrics::stream_error(self.channel.name(), "client", error.kind());
            tracing::debug!(node = %self.target, channel = self.channel.name(), %error, "call failed");
        }
        result
    }

    async fn try_call(&mut self, parts: &[Bytes], timeout: Duration) -> Result<Bytes, CallError> {
        let (bytes, max) = (frame::length(parts), self.shared.frame_max(self.channel));
        if bytes > max {
            return Err(CallError::TooLarge { bytes, max });
        }
        if !self.shared.connected(self.target) || self.shared.log.get().is_none() {
            self.stream = None;
            return Err(CallError::Unreachable(self.target));
        }
        // The stream is out of `self` while it is in use: whatever ends this future early ends the stream too.
        // One that ended while it was idle (the member restarted, say) is replaced before anything is sent.
        let open = self.stream.take().and_then(|mut stream| frame::is_idle(&mut stream).then_some(stream));
        let exchange = async {
            let mut stream = match open {
                Some(stream) => stream,
                None => self.open().await?,
            };
            let answer = frame::exchange(&mut stream, parts, max).await?;
            Ok((stream, answer))
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(Ok((stream, answer))) => {
                self.stream = Some(stream);
                Ok(answer)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(CallError::Timeout(timeout)),
        }
    }

    /// Opens a stream and exchanges `Hello`. A stream that ends before the peer's `Hello` is tried again: nothing
    /// was asked on it yet, and the peer's swarm drops a stream when two come at the same moment.
    async fn open(&mut self) -> Result<Stream, CallError> {
        let mut attempt = 1;
        loop {
            let member = self.shared.directory.read().get(self.target).map(|member| member.peer);
            let peer = member.ok_or(CallError::Unreachable(self.target))?;
            match self.try_open(peer).await {
                Err(CallError::Closed(_)) if attempt < OPEN_ATTEMPTS_MAX && self.shared.connected(self.target) => {
                    tokio::time::sleep(REOPEN_PAUSE * 2_u32.pow(attempt)).await;
                    attempt += 1;
                }
                Err(CallError::Refused(reason)) => {
                    if self.shared.complaints.due(peer, "refused us") {
                        let channel = self.channel.name();
                        tracing::warn!(node = %self.target, %peer, channel, reason, "no stream to this member");
                    }
                    return Err(CallError::Refused(reason));
                }
                result => return result,
            }
        }
    }

    async fn try_open(&mut self, peer: PeerId) -> Result<Stream, CallError> {
        let log = self.shared.log.get().ok_or(CallError::Unreachable(self.target))?;
        // Before the member is asked anything, so that its log cannot end below it unless something was lost.
        let acknowledged = log.acknowledged(self.target);
        let protocol = self.shared.identity.protocol(self.channel);
        let mut stream = self.control.open_stream(peer, protocol).await.map_err(|error| match error {
            OpenStreamError::UnsupportedProtocol(protocol) => CallError::Refused(format!(
                "node {} does not serve {protocol} here: it is still starting, this node is not a member there, or it \
                 belongs to another network",
                self.target
            )),
            other => CallError::Closed(other.to_string()),
        })?;
        let hello = frame::read(&mut stream, HELLO_BYTES_MAX).await?;
        if let Err(reason) = self.check(&hello, acknowledged)? {
            // It is told, because it may never ask us itself. The refusal is all that it gets, and it may be gone.
            let _ = frame::refuse(&mut stream, &reason).await;
            return Err(CallError::Refused(reason));
        }
        let own = Bytes::from(self.shared.identity.hello(log.last_index()).encode_to_vec());
        match frame::exchange(&mut stream, &[own], 0).await {
            Ok(_accepted) => {
                self.shared.refusals.clear(self.target);
                Ok(stream)
            }
            Err(FrameError::Refused(reason)) => {
                self.shared.refused_by(self.target, &reason);
                Err(CallError::Refused(reason))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What is wrong with the member's `Hello`.
    fn check(&self, hello: &Bytes, acknowledged: u64) -> Result<Result<(), String>, CallError> {
        let hello = proto::Hello::decode(&hello[..]).map_err(|error| CallError::Closed(error.to_string()))?;
        let directory = self.shared.directory.read();
        let member = directory.get(self.target).ok_or(CallError::Unreachable(self.target))?;
        Ok(self.shared.identity.check(&hello, member, acknowledged))
    }
}
