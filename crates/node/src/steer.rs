//! The leader's duties beside proposing batches: certificates, changes of membership, marks, and new rules.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use lockstep_consensus::{Consensus, Role, StateStore};
use lockstep_ledger::{Command, History as _, Members};
use lockstep_network::{Channel, Client, Handle};
use lockstep_types::certificate::batch_signer;
use lockstep_types::{BatchHash, BatchHeader, Certificate, Height, MemberSet, NodeId, Signature};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::certify::{Certifier, ROUND_TIMEOUT};
use crate::conflicts::{Conflicts, Sightings};
use crate::control::{SignedBatch, ask_to_certify, tell_conflict, tell_marks};
use crate::limits::{CERTIFY_INTERVAL, CONTROL_TIMEOUT, DUTIES_INTERVAL};
use crate::metrics;
use crate::supervisor::carry_on_panic;
use crate::tracker::Tracker;

/// What the leader's duties need.
#[derive(Clone)]
pub(crate) struct Steward {
    pub node: NodeId,
    pub state: StateStore,
    pub consensus: Consensus,
    pub network: Handle,
    pub tracker: Arc<Tracker>,
    pub certifier: Certifier,
    /// The newest rules that this node may activate.
    pub rules_known: u32,
    /// Who signed twice.
    pub conflicts: Conflicts,
    /// What voters signed lately, to notice who signs twice.
    pub seen: Arc<Mutex<Sightings>>,
}

/// A height to be certified.
#[derive(Debug, Clone)]
struct Round {
    header: BatchHeader,
    height: Height,
    hash: BatchHash,
    set: MemberSet,
}

/// A voter's answer about a height.
type Vote = (NodeId, Height, SignedBatch);

/// Answers that wait for the collector; a voter that has more waits.
const VOTES_MAX: usize = 256;

impl Steward {
    fn leads(&self) -> bool {
        self.consensus.status().borrow().role == Role::Leader
    }

    /// Asks for certificates while this node leads.
    pub async fn run_certification(self, stop: CancellationToken) {
        let (rounds, _) = watch::channel(None::<Round>);
        let (votes, mut inbox) = mpsc::channel::<Vote>(VOTES_MAX);
        let mut askers: BTreeMap<NodeId, tokio_util::sync::DropGuard> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        let mut tick = interval(CERTIFY_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let Some(round) = self.next_round().await else { continue };
            for voter in round.set.voters().filter(|voter| voter.node != self.node) {
                askers.entry(voter.node).or_insert_with(|| {
                    let end = stop.child_token();
                    let client = self.network.client(voter.node, Channel::Control);
                    tasks.spawn(ask_again_and_again(client, rounds.subscribe(), votes.clone(), end.clone()));
                    end.drop_guard()
                });
            }
            // Whoever is no voter any more is asked no more.
            askers.retain(|node, _| round.set.voter(*node).is_some());
            while let Some(ended) = tasks.try_join_next() {
                // A voter that nobody asks any more would be missing in every certificate.
                ended.unwrap_or_else(carry_on_panic);
            }
            rounds.send_replace(Some(round.clone()));
            let collected = self.collect(&round, &mut inbox);
            let certificate = tokio::select! {
                () = stop.cancelled() => return,
                certificate = collected => certificate,
            };
            rounds.send_replace(None);
            if let Some(certificate) = certificate {
                let proposal = self.consensus.propose(Command::encode_certificate(&certificate));
                if let Ok(Err(error)) = timeout(CONTROL_TIMEOUT, proposal).await {
                    tracing::debug!(%error, "a certificate was not committed; another one follows");
                }
            }
        }
    }

    /// The newest height that can be certified now, if this node leads and there is one.
    async fn next_round(&self) -> Option<Round> {
        if !self.leads() {
            return None;
        }
        let head = self.tracker.head().borrow().clone()?;
        let members = self.tracker.members().borrow().clone();
        let height = members.boundary().map_or(head.height, |boundary| boundary.min(head.height));
        if height <= head.final_height {
            return None;
        }
        let state = self.state.clone();
        let header = state.blocking().run(move || state.header(height)).await.ok()?.ok()??;
        Some(Round { height, hash: header.hash(), header, set: members.set_at(height).clone() })
    }

    /// Collects signatures until there is a majority, or the round takes too long.
    async fn collect(&self, round: &Round, inbox: &mut mpsc::Receiver<Vote>) -> Option<Certificate> {
        let started = Instant::now();
        let mut signatures = BTreeMap::new();
        if round.set.voter(self.node).is_some() {
            match self.certifier.sign(round.height, round.hash).await {
                Ok((.., signature)) => drop(signatures.insert(self.node, signature)),
                Err(error) => tracing::debug!(%error, height = %round.height, "this node does not sign"),
            }
        }
        while signatures.len() < round.set.majority() {
            let vote = timeout_at(started + ROUND_TIMEOUT, inbox.recv()).await.ok()??;
            let (node, height, (hash, signature, header)) = vote;
            let signer = round.set.voter(node);
            if height != round.height || signer.is_none() || batch_signer(&hash, &signature) != signer {
                continue;
            }
            if hash == round.hash {
                self.look_for_conflict(node, round.header.clone(), signature).await;
                signatures.insert(node, signature);
            } else {
                let own = |header: &BatchHeader| header.hash() == hash && header.height == height;
                if let Some(header) = header.filter(own) {
                    self.look_for_conflict(node, header, signature).await;
                }
                tracing::error!(%node, %height, theirs = %hash, ours = %round.hash, "a voter has another batch at this height");
                metrics::disagreement();
            }
        }
        metrics::certified(started.elapsed().as_secs_f64());
        let signatures = signatures.into_iter().collect();
        Some(Certificate { height: round.height, hash: round.hash, signatures })
    }

    /// Notes what a voter signed, and keeps the proof if it signed another batch at that height before.
    async fn look_for_conflict(&self, node: NodeId, header: BatchHeader, signature: Signature) {
        let Some(conflict) = self.seen.lock().see(node, header, signature) else { return };
        let (conflicts, members) = (self.conflicts.clone(), self.tracker.members().borrow().clone());
        let kept = self.state.blocking().run(move || conflicts.keep(conflict, &members)).await;
        if let Ok(Err(error)) = kept {
            tracing::error!(%error, %node, "the proof of a double signature could not be written down");
        }
    }

    /// Looks after members, marks and rules while this node leads.
    pub async fn run_duties(self, stop: CancellationToken) {
        let mut clients: BTreeMap<NodeId, Client> = BTreeMap::new();
        let mut members = self.tracker.members();
        let mut tick = interval(DUTIES_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
                changed = members.changed() => if changed.is_err() { return },
            }
            let now = members.borrow_and_update().clone();
            self.conflicts.follow(&now);
            if !self.leads() && self.conflicts.known().is_empty() {
                clients.clear();
                continue;
            }
            self.follow_members(&now, &mut clients);
            if !self.leads() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.tell_conflicts(&mut clients) => {}
                }
                continue;
            }
            let duties = async {
                self.steer().await;
                let known = self.tell_marks(&mut clients).await;
                self.activate_rules(&known).await;
                self.tell_conflicts(&mut clients).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = duties => {}
            }
        }
    }

    /// One step of the change of membership that is under way.
    async fn steer(&self) {
        let members = self.tracker.members().borrow().clone();
        let Some(target) = members.target().filter(|_| members.pending().is_some()) else { return };
        match timeout(CONTROL_TIMEOUT, self.consensus.steer(&target)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a change of membership waits"),
            Err(_) => tracing::warn!("a change of membership waits for a majority"),
        }
    }

    /// A client for each other member.
    fn follow_members(&self, members: &Members, clients: &mut BTreeMap<NodeId, Client>) {
        let present: Vec<NodeId> = members.present().map(|(node, _)| node).filter(|node| *node != self.node).collect();
        clients.retain(|node, _| present.contains(node));
        for node in present {
            clients.entry(node).or_insert_with(|| self.network.client(node, Channel::Control));
        }
    }

    /// Tells everyone who signed two batches at one height, again and again: who was away hears of it later.
    async fn tell_conflicts(&self, clients: &mut BTreeMap<NodeId, Client>) {
        for conflict in self.conflicts.known() {
            let told = clients.values_mut().map(|client| tell_conflict(client, &conflict, CONTROL_TIMEOUT));
            for error in join_all(told).await.into_iter().filter_map(Result::err) {
                tracing::debug!(%error, "a member was not told of a double signature");
            }
        }
    }

    /// Tells everyone who acknowledged what; returns which rules each member knows.
    async fn tell_marks(&self, clients: &mut BTreeMap<NodeId, Client>) -> BTreeMap<NodeId, u32> {
        let committed = self.consensus.committed();
        let mut marks: BTreeMap<NodeId, u64> = self.consensus.acknowledged();
        // Others may have committed what this node has not synced yet: after a power loss it would be kept out.
        marks.insert(self.node, self.consensus.durable_index());
        // What is not committed may be cut off again.
        let marks: Vec<(NodeId, u64)> = marks.into_iter().map(|(node, index)| (node, index.min(committed))).collect();
        self.consensus.pledges().learn(marks.iter().copied());
        let told = clients.iter_mut().map(|(node, client)| {
            let marks = &marks;
            async move { Some((*node, tell_marks(client, marks, CONTROL_TIMEOUT).await.ok()?)) }
        });
        join_all(told).await.into_iter().flatten().collect()
    }

    /// Activates newer rules once every voter knows them.
    async fn activate_rules(&self, known: &BTreeMap<NodeId, u32>) {
        let Some(head) = self.tracker.head().borrow().clone() else { return };
        let members = self.tracker.members().borrow().clone();
        let all = members
            .present()
            .map(|(node, _)| if node == self.node { self.rules_known } else { known.get(&node).copied().unwrap_or(0) });
        let common = all.min().unwrap_or(0);
        if common > head.rules_version {
            let version = head.rules_version + 1;
            tracing::info!(version, "every member knows newer rules: they hold from the next entry on");
            let _ = timeout(CONTROL_TIMEOUT, self.consensus.propose(Command::encode_rules(version))).await;
        }
    }
}

/// Asks one voter for the newest round, one call at a time.
async fn ask_again_and_again(
    mut client: Client,
    mut rounds: watch::Receiver<Option<Round>>,
    votes: mpsc::Sender<Vote>,
    stop: CancellationToken,
) {
    /// Pause after a call without an answer.
    const PAUSE: Duration = Duration::from_millis(50);
    let node = client.target();
    loop {
        let round = rounds.borrow_and_update().clone();
        if let Some(Round { height, hash, .. }) = round {
            let answer = tokio::select! {
                () = stop.cancelled() => return,
                answer = ask_to_certify(&mut client, height, hash, CONTROL_TIMEOUT) => answer,
            };
            match answer {
                Ok(signed) => {
                    if votes.send((node, height, signed)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(%node, %height, %error, "no signature");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = rounds.changed() => if changed.is_err() { return },
        }
    }
}
