//! The key by which a sender tells its unsigned messages apart.

use bytes::Bytes;

use crate::error::RequestError;

/// Longest idempotency key in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = lockstep_types::message::NONCE_BYTES_MAX;

/// 1 to [`IDEMPOTENCY_KEY_BYTES_MAX`] printable ASCII characters, taken as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(Bytes);

impl IdempotencyKey {
    /// Checks a text.
    ///
    /// # Errors
    /// If it is empty, too long, or has other characters.
    pub fn parse(text: &[u8]) -> Result<Self, RequestError> {
        let is_printable = |b: &u8| (0x20..=0x7e).contains(b);
        if text.is_empty() || text.len() > IDEMPOTENCY_KEY_BYTES_MAX || !text.iter().all(is_printable) {
            return Err(RequestError::IdempotencyKey);
        }
        Ok(Self(Bytes::copy_from_slice(text)))
    }

    /// The text.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_1_to_64_printable_characters() {
        for good in [&b"a"[..], b" ", b"~", b"\"8e03978e-40d5\"", &[b'x'; 64]] {
            assert_eq!(IdempotencyKey::parse(good).map(IdempotencyKey::into_bytes).as_deref(), Ok(good));
        }
        for bad in [&b""[..], &[b'x'; 65], b"a\tb", b"\x7f", "ü".as_bytes(), b"\0"] {
            assert_eq!(IdempotencyKey::parse(bad), Err(RequestError::IdempotencyKey));
        }
    }
}
