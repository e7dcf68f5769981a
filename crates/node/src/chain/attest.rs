//! A voter's word on what the leader has read: it reads the same blocks at its own endpoint.

use std::time::Duration;

use bytes::Bytes;
use lockstep_network::Client;
use lockstep_types::{Hash32, Signature, proto};

use super::Chain;
use super::read::update_of;
use crate::control::{ControlError, Request, Response, ask};

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
    /// Answers the leader, who wants to know what is in some blocks.
    ///
    /// # Errors
    /// If the question makes no sense.
    pub async fn answer(&self, wanted: &proto::AttestRequest) -> Result<proto::AttestResponse, String> {
        let digest = Hash32::try_from(&wanted.digest[..]).map_err(|_| "a digest has 32 bytes")?;
        Ok(attestation_to_proto(self.attest(wanted.first, wanted.last, digest).await))
    }

    /// Reads blocks `first` to `last`, and signs if `digest` is that of what is there.
    async fn attest(&self, first: u64, last: u64, digest: Hash32) -> Attestation {
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

fn attestation_to_proto(attestation: Attestation) -> proto::AttestResponse {
    use proto::attest_response::Kind;
    let kind = match attestation {
        Attestation::Signed(signature) => Kind::Signature(Bytes::copy_from_slice(&signature.0)),
        Attestation::Abstains => Kind::Abstains(proto::Done {}),
        Attestation::NotYet(reason) => Kind::NotYet(reason),
        Attestation::Differs(what) => Kind::Differs(what),
    };
    proto::AttestResponse { kind: Some(kind) }
}

/// Asks a voter what it finds in blocks of the chain.
pub(crate) async fn ask_to_attest(
    client: &mut Client,
    (first, last): (u64, u64),
    digest: &Hash32,
    timeout: Duration,
) -> Result<Attestation, ControlError> {
    use proto::attest_response::Kind;
    let wanted = proto::AttestRequest { first, last, digest: Bytes::copy_from_slice(digest) };
    match ask(client, Request::Attest(wanted), timeout).await? {
        Response::Attest(answer) => match answer.kind.ok_or(ControlError::Malformed)? {
            Kind::Signature(bytes) => {
                let signature = Signature::try_from(&bytes[..]).map_err(|_| ControlError::Malformed)?;
                Ok(Attestation::Signed(signature))
            }
            Kind::Abstains(proto::Done {}) => Ok(Attestation::Abstains),
            Kind::NotYet(reason) => Ok(Attestation::NotYet(reason)),
            Kind::Differs(what) => Ok(Attestation::Differs(what)),
        },
        _ => Err(ControlError::Malformed),
    }
}
