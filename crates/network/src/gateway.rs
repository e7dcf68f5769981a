//! Answers bundles of messages from gateways: boxes at sites, with keys of their own, that this node's operator admits.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures::AsyncWriteExt;
use libp2p::{PeerId, Stream};
use lockstep_types::Address;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::frame::{self, FrameError};
use crate::handle::Shared;
use crate::limits::{
    GATEWAY_ANSWER_BYTES_MAX, GATEWAY_REFUSALS_MAX, GATEWAY_REQUEST_BYTES_MAX, GATEWAY_STREAMS_MAX,
    GATEWAY_STREAMS_PER_PEER_MAX, GATEWAY_TIME_MAX,
};
use crate::metrics;

/// The channel's name in logs and metrics.
const NAME: &str = "gateway";

/// Answers gateways.
pub trait GatewayService: Send + Sync + 'static {
    /// Answers a bundle of the gateway whose connection proved a key with the address `from`, which is one of
    /// [`Options::gateways`](crate::Options::gateways). The future is dropped when
    /// [`GATEWAY_TIME_MAX`](crate::limits::GATEWAY_TIME_MAX) is over or the network stops.
    fn handle(&self, from: Address, request: Bytes) -> impl Future<Output = Bytes> + Send;
}

/// Why a bundle is not looked at. On the wire: the code, a colon, a space, and the sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GatewayRefusal {
    /// The operator has to admit the gateway.
    #[error("the operator of this node admits no gateway with this key")]
    NotAdmitted,
    /// Wait for an answer.
    #[error("{GATEWAY_STREAMS_PER_PEER_MAX} bundles of this gateway are under way already: wait for an answer")]
    TooMany,
    /// Try again, or elsewhere.
    #[error("too many bundles are under way on this node: try again in a second, or at another node")]
    Busy,
    /// Send it in parts.
    #[error("a bundle has at most {GATEWAY_REQUEST_BYTES_MAX} bytes: send it in parts")]
    TooLarge,
}

impl GatewayRefusal {
    const ALL: [Self; 4] = [Self::NotAdmitted, Self::TooMany, Self::Busy, Self::TooLarge];

    /// The word for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotAdmitted => "not_admitted",
            Self::TooMany => "too_many",
            Self::Busy => "busy",
            Self::TooLarge => "too_large",
        }
    }

    fn text(self) -> String {
        format!("{}: {self}", self.code())
    }

    /// Reads what a node said; `None` for words of a later version.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (code, _) = text.split_once(": ")?;
        Self::ALL.into_iter().find(|refusal| refusal.code() == code)
    }
}

/// The bundles that are under way, by gateway and in all.
struct Places {
    all: Arc<Semaphore>,
    /// At most one entry for each admitted gateway.
    of: Mutex<HashMap<Address, Arc<Semaphore>>>,
}

impl Places {
    fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(GATEWAY_STREAMS_MAX)), of: Mutex::default() }
    }

    fn take(&self, gateway: Address) -> Result<[OwnedSemaphorePermit; 2], GatewayRefusal> {
        let mut of = self.of.lock();
        let own = of.entry(gateway).or_insert_with(|| Arc::new(Semaphore::new(GATEWAY_STREAMS_PER_PEER_MAX)));
        let own = own.clone().try_acquire_owned().map_err(|_| GatewayRefusal::TooMany)?;
        let all = self.all.clone().try_acquire_owned().map_err(|_| GatewayRefusal::Busy)?;
        Ok([own, all])
    }
}

/// Takes in bundles until the network stops.
pub(crate) async fn accept<S: GatewayService>(
    shared: Arc<Shared>,
    mut streams: mpsc::Receiver<(PeerId, Stream)>,
    service: S,
) {
    let (service, places) = (Arc::new(service), Places::new());
    let refusals = Arc::new(Semaphore::new(GATEWAY_REFUSALS_MAX));
    loop {
        let next = tokio::select! {
            () = shared.stopped.cancelled() => return,
            next = streams.recv() => next,
        };
        let Some((peer, mut stream)) = next else { return };
        let gateway = shared.directory.read().gateway(&peer).ok_or(GatewayRefusal::NotAdmitted);
        let admitted = gateway.and_then(|gateway| Ok((gateway, places.take(gateway)?)));
        let (service, stopped) = (service.clone(), shared.stopped.clone());
        match admitted {
            Ok((gateway, places)) => shared.tasks.spawn(async move {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = serve(gateway, stream, &*service) => {}
                }
                drop(places);
            }),
            Err(refusal) => {
                metrics::stream_error(NAME, "server", "refused");
                if refusal == GatewayRefusal::NotAdmitted && shared.complaints.due(peer, "no gateway") {
                    tracing::debug!(%peer, "a key that is not admitted sent a bundle as a gateway");
                }
                let Ok(place) = refusals.clone().try_acquire_owned() else { continue };
                shared.tasks.spawn(async move {
                    let text = refusal.text();
                    tokio::select! {
                        () = stopped.cancelled() => {}
                        _ = tokio::time::timeout(GATEWAY_TIME_MAX, frame::refuse(&mut stream, &text)) => {}
                    }
                    drop(place);
                })
            }
        };
    }
}

async fn serve<S: GatewayService>(gateway: Address, stream: Stream, service: &S) {
    let result = tokio::time::timeout(GATEWAY_TIME_MAX, answer(gateway, stream, service)).await;
    if let Err(error) = result.unwrap_or(Err(FrameError::Late)) {
        metrics::stream_error(NAME, "server", error.kind());
        tracing::debug!(%gateway, %error, "bundle of a gateway ended");
    }
}

async fn answer<S: GatewayService>(gateway: Address, mut stream: Stream, service: &S) -> Result<(), FrameError> {
    let request = match frame::read(&mut stream, GATEWAY_REQUEST_BYTES_MAX).await {
        Err(error @ FrameError::TooLarge { .. }) => {
            frame::refuse(&mut stream, &GatewayRefusal::TooLarge.text()).await?;
            return Err(error);
        }
        other => other?,
    };
    let answer = service.handle(gateway, request).await;
    let bytes = answer.len() as u64;
    if bytes > GATEWAY_ANSWER_BYTES_MAX {
        let error = FrameError::TooLarge { bytes, max: GATEWAY_ANSWER_BYTES_MAX };
        tracing::warn!(%gateway, %error, "an answer to a gateway was not sent");
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
    fn a_gateway_has_few_places_and_all_together_have_a_bound() {
        let (places, mut held) = (Places::new(), Vec::new());
        for gateway in 0..(GATEWAY_STREAMS_MAX / GATEWAY_STREAMS_PER_PEER_MAX) as u8 {
            for _ in 0..GATEWAY_STREAMS_PER_PEER_MAX {
                held.push(places.take(Address([gateway; 20])).unwrap());
            }
            assert_eq!(places.take(Address([gateway; 20])).unwrap_err(), GatewayRefusal::TooMany);
        }
        assert_eq!(places.take(Address([99; 20])).unwrap_err(), GatewayRefusal::Busy);
        held.pop();
        assert!(places.take(Address([99; 20])).is_ok());
    }

    #[test]
    fn refusals_read_back_by_their_code() {
        for refusal in GatewayRefusal::ALL {
            assert_eq!(GatewayRefusal::read(&refusal.text()), Some(refusal));
        }
        assert_eq!(GatewayRefusal::read("unheard_of: no"), None);
    }
}
