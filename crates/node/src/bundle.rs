//! Bundles: messages on their way from the node that took them in to the leader, and by gossip to all.

use bytes::Bytes;
use lockstep_ledger::{Aged, decode_ages, encode_ages};
use lockstep_types::elements::{self, Bound, KIND_FIELDS_MAX};
use lockstep_types::registry::SIGNED_KEYS_MAX;
use lockstep_types::{DecodeError, Message, proto};
use prost::Message as _;

use crate::limits::{BUNDLE_BYTES_MAX, BUNDLE_MESSAGES_MAX};

const BUNDLE_VERSION: u32 = 1;

/// Counted before a bundle is read: an empty message takes two bytes here and hundreds in memory.
const BOUNDS: [Bound; 2] = [
    Bound { path: &[2], count_max: BUNDLE_MESSAGES_MAX },
    // messages, their evidence, its signed values.
    Bound { path: &[2, 11, 2], count_max: BUNDLE_MESSAGES_MAX * SIGNED_KEYS_MAX },
];

/// Where messages and their ages are.
const MESSAGES: u32 = 2;
/// See [`MESSAGES`].
const AGES: u32 = 3;

/// A leader's answer to a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Its messages are being verified, or wait already.
    Yes,
    /// There is no room: send them again a little later.
    Busy,
}

impl Taken {
    pub fn encode(self) -> Bytes {
        Bytes::from_static(match self {
            Self::Yes => &[1],
            Self::Busy => &[0],
        })
    }

    pub fn decode(answer: &[u8]) -> Self {
        if answer == [1] { Self::Yes } else { Self::Busy }
    }
}

/// The longest prefix of `messages` that fits one bundle, encoded, and its length.
pub(crate) fn encode(messages: &[Aged]) -> (Bytes, usize) {
    let mut bytes = 0;
    let fits = |aged: &&Aged| {
        let first = bytes == 0;
        bytes += aged.message.message().cost_bytes();
        first || bytes <= BUNDLE_BYTES_MAX
    };
    let count = messages.iter().take(BUNDLE_MESSAGES_MAX).take_while(fits).count();
    let sent = &messages[..count];
    let bundle = proto::Bundle {
        version: BUNDLE_VERSION,
        messages: sent.iter().map(|aged| aged.message.message().to_proto()).collect(),
        ages_ms: encode_ages(sent),
    };
    (bundle.encode_to_vec().into(), count)
}

/// A message of a bundle and its age in milliseconds. It is not verified, and the age is the word of the member who sent it.
pub(crate) type Received = (Message, u64);

/// Reads a bundle of a member.
pub(crate) fn decode(bytes: Bytes) -> Result<Vec<Received>, DecodeError> {
    elements::check_fields("bundle", &bytes, BUNDLE_MESSAGES_MAX + KIND_FIELDS_MAX)?;
    elements::check("bundle", &bytes, &BOUNDS)?;
    elements::check_numbers("bundle", &bytes, &[], MESSAGES, AGES)?;
    let bundle = proto::Bundle::decode(bytes).map_err(|e| DecodeError::malformed("bundle", e))?;
    if bundle.version > BUNDLE_VERSION {
        return Err(DecodeError::Newer { what: "bundle", found: bundle.version, known: BUNDLE_VERSION });
    }
    let ages_ms = decode_ages("bundle", bundle.ages_ms, bundle.messages.len())?;
    let ages_ms = ages_ms.into_iter().chain(std::iter::repeat(0));
    bundle
        .messages
        .into_iter()
        .zip(ages_ms)
        .map(|(message, age_ms)| Ok((Message::from_proto(message)?, age_ms)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lockstep_types::genesis::AGE_MS_MAX;
    use lockstep_types::{Address, Api, Evidence, NodeId, ProjectId, Signature, VerifiedMessage};

    use super::*;

    fn aged(n: u8, age_ms: u64) -> Aged {
        let message = VerifiedMessage::from_recovered(Message {
            api: Api::Apinode,
            project_id: ProjectId(1),
            project_version: "1".into(),
            data: Bytes::from(vec![n]),
            device: Address([1; 20]),
            nonce: Bytes::new(),
            via: NodeId(0),
            evidence: Evidence::Device(Signature([0; 65])),
        });
        Aged { message: Arc::new(message), age_ms }
    }

    fn ages(bytes: Bytes) -> Option<Vec<u64>> {
        Some(decode(bytes).ok()?.into_iter().map(|(_, age_ms)| age_ms).collect())
    }

    #[test]
    fn a_bundle_has_the_ages_of_its_messages_or_none() {
        let (bytes, count) = encode(&[aged(1, 0), aged(2, 300), aged(3, AGE_MS_MAX)]);
        assert_eq!((ages(bytes), count), (Some(vec![0, 300, AGE_MS_MAX]), 3));
        assert_eq!(ages(encode(&[aged(1, 0), aged(2, 0)]).0), Some(vec![0, 0]));
        let messages = vec![aged(1, 0).message.message().to_proto(); 2];
        let with = |ages_ms: &[u64]| {
            let bundle = proto::Bundle { version: 1, messages: messages.clone(), ages_ms: ages_ms.to_vec() };
            ages(bundle.encode_to_vec().into())
        };
        assert_eq!((with(&[]), with(&[5, AGE_MS_MAX])), (Some(vec![0, 0]), Some(vec![5, AGE_MS_MAX])));
        assert_eq!((with(&[5]), with(&[5, 6, 7]), with(&[5, AGE_MS_MAX + 1])), (None, None, None));
        assert_eq!(with(&vec![0; 1_000_000]), None, "counted before they are read");
    }
}
