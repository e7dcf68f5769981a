//! Keeps a node whose clock is off from leading, and says how far a leader may go by its clock: batches have their
//! leader's time, and retry windows, ages and approvals go by it.
//!
//! A clock is held against those of the other voters, and the machine's against the monotonic one; never against the head,
//! which says nothing of how long a network was idle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use lockstep_consensus::{Consensus, Role};
use lockstep_network::{Channel, Client, Handle};
use lockstep_types::NodeId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::batch_time::{BatchClock, Trust};
use crate::control::ask_clock;
use crate::limits::{
    BATCH_AHEAD_MAX, CLOCK_ANSWER_MAX, CLOCK_FOLLOWED_MAX, CLOCK_INTERVAL, CLOCK_INTERVAL_FIRST, CLOCK_LEAP_LASTS,
    CLOCK_OFFSET_MAX,
};
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

/// The two clocks in the middle of all, this one among them; the same one twice where their number is odd.
fn middle(mut offsets: Vec<i64>) -> (i64, i64) {
    offsets.push(0);
    offsets.sort_unstable();
    (offsets[(offsets.len() - 1) / 2], offsets[offsets.len() / 2])
}

fn is_too_much(offset: i64) -> bool {
    u128::from(offset.unsigned_abs()) > CLOCK_OFFSET_MAX.as_millis()
}

/// By how much the voters' clocks are ahead of this one, in milliseconds, if that is too much: the median of all
/// clocks. Of an even number the nearer middle one counts, so that two nodes that disagree do not both step back: no
/// majority says who is right.
fn judge(offsets: &[i64]) -> Option<i64> {
    let (lower, upper) = middle(offsets.to_vec());
    let median = if lower.unsigned_abs() <= upper.unsigned_abs() { lower } else { upper };
    is_too_much(median).then_some(median)
}

/// Whether a majority of voters, this node among them, has the same time, or had it `before` and no majority disagrees: a
/// clock that was right stays so, because it does not leap.
fn is_agreed_with(offsets: &[i64], majority: usize, before: bool) -> bool {
    let agreeing = 1 + offsets.iter().filter(|offset| !is_too_much(**offset)).count();
    judge(offsets).is_none() && (before || agreeing >= majority)
}

/// How far this node may go by its clock. Of clocks that disagree without a majority the earlier one counts.
fn trust(offsets: &[i64], is_agreed_with: bool) -> Trust {
    if is_agreed_with {
        return Trust::Full;
    }
    if offsets.is_empty() {
        return Trust::None;
    }
    let (lower, _) = middle(offsets.to_vec());
    if lower < 0 && is_too_much(lower) {
        Trust::Ahead(Duration::from_millis(lower.unsigned_abs()))
    } else {
        Trust::Full
    }
}

/// Offsets as they are of the machine's clock, which is ahead of this node's by so much.
fn by_machine(offsets: &[i64], machine_ahead_ms: i64) -> Vec<i64> {
    offsets.iter().map(|offset| offset.saturating_sub(machine_ahead_ms)).collect()
}

/// Whether the other voters say that the machine's clock, which is ahead by this much, is right and this node's is not.
fn machine_is_right(offsets: &[i64], machine_ahead_ms: i64) -> bool {
    judge(offsets).is_some() && judge(&by_machine(offsets, machine_ahead_ms)).is_none()
}

/// A leap of the machine's clock: by how much it is ahead since, and since when.
#[derive(Debug, Default)]
struct Leap(Option<(i64, Instant)>);

fn is_leap(machine_ahead_ms: i64) -> bool {
    u128::from(machine_ahead_ms.unsigned_abs()) > CLOCK_FOLLOWED_MAX.as_millis()
}

impl Leap {
    /// Whether the machine's clock has leapt, and has stayed there for so long that this is no passing fault.
    fn has_lasted(&mut self, machine_ahead_ms: i64, now: Instant) -> bool {
        // It is followed meanwhile, so it comes nearer.
        let same = |(ahead, _): &(i64, Instant)| !is_leap(machine_ahead_ms.saturating_sub(*ahead));
        let known = self.0.filter(same).unwrap_or((machine_ahead_ms, now));
        self.0 = is_leap(machine_ahead_ms).then_some(known);
        self.0.is_some_and(|(_, since)| now.saturating_duration_since(since) >= CLOCK_LEAP_LASTS)
    }
}

fn difference_ms(theirs: u64, ours: u64) -> i64 {
    let size = i64::try_from(theirs.abs_diff(ours)).unwrap_or(i64::MAX);
    if theirs < ours { -size } else { size }
}

/// How far a voter's clock is ahead; `None` without an answer, or when it came too late to say.
async fn offset_of(tracker: &Tracker, client: &mut Client) -> Option<i64> {
    let (sent, clock) = (Instant::now(), tracker.clock().clock().now());
    let theirs = ask_clock(client, CLOCK_ANSWER_MAX).await.ok()?;
    // A process that was paused meanwhile finds the answer before it finds that it waited for too long.
    // Nor is anything said by an answer that took long by the clock that is compared.
    let by_clock = Duration::from_millis(tracker.clock().clock().now().0.saturating_sub(clock.0));
    let took = Some(sent.elapsed().max(by_clock)).filter(|took| *took <= CLOCK_ANSWER_MAX)?;
    let half = u64::try_from(took.as_millis() / 2).unwrap_or(u64::MAX);
    Some(difference_ms(theirs.0, clock.0.saturating_add(half)))
}

/// What a node knows of its clock from one comparison to the next.
#[derive(Default)]
struct Memory {
    clients: BTreeMap<NodeId, Client>,
    leap: Leap,
    /// A majority has agreed with this node's clock, and none has disagreed since; nor has the machine's clock leapt, which
    /// is followed.
    is_agreed_with: bool,
    /// The operator was told that batch time is ahead.
    told_ahead: bool,
}

impl ClockGuard {
    /// Compares clocks until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.compare_on_and_on() => {}
        }
    }

    async fn compare_on_and_on(&self) {
        let started = Instant::now();
        let mut memory = Memory { is_agreed_with: self.others().is_empty(), ..Memory::default() };
        self.tracker.clock().trust(trust(&[], memory.is_agreed_with));
        // Nobody leads by a clock that was compared with none. Who gets no answer at all may have others' votes
        // nevertheless: then it leads, and not by its clock.
        let mut may_lead = memory.is_agreed_with;
        self.consensus.allow_elections(may_lead);
        loop {
            let answers = self.compare(&mut memory, may_lead).await;
            if !may_lead && (answers > 0 || started.elapsed() >= CLOCK_INTERVAL) {
                may_lead = true;
                self.consensus.allow_elections(self.off.borrow().is_none());
            }
            let is_known = self.tracker.clock().trusted() != Trust::None;
            sleep(if is_known { CLOCK_INTERVAL } else { CLOCK_INTERVAL_FIRST }).await;
        }
    }

    fn others(&self) -> Vec<NodeId> {
        let members = self.tracker.members().borrow().clone();
        members.set().voters().map(|v| v.node).filter(|node| *node != self.node).collect()
    }

    /// How many answered.
    async fn compare(&self, memory: &mut Memory, may_lead: bool) -> usize {
        let (others, clock) = (self.others(), self.tracker.clock());
        memory.clients.retain(|node, _| others.contains(node));
        for node in &others {
            memory.clients.entry(*node).or_insert_with(|| self.network.client(*node, Channel::Control));
        }
        let mut offsets = join_all(memory.clients.values_mut().map(|client| offset_of(&self.tracker, client)))
            .await
            .into_iter()
            .flatten()
            .collect::<Vec<i64>>();
        let machine_ahead_ms = clock.clock().machine_ahead_ms();
        let has_lasted = memory.leap.has_lasted(machine_ahead_ms, Instant::now());
        // Who is not the only voter and hears of no other takes over nothing.
        let is_alone = others.is_empty();
        if machine_is_right(&offsets, machine_ahead_ms) || is_alone && has_lasted {
            tracing::warn!(machine_ahead_ms, "the machine's clock was set: this node goes by it from now on");
            clock.clock().set_by_machine();
            memory.leap = Leap::default();
            offsets = by_machine(&offsets, machine_ahead_ms);
        }
        let off = judge(&offsets);
        let majority = self.tracker.members().borrow().set().majority();
        let before = memory.is_agreed_with && memory.leap.0.is_none();
        memory.is_agreed_with = is_agreed_with(&offsets, majority, before);
        clock.trust(trust(&offsets, memory.is_agreed_with));
        self.tell(off, memory);
        self.consensus.allow_elections(may_lead && off.is_none());
        if off.is_some() && self.consensus.status().borrow().role == Role::Leader {
            let connected: Vec<NodeId> =
                self.network.peers().iter().filter(|peer| peer.connected).map(|peer| peer.node).collect();
            self.consensus.hand_over(&connected).await;
        }
        offsets.len()
    }

    /// Tells whoever asks whether the clock is off, and the log when that changes.
    fn tell(&self, off: Option<i64>, memory: &mut Memory) {
        let was = self.off.send_replace(off);
        match off {
            Some(ahead_ms) if was.is_none() => tracing::error!(
                ahead_ms,
                "the clocks of the other voters differ from this node's: it does not lead until its clock is set right"
            ),
            None if was.is_some() => tracing::info!("this node's clock is right again"),
            _ => {}
        }
        let ahead = self.tracker.clock().ahead();
        let is_ahead = ahead > BATCH_AHEAD_MAX;
        if is_ahead && !memory.told_ahead {
            tracing::warn!(
                ?ahead,
                "batch time is ahead of this node's clock: it goes on slowly until that has caught up"
            );
        }
        memory.told_ahead = is_ahead;
    }
}

/// What the operator is told of this node's clock. `off`: by how much a majority of voters is ahead of it, where that is too
/// much.
pub(crate) fn complaints(off: Option<i64>, clock: &BatchClock) -> Vec<String> {
    let mut all = Vec::new();
    match (off, clock.trusted()) {
        (Some(ahead_ms), _) => all.push(off_complaint(ahead_ms)),
        (None, Trust::Ahead(by)) => all.push(format!(
            "this node's clock is {by:?} ahead of another voter's, and no majority says which is right: while this node leads, batch time goes by the earlier one"
        )),
        (None, Trust::Full | Trust::None) => {}
    }
    let machine_ahead_ms = clock.clock().machine_ahead_ms();
    if is_leap(machine_ahead_ms) {
        let (by, way) = way(machine_ahead_ms);
        all.push(format!("the clock of this machine was set, and is {by:?} {way} the one that this node goes by"));
    }
    let ahead = clock.ahead();
    if ahead > BATCH_AHEAD_MAX {
        all.push(format!(
            "batch time is ahead of this node's clock by {ahead:?}: it goes on slowly until the clock has caught up"
        ));
    }
    all
}

fn way(ahead_ms: i64) -> (Duration, &'static str) {
    (Duration::from_millis(ahead_ms.unsigned_abs()), if ahead_ms > 0 { "ahead of" } else { "behind" })
}

fn off_complaint(ahead_ms: i64) -> String {
    let (by, way) = way(ahead_ms.saturating_neg());
    format!("this node's clock is {by:?} {way} those of the other voters: it does not lead until it is set right")
}

#[cfg(test)]
mod tests {
    use lockstep_types::TimeMs;

    use super::*;
    use crate::clock::{Clock, SimulatedClock};

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
            assert_eq!(judge(&offsets), expected, "{why}: {offsets:?}");
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
            (vec![], 90_000, false, "nobody answers: it is followed slowly"),
            (vec![], -90_000, false, "nobody answers: it is followed slowly"),
        ] {
            assert_eq!(machine_is_right(&offsets, machine_ahead), expected, "{why}");
        }
    }

    #[test]
    fn a_leap_has_lasted_when_it_has_stayed_the_same_for_minutes() {
        /// Seconds since the start, how far the machine's clock is ahead then, and whether that has lasted.
        type Look = (u64, i64, bool);
        const DAY: i64 = 86_400_000;
        let (start, lasts) = (Instant::now(), CLOCK_LEAP_LASTS.as_secs());
        let cases: [(&[Look], &str); 7] = [
            (&[(0, 60_000, false), (lasts * 9, 60_000, false)], "this far it is followed"),
            (&[(0, DAY, false), (lasts - 1, DAY - 29_000, false), (lasts, DAY - 30_000, true)], "a day ahead"),
            (&[(0, -DAY, false), (lasts, 30_000 - DAY, true)], "a day behind"),
            (&[(0, DAY, false), (12, 0, false), (lasts, 0, false)], "a day ahead for twelve seconds"),
            (&[(0, DAY, false), (12, 0, false), (lasts, DAY, false), (2 * lasts, DAY, true)], "twice"),
            (&[(0, DAY, false), (lasts, 2 * DAY, false), (2 * lasts, 2 * DAY, true)], "farther and farther"),
            (&[(0, DAY, false), (lasts, -DAY, false), (2 * lasts, -DAY, true)], "to and fro"),
        ];
        for (looks, why) in cases {
            let mut leap = Leap::default();
            for (after, machine_ahead, expected) in looks {
                let lasted = leap.has_lasted(*machine_ahead, start + Duration::from_secs(*after));
                assert_eq!(lasted, *expected, "{why}: after {after} s");
            }
        }
    }

    #[test]
    fn a_leader_goes_by_its_clock_as_far_as_a_majority_or_the_earlier_clock_says() {
        let day = 86_400_000;
        let ahead = Trust::Ahead(Duration::from_secs(86_400));
        for (offsets, voters, before, expected, why) in [
            (vec![], 1, false, Trust::Full, "the only voter"),
            (vec![], 3, false, Trust::None, "nobody answers"),
            (vec![], 3, true, Trust::Full, "nobody answers any more"),
            (vec![5], 3, false, Trust::Full, "two of three agree"),
            (vec![day], 3, false, Trust::Full, "the other one is ahead"),
            (vec![-day], 3, false, ahead, "this one is ahead of the only other one"),
            (vec![-day], 3, true, Trust::Full, "the other one came back with a wrong clock"),
            (vec![-day, -day], 3, true, ahead, "a majority disagrees"),
            (vec![0, -day], 3, false, Trust::Full, "one of three is wrong"),
            (vec![-day, -day, 0], 5, false, ahead, "two against two"),
            (vec![-day, -day, 0, 0], 5, false, Trust::Full, "three against two"),
        ] {
            let is_agreed_with = is_agreed_with(&offsets, voters / 2 + 1, before);
            assert_eq!(trust(&offsets, is_agreed_with), expected, "{why}");
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
        assert!(off_complaint(3_000).contains("3s behind"));
        assert!(off_complaint(-3_500).contains("3.5s ahead of"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_operator_is_told_of_a_leap_and_of_batch_time_that_is_ahead() {
        let machine = SimulatedClock::new(2_000_000_000_000);
        let clock = BatchClock::new(Clock::simulated(machine.clone()));
        clock.follow(TimeMs(2_000_000_004_999));
        assert_eq!(complaints(None, &clock), Vec::<String>::new());
        clock.follow(TimeMs(2_000_000_005_001));
        let told = complaints(None, &clock);
        assert!(told.len() == 1 && told[0].contains("batch time is ahead of this node's clock by 5.001s"), "{told:?}");
        sleep(Duration::from_secs(1)).await;
        assert_eq!(complaints(None, &clock), Vec::<String>::new(), "it is being caught up with");
        machine.set_offset_ms(-86_400_000);
        let told = complaints(None, &clock);
        assert!(told.len() == 1 && told[0].contains("86400s behind"), "{told:?}");
        machine.set_offset_ms(0);
        clock.trust(Trust::Ahead(Duration::from_secs(9)));
        assert!(complaints(None, &clock)[0].contains("9s ahead of another voter's"));
        assert!(complaints(Some(3_000), &clock)[0].contains("3s behind"));
    }
}
