//! Certificates: signatures of a majority of voters over a batch's hash. One makes its batch and all before it final.

use bytes::Bytes;
use prost::Message as _;

use crate::hash::{Hash32, keccak256};
use crate::ids::{Address, BatchHash, Height, NodeId};
use crate::members::MemberSet;
use crate::message::DecodeError;
use crate::proto;
use crate::signature::{Signature, SigningKey, recover_address};

const CERTIFICATE_DOMAIN: &[u8] = b"lockstep/certificate/v1";
/// Version of the stored and sent record.
pub const CERTIFICATE_VERSION: u32 = 1;
/// Most signatures in a certificate that is read.
pub const SIGNATURES_MAX: usize = 256;

/// What a voter signs: a hash of the batch hash, which itself covers network, epoch, height and member set. A contract
/// checks it with `ecrecover`, with 27 added to V.
pub fn certificate_digest(hash: &BatchHash) -> Hash32 {
    keccak256(&[CERTIFICATE_DOMAIN, &hash.0])
}

/// Signs a batch's hash. Whoever calls this has made sure that the key never signs another one for the height.
pub fn sign_batch(key: &SigningKey, hash: &BatchHash) -> Signature {
    key.sign(&certificate_digest(hash))
}

/// The address that signed a batch's hash.
pub fn batch_signer(hash: &BatchHash, signature: &Signature) -> Option<Address> {
    recover_address(&certificate_digest(hash), signature).ok()
}

/// Signatures over one batch's hash, by ascending node id. Nothing is checked yet: see [`Certificate::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Height of the batch.
    pub height: Height,
    /// Its hash.
    pub hash: BatchHash,
    /// Who signed, and the signature.
    pub signatures: Vec<(NodeId, Signature)>,
}

/// Why a certificate proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Too few signatures.
    #[error("{found} signatures are no majority of {voters} voters: {needed} are needed")]
    TooFew {
        /// Signatures in it.
        found: usize,
        /// Signatures that a majority has.
        needed: usize,
        /// Voters of the set.
        voters: usize,
    },
    /// A signer who was no voter at that height, or had left.
    #[error("node {0} is no voter at this height")]
    NotAVoter(NodeId),
    /// A signature by another key, or over something else.
    #[error("the signature of node {0} is not over this batch")]
    Signature(NodeId),
    /// Node ids do not ascend: one might be there twice.
    #[error("the signatures are not in the order of node ids")]
    Order,
}

impl Certificate {
    /// Checks that a majority of the voters of `set`, the set that the batch's header names, signed; every
    /// signature in it must hold. Costs one recovery each.
    pub fn verify(&self, set: &MemberSet) -> Result<(), CertificateError> {
        if !self.signatures.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(CertificateError::Order);
        }
        let (found, needed) = (self.signatures.len(), set.majority());
        if found < needed {
            return Err(CertificateError::TooFew { found, needed, voters: set.voters().count() });
        }
        let digest = certificate_digest(&self.hash);
        for (node, signature) in &self.signatures {
            let address = set.voter(*node).ok_or(CertificateError::NotAVoter(*node))?;
            if recover_address(&digest, signature).ok() != Some(address) {
                return Err(CertificateError::Signature(*node));
            }
        }
        Ok(())
    }

    /// The form in which it is stored and sent.
    pub fn to_proto(&self) -> proto::Certificate {
        let signature = |(node, signature): &(NodeId, Signature)| proto::VoterSignature {
            node: node.0,
            signature: Bytes::copy_from_slice(&signature.0),
        };
        proto::Certificate {
            version: CERTIFICATE_VERSION,
            height: self.height.0,
            hash: Bytes::copy_from_slice(&self.hash.0),
            signatures: self.signatures.iter().map(signature).collect(),
        }
    }

    /// Reads that form.
    pub fn from_proto(c: proto::Certificate) -> Result<Self, DecodeError> {
        let bad = |reason: &str| DecodeError::malformed("certificate", reason);
        if c.version > CERTIFICATE_VERSION {
            return Err(DecodeError::Newer { what: "certificate", found: c.version, known: CERTIFICATE_VERSION });
        }
        if c.signatures.len() > SIGNATURES_MAX {
            return Err(bad("too many signatures"));
        }
        let signature = |s: proto::VoterSignature| {
            let signature = Signature::try_from(&s.signature[..]).map_err(|_| bad("a signature is not 65 bytes"))?;
            Ok((NodeId(s.node), signature))
        };
        Ok(Self {
            height: Height(c.height),
            hash: BatchHash::try_from(&c.hash[..]).map_err(|e| DecodeError::malformed("certificate", e))?,
            signatures: c.signatures.into_iter().map(signature).collect::<Result<_, DecodeError>>()?,
        })
    }

    /// The stored record.
    pub fn encode(&self) -> Vec<u8> {
        self.to_proto().encode_to_vec()
    }

    /// Reads a stored record.
    pub fn decode(record: Bytes) -> Result<Self, DecodeError> {
        let read = proto::Certificate::decode(record).map_err(|e| DecodeError::malformed("certificate", e))?;
        Self::from_proto(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::members::SetMember;

    fn keys(n: u8) -> Vec<SigningKey> {
        (1..=n).map(|i| SigningKey::from_bytes([i; 32]).unwrap()).collect()
    }

    fn set(keys: &[SigningKey]) -> MemberSet {
        let member =
            |(node, key): (u64, &SigningKey)| SetMember { node: NodeId(node), address: key.address(), voter: true };
        MemberSet((1..).zip(keys).map(member).collect())
    }

    fn certificate(keys: &[SigningKey], signers: &[usize]) -> Certificate {
        let hash = BatchHash([7; 32]);
        let sign = |i: &usize| (NodeId(*i as u64 + 1), sign_batch(&keys[*i], &hash));
        Certificate { height: Height(5), hash, signatures: signers.iter().map(sign).collect() }
    }

    #[test]
    fn a_majority_is_needed_of_voters_only_each_once() {
        let keys = keys(5);
        let set = set(&keys);
        assert_eq!(certificate(&keys, &[0, 2, 4]).verify(&set), Ok(()));
        let too_few = CertificateError::TooFew { found: 2, needed: 3, voters: 5 };
        assert_eq!(certificate(&keys, &[0, 2]).verify(&set), Err(too_few));
        assert_eq!(certificate(&keys, &[0, 0, 2]).verify(&set), Err(CertificateError::Order));
        let mut left = set.clone();
        left.0[4].voter = false;
        let error = CertificateError::NotAVoter(NodeId(5));
        assert_eq!(certificate(&keys, &[0, 2, 4]).verify(&left), Err(error));
    }

    #[test]
    fn a_signature_over_something_else_does_not_count() {
        let keys = keys(3);
        let mut other = certificate(&keys, &[0, 1]);
        other.hash = BatchHash([8; 32]);
        assert_eq!(other.verify(&set(&keys)), Err(CertificateError::Signature(NodeId(1))));
        let mut swapped = certificate(&keys, &[0, 1]);
        swapped.signatures[1].1 = swapped.signatures[0].1;
        assert_eq!(swapped.verify(&set(&keys)), Err(CertificateError::Signature(NodeId(2))));
    }

    #[test]
    fn a_certificate_reads_back_what_it_writes() {
        let made = certificate(&keys(3), &[0, 1]);
        assert_eq!(Certificate::decode(made.encode().into()).unwrap(), made);
    }
}
