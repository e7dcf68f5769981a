//! The pool of this node together with those who wait for its messages: the one shared place between ingress, the
//! forwarder, the proposer and the tracker. Its lock is held for look-ups and moves only, never across I/O.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use lockstep_ledger::{Aged, Inserted, Outcome, Pool, PoolLimits, Turns};
use lockstep_types::genesis::AGE_MS_MAX;
use lockstep_types::{ContentId, NodeId, ProjectId, TimeMs, VerifiedMessage};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::batch_time::BatchClock;
use crate::clock::Clock;
use crate::limits::{
    ARRIVING_AGE_MS_MAX, BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, BUNDLE_BYTES_MAX, BUNDLE_MESSAGES_MAX, POOL_AGE_MAX,
    RESEND_AFTER, STALL_GRACE, STALL_MAX,
};
use crate::metrics;

/// Told what became of a message.
pub(crate) type Waiter = oneshot::Sender<Outcome>;

/// A message that this node took in and answers for.
struct Own {
    project: ProjectId,
    order: u64,
    waiters: Vec<Waiter>,
}

struct State {
    pool: Pool,
    own: HashMap<ContentId, Own>,
    own_by_order: BTreeMap<u64, ContentId>,
    next_order: u64,
    /// Whether another node leads, to which own messages must be sent.
    forwarding: bool,
    /// Own messages to send to the leader, each project's by their order.
    outbox: Turns,
    /// Own messages that were sent, by time.
    sent: VecDeque<(u64, ContentId)>,
    /// Own messages to gossip once they are old enough, by time of arrival.
    to_gossip: VecDeque<(u64, ContentId)>,
    /// When ages were last looked at.
    looked_at: Option<u64>,
    /// No messages are taken before this time.
    closed_until: u64,
}

/// See the module's documentation. Clones share it.
#[derive(Clone)]
pub(crate) struct Mempool {
    node: NodeId,
    state: Arc<Mutex<State>>,
    /// Something waits to be proposed or sent.
    pub arrived: Arc<Notify>,
    started: Instant,
    clock: BatchClock,
}

impl Mempool {
    pub fn new(node: NodeId, limits: PoolLimits) -> Self {
        let state = State {
            pool: Pool::new(limits),
            own: HashMap::new(),
            own_by_order: BTreeMap::new(),
            next_order: 0,
            forwarding: false,
            outbox: Turns::default(),
            sent: VecDeque::new(),
            to_gossip: VecDeque::new(),
            looked_at: None,
            closed_until: 0,
        };
        let (state, arrived) = (Arc::new(Mutex::new(state)), Arc::new(Notify::new()));
        Self { node, state, arrived, started: Instant::now(), clock: BatchClock::new(Clock::default()) }
    }

    /// Goes by another clock than the machine's.
    pub fn by_clock(self, clock: Clock) -> Self {
        Self { clock: BatchClock::new(clock), ..self }
    }

    /// This node's batch time, and the clock that it goes by.
    pub fn clock(&self) -> &BatchClock {
        &self.clock
    }

    /// Batch time, as this node would propose it.
    pub fn now(&self) -> TimeMs {
        self.clock.now()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Adds messages that this node took in, with those who wait for them. Waiters of messages for which there is no
    /// room, or for no more of their project, that are too old (see [`ARRIVING_AGE_MS_MAX`]), or that come out of a stall
    /// (see [`STALL_MAX`]), are dropped, which tells them so.
    pub fn insert_own(&self, messages: impl IntoIterator<Item = (Aged, Waiter)>) {
        let now = self.now_ms();
        let mut without_room: BTreeMap<ProjectId, u64> = BTreeMap::new();
        {
            let mut state = self.state.lock();
            if state.is_stalled(now) {
                return;
            }
            for (message, waiter) in messages {
                if message.age_ms > ARRIVING_AGE_MS_MAX {
                    continue;
                }
                let (id, project) = (message.message.content_id(), message.message.message().project_id);
                match state.pool.insert(message, now) {
                    Inserted::Full => *without_room.entry(project).or_default() += 1,
                    Inserted::New | Inserted::Known => state.add_own(id, project, waiter, now),
                }
            }
        }
        for (project, messages) in without_room {
            metrics::without_room(project, messages);
        }
        self.arrived.notify_one();
    }

    /// Adds verified messages of other nodes, but for those that are too old. Says whether there was room.
    pub fn insert_foreign(&self, messages: Vec<Aged>) -> bool {
        let now = self.now_ms();
        let all = {
            let mut state = self.state.lock();
            if state.is_stalled(now) {
                return false;
            }
            let young = messages.into_iter().filter(|message| message.age_ms <= ARRIVING_AGE_MS_MAX);
            young.map(|message| state.pool.insert(message, now)).filter(|inserted| *inserted == Inserted::Full).count()
                == 0
        };
        self.arrived.notify_one();
        all
    }

    /// Drops those of `messages` that are here already, before anybody spends time on them.
    pub fn retain_unknown<T>(&self, messages: &mut Vec<T>, id: impl Fn(&T) -> ContentId) {
        let state = self.state.lock();
        messages.retain(|message| state.pool.get(&id(message)).is_none());
    }

    /// A message that waits.
    pub fn get(&self, id: &ContentId) -> Option<Arc<VerifiedMessage>> {
        self.state.lock().pool.get(id).cloned()
    }

    pub fn len(&self) -> usize {
        self.state.lock().pool.len()
    }

    /// Takes a batch for a proposal.
    pub fn propose(&self) -> Vec<Aged> {
        let now = self.now_ms();
        let mut state = self.state.lock();
        state.drop_old(now);
        state.pool.propose(BATCH_MESSAGES_MAX, BATCH_BYTES_MAX, now)
    }

    /// Gives a batch back whose proposal failed.
    pub fn abandon(&self, batch: &[Aged]) {
        let ids: Vec<ContentId> = batch.iter().map(|m| m.message.content_id()).collect();
        self.state.lock().pool.abandon(&ids);
        self.arrived.notify_one();
    }

    /// Removes what has a place now, or was refused, and tells those who wait.
    pub fn settle(&self, outcomes: &[(ContentId, Outcome)]) {
        let mut told = Vec::with_capacity(outcomes.len());
        {
            let mut state = self.state.lock();
            for (id, outcome) in outcomes {
                state.pool.remove(id);
                if let Some(own) = state.remove_own(id) {
                    let first = |at: usize| if at == 0 { outcome.clone() } else { as_retry(outcome.clone()) };
                    let of_ours = |at: usize| if self.took_in(outcome) { first(at) } else { as_retry(outcome.clone()) };
                    told.extend((0..).zip(own.waiters).map(|(at, waiter)| (waiter, of_ours(at))));
                }
            }
        }
        for (waiter, outcome) in told {
            // Whoever has given up waiting does not hear it.
            let _ = waiter.send(outcome);
        }
    }

    /// Whether what was ordered is what this node took in, and not the same content by another node before.
    fn took_in(&self, outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Ordered { via, .. } if *via == self.node)
    }

    /// Own messages to send to the leader now, of all projects in turns, up to a bundle; among each other in the order of
    /// arrival.
    pub fn take_outbox(&self) -> Vec<Aged> {
        let now = self.now_ms();
        let mut state = self.state.lock();
        state.drop_old(now);
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < BUNDLE_MESSAGES_MAX {
            let Some(id) = state.outbox.first().copied() else { break };
            let next = state.to_send(&id, now);
            let cost_bytes = next.as_ref().map_or(0, |aged| aged.message.message().cost_bytes());
            bytes += cost_bytes;
            // What is more than a bundle would be returned, and that is the newest, whoever's turn it is.
            if !taken.is_empty() && bytes > BUNDLE_BYTES_MAX {
                break;
            }
            state.outbox.take_first(cost_bytes);
            let order = state.own.get(&id).map_or(u64::MAX, |own| own.order);
            taken.extend(next.map(|aged| (order, aged)));
        }
        taken.sort_unstable_by_key(|(order, _)| *order);
        taken.into_iter().map(|(_, aged)| aged).collect()
    }

    /// Notes that messages were sent; if they are not ordered soon they come back to the outbox.
    pub fn note_sent(&self, messages: &[Aged]) {
        let now = self.now_ms();
        self.state.lock().sent.extend(messages.iter().map(|m| (now, m.message.content_id())));
    }

    /// Puts messages that could not be sent back to their places in the outbox, unless they are ordered meanwhile.
    pub fn return_outbox(&self, messages: &[Aged]) {
        let mut state = self.state.lock();
        for message in messages {
            state.put_in_outbox(message.message.content_id());
        }
    }

    /// Who leads has changed. If it is `another` node, everything that is not ordered goes to it, in the order of
    /// arrival; else nothing is to be sent.
    pub fn leader_changed(&self, another: bool) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.forwarding = another;
        state.sent.clear();
        state.outbox.clear();
        if another {
            for (order, id) in &state.own_by_order {
                if let Some(own) = state.own.get(id) {
                    state.outbox.insert(own.project, *order, *id);
                }
            }
        }
        drop(guard);
        self.arrived.notify_one();
    }

    /// Brings back what was sent and is not ordered, and drops what is too old. Call it every
    /// [`TICK`](crate::limits::TICK).
    pub fn tick(&self) {
        let now = self.now_ms();
        let mut again = false;
        {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            state.note_stall(now);
            while let Some((_, id)) = state.sent.pop_front_if(|(at, _)| *at < before(now, RESEND_AFTER)) {
                again |= state.forwarding && state.put_in_outbox(id);
            }
            state.drop_old(now);
        }
        if again {
            self.arrived.notify_one();
        }
    }

    /// Own messages that have waited for at least `delay_ms` and were not gossiped yet, up to a bundle.
    pub fn take_gossip(&self, delay_ms: u64) -> Vec<Aged> {
        let now = self.now_ms();
        let due = now.saturating_sub(delay_ms);
        let mut state = self.state.lock();
        state.drop_old(now);
        let mut taken = Vec::new();
        while taken.len() < BUNDLE_MESSAGES_MAX {
            let Some((_, id)) = state.to_gossip.pop_front_if(|(at, _)| *at <= due) else { break };
            taken.extend(state.to_send(&id, now));
        }
        taken
    }
}

/// What whoever sent the same content again hears of it.
fn as_retry(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Ordered { message_id, sequence, height, .. } => Outcome::Duplicate { message_id, sequence, height },
        other => other,
    }
}

fn milliseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn before(now: u64, age: std::time::Duration) -> u64 {
    now.saturating_sub(milliseconds(age))
}

impl State {
    /// Drops what has waited for too long. Also before anything is taken, because a process that was paused goes on
    /// with whatever comes first.
    fn drop_old(&mut self, now: u64) {
        for id in self.pool.expire(before(now, POOL_AGE_MAX)) {
            self.remove_own(&id);
        }
    }

    /// A message to send to other nodes. One that was proposed here stays in the pool, however old it becomes.
    fn to_send(&self, id: &ContentId, now: u64) -> Option<Aged> {
        self.pool.get_aged(id, now).filter(|message| message.age_ms <= AGE_MS_MAX)
    }

    /// Whether the process has just done nothing for so long that what comes in may be old.
    fn is_stalled(&self, now: u64) -> bool {
        now < self.closed_until || self.looked_at.is_some_and(|at| at < before(now, STALL_MAX))
    }

    fn note_stall(&mut self, now: u64) {
        let before_that = self.looked_at.replace(now);
        if let Some(stood_still) =
            before_that.map(|at| now.saturating_sub(at)).filter(|gap| *gap > milliseconds(STALL_MAX))
        {
            tracing::warn!(stood_still_ms = stood_still, "this process stood still: what came in meanwhile is refused");
            self.closed_until = now + milliseconds(STALL_GRACE);
        }
    }

    fn add_own(&mut self, id: ContentId, project: ProjectId, waiter: Waiter, now: u64) {
        if let Some(own) = self.own.get_mut(&id) {
            own.waiters.push(waiter);
            return;
        }
        let order = self.next_order;
        self.next_order += 1;
        self.own.insert(id, Own { project, order, waiters: vec![waiter] });
        self.own_by_order.insert(order, id);
        if self.forwarding {
            self.outbox.insert(project, order, id);
        }
        self.to_gossip.push_back((now, id));
    }

    /// Lets a message be sent, again or at last. Says whether it still waits.
    fn put_in_outbox(&mut self, id: ContentId) -> bool {
        let Some(own) = self.own.get(&id) else { return false };
        self.outbox.insert(own.project, own.order, id);
        true
    }

    fn remove_own(&mut self, id: &ContentId) -> Option<Own> {
        let own = self.own.remove(id)?;
        self.own_by_order.remove(&own.order);
        self.outbox.remove(own.project, own.order);
        Some(own)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lockstep_ledger::Rejection;
    use lockstep_types::{Address, Api, Evidence, Message, ProjectId, Signature};
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    fn message(n: u8) -> Arc<VerifiedMessage> {
        of(1, &[n])
    }

    fn of(project: u64, data: &[u8]) -> Arc<VerifiedMessage> {
        Arc::new(VerifiedMessage::from_recovered(Message {
            api: Api::Apinode,
            project_id: ProjectId(project),
            project_version: "1".into(),
            data: Bytes::copy_from_slice(data),
            device: Address([1; 20]),
            nonce: Bytes::new(),
            via: lockstep_types::NodeId(0),
            evidence: Evidence::Device(Signature([0; 65])),
        }))
    }

    fn submit(mempool: &Mempool, n: u8) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        mempool.insert_own([(Aged::fresh(message(n)), sender)]);
        receiver
    }

    /// The bytes that tell test messages apart.
    fn numbers(messages: &[Aged]) -> Vec<u8> {
        messages.iter().map(|aged| aged.message.message().data[0]).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn ages_add_up_from_node_to_node_and_what_is_too_old_is_left_out() {
        let (own, leader) =
            (Mempool::new(NodeId(1), PoolLimits::default()), Mempool::new(NodeId(2), PoolLimits::default()));
        let (sender, _receiver) = oneshot::channel();
        own.insert_own([(Aged { age_ms: 100, ..Aged::fresh(message(1)) }, sender)]);
        own.leader_changed(true);
        tokio::time::advance(std::time::Duration::from_millis(3_000)).await;
        let sent = own.take_outbox();
        assert_eq!((sent[0].age_ms, own.take_gossip(0)[0].age_ms), (3_100, 3_100));
        assert!(leader.insert_foreign(sent));
        tokio::time::advance(std::time::Duration::from_millis(4_000)).await;
        let proposed = leader.propose();
        assert_eq!(proposed[0].age_ms, 7_100);
        leader.abandon(&proposed);
        tokio::time::advance(POOL_AGE_MAX).await;
        assert!(leader.propose().is_empty());

        let aged = |n: u8, age_ms| Aged { age_ms, ..Aged::fresh(message(n)) };
        assert!(leader.insert_foreign(vec![aged(2, ARRIVING_AGE_MS_MAX + 1), aged(3, ARRIVING_AGE_MS_MAX)]));
        let (sender, receiver) = oneshot::channel();
        leader.insert_own([(aged(4, u64::MAX), sender)]);
        assert!(receiver.await.is_err());
        tokio::time::advance(POOL_AGE_MAX).await;
        let proposed = leader.propose();
        assert_eq!((numbers(&proposed), proposed[0].age_ms), (vec![3], AGE_MS_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_proposal_for_too_long_is_not_sent_on() {
        let mempool = Mempool::new(NodeId(1), PoolLimits::default());
        let _waiter = submit(&mempool, 1);
        mempool.propose();
        tokio::time::advance(std::time::Duration::from_millis(AGE_MS_MAX)).await;
        mempool.leader_changed(true);
        assert_eq!(numbers(&mempool.take_outbox()), [1]);
        tokio::time::advance(std::time::Duration::from_millis(1)).await;
        mempool.leader_changed(true);
        assert!(mempool.take_outbox().is_empty());
    }

    #[tokio::test]
    async fn all_who_wait_for_the_same_content_hear_of_it_once() {
        let mempool = Mempool::new(NodeId(1), PoolLimits::default());
        let (a, b) = (submit(&mempool, 1), submit(&mempool, 1));
        assert_eq!(mempool.len(), 1);
        let outcome = Outcome::Rejected(Rejection::TooLarge);
        mempool.settle(&[(message(1).content_id(), outcome.clone())]);
        assert_eq!((a.await.unwrap(), b.await.unwrap()), (outcome.clone(), outcome));
        assert_eq!(mempool.len(), 0);
    }

    #[tokio::test]
    async fn only_the_first_submission_of_a_content_is_no_duplicate() {
        use lockstep_types::{Height, MessageId, Sequence};
        let ordered = |via: u64| Outcome::Ordered {
            message_id: MessageId([1; 32]),
            sequence: Sequence(5),
            height: Height(2),
            task_id: None,
            via: NodeId(via),
        };
        let mempool = Mempool::new(NodeId(1), PoolLimits::default());
        let (a, b) = (submit(&mempool, 1), submit(&mempool, 1));
        mempool.settle(&[(message(1).content_id(), ordered(1))]);
        assert_eq!((a.await.unwrap(), b.await.unwrap()), (ordered(1), as_retry(ordered(1))));
        let late = submit(&mempool, 1);
        mempool.settle(&[(message(1).content_id(), ordered(2))]);
        assert_eq!(late.await.unwrap(), as_retry(ordered(2)));
    }

    #[tokio::test]
    async fn without_room_the_waiter_hears_it_at_once() {
        let mempool = Mempool::new(NodeId(1), PoolLimits { messages_max: 1, bytes_max: 1 << 20 });
        let _first = submit(&mempool, 1);
        assert!(submit(&mempool, 2).await.is_err());
    }

    #[tokio::test]
    async fn a_project_that_floods_takes_neither_places_nor_turns_from_another_whoever_took_its_messages_in() {
        let limits = PoolLimits { messages_max: 3_000, bytes_max: 64 << 20 };
        for is_own in [true, false] {
            let mempool = Mempool::new(NodeId(1), limits);
            mempool.leader_changed(true);
            let flood: Vec<_> = (0_u32..10_000).map(|n| Aged::fresh(of(1, &n.to_be_bytes()))).collect();
            let (senders, mut waiters): (Vec<_>, Vec<_>) = flood.iter().map(|_| oneshot::channel()).unzip();
            if is_own {
                mempool.insert_own(flood.into_iter().zip(senders));
                let is_refused = |waiter: &mut oneshot::Receiver<_>| waiter.try_recv() == Err(TryRecvError::Closed);
                let refused: Vec<bool> = waiters.iter_mut().map(is_refused).collect();
                assert_eq!(refused.into_iter().filter(|refused| *refused).count(), 8_499);
            } else {
                assert!(!mempool.insert_foreign(flood));
            }
            assert_eq!(mempool.len(), 1_501);
            let mut others: Vec<_> = (0..100)
                .map(|n| {
                    let (sender, receiver) = oneshot::channel();
                    mempool.insert_own([(Aged::fresh(of(2, &[n])), sender)]);
                    receiver
                })
                .collect();
            let waits = |waiter: &mut oneshot::Receiver<_>| waiter.try_recv() == Err(TryRecvError::Empty);
            assert!(others.iter_mut().all(waits));
            let of_other =
                |taken: &[Aged]| taken.iter().filter(|aged| aged.message.message().project_id.0 == 2).count();
            assert_eq!(of_other(&mempool.propose()), 100, "in the first batch");
            assert_eq!(of_other(&mempool.take_outbox()), 100, "in the first bundle");
        }
    }

    #[test]
    fn what_came_in_while_the_process_stood_still_is_refused_and_later_messages_are_taken() {
        let (max, grace) = (milliseconds(STALL_MAX), milliseconds(STALL_GRACE));
        let mempool = Mempool::new(NodeId(1), PoolLimits::default());
        let mut state = mempool.state.lock();
        assert!(!state.is_stalled(10 * max), "nothing is known before the first look");
        state.note_stall(10 * max);
        assert!(!state.is_stalled(11 * max));
        assert!(state.is_stalled(11 * max + 1), "a request may be handled before the look that notices");
        state.note_stall(20 * max);
        assert!(state.is_stalled(20 * max + grace - 1));
        state.note_stall(20 * max + grace);
        assert!(!state.is_stalled(20 * max + grace));
    }

    #[test]
    fn a_new_leader_gets_everything_that_is_not_ordered() {
        let mempool = Mempool::new(NodeId(1), PoolLimits::default());
        let _waiters: Vec<_> = (0..3).map(|n| submit(&mempool, n)).collect();
        assert!(mempool.take_outbox().is_empty(), "nothing is queued for sending while no other node leads");
        mempool.leader_changed(true);
        let sent = mempool.take_outbox();
        assert_eq!(numbers(&sent), [0, 1, 2]);
        mempool.note_sent(&sent);
        assert!(mempool.take_outbox().is_empty());
        mempool.settle(&[(message(1).content_id(), Outcome::Rejected(Rejection::TooLarge))]);
        mempool.leader_changed(true);
        assert_eq!(numbers(&mempool.take_outbox()), [0, 2]);
    }

    #[test]
    fn only_own_messages_that_still_wait_are_gossiped() {
        let mempool = Mempool::new(NodeId(1), PoolLimits::default());
        let _waiters: Vec<_> = (0..2).map(|n| submit(&mempool, n)).collect();
        mempool.insert_foreign(vec![Aged::fresh(message(9))]);
        mempool.settle(&[(message(0).content_id(), Outcome::Rejected(Rejection::TooLarge))]);
        assert_eq!(numbers(&mempool.take_gossip(0)), [1]);
        assert!(mempool.take_gossip(0).is_empty());
    }
}
