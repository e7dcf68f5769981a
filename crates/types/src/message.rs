//! Device messages, with the evidence of where they came from, and how they are named.

use bytes::Bytes;

use crate::hash::{Hash32, keccak256};
use crate::ids::{Address, ContentId, Height, MessageId, NodeId, ProjectId, Sequence};
use crate::merkle::{abi_address, abi_u64, leaf_hash};
use crate::proto;
use crate::signature::{Signature, recover_address};
use crate::w3bstream;

const CONTENT_DOMAIN: &[u8] = b"lockstep/content/v1";
const REPEAT_DOMAIN: &[u8] = b"lockstep/repeat/v1";
const REAPPEARED_DOMAIN: &[u8] = b"lockstep/reappeared/v1";
const INGRESS_DOMAIN: &[u8] = b"lockstep/ingress/v1";

/// Longest `projectVersion` in bytes: what the readers' tables take.
pub const PROJECT_VERSION_BYTES_MAX: usize = 128;
/// Largest project id: the readers' column is a signed 64-bit number.
pub const PROJECT_ID_MAX: u64 = i64::MAX as u64;

/// The device protocol a message came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// The apinode generation: the device signs (vectors/apinode).
    Apinode = 1,
    /// No signature: the ingress node vouches for the time and place of arrival only.
    Unsigned = 2,
}

/// Where a message came from, checkable by anyone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// The device's signature over the apinode text.
    Device(Signature),
    /// The signed word of the node that took it in.
    Ingress {
        /// The node's address.
        node: Address,
        /// Its signature over the content id.
        signature: Signature,
    },
}

/// What a device submitted. Fields are as they were given; nothing is checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The protocol it came by.
    pub api: Api,
    /// The project it is for.
    pub project_id: ProjectId,
    /// The project's version, at most [`PROJECT_VERSION_BYTES_MAX`] bytes.
    pub project_version: String,
    /// The payload.
    pub data: Bytes,
    /// The device; zeros where the protocol names none.
    pub device: Address,
    /// Idempotency key or nonce of the protocol; empty where it has none.
    pub nonce: Bytes,
    /// Where it came from.
    pub evidence: Evidence,
    /// The node that took it in; 0 where nobody says. A hint: it tells a node whether an ordered message is the one
    /// that its own client waits for. No hash or signature covers it.
    pub via: NodeId,
}

/// A message whose evidence was checked on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedMessage {
    message: Message,
    content_id: ContentId,
}

/// Bytes from a peer, a client or a disk that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not the protobuf that it should be.
    #[error("malformed {what}: {reason}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Made by a newer Lockstep.
    #[error("{what} has version {found}, this program knows {known}; upgrade it")]
    Newer {
        /// What was read.
        what: &'static str,
        /// Version found.
        found: u32,
        /// Newest version known.
        known: u32,
    },
    /// The evidence does not prove the origin it claims.
    #[error("evidence does not match the message")]
    Evidence,
}

impl DecodeError {
    /// A [`DecodeError::Malformed`].
    pub fn malformed(what: &'static str, reason: impl ToString) -> Self {
        Self::Malformed { what, reason: reason.to_string() }
    }
}

impl Message {
    /// The name of what this message says. Signature bytes are not part of it: they can be altered and stay valid.
    pub fn content_id(&self) -> ContentId {
        let version = self.project_version.as_bytes();
        ContentId(keccak256(&[
            CONTENT_DOMAIN,
            &[self.api as u8],
            &self.device.0,
            &self.project_id.0.to_be_bytes(),
            &(version.len() as u64).to_be_bytes(),
            version,
            &(self.nonce.len() as u64).to_be_bytes(),
            &self.nonce,
            &self.data,
        ]))
    }

    /// Bytes that this message counts for in limits on pools, bundles and batches.
    pub fn cost_bytes(&self) -> usize {
        // Fixed part: ids, evidence and framing, rounded up.
        self.data.len() + self.project_version.len() + self.nonce.len() + 192
    }

    /// The digest an ingress node signs to vouch for a message without a device signature.
    pub fn ingress_digest(content_id: &ContentId) -> Hash32 {
        keccak256(&[INGRESS_DOMAIN, &content_id.0])
    }

    /// Checks the evidence: recovers the signer and compares. `trusted_ingress` says whether an address is a
    /// member whose word counts. Costs one signature recovery.
    pub fn verify(self, trusted_ingress: impl Fn(&Address) -> bool) -> Result<VerifiedMessage, DecodeError> {
        let content_id = self.content_id();
        self.verify_named(content_id, trusted_ingress)
    }

    /// [`Message::verify`] for a caller that has computed [`Message::content_id`] already.
    pub fn verify_named(
        self,
        content_id: ContentId,
        trusted_ingress: impl Fn(&Address) -> bool,
    ) -> Result<VerifiedMessage, DecodeError> {
        if self.evidence_holds(&content_id, trusted_ingress) {
            Ok(VerifiedMessage { message: self, content_id })
        } else {
            Err(DecodeError::Evidence)
        }
    }

    /// Whether the evidence proves the origin that it claims. `content_id` is this message's. Costs one signature
    /// recovery.
    pub fn evidence_holds(&self, content_id: &ContentId, trusted_ingress: impl Fn(&Address) -> bool) -> bool {
        match (&self.api, &self.evidence) {
            // A device does not sign a nonce: with one, its old messages would pass for new ones.
            (Api::Apinode, Evidence::Device(signature)) if self.nonce.is_empty() => {
                let Ok(text) = std::str::from_utf8(&self.data) else { return false };
                let digest = w3bstream::message_digest(self.project_id, &self.project_version, text);
                recover_address(&digest, signature) == Ok(self.device)
            }
            (Api::Unsigned, Evidence::Ingress { node, signature }) => {
                self.device == Address::ZERO
                    && trusted_ingress(node)
                    && recover_address(&Self::ingress_digest(content_id), signature) == Ok(*node)
            }
            _ => false,
        }
    }

    /// The wire and storage form.
    pub fn to_proto(&self) -> proto::Message {
        let (evidence, ingress) = match &self.evidence {
            Evidence::Device(signature) => (signature, Bytes::new()),
            Evidence::Ingress { node, signature } => (signature, Bytes::copy_from_slice(&node.0)),
        };
        proto::Message {
            api: self.api as u32,
            project_id: self.project_id.0,
            project_version: self.project_version.clone(),
            data: self.data.clone(),
            device: Bytes::copy_from_slice(&self.device.0),
            evidence: Bytes::copy_from_slice(&evidence.0),
            ingress,
            nonce: self.nonce.clone(),
            via: self.via.0,
        }
    }

    /// Reads the wire and storage form; `data` shares the buffer it came in.
    pub fn from_proto(m: proto::Message) -> Result<Self, DecodeError> {
        let bad = |reason: &str| DecodeError::malformed("message", reason);
        let api = match m.api {
            1 => Api::Apinode,
            2 => Api::Unsigned,
            _ => return Err(bad("unknown api")),
        };
        if m.project_id == 0 || m.project_id > PROJECT_ID_MAX {
            return Err(bad("project id out of range"));
        }
        if m.project_version.len() > PROJECT_VERSION_BYTES_MAX || m.project_version.contains('\0') {
            return Err(bad("project version too long, or with a NUL"));
        }
        let signature = Signature::try_from(&m.evidence[..]).map_err(|_| bad("evidence is not 65 bytes"))?;
        let evidence = if m.ingress.is_empty() {
            Evidence::Device(signature)
        } else {
            let node = Address::try_from(&m.ingress[..]).map_err(|_| bad("ingress is not 20 bytes"))?;
            Evidence::Ingress { node, signature }
        };
        Ok(Self {
            api,
            project_id: ProjectId(m.project_id),
            project_version: m.project_version,
            data: m.data,
            device: Address::try_from(&m.device[..]).map_err(|_| bad("device is not 20 bytes"))?,
            nonce: m.nonce,
            evidence,
            via: NodeId(m.via),
        })
    }
}

impl VerifiedMessage {
    /// Takes a message whose device was found *by recovering it from the signature*, so that there is nothing
    /// left to compare. For ingress only; what comes from a peer goes through [`Message::verify`].
    pub fn from_recovered(message: Message) -> Self {
        let content_id = message.content_id();
        Self { message, content_id }
    }

    /// The same message, with the node that took it in.
    pub fn taken_in_by(mut self, node: NodeId) -> Self {
        self.message.via = node;
        self
    }

    /// The message.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The message, by value.
    pub fn into_message(self) -> Message {
        self.message
    }

    /// The name of what it says.
    pub fn content_id(&self) -> ContentId {
        self.content_id
    }
}

impl MessageId {
    /// The id of the `count`-th occurrence (from 1) of a content since `since`: the oldest height that was kept when
    /// the count began, 0 if nothing had been forgotten. So an id never comes again, whatever was forgotten.
    pub fn of_occurrence(content_id: &ContentId, count: u64, since: Height) -> Self {
        if since.0 > 0 {
            Self(keccak256(&[REAPPEARED_DOMAIN, &content_id.0, &count.to_be_bytes(), &since.0.to_be_bytes()]))
        } else if count <= 1 {
            Self(content_id.0)
        } else {
            Self(keccak256(&[REPEAT_DOMAIN, &content_id.0, &count.to_be_bytes()]))
        }
    }
}

/// Merkle leaf of an ordered message: ABI encoding of `(uint256 sequence, bytes32 id, uint256 project, address
/// device, bytes32 keccak256(data))`. It commits to the hash of the data, so that a proof does not reveal it.
pub fn message_leaf(sequence: Sequence, id: &MessageId, message: &Message) -> Hash32 {
    leaf_of_hash(sequence, id, message.project_id, &message.device, &keccak256(&[&message.data]))
}

/// [`message_leaf`] for whoever knows the hash of the data only.
pub fn leaf_of_hash(
    sequence: Sequence,
    id: &MessageId,
    project_id: ProjectId,
    device: &Address,
    data_hash: &Hash32,
) -> Hash32 {
    let mut encoded = [0; 160];
    encoded[..32].copy_from_slice(&abi_u64(sequence.0));
    encoded[32..64].copy_from_slice(&id.0);
    encoded[64..96].copy_from_slice(&abi_u64(project_id.0));
    encoded[96..128].copy_from_slice(&abi_address(device));
    encoded[128..].copy_from_slice(data_hash);
    leaf_hash(&encoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::SigningKey;

    fn signed(data: &str) -> Message {
        let key = SigningKey::from_bytes([3; 32]).unwrap();
        let digest = w3bstream::message_digest(ProjectId(7), "0.1", data);
        Message {
            api: Api::Apinode,
            project_id: ProjectId(7),
            project_version: "0.1".into(),
            data: Bytes::copy_from_slice(data.as_bytes()),
            device: key.address(),
            nonce: Bytes::new(),
            via: NodeId(3),
            evidence: Evidence::Device(key.sign(&digest)),
        }
    }

    #[test]
    fn a_message_survives_its_wire_form_and_verifies() {
        let message = signed("21.5");
        let again = Message::from_proto(message.to_proto()).unwrap();
        assert_eq!(again, message);
        assert_eq!(again.verify(|_| false).unwrap().content_id(), message.content_id());
    }

    #[test]
    fn any_altered_field_loses_the_evidence() {
        let mut other = signed("21.5");
        other.data = Bytes::from_static(b"99");
        assert_eq!(other.verify(|_| true), Err(DecodeError::Evidence));
        let mut other = signed("21.5");
        other.device = Address([1; 20]);
        assert_eq!(other.verify(|_| true), Err(DecodeError::Evidence));
        let mut other = signed("21.5");
        other.project_id = ProjectId(8);
        assert_eq!(other.verify(|_| true), Err(DecodeError::Evidence));
        let mut other = signed("21.5");
        other.nonce = Bytes::from_static(b"1");
        assert_eq!(other.verify(|_| true), Err(DecodeError::Evidence));
    }

    #[test]
    fn an_ingress_word_counts_only_from_a_member() {
        let node = SigningKey::from_bytes([4; 32]).unwrap();
        let mut message = signed("x");
        message.api = Api::Unsigned;
        message.device = Address::ZERO;
        let digest = Message::ingress_digest(&message.content_id());
        message.evidence = Evidence::Ingress { node: node.address(), signature: node.sign(&digest) };
        assert!(message.clone().verify(|a| *a == node.address()).is_ok());
        assert_eq!(message.verify(|_| false), Err(DecodeError::Evidence));
    }

    #[test]
    fn the_signature_is_not_part_of_the_content_id() {
        let message = signed("x");
        let mut altered = message.clone();
        altered.evidence = Evidence::Device(Signature([1; 65]));
        assert_eq!(message.content_id(), altered.content_id());
        assert_eq!(MessageId::of_occurrence(&message.content_id(), 1, Height(0)).0, message.content_id().0);
        assert_ne!(MessageId::of_occurrence(&message.content_id(), 2, Height(0)).0, message.content_id().0);
    }
}
