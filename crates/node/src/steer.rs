//! The leader's duties beside proposing batches: certificates, changes of membership, marks, and new rules.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use lockstep_consensus::{Consensus, Role, StateStore};
use lockstep_ledger::Command;
use lockstep_network::{Channel, Client, Handle};
use lockstep_types::certificate::batch_signer;
use lockstep_types::{BatchHash, Certificate, Height, MemberSet, NodeId, Signature};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::certify::{Certifier, Conflict, ROUND_TIMEOUT};
use crate::control::{ask_to_certify, tell_marks};
use crate::limits::{CERTIFY_INTERVAL, CONTROL_TIMEOUT, DUTIES_INTERVAL};
use crate::metrics;
use crate::tracker::Tracker;

/// The newest batch that each voter signed.
type NewestVotes = BTreeMap<NodeId, (Height, BatchHash, Signature)>;

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
    /// Where a double signature is shown.
    pub conflict: watch::Sender<Option<Conflict>>,
    /// What voters signed lately, to notice who signs twice.
    pub seen: Arc<Mutex<NewestVotes>>,
}

/// A height to be certified.
#[derive(Debug, Clone)]
struct Round {
    height: Height,
    hash: BatchHash,
    set: MemberSet,
}

/// A voter's answer.
type Vote = (NodeId, Height, BatchHash, Signature);

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
            let Some(round) = self.next_round() else { continue };
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
            while tasks.try_join_next().is_some() {}
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
    fn next_round(&self) -> Option<Round> {
        if !self.leads() {
            return None;
        }
        let head = self.tracker.head().borrow().clone()?;
        let members = self.tracker.members().borrow().clone();
        let height = members.boundary().map_or(head.height, |boundary| boundary.min(head.height));
        if height <= head.final_height {
            return None;
        }
        let hash = if height == head.height { head.hash } else { self.state.batch(height).ok()??.header.hash() };
        Some(Round { height, hash, set: members.set_at(height).clone() })
    }

    /// Collects signatures until there is a majority, or the round takes too long.
    async fn collect(&self, round: &Round, inbox: &mut mpsc::Receiver<Vote>) -> Option<Certificate> {
        let started = Instant::now();
        let mut signatures = BTreeMap::new();
        if round.set.voter(self.node).is_some() {
            match self.certifier.sign(round.height, round.hash).await {
                Ok((_, signature)) => drop(signatures.insert(self.node, signature)),
                Err(error) => tracing::debug!(%error, height = %round.height, "this node does not sign"),
            }
        }
        while signatures.len() < round.set.majority() {
            let (node, height, hash, signature) = timeout_at(started + ROUND_TIMEOUT, inbox.recv()).await.ok()??;
            let signer = round.set.voter(node);
            if height != round.height || signer.is_none() || batch_signer(&hash, &signature) != signer {
                continue;
            }
            self.look_for_conflict(node, height, hash, signature);
            if hash == round.hash {
                signatures.insert(node, signature);
            } else {
                tracing::error!(%node, %height, theirs = %hash, ours = %round.hash, "a voter has another batch at this height");
                metrics::disagreement();
            }
        }
        metrics::certified(started.elapsed().as_secs_f64());
        let signatures = signatures.into_iter().collect();
        Some(Certificate { height: round.height, hash: round.hash, signatures })
    }

    fn look_for_conflict(&self, node: NodeId, height: Height, hash: BatchHash, signature: Signature) {
        let before = self.seen.lock().insert(node, (height, hash, signature));
        if let Some((same, other, earlier)) = before.filter(|(at, other, _)| *at == height && *other != hash) {
            tracing::error!(%node, %height, "this voter signed two batches at one height: nothing is acknowledged any more");
            let signed = [(other, earlier), (hash, signature)];
            self.conflict.send_replace(Some(Conflict { node, height: same, signed }));
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
            members.borrow_and_update();
            if !self.leads() {
                clients.clear();
                continue;
            }
            let duties = async {
                self.steer().await;
                let known = self.tell_marks(&mut clients).await;
                self.activate_rules(&known).await;
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

    /// Tells everyone who acknowledged what; returns which rules each member knows.
    async fn tell_marks(&self, clients: &mut BTreeMap<NodeId, Client>) -> BTreeMap<NodeId, u32> {
        let committed = self.consensus.committed();
        let mut marks: BTreeMap<NodeId, u64> = self.consensus.acknowledged();
        marks.insert(self.node, self.consensus.last_index());
        // What is not committed may be cut off again.
        let marks: Vec<(NodeId, u64)> = marks.into_iter().map(|(node, index)| (node, index.min(committed))).collect();
        if let Err(error) = self.consensus.pledges().learn(marks.iter().copied()) {
            tracing::warn!(%error, "marks cannot be written");
        }
        let present: Vec<NodeId> =
            self.tracker.members().borrow().present().map(|(node, _)| node).filter(|node| *node != self.node).collect();
        clients.retain(|node, _| present.contains(node));
        for node in present {
            clients.entry(node).or_insert_with(|| self.network.client(node, Channel::Control));
        }
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
                Ok((hash, signature)) => {
                    if votes.send((node, height, hash, signature)).await.is_err() {
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
