//! What a device signs in the API of 2025 (`POST /v1/task`): the request written again without its signature, as Go's
//! encoding/json writes it, hashed with SHA-256, and hashed once more together with values of the payload that the
//! project names.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use crate::go_json::{push_compact, push_string};
use crate::hash::{Hash32, keccak256};
use crate::ids::{ProjectId, TaskId};
use crate::registry::SIGNED_KEY_BYTES_MAX;
use crate::signature::Signature;

/// The name of a whole number in the payload that a project wants signed on its own, so that its circuit can check it:
/// a member of the payload's outermost object.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SignedKey(String);

/// A text that is no [`SignedKey`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a signed key has 1 to {SIGNED_KEY_BYTES_MAX} letters, digits, '-' and '_'")]
pub struct SignedKeyError;

impl SignedKey {
    /// Takes a name. The reference would read other characters as a path.
    pub fn new(name: &str) -> Result<Self, SignedKeyError> {
        name.to_owned().try_into()
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SignedKey {
    type Error = SignedKeyError;

    fn try_from(name: String) -> Result<Self, SignedKeyError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let fits = (1..=SIGNED_KEY_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain);
        if fits { Ok(Self(name)) } else { Err(SignedKeyError) }
    }
}

impl From<SignedKey> for String {
    fn from(key: SignedKey) -> Self {
        key.0
    }
}

/// A request without its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content<'a> {
    /// The device's number for it.
    pub nonce: u64,
    /// The project.
    pub project_id: ProjectId,
    /// The project's version; left out of the text where it is empty.
    pub project_version: &'a str,
    /// The payload.
    pub payload: &'a [u8],
    /// Whether the payload is written as the JSON value that it is, or as hex text.
    pub payload_is_json: bool,
}

impl Content<'_> {
    /// The text that is hashed first.
    pub fn text(&self) -> Vec<u8> {
        let mut head = String::with_capacity(128);
        // Writing to a String cannot fail.
        let _ = write!(head, "{{\"nonce\":{},\"projectID\":\"{}\"", self.nonce, self.project_id);
        if !self.project_version.is_empty() {
            head.push_str(",\"projectVersion\":");
            push_string(&mut head, self.project_version);
        }
        head.push_str(",\"payload\":");
        let mut out = head.into_bytes();
        if self.payload_is_json {
            push_compact(&mut out, self.payload);
        } else {
            out.extend(format!("\"{}\"", hex::encode(self.payload)).bytes());
        }
        out.push(b'}');
        out
    }

    /// What the device signs, with the values that its project wants signed once more.
    pub fn digest(&self, values: impl IntoIterator<Item = u64>) -> Hash32 {
        let first: Hash32 = Sha256::digest(self.text()).into();
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return first;
        }
        let mut hasher = Sha256::new_with_prefix(first);
        for value in values {
            hasher.update(value.to_le_bytes());
        }
        hasher.finalize().into()
    }
}

/// The name that this API gives a task: keccak256 over the 65 bytes of the device's signature. A name only: whoever sees
/// a signature can make another valid one of it, so that repeats are told by the content id.
pub fn alias(signature: &Signature) -> TaskId {
    TaskId(keccak256(&[&signature.0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(payload: &[u8], payload_is_json: bool) -> Content<'_> {
        Content { nonce: 9, project_id: ProjectId(7), project_version: "", payload, payload_is_json }
    }

    #[test]
    fn the_text_is_what_go_writes() {
        let text = |content: Content<'_>| String::from_utf8(content.text()).unwrap();
        let json = content(b"{ \"a\" : \"x y\\\" <b>\" ,\n \"t\": 5 }", true);
        let expected =
            r#"{"nonce":9,"projectID":"7","projectVersion":"v1","payload":{"a":"x y\" \u003cb\u003e","t":5}}"#;
        assert_eq!(text(Content { project_version: "v1", ..json }), expected);
        assert_eq!(text(content(b"\xab\x00", false)), r#"{"nonce":9,"projectID":"7","payload":"ab00"}"#);
    }

    #[test]
    fn signed_values_are_hashed_little_endian_after_the_text() {
        let content = content(b"{}", true);
        let plain = content.digest([]);
        let expected: Hash32 = Sha256::digest([&plain[..], &[2, 1, 0, 0, 0, 0, 0, 0]].concat()).into();
        assert_eq!(content.digest([258]), expected);
    }
}
