//! Devices as the log has them: who registered them, where their documents are, and what they may do.

use bytes::Bytes;
use lockstep_types::{Address, DecodeError, DevicePolicy, Hash32, ProjectId, Sequence, TimeMs, proto};
use prost::Message as _;

/// Version of the stored record.
pub const DEVICE_VERSION: u32 = 1;

/// Where a device's DID document is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Document {
    /// There is none.
    #[default]
    Absent,
    /// Here.
    Text(String),
    /// At an address, with a hash that the chain has.
    Remote {
        /// The address; empty where it cannot be used.
        uri: String,
        /// The hash.
        hash: Hash32,
    },
}

/// What is known of one device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// Whether it is registered now.
    pub registered: bool,
    /// Owner of the project that registered it, who alone may change it; `None` where a chain did.
    pub registrar: Option<Address>,
    /// Its owner on the chain.
    pub owner: Option<Address>,
    /// Its DID document.
    pub document: Document,
    /// Tokens that were issued before this time are good no more.
    pub tokens_from: TimeMs,
}

impl Device {
    /// The stored record.
    pub fn encode(&self) -> Vec<u8> {
        let bytes = |address: Option<Address>| address.map(|a| Bytes::copy_from_slice(&a.0)).unwrap_or_default();
        let (document, document_hash, document_uri) = match &self.document {
            Document::Absent => (String::new(), Bytes::new(), String::new()),
            Document::Text(text) => (text.clone(), Bytes::new(), String::new()),
            Document::Remote { uri, hash } => (String::new(), Bytes::copy_from_slice(hash), uri.clone()),
        };
        proto::DeviceRecord {
            version: DEVICE_VERSION,
            registered: self.registered,
            registrar: bytes(self.registrar),
            document,
            document_hash,
            document_uri,
            tokens_from_ms: self.tokens_from.0,
            owner: bytes(self.owner),
        }
        .encode_to_vec()
    }

    /// Reads a stored record.
    pub fn decode(record: Bytes) -> Result<Self, DecodeError> {
        let bad = |reason: &str| DecodeError::malformed("device", reason);
        let record = proto::DeviceRecord::decode(record).map_err(|e| bad(&e.to_string()))?;
        if record.version > DEVICE_VERSION {
            return Err(DecodeError::Newer { what: "device", found: record.version, known: DEVICE_VERSION });
        }
        let address = |bytes: &[u8]| -> Result<Option<Address>, DecodeError> {
            let address = (!bytes.is_empty()).then(|| Address::try_from(bytes));
            address.transpose().map_err(|e| bad(&e.to_string()))
        };
        let document = match (record.document, record.document_hash) {
            (text, _) if !text.is_empty() => Document::Text(text),
            (_, hash) if hash.is_empty() => Document::Absent,
            (_, hash) => {
                let hash = Hash32::try_from(&hash[..]).map_err(|_| bad("a hash is not 32 bytes"))?;
                Document::Remote { uri: record.document_uri, hash }
            }
        };
        Ok(Self {
            registered: record.registered,
            registrar: address(&record.registrar)?,
            owner: address(&record.owner)?,
            document,
            tokens_from: TimeMs(record.tokens_from_ms),
        })
    }
}

/// Who let a device submit to a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grant {
    /// The project's owner.
    pub listed: bool,
    /// The chain.
    pub approved: bool,
}

impl Grant {
    /// The stored record; nothing is stored where nobody did.
    pub fn encode(self) -> Option<u8> {
        let flags = u8::from(self.listed) | u8::from(self.approved) << 1;
        (flags > 0).then_some(flags)
    }

    /// Reads a stored record.
    pub fn decode(record: &[u8]) -> Result<Self, DecodeError> {
        match record {
            [flags @ 1..=3] => Ok(Self { listed: flags & 1 != 0, approved: flags & 2 != 0 }),
            _ => Err(DecodeError::malformed("grant", "not one byte from 1 to 3")),
        }
    }
}

/// What decides whether a device may submit to a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Whether it is registered.
    pub registered: bool,
    /// Who let it submit to the project.
    pub grant: Grant,
}

impl Standing {
    /// Whether a project with this policy takes its messages. `chain` tells whether a chain says which devices there
    /// are.
    pub fn allows(&self, policy: DevicePolicy, chain: bool) -> bool {
        match policy {
            DevicePolicy::Any => true,
            DevicePolicy::Listed => self.grant.listed,
            DevicePolicy::Registered if chain => self.registered && self.grant.approved,
            DevicePolicy::Registered => self.registered && self.grant.listed,
        }
    }
}

/// A nonce: whose, where, and which.
pub type Nonce = (ProjectId, Address, u64);

/// The highest nonce that a device has used in a project, which outlives the nonces themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HighestNonce {
    /// The message with which it is forgotten: the device's newest one with a nonce. [`HighestNonce::FOR_EVER`] where the
    /// project's nonces ascend.
    pub forgotten_with: Sequence,
    /// The nonce.
    pub nonce: u64,
}

impl HighestNonce {
    /// A sequence that no horizon passes.
    pub const FOR_EVER: Sequence = Sequence(u64::MAX);

    /// The stored record: two big-endian numbers. The sequence comes first, for the filter that drops old records.
    pub fn encode(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.forgotten_with.0.to_be_bytes());
        out[8..].copy_from_slice(&self.nonce.to_be_bytes());
        out
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// It is not 16 bytes.
    pub fn decode(record: &[u8]) -> Result<Self, DecodeError> {
        let numbers = record.as_chunks::<8>();
        let ([sequence, nonce], []) = numbers else {
            return Err(DecodeError::malformed("highest nonce", "not 16 bytes"));
        };
        Ok(Self { forgotten_with: Sequence(u64::from_be_bytes(*sequence)), nonce: u64::from_be_bytes(*nonce) })
    }
}

/// How far a chain was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainCursor {
    /// The last block.
    pub last: u64,
    /// Its hash.
    pub last_hash: Hash32,
}

impl ChainCursor {
    /// The stored record.
    pub fn encode(&self) -> Vec<u8> {
        let last_hash = Bytes::copy_from_slice(&self.last_hash);
        proto::ChainCursor { version: 1, last: self.last, last_hash }.encode_to_vec()
    }

    /// Reads a stored record.
    pub fn decode(record: Bytes) -> Result<Self, DecodeError> {
        let bad = |reason: &str| DecodeError::malformed("chain cursor", reason);
        let record = proto::ChainCursor::decode(record).map_err(|e| bad(&e.to_string()))?;
        if record.version > 1 {
            return Err(DecodeError::Newer { what: "chain cursor", found: record.version, known: 1 });
        }
        let last_hash = record.last_hash[..].try_into().map_err(|_| bad("the hash is not 32 bytes"))?;
        Ok(Self { last: record.last, last_hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_their_stored_form() {
        let text = Document::Text("{}".into());
        let remote = Document::Remote { uri: "ipfs://x".into(), hash: [7; 32] };
        for document in [Document::Absent, text, remote] {
            let (registrar, owner) = (Some(Address([1; 20])), None);
            let device = Device { registered: true, registrar, owner, document, tokens_from: TimeMs(9) };
            assert_eq!(Device::decode(device.encode().into()).unwrap(), device);
        }
        let cursor = ChainCursor { last: 7, last_hash: [2; 32] };
        assert_eq!(ChainCursor::decode(cursor.encode().into()).unwrap(), cursor);
        let highest = HighestNonce { forgotten_with: HighestNonce::FOR_EVER, nonce: 258 };
        assert_eq!(HighestNonce::decode(&highest.encode()).unwrap(), highest);
        for wrong in [0, 8, 15, 17, 24] {
            assert!(HighestNonce::decode(&vec![0; wrong]).is_err(), "{wrong} bytes");
        }
    }

    #[test]
    fn a_policy_asks_for_what_it_names() {
        let standing = |registered, listed, approved| Standing { registered, grant: Grant { listed, approved } };
        for chain in [false, true] {
            assert!(standing(false, false, false).allows(DevicePolicy::Any, chain));
            assert!(standing(false, true, false).allows(DevicePolicy::Listed, chain));
            assert!(!standing(true, false, true).allows(DevicePolicy::Listed, chain));
            assert_eq!(standing(true, true, false).allows(DevicePolicy::Registered, chain), !chain);
            assert_eq!(standing(true, false, true).allows(DevicePolicy::Registered, chain), chain);
            assert!(!standing(false, true, true).allows(DevicePolicy::Registered, chain));
        }
        for flags in [0, 4, 255] {
            assert!(Grant::decode(&[flags]).is_err());
        }
        let grant = Grant { listed: false, approved: true };
        assert_eq!(Grant::decode(&[grant.encode().unwrap()]).unwrap(), grant);
        assert_eq!(Grant::default().encode(), None);
    }
}
