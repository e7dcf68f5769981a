//! Messages on their way into the stream, each only right behind the one before.

use std::collections::VecDeque;
use std::error::Error as _;

use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::{self, ErrorCode, message::PublishMessage};
use bytes::Bytes;

use super::mark::Mark;
use super::session::{Session, reason};

/// Messages that wait for their acknowledgement at a time.
pub(super) const IN_FLIGHT_MAX: usize = 512;
/// Their bytes (one message may exceed it).
const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// "Wrong last sequence" of servers that do not tell the right one.
const WRONG_LAST_SEQUENCE: ErrorCode = ErrorCode(10164);

/// A message before it is known where it comes.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub subject: String,
    pub mark: Mark,
    pub payload: Bytes,
}

/// Why not all messages are there. Those before the first that failed may be.
#[derive(Debug)]
pub(super) enum Broken {
    /// The stream does not end where it was believed to.
    Elsewhere,
    /// The server never takes this message, the index of which it is.
    Refused(usize, String),
    /// Anything may have happened.
    Unknown(String),
}

impl Session {
    /// Puts messages right behind the message `last`, in order. Each says what has to be before it, so that nothing
    /// comes twice, between, or without those before it, whatever becomes of answers and connections. The first is
    /// waited for alone: where the stream has gone on, a copy of it that the server remembers must not let the others in.
    pub async fn append(&self, last: u64, messages: &[Message]) -> Result<(), Broken> {
        let (mut waiting, mut bytes) = (VecDeque::new(), 0);
        for (index, message) in messages.iter().enumerate() {
            let in_flight_max = if index <= 1 { 1 } else { IN_FLIGHT_MAX };
            while waiting.len() >= in_flight_max || bytes + message.payload.len() > IN_FLIGHT_BYTES_MAX {
                let Some(sent) = waiting.pop_front() else { break };
                bytes -= confirm(sent).await?;
            }
            let before = last + index as u64;
            let ack = self.send(before, message).await.map_err(|e| broken(index, &e))?;
            bytes += message.payload.len();
            waiting.push_back(Sent { index, sequence: before + 1, bytes: message.payload.len(), ack });
        }
        for sent in waiting {
            confirm(sent).await?;
        }
        Ok(())
    }

    async fn send(&self, before: u64, message: &Message) -> Result<PublishAckFuture, PublishError> {
        let publish = PublishMessage::build()
            .headers(message.mark.headers())
            .expected_last_sequence(before)
            .expected_stream(&self.name)
            .payload(message.payload.clone());
        self.context.send_publish(message.subject.clone(), publish).await
    }
}

/// A message that waits.
struct Sent {
    index: usize,
    sequence: u64,
    bytes: usize,
    ack: PublishAckFuture,
}

/// Waits for an acknowledgement. A message that the server took for a copy is somewhere else, or nowhere any more.
async fn confirm(sent: Sent) -> Result<usize, Broken> {
    let ack = sent.ack.await.map_err(|e| broken(sent.index, &e))?;
    if ack.duplicate || ack.sequence != sent.sequence { Err(Broken::Elsewhere) } else { Ok(sent.bytes) }
}

fn broken(index: usize, error: &PublishError) -> Broken {
    let code = error.source().and_then(|e| e.downcast_ref::<jetstream::Error>()).map(jetstream::Error::error_code);
    match (error.kind(), code) {
        (PublishErrorKind::WrongLastSequence, _) => Broken::Elsewhere,
        (_, Some(ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT | WRONG_LAST_SEQUENCE)) => Broken::Elsewhere,
        (PublishErrorKind::MaxPayloadExceeded, _) | (_, Some(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM)) => {
            Broken::Refused(index, reason(error))
        }
        _ => Broken::Unknown(reason(error)),
    }
}
