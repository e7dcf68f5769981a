//! Encrypted messages between devices and servers, in a JWE's clothes.
//!
//! Source: vectors/ioconnect/README.md, section 4. The header's labels do not say what is done; they are written as
//! devices expect them and never read. What is done: ECDH on P-256, the content key wrapped by AES-256-CBC under
//! the bare shared secret, the content encrypted by AES-256-CCM. *Nothing in it proves who sent a message.*

use std::fmt;

use aes::Aes256;
use cbc::cipher::{BlockModeDecrypt as _, BlockModeEncrypt as _, KeyIvInit as _};
use ccm::aead::inout::InOutBuf;
use ccm::consts::{U13, U16};
use ccm::{AeadInOut as _, Ccm, KeyInit as _};
use rand_core::CryptoRng;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::base64url;
use crate::did::{Did, KeyNumber, Kid, fragment};
use crate::document::jwk_point;
use crate::keys::{AgreementKey, Coordinates, Curve, P256PublicKey};

/// Longest message that is read, in bytes: the longest content there can be, in base64, and its headers.
pub const ENVELOPE_BYTES_MAX: usize = 96 << 10;
/// Longest plaintext that is written, in bytes. The C library cannot read a longer one back.
pub const PLAINTEXT_BYTES_MAX: usize = 65_519;
/// Most recipients of one message; the C library knows no more keys than these.
pub const RECIPIENTS_MAX: usize = 4;

const IV_BYTES: usize = 13;
const TAG_BYTES: usize = 16;
const WRAP_IV_BYTES: usize = 16;
const WRAPPED_BYTES: usize = 48;

type Content = Ccm<Aes256, U16, U13>;

/// Why a message cannot be read, or must not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Longer than [`ENVELOPE_BYTES_MAX`].
    #[error("an encrypted message has at most {ENVELOPE_BYTES_MAX} bytes")]
    TooLarge,
    /// The message or its header is not a JSON object.
    #[error("the {0} is not a JSON object")]
    Json(&'static str),
    /// A member is absent or of another type.
    #[error("{0} is missing or of the wrong type")]
    Member(&'static str),
    /// A member that is not base64url without padding, or not of its length.
    #[error("{0} is not base64url of the right length")]
    Base64(&'static str),
    /// More than [`RECIPIENTS_MAX`].
    #[error("a message has at most {RECIPIENTS_MAX} recipients")]
    TooManyRecipients,
    /// No recipient has the reader's key id.
    #[error("the message is not encrypted to this key")]
    NotForThisKey,
    /// The ephemeral key is no point of P-256.
    #[error("epk is not a point of P-256")]
    EphemeralKey,
    /// Altered, or encrypted to another key under this key's name.
    #[error("the message does not decrypt")]
    Undecryptable,
    /// To be written, but empty, too long or with a NUL: devices could not read it.
    #[error("a plaintext has 1 to {PLAINTEXT_BYTES_MAX} bytes and no NUL")]
    Plaintext,
    /// To be written to nobody.
    #[error("a message needs a recipient")]
    NoRecipient,
}

impl EnvelopeError {
    /// A word for machines, stable across versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Json(_) => "malformed_json",
            Self::Member(_) | Self::Base64(_) | Self::TooManyRecipients | Self::EphemeralKey => "malformed_envelope",
            Self::NotForThisKey => "wrong_recipient",
            Self::Undecryptable => "undecryptable",
            Self::Plaintext => "bad_plaintext",
            Self::NoRecipient => "no_recipient",
        }
    }
}

/// A message that was read. `Debug` does not show what it says.
#[derive(Clone, PartialEq, Eq)]
pub struct Opened {
    /// What it says. It can have stray bytes after its text: some senders do not end it properly.
    pub plaintext: Vec<u8>,
    /// Who the sender says it is (`skid`). Unproved.
    pub claimed_sender: Option<String>,
}

impl Opened {
    /// Whether the message names no sender, or `did`. Worth checking against a token's subject.
    pub fn may_be_from(&self, did: &Did) -> bool {
        self.claimed_sender.as_ref().is_none_or(|sender| sender.parse() == Ok(*did))
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sender = self.claimed_sender.as_deref().unwrap_or("nobody");
        write!(f, "Opened({} bytes, claimed sender {sender:?})", self.plaintext.len())
    }
}

/// A key to encrypt to, and its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// The id by which the recipient finds its part.
    pub kid: Kid,
    /// The key.
    pub key: P256PublicKey,
}

/// Reads a message with the key named `kid`. Costs one scalar multiplication.
pub fn open(key: &AgreementKey, kid: &Kid, text: &[u8]) -> Result<Opened, EnvelopeError> {
    if text.len() > ENVELOPE_BYTES_MAX {
        return Err(EnvelopeError::TooLarge);
    }
    let message = object(text, "message")?;
    let wrapped = wrapped_key(&message, kid)?;
    let protected = member(&message, "protected")?;
    let header = base64url::decode(protected).ok_or(EnvelopeError::Base64("protected"))?;
    let header = object(&header, "protected header")?;
    let claimed_sender = match &header["skid"] {
        Value::Null => None,
        Value::String(sender) => Some(sender.clone()),
        _ => return Err(EnvelopeError::Member("skid")),
    };
    let iv: [u8; IV_BYTES] = array(&message, "iv")?;
    let tag: [u8; TAG_BYTES] = array(&message, "tag")?;
    let mut plaintext =
        base64url::decode(member(&message, "ciphertext")?).ok_or(EnvelopeError::Base64("ciphertext"))?;
    // Only x and y of the ephemeral key are read. Its `kid` makes the C library destroy keys, and means nothing else.
    let epk = Coordinates { x: array(&header["epk"], "x")?, y: array(&header["epk"], "y")? };
    let epk = P256PublicKey::from_coordinates(&epk).map_err(|_| EnvelopeError::EphemeralKey)?;
    let content_key = unwrap_key(&key.agree(&epk), &wrapped);
    // The additional data is the header as it came, not as it would be written again.
    Content::new((&*content_key).into())
        .decrypt_inout_detached(
            (&iv).into(),
            protected.as_bytes(),
            InOutBuf::from(plaintext.as_mut_slice()),
            (&tag).into(),
        )
        .map_err(|_| EnvelopeError::Undecryptable)?;
    Ok(Opened { plaintext, claimed_sender })
}

fn object(text: &[u8], what: &'static str) -> Result<Value, EnvelopeError> {
    let value: Option<Value> = serde_json::from_slice(text).ok();
    value.filter(Value::is_object).ok_or(EnvelopeError::Json(what))
}

fn member<'a>(object: &'a Value, name: &'static str) -> Result<&'a str, EnvelopeError> {
    object[name].as_str().ok_or(EnvelopeError::Member(name))
}

fn array<const N: usize>(object: &Value, name: &'static str) -> Result<[u8; N], EnvelopeError> {
    base64url::decode_array(member(object, name)?).ok_or(EnvelopeError::Base64(name))
}

/// The content key as it was wrapped for `kid`.
fn wrapped_key(message: &Value, kid: &Kid) -> Result<[u8; WRAPPED_BYTES], EnvelopeError> {
    let recipients = message["recipients"].as_array().ok_or(EnvelopeError::Member("recipients"))?;
    if recipients.len() > RECIPIENTS_MAX {
        return Err(EnvelopeError::TooManyRecipients);
    }
    let ours = |recipient: &&Value| recipient["header"]["kid"].as_str() == Some(kid.as_str());
    array(recipients.iter().find(ours).ok_or(EnvelopeError::NotForThisKey)?, "encrypted_key")
}

/// The wrap has no integrity of its own: a wrong key shows up as content that does not decrypt.
fn unwrap_key(shared: &Zeroizing<[u8; 32]>, wrapped: &[u8; WRAPPED_BYTES]) -> Zeroizing<[u8; 32]> {
    let (mut iv, mut key) = ([0; WRAP_IV_BYTES], Zeroizing::new([0; 32]));
    iv.copy_from_slice(&wrapped[..WRAP_IV_BYTES]);
    key.copy_from_slice(&wrapped[WRAP_IV_BYTES..]);
    let mut cipher = cbc::Decryptor::<Aes256>::new((&**shared).into(), (&iv).into());
    let (first, second) = key.split_at_mut(16);
    for block in [first, second] {
        cipher.decrypt_block(block.try_into().expect("half of 32 bytes is a block"));
    }
    key
}

fn wrap_key(shared: &Zeroizing<[u8; 32]>, iv: &[u8; WRAP_IV_BYTES], key: &[u8; 32]) -> [u8; WRAPPED_BYTES] {
    let mut out = [0; WRAPPED_BYTES];
    out[..WRAP_IV_BYTES].copy_from_slice(iv);
    out[WRAP_IV_BYTES..].copy_from_slice(key);
    let mut cipher = cbc::Encryptor::<Aes256>::new((&**shared).into(), iv.into());
    for block in out[WRAP_IV_BYTES..].chunks_exact_mut(16) {
        cipher.encrypt_block(block.try_into().expect("a chunk of 16 bytes is a block"));
    }
    out
}

/// What a message needs that nobody may guess, and the number that its ephemeral key is given.
struct Fresh {
    ephemeral: AgreementKey,
    ephemeral_number: KeyNumber,
    content_key: Zeroizing<[u8; 32]>,
    iv: [u8; IV_BYTES],
    wrap_ivs: [[u8; WRAP_IV_BYTES]; RECIPIENTS_MAX],
}

impl Fresh {
    fn draw(random: &mut impl CryptoRng) -> Self {
        // The C library uses the content key as the ephemeral scalar. Here they have nothing to do with each other.
        let ephemeral = AgreementKey::generate(random);
        let (mut content_key, mut iv) = (Zeroizing::new([0; 32]), [0; IV_BYTES]);
        random.fill_bytes(content_key.as_mut());
        random.fill_bytes(&mut iv);
        let mut wrap_ivs = [[0; WRAP_IV_BYTES]; RECIPIENTS_MAX];
        wrap_ivs.iter_mut().for_each(|iv| random.fill_bytes(iv));
        Self { ephemeral, ephemeral_number: KeyNumber::EPHEMERAL, content_key, iv, wrap_ivs }
    }
}

/// Writes a message that devices can read. `sender` is named in it, unproved. Costs one scalar multiplication for
/// each recipient, and one more.
pub fn seal(
    sender: Option<&Did>,
    recipients: &[Recipient],
    plaintext: &str,
    random: &mut impl CryptoRng,
) -> Result<String, EnvelopeError> {
    if !(1..=PLAINTEXT_BYTES_MAX).contains(&plaintext.len()) || plaintext.contains('\0') {
        return Err(EnvelopeError::Plaintext);
    }
    match recipients.len() {
        0 => Err(EnvelopeError::NoRecipient),
        1..=RECIPIENTS_MAX => Ok(seal_with(&Fresh::draw(random), sender, recipients, plaintext)),
        _ => Err(EnvelopeError::TooManyRecipients),
    }
}

fn seal_with(fresh: &Fresh, sender: Option<&Did>, recipients: &[Recipient], plaintext: &str) -> String {
    let protected = base64url::encode(header(fresh, sender, recipients));
    let mut content = plaintext.as_bytes().to_vec();
    let tag = Content::new((&*fresh.content_key).into())
        .encrypt_inout_detached((&fresh.iv).into(), protected.as_bytes(), InOutBuf::from(content.as_mut_slice()))
        .expect("a content within its limit can be encrypted");
    let mut parts = String::new();
    for (recipient, wrap_iv) in recipients.iter().zip(&fresh.wrap_ivs) {
        let wrapped = wrap_key(&fresh.ephemeral.agree(&recipient.key), wrap_iv, &fresh.content_key);
        let separator = if parts.is_empty() { "" } else { "," };
        let (kid, key) = (&recipient.kid, base64url::encode(wrapped));
        parts.push_str(&format!("{separator}{{\"header\":{{\"kid\":\"{kid}\"}},\"encrypted_key\":\"{key}\"}}"));
    }
    format!(
        "{{\"ciphertext\":\"{}\",\"protected\":\"{protected}\",\"recipients\":[{parts}],\"tag\":\"{}\",\"iv\":\"{}\"}}",
        base64url::encode(content),
        base64url::encode(tag),
        base64url::encode(fresh.iv),
    )
}

fn header(fresh: &Fresh, sender: Option<&Did>, recipients: &[Recipient]) -> String {
    let mut out = String::with_capacity(512);
    out.push_str(
        "{\"typ\":\"application/didcomm-encrypted+json\",\"alg\":\"ECDH-1PU+A256KW\",\"enc\":\"A256CBC-HS512\"",
    );
    if let Some(sender) = sender {
        let apu = base64url::encode(sender.to_string());
        out.push_str(&format!(",\"skid\":\"{sender}\",\"apu\":\"{apu}\""));
    }
    let kids: Vec<&str> = recipients.iter().map(|recipient| recipient.kid.as_str()).collect();
    let apv = base64url::encode(Sha256::digest(kids.join(".")));
    let point = jwk_point(Curve::P256, &fresh.ephemeral.public().coordinates());
    let kid = fragment(Curve::P256, fresh.ephemeral_number);
    out.push_str(&format!(",\"apv\":\"{apv}\",\"epk\":{{{point},\"kty\":\"EC\",\"kid\":\"{kid}\"}}}}"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the C library drew at random, from a vector whose ephemeral scalar is the content key.
    fn drawn(message: &Value) -> (Fresh, Value) {
        let internals = &message["internals"];
        let content_key: [u8; 32] = hex::decode(internals["cek_hex"].as_str().unwrap()).unwrap().try_into().unwrap();
        let jwe: Value = serde_json::from_str(message["jwe"].as_str().unwrap()).unwrap();
        let mut wrap_ivs = [[0; WRAP_IV_BYTES]; RECIPIENTS_MAX];
        for (iv, recipient) in wrap_ivs.iter_mut().zip(jwe["recipients"].as_array().unwrap()) {
            let wrapped: [u8; WRAPPED_BYTES] = array(recipient, "encrypted_key").unwrap();
            iv.copy_from_slice(&wrapped[..WRAP_IV_BYTES]);
        }
        let number = internals["protected_header"]["epk"]["kid"].as_str().unwrap();
        let fresh = Fresh {
            ephemeral: AgreementKey::from_scalar(&content_key).unwrap(),
            ephemeral_number: KeyNumber::at_end_of(number).unwrap(),
            content_key: Zeroizing::new(content_key),
            iv: array(&jwe, "iv").unwrap(),
            wrap_ivs,
        };
        (fresh, jwe)
    }

    fn recipients(case: &Value, message: &Value) -> Vec<Recipient> {
        let parties = ["server", "device", "other_recipient"].map(|role| &case[role]);
        let find = |kid: &Value| {
            let party = parties.iter().find(|party| party["key_agreement_kid"] == *kid).unwrap();
            let member = |name: &str| hex::decode(party["key_agreement"][name].as_str().unwrap()).unwrap();
            let point = Coordinates { x: member("x_hex").try_into().unwrap(), y: member("y_hex").try_into().unwrap() };
            let key = P256PublicKey::from_coordinates(&point).unwrap();
            Recipient {
                kid: Kid::new(&key.did(), Curve::P256, KeyNumber::at_end_of(kid.as_str().unwrap()).unwrap()),
                key,
            }
        };
        message["recipient_kids"].as_array().unwrap().iter().map(find).collect()
    }

    #[test]
    fn with_the_same_random_numbers_we_write_the_messages_of_the_c_library() {
        let mut written = 0;
        for number in 1..=8 {
            let path = format!("{}/tests/vectors/ioconnect/case_{number:02}.json", env!("CARGO_MANIFEST_DIR"));
            let case: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            for message in case["messages"].as_array().unwrap() {
                if message["internals"]["epk_private_equals_cek"] != true {
                    continue;
                }
                let (fresh, jwe) = drawn(message);
                let sender: Option<Did> = message["sender_did"].as_str().map(|did| did.parse().unwrap());
                let recipients = recipients(&case, message);
                let ours = seal_with(&fresh, sender.as_ref(), &recipients, message["plaintext"].as_str().unwrap());
                let ours_value: Value = serde_json::from_str(&ours).unwrap();
                assert_eq!(ours_value, jwe, "{} {}", case["name"], message["name"]);
                assert_eq!(ours, message["jwe"].as_str().unwrap(), "{} {}", case["name"], message["name"]);
                let shared = hex::encode(*fresh.ephemeral.agree(&recipients[0].key));
                assert_eq!(shared, message["internals"]["shared_secret_z_hex"].as_str().unwrap());
                written += 1;
            }
        }
        assert!(written > 20, "{written}");
    }

    #[test]
    fn what_is_sent_never_names_a_key_that_the_receiver_would_destroy() {
        struct Counting(u8);
        impl rand_core::TryRng for Counting {
            type Error = std::convert::Infallible;
            fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
                Ok(7)
            }
            fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
                Ok(7)
            }
            fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
                self.0 += 1;
                out.fill(self.0);
                Ok(())
            }
        }
        impl rand_core::TryCryptoRng for Counting {}
        let fresh = Fresh::draw(&mut Counting(0));
        assert!(header(&fresh, None, &[]).contains("\"kid\":\"Key-p256-2147483647\""));
        assert_ne!(*fresh.ephemeral.scalar(), *fresh.content_key);
        assert_ne!(fresh.wrap_ivs[0], fresh.wrap_ivs[1]);
    }
}
