//! Keys on the two curves that devices use: secp256k1 (libsecp256k1) and P-256 (RustCrypto, and aws-lc for
//! what every message needs).

use std::fmt;

use aws_lc_rs::agreement::{self, ECDH_P256};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use lockstep_types::{PublicKey, SigningKey};
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use rand_core::CryptoRng;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::did::Did;

/// A private scalar, wiped when dropped.
pub(crate) type Scalar = Zeroizing<[u8; 32]>;

/// The curve of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// secp256k1: master keys.
    Secp256k1,
    /// P-256: key agreement keys, and the master keys of older deployments.
    P256,
}

impl Curve {
    /// The curve as a JWK names it.
    pub fn jwk_name(self) -> &'static str {
        match self {
            Self::Secp256k1 => "secp256k1",
            Self::P256 => "P-256",
        }
    }

    /// The curve that a JWK names.
    pub fn from_jwk_name(name: &str) -> Option<Self> {
        [Self::Secp256k1, Self::P256].into_iter().find(|curve| curve.jwk_name() == name)
    }
}

/// Bytes that are no key of their curve: a point that is not on it, or a scalar that is zero or too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a key on {}", .0.jwk_name())]
pub struct KeyError(pub Curve);

/// x and y of a public key, 32 bytes each, big endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coordinates {
    /// x.
    pub x: [u8; 32],
    /// y.
    pub y: [u8; 32],
}

impl Coordinates {
    /// The name of the key at these coordinates.
    pub fn did(&self) -> Did {
        Did::of_coordinates(&self.x, &self.y)
    }

    fn from_uncompressed(bytes: &[u8; 65]) -> Self {
        let (mut x, mut y) = ([0; 32], [0; 32]);
        x.copy_from_slice(&bytes[1..33]);
        y.copy_from_slice(&bytes[33..]);
        Self { x, y }
    }

    fn uncompressed(&self) -> [u8; 65] {
        let mut out = [4; 65];
        out[1..33].copy_from_slice(&self.x);
        out[33..].copy_from_slice(&self.y);
        out
    }
}

/// A P-256 public key that is on the curve.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct P256PublicKey(p256::PublicKey);

impl P256PublicKey {
    /// Checks that the point is on the curve.
    pub fn from_coordinates(coordinates: &Coordinates) -> Result<Self, KeyError> {
        let key = p256::PublicKey::from_sec1_bytes(&coordinates.uncompressed());
        key.map(Self).map_err(|_| KeyError(Curve::P256))
    }

    /// The affine coordinates.
    pub fn coordinates(&self) -> Coordinates {
        coordinates_of(&self.0)
    }

    /// The DID of this key; its party's is another.
    pub fn did(&self) -> Did {
        self.coordinates().did()
    }
}

impl fmt::Debug for P256PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "P-256 {}", self.did())
    }
}

fn coordinates_of(key: &p256::PublicKey) -> Coordinates {
    let point = key.to_sec1_point(false);
    let mut bytes = [0; 65];
    bytes.copy_from_slice(point.as_bytes());
    Coordinates::from_uncompressed(&bytes)
}

/// A P-256 private key that receives encrypted messages. Wiped when dropped; its `Debug` shows the public half's name.
pub struct AgreementKey {
    scalar: Scalar,
    /// The same scalar where it is multiplied: aws-lc takes a third of RustCrypto's time, and this is most of what a
    /// message costs.
    secret: agreement::PrivateKey,
    public: P256PublicKey,
}

impl AgreementKey {
    /// Takes a private scalar, big endian.
    pub fn from_scalar(scalar: &[u8; 32]) -> Result<Self, KeyError> {
        let bad = || KeyError(Curve::P256);
        let secret = agreement::PrivateKey::from_private_key(&ECDH_P256, scalar).map_err(|_| bad())?;
        let point = secret.compute_public_key().map_err(|_| bad())?;
        let public = p256::PublicKey::from_sec1_bytes(point.as_ref()).map(P256PublicKey).map_err(|_| bad())?;
        Ok(Self { scalar: Zeroizing::new(*scalar), secret, public })
    }

    /// A new key.
    pub fn generate(random: &mut impl CryptoRng) -> Self {
        draw(random, Self::from_scalar)
    }

    /// The public half.
    pub fn public(&self) -> &P256PublicKey {
        &self.public
    }

    /// Plain ECDH: the x coordinate of `theirs` times this scalar.
    pub(crate) fn agree(&self, theirs: &P256PublicKey) -> Zeroizing<[u8; 32]> {
        let theirs = agreement::UnparsedPublicKey::new(&ECDH_P256, theirs.coordinates().uncompressed());
        let mut out = Zeroizing::new([0; 32]);
        let take = |shared: &[u8]| {
            out.copy_from_slice(shared);
            Ok(())
        };
        agreement::agree(&self.secret, theirs, (), take).expect("both keys are on the curve: their types say so");
        out
    }

    pub(crate) fn scalar(&self) -> Scalar {
        self.scalar.clone()
    }
}

impl fmt::Debug for AgreementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgreementKey({})", self.public.did())
    }
}

/// The public key that verifies what a party signs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum MasterPublicKey {
    /// The normal case.
    Secp256k1(PublicKey),
    /// Older deployments.
    P256(P256PublicKey),
}

impl MasterPublicKey {
    /// Checks that the point is on `curve`.
    pub fn from_coordinates(curve: Curve, coordinates: &Coordinates) -> Result<Self, KeyError> {
        match curve {
            Curve::Secp256k1 => PublicKey::from_sec1(&coordinates.uncompressed())
                .map(Self::Secp256k1)
                .map_err(|_| KeyError(Curve::Secp256k1)),
            Curve::P256 => P256PublicKey::from_coordinates(coordinates).map(Self::P256),
        }
    }

    /// The key's curve.
    pub fn curve(&self) -> Curve {
        match self {
            Self::Secp256k1(_) => Curve::Secp256k1,
            Self::P256(_) => Curve::P256,
        }
    }

    /// The affine coordinates.
    pub fn coordinates(&self) -> Coordinates {
        match self {
            Self::Secp256k1(key) => Coordinates::from_uncompressed(&key.uncompressed()),
            Self::P256(key) => key.coordinates(),
        }
    }

    /// The DID of the key and of its party.
    pub fn did(&self) -> Did {
        self.coordinates().did()
    }

    /// Whether `signature` (R‖S) is the key's over SHA-256 of `text`. Low and high S are both taken.
    pub fn verifies(&self, text: &[u8], signature: &[u8; 64]) -> bool {
        match self {
            Self::Secp256k1(key) => verifies_secp256k1(key, Sha256::digest(text).into(), signature),
            // aws-lc takes a fourth of RustCrypto's time, and either S.
            Self::P256(key) => {
                let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.coordinates().uncompressed());
                key.verify(text, signature).is_ok()
            }
        }
    }
}

/// libsecp256k1, because it is twice as fast as the alternatives; it refuses high S, so that is lowered first.
fn verifies_secp256k1(key: &PublicKey, digest: [u8; 32], signature: &[u8; 64]) -> bool {
    let key = secp256k1::PublicKey::from_byte_array_uncompressed(key.uncompressed());
    let (Ok(key), Ok(mut signature)) = (key, secp256k1::ecdsa::Signature::from_compact(signature)) else {
        return false;
    };
    signature.normalize_s();
    secp256k1::ecdsa::verify(&signature, secp256k1::Message::from_digest(digest), &key).is_ok()
}

impl fmt::Debug for MasterPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.curve().jwk_name(), self.did())
    }
}

/// The private key that signs for a party. Wiped when dropped; its `Debug` shows the public half's name.
pub struct MasterKey {
    scalar: Scalar,
    signer: Signer,
    public: MasterPublicKey,
}

enum Signer {
    Secp256k1(SigningKey),
    P256(p256::ecdsa::SigningKey),
}

impl MasterKey {
    /// Takes a private scalar, big endian.
    pub fn from_scalar(curve: Curve, scalar: &[u8; 32]) -> Result<Self, KeyError> {
        let (signer, public) = match curve {
            Curve::Secp256k1 => {
                let key = SigningKey::from_bytes(*scalar).map_err(|_| KeyError(curve))?;
                let public = MasterPublicKey::Secp256k1(key.public());
                (Signer::Secp256k1(key), public)
            }
            Curve::P256 => {
                let key = p256::ecdsa::SigningKey::from_slice(scalar).map_err(|_| KeyError(curve))?;
                let public = MasterPublicKey::P256(P256PublicKey(key.verifying_key().into()));
                (Signer::P256(key), public)
            }
        };
        Ok(Self { scalar: Zeroizing::new(*scalar), signer, public })
    }

    /// A new key.
    pub fn generate(curve: Curve, random: &mut impl CryptoRng) -> Self {
        draw(random, |scalar| Self::from_scalar(curve, scalar))
    }

    /// The public half.
    pub fn public(&self) -> &MasterPublicKey {
        &self.public
    }

    /// R‖S over SHA-256 of `text`. The nonce is RFC 6979's, so the same text has one signature.
    pub fn sign(&self, text: &[u8]) -> [u8; 64] {
        let digest: [u8; 32] = Sha256::digest(text).into();
        let mut out = [0; 64];
        match &self.signer {
            Signer::Secp256k1(key) => out.copy_from_slice(&key.sign(&digest).0[..64]),
            Signer::P256(key) => {
                let made: Result<p256::ecdsa::Signature, _> = key.sign_prehash(&digest);
                let signature = made.expect("a valid key signs any digest of 32 bytes");
                out.copy_from_slice(&signature.normalize_s().to_bytes());
            }
        }
        out
    }

    pub(crate) fn scalar(&self) -> &Scalar {
        &self.scalar
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.public.did())
    }
}

/// Draws 32 bytes until they are a key. All but one in four billion are, on either curve.
fn draw<T>(random: &mut impl CryptoRng, make: impl Fn(&[u8; 32]) -> Result<T, KeyError>) -> T {
    let mut scalar = Zeroizing::new([0; 32]);
    loop {
        random.fill_bytes(scalar.as_mut());
        if let Ok(key) = make(&scalar) {
            return key;
        }
    }
}
