//! Bundles: messages on their way from the node that took them in to the leader, and by gossip to all.

use std::sync::Arc;

use bytes::Bytes;
use lockstep_types::elements::{self, Bound, KIND_FIELDS_MAX};
use lockstep_types::registry::SIGNED_KEYS_MAX;
use lockstep_types::{DecodeError, Message, VerifiedMessage, proto};
use prost::Message as _;

use crate::limits::{BUNDLE_BYTES_MAX, BUNDLE_MESSAGES_MAX};

const BUNDLE_VERSION: u32 = 1;

/// Counted before a bundle is read: an empty message takes two bytes here and hundreds in memory.
const BOUNDS: [Bound; 2] = [
    Bound { path: &[2], count_max: BUNDLE_MESSAGES_MAX },
    // messages, their evidence, its signed values.
    Bound { path: &[2, 11, 2], count_max: BUNDLE_MESSAGES_MAX * SIGNED_KEYS_MAX },
];

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
pub(crate) fn encode(messages: &[Arc<VerifiedMessage>]) -> (Bytes, usize) {
    let mut bytes = 0;
    let fits = |message: &&Arc<VerifiedMessage>| {
        let first = bytes == 0;
        bytes += message.message().cost_bytes();
        first || bytes <= BUNDLE_BYTES_MAX
    };
    let messages: Vec<_> =
        messages.iter().take(BUNDLE_MESSAGES_MAX).take_while(fits).map(|m| m.message().to_proto()).collect();
    let count = messages.len();
    (proto::Bundle { version: BUNDLE_VERSION, messages }.encode_to_vec().into(), count)
}

/// Reads a bundle of a member. Its messages are not verified.
pub(crate) fn decode(bytes: Bytes) -> Result<Vec<Message>, DecodeError> {
    elements::check_fields("bundle", &bytes, BUNDLE_MESSAGES_MAX + KIND_FIELDS_MAX)?;
    elements::check("bundle", &bytes, &BOUNDS)?;
    let bundle = proto::Bundle::decode(bytes).map_err(|e| DecodeError::malformed("bundle", e))?;
    if bundle.version > BUNDLE_VERSION {
        return Err(DecodeError::Newer { what: "bundle", found: bundle.version, known: BUNDLE_VERSION });
    }
    bundle.messages.into_iter().map(Message::from_proto).collect()
}
