//! How much is taken in at a time, requests under way and bytes of their bodies, and how much of the answers waits to be
//! taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, HttpBody as _};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::options::Options;
use crate::problem::Problem;
use axum::http::StatusCode;

/// Large answers that are put together at a time; others wait.
const LARGE_ANSWERS_MAX: usize = 2;
/// Large answers that wait for that, or are put together: few of the places for reads, so that other readers have theirs.
const LARGE_ANSWERS_WAITING_MAX: usize = 64;

/// Counts what is under way.
pub(crate) struct Admission {
    submits: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    feeds: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    large: Arc<Semaphore>,
    large_waiting: Arc<Semaphore>,
    body_bytes: AtomicUsize,
    answer_bytes: Arc<AtomicUsize>,
}

impl Admission {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            submits: Arc::new(Semaphore::new(options.submits_max.min(Semaphore::MAX_PERMITS))),
            streams: Arc::new(Semaphore::new(options.submit_streams_max.min(Semaphore::MAX_PERMITS))),
            feeds: Arc::new(Semaphore::new(options.feeds_max.min(Semaphore::MAX_PERMITS))),
            reads: Arc::new(Semaphore::new(options.reads_max.min(Semaphore::MAX_PERMITS))),
            large: Arc::new(Semaphore::new(LARGE_ANSWERS_MAX)),
            large_waiting: Arc::new(Semaphore::new(LARGE_ANSWERS_WAITING_MAX)),
            body_bytes: AtomicUsize::new(0),
            answer_bytes: Arc::default(),
        }
    }

    /// A place for one message that waits for its position.
    pub(crate) fn submit(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let permit = Arc::clone(&self.submits).try_acquire_owned();
        permit.map_err(|_| Problem::busy("too many messages are waiting on this node, try again later"))
    }

    /// Places for `count` messages more: all, or none.
    pub(crate) fn submit_more(&self, count: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let places = u32::try_from(count).ok();
        let permit = places.and_then(|places| Arc::clone(&self.submits).try_acquire_many_owned(places).ok());
        permit.ok_or_else(|| Problem::busy("too many messages are waiting on this node, try again later"))
    }

    /// A place for one stream of messages.
    pub(crate) fn stream(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let permit = Arc::clone(&self.streams).try_acquire_owned();
        permit.map_err(|_| Problem::busy("too many streams are open on this node, try another one"))
    }

    /// A place for one reader of a feed.
    pub(crate) fn feed(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let permit = Arc::clone(&self.feeds).try_acquire_owned();
        permit.map_err(|_| Problem::busy("too many feeds are open on this node, try another one"))
    }

    /// Room in memory for what came in by another way than a body.
    pub(crate) fn hold(&self, options: &Options, bytes: usize) -> Result<HeldBody<'_>, Problem> {
        let mut held = HeldBody { bytes: Bytes::new(), counter: &self.body_bytes, counted: 0 };
        if !held.count(bytes, options.bodies_bytes_max) {
            return Err(Problem::busy("too many bytes are coming in at the moment, try again later"));
        }
        Ok(held)
    }

    /// A place for one read.
    pub(crate) fn read(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let permit = Arc::clone(&self.reads).try_acquire_owned();
        permit.map_err(|_| Problem::busy("too many reads are under way on this node, try again later"))
    }

    /// A turn to read and write a large answer: its readers wait for each other, and devices for none of them.
    pub(crate) async fn large(&self) -> Result<Turn, Problem> {
        let place = Arc::clone(&self.large_waiting).try_acquire_owned();
        let place = place.map_err(|_| Problem::busy("too many large reads wait on this node, try again later"))?;
        let permit = Arc::clone(&self.large).acquire_owned().await;
        let permit = permit.map_err(|_| Problem::busy("this node is stopping, try another one"))?;
        Ok(Turn { _permits: [permit, place] })
    }

    /// A large answer, whose bytes count until its client has taken them or its connection is gone: who asks for much
    /// and reads nothing of it must not fill the memory.
    pub(crate) fn answer(&self, options: &Options, bytes: Vec<u8>) -> Result<Bytes, Problem> {
        let before = self.answer_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        let total = before.saturating_add(bytes.len());
        let answer = HeldAnswer { bytes, counter: Arc::clone(&self.answer_bytes) };
        if total > options.answers_bytes_max {
            return Err(Problem::busy("too many large answers wait to be read on this node, try again later"));
        }
        Ok(Bytes::from_owner(answer))
    }

    /// Reads a request's body whole, within the limits on size, time and memory. Memory grows with what came in,
    /// never with what the client says will come.
    pub(crate) async fn read_body(&self, options: &Options, body: Body) -> Result<HeldBody<'_>, Problem> {
        self.read_body_of(options, options.body_bytes_max, body).await
    }

    /// The same for a body that may have `bytes_max` bytes.
    pub(crate) async fn read_body_of(
        &self,
        options: &Options,
        bytes_max: usize,
        body: Body,
    ) -> Result<HeldBody<'_>, Problem> {
        if body.size_hint().lower() > bytes_max as u64 {
            return Err(Problem::too_large(bytes_max).closing());
        }
        match tokio::time::timeout(options.body_read_timeout(), self.collect(options, bytes_max, body)).await {
            Ok(result) => result,
            Err(_) => {
                let error = "the request's body did not come in within the time allowed";
                Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", error).closing())
            }
        }
    }

    async fn collect(&self, options: &Options, bytes_max: usize, mut body: Body) -> Result<HeldBody<'_>, Problem> {
        let mut held = HeldBody { bytes: Bytes::new(), counter: &self.body_bytes, counted: 0 };
        let mut joined = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::invalid("the request's body broke off").closing())?;
            let Ok(data) = frame.into_data() else { continue };
            if held.counted + data.len() > bytes_max {
                return Err(Problem::too_large(bytes_max).closing());
            }
            if !held.count(data.len(), options.bodies_bytes_max) {
                return Err(Problem::busy("too many bytes are coming in at the moment, try again later").closing());
            }
            if held.bytes.is_empty() {
                // Mostly there is one frame only: no copy.
                held.bytes = data;
            } else {
                if joined.is_empty() {
                    joined.extend_from_slice(&held.bytes);
                }
                joined.extend_from_slice(&data);
            }
        }
        if !joined.is_empty() {
            held.bytes = joined.freeze();
        }
        Ok(held)
    }
}

/// Whose large answer is put together; given back when it is dropped.
pub(crate) struct Turn {
    _permits: [OwnedSemaphorePermit; 2],
}

/// An answer in memory; its bytes count until it is dropped, which is when the socket has the last of them.
struct HeldAnswer {
    bytes: Vec<u8>,
    counter: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for HeldAnswer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for HeldAnswer {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// A body in memory; its bytes count until it is dropped.
pub(crate) struct HeldBody<'a> {
    pub(crate) bytes: Bytes,
    counter: &'a AtomicUsize,
    counted: usize,
}

impl HeldBody<'_> {
    fn count(&mut self, bytes: usize, bytes_max: usize) -> bool {
        let before = self.counter.fetch_add(bytes, Ordering::Relaxed);
        self.counted += bytes;
        before.saturating_add(bytes) <= bytes_max
    }
}

impl Drop for HeldBody<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn few_large_answers_are_made_some_wait_and_others_are_refused() {
        let admission = Admission::new(&Options::default());
        let made: Vec<Turn> = (0..LARGE_ANSWERS_MAX)
            .map(|_| admission.large().now_or_never().expect("nobody is before it").expect("there is room"))
            .collect();
        let mut waiting: Vec<_> =
            (made.len()..LARGE_ANSWERS_WAITING_MAX).map(|_| Box::pin(admission.large())).collect();
        assert!(waiting.iter_mut().all(|turn| turn.as_mut().now_or_never().is_none()));
        let refused = || admission.large().now_or_never().is_some_and(|turn| turn.is_err());
        assert!(refused());
        // Who leaves makes room, waiting or not; the oldest is next.
        waiting.pop();
        assert!(!refused());
        drop(made);
        assert!(waiting[0].as_mut().now_or_never().is_some_and(|turn| turn.is_ok()));
        assert!(admission.read().is_ok(), "other reads have their places");
    }
}
