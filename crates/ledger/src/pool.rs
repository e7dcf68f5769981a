//! Messages that wait for a place: bounded, without repeats, each project's in the order of their arrival. A project has its
//! share of the places, and its turns when they are taken.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_types::{ContentId, ProjectId, VerifiedMessage};

use crate::turns::Turns;

/// Bounds of a [`Pool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLimits {
    /// Most messages.
    pub messages_max: usize,
    /// Most bytes, by [`lockstep_types::Message::cost_bytes`].
    pub bytes_max: usize,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self { messages_max: 50_000, bytes_max: 64 << 20 }
    }
}

/// What [`Pool::insert`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It waits now.
    New,
    /// The same content waits already.
    Known,
    /// There is no room for more of its project; nothing changed.
    Full,
}

/// A message with its age: the time since it came in at the node that took it in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aged {
    /// The message.
    pub message: Arc<VerifiedMessage>,
    /// How long it waited so far, on all nodes that it came by, in milliseconds.
    pub age_ms: u64,
}

impl Aged {
    /// One that has just come in.
    pub fn fresh(message: Arc<VerifiedMessage>) -> Self {
        Self { message, age_ms: 0 }
    }
}

#[derive(Debug)]
struct Entry {
    message: Arc<VerifiedMessage>,
    ticket: u64,
    proposed: bool,
    arrived_ms: u64,
    /// Its age when it arrived.
    age_ms: u64,
}

impl Entry {
    /// It as it is now: its waits here and on nodes before are added up.
    fn aged(&self, now_ms: u64) -> Aged {
        let waited_ms = now_ms.saturating_sub(self.arrived_ms);
        Aged { message: self.message.clone(), age_ms: self.age_ms.saturating_add(waited_ms) }
    }
}

/// What a project has in the pool, under proposal or not.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    messages: usize,
    bytes: usize,
}

/// See the module's documentation. Times are milliseconds of any monotonic clock, given by the caller.
#[derive(Debug)]
pub struct Pool {
    limits: PoolLimits,
    entries: BTreeMap<ContentId, Entry>,
    /// All entries by arrival.
    arrivals: BTreeMap<u64, ContentId>,
    /// Those not under proposal.
    waiting: Turns,
    /// What each project holds.
    held: BTreeMap<ProjectId, Held>,
    bytes: usize,
    next_ticket: u64,
}

impl Pool {
    /// An empty pool.
    pub fn new(limits: PoolLimits) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            waiting: Turns::default(),
            held: BTreeMap::new(),
            bytes: 0,
            next_ticket: 0,
        }
    }

    /// Whether a project may have one more message, of so many bytes: as long as it holds no more than is free. This is the
    /// dynamic threshold of switches with a shared buffer (Choudhury and Hahne, "Dynamic queue length thresholds for
    /// shared-memory packet switches", 1998), with factor 1: while there is room anybody may use it, and the scarcer it
    /// becomes, the less each may hold. One project alone gets half of the pool, one that comes later half of what is left;
    /// where n go on wanting more than they get, each holds one of n + 1 parts in the end, and one stays free for who holds
    /// less.
    fn has_room(&self, project: ProjectId, bytes: usize) -> bool {
        let held = self.held.get(&project).copied().unwrap_or_default();
        let free = Held {
            messages: self.limits.messages_max.saturating_sub(self.entries.len()),
            bytes: self.limits.bytes_max.saturating_sub(self.bytes),
        };
        let fits = free.messages > 0 && bytes <= free.bytes;
        fits && held.messages <= free.messages && held.bytes <= free.bytes
    }

    /// Adds a message at the end. One that waits already keeps the age that it has.
    pub fn insert(&mut self, Aged { message, age_ms }: Aged, now_ms: u64) -> Inserted {
        let id = message.content_id();
        if self.entries.contains_key(&id) {
            return Inserted::Known;
        }
        let (project, bytes) = (message.message().project_id, message.message().cost_bytes());
        if !self.has_room(project, bytes) {
            return Inserted::Full;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.bytes += bytes;
        let held = self.held.entry(project).or_default();
        held.messages += 1;
        held.bytes += bytes;
        self.arrivals.insert(ticket, id);
        self.waiting.insert(project, ticket, id);
        self.entries.insert(id, Entry { message, ticket, proposed: false, arrived_ms: now_ms, age_ms });
        Inserted::New
    }

    /// Takes messages that are not under proposal, of all projects in turns and of each the oldest, up to both limits but at
    /// least one if any waits, and marks them as proposed. Among each other they are in the order of arrival, so turns
    /// change nothing where all that waits is taken.
    pub fn propose(&mut self, messages_max: usize, bytes_max: usize, now_ms: u64) -> Vec<Aged> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < messages_max {
            let Some(next) = self.waiting.first() else { break };
            let Some(entry) = self.entries.get_mut(next) else { break };
            let cost_bytes = entry.message.message().cost_bytes();
            bytes += cost_bytes;
            if !taken.is_empty() && bytes > bytes_max {
                break;
            }
            entry.proposed = true;
            taken.push((entry.ticket, entry.aged(now_ms)));
            self.waiting.take_first(cost_bytes);
        }
        taken.sort_unstable_by_key(|(ticket, _)| *ticket);
        taken.into_iter().map(|(_, aged)| aged).collect()
    }

    /// Puts messages whose proposal failed back to their old places.
    pub fn abandon<'a>(&mut self, ids: impl IntoIterator<Item = &'a ContentId>) {
        for id in ids {
            if let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.proposed) {
                entry.proposed = false;
                self.waiting.insert(entry.message.message().project_id, entry.ticket, *id);
            }
        }
    }

    /// Drops a message that is ordered, or refused. Says whether it was there.
    pub fn remove(&mut self, id: &ContentId) -> bool {
        let Some(entry) = self.entries.remove(id) else { return false };
        let (project, bytes) = (entry.message.message().project_id, entry.message.message().cost_bytes());
        self.arrivals.remove(&entry.ticket);
        self.waiting.remove(project, entry.ticket);
        self.bytes -= bytes;
        if let Some(held) = self.held.get_mut(&project) {
            held.messages -= 1;
            held.bytes -= bytes;
            if held.messages == 0 {
                self.held.remove(&project);
            }
        }
        true
    }

    /// Drops what arrived before `before_ms` and is not under proposal; returns the ids.
    pub fn expire(&mut self, before_ms: u64) -> Vec<ContentId> {
        let old = |id: &&ContentId| self.entries.get(*id).is_some_and(|entry| entry.arrived_ms < before_ms);
        // Arrival order is time order, so the old ones are a prefix.
        let expired: Vec<ContentId> = self.arrivals.values().take_while(old).copied().collect();
        let waiting = |id: &ContentId| self.entries.get(id).is_some_and(|entry| !entry.proposed);
        let expired: Vec<ContentId> = expired.into_iter().filter(waiting).collect();
        for id in &expired {
            self.remove(id);
        }
        expired
    }

    /// A message that waits, by its content id.
    pub fn get(&self, id: &ContentId) -> Option<&Arc<VerifiedMessage>> {
        self.entries.get(id).map(|entry| &entry.message)
    }

    /// The same with its age.
    pub fn get_aged(&self, id: &ContentId, now_ms: u64) -> Option<Aged> {
        self.entries.get(id).map(|entry| entry.aged(now_ms))
    }

    /// How many messages are here, proposed ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is here.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many messages are not under proposal.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lockstep_types::{Address, Api, Evidence, Message, ProjectId, Signature};

    use super::*;

    fn message(n: u32) -> Arc<VerifiedMessage> {
        of(1, n, 4)
    }

    /// A message of a project, with so many bytes of data.
    fn of(project: u64, n: u32, bytes: usize) -> Arc<VerifiedMessage> {
        let data = n.to_be_bytes().into_iter().chain(std::iter::repeat(0)).take(bytes).collect::<Vec<_>>();
        Arc::new(VerifiedMessage::from_recovered(Message {
            api: Api::Apinode,
            project_id: ProjectId(project),
            project_version: "1".into(),
            data: Bytes::from(data),
            device: Address([1; 20]),
            nonce: Bytes::new(),
            via: lockstep_types::NodeId(0),
            evidence: Evidence::Device(Signature([0; 65])),
        }))
    }

    fn fresh(n: u32) -> Aged {
        Aged::fresh(message(n))
    }

    fn pool(messages_max: usize) -> Pool {
        Pool::new(PoolLimits { messages_max, bytes_max: 1 << 20 })
    }

    #[test]
    fn messages_leave_in_the_order_of_arrival_also_after_a_failed_proposal() {
        let mut pool = pool(10);
        for n in 0..4 {
            assert_eq!(pool.insert(fresh(n), 0), Inserted::New);
        }
        let first = pool.propose(2, usize::MAX, 0);
        assert_eq!(first, [fresh(0), fresh(1)]);
        pool.abandon(first.iter().map(|m| m.message.content_id()).collect::<Vec<_>>().iter());
        assert_eq!(pool.propose(10, usize::MAX, 0), [fresh(0), fresh(1), fresh(2), fresh(3)]);
        assert!(pool.propose(10, usize::MAX, 0).is_empty());
    }

    #[test]
    fn ages_add_up_over_pools_and_go_on_while_a_proposal_is_under_way() {
        let (mut own, mut leaders) = (pool(10), pool(10));
        // Each node has a clock of its own.
        own.insert(Aged { age_ms: 40, ..fresh(0) }, 1_000);
        let id = message(0).content_id();
        let sent = own.get_aged(&id, 1_300).unwrap();
        assert_eq!(sent.age_ms, 340);
        leaders.insert(sent, 77);
        // A copy that comes later, whatever its age.
        assert_eq!(leaders.insert(fresh(0), 80), Inserted::Known);
        assert_eq!(leaders.propose(1, usize::MAX, 100)[0].age_ms, 363);
        leaders.abandon([&id]);
        assert_eq!(leaders.propose(1, usize::MAX, 2_077)[0].age_ms, 2_340);
        assert_eq!(leaders.get_aged(&id, 0).unwrap().age_ms, 340, "a clock that went back");
        own.insert(Aged { age_ms: u64::MAX, ..fresh(1) }, 0);
        assert_eq!(own.get_aged(&message(1).content_id(), 9).unwrap().age_ms, u64::MAX);
    }

    #[test]
    fn repeats_are_known_and_a_full_pool_stays_as_it_is() {
        let mut pool = pool(2);
        pool.insert(fresh(0), 0);
        assert_eq!(pool.insert(fresh(0), 0), Inserted::Known);
        pool.insert(fresh(1), 0);
        assert_eq!(pool.insert(fresh(2), 0), Inserted::Full);
        assert!(pool.remove(&message(0).content_id()));
        assert!(!pool.remove(&message(0).content_id()));
        assert_eq!(pool.insert(fresh(2), 0), Inserted::New);
        assert_eq!(pool.len(), 2);
    }

    /// Inserts messages of a project until there is no room; says how many it has got.
    fn fill(pool: &mut Pool, project: u64, bytes: usize) -> usize {
        let insert = |n: &u32| pool.insert(Aged::fresh(of(project, *n, bytes)), 0) == Inserted::New;
        (0..1_000_000).take_while(insert).count()
    }

    #[test]
    fn one_project_alone_has_half_of_the_places_and_the_more_want_more_the_less_each_has() {
        const PROJECTS: u64 = 10;
        let mut pool = pool(1_200);
        assert_eq!(fill(&mut pool, 1, 4), 601);
        // What is ordered leaves the pool, and each sends as much again as it may.
        for project in (1..=PROJECTS).cycle().take(400) {
            let held = pool.held.get(&ProjectId(project)).map_or(0, |held| held.messages);
            for n in 0..held {
                assert!(pool.remove(&of(project, n as u32, 4).content_id()));
            }
            fill(&mut pool, project, 4);
        }
        let share = 1_200 / (PROJECTS as usize + 1);
        for (project, held) in &pool.held {
            assert!(held.messages.abs_diff(share) <= share / 10, "{project}: {held:?}, {share}");
        }
        let free = 1_200 - pool.len();
        assert!(free.abs_diff(share) <= share / 10, "{free} are free, {share}");
    }

    #[test]
    fn who_holds_little_finds_room_although_others_hold_all_they_may() {
        for (messages_max, bytes_max, bytes) in [(5_000, 1 << 30, 4), (1 << 30, 64 << 20, 10_000)] {
            let mut pool = Pool::new(PoolLimits { messages_max, bytes_max });
            for flooding in 1..=8 {
                fill(&mut pool, flooding, bytes);
                // Again, since others may have left less than their share meanwhile.
                assert_eq!(fill(&mut pool, flooding, bytes), 0);
                assert_eq!(pool.insert(Aged::fresh(of(1_000 + flooding, 1, bytes)), 0), Inserted::New, "{flooding}");
            }
            assert!(pool.len() < messages_max && pool.bytes < bytes_max);
        }
    }

    #[test]
    fn a_proposal_is_not_filled_by_one_project_while_others_wait() {
        let mut pool = pool(30_000);
        fill(&mut pool, 1, 200);
        for n in 0..5 {
            pool.insert(Aged::fresh(of(2, n, 200)), 0);
            pool.insert(Aged::fresh(of(3, n, 200)), 0);
        }
        let taken = pool.propose(200, usize::MAX, 0);
        let of_project = |project: u64| -> Vec<_> {
            taken.iter().filter(|aged| aged.message.message().project_id.0 == project).cloned().collect()
        };
        for project in [2, 3] {
            let expected: Vec<_> = (0..5).map(|n| Aged::fresh(of(project, n, 200))).collect();
            assert_eq!(of_project(project), expected);
        }
        let first: Vec<_> = (0..190).map(|n| Aged::fresh(of(1, n, 200))).collect();
        assert_eq!(of_project(1), first);
    }

    #[test]
    fn what_is_taken_together_is_in_the_order_of_arrival_whosever_it_is() {
        let mut pool = pool(1_000);
        let arrived: Vec<_> = (0..300).map(|n| Aged::fresh(of(u64::from(n % 3), n, 200))).collect();
        arrived.iter().for_each(|message| assert_eq!(pool.insert(message.clone(), 0), Inserted::New));
        assert_eq!(pool.propose(300, usize::MAX, 0), arrived);
    }

    #[test]
    fn a_pool_that_was_emptied_by_any_way_is_as_it_was() {
        let mut pool = pool(100);
        for way in 0..3 {
            assert_eq!(fill(&mut pool, 1, 4), 51);
            let ids: Vec<_> = (0..51).map(|n| message(n).content_id()).collect();
            match way {
                0 => ids.iter().for_each(|id| assert!(pool.remove(id))),
                1 => assert_eq!(pool.expire(1).len(), 51),
                _ => {
                    assert_eq!(pool.propose(30, usize::MAX, 0).len(), 30);
                    pool.abandon(&ids[..10]);
                    assert_eq!(pool.waiting(), 31);
                    ids.iter().for_each(|id| assert!(pool.remove(id)));
                }
            }
            assert!(pool.is_empty() && pool.held.is_empty() && pool.waiting.is_empty() && pool.arrivals.is_empty());
            assert_eq!(pool.bytes, 0);
        }
    }

    #[test]
    fn bytes_bound_a_proposal_but_one_message_always_goes() {
        let mut pool = pool(10);
        for n in 0..3 {
            pool.insert(fresh(n), 0);
        }
        assert_eq!(pool.propose(10, 1, 0).len(), 1);
        let two = 2 * message(0).message().cost_bytes();
        assert_eq!(pool.propose(10, two, 0).len(), 2);
    }

    #[test]
    fn what_is_old_expires_unless_it_is_under_proposal() {
        let mut pool = pool(10);
        for n in 0..4 {
            pool.insert(fresh(n), u64::from(n));
        }
        pool.propose(1, usize::MAX, 0);
        assert_eq!(pool.expire(3), [message(1).content_id(), message(2).content_id()]);
        assert_eq!(pool.len(), 2);
    }
}
