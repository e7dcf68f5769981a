//! Messages on their way into the stream, each only right behind the one before.

use std::collections::VecDeque;
use std::error::Error as _;
use std::time::Duration;

use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::{self, ErrorCode, message::PublishMessage};
use bytes::Bytes;

use super::mark::Mark;
use super::session::{Session, reason};

/// Messages that wait for their acknowledgement at a time.
pub(super) const IN_FLIGHT_MAX: usize = 512;
/// Their bytes (one message may exceed it).
const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// How often, and how long, a stream is waited for that no server has.
const ABSENT_ATTEMPTS_MAX: usize = 20;
/// See [`ABSENT_ATTEMPTS_MAX`].
const ABSENT_PAUSE: Duration = Duration::from_millis(100);
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
            while waiting.len() >= IN_FLIGHT_MAX || bytes + message.payload.len() > IN_FLIGHT_BYTES_MAX {
                let Some(sent) = waiting.pop_front() else { break };
                bytes -= confirm(sent).await?;
            }
            let before = last + index as u64;
            if index == 0 {
                self.append_first(before, message).await?;
                continue;
            }
            let ack = self.send(before, message).await.map_err(|e| broken(index, &e))?;
            bytes += message.payload.len();
            waiting.push_back(Sent { index, before, bytes: message.payload.len(), ack });
        }
        for sent in waiting {
            confirm(sent).await?;
        }
        Ok(())
    }

    /// A server may hear of a new stream, or of its new leader, a little later than the one that answered for it: until
    /// then nobody takes the message.
    async fn append_first(&self, before: u64, message: &Message) -> Result<(), Broken> {
        for _ in 0..ABSENT_ATTEMPTS_MAX {
            let answer = match self.send(before, message).await {
                Ok(ack) => ack.await,
                Err(error) => Err(error),
            };
            match answer {
                Err(error) if error.kind() == PublishErrorKind::StreamNotFound => {
                    tokio::time::sleep(ABSENT_PAUSE).await
                }
                Err(error) => return Err(broken(0, &error)),
                Ok(ack) => return right_behind(&ack, before),
            }
        }
        Err(Broken::Unknown("no server takes messages for the stream".to_owned()))
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
    before: u64,
    bytes: usize,
    ack: PublishAckFuture,
}

/// Waits for an acknowledgement. A message that the server took for a copy is somewhere else, or nowhere any more.
async fn confirm(sent: Sent) -> Result<usize, Broken> {
    let ack = sent.ack.await.map_err(|e| broken(sent.index, &e))?;
    right_behind(&ack, sent.before).map(|()| sent.bytes)
}

fn right_behind(ack: &PublishAck, before: u64) -> Result<(), Broken> {
    if ack.duplicate || ack.sequence != before + 1 { Err(Broken::Elsewhere) } else { Ok(()) }
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
