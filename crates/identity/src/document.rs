//! DID documents: reading a device's, writing a party's own.
//!
//! Source: vectors/ioconnect/README.md, section 2. Stricter than the reference in one point: a document's `id` must
//! be the DID of its authentication key, so that nobody registers a document under another's name.

use lockstep_types::go_json::push_string;
use serde_json::Value;

use crate::base64url;
use crate::did::{Did, KeyNumber, Kid, fragment};
use crate::envelope::Recipient;
use crate::keys::{Coordinates, Curve, KeyError, MasterPublicKey, P256PublicKey};

/// Longest document that is read, in bytes. Devices write about 1,000.
pub const DOCUMENT_BYTES_MAX: usize = 16 << 10;

/// Why a document is refused. The sender can correct it; sending the same again is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Longer than [`DOCUMENT_BYTES_MAX`].
    #[error("a DID document has at most {DOCUMENT_BYTES_MAX} bytes")]
    TooLarge,
    /// Not a JSON object.
    #[error("the DID document is not a JSON object")]
    Json,
    /// A member is absent, empty or of another type.
    #[error("the DID document has no usable {0}")]
    Member(&'static str),
    /// A list names a method that `verificationMethod` does not have.
    #[error("{0} names a method that is not in verificationMethod")]
    Dangling(&'static str),
    /// `publicKeyJwk` without one of `x`, `y`, `crv`, `kty` and `kid` as they must be.
    #[error("the publicKeyJwk of {list} has no usable {member}")]
    Jwk {
        /// The list whose key it is.
        list: &'static str,
        /// The member.
        member: &'static str,
    },
    /// The point is not on the curve.
    #[error("the publicKeyJwk of {list} is {error}")]
    Key {
        /// The list whose key it is.
        list: &'static str,
        /// What it is not.
        error: KeyError,
    },
    /// The document's `id` is not its authentication key's.
    #[error("the document's id does not belong to its authentication key, which is that of {computed}")]
    NotItsKey {
        /// The DID that the key has.
        computed: Did,
    },
}

impl DocumentError {
    /// A word for machines, stable across versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Json => "malformed_json",
            Self::Member(_) => "missing_field",
            Self::Dangling(_) => "dangling_reference",
            Self::Jwk { .. } | Self::Key { .. } => "bad_key",
            Self::NotItsKey { .. } => "id_mismatch",
        }
    }
}

/// What a party's document says: who it is and which key to encrypt to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The party.
    pub did: Did,
    /// The id of its master key.
    pub kid: Kid,
    /// The id of its key agreement key: what a message to it names.
    pub key_agreement_kid: Kid,
    /// Its master key.
    pub authentication: MasterPublicKey,
    /// Its key agreement key.
    pub key_agreement: P256PublicKey,
}

impl Document {
    /// Reads a document. The last entry of each list counts. Key ids are computed: the methods' own are only what
    /// the lists refer to.
    pub fn parse(text: &[u8]) -> Result<Self, DocumentError> {
        if text.len() > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::TooLarge);
        }
        let document: Value = serde_json::from_slice(text).map_err(|_| DocumentError::Json)?;
        if !document.is_object() {
            return Err(DocumentError::Json);
        }
        let (curve, point, number) = last_key(&document, AUTHENTICATION)?;
        let key_of = |list| move |error| DocumentError::Key { list, error };
        let authentication = MasterPublicKey::from_coordinates(curve, &point).map_err(key_of(AUTHENTICATION))?;
        let did = authentication.did();
        let kid = Kid::new(&did, curve, number);
        let (curve, point, number) = last_key(&document, KEY_AGREEMENT)?;
        if curve != Curve::P256 {
            return Err(DocumentError::Jwk { list: KEY_AGREEMENT, member: "crv" });
        }
        let key_agreement = P256PublicKey::from_coordinates(&point).map_err(key_of(KEY_AGREEMENT))?;
        let key_agreement_kid = Kid::new(&key_agreement.did(), curve, number);
        let id = document["id"].as_str().ok_or(DocumentError::Member("id"))?;
        if id.parse() != Ok(did) {
            return Err(DocumentError::NotItsKey { computed: did });
        }
        Ok(Self { did, kid, key_agreement_kid, authentication, key_agreement })
    }

    /// The party as the recipient of an encrypted message.
    pub fn recipient(&self) -> Recipient {
        Recipient { kid: self.key_agreement_kid.clone(), key: self.key_agreement }
    }
}

const AUTHENTICATION: &str = "authentication";
const KEY_AGREEMENT: &str = "keyAgreement";
const METHODS: &str = "verificationMethod";

/// The key of the last entry of `list`: a method's id, or the method itself.
fn last_key(document: &Value, list: &'static str) -> Result<(Curve, Coordinates, KeyNumber), DocumentError> {
    let entry = document[list].as_array().and_then(|entries| entries.last()).ok_or(DocumentError::Member(list))?;
    let method = match entry {
        Value::String(id) => {
            let methods = document[METHODS].as_array().ok_or(DocumentError::Member(METHODS))?;
            let named = |method: &&Value| method["id"].as_str() == Some(id);
            methods.iter().find(named).ok_or(DocumentError::Dangling(list))?
        }
        Value::Object(_) => entry,
        _ => return Err(DocumentError::Member(list)),
    };
    read_jwk(&method["publicKeyJwk"], list)
}

fn read_jwk(jwk: &Value, list: &'static str) -> Result<(Curve, Coordinates, KeyNumber), DocumentError> {
    let missing = |member| DocumentError::Jwk { list, member };
    let text = |member| jwk[member].as_str().ok_or(missing(member));
    if text("kty")? != "EC" {
        return Err(missing("kty"));
    }
    let curve = Curve::from_jwk_name(text("crv")?).ok_or(missing("crv"))?;
    let x = base64url::decode_array(text("x")?).ok_or(missing("x"))?;
    let y = base64url::decode_array(text("y")?).ok_or(missing("y"))?;
    let number = KeyNumber::at_end_of(text("kid")?).ok_or(missing("kid"))?;
    Ok((curve, Coordinates { x, y }, number))
}

/// Whose text a document is, to the byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// The device SDK: the master key's method first.
    CSdk,
    /// The reference server: the key agreement key's method first, and an empty `d`.
    GoWrapper,
}

pub(crate) fn write(
    style: Style,
    master: (&MasterPublicKey, KeyNumber),
    key_agreement: (&P256PublicKey, KeyNumber),
) -> String {
    let did = master.0.did();
    let kid = Kid::new(&did, master.0.curve(), master.1);
    let key_agreement_kid = Kid::new(&key_agreement.0.did(), Curve::P256, key_agreement.1);
    let first = method(style, &kid, &did, (master.0.curve(), master.0.coordinates(), master.1));
    let second = method(style, &key_agreement_kid, &did, (Curve::P256, key_agreement.0.coordinates(), key_agreement.1));
    let (first, second) = if style == Style::CSdk { (first, second) } else { (second, first) };
    let context = "\"https://www.w3.org/ns/did/v1\",\"https://w3id.org/security#keyAgreementMethod\"";
    format!(
        "{{\"@context\":[{context}],\"id\":\"{did}\",\"authentication\":[\"{kid}\"],\
         \"keyAgreement\":[\"{key_agreement_kid}\"],\"verificationMethod\":[{first},{second}]}}"
    )
}

fn method(
    style: Style,
    kid: &Kid,
    controller: &Did,
    (curve, point, number): (Curve, Coordinates, KeyNumber),
) -> String {
    let mut jwk = format!("{{{}", jwk_point(curve, &point));
    if style == Style::GoWrapper {
        jwk.push_str(",\"d\":\"\"");
    }
    jwk.push_str(",\"kty\":\"EC\",\"kid\":");
    push_string(&mut jwk, &fragment(curve, number));
    jwk.push('}');
    format!("{{\"id\":\"{kid}\",\"type\":\"JsonWebKey2020\",\"controller\":\"{controller}\",\"publicKeyJwk\":{jwk}}}")
}

/// The members of a JWK that name a point, in the order that all writers have.
pub(crate) fn jwk_point(curve: Curve, point: &Coordinates) -> String {
    let (x, y) = (base64url::encode(point.x), base64url::encode(point.y));
    format!("\"crv\":\"{}\",\"x\":\"{x}\",\"y\":\"{y}\"", curve.jwk_name())
}
