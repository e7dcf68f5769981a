//! The network between nodes: each direction of each pair is a link of its own, that delays, loses, repeats and reorders
//! what is sent, or is cut.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use lockstep_consensus::runtime::Scope;
use lockstep_network::{
    Answer, CallError, Channel, GossipFeed, LogView, Peer, PeerState, Wire, WireClient, check_store,
};
use lockstep_types::{Incarnation, NodeId};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use super::bugs::{Bug, Bugs};
use super::tamper;
use super::trace::Trace;
use crate::random::Random;

/// How one direction between two nodes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quality {
    /// Shortest time on the way, in microseconds.
    pub delay_us_min: u64,
    /// Longest; what takes it is sent before something that overtakes it.
    pub delay_us_max: u64,
    /// Of a thousand messages so many are lost.
    pub lost_of_1000: u64,
    /// Of a thousand messages so many come twice, the second time up to a second later.
    pub twice_of_1000: u64,
    /// Nothing gets through.
    pub is_cut: bool,
}

impl Quality {
    /// Between machines of one place.
    pub const GOOD: Self =
        Self { delay_us_min: 300, delay_us_max: 2_000, lost_of_1000: 0, twice_of_1000: 0, is_cut: false };
}

/// A message that comes a second time does so within this time.
const REPEATED_WITHIN_US: u64 = 1_000_000;

/// A node that is up, as the network sees it.
struct End {
    life: u64,
    scope: Scope,
    incarnation: Incarnation,
    answers: BTreeMap<&'static str, Arc<Answer>>,
    gossip: GossipFeed,
    log: Option<Arc<dyn LogView>>,
    members: BTreeMap<NodeId, Peer>,
    peers: watch::Sender<Arc<[PeerState]>>,
}

struct Inner {
    ends: BTreeMap<NodeId, End>,
    lives: u64,
    links: BTreeMap<(NodeId, NodeId), Quality>,
    random: Random,
}

/// All links. Clones are the same network.
#[derive(Clone)]
pub struct Links {
    inner: Arc<Mutex<Inner>>,
    trace: Trace,
    bugs: Bugs,
}

/// What becomes of a message on a link.
struct Fate {
    arrives_after: Option<Duration>,
    again_after: Option<Duration>,
}

impl Inner {
    fn quality(&self, from: NodeId, to: NodeId) -> Quality {
        self.links.get(&(from, to)).copied().unwrap_or(Quality::GOOD)
    }

    fn fate(&mut self, from: NodeId, to: NodeId) -> Fate {
        let quality = self.quality(from, to);
        let mut below = |bound: u64| self.random.number() % bound.max(1);
        let delay = quality.delay_us_min + below(quality.delay_us_max - quality.delay_us_min + 1);
        let is_lost = below(1_000) < quality.lost_of_1000;
        let is_repeated = below(1_000) < quality.twice_of_1000;
        let again = below(REPEATED_WITHIN_US);
        Fate {
            arrives_after: (!is_lost && !quality.is_cut).then_some(Duration::from_micros(delay)),
            again_after: (is_repeated && !quality.is_cut).then_some(Duration::from_micros(again)),
        }
    }

    /// Tells every end who is there.
    fn tell_peers(&self) {
        for (own, end) in &self.ends {
            let state = |peer: &Peer| PeerState {
                node: peer.node,
                name: peer.name.clone(),
                connected: self.ends.contains_key(&peer.node),
                address: None,
                rtt: None,
            };
            let others = end.members.values().filter(|peer| peer.node != *own);
            let states: Arc<[PeerState]> = others.map(state).collect();
            end.peers.send_if_modified(|known| {
                let changed = *known != states;
                *known = states;
                changed
            });
        }
    }
}

impl Links {
    /// A network without nodes.
    pub fn new(seed: u64, trace: Trace, bugs: Bugs) -> Self {
        let (ends, links) = (BTreeMap::new(), BTreeMap::new());
        let inner = Inner { ends, lives: 0, links, random: Random::new(seed) };
        Self { inner: Arc::new(Mutex::new(inner)), trace, bugs }
    }

    /// A node comes up; what it serves runs within its scope.
    pub fn up(&self, node: NodeId, scope: Scope, incarnation: Incarnation, gossip: GossipFeed) -> Arc<dyn Wire> {
        let mut inner = self.inner.lock();
        inner.lives += 1;
        let life = inner.lives;
        let (answers, members, peers) = (BTreeMap::new(), BTreeMap::new(), watch::Sender::new(Arc::default()));
        inner.ends.insert(node, End { life, scope, incarnation, answers, gossip, log: None, members, peers });
        Arc::new(Port { links: self.clone(), node, life })
    }

    /// A node goes down.
    pub fn down(&self, node: NodeId) {
        let gone = self.inner.lock().ends.remove(&node);
        self.inner.lock().tell_peers();
        // What it serves is dropped without the lock.
        drop(gone);
    }

    /// Changes a link, in one direction.
    pub fn set(&self, from: NodeId, to: NodeId, quality: Quality) {
        self.inner.lock().links.insert((from, to), quality);
    }

    /// Whether something gets through in both directions.
    pub fn are_open(&self, one: NodeId, other: NodeId) -> bool {
        let inner = self.inner.lock();
        !inner.quality(one, other).is_cut && !inner.quality(other, one).is_cut
    }

    /// All links are well again.
    pub fn heal(&self) {
        self.inner.lock().links.clear();
    }
}

/// A node's end of the network.
struct Port {
    links: Links,
    node: NodeId,
    life: u64,
}

impl Port {
    fn with<T>(&self, change: impl FnOnce(&mut End) -> T) -> Option<T> {
        let mut inner = self.links.inner.lock();
        let end = inner.ends.get_mut(&self.node).filter(|end| end.life == self.life)?;
        Some(change(end))
    }
}

impl Wire for Port {
    fn connect(&self, target: NodeId, channel: Channel) -> Box<dyn WireClient> {
        let (links, from, life) = (self.links.clone(), self.node, self.life);
        Box::new(Stream { links, from, life, target, channel, opened_to: None })
    }

    fn serve(&self, channel: Channel, answer: Answer) {
        self.with(|end| end.answers.insert(channel.name(), Arc::new(answer)));
    }

    fn set_log_view(&self, log: Arc<dyn LogView>) {
        self.with(|end| end.log = Some(log));
        self.links.inner.lock().tell_peers();
    }

    fn publish(&self, bytes: Bytes) {
        let bytes = tamper::bundle(self.links.bugs, bytes);
        let mut inner = self.links.inner.lock();
        let inner = &mut *inner;
        let Some(own) = inner.ends.get(&self.node).filter(|end| end.life == self.life) else { return };
        let others: Vec<NodeId> = own.members.keys().copied().filter(|node| *node != self.node).collect();
        for to in others {
            let (fate, from) = (inner.fate(self.node, to), self.node);
            let (links, bytes) = (self.links.clone(), bytes.clone());
            let Some(delay) = fate.arrives_after else { continue };
            tokio::spawn(async move {
                sleep(delay).await;
                let feed = {
                    let inner = links.inner.lock();
                    let end = inner.ends.get(&to).filter(|end| end.members.contains_key(&from));
                    end.map(|end| end.gossip.clone())
                };
                if let Some(feed) = feed {
                    links.trace.note([from.0, to.0, 9], &bytes);
                    feed.deliver(from, bytes);
                }
            });
        }
    }

    fn watch_peers(&self) -> watch::Receiver<Arc<[PeerState]>> {
        self.with(|end| end.peers.subscribe()).unwrap_or_else(|| watch::Sender::new(Arc::default()).subscribe())
    }

    fn set_member(&self, peer: Peer) {
        self.with(|end| end.members.insert(peer.node, peer));
        self.links.inner.lock().tell_peers();
    }

    fn remove_member(&self, node: NodeId) {
        self.with(|end| end.members.remove(&node));
        self.links.inner.lock().tell_peers();
    }
}

/// A stream to a member.
struct Stream {
    links: Links,
    from: NodeId,
    life: u64,
    target: NodeId,
    channel: Channel,
    /// The life of the other end that it was opened to.
    opened_to: Option<u64>,
}

fn channel_number(channel: Channel) -> u64 {
    match channel {
        Channel::Raft => 1,
        Channel::Bundle => 2,
        Channel::Control => 3,
        Channel::Snapshot => 4,
    }
}

impl Stream {
    /// Looks who is at the other end, and opens the stream if need be: both say `Hello`.
    fn open(&mut self) -> Result<(), CallError> {
        let inner = self.links.inner.lock();
        let unreachable = CallError::Unreachable(self.target);
        let own = inner.ends.get(&self.from).filter(|end| end.life == self.life).ok_or(unreachable.clone())?;
        let Some(other) = inner.ends.get(&self.target) else {
            self.opened_to = None;
            return Err(unreachable);
        };
        // Who is no member any more is hung up on.
        let are_members = other.members.contains_key(&self.from) && own.members.contains_key(&self.target);
        if !are_members {
            self.opened_to = None;
            return Err(CallError::Refused(format!(
                "nodes {} and {} are not members of one network",
                self.from, self.target
            )));
        }
        if self.opened_to == Some(other.life) {
            return Ok(());
        }
        if self.opened_to.take().is_some() {
            return Err(CallError::Closed("the other end was started again".into()));
        }
        let (Some(own_log), Some(other_log)) = (&own.log, &other.log) else { return Err(unreachable) };
        if !self.links.bugs.has(Bug::VoteAfterWipe) {
            let known = |of: &End, node: NodeId| of.members.get(&node).map(|peer| peer.incarnation);
            let says = |node: NodeId, end: &End, log: &Arc<dyn LogView>, to: &End, to_log: &Arc<dyn LogView>| {
                let known = known(to, node).ok_or_else(|| format!("node {node} is not known"))?;
                let reaches = (log.last_index(), to_log.acknowledged(node));
                check_store(node, (end.incarnation.as_bytes(), &known), reaches)
            };
            says(self.from, own, own_log, other, other_log)
                .and_then(|()| says(self.target, other, other_log, own, own_log))
                .map_err(CallError::Refused)?;
        }
        self.opened_to = Some(other.life);
        Ok(())
    }

    /// Sends a request on its way; what comes back does so by the receiver, or never.
    fn send(&self, request: Bytes) -> oneshot::Receiver<Bytes> {
        let (answered, answer) = oneshot::channel();
        let (links, from, to, channel) = (self.links.clone(), self.from, self.target, self.channel);
        let life = self.opened_to;
        let fate = links.inner.lock().fate(from, to);
        if let Some(delay) = fate.again_after {
            let (links, request) = (links.clone(), request.clone());
            tokio::spawn(async move {
                sleep(delay).await;
                drop(links.deliver((from, to, life), channel, request));
            });
        }
        tokio::spawn(async move {
            let Some(delay) = fate.arrives_after else { return lost(answered).await };
            sleep(delay).await;
            let Some(served) = links.deliver((from, to, life), channel, request) else { return };
            let Ok(bytes) = served.await else { return };
            let back = links.inner.lock().fate(to, from);
            let Some(delay) = back.arrives_after else { return lost(answered).await };
            sleep(delay).await;
            links.trace.note([to.0, from.0, 10 + channel_number(channel)], &bytes);
            let _ = answered.send(bytes);
        });
        answer
    }
}

/// Longest time that anybody waits for an answer.
const WAITED_MAX: Duration = Duration::from_secs(60);

/// Keeps whoever waits for an answer waiting.
async fn lost(answered: oneshot::Sender<Bytes>) {
    let mut answered = answered;
    let _ = timeout(WAITED_MAX, answered.closed()).await;
}

impl Links {
    /// Has a request served, within the scope of whom it is for. `None`: that node is not there any more.
    fn deliver(
        &self,
        (from, to, life): (NodeId, NodeId, Option<u64>),
        channel: Channel,
        request: Bytes,
    ) -> Option<oneshot::Receiver<Bytes>> {
        let (answer, scope) = {
            let inner = self.inner.lock();
            let end = inner.ends.get(&to).filter(|end| Some(end.life) == life)?;
            (end.answers.get(channel.name())?.clone(), end.scope.clone())
        };
        self.trace.note([from.0, to.0, channel_number(channel)], &request);
        let (done, served) = oneshot::channel();
        let request = tamper::request(self.bugs, (from, to), channel, request);
        let serve = async move {
            let bytes = answer(from, request).await;
            let _ = done.send(bytes);
        };
        tokio::spawn(scope.run(serve.boxed()));
        Some(served)
    }
}

impl WireClient for Stream {
    fn call(&mut self, request: Bytes, limit: Duration) -> BoxFuture<'_, Result<Bytes, CallError>> {
        async move {
            if let Err(error) = self.open() {
                // Whoever asks at once again must not do so for ever in no time.
                sleep(Duration::from_micros(100)).await;
                return Err(error);
            }
            if let Some(answer) = tamper::answer(self.links.bugs, self.channel, &request) {
                sleep(Duration::from_micros(500)).await;
                return Ok(answer);
            }
            // If this future is dropped, or fails, the stream is gone with it.
            let opened_to = self.opened_to;
            let answer = self.send(request);
            self.opened_to = None;
            let result = match timeout(limit, answer).await {
                Ok(Ok(bytes)) => Ok(bytes),
                Ok(Err(_)) => Err(CallError::Closed("the other end is gone".into())),
                Err(_) => Err(CallError::Timeout(limit)),
            };
            if result.is_ok() {
                self.opened_to = opened_to;
            }
            result
        }
        .boxed()
    }
}
