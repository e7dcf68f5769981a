//! Answers requests to join, from whoever has a key: few, small and seldom.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::AsyncWriteExt;
use libp2p::{PeerId, Stream};
use lockstep_types::PublicKey;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use crate::frame::{self, FrameError};
use crate::handle::Shared;
use crate::limits::{
    JOIN_ANSWER_BYTES_MAX, JOIN_INTERVAL, JOIN_KEYS_MAX, JOIN_REFUSALS_MAX, JOIN_REQUEST_BYTES_MAX, JOIN_STREAMS_MAX,
    JOIN_TIME_MAX,
};
use crate::metrics;
use crate::options::public_key;

/// The channel's name in logs and metrics.
const NAME: &str = "join";

/// Answers newcomers, and members that ask as one would.
pub trait JoinService: Send + Sync + 'static {
    /// Answers `request` of the one whose connection proved the key `from`, which may be anybody. The future is
    /// dropped when [`JOIN_TIME_MAX`] is over or the network stops.
    fn handle(&self, from: PublicKey, request: Bytes) -> impl Future<Output = Bytes> + Send;
}

/// When each key last asked. Bounded: a key is forgotten once it may ask again.
#[derive(Debug, Default)]
struct Recent(HashMap<PeerId, Instant>);

impl Recent {
    /// Takes note of a request, or says that it comes too soon.
    fn take(&mut self, peer: PeerId, now: Instant) -> Result<(), &'static str> {
        if self.0.len() >= JOIN_KEYS_MAX {
            self.0.retain(|_, last| now.saturating_duration_since(*last) < JOIN_INTERVAL);
        }
        match self.0.get(&peer) {
            Some(last) if now.saturating_duration_since(*last) < JOIN_INTERVAL => {
                Err("one request a second is answered: ask again in a second")
            }
            None if self.0.len() >= JOIN_KEYS_MAX => Err("too many ask at the moment: ask again in a few seconds"),
            _ => {
                self.0.insert(peer, now);
                Ok(())
            }
        }
    }
}

/// Takes in requests until the network stops.
pub(crate) async fn accept<S: JoinService>(
    shared: Arc<Shared>,
    mut streams: mpsc::Receiver<(PeerId, Stream)>,
    service: S,
) {
    let (service, recent) = (Arc::new(service), Mutex::new(Recent::default()));
    let (answers, refusals) = (Arc::new(Semaphore::new(JOIN_STREAMS_MAX)), Arc::new(Semaphore::new(JOIN_REFUSALS_MAX)));
    loop {
        let next = tokio::select! {
            () = shared.stopped.cancelled() => return,
            next = streams.recv() => next,
        };
        let Some((peer, mut stream)) = next else { return };
        let place = match answers.clone().try_acquire_owned() {
            Ok(place) => recent.lock().take(peer, Instant::now()).map(|()| place),
            Err(_) => Err("too many ask at the moment: ask again in a few seconds"),
        };
        let (service, stopped) = (service.clone(), shared.stopped.clone());
        match place {
            Ok(place) => shared.tasks.spawn(async move {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = serve(peer, stream, &*service) => {}
                }
                drop(place);
            }),
            Err(reason) => {
                metrics::stream_error(NAME, "server", "refused");
                let Ok(place) = refusals.clone().try_acquire_owned() else { continue };
                shared.tasks.spawn(async move {
                    tokio::select! {
                        () = stopped.cancelled() => {}
                        _ = tokio::time::timeout(JOIN_TIME_MAX, frame::refuse(&mut stream, reason)) => {}
                    }
                    drop(place);
                })
            }
        };
    }
}

async fn serve<S: JoinService>(peer: PeerId, stream: Stream, service: &S) {
    let result = tokio::time::timeout(JOIN_TIME_MAX, answer(peer, stream, service)).await;
    if let Err(error) = result.unwrap_or(Err(FrameError::Late)) {
        metrics::stream_error(NAME, "server", error.kind());
        tracing::debug!(%peer, %error, "request to join ended");
    }
}

async fn answer<S: JoinService>(peer: PeerId, mut stream: Stream, service: &S) -> Result<(), FrameError> {
    let request = match frame::read(&mut stream, JOIN_REQUEST_BYTES_MAX).await {
        Err(error @ FrameError::TooLarge { .. }) => {
            frame::refuse(&mut stream, &error.to_string()).await?;
            return Err(error);
        }
        other => other?,
    };
    let Some(from) = public_key(&peer) else {
        return frame::refuse(&mut stream, "the key is not a secp256k1 key").await;
    };
    let answer = service.handle(from, request).await;
    let bytes = answer.len() as u64;
    if bytes > JOIN_ANSWER_BYTES_MAX {
        let error = FrameError::TooLarge { bytes, max: JOIN_ANSWER_BYTES_MAX };
        tracing::warn!(%peer, %error, "an answer to a request to join was not sent");
        frame::refuse(&mut stream, &format!("the answer is {error}")).await?;
        return Err(error);
    }
    frame::write(&mut stream, &[answer]).await?;
    Ok(stream.close().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_asks_once_a_second_and_all_keys_together_are_bounded() {
        let (mut recent, start, peer) = (Recent::default(), Instant::now(), PeerId::random());
        assert!(recent.take(peer, start).is_ok());
        assert!(recent.take(peer, start + JOIN_INTERVAL / 2).is_err());
        assert!(recent.take(peer, start + JOIN_INTERVAL).is_ok(), "a refused request does not count");
        for _ in 1..JOIN_KEYS_MAX {
            assert!(recent.take(PeerId::random(), start + JOIN_INTERVAL).is_ok());
        }
        assert!(recent.take(PeerId::random(), start + JOIN_INTERVAL).is_err());
        assert_eq!(recent.0.len(), JOIN_KEYS_MAX);
        assert!(recent.take(PeerId::random(), start + JOIN_INTERVAL * 2).is_ok());
        assert_eq!(recent.0.len(), 1);
    }
}
