//! keccak256 and the 32-byte digests it makes.

use keccak_asm::{Digest, Keccak256};

/// A keccak256 digest.
pub type Hash32 = [u8; 32];

/// keccak256 (Ethereum's, padding byte 0x01) over the concatenation of `parts`.
pub fn keccak256(parts: &[&[u8]]) -> Hash32 {
    let mut hasher = Keccak256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// A digest in JSON: 0x and 64 hex digits.
pub(crate) mod as_hex {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Hash32;
    use crate::ids::Digest;

    pub fn serialize<S: Serializer>(hash: &Hash32, serializer: S) -> Result<S::Ok, S::Error> {
        Digest(*hash).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hash32, D::Error> {
        Ok(Digest::deserialize(deserializer)?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keccak256_of_nothing_is_the_known_constant() {
        let expected = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470";
        assert_eq!(hex::encode(keccak256(&[])), expected);
        assert_eq!(keccak256(&[b"ab", b"c"]), keccak256(&[b"abc"]));
    }
}
