//! A proof that a message stands at its place in the order, for whoever has the genesis and nothing else: from the
//! message's leaf to the root in its batch's header, from there by parent hashes to a certified header, and from the
//! genesis by certified changes of the members to those who certified it.
//!
//! In JSON, hashes are hex, and signatures have V 27 or 28, as `ecrecover` wants it (docs/formats.md, "Proofs").

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::batch::{Batch, BatchHeader};
use crate::certificate::Certificate;
use crate::epoch::Epochs;
use crate::genesis::{Genesis, GenesisError};
use crate::hash::keccak256;
use crate::ids::{Address, BatchHash, Digest, Height, MessageId, NetworkId, NodeId, ProjectId, Sequence, TimeMs};
use crate::members::MemberSet;
use crate::merkle;
use crate::message::{leaf_of_hash, message_leaf};
use crate::signature::{Signature, SignatureError};
use crate::verify::{Checkpoint, Fault, VerifyError};

/// Version of the JSON.
pub const PROOF_VERSION: u32 = 1;
/// Most headers between a message's batch and the certified one.
pub const PROOF_HEADERS_MAX: usize = 4096;
/// Most changes of the members.
pub const PROOF_BOUNDARIES_MAX: usize = 4096;
/// Longest path in a tree: more leaves than a batch can have.
pub(crate) const PATH_MAX: usize = 64;
/// What `ecrecover` adds to V.
const EVM_V: u8 = 27;

/// A signature with V 27 or 28.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvmSignature(Signature);

impl From<Signature> for EvmSignature {
    fn from(signature: Signature) -> Self {
        Self(signature)
    }
}

impl From<EvmSignature> for Signature {
    fn from(signature: EvmSignature) -> Self {
        signature.0
    }
}

impl Serialize for EvmSignature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = self.0.0;
        bytes[64] = bytes[64].wrapping_add(EVM_V);
        serializer.collect_str(&Signature(bytes))
    }
}

impl<'de> Deserialize<'de> for EvmSignature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 65];
        hex::decode_to_slice(text.strip_prefix("0x").unwrap_or(&text), &mut bytes)
            .map_err(|_| D::Error::custom(SignatureError::Length))?;
        let v = bytes[64].checked_sub(EVM_V).filter(|v| *v < 4);
        bytes[64] = v.ok_or_else(|| D::Error::custom("V of a signature in a proof is 27 or 28"))?;
        Ok(Self(Signature(bytes)))
    }
}

/// The message that is proven. Its payload is not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvenMessage {
    /// Its place in the order.
    pub sequence: Sequence,
    /// Its name.
    pub id: MessageId,
    /// Its project.
    pub project_id: ProjectId,
    /// Its device; zeros where it has none.
    pub device: Address,
    /// keccak256 of its data.
    pub data_hash: Digest,
}

/// One voter's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofSignature {
    /// The voter.
    pub node: NodeId,
    /// Its signature over [`crate::certificate::certificate_digest`].
    pub signature: EvmSignature,
}

/// A certificate as proofs show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofCertificate {
    /// Height of the batch.
    pub height: Height,
    /// Its hash.
    pub hash: BatchHash,
    /// By ascending node id.
    pub signatures: Vec<ProofSignature>,
}

impl From<&Certificate> for ProofCertificate {
    fn from(certificate: &Certificate) -> Self {
        let signature = |(node, s): &(NodeId, Signature)| ProofSignature { node: *node, signature: (*s).into() };
        let signatures = certificate.signatures.iter().map(signature).collect();
        Self { height: certificate.height, hash: certificate.hash, signatures }
    }
}

impl From<&ProofCertificate> for Certificate {
    fn from(certificate: &ProofCertificate) -> Self {
        let signatures = certificate.signatures.iter().map(|s| (s.node, s.signature.into())).collect();
        Self { height: certificate.height, hash: certificate.hash, signatures }
    }
}

/// A change of the members, certified by the voters before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boundary {
    /// Header of the batch that made it.
    pub header: BatchHeader,
    /// The members from the next batch on.
    pub members: MemberSet,
    /// That batch's certificate.
    pub certificate: ProofCertificate,
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// [`PROOF_VERSION`].
    pub version: u32,
    /// The network.
    pub network: NetworkId,
    /// What is proven.
    pub message: ProvenMessage,
    /// Siblings from the message's leaf up to the header's `messages_root`.
    pub path: Vec<Digest>,
    /// Header of the message's batch.
    pub header: BatchHeader,
    /// The headers after it, up to the certified one; none where that is `header` itself.
    pub headers: Vec<BatchHeader>,
    /// Certificate of the last of these headers.
    pub certificate: ProofCertificate,
    /// The members whose voters signed it.
    pub members: MemberSet,
    /// All changes of the members from the genesis up to them, in order.
    pub boundaries: Vec<Boundary>,
}

/// What a proof proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// The message.
    pub message: ProvenMessage,
    /// Its batch.
    pub height: Height,
    /// That batch's time.
    pub time_ms: TimeMs,
    /// The certified batch.
    pub certified: Height,
    /// How many voters signed.
    pub signers: usize,
    /// Of how many.
    pub voters: usize,
    /// How often the members had changed since genesis.
    pub changes: u64,
    /// Whether the payload was compared.
    pub data_compared: bool,
}

/// A proof that proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// Made by a newer Lockstep.
    #[error("it has version {0}, this program knows {PROOF_VERSION}; upgrade it")]
    Newer(u32),
    /// The genesis has a key that is none.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// Of another network.
    #[error("it is of network {found}, the genesis is of network {expected}")]
    Network {
        /// Network of the proof.
        found: NetworkId,
        /// Network of the genesis.
        expected: NetworkId,
    },
    /// Longer than any that a node makes.
    #[error("it has {found} {what}; at most {most} are read")]
    TooLong {
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// The limit.
        most: usize,
    },
    /// The sequence is not one of the batch.
    #[error("sequence {0} is not in the batch at height {1}")]
    Sequence(Sequence, Height),
    /// The path does not lead to the root.
    #[error("the path does not lead from the message to the root in its batch's header")]
    Path,
    /// A header's parent is not the one before it.
    #[error("the header at height {0} does not follow from the one before it")]
    Headers(Height),
    /// A certificate, or a change of the members.
    #[error(transparent)]
    Chain(#[from] VerifyError),
    /// The members listed are not those in force.
    #[error("the members listed are not those who certify at height {0}")]
    Members(Height),
    /// Another payload.
    #[error("the data is not that of the message: its keccak256 is {0}")]
    Data(Digest),
}

impl Proof {
    /// Puts a proof together: `headers` follow `batch`, and `certificate` is of the last of them. `None` if the batch
    /// has no such message.
    pub fn new(
        batch: &Batch,
        sequence: Sequence,
        headers: Vec<BatchHeader>,
        certificate: &Certificate,
        (members, boundaries): (MemberSet, Vec<Boundary>),
    ) -> Option<Self> {
        let ordered = batch.message_at(sequence)?;
        let index = usize::try_from(sequence.0.checked_sub(batch.header.first_sequence.0)?).ok()?;
        let numbered = (batch.header.first_sequence.0..).map(Sequence).zip(&batch.messages);
        let leaves: Vec<_> = numbered.map(|(s, m)| message_leaf(s, &m.id, &m.message)).collect();
        let message = &ordered.message;
        Some(Self {
            version: PROOF_VERSION,
            network: batch.header.network,
            message: ProvenMessage {
                sequence,
                id: ordered.id,
                project_id: message.project_id,
                device: message.device,
                data_hash: Digest(keccak256(&[&message.data])),
            },
            path: merkle::proof(&leaves, index)?.into_iter().map(Digest).collect(),
            header: batch.header.clone(),
            headers,
            certificate: certificate.into(),
            members,
            boundaries,
        })
    }

    fn check_path(&self) -> Result<(), ProofError> {
        let (message, header) = (&self.message, &self.header);
        let index = message.sequence.0.checked_sub(header.first_sequence.0);
        if index.is_none_or(|index| index >= header.message_count) {
            return Err(ProofError::Sequence(message.sequence, header.height));
        }
        let leaf =
            leaf_of_hash(message.sequence, &message.id, message.project_id, &message.device, &message.data_hash.0);
        let path: Vec<_> = self.path.iter().map(|sibling| sibling.0).collect();
        if merkle::verify(leaf, &path, &header.messages_root) { Ok(()) } else { Err(ProofError::Path) }
    }
}

/// How a batch hangs on the genesis: what proofs and blobs have in common.
pub(crate) struct Way<'a> {
    /// Network that it claims to be of.
    pub network: NetworkId,
    /// Header of the batch.
    pub header: &'a BatchHeader,
    /// The headers after it, up to the certified one.
    pub headers: &'a [BatchHeader],
    /// Certificate of the last of these headers.
    pub certificate: &'a Certificate,
    /// The members whose voters signed it.
    pub members: &'a MemberSet,
    /// All changes of the members below it.
    pub boundaries: &'a [Boundary],
}

impl Way<'_> {
    /// Follows it from the genesis to the certificate.
    pub(crate) fn check(&self, genesis: &Genesis, epochs: &Epochs) -> Result<Checkpoint, ProofError> {
        check_length("headers", self.headers.len(), PROOF_HEADERS_MAX)?;
        check_length("changes of the members", self.boundaries.len(), PROOF_BOUNDARIES_MAX)?;
        let expected = genesis.id()?;
        if self.network != expected {
            return Err(ProofError::Network { found: self.network, expected });
        }
        let mut members = Checkpoint::genesis(genesis)?.with_epochs(epochs)?;
        for boundary in self.boundaries {
            members.follow(&boundary.header, &boundary.members, &(&boundary.certificate).into())?;
        }
        members.enter(self.certified())?;
        self.check_headers(&members)?;
        let certified = self.certified();
        if certified.height <= members.height {
            return Err(Fault::Height(Height(members.height.0.saturating_add(1))).at(certified.height).into());
        }
        if *self.members != members.set {
            return Err(ProofError::Members(certified.height));
        }
        crate::verify::check_certificate(self.certificate, certified, &members.set)?;
        Ok(members)
    }

    /// The header that the certificate is of.
    fn certified(&self) -> &BatchHeader {
        self.headers.last().unwrap_or(self.header)
    }

    /// Follows the headers to the certified one.
    fn check_headers(&self, members: &Checkpoint) -> Result<(), ProofError> {
        let check = |header: &BatchHeader| {
            // The end of an earlier epoch was certified by nobody. It stands because what was certified follows it.
            let is_earlier = header.epoch < members.epoch && header.network == members.network;
            if is_earlier { Ok(()) } else { members.check_header(header) }
        };
        check(self.header)?;
        let mut last = self.header;
        for header in self.headers {
            check(header)?;
            let changes = last.is_boundary() && last.epoch == header.epoch;
            let height = last.height.0.checked_add(1);
            if header.parent != last.hash() || Some(header.height.0) != height || changes {
                return Err(ProofError::Headers(header.height));
            }
            last = header;
        }
        Ok(())
    }
}

pub(crate) fn check_length(what: &'static str, found: usize, most: usize) -> Result<(), ProofError> {
    if found > most { Err(ProofError::TooLong { what, found, most }) } else { Ok(()) }
}

/// Checks a proof, and the payload where it is given, against a genesis.
///
/// # Errors
/// What of it does not hold.
pub fn verify_proof(genesis: &Genesis, proof: &Proof, data: Option<&[u8]>) -> Result<Proven, ProofError> {
    verify_proof_in(genesis, &Epochs::default(), proof, data)
}

/// As [`verify_proof`], of a network that has had restores or recoveries: `epochs` is trusted like the genesis.
///
/// # Errors
/// What of it does not hold.
pub fn verify_proof_in(
    genesis: &Genesis,
    epochs: &Epochs,
    proof: &Proof,
    data: Option<&[u8]>,
) -> Result<Proven, ProofError> {
    if proof.version > PROOF_VERSION {
        return Err(ProofError::Newer(proof.version));
    }
    check_length("siblings in its path", proof.path.len(), PATH_MAX)?;
    let certificate = Certificate::from(&proof.certificate);
    let way = Way {
        network: proof.network,
        header: &proof.header,
        headers: &proof.headers,
        certificate: &certificate,
        members: &proof.members,
        boundaries: &proof.boundaries,
    };
    let members = way.check(genesis, epochs)?;
    proof.check_path()?;
    if let Some(found) = data.map(|data| Digest(keccak256(&[data]))).filter(|found| *found != proof.message.data_hash) {
        return Err(ProofError::Data(found));
    }
    Ok(Proven {
        message: proof.message,
        height: proof.header.height,
        time_ms: proof.header.time_ms,
        certified: certificate.height,
        signers: certificate.signatures.len(),
        voters: members.set.voters().count(),
        changes: members.changes,
        data_compared: data.is_some(),
    })
}
