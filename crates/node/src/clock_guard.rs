//! Keeps a node whose clock is off from leading: batches have their leader's time, and retry windows, ages and
//! approvals go by it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use lockstep_consensus::{Consensus, Role};
use lockstep_network::{Channel, Client, Handle};
use lockstep_types::NodeId;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tokio_util::sync::CancellationToken;

use crate::control::ask_clock;
use crate::limits::{CLOCK_ANSWER_MAX, CLOCK_FOLLOWED_MAX, CLOCK_INTERVAL, CLOCK_INTERVAL_FIRST, CLOCK_OFFSET_MAX};
use crate::tracker::Tracker;

/// See the module's documentation.
pub(crate) struct ClockGuard {
    pub node: NodeId,
    pub consensus: Consensus,
    pub network: Handle,
    pub tracker: Arc<Tracker>,
    /// Milliseconds by which the others' clocks are ahead of this one, while that is too much.
    pub off: watch::Sender<Option<i64>>,
}

/// By how much the voters' clocks are ahead of this one, in milliseconds, if that is too much: the median of all
/// clocks, this one among them. Of an even number the nearer middle one counts, so that two nodes that disagree do not
/// both step back: no majority says who is right.
fn judge(mut offsets: Vec<i64>) -> Option<i64> {
    offsets.push(0);
    offsets.sort_unstable();
    let (lower, upper) = (offsets[(offsets.len() - 1) / 2], offsets[offsets.len() / 2]);
    let median = if lower.unsigned_abs() <= upper.unsigned_abs() { lower } else { upper };
    (u128::from(median.unsigned_abs()) > CLOCK_OFFSET_MAX.as_millis()).then_some(median)
}

/// Whether the machine's clock, which is ahead by this much, is to be gone by at once: where the others say that it is
/// right and this node's is not, or where nobody can say and following it would take for ever.
fn is_to_be_set(offsets: &[i64], machine_ahead_ms: i64) -> bool {
    if offsets.is_empty() {
        return u128::from(machine_ahead_ms.unsigned_abs()) > CLOCK_FOLLOWED_MAX.as_millis();
    }
    let by_machine = offsets.iter().map(|offset| offset.saturating_sub(machine_ahead_ms)).collect();
    judge(offsets.to_vec()).is_some() && judge(by_machine).is_none()
}

fn difference_ms(theirs: u64, ours: u64) -> i64 {
    let size = i64::try_from(theirs.abs_diff(ours)).unwrap_or(i64::MAX);
    if theirs < ours { -size } else { size }
}

/// How far a voter's clock is ahead; `None` without an answer, or when it came too late to say.
async fn offset_of(tracker: &Tracker, client: &mut Client) -> Option<i64> {
    let (sent, clock) = (Instant::now(), tracker.now());
    let theirs = ask_clock(client, CLOCK_ANSWER_MAX).await.ok()?;
    // A process that was paused meanwhile finds the answer before it finds that it waited for too long.
    let took = Some(sent.elapsed()).filter(|took| *took <= CLOCK_ANSWER_MAX)?;
    let half = u64::try_from(took.as_millis() / 2).unwrap_or(u64::MAX);
    Some(difference_ms(theirs.0, clock.0.saturating_add(half)))
}

impl ClockGuard {
    /// Compares clocks until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut clients: BTreeMap<NodeId, Client> = BTreeMap::new();
        let started = Instant::now();
        // Nobody leads by a clock that was compared with none. Who gets no answer at all may have others' votes nevertheless.
        let mut is_known = self.others().is_empty();
        self.consensus.allow_elections(is_known);
        let mut tick = interval(CLOCK_INTERVAL_FIRST);
        loop {
            let compared = async {
                tick.tick().await;
                let answers = self.compare(&mut clients, is_known).await;
                if !is_known && (answers > 0 || started.elapsed() >= CLOCK_INTERVAL) {
                    is_known = true;
                    self.consensus.allow_elections(self.off.borrow().is_none());
                    tick = interval_at(Instant::now() + CLOCK_INTERVAL, CLOCK_INTERVAL);
                }
                tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = compared => {}
            }
        }
    }

    fn others(&self) -> Vec<NodeId> {
        let members = self.tracker.members().borrow().clone();
        members.set().voters().map(|v| v.node).filter(|node| *node != self.node).collect()
    }

    /// How many answered.
    async fn compare(&self, clients: &mut BTreeMap<NodeId, Client>, may_lead: bool) -> usize {
        let others = self.others();
        clients.retain(|node, _| others.contains(node));
        for node in others {
            clients.entry(node).or_insert_with(|| self.network.client(node, Channel::Control));
        }
        let offsets = join_all(clients.values_mut().map(|client| offset_of(&self.tracker, client)))
            .await
            .into_iter()
            .flatten()
            .collect::<Vec<i64>>();
        let answers = offsets.len();
        let machine_ahead = self.tracker.clock().machine_ahead_ms();
        let off = if is_to_be_set(&offsets, machine_ahead) {
            tracing::warn!(machine_ahead, "the machine's clock was set: this node goes by it from now on");
            self.tracker.clock().set_by_machine();
            None
        } else {
            judge(offsets)
        };
        let was = self.off.send_replace(off);
        match off {
            Some(ahead_ms) if was.is_none() => tracing::error!(
                ahead_ms,
                "the clocks of the other voters differ from this node's: it does not lead until its clock is set right"
            ),
            None if was.is_some() => tracing::info!("this node's clock is right again"),
            _ => {}
        }
        self.consensus.allow_elections(may_lead && off.is_none());
        if off.is_some() && self.consensus.status().borrow().role == Role::Leader {
            let connected: Vec<NodeId> =
                self.network.peers().iter().filter(|peer| peer.connected).map(|peer| peer.node).collect();
            self.consensus.hand_over(&connected).await;
        }
        answers
    }
}

/// What the operator is told.
pub(crate) fn complaint(ahead_ms: i64) -> String {
    let (size, way) =
        (Duration::from_millis(ahead_ms.unsigned_abs()), if ahead_ms > 0 { "behind" } else { "ahead of" });
    format!("this node's clock is {size:?} {way} those of the other voters: it does not lead until it is set right")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_says_whose_clock_is_off() {
        let far = i64::try_from(CLOCK_OFFSET_MAX.as_millis()).unwrap() + 1;
        let cases = [
            (vec![], None, "alone"),
            (vec![far], None, "one against one"),
            (vec![far, far], Some(far), "both others agree"),
            (vec![-far, -far], Some(-far), "both others agree"),
            (vec![far - 1, far - 1], None, "within the limit"),
            (vec![0, far], None, "the other one is off"),
            (vec![-far, far], None, "in the middle"),
            (vec![far, far, 0], None, "two against two"),
            (vec![far, far, far + 9], Some(far), "three against one: the nearer one in the middle"),
            (vec![0, 0, far, far], None, "two of five are off"),
            (vec![far, far, far, 0], Some(far), "three against two"),
            (vec![i64::MAX, i64::MIN], None, "absurd clocks"),
        ];
        for (offsets, expected, why) in cases {
            assert_eq!(judge(offsets.clone()), expected, "{why}: {offsets:?}");
        }
    }

    #[test]
    fn a_clock_that_was_set_is_gone_by_where_the_others_say_so() {
        for (offsets, machine_ahead, expected, why) in [
            (vec![9_000, 9_100], 9_000, true, "it was suspended, and the machine has the time again"),
            (vec![0, 100], 9_000, false, "the machine's clock has gone wrong"),
            (vec![9_000, 9_100], 0, false, "both are wrong"),
            (vec![9_000, 9_100], -9_000, false, "even more so"),
            (vec![9_000], 9_000, false, "one against one: it is followed slowly"),
            (vec![], 30_000, false, "alone, it is followed slowly"),
            (vec![], 90_000, true, "alone, it is too far"),
            (vec![], -90_000, true, "alone, it is too far behind"),
        ] {
            assert_eq!(is_to_be_set(&offsets, machine_ahead), expected, "{why}");
        }
    }

    #[test]
    fn differences_do_not_overflow() {
        assert_eq!(difference_ms(5, 7), -2);
        assert_eq!(difference_ms(7, 5), 2);
        assert_eq!(difference_ms(u64::MAX, 0), i64::MAX);
        assert_eq!(difference_ms(0, u64::MAX), -i64::MAX);
    }

    #[test]
    fn the_operator_is_told_which_way_to_set_it() {
        assert!(complaint(3_000).contains("3s behind"));
        assert!(complaint(-3_500).contains("3.5s ahead of"));
    }
}
