//! A voter's word on what the leader has read: it reads the same blocks at its own endpoint.

use lockstep_types::{Hash32, Signature};

use super::Chain;
use super::read::update_of;

/// A voter's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Attestation {
    /// It has read the same: its signature over the update's digest.
    Signed(Signature),
    /// It has no endpoint.
    Abstains,
    /// It cannot say now, and why.
    NotYet(String),
    /// It has read something else: what.
    Differs(String),
}

impl Chain {
    /// Reads blocks `first` to `last`, and signs if `digest` is that of what is there.
    pub async fn attest(&self, first: u64, last: u64, digest: Hash32) -> Attestation {
        let Some(reader) = &self.0.reader else { return Attestation::Abstains };
        let Ok(_turn) = self.0.attesting.try_acquire() else {
            return Attestation::NotYet("it is reading other blocks".into());
        };
        let update = match reader.range(first, last).await {
            Ok(range) => update_of(range),
            Err(error) => return Attestation::NotYet(error.to_string()),
        };
        let own = update.digest(&self.0.network, self.0.epoch);
        if own == digest {
            self.0.seen.lock().differs = None;
            return Attestation::Signed(self.0.key.sign(&own));
        }
        let found = format!("{} events, last block 0x{}", update.events.len(), hex::encode(&update.last_hash[..8]));
        let sentence = format!(
            "the leader reads something else in blocks {first} to {last} of the chain than this node's endpoint says \
             ({found}): compare with the other operators, and correct the endpoint that is wrong"
        );
        let before = self.0.seen.lock().differs.replace((last, sentence.clone()));
        if before.is_none_or(|(_, said)| said != sentence) {
            tracing::error!(reason = sentence, "an update from the chain is not attested");
        }
        Attestation::Differs(found)
    }
}
