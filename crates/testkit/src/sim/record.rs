//! What is seen of a run while it goes on: calls of clients, and where nodes were.

use std::sync::Arc;
use std::time::Duration;

use lockstep_types::{ContentId, NodeId};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::order::{Call, Promise, Sighting, Told};

struct Inner {
    calls: Vec<Call>,
    sightings: Vec<Sighting>,
    troubles: Vec<(Promise, String)>,
}

/// See the module's documentation. Clones share it.
#[derive(Clone)]
pub struct Record {
    start: Instant,
    inner: Arc<Mutex<Inner>>,
}

impl Record {
    /// An empty one, that begins now.
    pub fn new() -> Self {
        let inner = Inner { calls: Vec::new(), sightings: Vec::new(), troubles: Vec::new() };
        Self { start: Instant::now(), inner: Arc::new(Mutex::new(inner)) }
    }

    /// Time since the beginning.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The same of another moment.
    pub fn at(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.start)
    }

    /// A call begins; the number is its own.
    pub fn invoke(&self, content: ContentId, node: NodeId) -> usize {
        let calls = &mut self.inner.lock().calls;
        // Under the lock, so that they are by ascending time.
        let invoked = self.start.elapsed();
        calls.push(Call { content, node, invoked, answered: None, told: Told::Unknown });
        calls.len() - 1
    }

    /// A call is answered.
    pub fn answer(&self, call: usize, told: Told) {
        let now = self.now();
        let call = &mut self.inner.lock().calls[call];
        (call.answered, call.told) = (Some(now), told);
    }

    /// When the first of the calls that began after a moment was answered with a place.
    pub fn first_answer_to_calls_after(&self, moment: Duration) -> Option<Duration> {
        let inner = self.inner.lock();
        let first = inner.calls.partition_point(|call| call.invoked <= moment);
        let placed = |call: &&Call| matches!(call.told, Told::Ordered { .. } | Told::Taken { .. });
        inner.calls[first..].iter().filter(placed).filter_map(|call| call.answered).min()
    }

    /// A node was seen.
    pub fn see(&self, sighting: Sighting) {
        self.inner.lock().sightings.push(sighting);
    }

    /// Something went wrong by itself.
    pub fn trouble(&self, promise: Promise, what: String) {
        self.inner.lock().troubles.push((promise, what));
    }

    /// All of it.
    pub fn take(&self) -> (Vec<Call>, Vec<Sighting>, Vec<(Promise, String)>) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        (std::mem::take(&mut inner.calls), std::mem::take(&mut inner.sightings), std::mem::take(&mut inner.troubles))
    }
}

impl Default for Record {
    fn default() -> Self {
        Self::new()
    }
}
