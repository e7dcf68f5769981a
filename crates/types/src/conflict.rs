//! Proof that a voter signed two batches at one height: its key, or its node, is not to be trusted any more.

use bytes::Bytes;

use crate::batch::BatchHeader;
use crate::certificate::batch_signer;
use crate::ids::{Address, Epoch, Height, NetworkId, NodeId};
use crate::message::DecodeError;
use crate::proto;
use crate::signature::Signature;

/// Two headers of one height, each signed by one voter. Nothing is checked yet: see [`Conflict::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The voter.
    pub node: NodeId,
    /// What it signed.
    pub signed: [(BatchHeader, Signature); 2],
}

/// Why two signatures prove nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConflictError {
    /// Another network's, or headers of two epochs.
    #[error("the headers are not of one epoch of this network")]
    Network,
    /// Every voter signs many heights.
    #[error("the headers are of two heights")]
    Height,
    /// Signing the same again is no harm.
    #[error("the headers are the same")]
    Same,
    /// Not this voter's signature.
    #[error("a signature is not that of the voter")]
    Signature,
}

impl Conflict {
    /// Height of the two headers.
    pub fn height(&self) -> Height {
        self.signed[0].0.height
    }

    /// Epoch of the two headers.
    pub fn epoch(&self) -> Epoch {
        self.signed[0].0.epoch
    }

    /// Checks that whoever has `address` signed both.
    pub fn verify(&self, network: &NetworkId, address: &Address) -> Result<(), ConflictError> {
        let [(a, _), (b, _)] = &self.signed;
        if a.network != *network || b.network != *network || a.epoch != b.epoch {
            return Err(ConflictError::Network);
        }
        if a.height != b.height {
            return Err(ConflictError::Height);
        }
        if a.hash() == b.hash() {
            return Err(ConflictError::Same);
        }
        let is_signed = |(header, signature): &(BatchHeader, Signature)| {
            batch_signer(&header.hash(), signature).as_ref() == Some(address)
        };
        if self.signed.iter().all(is_signed) { Ok(()) } else { Err(ConflictError::Signature) }
    }

    /// The form in which it is sent and kept.
    pub fn to_proto(&self) -> proto::Conflict {
        let signed = |(header, signature): &(BatchHeader, Signature)| proto::SignedHeader {
            header: Some(header.to_proto()),
            signature: Bytes::copy_from_slice(&signature.0),
        };
        proto::Conflict { node: self.node.0, signed: self.signed.iter().map(signed).collect() }
    }

    /// Reads that form.
    pub fn from_proto(c: proto::Conflict) -> Result<Self, DecodeError> {
        let bad = |reason: &str| DecodeError::malformed("conflict", reason);
        let signed = |s: proto::SignedHeader| {
            let header = BatchHeader::from_proto(s.header.ok_or_else(|| bad("a header is missing"))?)?;
            let signature = Signature::try_from(&s.signature[..]).map_err(|_| bad("a signature is not 65 bytes"))?;
            Ok((header, signature))
        };
        let [a, b] = <[_; 2]>::try_from(c.signed).map_err(|_| bad("there are not two headers"))?;
        Ok(Self { node: NodeId(c.node), signed: [signed(a)?, signed(b)?] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::sign_batch;
    use crate::ids::TimeMs;
    use crate::signature::SigningKey;

    const NETWORK: NetworkId = NetworkId([1; 32]);

    fn header(height: u64, time_ms: u64) -> BatchHeader {
        BatchHeader { time_ms: TimeMs(time_ms), ..BatchHeader::of_nothing(NETWORK, Height(height)) }
    }

    fn conflict(key: &SigningKey, a: BatchHeader, b: BatchHeader) -> Conflict {
        let signed = [a, b].map(|header| (header.clone(), sign_batch(key, &header.hash())));
        Conflict { node: NodeId(3), signed }
    }

    #[test]
    fn only_two_headers_of_one_height_signed_by_one_voter_prove_it() {
        let (key, other) = (SigningKey::from_bytes([1; 32]).unwrap(), SigningKey::from_bytes([2; 32]).unwrap());
        let address = key.address();
        let good = conflict(&key, header(5, 1), header(5, 2));
        assert_eq!(good.verify(&NETWORK, &address), Ok(()));
        assert_eq!(good.verify(&NETWORK, &other.address()), Err(ConflictError::Signature));
        assert_eq!(good.verify(&NetworkId([9; 32]), &address), Err(ConflictError::Network));
        let verify = |a, b| conflict(&key, a, b).verify(&NETWORK, &address);
        assert_eq!(verify(header(5, 1), header(6, 2)), Err(ConflictError::Height));
        assert_eq!(verify(header(5, 1), header(5, 1)), Err(ConflictError::Same));
        assert_eq!(verify(header(5, 1), BatchHeader { epoch: Epoch(1), ..header(5, 2) }), Err(ConflictError::Network));
        let mut half = good.clone();
        half.signed[1].1 = sign_batch(&other, &half.signed[1].0.hash());
        assert_eq!(half.verify(&NETWORK, &address), Err(ConflictError::Signature));
    }

    #[test]
    fn it_is_read_as_it_was_written_and_nothing_else_is() {
        let key = SigningKey::from_bytes([1; 32]).unwrap();
        let good = conflict(&key, header(5, 1), header(5, 2));
        assert_eq!(Conflict::from_proto(good.to_proto()), Ok(good.clone()));
        let mut short = good.to_proto();
        short.signed.pop();
        assert!(Conflict::from_proto(short).is_err());
        let mut empty = good.to_proto();
        empty.signed[0].header = None;
        assert!(Conflict::from_proto(empty).is_err());
    }
}
