//! The secret of a server or a device: a master key and a key agreement key, and what is derived from them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::did::{Did, KeyNumber, Kid};
use crate::document::{self, Style};
use crate::keys::{AgreementKey, Curve, KeyError, MasterKey, MasterPublicKey};

const SECRET_BYTES: usize = 64;

/// Why a secret cannot be used. Never says what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Not standard base64.
    #[error("the secret must be standard base64")]
    NotBase64,
    /// Of another length.
    #[error("the secret must be 64 bytes: master key, then key agreement key")]
    Length,
    /// A half that is no private key of its curve.
    #[error("a key of the secret is {0}")]
    Key(#[from] KeyError),
}

impl SecretError {
    /// A word for machines, stable across versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotBase64 => "secret_not_base64",
            Self::Length => "secret_length",
            Self::Key(_) => "secret_not_a_key",
        }
    }
}

/// A party's two private keys. Wiped when dropped; `Debug` shows the DID.
pub struct PartySecret {
    pub(crate) master: MasterKey,
    pub(crate) key_agreement: AgreementKey,
}

/// The reference's `jwk_secret_base64`.
pub type ServerSecret = PartySecret;

impl PartySecret {
    /// Takes the two keys.
    pub fn new(master: MasterKey, key_agreement: AgreementKey) -> Self {
        Self { master, key_agreement }
    }

    /// Reads standard base64 of 64 bytes: the master key's scalar, on `curve`, and the key agreement key's. White
    /// space around it is ignored, because it usually comes from a file.
    pub fn from_base64(text: &str, curve: Curve) -> Result<Self, SecretError> {
        let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| SecretError::NotBase64)?);
        let (master, key_agreement) = bytes.split_first_chunk::<32>().ok_or(SecretError::Length)?;
        let key_agreement = key_agreement.try_into().map_err(|_| SecretError::Length)?;
        Ok(Self::new(MasterKey::from_scalar(curve, master)?, AgreementKey::from_scalar(key_agreement)?))
    }

    /// A new secret with its master key on `curve`.
    pub fn generate(curve: Curve, random: &mut impl CryptoRng) -> Self {
        Self::new(MasterKey::generate(curve, random), AgreementKey::generate(random))
    }

    /// The curve of the master key.
    pub fn curve(&self) -> Curve {
        self.master.public().curve()
    }

    /// The text that [`PartySecret::from_base64`] reads, for writing a key file.
    pub fn to_base64(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        bytes[..32].copy_from_slice(self.master.scalar().as_slice());
        bytes[32..].copy_from_slice(self.key_agreement.scalar().as_slice());
        // Room for all of it, so that no copy is left behind by growing.
        let mut out = Zeroizing::new(String::with_capacity(SECRET_BYTES.div_ceil(3) * 4));
        STANDARD.encode_string(bytes.as_slice(), &mut out);
        out
    }
}

impl fmt::Debug for PartySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartySecret({})", self.master.public().did())
    }
}

/// What a server or a device is called, and its keys under these names.
#[derive(Debug)]
pub(crate) struct Party {
    pub(crate) secret: PartySecret,
    pub(crate) did: Did,
    pub(crate) kid: Kid,
    pub(crate) key_agreement_kid: Kid,
    numbers: (KeyNumber, KeyNumber),
}

impl Party {
    pub(crate) fn new(secret: PartySecret, numbers: (KeyNumber, KeyNumber)) -> Self {
        let master = secret.master.public();
        let did = master.did();
        let kid = Kid::new(&did, master.curve(), numbers.0);
        let key_agreement_kid = Kid::new(&secret.key_agreement.public().did(), Curve::P256, numbers.1);
        Self { did, kid, key_agreement_kid, numbers, secret }
    }

    pub(crate) fn document(&self, style: Style) -> String {
        let master = self.secret.master.public();
        document::write(style, (master, self.numbers.0), (self.secret.key_agreement.public(), self.numbers.1))
    }
}

/// A node as devices see it: it issues tokens and reads what is encrypted to it.
#[derive(Debug)]
pub struct ServerIdentity {
    pub(crate) party: Party,
}

impl ServerIdentity {
    /// Derives the names of the server that holds `secret`. Its keys have the numbers that the reference server's have.
    pub fn new(secret: ServerSecret) -> Self {
        let numbers = (KeyNumber::SERVER_MASTER, KeyNumber::SERVER_KEY_AGREEMENT);
        Self { party: Party::new(secret, numbers) }
    }

    /// The server's DID: the issuer of its tokens.
    pub fn did(&self) -> Did {
        self.party.did
    }

    /// The id of the master key.
    pub fn kid(&self) -> &Kid {
        &self.party.kid
    }

    /// The id of the key that messages are encrypted to.
    pub fn key_agreement_kid(&self) -> &Kid {
        &self.party.key_agreement_kid
    }

    /// The key that verifies tokens of this server.
    pub fn public_key(&self) -> &MasterPublicKey {
        self.party.secret.master.public()
    }

    /// The answer to `GET /didDoc`, to the byte as the reference's. An older deployment, whose master key is on
    /// P-256, has the document that its C library wrote.
    pub fn document(&self) -> String {
        self.party.document(match self.public_key().curve() {
            Curve::Secp256k1 => Style::GoWrapper,
            Curve::P256 => Style::CSdk,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_reads_back_and_never_shows() {
        let text = STANDARD.encode([0x5a; 64]);
        for curve in [Curve::Secp256k1, Curve::P256] {
            let secret = ServerSecret::from_base64(&format!(" {text}\n"), curve).unwrap();
            assert_eq!(*secret.to_base64(), text);
            let shown = format!("{:?}", ServerIdentity::new(secret));
            assert!(!shown.contains("5a5a") && !shown.contains("90, 90") && !shown.contains(&text[..8]), "{shown}");
        }
    }

    #[test]
    fn what_is_no_pair_of_keys_is_refused() {
        let read = |bytes: &[u8]| ServerSecret::from_base64(&STANDARD.encode(bytes), Curve::Secp256k1).unwrap_err();
        assert_eq!(read(&[7; 63]), SecretError::Length);
        assert_eq!(read(&[7; 65]), SecretError::Length);
        assert_eq!(read(&[7; 31]), SecretError::Length);
        assert_eq!(read(&[0; 64]), SecretError::Key(KeyError(Curve::Secp256k1)));
        assert_eq!(read(&[[7; 32], [0xff; 32]].concat()), SecretError::Key(KeyError(Curve::P256)));
        assert_eq!(ServerSecret::from_base64("-_-", Curve::P256).unwrap_err(), SecretError::NotBase64);
    }
}
