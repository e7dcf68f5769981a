//! The voter's part in certificates: checks the evidence of every message, writes down what it will sign, and signs.

use std::sync::Arc;
use std::time::Duration;

use lockstep_consensus::{Pledges, ReadError, Signed, StateStore};
use lockstep_ledger::{Head, History as _, Members};
use lockstep_types::certificate::sign_batch;
use lockstep_types::{Address, BatchHash, BatchHeader, Epoch, Height, NodeId, Sequence, Signature, SigningKey};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::evidence::{EvidenceQueue, Named, Unchecked};
use crate::limits::{CERTIFY_WAIT, EVIDENCE_MESSAGES_MAX, EVIDENCE_TOGETHER_MAX, READ_BYTES_MAX};
use crate::proofs;
use crate::tracker::Tracker;
use crate::verify::{Job, Verifier};

/// Batches that are read from the store in one go.
const BATCHES_TOGETHER: usize = 16;
/// Pause where too many jobs wait for the verification threads.
const OVERLOAD_PAUSE: Duration = Duration::from_millis(10);

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

/// Whose word counts, with the members of whom that was made out.
struct Words {
    members: Arc<Members>,
    addresses: Arc<[Address]>,
}

struct Inner {
    node: NodeId,
    epoch: Epoch,
    key: SigningKey,
    state: StateStore,
    tracker: Arc<Tracker>,
    pledges: Pledges,
    evidence: Arc<EvidenceQueue>,
    checked: watch::Sender<Checked>,
    words: Mutex<Option<Words>>,
}

/// What a [`Certifier`] works with.
pub(crate) struct CertifierParts {
    pub node: NodeId,
    pub epoch: Epoch,
    pub key: SigningKey,
    pub state: StateStore,
    pub tracker: Arc<Tracker>,
    pub pledges: Pledges,
    pub evidence: Arc<EvidenceQueue>,
}

/// See the module's documentation. Clones share it.
#[derive(Clone)]
pub(crate) struct Certifier(Arc<Inner>);

impl Certifier {
    pub fn new(parts: CertifierParts) -> Self {
        let CertifierParts { node, epoch, key, state, tracker, pledges, evidence } = parts;
        let checked = watch::Sender::new(Checked::default());
        Self(Arc::new(Inner { node, epoch, key, state, tracker, pledges, evidence, checked, words: Mutex::default() }))
    }

    /// What keeps this node from signing, for its operator.
    pub fn complaint(&self) -> Option<String> {
        self.0.checked.borrow().forged.clone()
    }

    /// Checks evidence as batches are applied, so that signing need not wait for it.
    pub async fn run(self, verifier: Verifier, stop: CancellationToken) {
        let mut head = self.0.tracker.head();
        loop {
            let now = head.borrow_and_update().clone();
            let Some(next) = now.and_then(|now| self.0.next(&now)) else {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = head.changed() => if changed.is_err() { return },
                }
                continue;
            };
            let done = tokio::select! {
                () = stop.cancelled() => return,
                done = self.check_from(next, &verifier) => done,
            };
            if let Err(reason) = done {
                // Forged, or the disk failed: nothing more is signed.
                tracing::error!(%reason, "this node signs no certificate from here on");
                stop.cancelled().await;
                return;
            }
        }
    }

    /// Checks the batch at `height` and some that follow.
    async fn check_from(&self, height: Height, verifier: &Verifier) -> Result<(), String> {
        let mut batches = self.0.evidence.take(height, EVIDENCE_MESSAGES_MAX);
        if batches.is_empty() {
            let certifier = self.clone();
            let read = self.0.state.blocking().run(move || certifier.0.read_from(height));
            batches = read.await.map_err(|e| e.to_string())?.map_err(|e| format!("batches cannot be read: {e}"))?;
        }
        let heights: Vec<(Height, usize)> = batches.iter().map(|batch| (batch.height, batch.messages.len())).collect();
        let messages: Arc<[_]> = batches.into_iter().flat_map(|batch| batch.messages).collect();
        let forged = first_forged(verifier, messages, self.0.whose_word_counts()).await?;
        let (mut checked, mut end) = (None, 0);
        for (height, count) in heights {
            end += count;
            if let Some((_, sequence)) = forged.filter(|(index, _)| *index < end) {
                let forged = format!("message {sequence} at height {height} does not hold");
                self.0.note(checked, Some(forged.clone()));
                return Err(forged);
            }
            checked = Some(height);
        }
        self.0.note(checked, None);
        Ok(())
    }

    /// The header of this node's own batch at `height`, and its hash signed. Waits a little for it to be applied and
    /// checked.
    pub async fn sign(
        &self,
        height: Height,
        wanted: BatchHash,
    ) -> Result<(BatchHeader, BatchHash, Signature), CertifyError> {
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
        let state = inner.state.clone();
        let header = proofs::short(state.blocking(), move || state.header(height)).await.map_err(|e| read(&e))?;
        let header = header.map_err(|e| read(&e))?.ok_or_else(|| read(&"it is not there"))?;
        let hash = header.hash();
        if hash != wanted {
            tracing::error!(%height, own = %hash, leader = %wanted, "the leader has another batch at this height");
        }
        let signed = Signed { epoch: inner.epoch, height, hash };
        inner.pledges.pledge(signed).await.map_err(|e| CertifyError::Pledge(e.to_string()))?;
        Ok((header, hash, sign_batch(&inner.key, &hash)))
    }
}

impl Inner {
    /// The first applied height that is neither checked nor final.
    fn next(&self, head: &Head) -> Option<Height> {
        let next = self.checked.borrow().height.max(head.final_height).next();
        (next <= head.height).then_some(next)
    }

    fn note(&self, height: Option<Height>, forged: Option<String>) {
        self.checked.send_modify(|checked| {
            checked.height = height.unwrap_or(checked.height);
            checked.forged = forged;
        });
    }

    fn read_from(&self, height: Height) -> Result<Vec<Unchecked>, ReadError> {
        let batches = self.state.batches(height, BATCHES_TOGETHER, READ_BYTES_MAX)?;
        Ok(batches.into_iter().map(Unchecked::all_of).collect())
    }

    /// Every member that ever was: the word of one that has left may have been given before.
    fn whose_word_counts(&self) -> Arc<[Address]> {
        let members = self.tracker.members().borrow().clone();
        let mut words = self.words.lock();
        if let Some(words) = words.as_ref().filter(|words| Arc::ptr_eq(&words.members, &members)) {
            return Arc::clone(&words.addresses);
        }
        let addresses: Arc<[_]> =
            members.all().filter_map(|(_, known)| Some(known.member.key().ok()?.address())).collect();
        *words = Some(Words { members, addresses: Arc::clone(&addresses) });
        addresses
    }
}

/// The first message whose evidence does not hold, by its place among `messages` and its sequence. The verification
/// threads check them, some in a job, so that requests of devices come in between.
async fn first_forged(
    verifier: &Verifier,
    messages: Arc<[Named]>,
    members: Arc<[Address]>,
) -> Result<Option<(usize, Sequence)>, String> {
    let mut jobs = Vec::with_capacity(messages.len().div_ceil(EVIDENCE_TOGETHER_MAX));
    for first in (0..messages.len()).step_by(EVIDENCE_TOGETHER_MAX) {
        let range = first..messages.len().min(first + EVIDENCE_TOGETHER_MAX);
        jobs.push(loop {
            let (done, found) = oneshot::channel();
            let (messages, members, range) = (messages.clone(), members.clone(), range.clone());
            if verifier.submit(Job::Evidence { messages, range, members, done }).is_ok() {
                break found;
            }
            tokio::time::sleep(OVERLOAD_PAUSE).await;
        });
    }
    for found in jobs {
        let forged =
            found.await.map_err(|_| "the check panicked, or the verification threads have ended".to_owned())?;
        if let Some(index) = forged {
            return Ok(Some((index, messages[index].0)));
        }
    }
    Ok(None)
}

/// How long the leader collects signatures for one height before it goes on to a newer one.
pub(crate) const ROUND_TIMEOUT: Duration = Duration::from_secs(2);
