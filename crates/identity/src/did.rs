//! Names of parties and keys: `did:io:0x…` and the key ids derived from it.
//!
//! Source: vectors/ioconnect/README.md, section 1.

use std::fmt;
use std::str::FromStr;

use lockstep_types::{Address, keccak256};

use crate::keys::Curve;

const PREFIX: &str = "did:io:0x";

/// A `did:io` identifier: the last 20 bytes of keccak256 over a public key's coordinates, on either curve. For
/// secp256k1 that is the key's EVM address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Did(pub Address);

/// A text that is no [`Did`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected did:io:0x and 40 lower-case hex digits")]
pub struct DidError;

impl DidError {
    /// A word for machines, stable across versions.
    pub fn code(&self) -> &'static str {
        "bad_did"
    }
}

impl Did {
    /// Length of the text in bytes.
    pub const TEXT_LEN: usize = PREFIX.len() + 2 * Address::LEN;

    /// The name of the key with affine coordinates `x` and `y`, big endian.
    pub fn of_coordinates(x: &[u8; 32], y: &[u8; 32]) -> Self {
        let hash = keccak256(&[x, y]);
        let mut address = [0; Address::LEN];
        address.copy_from_slice(&hash[12..]);
        Self(Address(address))
    }

    /// The device's address, as messages carry it.
    pub fn address(&self) -> Address {
        self.0
    }
}

impl FromStr for Did {
    type Err = DidError;

    /// One spelling only: the reference compares these texts as they are, so another casing names nobody there.
    fn from_str(text: &str) -> Result<Self, DidError> {
        let digits = text.strip_prefix(PREFIX).ok_or(DidError)?;
        if digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(DidError);
        }
        let mut address = [0; Address::LEN];
        hex::decode_to_slice(digits, &mut address).map_err(|_| DidError)?;
        Ok(Self(Address(address)))
    }
}

impl fmt::Display for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "did:io:{}", self.0)
    }
}

impl fmt::Debug for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The number of a key in its party's key store, from 1. It does not follow from the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyNumber(u32);

impl KeyNumber {
    /// The C SDK holds these in a signed 32-bit number.
    pub const MAX: u32 = i32::MAX as u32;
    /// A device's stored master key.
    pub const DEVICE_MASTER: Self = Self(1);
    /// A device's stored key agreement key.
    pub const DEVICE_KEY_AGREEMENT: Self = Self(2);
    /// The first key of a party that stores none: the server's master key.
    pub const SERVER_MASTER: Self = Self(0x7fff_ffe0);
    /// The second one: the server's key agreement key.
    pub const SERVER_KEY_AGREEMENT: Self = Self(0x7fff_ffe1);
    /// The only number that is harmless in a message's ephemeral key. The C SDK destroys its own key of that number
    /// after it has read the message; the last number is in use nowhere.
    pub const EPHEMERAL: Self = Self(Self::MAX);

    /// A number from 1 to [`KeyNumber::MAX`].
    pub fn new(number: u32) -> Option<Self> {
        (1..=Self::MAX).contains(&number).then_some(Self(number))
    }

    /// The number that a key's name ends in, after its last `-`.
    pub fn at_end_of(name: &str) -> Option<Self> {
        let (_, digits) = name.rsplit_once('-')?;
        // `parse` takes a plus sign.
        let number = digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))?;
        Self::new(number)
    }
}

impl fmt::Display for KeyNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a key within its party: `Key-p256-2`.
pub(crate) fn fragment(curve: Curve, number: KeyNumber) -> String {
    let curve = match curve {
        Curve::Secp256k1 => "secp256k1",
        Curve::P256 => "p256",
    };
    format!("Key-{curve}-{number}")
}

/// A key id: the DID *of that key* (not of its party, unless it is the master key), `#`, and its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Kid(String);

impl Kid {
    /// The id of the key that `key` names.
    pub fn new(key: &Did, curve: Curve, number: KeyNumber) -> Self {
        Self(format!("{key}#{}", fragment(curve, number)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Kid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_did_reads_back_what_it_writes_and_nothing_else() {
        let did = Did(Address([0xab; 20]));
        let text = did.to_string();
        assert_eq!(text.len(), Did::TEXT_LEN);
        assert_eq!(text.parse(), Ok(did));
        for bad in
            [text.to_uppercase(), text.replace("ab", "AB"), text.replace("0x", ""), format!("{text}0"), "".into()]
        {
            assert_eq!(bad.parse::<Did>(), Err(DidError), "{bad}");
        }
    }

    #[test]
    fn a_key_number_is_a_positive_number_at_the_end() {
        for (name, number) in [("Key-p256-1", 1), ("Key-p256-2147483647", KeyNumber::MAX), ("-7", 7), ("a-b--9", 9)] {
            assert_eq!(KeyNumber::at_end_of(name), KeyNumber::new(number), "{name}");
        }
        for bad in ["", "1", "Key-p256-", "Key-p256-0", "Key-p256-+1", "Key-p256-2147483648", "Key-p256-1 ", "Key-p256"]
        {
            assert_eq!(KeyNumber::at_end_of(bad), None, "{bad}");
        }
    }
}
