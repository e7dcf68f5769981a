//! Messages that wait for a place: bounded, without repeats, in the order of their arrival.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_types::{ContentId, VerifiedMessage};

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
    /// There is no room; nothing changed.
    Full,
}

#[derive(Debug)]
struct Entry {
    message: Arc<VerifiedMessage>,
    ticket: u64,
    proposed: bool,
    arrived_ms: u64,
}

/// See the module's documentation. Times are milliseconds of any monotonic clock, given by the caller.
#[derive(Debug)]
pub struct Pool {
    limits: PoolLimits,
    entries: BTreeMap<ContentId, Entry>,
    /// All entries by arrival.
    arrivals: BTreeMap<u64, ContentId>,
    /// Those not under proposal, by arrival.
    waiting: BTreeMap<u64, ContentId>,
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
            waiting: BTreeMap::new(),
            bytes: 0,
            next_ticket: 0,
        }
    }

    /// Adds a message at the end.
    pub fn insert(&mut self, message: Arc<VerifiedMessage>, now_ms: u64) -> Inserted {
        let id = message.content_id();
        if self.entries.contains_key(&id) {
            return Inserted::Known;
        }
        let bytes = message.message().cost_bytes();
        if self.entries.len() >= self.limits.messages_max || self.bytes + bytes > self.limits.bytes_max {
            return Inserted::Full;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.bytes += bytes;
        self.arrivals.insert(ticket, id);
        self.waiting.insert(ticket, id);
        self.entries.insert(id, Entry { message, ticket, proposed: false, arrived_ms: now_ms });
        Inserted::New
    }

    /// Takes the oldest messages that are not under proposal, up to both limits but at least one if any waits, and
    /// marks them as proposed.
    pub fn propose(&mut self, messages_max: usize, bytes_max: usize) -> Vec<Arc<VerifiedMessage>> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < messages_max {
            let Some(next) = self.waiting.first_entry() else { break };
            let Some(entry) = self.entries.get_mut(next.get()) else { break };
            bytes += entry.message.message().cost_bytes();
            if !taken.is_empty() && bytes > bytes_max {
                break;
            }
            entry.proposed = true;
            taken.push(entry.message.clone());
            next.remove();
        }
        taken
    }

    /// Puts messages whose proposal failed back to their old places.
    pub fn abandon<'a>(&mut self, ids: impl IntoIterator<Item = &'a ContentId>) {
        for id in ids {
            if let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.proposed) {
                entry.proposed = false;
                self.waiting.insert(entry.ticket, *id);
            }
        }
    }

    /// Drops a message that is ordered, or refused. Says whether it was there.
    pub fn remove(&mut self, id: &ContentId) -> bool {
        let Some(entry) = self.entries.remove(id) else { return false };
        self.arrivals.remove(&entry.ticket);
        self.waiting.remove(&entry.ticket);
        self.bytes -= entry.message.message().cost_bytes();
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
        Arc::new(VerifiedMessage::from_recovered(Message {
            api: Api::Apinode,
            project_id: ProjectId(1),
            project_version: "1".into(),
            data: Bytes::from(n.to_be_bytes().to_vec()),
            device: Address([1; 20]),
            nonce: Bytes::new(),
            via: lockstep_types::NodeId(0),
            evidence: Evidence::Device(Signature([0; 65])),
        }))
    }

    fn pool(messages_max: usize) -> Pool {
        Pool::new(PoolLimits { messages_max, bytes_max: 1 << 20 })
    }

    #[test]
    fn messages_leave_in_the_order_of_arrival_also_after_a_failed_proposal() {
        let mut pool = pool(10);
        for n in 0..4 {
            assert_eq!(pool.insert(message(n), 0), Inserted::New);
        }
        let first = pool.propose(2, usize::MAX);
        assert_eq!(first, [message(0), message(1)]);
        pool.abandon(first.iter().map(|m| m.content_id()).collect::<Vec<_>>().iter());
        assert_eq!(pool.propose(10, usize::MAX), [message(0), message(1), message(2), message(3)]);
        assert!(pool.propose(10, usize::MAX).is_empty());
    }

    #[test]
    fn repeats_are_known_and_a_full_pool_stays_as_it_is() {
        let mut pool = pool(2);
        pool.insert(message(0), 0);
        assert_eq!(pool.insert(message(0), 0), Inserted::Known);
        pool.insert(message(1), 0);
        assert_eq!(pool.insert(message(2), 0), Inserted::Full);
        assert!(pool.remove(&message(0).content_id()));
        assert!(!pool.remove(&message(0).content_id()));
        assert_eq!(pool.insert(message(2), 0), Inserted::New);
        assert_eq!(pool.len(), 2);
    }

    #[test]
    fn bytes_bound_a_proposal_but_one_message_always_goes() {
        let mut pool = pool(10);
        for n in 0..3 {
            pool.insert(message(n), 0);
        }
        assert_eq!(pool.propose(10, 1).len(), 1);
        let two = 2 * message(0).message().cost_bytes();
        assert_eq!(pool.propose(10, two).len(), 2);
    }

    #[test]
    fn what_is_old_expires_unless_it_is_under_proposal() {
        let mut pool = pool(10);
        for n in 0..4 {
            pool.insert(message(n), u64::from(n));
        }
        pool.propose(1, usize::MAX);
        assert_eq!(pool.expire(3), [message(1).content_id(), message(2).content_id()]);
        assert_eq!(pool.len(), 2);
    }
}
