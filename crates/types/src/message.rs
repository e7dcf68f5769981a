//! Device messages, with the evidence of where they came from, and how they are named.

use bytes::Bytes;

use crate::hash::{Hash32, keccak256};
use crate::ids::{Address, ContentId, Height, MessageId, NodeId, ProjectId, Sequence, TaskId};
use crate::merkle::{abi_address, abi_u64, leaf_hash};
use crate::proto;
use crate::registry::{SIGNED_KEY_BYTES_MAX, SIGNED_KEYS_MAX};
use crate::signature::{Signature, recover_address};
use crate::task_v1;
use crate::w3bstream;

const CONTENT_DOMAIN: &[u8] = b"lockstep/content/v1";
const REPEAT_DOMAIN: &[u8] = b"lockstep/repeat/v1";
const REAPPEARED_DOMAIN: &[u8] = b"lockstep/reappeared/v1";
const INGRESS_DOMAIN: &[u8] = b"lockstep/ingress/v1";
const ENVELOPE_DOMAIN: &[u8] = b"lockstep/envelope/v1";

/// Longest `projectVersion` in bytes: what the readers' tables take.
pub const PROJECT_VERSION_BYTES_MAX: usize = 128;
/// Largest project id: the readers' column is a signed 64-bit number.
pub const PROJECT_ID_MAX: u64 = i64::MAX as u64;
/// Longest nonce, in bytes: of what tells two equal messages of a device apart.
pub const NONCE_BYTES_MAX: usize = 64;

/// The device protocol a message came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// The apinode generation: the device signs (vectors/apinode).
    Apinode = 1,
    /// No signature: the ingress node vouches for the time and place of arrival only.
    Unsigned = 2,
    /// Encrypted to the network's server key, by a device that showed its token (vectors/ioconnect). The ingress node
    /// vouches for what it found in the envelope.
    Encrypted = 3,
    /// The API of 2025: the device signs (docs/devices.md).
    TaskV1 = 4,
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
    /// The signed word of the node that opened an encrypted message for a device that showed its token.
    Envelope {
        /// The node's address.
        node: Address,
        /// keccak256 of the envelope as it came.
        envelope: Hash32,
        /// Its signature over [`Message::envelope_digest`].
        signature: Signature,
    },
    /// The device's signature over a request of the API of 2025.
    Task(TaskEvidence),
}

/// The device's signature over a request of the API of 2025, and how the request spelled what is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskEvidence {
    /// With the recovery id that yields the device.
    pub signature: Signature,
    /// Whether the data was signed as the JSON value that it is, or as hex text.
    pub is_json: bool,
    /// Members of the payload that are signed once more, in order, with their values.
    pub signed: Vec<(String, u64)>,
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
        let spelled = match &self.evidence {
            Evidence::Task(task) => task.signed.iter().map(|(key, _)| key.len() + 12).sum::<usize>(),
            _ => 0,
        };
        // Fixed part: ids, evidence and framing, rounded up.
        self.data.len() + self.project_version.len() + self.nonce.len() + spelled + 224
    }

    /// The digest an ingress node signs to vouch for a message without a device signature.
    pub fn ingress_digest(content_id: &ContentId) -> Hash32 {
        keccak256(&[INGRESS_DOMAIN, &content_id.0])
    }

    /// The digest an ingress node signs to vouch for what it found in the envelope that hashes to `envelope`.
    pub fn envelope_digest(&self, content_id: &ContentId, envelope: &Hash32) -> Hash32 {
        keccak256(&[ENVELOPE_DOMAIN, &content_id.0, &self.device.0, envelope, &keccak256(&[&self.data])])
    }

    /// The nonce of the API of 2025.
    pub fn task_nonce(&self) -> Option<u64> {
        if self.api != Api::TaskV1 {
            return None;
        }
        Some(u64::from_be_bytes(self.nonce[..].try_into().ok()?))
    }

    /// Another name for the task of this message, by which the API of 2025 asks for it.
    pub fn task_alias(&self) -> Option<TaskId> {
        match &self.evidence {
            Evidence::Task(task) => Some(task_v1::alias(&task.signature)),
            _ => None,
        }
    }

    /// What the device signed, for a request of the API of 2025; `None` where it cannot be signed.
    fn task_digest(&self, task: &TaskEvidence) -> Option<Hash32> {
        let content = task_v1::Content {
            nonce: self.task_nonce()?,
            project_id: self.project_id,
            project_version: &self.project_version,
            payload: &self.data,
            payload_is_json: task.is_json,
        };
        Some(content.digest(task.signed.iter().map(|(_, value)| *value)))
    }

    /// The node whose word the evidence is, where it is one's.
    pub fn ingress(&self) -> Option<Address> {
        match &self.evidence {
            Evidence::Ingress { node, .. } | Evidence::Envelope { node, .. } => Some(*node),
            Evidence::Device(_) | Evidence::Task(_) => None,
        }
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
            (Api::Encrypted, Evidence::Envelope { node, envelope, signature }) => {
                self.nonce.is_empty()
                    && trusted_ingress(node)
                    && recover_address(&self.envelope_digest(content_id, envelope), signature) == Ok(*node)
            }
            (Api::TaskV1, Evidence::Task(task)) => self
                .task_digest(task)
                .is_some_and(|digest| recover_address(&digest, &task.signature) == Ok(self.device)),
            _ => false,
        }
    }

    /// The wire and storage form.
    pub fn to_proto(&self) -> proto::Message {
        let address = |node: &Address| Bytes::copy_from_slice(&node.0);
        let (mut envelope, mut spelled) = (Bytes::new(), None);
        let (evidence, ingress) = match &self.evidence {
            Evidence::Device(signature) => (signature, Bytes::new()),
            Evidence::Ingress { node, signature } => (signature, address(node)),
            Evidence::Envelope { node, envelope: hash, signature } => {
                envelope = Bytes::copy_from_slice(hash);
                (signature, address(node))
            }
            Evidence::Task(task) => {
                let value = |(name, value): &(String, u64)| proto::SignedValue { name: name.clone(), value: *value };
                let signed = task.signed.iter().map(value).collect();
                spelled = Some(proto::TaskEvidence { is_json: task.is_json, signed });
                (&task.signature, Bytes::new())
            }
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
            envelope,
            task: spelled,
        }
    }

    /// Reads the wire and storage form; `data` shares the buffer it came in.
    pub fn from_proto(m: proto::Message) -> Result<Self, DecodeError> {
        let bad = |reason: &str| DecodeError::malformed("message", reason);
        let api = match m.api {
            1 => Api::Apinode,
            2 => Api::Unsigned,
            3 => Api::Encrypted,
            4 => Api::TaskV1,
            _ => return Err(bad("unknown api")),
        };
        if m.project_id == 0 || m.project_id > PROJECT_ID_MAX {
            return Err(bad("project id out of range"));
        }
        if m.project_version.len() > PROJECT_VERSION_BYTES_MAX || m.project_version.contains('\0') {
            return Err(bad("project version too long, or with a NUL"));
        }
        if m.nonce.len() > NONCE_BYTES_MAX {
            return Err(bad("nonce too long"));
        }
        let signature = Signature::try_from(&m.evidence[..]).map_err(|_| bad("evidence is not 65 bytes"))?;
        let node = || Address::try_from(&m.ingress[..]).map_err(|_| bad("ingress is not 20 bytes"));
        let evidence = match m.task {
            Some(task) => Evidence::Task(task_evidence(signature, task)?),
            None if m.ingress.is_empty() => Evidence::Device(signature),
            None if m.envelope.is_empty() => Evidence::Ingress { node: node()?, signature },
            None => {
                let envelope = Hash32::try_from(&m.envelope[..]).map_err(|_| bad("envelope is not 32 bytes"))?;
                Evidence::Envelope { node: node()?, envelope, signature }
            }
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

fn task_evidence(signature: Signature, task: proto::TaskEvidence) -> Result<TaskEvidence, DecodeError> {
    let fits = task.signed.len() <= SIGNED_KEYS_MAX
        && task.signed.iter().all(|signed| signed.name.len() <= SIGNED_KEY_BYTES_MAX);
    if !fits {
        return Err(DecodeError::malformed("message", "too many signed keys, or too long ones"));
    }
    let signed = task.signed.into_iter().map(|signed| (signed.name, signed.value)).collect();
    Ok(TaskEvidence { signature, is_json: task.is_json, signed })
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

    fn signed_by_device(data: &str) -> Message {
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
        let message = signed_by_device("21.5");
        let again = Message::from_proto(message.to_proto()).unwrap();
        assert_eq!(again, message);
        assert_eq!(again.verify(|_| false).unwrap().content_id(), message.content_id());
    }

    #[test]
    fn any_altered_field_loses_the_evidence() {
        let mut other = signed_by_device("21.5");
        other.data = Bytes::from_static(b"99");
        assert_eq!(other.verify(|_| true), Err(DecodeError::Evidence));
        let mut other = signed_by_device("21.5");
        other.device = Address([1; 20]);
        assert_eq!(other.verify(|_| true), Err(DecodeError::Evidence));
        let mut other = signed_by_device("21.5");
        other.project_id = ProjectId(8);
        assert_eq!(other.verify(|_| true), Err(DecodeError::Evidence));
        let mut other = signed_by_device("21.5");
        other.nonce = Bytes::from_static(b"1");
        assert_eq!(other.verify(|_| true), Err(DecodeError::Evidence));
    }

    #[test]
    fn an_ingress_word_counts_only_from_a_member() {
        let node = SigningKey::from_bytes([4; 32]).unwrap();
        let mut message = signed_by_device("x");
        message.api = Api::Unsigned;
        message.device = Address::ZERO;
        let digest = Message::ingress_digest(&message.content_id());
        message.evidence = Evidence::Ingress { node: node.address(), signature: node.sign(&digest) };
        assert!(message.clone().verify(|a| *a == node.address()).is_ok());
        assert_eq!(message.verify(|_| false), Err(DecodeError::Evidence));
    }

    #[test]
    fn a_word_about_an_envelope_covers_device_envelope_and_data() {
        let node = SigningKey::from_bytes([4; 32]).unwrap();
        let vouched = || {
            let mut message = signed_by_device("x");
            message.api = Api::Encrypted;
            let (id, envelope) = (message.content_id(), [8; 32]);
            let signature = node.sign(&message.envelope_digest(&id, &envelope));
            message.evidence = Evidence::Envelope { node: node.address(), envelope, signature };
            message
        };
        let message = vouched();
        assert_eq!(Message::from_proto(message.to_proto()).unwrap(), message);
        assert!(message.clone().verify(|a| *a == node.address()).is_ok());
        assert_eq!(message.verify(|_| false), Err(DecodeError::Evidence));
        let edits: [fn(&mut Message); 3] = [
            |m| m.device.0[0] ^= 1,
            |m| m.data = Bytes::from_static(b"y"),
            |m| {
                if let Evidence::Envelope { envelope, .. } = &mut m.evidence {
                    envelope[0] ^= 1;
                }
            },
        ];
        for edit in edits {
            let mut other = vouched();
            edit(&mut other);
            assert_eq!(other.verify(|_| true), Err(DecodeError::Evidence));
        }
    }

    fn task(payload: &'static [u8], is_json: bool, signed: &[(String, u64)]) -> Message {
        let key = SigningKey::from_bytes([3; 32]).unwrap();
        let (project_id, project_version) = (ProjectId(7), "");
        let content = task_v1::Content { nonce: 9, project_id, project_version, payload, payload_is_json: is_json };
        let signature = key.sign(&content.digest(signed.iter().map(|(_, value)| *value)));
        Message {
            api: Api::TaskV1,
            project_version: String::new(),
            data: payload.into(),
            nonce: Bytes::copy_from_slice(&9_u64.to_be_bytes()),
            evidence: Evidence::Task(TaskEvidence { signature, is_json, signed: signed.to_vec() }),
            ..signed_by_device("x")
        }
    }

    #[test]
    fn a_task_of_2025_verifies_as_it_was_spelled() {
        let values = [("timestamp".to_owned(), 5)];
        for message in [
            task(b"{\"timestamp\": 5, \"t\": \"<1>\"}", true, &values),
            task(b"[1, 2]", true, &[]),
            task(b"\xab\xcd", false, &[]),
        ] {
            let again = Message::from_proto(message.to_proto()).unwrap();
            assert_eq!(again, message);
            assert!(again.verify(|_| false).is_ok());
            let mut other = message.clone();
            other.nonce = Bytes::copy_from_slice(&10_u64.to_be_bytes());
            assert_eq!(other.verify(|_| true), Err(DecodeError::Evidence));
            let mut other = message.clone();
            other.data = Bytes::from_static(b"{\"timestamp\":6}");
            assert_eq!(other.verify(|_| true), Err(DecodeError::Evidence));
            let mut other = message;
            if let Evidence::Task(task) = &mut other.evidence {
                task.signed.push(("more".into(), 1));
            }
            assert_eq!(other.verify(|_| true), Err(DecodeError::Evidence));
        }
    }

    #[test]
    fn the_signature_is_not_part_of_the_content_id() {
        let message = signed_by_device("x");
        let mut altered = message.clone();
        altered.evidence = Evidence::Device(Signature([1; 65]));
        assert_eq!(message.content_id(), altered.content_id());
        assert_eq!(MessageId::of_occurrence(&message.content_id(), 1, Height(0)).0, message.content_id().0);
        assert_ne!(MessageId::of_occurrence(&message.content_id(), 2, Height(0)).0, message.content_id().0);
    }
}
