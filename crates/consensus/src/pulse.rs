//! Whether raft's task moves: it is asked something small again and again, and this remembers since when it owes the
//! answer. It stands still while it waits for the disk, and what it said last of the network says nothing then.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::raft_types::Raft;

/// See the module's documentation. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pulse(Arc<Mutex<Option<Instant>>>);

impl Pulse {
    /// Asks every `interval` until `stop`, or until raft has ended.
    pub async fn run(&self, raft: &Raft, interval: Duration, stop: CancellationToken) {
        while tokio::time::timeout(interval, stop.cancelled()).await.is_err() {
            *self.0.lock() = Some(Instant::now());
            tokio::select! {
                () = stop.cancelled() => return,
                answer = raft.with_raft_state(|_| ()) => if answer.is_err() { return },
            }
            *self.0.lock() = None;
        }
    }

    /// How long raft's task has owed an answer.
    pub fn silence(&self) -> Option<Duration> {
        self.0.lock().map(|asked| asked.elapsed())
    }
}
