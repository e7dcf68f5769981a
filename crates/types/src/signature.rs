//! Recoverable secp256k1 signatures: R‖S‖V, 65 bytes, RFC 6979 nonces, low S when we sign.
//!
//! libsecp256k1 does the work because recovery bounds a node's rate and it is twice as fast as k256; k256 is the
//! tested twin behind the same port, [`Recover`], and must agree with it on every input.

use std::fmt;
use std::sync::Arc;

use crate::hash::{Hash32, keccak256};
use crate::ids::Address;

const BLINDING_DOMAIN: &[u8] = b"lockstep/blinding/v1";

/// A signature or key that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// V is not 0 to 3. Forms 27 and 28 are refused: the same signature must not have two spellings.
    #[error("the recovery id (last byte) of the signature must be 0 to 3")]
    RecoveryId,
    /// Not 65 bytes.
    #[error("a signature has 65 bytes")]
    Length,
    /// R or S out of range, or no public key comes out.
    #[error("no public key can be recovered from the signature")]
    Unrecoverable,
    /// A private or public key that is not on the curve.
    #[error("not a secp256k1 key")]
    Key,
}

/// R‖S‖V with V in 0 to 3. S may be high: recovery gives the same key for both forms.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature(pub [u8; 65]);

impl TryFrom<&[u8]> for Signature {
    type Error = SignatureError;
    fn try_from(bytes: &[u8]) -> Result<Self, SignatureError> {
        Ok(Self(bytes.try_into().map_err(|_| SignatureError::Length)?))
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Port of signer recovery.
pub trait Recover {
    /// The key that made `signature` over `digest`. High S is accepted. Pure; no allocation.
    fn recover(&self, digest: &Hash32, signature: &Signature) -> Result<PublicKey, SignatureError>;
}

/// Signatures of a simulation, in which all nodes are on one thread: what a key signs is noted there and then, and who
/// signed is looked up, which is a hundred times faster than to compute both. Nobody but the holder of a key makes a
/// signature of it, as it should be. Without [`simulated::begin`] nothing of this happens.
pub mod simulated {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use super::{Hash32, PublicKey, Signature, keccak256};

    /// Signatures that are kept from one run to the next, about.
    const KEPT_MAX: usize = 1 << 16;

    #[derive(Default)]
    struct Notes {
        signers: HashMap<(Hash32, [u8; 65]), PublicKey>,
        keys: HashMap<[u8; 33], PublicKey>,
    }

    thread_local! {
        static NOTES: RefCell<Option<Notes>> = const { RefCell::new(None) };
    }

    /// A simulated network begins on this thread: signatures are simulated from now on. Those of an earlier one may not
    /// be known any more.
    pub fn begin() {
        NOTES.with_borrow_mut(|notes| {
            let notes = notes.get_or_insert_default();
            if notes.signers.len() >= KEPT_MAX {
                notes.signers.clear();
            }
        });
    }

    pub(super) fn sign(key: &PublicKey, digest: &Hash32) -> Option<Signature> {
        NOTES.with_borrow_mut(|notes| {
            let notes = notes.as_mut()?;
            let mut signature = [0; 65];
            signature[..32].copy_from_slice(&keccak256(&[b"simulated", &key.0, digest]));
            notes.signers.insert((*digest, signature), *key);
            Some(Signature(signature))
        })
    }

    pub(super) fn signer(digest: &Hash32, signature: &Signature) -> Option<PublicKey> {
        NOTES.with_borrow(|notes| notes.as_ref()?.signers.get(&(*digest, signature.0)).copied())
    }

    pub(super) fn note(digest: &Hash32, signature: &Signature, key: PublicKey) {
        NOTES.with_borrow_mut(|notes| notes.as_mut().map(|notes| notes.signers.insert((*digest, signature.0), key)));
    }

    pub(super) fn key(bytes: &[u8]) -> Option<PublicKey> {
        let bytes: &[u8; 33] = bytes.try_into().ok()?;
        NOTES.with_borrow(|notes| notes.as_ref()?.keys.get(bytes).copied())
    }

    pub(super) fn note_key(bytes: &[u8], key: PublicKey) {
        let Ok(bytes) = bytes.try_into() else { return };
        NOTES.with_borrow_mut(|notes| notes.as_mut().map(|notes| notes.keys.insert(bytes, key)));
    }
}

/// Recovery by libsecp256k1: the one in use.
#[derive(Debug, Clone, Copy, Default)]
pub struct Libsecp256k1;

impl Recover for Libsecp256k1 {
    fn recover(&self, digest: &Hash32, signature: &Signature) -> Result<PublicKey, SignatureError> {
        if let Some(key) = simulated::signer(digest, signature) {
            return Ok(key);
        }
        let (compact, v) = signature.0.split_at(64);
        let id = secp256k1::ecdsa::RecoveryId::try_from(i32::from(v[0])).map_err(|_| SignatureError::RecoveryId)?;
        let parsed = secp256k1::ecdsa::RecoverableSignature::from_compact(compact, id)
            .map_err(|_| SignatureError::Unrecoverable)?;
        let message = secp256k1::Message::from_digest(*digest);
        let key = parsed.recover_ecdsa(message).map_err(|_| SignatureError::Unrecoverable)?;
        let key = PublicKey(key.serialize_uncompressed());
        simulated::note(digest, signature, key);
        Ok(key)
    }
}

/// Recovery by k256 (pure Rust): the twin that tests hold against [`Libsecp256k1`].
#[derive(Debug, Clone, Copy, Default)]
pub struct K256;

impl Recover for K256 {
    fn recover(&self, digest: &Hash32, signature: &Signature) -> Result<PublicKey, SignatureError> {
        use k256::ecdsa::{RecoveryId, VerifyingKey};
        let (compact, v) = signature.0.split_at(64);
        let id = RecoveryId::from_byte(v[0]).ok_or(SignatureError::RecoveryId)?;
        let parsed = k256::ecdsa::Signature::from_slice(compact).map_err(|_| SignatureError::Unrecoverable)?;
        // k256 verifies after recovery and wants low S there: replace (S, V) by its equal (n - S, V ^ 1).
        let normalized = parsed.normalize_s();
        let id = if normalized == parsed { id } else { RecoveryId::new(!id.is_y_odd(), id.is_x_reduced()) };
        let key =
            VerifyingKey::recover_from_prehash(digest, &normalized, id).map_err(|_| SignatureError::Unrecoverable)?;
        let point = key.to_sec1_point(false);
        Ok(PublicKey(point.as_bytes().try_into().map_err(|_| SignatureError::Unrecoverable)?))
    }
}

/// Recovers the address that signed `digest`.
pub fn recover_address(digest: &Hash32, signature: &Signature) -> Result<Address, SignatureError> {
    Ok(Libsecp256k1.recover(digest, signature)?.address())
}

/// An uncompressed secp256k1 public key (0x04 ‖ x ‖ y), known to be on the curve.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 65]);

impl PublicKey {
    /// Reads a key of 33 (compressed) or 65 bytes.
    pub fn from_sec1(bytes: &[u8]) -> Result<Self, SignatureError> {
        if let Some(key) = simulated::key(bytes) {
            return Ok(key);
        }
        let key = secp256k1::PublicKey::from_slice(bytes).map_err(|_| SignatureError::Key)?;
        let key = Self(key.serialize_uncompressed());
        simulated::note_key(bytes, key);
        Ok(key)
    }

    /// 0x04 ‖ x ‖ y.
    pub fn uncompressed(&self) -> [u8; 65] {
        self.0
    }

    /// 33 bytes: 0x02 or 0x03, then x.
    pub fn compressed(&self) -> [u8; 33] {
        let mut out = [0; 33];
        out[0] = 2 + (self.0[64] & 1);
        out[1..].copy_from_slice(&self.0[1..33]);
        out
    }

    /// The key's EVM address.
    pub fn address(&self) -> Address {
        let hash = keccak256(&[&self.0[1..]]);
        let mut out = [0; 20];
        out.copy_from_slice(&hash[12..]);
        Address(out)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex::encode(self.compressed()))
    }
}

/// A private key. Its `Debug` shows the address only.
#[derive(Clone)]
pub struct SigningKey {
    secret: secp256k1::SecretKey,
    public: PublicKey,
    /// A context of the key's own, blinded once. The library's global one is blinded anew after every signature,
    /// which costs as much as the signature itself.
    context: Arc<secp256k1::Secp256k1<secp256k1::SignOnly>>,
}

impl SigningKey {
    /// Takes a private scalar, big endian.
    pub fn from_bytes(secret: [u8; 32]) -> Result<Self, SignatureError> {
        let secret = secp256k1::SecretKey::from_secret_bytes(secret).map_err(|_| SignatureError::Key)?;
        let public = PublicKey(secret.public_key().serialize_uncompressed());
        let mut context = secp256k1::Secp256k1::signing_only();
        context.seeded_randomize(&keccak256(&[BLINDING_DOMAIN, &secret.to_secret_bytes()]));
        Ok(Self { secret, public, context: Arc::new(context) })
    }

    /// Reads 64 hex digits, with or without `0x` and surrounding white space.
    pub fn from_hex(text: &str) -> Result<Self, SignatureError> {
        let text = text.trim();
        let mut secret = [0; 32];
        hex::decode_to_slice(text.strip_prefix("0x").unwrap_or(text), &mut secret).map_err(|_| SignatureError::Key)?;
        Self::from_bytes(secret)
    }

    /// The private scalar, for writing a key file or making a libp2p key of it.
    pub fn secret_bytes(&self) -> [u8; 32] {
        self.secret.to_secret_bytes()
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The key's EVM address.
    pub fn address(&self) -> Address {
        self.public.address()
    }

    /// Signs `digest`: RFC 6979 nonce, low S, V 0 or 1. The same input gives the same signature anywhere.
    pub fn sign(&self, digest: &Hash32) -> Signature {
        use secp256k1::ffi;
        if let Some(signature) = simulated::sign(&self.public, digest) {
            return signature;
        }
        let mut raw = ffi::recovery::RecoverableSignature::new();
        // SAFETY: the context lives as long as `self` and is not changed after it was made, so that threads may share
        // it; digest and secret are 32 bytes each; the library writes to `raw` only.
        #[allow(unsafe_code)]
        let made = unsafe {
            ffi::recovery::secp256k1_ecdsa_sign_recoverable(
                self.context.ctx().as_ptr(),
                &mut raw,
                digest.as_ptr(),
                self.secret.as_secret_bytes().as_ptr(),
                ffi::secp256k1_nonce_function_rfc6979,
                std::ptr::null(),
            )
        };
        assert_eq!(made, 1, "a valid key signs any digest");
        let (id, compact) = secp256k1::ecdsa::RecoverableSignature::from(raw).serialize_compact();
        let mut out = [0; 65];
        out[..64].copy_from_slice(&compact);
        out[64] = id.to_u8();
        Signature(out)
    }
}

impl Drop for SigningKey {
    /// Leaves no copy of the secret behind, as far as a program can promise that.
    fn drop(&mut self) {
        self.secret.non_secure_erase();
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.address())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn signing_is_deterministic_and_recovers_the_signer() {
        let key = SigningKey::from_bytes([9; 32]).unwrap();
        let digest = keccak256(&[b"message"]);
        let signature = key.sign(&digest);
        assert_eq!(signature, key.sign(&digest));
        assert!(signature.0[64] < 2);
        assert_eq!(recover_address(&digest, &signature), Ok(key.address()));
        assert_eq!(PublicKey::from_sec1(&key.public().compressed()), Ok(key.public()));
    }

    #[test]
    fn debug_output_never_shows_the_secret() {
        let key = SigningKey::from_bytes([0x5a; 32]).unwrap();
        assert!(!format!("{key:?}").contains("5a5a5a"));
    }

    proptest! {
        #[test]
        fn twins_agree_on_signatures_made_and_on_any_change_to_them(
            secret in prop::array::uniform32(1_u8..), digest in prop::array::uniform32(any::<u8>()),
            at in 0_usize..65, flip in 0_u8..=255,
        ) {
            let key = SigningKey::from_bytes(secret).unwrap();
            let mut signature = key.sign(&digest);
            signature.0[at] ^= flip;
            prop_assert_eq!(Libsecp256k1.recover(&digest, &signature), K256.recover(&digest, &signature));
        }

        #[test]
        fn twins_agree_on_random_bytes(digest in prop::array::uniform32(any::<u8>()), bytes in prop::collection::vec(any::<u8>(), 64), v in 0_u8..6) {
            let mut signature = [0; 65];
            signature[..64].copy_from_slice(&bytes);
            signature[64] = v;
            let signature = Signature(signature);
            prop_assert_eq!(Libsecp256k1.recover(&digest, &signature), K256.recover(&digest, &signature));
        }
    }
}
