//! The leader's part: proposes what waits in its pool, again and again. One message alone does not wait for company;
//! while proposals are under way the next batch fills. A new leader proposes nothing before it has applied the first entry
//! of its term, and with it all that it inherited: what is ordered by then is out of its pool.

use std::time::Duration;

use lockstep_consensus::{Consensus, ProposeError};
use lockstep_ledger::{Aged, encode_batch};
use lockstep_types::{Height, NodeId, Sequence, TimeMs};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::limits::{PROPOSALS_MAX, TICK};
use crate::mempool::Mempool;
use crate::metrics;
use crate::supervisor::carry_on_panic;
use crate::tracker::OpenGroups;

/// Pause before a leader that cannot commit tries again.
const NOT_READY_PAUSE: Duration = Duration::from_millis(10);

/// A batch that was to make tasks of groups and was not applied is proposed again after this time.
const CLOSING_RETRY: Duration = Duration::from_secs(2);

pub(crate) struct Proposer {
    pub mempool: Mempool,
    pub consensus: Consensus,
    pub groups: watch::Receiver<OpenGroups>,
    /// Set while nothing may be acknowledged.
    pub conflict: watch::Receiver<Option<(NodeId, Height)>>,
}

impl Proposer {
    pub async fn run(mut self, stop: CancellationToken) {
        let (mut status, mut conflict) = (self.consensus.status(), self.conflict.clone());
        let mut under_way: JoinSet<Option<ProposeError>> = JoinSet::new();
        let mut closing = Closing::default();
        loop {
            // What is not proposed is acknowledged by no node.
            let halted = conflict.borrow_and_update().is_some();
            let (may_propose, term) = {
                let now = status.borrow_and_update();
                (now.may_propose(), now.term)
            };
            let leads = may_propose && !halted;
            let mut due_in = None;
            self.groups.mark_unchanged();
            if leads {
                self.mempool.clock().lead(term);
                due_in = self.propose_all(&mut closing, &mut under_way);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = status.changed() => if changed.is_err() { return },
                changed = conflict.changed() => if changed.is_err() { return },
                () = self.mempool.arrived.notified(), if leads && under_way.len() < PROPOSALS_MAX => {}
                changed = self.groups.changed(), if leads && under_way.len() < PROPOSALS_MAX => {
                    if changed.is_err() { return }
                }
                () = tokio::time::sleep(due_in.unwrap_or(TICK)), if leads && due_in.is_some() => {}
                Some(ended) = under_way.join_next() => match ended {
                    Ok(None) => {}
                    // Also where another node is about to lead: until it does, this one would try again without a pause.
                    Ok(Some(_)) => tokio::time::sleep(NOT_READY_PAUSE).await,
                    // What it had taken out of the pool is nobody's any more: the node must not go on without it.
                    Err(error) => carry_on_panic(error),
                }
            }
        }
    }

    /// Starts proposals while there is room; says when the next group becomes a task.
    fn propose_all(&self, closing: &mut Closing, under_way: &mut JoinSet<Option<ProposeError>>) -> Option<Duration> {
        let groups = *self.groups.borrow();
        while under_way.len() < PROPOSALS_MAX {
            let messages = self.mempool.propose();
            let (now, at) = (self.mempool.now(), Instant::now());
            if messages.is_empty() && !closing.is_due(&groups, now, at) {
                break;
            }
            closing.proposed(&groups, now, at);
            let make_room_before = groups.make_room_before.unwrap_or_default();
            under_way.spawn(propose(self.mempool.clone(), self.consensus.clone(), messages, make_room_before));
        }
        due_in(&groups, self.mempool.now())
    }
}

/// Whether the next batch makes tasks of groups.
fn is_wanted(groups: &OpenGroups, now: TimeMs) -> bool {
    groups.make_room_before.is_some() || groups.next_due.is_some_and(|due| due <= now)
}

/// When to look again for groups that become tasks.
fn due_in(groups: &OpenGroups, now: TimeMs) -> Option<Duration> {
    if is_wanted(groups, now) {
        return Some(CLOSING_RETRY);
    }
    groups.next_due.map(|due| Duration::from_millis(due.0.saturating_sub(now.0)))
}

/// When a batch is proposed although no message waits, so that groups become tasks.
#[derive(Default)]
struct Closing {
    /// What was known when the last batch that makes tasks of them was proposed, and when that was.
    asked: Option<(OpenGroups, Instant)>,
}

impl Closing {
    fn is_due(&self, groups: &OpenGroups, now: TimeMs, at: Instant) -> bool {
        // Where something was applied since, what is left is another thing.
        let is_asked = |(known, when): (OpenGroups, Instant)| known == *groups && at < when + CLOSING_RETRY;
        is_wanted(groups, now) && !self.asked.is_some_and(is_asked)
    }

    /// A batch was proposed, with messages or without: it makes tasks of what is due.
    fn proposed(&mut self, groups: &OpenGroups, now: TimeMs, at: Instant) {
        if is_wanted(groups, now) {
            self.asked = Some((*groups, at));
        }
    }
}

async fn propose(
    mempool: Mempool,
    consensus: Consensus,
    messages: Vec<Aged>,
    make_room_before: Sequence,
) -> Option<ProposeError> {
    let command = encode_batch(mempool.now(), &messages, make_room_before);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn due_at(due_ms: u64) -> OpenGroups {
        OpenGroups { next_due: Some(TimeMs(due_ms)), oldest: Some(Sequence(1)), make_room_before: None }
    }

    #[test]
    fn a_group_that_is_due_is_asked_for_once_and_again_when_nothing_came_of_it() {
        let (mut closing, start) = (Closing::default(), Instant::now());
        let groups = due_at(1_000);
        assert!(!closing.is_due(&groups, TimeMs(999), start));
        // A batch of messages before its time does nothing for it.
        closing.proposed(&groups, TimeMs(999), start);
        assert!(closing.is_due(&groups, TimeMs(1_000), start));
        closing.proposed(&groups, TimeMs(1_000), start);
        assert!(!closing.is_due(&groups, TimeMs(1_500), start));
        assert!(closing.is_due(&groups, TimeMs(1_500), start + CLOSING_RETRY));
        // It was applied, and more is due than one batch can close.
        assert!(closing.is_due(&OpenGroups { oldest: Some(Sequence(9)), ..groups }, TimeMs(1_500), start));
        let room = OpenGroups { make_room_before: Some(Sequence(3)), ..due_at(9_000) };
        assert!(closing.is_due(&room, TimeMs(1_500), start));
    }

    #[test]
    fn the_proposer_wakes_when_the_next_group_is_due() {
        for (groups, now_ms, expected) in [
            (OpenGroups::default(), 5, None),
            (due_at(1_000), 400, Some(Duration::from_millis(600))),
            (due_at(1_000), 1_000, Some(CLOSING_RETRY)),
            (due_at(1_000), 2_000, Some(CLOSING_RETRY)),
        ] {
            assert_eq!(due_in(&groups, TimeMs(now_ms)), expected, "{groups:?} {now_ms}");
        }
    }
}
