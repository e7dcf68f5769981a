//! The answering side of streams.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use libp2p::{PeerId, Stream};
use libp2p_stream::IncomingStreams;
use lockstep_types::{NodeId, proto};
use parking_lot::Mutex;
use prost::Message;

use crate::frame::{self, FrameError};
use crate::handle::Shared;
use crate::hello::Channel;
use crate::limits::{FRAME_TIMEOUT, HELLO_BYTES_MAX, HELLO_TIMEOUT, INBOUND_STREAMS_PER_PEER_MAX};
use crate::metrics;

/// Answers requests of members. The requests of one stream come one after the other, those of several at once.
/// A request is carried out to its end even where the asker has given up meanwhile; only the stop of the network
/// drops it.
pub trait Service: Send + Sync + 'static {
    /// Answers `request` of the member `from`, whose key and store were checked when its stream began.
    fn handle(&self, from: NodeId, request: Bytes) -> impl Future<Output = Bytes> + Send;
}

/// Why a channel cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    /// Another service has the channel; a mistake in the program.
    #[error("the {0} channel has a service already")]
    AlreadyServed(&'static str),
}

/// How many streams each peer has open; shared by the streams of one channel.
#[derive(Debug, Default)]
struct Open(Mutex<HashMap<PeerId, usize>>);

/// One stream's place in [`Open`].
struct Place {
    open: Arc<Open>,
    peer: PeerId,
}

impl Open {
    fn enter(self: &Arc<Self>, peer: PeerId) -> Option<Place> {
        let mut open = self.0.lock();
        let count = open.entry(peer).or_default();
        if *count >= INBOUND_STREAMS_PER_PEER_MAX {
            return None;
        }
        *count += 1;
        Some(Place { open: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.0.lock();
        if let Some(count) = open.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.peer);
            }
        }
    }
}

/// Takes in streams until the network stops. It never waits for one of them: the swarm drops a stream that finds the
/// one before it not yet taken.
pub(crate) async fn accept<S: Service>(
    shared: Arc<Shared>,
    channel: Channel,
    mut incoming: IncomingStreams,
    service: S,
) {
    let (service, open) = (Arc::new(service), Arc::new(Open::default()));
    loop {
        let next = tokio::select! {
            () = shared.stopped.cancelled() => return,
            next = incoming.next() => next,
        };
        let Some((peer, stream)) = next else { return };
        let place = open.enter(peer);
        let (shared, service) = (shared.clone(), service.clone());
        shared.tasks.clone().spawn(async move {
            let talk = talk(&shared, channel, peer, place.is_some(), stream, &*service);
            let result = tokio::select! {
                () = shared.stopped.cancelled() => return,
                result = talk => result,
            };
            match result {
                Ok(()) | Err(FrameError::Closed) => {}
                Err(error) => {
                    metrics::stream_error(channel.name(), "server", error.kind());
                    tracing::debug!(%peer, channel = channel.name(), %error, "stream ended");
                }
            }
            drop(place);
        });
    }
}

/// One stream, from its `Hello` to its end.
async fn talk<S: Service>(
    shared: &Shared,
    channel: Channel,
    peer: PeerId,
    has_place: bool,
    mut stream: Stream,
    service: &S,
) -> Result<(), FrameError> {
    let greeting = in_time(HELLO_TIMEOUT, greet(shared, peer, has_place, &mut stream)).await?;
    let node = match greeting {
        Ok(node) => node,
        Err(reason) => {
            if shared.complaints.due(peer, "refused by us") {
                tracing::warn!(%peer, channel = channel.name(), reason, "refused a stream");
            }
            metrics::stream_error(channel.name(), "server", "refused");
            return in_time(HELLO_TIMEOUT, frame::refuse(&mut stream, &reason)).await;
        }
    };
    // An empty frame: accepted.
    in_time(HELLO_TIMEOUT, frame::write(&mut stream, &[])).await?;
    shared.refusals.clear(node);
    let max = shared.frame_max(channel);
    loop {
        let request = match frame::read(&mut stream, max).await {
            Ok(request) => request,
            Err(error @ FrameError::TooLarge { .. }) => {
                in_time(HELLO_TIMEOUT, frame::refuse(&mut stream, &error.to_string())).await?;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        // A connection may take a while to close after its member was removed.
        if shared.directory.read().by_peer(&peer).is_none_or(|member| member.node != node) {
            return in_time(HELLO_TIMEOUT, frame::refuse(&mut stream, "not a member any more")).await;
        }
        let answer = service.handle(node, request).await;
        let bytes = answer.len() as u64;
        if bytes > max {
            let error = FrameError::TooLarge { bytes, max };
            in_time(HELLO_TIMEOUT, frame::refuse(&mut stream, &format!("the answer is {error}"))).await?;
            return Err(error);
        }
        in_time(FRAME_TIMEOUT, frame::write(&mut stream, &[answer])).await?;
    }
}

/// Says who we are, hears who the peer is, and tells which member that is, or why it is refused. What speaks against
/// the stream and not against the member is said before our `Hello`: the peer takes no note of that.
async fn greet(
    shared: &Shared,
    peer: PeerId,
    has_place: bool,
    stream: &mut Stream,
) -> Result<Result<NodeId, String>, FrameError> {
    if !has_place {
        return Ok(Err(format!("{INBOUND_STREAMS_PER_PEER_MAX} streams are open already")));
    }
    let Some(log) = shared.log.get() else { return Ok(Err("this node is still starting".into())) };
    let Some(member) = shared.directory.read().by_peer(&peer).cloned() else { return Ok(Err("not a member".into())) };
    // Before our Hello, to which the peer's is the answer: its log cannot end below it unless something was lost.
    let acknowledged = log.acknowledged(member.node);
    let own = Bytes::from(shared.identity.hello(log.last_index()).encode_to_vec());
    let hello = match frame::exchange(stream, &[own], HELLO_BYTES_MAX).await {
        Err(FrameError::Refused(reason)) => {
            shared.refused_by(member.node, &reason);
            return Err(FrameError::Refused(reason));
        }
        other => other?,
    };
    let checked = match proto::Hello::decode(&hello[..]) {
        Ok(hello) => shared.identity.check(&hello, &member, acknowledged),
        Err(error) => Err(format!("not a Hello: {error}")),
    };
    Ok(checked.map(|()| member.node))
}

async fn in_time<T>(
    limit: std::time::Duration,
    work: impl Future<Output = Result<T, FrameError>>,
) -> Result<T, FrameError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(FrameError::Late))
}
