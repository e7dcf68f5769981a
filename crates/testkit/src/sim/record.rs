//! What is seen of a run while it goes on: calls of clients, and where nodes were.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lockstep_types::{Batch, ContentId, Height, NodeId};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::order::{Ban, Call, FeedPage, Promise, Sighting, Told};

/// All that was seen.
#[derive(Default)]
pub struct Seen {
    /// Calls of clients.
    pub calls: Vec<Call>,
    /// Where nodes were.
    pub sightings: Vec<Sighting>,
    /// What went wrong by itself.
    pub troubles: Vec<(Promise, String)>,
    /// Pages of the feed, of each reader.
    pub feeds: Vec<Vec<FeedPage>>,
    /// Which devices were not allowed where.
    pub bans: Vec<Ban>,
    /// What the registry has to be.
    pub registry: Option<String>,
    /// Every batch that was seen, where nodes forget them.
    pub batches: BTreeMap<Height, Batch>,
}

/// See the module's documentation. Clones share it.
#[derive(Clone)]
pub struct Record {
    start: Instant,
    inner: Arc<Mutex<Seen>>,
}

impl Record {
    /// An empty one, that begins now.
    pub fn new() -> Self {
        Self { start: Instant::now(), inner: Arc::default() }
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

    /// Batches that a node has, and may forget.
    pub fn keep(&self, node: NodeId, batches: Vec<Batch>) {
        let mut inner = self.inner.lock();
        let Seen { batches: kept, troubles, .. } = &mut *inner;
        for batch in batches {
            let height = batch.header.height;
            if kept.entry(height).or_insert_with(|| batch.clone()) != &batch {
                troubles.push((Promise::Agreement, format!("node {node} had another batch at {height} than others")));
            }
        }
    }

    /// Something went wrong by itself.
    pub fn trouble(&self, promise: Promise, what: String) {
        self.inner.lock().troubles.push((promise, what));
    }

    /// The greatest height that any node was seen at.
    pub fn newest(&self) -> Height {
        self.inner.lock().sightings.iter().map(|seen| seen.height).max().unwrap_or_default()
    }

    /// Devices were not allowed.
    pub fn ban(&self, bans: Vec<Ban>) {
        self.inner.lock().bans.extend(bans);
    }

    /// The last of it, and what the registry has to be from now on.
    pub fn registry(&self, bans: Vec<Ban>, registry: String) {
        self.ban(bans);
        self.inner.lock().registry = Some(registry);
    }

    /// A reader got a page.
    pub fn read(&self, reader: usize, page: FeedPage) {
        let feeds = &mut self.inner.lock().feeds;
        if feeds.len() <= reader {
            feeds.resize_with(reader + 1, Vec::new);
        }
        feeds[reader].push(page);
    }

    /// The newest task that a reader has.
    pub fn last_read(&self, reader: usize) -> Option<lockstep_types::TaskNumber> {
        let inner = self.inner.lock();
        let pages = inner.feeds.get(reader)?.iter().rev();
        pages.filter_map(|page| page.tasks.last()).map(|(number, ..)| *number).next()
    }

    /// All of it.
    pub fn take(&self) -> Seen {
        std::mem::take(&mut *self.inner.lock())
    }
}

impl Default for Record {
    fn default() -> Self {
        Self::new()
    }
}
