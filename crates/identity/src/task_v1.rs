//! Requests of W3bstream's 2025 API: `POST /v1/task`.
//!
//! Source: docs/formats.md, and what the reference's API of 2025 does with a request. The device signs the request as
//! Go writes it again; the signature usually comes without its recovery id, so two devices are possible, and the one
//! that the project permits is meant. Members are read as the reference does: names by exact case, and the first of
//! repeated members counts. Where the reference guesses (a signed value that is absent or no whole number, a project
//! id with a sign), the request is refused instead.

use bytes::Bytes;
use lockstep_types::signature::recover_address;
use lockstep_types::task_v1::{Content, SignedKey};
use lockstep_types::{
    Address, Api, Evidence, Hash32, Message, NodeId, ProjectId, Signature, SignatureError, SigningKey, TaskEvidence,
    VerifiedMessage,
};

use crate::error::{Field, RequestError};
use crate::fields::{NUMBER, check_limits, parse_hex};
use crate::json::{Value, is_value, read_object};

/// A request to order one message. Well formed; nothing is proved yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRequest {
    /// The device's number for it, not 0. Signed.
    pub nonce: u64,
    /// The project, not 0.
    pub project_id: ProjectId,
    /// The project's version; empty where the request names none.
    pub project_version: String,
    /// The payload: JSON text as it came, or the bytes that hex text stood for.
    pub payload: Bytes,
    /// The device's signature.
    pub signature: TaskSignature,
}

/// R‖S, and V where the device sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskSignature {
    /// 64 bytes, as the reference wants them.
    Compact([u8; 64]),
    /// 65 bytes; V is 0 or 1.
    Recoverable(Signature),
}

/// A device that may have signed, and its signature with the recovery id that leads to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The device.
    pub device: Address,
    /// The bytes that the device sent, S high or low, and V.
    pub signature: Signature,
}

/// Members in the order in which they are signed.
const FIELDS: [Field; 5] = [Field::Nonce, Field::ProjectId, Field::ProjectVersion, Field::Payload, Field::Signature];

impl TaskRequest {
    /// Reads the body of `POST /v1/task`.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let (mut nonce, mut project_id, mut version, mut payload, mut signature) = (None, None, None, None, None);
        read_object(
            body,
            |name| FIELDS.into_iter().find(|field| field.name() == name),
            |field, value| match field {
                Field::Nonce => first(&mut nonce, || parse_nonce(value)),
                Field::ProjectId => first(&mut project_id, || parse_project_id(value)),
                Field::ProjectVersion => first(&mut version, || parse_version(value)),
                Field::Payload => first(&mut payload, || parse_payload(value)),
                _ => first(&mut signature, || parse_signature(value)),
            },
        )?;
        let missing = RequestError::Missing;
        Ok(Self {
            nonce: nonce.ok_or(missing(Field::Nonce))?,
            project_id: project_id.ok_or(missing(Field::ProjectId))?,
            project_version: version.unwrap_or_default(),
            payload: payload.ok_or(missing(Field::Payload))?,
            signature: signature.ok_or(missing(Field::Signature))?,
        })
    }

    /// Refuses what could not be stored by the readers of tasks, or is too large. `message_bytes_max` is the
    /// network's limit on the payload.
    pub fn check_limits(&self, message_bytes_max: u64) -> Result<(), RequestError> {
        check_limits(self.project_id, &self.project_version, self.payload.len(), message_bytes_max)
    }

    /// The digest that the device signed, in a project that wants `keys` of the payload signed.
    pub fn digest(&self, keys: &[SignedKey]) -> Result<Hash32, RequestError> {
        self.content().digest(keys)
    }

    /// The devices that may have signed: up to two, one where the device sent the recovery id. Costs a signature
    /// recovery for each, so it belongs on a CPU pool.
    pub fn candidates(&self, keys: &[SignedKey]) -> Result<Vec<Candidate>, RequestError> {
        let digest = self.digest(keys)?;
        let possible = match self.signature {
            TaskSignature::Recoverable(signature) => vec![signature],
            TaskSignature::Compact(compact) => (0..=1).map(|v| with_recovery_id(&compact, v)).collect(),
        };
        let recover = |signature| Some(Candidate { device: recover_address(&digest, &signature).ok()?, signature });
        let found: Vec<Candidate> = possible.into_iter().filter_map(recover).collect();
        if found.is_empty() { Err(SignatureError::Unrecoverable.into()) } else { Ok(found) }
    }

    /// The message of the device that is meant.
    pub fn into_message(self, by: Candidate, keys: &[SignedKey]) -> Result<VerifiedMessage, RequestError> {
        let signed = self.content().signed_values(keys)?;
        let evidence = TaskEvidence { signature: by.signature, is_json: is_value(&self.payload)?, signed };
        Ok(VerifiedMessage::from_recovered(Message {
            api: Api::TaskV1,
            project_id: self.project_id,
            project_version: self.project_version,
            data: self.payload,
            device: by.device,
            nonce: Bytes::copy_from_slice(&self.nonce.to_be_bytes()),
            evidence: Evidence::Task(evidence),
            via: NodeId(0),
        }))
    }

    fn content(&self) -> TaskContent<'_> {
        TaskContent {
            nonce: self.nonce,
            project_id: self.project_id,
            project_version: &self.project_version,
            payload: &self.payload,
        }
    }
}

/// What a device signs.
#[derive(Debug, Clone, Copy)]
pub struct TaskContent<'a> {
    /// The device's number for it, not 0.
    pub nonce: u64,
    /// The project.
    pub project_id: ProjectId,
    /// The project's version; empty for none.
    pub project_version: &'a str,
    /// The payload: JSON text or other bytes.
    pub payload: &'a [u8],
}

impl TaskContent<'_> {
    /// The request without its signature, as Go writes it: a payload that is JSON as it is, else as hex text.
    pub fn signed_text(&self) -> Result<Vec<u8>, RequestError> {
        let is_json = is_value(self.payload)?;
        Ok(self.text(is_json))
    }

    fn text(&self, payload_is_json: bool) -> Vec<u8> {
        self.written(payload_is_json).text()
    }

    fn written(&self, payload_is_json: bool) -> Content<'_> {
        let Self { nonce, project_id, project_version, payload } = *self;
        Content { nonce, project_id, project_version, payload, payload_is_json }
    }

    fn digest(&self, keys: &[SignedKey]) -> Result<Hash32, RequestError> {
        let values = self.signed_values(keys)?;
        Ok(self.written(is_value(self.payload)?).digest(values.into_iter().map(|(_, value)| value)))
    }

    fn signed_values(&self, keys: &[SignedKey]) -> Result<Vec<(String, u64)>, RequestError> {
        keys.iter().map(|key| Ok((key.as_str().to_owned(), signed_value(self.payload, key)?))).collect()
    }
}

/// The body of `POST /v1/task` that the device with `key` sends to a project that wants `keys` signed. A payload that
/// is not a JSON object or array is sent as hex text.
pub fn sign_task(key: &SigningKey, content: TaskContent<'_>, keys: &[SignedKey]) -> Result<Vec<u8>, RequestError> {
    let signature = key.sign(&content.digest(keys)?);
    // JSON that is neither is signed as it is, but would not be read from a request so.
    let compound = matches!(content.payload.trim_ascii_start().first(), Some(b'{' | b'['));
    let mut body = content.text(compound && is_value(content.payload)?);
    body.pop();
    body.extend(format!(",\"signature\":\"0x{}\"}}", hex::encode(&signature.0[..64])).bytes());
    Ok(body)
}

fn with_recovery_id(compact: &[u8; 64], v: u8) -> Signature {
    let mut out = [v; 65];
    out[..64].copy_from_slice(compact);
    Signature(out)
}

fn first<T>(slot: &mut Option<T>, read: impl FnOnce() -> Result<T, RequestError>) -> Result<(), RequestError> {
    if slot.is_none() {
        *slot = Some(read()?);
    }
    Ok(())
}

fn parse_nonce(value: Value<'_>) -> Result<u64, RequestError> {
    let wrong = RequestError::WrongType { field: Field::Nonce, expected: NUMBER };
    match value {
        Value::Number(literal) => match literal.parse() {
            Ok(0) => Err(RequestError::Missing(Field::Nonce)),
            Ok(nonce) => Ok(nonce),
            Err(_) => Err(wrong),
        },
        Value::Null => Err(RequestError::Missing(Field::Nonce)),
        _ => Err(wrong),
    }
}

/// A project id has one spelling, because it is signed as text.
fn parse_project_id(value: Value<'_>) -> Result<ProjectId, RequestError> {
    let expected = "text of the digits of a whole number from 1, without leading zeros";
    let wrong = RequestError::WrongType { field: Field::ProjectId, expected };
    let text = match value {
        Value::Text(text) => text,
        Value::Null => return Err(RequestError::Missing(Field::ProjectId)),
        _ => return Err(wrong),
    };
    match text.parse::<u64>() {
        _ if text.is_empty() => Err(RequestError::Missing(Field::ProjectId)),
        Ok(number) if number > 0 && number.to_string() == text => Ok(ProjectId(number)),
        _ => Err(wrong),
    }
}

fn parse_version(value: Value<'_>) -> Result<String, RequestError> {
    let field = Field::ProjectVersion;
    match value {
        // The reference writes a broken character and a replacement character differently; here they look the same.
        Value::Text(text) if text.contains(char::REPLACEMENT_CHARACTER) => {
            Err(RequestError::WrongType { field, expected: "text of valid characters" })
        }
        Value::Text(text) => Ok(text.into_owned()),
        Value::Null => Ok(String::new()),
        _ => Err(RequestError::WrongType { field, expected: "a string" }),
    }
}

fn parse_payload(value: Value<'_>) -> Result<Bytes, RequestError> {
    let field = Field::Payload;
    let bytes = match value {
        Value::Other(raw @ [b'{' | b'[', ..]) => Bytes::copy_from_slice(raw),
        // Unlike the signature, without 0x.
        Value::Text(text) => {
            let expected = "hex text without 0x, an object or an array";
            Bytes::from(hex::decode(&*text).map_err(|_| RequestError::WrongType { field, expected })?)
        }
        Value::Null => Bytes::new(),
        _ => return Err(RequestError::WrongType { field, expected: "an object, an array or hex text" }),
    };
    if bytes.is_empty() { Err(RequestError::Missing(field)) } else { Ok(bytes) }
}

fn parse_signature(value: Value<'_>) -> Result<TaskSignature, RequestError> {
    let field = Field::Signature;
    let text = match value {
        Value::Text(text) if !text.is_empty() => text,
        Value::Text(_) | Value::Null => return Err(RequestError::Missing(field)),
        _ => return Err(RequestError::WrongType { field, expected: "a string" }),
    };
    let bytes = parse_hex(field, &text)?;
    if let Ok(compact) = bytes[..].try_into() {
        return Ok(TaskSignature::Compact(compact));
    }
    let length = RequestError::Length { field, expected: 64, found: bytes.len() };
    let signature = Signature::try_from(&bytes[..]).map_err(|_| length)?;
    if signature.0[64] > 1 {
        return Err(SignatureError::RecoveryId.into());
    }
    Ok(TaskSignature::Recoverable(signature))
}

/// The whole number at `key` of the payload's outermost object.
fn signed_value(payload: &[u8], key: &SignedKey) -> Result<u64, RequestError> {
    let refused = || RequestError::SignedKey { name: key.as_str().to_owned() };
    let mut found = None;
    let read = read_object(
        payload,
        |name| (name == key.as_str()).then_some(()),
        |(), value| {
            first(&mut found, || match value {
                Value::Number(literal) => literal.parse().map_err(|_| refused()),
                _ => Err(refused()),
            })
        },
    );
    read.map_err(|_| refused())?;
    found.ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use lockstep_types::keccak256;
    use lockstep_types::task_v1::alias;
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes([5; 32]).unwrap()
    }

    fn content(payload: &[u8]) -> TaskContent<'_> {
        TaskContent { nonce: 9, project_id: ProjectId(923), project_version: "v1", payload }
    }

    fn request(members: &str) -> Result<TaskRequest, RequestError> {
        TaskRequest::parse(format!("{{{members}}}").as_bytes())
    }

    fn signature() -> String {
        format!("\"signature\":\"0x{}\"", "11".repeat(64))
    }

    #[test]
    fn what_a_device_signs_leads_to_that_device() {
        let timestamp = [SignedKey::new("timestamp").unwrap()];
        let json = br#" { "timestamp": 1732260000, "t": "<21.5>" } "#;
        for (payload, keys) in [
            (&json[..], &timestamp[..]),
            (json, &[]),
            (b"[1, 2]", &[]),
            (b"7", &[]),
            (b"\x00\xff", &[]),
            (b"\"x\"", &[]),
        ] {
            let body = sign_task(&key(), content(payload), keys).unwrap();
            let request = TaskRequest::parse(&body).unwrap();
            assert_eq!(request.content().signed_text(), content(payload).signed_text());
            let candidates = request.candidates(keys).unwrap();
            assert_eq!(candidates.len(), 2);
            assert_eq!(candidates.iter().filter(|c| c.device == key().address()).count(), 1);
            let by = *candidates.iter().find(|c| c.device == key().address()).unwrap();
            assert!(request.into_message(by, keys).unwrap().into_message().verify(|_| false).is_ok());
        }
    }

    #[test]
    fn the_signed_text_is_what_go_writes() {
        let text = |payload: &[u8], version| {
            let content = TaskContent { project_version: version, ..content(payload) };
            String::from_utf8(content.signed_text().unwrap()).unwrap()
        };
        let json = r#"{ "a" : "x <&> y", "b":[1.50, 2] }"#;
        let expected = r#"{"nonce":9,"projectID":"923","projectVersion":"v1","payload":{"a":"x \u003c\u0026\u003e y","b":[1.50,2]}}"#;
        assert_eq!(text(json.as_bytes(), "v1"), expected);
        assert_eq!(text(b"\xab\x00", ""), r#"{"nonce":9,"projectID":"923","payload":"ab00"}"#);
        assert_eq!(text(b"7", ""), r#"{"nonce":9,"projectID":"923","payload":7}"#);
    }

    #[test]
    fn signed_values_are_bound_as_little_endian_numbers() {
        let payload = br#"{"b":258,"a":1,"a":2}"#;
        let keys = ["a", "b"].map(|name| SignedKey::new(name).unwrap());
        let plain: Hash32 = Sha256::digest(content(payload).signed_text().unwrap()).into();
        assert_eq!(content(payload).digest(&[]), Ok(plain));
        let mut bound = plain.to_vec();
        bound.extend([1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        let expected: Hash32 = Sha256::digest(bound).into();
        assert_eq!(content(payload).digest(&keys), Ok(expected));
    }

    #[test]
    fn a_signed_value_must_be_a_whole_number_in_an_object() {
        let keys = [SignedKey::new("t").unwrap()];
        for payload in [
            &b"{}"[..],
            b"[1]",
            b"7",
            b"\xff",
            br#"{"t":-1}"#,
            br#"{"t":1.5}"#,
            br#"{"t":1e3}"#,
            br#"{"t":"1"}"#,
            br#"{"t":null}"#,
            br#"{"T":1}"#,
            br#"{"t":18446744073709551616}"#,
        ] {
            let error = content(payload).digest(&keys).unwrap_err();
            assert_eq!(error.code(), "bad_signed_key", "{}", String::from_utf8_lossy(payload));
        }
        assert!(SignedKey::new("a.b").is_err() && SignedKey::new("").is_err() && SignedKey::new("a_b-1").is_ok());
    }

    #[test]
    fn a_recovery_id_names_the_one_device() {
        let made = key().sign(&content(b"{}").digest(&[]).unwrap());
        let body = |hex: &str| {
            request(&format!(
                "\"nonce\":9,\"projectID\":\"923\",\"projectVersion\":\"v1\",\"payload\":{{}},\"signature\":\"{hex}\""
            ))
        };
        let both = body(&format!("0x{}", hex::encode(&made.0[..64]))).unwrap().candidates(&[]).unwrap();
        let one = body(&made.to_string()).unwrap().candidates(&[]).unwrap();
        assert_eq!(one, [Candidate { device: key().address(), signature: made }]);
        assert!(both.contains(&one[0]));
        assert_eq!(alias(&made).to_string(), format!("0x{}", hex::encode(keccak256(&[&made.0]))));
        let mut legacy = made;
        legacy.0[64] += 27;
        assert_eq!(body(&legacy.to_string()), Err(SignatureError::RecoveryId.into()));
        assert!(matches!(body("0x12"), Err(RequestError::Length { .. })));
        assert_eq!(body(&hex::encode(made.0)), Err(RequestError::NotHex(Field::Signature)));
    }

    #[test]
    fn a_high_s_keeps_its_bytes_and_finds_the_same_device() {
        let made = key().sign(&content(b"{}").digest(&[]).unwrap());
        let high = with_other_s(&made);
        let candidates = |compact: [u8; 64]| {
            TaskRequest {
                nonce: 9,
                project_id: ProjectId(923),
                project_version: "v1".into(),
                payload: Bytes::from_static(b"{}"),
                signature: TaskSignature::Compact(compact),
            }
            .candidates(&[])
            .unwrap()
        };
        let found = candidates(high).into_iter().find(|c| c.device == key().address()).unwrap();
        assert_eq!(found.signature.0[..64], high);
        assert_ne!(alias(&found.signature), alias(&made));
    }

    /// The same signature with S replaced by the group's order minus S.
    fn with_other_s(signature: &Signature) -> [u8; 64] {
        let order = hex::decode("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141").unwrap();
        let mut out: [u8; 64] = signature.0[..64].try_into().unwrap();
        let mut borrow = 0;
        for at in (0..32).rev() {
            let difference = i32::from(order[at]) - i32::from(out[32 + at]) - borrow;
            borrow = i32::from(difference < 0);
            out[32 + at] = u8::try_from(difference.rem_euclid(256)).unwrap();
        }
        out
    }

    #[test]
    fn members_are_read_as_by_the_reference() {
        let base = format!("\"nonce\":1,\"projectID\":\"7\",\"payload\":\"ab\",{}", signature());
        let read = request(&base).unwrap();
        assert_eq!((read.nonce, read.project_id, &read.payload[..]), (1, ProjectId(7), &[0xab][..]));
        assert_eq!(read.project_version, "");
        // The first of repeated members counts, and case matters.
        let repeated = format!("{base},\"nonce\":2,\"projectVersion\":null,\"projectversion\":\"v\"");
        assert_eq!(request(&repeated), Ok(read));
        for (from, to, field) in [
            ("\"nonce\":1", "\"nonce\":0", Field::Nonce),
            ("\"nonce\":1", "\"Nonce\":1", Field::Nonce),
            ("\"7\"", "\"\"", Field::ProjectId),
            ("\"7\"", "null", Field::ProjectId),
            ("\"ab\"", "\"\"", Field::Payload),
            ("\"ab\"", "null", Field::Payload),
        ] {
            assert_eq!(request(&base.replace(from, to)), Err(RequestError::Missing(field)), "{to}");
        }
        for (from, to) in [
            ("\"7\"", "7"),
            ("\"7\"", "\"07\""),
            ("\"7\"", "\"+7\""),
            ("\"7\"", "\"-7\""),
            ("\"7\"", "\"7 \""),
            ("\"7\"", "\"0\""),
            ("\"7\"", "\"18446744073709551616\""),
            ("\"nonce\":1", "\"nonce\":-1"),
            ("\"nonce\":1", "\"nonce\":\"1\""),
            ("\"ab\"", "\"0xab\""),
            ("\"ab\"", "5"),
            ("\"ab\"", "true"),
            ("\"payload\"", "\"projectVersion\":\"\u{fffd}\",\"payload\""),
        ] {
            assert_eq!(request(&base.replace(from, to)).map_err(|e| e.code()), Err("wrong_type"), "{to}");
        }
    }
}
