//! The voter's part in certificates: checks the evidence of every message, writes down what it will sign, and signs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lockstep_consensus::{Pledges, Signed, StateStore};
use lockstep_ledger::Head;
use lockstep_types::certificate::sign_batch;
use lockstep_types::{Address, Batch, BatchHash, ContentId, Epoch, Evidence, Height, NodeId, Signature, SigningKey};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::limits::{CERTIFY_WAIT, EVIDENCE_KNOWN_MAX, READ_BYTES_MAX};
use crate::tracker::Tracker;

/// Batches whose evidence is checked in one go.
const BATCHES_TOGETHER: usize = 16;

/// Evidence that this node checked when the message came in, so that it need not check it again. Two generations: what
/// is not asked for while as many others come in is forgotten.
#[derive(Default)]
pub(crate) struct KnownEvidence(Mutex<[HashMap<ContentId, Evidence>; 2]>);

impl KnownEvidence {
    pub fn add(&self, checked: impl Iterator<Item = (ContentId, Evidence)>) {
        let mut known = self.0.lock();
        known[0].extend(checked);
        if known[0].len() >= EVIDENCE_KNOWN_MAX {
            known.swap(0, 1);
            known[0].clear();
        }
    }

    fn has(&self, id: &ContentId, evidence: &Evidence) -> bool {
        let known = self.0.lock();
        known.iter().any(|generation| generation.get(id) == Some(evidence))
    }
}

/// Why a batch is not signed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CertifyError {
    /// This node is no voter at that height.
    #[error("node {0} is no voter at this height")]
    NotAVoter(NodeId),
    /// It has not come so far, or not checked so far; ask again.
    #[error("this node has checked batches up to height {0} only")]
    NotYet(Height),
    /// A message's evidence is forged: the batch is never signed.
    #[error("the evidence of {0}")]
    Evidence(String),
    /// It signed something newer already, or could not write down that it signs.
    #[error("{0}")]
    Pledge(String),
    /// It forgot the batch, or cannot read it.
    #[error("the batch cannot be read: {0}")]
    Read(String),
}

/// How far evidence was checked.
#[derive(Debug, Clone, Default)]
struct Checked {
    height: Height,
    /// What is forged.
    forged: Option<String>,
}

struct Inner {
    node: NodeId,
    epoch: Epoch,
    key: SigningKey,
    state: StateStore,
    tracker: Arc<Tracker>,
    pledges: Pledges,
    known: Arc<KnownEvidence>,
    checked: watch::Sender<Checked>,
}

/// What a [`Certifier`] works with.
pub(crate) struct CertifierParts {
    pub node: NodeId,
    pub epoch: Epoch,
    pub key: SigningKey,
    pub state: StateStore,
    pub tracker: Arc<Tracker>,
    pub pledges: Pledges,
    pub known: Arc<KnownEvidence>,
}

/// See the module's documentation. Clones share it.
#[derive(Clone)]
pub(crate) struct Certifier(Arc<Inner>);

impl Certifier {
    pub fn new(parts: CertifierParts) -> Self {
        let CertifierParts { node, epoch, key, state, tracker, pledges, known } = parts;
        let checked = watch::Sender::new(Checked::default());
        Self(Arc::new(Inner { node, epoch, key, state, tracker, pledges, known, checked }))
    }

    /// What keeps this node from signing, for its operator.
    pub fn complaint(&self) -> Option<String> {
        self.0.checked.borrow().forged.clone()
    }

    /// Checks evidence as batches are applied, so that signing need not wait for it.
    pub async fn run(self, stop: CancellationToken) {
        let mut head = self.0.tracker.head();
        loop {
            let now = head.borrow_and_update().clone();
            let done = now.is_none_or(|now| self.0.next(&now) > now.height);
            if done {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = head.changed() => if changed.is_err() { return },
                }
                continue;
            }
            let certifier = self.clone();
            let more = tokio::task::spawn_blocking(move || certifier.0.check_some());
            if !matches!(more.await, Ok(true)) || stop.is_cancelled() {
                // Forged, or the disk failed: nothing more is signed.
                stop.cancelled().await;
                return;
            }
        }
    }

    /// This node's own batch at `height`, signed. Waits a little for it to be applied and checked.
    pub async fn sign(&self, height: Height, wanted: BatchHash) -> Result<(BatchHash, Signature), CertifyError> {
        let inner = &self.0;
        if inner.tracker.members().borrow().set_at(height).voter(inner.node) != Some(inner.key.address()) {
            return Err(CertifyError::NotAVoter(inner.node));
        }
        let mut checked = inner.checked.subscribe();
        let there = checked.wait_for(|checked| checked.height >= height || checked.forged.is_some());
        let _ = tokio::time::timeout(CERTIFY_WAIT, there).await;
        let now = inner.checked.borrow().clone();
        if now.height < height {
            return Err(now.forged.map_or(CertifyError::NotYet(now.height), CertifyError::Evidence));
        }
        let read = |e: &dyn std::fmt::Display| CertifyError::Read(e.to_string());
        let batch = inner.state.batch(height).map_err(|e| read(&e))?.ok_or_else(|| read(&"it is not there"))?;
        let hash = batch.header.hash();
        if hash != wanted {
            tracing::error!(%height, own = %hash, leader = %wanted, "the leader has another batch at this height");
        }
        let signed = Signed { epoch: inner.epoch, height, hash };
        inner.pledges.pledge(signed).await.map_err(|e| CertifyError::Pledge(e.to_string()))?;
        Ok((hash, sign_batch(&inner.key, &hash)))
    }
}

impl Inner {
    /// The first height that is neither checked nor final.
    fn next(&self, head: &Head) -> Height {
        self.checked.borrow().height.max(head.final_height).next()
    }

    /// Checks some more batches; false when there is nothing to go on with.
    fn check_some(&self) -> bool {
        let Some(head) = self.tracker.head().borrow().clone() else { return true };
        let first = self.next(&head);
        let batches = match self.state.batches(first, BATCHES_TOGETHER, READ_BYTES_MAX) {
            Ok(batches) => batches,
            Err(error) => {
                tracing::error!(%error, "batches cannot be read for certification");
                return false;
            }
        };
        let members: Vec<Address> = self
            .tracker
            .members()
            .borrow()
            .all()
            .filter_map(|(_, known)| Some(known.member.key().ok()?.address()))
            .collect();
        for batch in &batches {
            if let Err(forged) = self.check(batch, &members) {
                tracing::error!(height = %batch.header.height, %forged, "a message in a batch is forged: this node signs no certificate from here on");
                self.checked.send_modify(|checked| checked.forged = Some(forged));
                return false;
            }
            self.checked.send_modify(|checked| checked.height = batch.header.height);
        }
        true
    }

    fn check(&self, batch: &Batch, members: &[Address]) -> Result<(), String> {
        for (sequence, ordered) in (batch.header.first_sequence.0..).zip(&batch.messages) {
            let id = ordered.message.content_id();
            if self.known.has(&id, &ordered.message.evidence) {
                continue;
            }
            // The word of a member that has left meanwhile counts: it may have been given before.
            let checked = ordered.message.clone().verify_named(id, |address| members.contains(address));
            checked.map_err(|_| format!("message {sequence} at height {} does not hold", batch.header.height))?;
        }
        Ok(())
    }
}

/// Whoever signs two batches at one height is shown for it. What was seen, for one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// The signer.
    pub node: NodeId,
    /// The height.
    pub height: Height,
    /// What it signed, twice.
    pub signed: [(BatchHash, Signature); 2],
}

/// How long the leader collects signatures for one height before it goes on to a newer one.
pub(crate) const ROUND_TIMEOUT: Duration = Duration::from_secs(2);
