//! The leader's part: proposes what waits in its pool, again and again. One message alone does not wait for company;
//! while proposals are under way the next batch fills. A new leader proposes nothing before it has applied the first entry
//! of its term, and with it all that it inherited: what is ordered by then is out of its pool.

use std::sync::Arc;
use std::time::Duration;

use lockstep_consensus::{Consensus, ProposeError};
use lockstep_ledger::{Aged, GroupClosing, GroupKey, Projects, encode_batch};
use lockstep_types::{Height, NodeId};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::limits::{PROPOSALS_MAX, RETENTION_INTERVAL, TICK};
use crate::mempool::Mempool;
use crate::metrics;
use crate::tracker::Tracker;

/// Pause before a leader that cannot commit tries again.
const NOT_READY_PAUSE: Duration = Duration::from_millis(10);

pub(crate) struct Proposer {
    pub mempool: Mempool,
    pub consensus: Consensus,
    pub tracker: Arc<Tracker>,
    pub projects: watch::Receiver<Projects>,
    /// Set while nothing may be acknowledged.
    pub conflict: watch::Receiver<Option<(NodeId, Height)>>,
}

impl Proposer {
    pub async fn run(self, stop: CancellationToken) {
        let (mut status, mut conflict) = (self.consensus.status(), self.conflict.clone());
        let mut under_way: JoinSet<Option<ProposeError>> = JoinSet::new();
        loop {
            // What is not proposed is acknowledged by no node.
            let halted = conflict.borrow_and_update().is_some();
            let leads = status.borrow_and_update().may_propose() && !halted;
            let mut closing_at = None;
            if leads {
                closing_at = self.propose_all(&mut under_way);
            }
            let until_closing = closing_at.map_or(TICK, |at: Instant| at.saturating_duration_since(Instant::now()));
            // It may be asked for earlier meanwhile.
            let until_closing = until_closing.min(RETENTION_INTERVAL);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = status.changed() => if changed.is_err() { return },
                changed = conflict.changed() => if changed.is_err() { return },
                () = self.mempool.arrived.notified(), if leads && under_way.len() < PROPOSALS_MAX => {}
                () = tokio::time::sleep(until_closing), if leads && closing_at.is_some() => {}
                Some(ended) = under_way.join_next() => {
                    // Also where another node is about to lead: until it does, this one would try again without a pause.
                    if let Ok(Some(_)) = ended {
                        tokio::time::sleep(NOT_READY_PAUSE).await;
                    }
                }
            }
        }
    }

    /// Starts proposals while there is room; says when the next group becomes too old.
    fn propose_all(&self, under_way: &mut JoinSet<Option<ProposeError>>) -> Option<Instant> {
        let mut next_closing = None;
        while under_way.len() < PROPOSALS_MAX {
            let (closings, next) = self.tracker.due_closings(|key| self.age_max(key));
            next_closing = next;
            let messages = self.mempool.propose();
            if messages.is_empty() && closings.is_empty() {
                break;
            }
            under_way.spawn(propose(self.mempool.clone(), self.consensus.clone(), messages, closings));
        }
        next_closing
    }

    fn age_max(&self, key: &GroupKey) -> Duration {
        let projects = self.projects.borrow();
        let settings = projects.settings(key.project_id).unwrap_or(&projects.params().default_project);
        Duration::from_millis(settings.group_age_max_ms)
    }
}

async fn propose(
    mempool: Mempool,
    consensus: Consensus,
    messages: Vec<Aged>,
    closings: Vec<GroupClosing>,
) -> Option<ProposeError> {
    let command = encode_batch(mempool.now(), &messages, &closings);
    let started = Instant::now();
    match consensus.propose(command).await {
        Ok(()) => {
            metrics::proposed(messages.len(), started.elapsed().as_secs_f64());
            None
        }
        Err(error) => {
            // It may still be committed; a second place for the same content is ruled out by `apply`.
            tracing::debug!(%error, messages = messages.len(), "a proposal was not committed");
            mempool.abandon(&messages);
            Some(error)
        }
    }
}
