//! Why a request is refused.

use std::fmt;

use lockstep_types::SignatureError;
use lockstep_types::message::PROJECT_VERSION_BYTES_MAX;

use crate::idempotency::IDEMPOTENCY_KEY_BYTES_MAX;

/// A member of a request, as the device API names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `projectID`.
    ProjectId,
    /// `projectVersion`.
    ProjectVersion,
    /// `data`.
    Data,
    /// `signature`.
    Signature,
    /// `taskID`.
    TaskId,
    /// `clientID`.
    ClientId,
    /// `nonce`.
    Nonce,
    /// `payload`.
    Payload,
}

impl Field {
    /// The member's name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::ProjectId => "projectID",
            Self::ProjectVersion => "projectVersion",
            Self::Data => "data",
            Self::Signature => "signature",
            Self::TaskId => "taskID",
            Self::ClientId => "clientID",
            Self::Nonce => "nonce",
            Self::Payload => "payload",
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A request that must not be ordered. The sender can correct it; sending the same again is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The body is not JSON.
    #[error("the body is not valid JSON: {reason} at byte {at}")]
    Json {
        /// Where reading stopped, from 0.
        at: usize,
        /// What was wrong there.
        reason: &'static str,
    },
    /// The body nests arrays and objects deeper than is read.
    #[error("the body nests more than {} levels deep", crate::json::NESTING_MAX)]
    TooDeep,
    /// The body is JSON, but not an object.
    #[error("the body must be a JSON object")]
    NotAnObject,
    /// The body of many messages is neither an array nor one object in each line.
    #[error("the body must be a JSON array of messages, or one message in each line")]
    NotABulk,
    /// More messages in one body than are taken.
    #[error("at most {max} messages are taken in one request")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// The idempotency key cannot be one.
    #[error("an idempotency key has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} printable ASCII characters")]
    IdempotencyKey,
    /// A member is absent, null, empty or zero.
    #[error("{0} is missing")]
    Missing(Field),
    /// A member has another JSON type, or is a number that does not fit.
    #[error("{field} must be {expected}")]
    WrongType {
        /// Which member.
        field: Field,
        /// What it must be.
        expected: &'static str,
    },
    /// A text that must be hex is not.
    #[error("{0} must be hex digits after 0x, two for each byte")]
    NotHex(Field),
    /// A hex text of another length than the field has.
    #[error("{field} must have {expected} bytes, not {found}")]
    Length {
        /// Which member.
        field: Field,
        /// Its length in bytes.
        expected: usize,
        /// The length found.
        found: usize,
    },
    /// No signer comes out of the signature.
    #[error("signature: {0}")]
    Signature(#[from] SignatureError),
    /// The readers' column is a signed 64-bit number.
    #[error("projectID must be at most {}", i64::MAX)]
    ProjectIdTooLarge,
    /// The readers' text columns take no NUL.
    #[error("projectVersion must not contain a NUL character")]
    ProjectVersionNul,
    /// Longer than what the readers' tables take.
    #[error("projectVersion must be at most {PROJECT_VERSION_BYTES_MAX} bytes")]
    ProjectVersionTooLong,
    /// A value of the payload that the project wants signed is absent, or no number that all readers agree on.
    #[error("the payload must be an object in which {name} is a whole number of at most 64 bits")]
    SignedKey {
        /// The member's name.
        name: String,
    },
    /// Larger than the network allows.
    #[error("data must be at most {bytes_max} bytes")]
    DataTooLarge {
        /// The limit in bytes.
        bytes_max: u64,
    },
}

impl RequestError {
    /// A word for machines, stable across versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Json { .. } | Self::NotAnObject | Self::NotABulk => "malformed_json",
            Self::TooMany { .. } => "too_many_messages",
            Self::IdempotencyKey => "invalid_idempotency_key",
            Self::TooDeep => "nested_too_deep",
            Self::Missing(_) => "missing_field",
            Self::WrongType { .. } | Self::NotHex(_) | Self::Length { .. } => "wrong_type",
            Self::Signature(_) => "bad_signature",
            Self::SignedKey { .. } => "bad_signed_key",
            Self::ProjectIdTooLarge | Self::ProjectVersionNul | Self::ProjectVersionTooLong => "out_of_range",
            Self::DataTooLarge { .. } => "too_large",
        }
    }
}
