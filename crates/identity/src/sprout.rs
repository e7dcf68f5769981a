//! Requests of W3bstream's sprout generation, whose devices prove themselves by a token.
//!
//! Source: vectors/ioconnect/README.md, section 5. The bodies are read as Go's `encoding/json` reads them: the first
//! JSON value counts, so that stray bytes after a decrypted request do no harm.

use bytes::Bytes;
use lockstep_types::go_json::push_string;
use lockstep_types::{
    Address, Api, Evidence, Hash32, Message, NodeId, ProjectId, Signature, SigningKey, VerifiedMessage,
};

use crate::did::Did;
use crate::error::{Field, RequestError};
use crate::fields::{check_limits, field_of, set_number, set_text};
use crate::json::read_object;

/// A request to order one message. Well formed; who sent it is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SproutRequest {
    /// The project, not 0.
    pub project_id: ProjectId,
    /// The project's version, not empty.
    pub project_version: String,
    /// The payload, not empty.
    pub data: Bytes,
}

impl SproutRequest {
    /// Reads the body of `POST /message`, decrypted if it was encrypted.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let (mut project_id, mut version, mut data) = (0, String::new(), String::new());
        let fields = [Field::ProjectId, Field::ProjectVersion, Field::Data];
        read_object(
            body,
            |name| field_of(&fields, name),
            |field, value| match field {
                Field::ProjectId => set_number(field, &mut project_id, value),
                Field::ProjectVersion => set_text(field, &mut version, value),
                _ => set_text(field, &mut data, value),
            },
        )?;
        match () {
            () if project_id == 0 => Err(RequestError::Missing(Field::ProjectId)),
            () if version.is_empty() => Err(RequestError::Missing(Field::ProjectVersion)),
            () if data.is_empty() => Err(RequestError::Missing(Field::Data)),
            () => Ok(Self { project_id: ProjectId(project_id), project_version: version, data: Bytes::from(data) }),
        }
    }

    /// Makes a message of a request that `device` sent in the envelope that hashes to `envelope`: `node` gives its word
    /// for that.
    pub fn vouch(self, device: Address, envelope: Hash32, node: &SigningKey) -> VerifiedMessage {
        // The content id does not cover the evidence, so it can be taken before there is any.
        let unproved = Evidence::Envelope { node: node.address(), envelope, signature: Signature([0; 65]) };
        let mut message = Message {
            api: Api::Encrypted,
            project_id: self.project_id,
            project_version: self.project_version,
            data: self.data,
            device,
            nonce: Bytes::new(),
            evidence: unproved,
            via: NodeId(0),
        };
        let signature = node.sign(&message.envelope_digest(&message.content_id(), &envelope));
        message.evidence = Evidence::Envelope { node: node.address(), envelope, signature };
        VerifiedMessage::from_recovered(message)
    }

    /// Refuses what could not be stored by the readers of tasks, or is too large. `message_bytes_max` is the
    /// network's limit on `data`.
    pub fn check_limits(&self, message_bytes_max: u64) -> Result<(), RequestError> {
        check_limits(self.project_id, &self.project_version, self.data.len(), message_bytes_max)
    }
}

/// Reads the body of `POST /issue_vc`: the device that wants a token.
pub fn parse_token_request(body: &[u8]) -> Result<Did, RequestError> {
    let mut client_id = String::new();
    read_object(
        body,
        |name| field_of(&[Field::ClientId], name),
        |field, value| set_text(field, &mut client_id, value),
    )?;
    if client_id.is_empty() {
        return Err(RequestError::Missing(Field::ClientId));
    }
    let expected = "a DID: did:io:0x and 40 lower-case hex digits";
    client_id.parse().map_err(|_| RequestError::WrongType { field: Field::ClientId, expected })
}

/// The answer to `POST /message`.
pub fn message_answer(message_id: &str) -> String {
    let mut out = String::from("{\"messageID\":");
    push_string(&mut out, message_id);
    out.push('}');
    out
}

/// The token of a request: from the `Authorization` header, else from the query parameter `authorization`. `None`
/// only where neither says anything; a token that is not there after `Bearer` is an empty one, which nobody issued.
pub fn token_of<'a>(header: Option<&'a str>, parameter: Option<&'a str>) -> Option<&'a str> {
    let said = [header, parameter].into_iter().flatten().find(|text| !text.is_empty())?.trim();
    // The names of schemes have no case (RFC 9110). A token cannot be mistaken for one: it starts with `eyJ`.
    let scheme = "Bearer";
    let has_scheme = said.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    Some(if has_scheme { said[scheme.len()..].trim() } else { said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_needs_all_its_members() {
        let full = br#"{"projectID":5,"projectVersion":"0.1","data":"x"}"#;
        let request = SproutRequest::parse(full).unwrap();
        assert_eq!((request.project_id, &request.data[..]), (ProjectId(5), &b"x"[..]));
        for (body, field) in [
            (r#"{"projectVersion":"0.1","data":"x"}"#, Field::ProjectId),
            (r#"{"projectID":0,"projectVersion":"0.1","data":"x"}"#, Field::ProjectId),
            (r#"{"projectID":5,"projectVersion":"","data":"x"}"#, Field::ProjectVersion),
            (r#"{"projectID":5,"projectVersion":"0.1","data":null}"#, Field::Data),
        ] {
            assert_eq!(SproutRequest::parse(body.as_bytes()), Err(RequestError::Missing(field)), "{body}");
        }
        assert!(SproutRequest::parse(br#"{"projectID":"5","projectVersion":"0.1","data":"x"}"#).is_err());
    }

    #[test]
    fn stray_bytes_after_a_request_are_not_read() {
        let stray = [br#"{"projectID":5,"projectVersion":"0.1","data":"x"}"#, &b"\0\xff}{garbage"[..]].concat();
        assert!(SproutRequest::parse(&stray).is_ok());
    }

    #[test]
    fn limits_are_those_of_the_readers() {
        let request = |id, version: &str| SproutRequest {
            project_id: ProjectId(id),
            project_version: version.into(),
            data: Bytes::from_static(b"12345"),
        };
        assert_eq!(request(1, "1").check_limits(5), Ok(()));
        assert_eq!(request(1, "1").check_limits(4), Err(RequestError::DataTooLarge { bytes_max: 4 }));
        assert_eq!(request(u64::MAX, "1").check_limits(5), Err(RequestError::ProjectIdTooLarge));
        assert_eq!(request(1, "\0").check_limits(5), Err(RequestError::ProjectVersionNul));
    }

    #[test]
    fn a_token_request_names_a_did() {
        let did = "did:io:0x521341c9bbda183cbe03785b86caee650c3fcbfc";
        let ask = |id: &str| parse_token_request(format!("{{\"clientID\":{id}}}").as_bytes());
        assert_eq!(ask(&format!("\"{did}\"")).unwrap().to_string(), did);
        assert_eq!(ask("\"\"").unwrap_err().code(), "missing_field");
        assert_eq!(ask("\"did:io:0x12\"").unwrap_err().code(), "wrong_type");
        assert_eq!(ask("7").unwrap_err().code(), "wrong_type");
    }

    #[test]
    fn the_header_goes_before_the_parameter() {
        for (header, parameter, token) in [
            (None, None, None),
            (Some(""), Some(""), None),
            (Some("Bearer t"), Some("u"), Some("t")),
            (Some("  bearer   t "), None, Some("t")),
            (Some("t"), None, Some("t")),
            (Some(""), Some("Bearer u"), Some("u")),
            (None, Some("u "), Some("u")),
            (Some("Bearer "), Some("u"), Some("")),
            (Some("Bé"), None, Some("Bé")),
        ] {
            assert_eq!(token_of(header, parameter), token, "{header:?} {parameter:?}");
        }
    }

    #[test]
    fn an_answer_escapes_its_id() {
        assert_eq!(message_answer("a\"b"), r#"{"messageID":"a\"b"}"#);
    }
}
