//! Requests of W3bstream's apinode generation: `POST /message` with a device's signature, `GET /task`.
//!
//! Source: vectors/apinode/README.md. The device is whoever the signature recovers to; nothing else is compared,
//! so reading a request differently from the reference would yield another device rather than an error.

use bytes::Bytes;
use lockstep_types::signature::recover_address;
use lockstep_types::{
    Address, Api, Evidence, Message, ProjectId, Signature, SigningKey, TaskId, VerifiedMessage, keccak256, w3bstream,
};

use crate::error::{Field, RequestError};
use crate::fields::{NUMBER, check_limits, field_of, parse_hex, set_number, set_text};
use crate::idempotency::IdempotencyKey;
use crate::json::read_object;

/// A request to order one message. Well formed; nothing is proved yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRequest {
    /// The project, not 0.
    pub project_id: ProjectId,
    /// The project's version, not empty.
    pub project_version: String,
    /// The payload, not empty.
    pub data: String,
    /// The device's signature; `None` only where the request had no such member at all.
    pub signature: Option<Signature>,
    /// Tells equal unsigned messages apart. Nothing where there is a signature: a device does not sign it, so with one
    /// its old messages would pass for new ones.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// Reads the body of `POST /message`.
pub fn parse(body: &[u8]) -> Result<DeviceRequest, RequestError> {
    let (mut project_id, mut version, mut data) = (0, String::new(), String::new());
    let mut signature = None;
    let fields = [Field::ProjectId, Field::ProjectVersion, Field::Data, Field::Signature];
    read_object(
        body,
        |name| field_of(&fields, name),
        |field, value| match field {
            Field::ProjectId => set_number(field, &mut project_id, value),
            Field::ProjectVersion => set_text(field, &mut version, value),
            Field::Data => set_text(field, &mut data, value),
            _ => set_text(field, signature.get_or_insert_default(), value),
        },
    )?;
    let signature = signature.map(|text| parse_signature(&text)).transpose()?;
    let project_id = ProjectId(project_id);
    DeviceRequest { project_id, project_version: version, data, signature, idempotency_key: None }.with_all_fields()
}

impl DeviceRequest {
    /// A request that came by another way than JSON. An empty `signature` means that there is none.
    pub fn new(
        project_id: ProjectId,
        project_version: String,
        data: String,
        signature: &[u8],
    ) -> Result<Self, RequestError> {
        let signature = match signature {
            [] => None,
            bytes => Some(signature_of(bytes)?),
        };
        Self { project_id, project_version, data, signature, idempotency_key: None }.with_all_fields()
    }

    /// The same request with the idempotency key that its sender gave, if any. With a signature it is not looked at.
    ///
    /// # Errors
    /// If the text cannot be a key.
    pub fn with_idempotency_key(self, key: Option<&[u8]>) -> Result<Self, RequestError> {
        if self.signature.is_some() {
            return Ok(self);
        }
        Ok(Self { idempotency_key: key.map(IdempotencyKey::parse).transpose()?, ..self })
    }

    fn with_all_fields(self) -> Result<Self, RequestError> {
        let missing = |field| Err(RequestError::Missing(field));
        match () {
            () if self.project_id.0 == 0 => missing(Field::ProjectId),
            () if self.project_version.is_empty() => missing(Field::ProjectVersion),
            () if self.data.is_empty() => missing(Field::Data),
            () => Ok(self),
        }
    }

    /// Refuses what could be signed correctly but not be stored by the readers of tasks, or is too large.
    /// `message_bytes_max` is the network's limit on `data`.
    pub fn check_limits(&self, message_bytes_max: u64) -> Result<(), RequestError> {
        check_limits(self.project_id, &self.project_version, self.data.len(), message_bytes_max)
    }

    /// Finds the device from the signature. Costs one signature recovery, so it belongs on a CPU pool.
    pub fn authenticate(self) -> Result<VerifiedMessage, RequestError> {
        let signature = self.signature.ok_or(RequestError::Missing(Field::Signature))?;
        let digest = w3bstream::message_digest(self.project_id, &self.project_version, &self.data);
        let device = recover_address(&digest, &signature)?;
        Ok(VerifiedMessage::from_recovered(self.into_message(Api::Apinode, device, Evidence::Device(signature))))
    }

    /// Makes a message of a request without a signature: `node` gives its word that the request came in here.
    /// Whether that is allowed is for the caller to decide. A signature that is present is not looked at. The
    /// idempotency key becomes the message's nonce, which the content id covers.
    pub fn vouch(mut self, node: &SigningKey) -> VerifiedMessage {
        let nonce = self.idempotency_key.take().map(IdempotencyKey::into_bytes).unwrap_or_default();
        // The content id does not cover the evidence, so it can be taken before there is any.
        let unproved = Evidence::Ingress { node: node.address(), signature: Signature([0; 65]) };
        let mut message = Message { nonce, ..self.into_message(Api::Unsigned, Address::ZERO, unproved) };
        let signature = node.sign(&Message::ingress_digest(&message.content_id()));
        message.evidence = Evidence::Ingress { node: node.address(), signature };
        VerifiedMessage::from_recovered(message)
    }

    fn into_message(self, api: Api, device: Address, evidence: Evidence) -> Message {
        Message {
            api,
            project_id: self.project_id,
            project_version: self.project_version,
            data: Bytes::from(self.data),
            device,
            nonce: Bytes::new(),
            via: lockstep_types::NodeId(0),
            evidence,
        }
    }
}

/// The body of `POST /message` that the device with `key` sends.
pub fn sign_body(key: &SigningKey, project_id: ProjectId, project_version: &str, data: &str) -> String {
    let text = w3bstream::message_text(project_id, project_version, data);
    let signature = key.sign(&keccak256(&[text.as_bytes()]));
    with_signature(text, &signature)
}

/// The body of `POST /message` for a signature that was made before, over [`w3bstream::message_digest`].
pub fn signed_body(project_id: ProjectId, project_version: &str, data: &str, signature: &Signature) -> String {
    with_signature(w3bstream::message_text(project_id, project_version, data), signature)
}

/// The signed text is the request without its last member.
fn with_signature(mut text: String, signature: &Signature) -> String {
    text.pop();
    text.reserve(150);
    text.push_str(",\"signature\":\"");
    text.push_str(&signature.to_string());
    text.push_str("\"}");
    text
}

/// What `GET /task` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskQuery {
    /// The project.
    pub project_id: ProjectId,
    /// The task.
    pub task_id: TaskId,
    /// The task as the question spelled it, for the answer.
    pub task_id_text: String,
}

impl TaskQuery {
    /// Reads the JSON body of `GET /task`.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let (mut project_id, mut task_id) = (0, String::new());
        let fields = [Field::ProjectId, Field::TaskId];
        read_object(
            body,
            |name| field_of(&fields, name),
            |field, value| match field {
                Field::ProjectId => set_number(field, &mut project_id, value),
                _ => set_text(field, &mut task_id, value),
            },
        )?;
        Self::new(ProjectId(project_id), task_id)
    }

    /// Reads the same from query parameters.
    pub fn from_parameters(project_id: &str, task_id: &str) -> Result<Self, RequestError> {
        if project_id.is_empty() {
            return Err(RequestError::Missing(Field::ProjectId));
        }
        let expected = RequestError::WrongType { field: Field::ProjectId, expected: NUMBER };
        // `parse` takes a plus sign, which is no number in a request.
        let digits = project_id.bytes().all(|b| b.is_ascii_digit());
        let number = project_id.parse().ok().filter(|_| digits).ok_or(expected)?;
        Self::new(ProjectId(number), task_id.to_owned())
    }

    fn new(project_id: ProjectId, task_id_text: String) -> Result<Self, RequestError> {
        if project_id.0 == 0 {
            return Err(RequestError::Missing(Field::ProjectId));
        }
        if task_id_text.is_empty() {
            return Err(RequestError::Missing(Field::TaskId));
        }
        let bytes = parse_hex(Field::TaskId, &task_id_text)?;
        let length = RequestError::Length { field: Field::TaskId, expected: TaskId::LEN, found: bytes.len() };
        let task_id = TaskId::try_from(&bytes[..]).map_err(|_| length)?;
        Ok(Self { project_id, task_id, task_id_text })
    }
}

fn parse_signature(text: &str) -> Result<Signature, RequestError> {
    if text.is_empty() {
        return Err(RequestError::Missing(Field::Signature));
    }
    signature_of(&parse_hex(Field::Signature, text)?)
}

fn signature_of(bytes: &[u8]) -> Result<Signature, RequestError> {
    let length = RequestError::Length { field: Field::Signature, expected: 65, found: bytes.len() };
    Signature::try_from(bytes).map_err(|_| length)
}

#[cfg(test)]
mod tests {
    use lockstep_types::message::PROJECT_ID_MAX;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes([5; 32]).unwrap()
    }

    #[test]
    fn a_body_that_a_device_signs_is_read_as_that_device() {
        let body = sign_body(&key(), ProjectId(7), "<v1>", "{\"t\":\"21.5 °C\"}\n");
        let verified = parse(body.as_bytes()).unwrap().authenticate().unwrap();
        assert_eq!(verified.message().device, key().address());
        assert_eq!(&verified.message().data[..], "{\"t\":\"21.5 °C\"}\n".as_bytes());
        assert!(verified.into_message().verify(|_| false).is_ok());
    }

    #[test]
    fn only_an_absent_signature_member_makes_an_unsigned_request() {
        let with =
            |rest: &str| parse(format!("{{\"projectID\":1,\"projectVersion\":\"1\",\"data\":\"x\"{rest}}}").as_bytes());
        assert_eq!(with("").unwrap().signature, None);
        for rest in [",\"signature\":\"\"", ",\"signature\":null", ",\"Signature\":null"] {
            assert_eq!(with(rest), Err(RequestError::Missing(Field::Signature)), "{rest}");
        }
        assert!(matches!(with(",\"signature\":5"), Err(RequestError::WrongType { field: Field::Signature, .. })));
    }

    #[test]
    fn a_vouched_message_names_no_device_and_verifies_for_members_only() {
        let request = DeviceRequest::new(ProjectId(1), "1".into(), "x".into(), &[]).unwrap();
        let message = request.vouch(&key()).into_message();
        assert_eq!((message.api, message.device), (Api::Unsigned, Address::ZERO));
        assert!(message.clone().verify(|a| *a == key().address()).is_ok());
        assert!(message.verify(|_| false).is_err());
    }

    #[test]
    fn equal_unsigned_requests_are_told_apart_by_their_keys_and_signed_ones_are_not() {
        let unsigned = |id_key: Option<&[u8]>| {
            let request = DeviceRequest::new(ProjectId(1), "1".into(), "x".into(), &[]).unwrap();
            request.with_idempotency_key(id_key).unwrap().vouch(&key()).into_message()
        };
        let ids = [None, Some(&b"a"[..]), Some(b"b"), Some(b"a")].map(|k| unsigned(k).content_id());
        assert!(ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2]);
        assert_eq!(ids[1], ids[3]);
        assert!(unsigned(Some(b"a")).verify(|a| *a == key().address()).is_ok());
        let signed = parse(sign_body(&key(), ProjectId(1), "1", "x").as_bytes()).unwrap();
        assert_eq!(signed.clone().with_idempotency_key(Some(b"a")).as_ref(), Ok(&signed));
        assert_eq!(signed.clone().with_idempotency_key(Some(b"")).as_ref(), Ok(&signed), "not even looked at");
    }

    #[test]
    fn null_leaves_a_repeated_member_as_it_was() {
        let body = br#"{"projectID":1,"projectID":null,"projectVersion":"1","data":"x","data":null}"#;
        let request = parse(body).unwrap();
        assert_eq!((request.project_id, &request.data[..]), (ProjectId(1), "x"));
    }

    #[test]
    fn member_names_fold_as_in_go() {
        let request = parse("{\"PROJECTid\":1,\"projectVerſion\":\"1\",\"DATA\":\"x\"}".as_bytes()).unwrap();
        assert_eq!(request.project_version, "1");
        assert_eq!(parse(br#"{"project_id":1}"#), Err(RequestError::Missing(Field::ProjectId)));
    }

    #[test]
    fn limits_say_which_field_breaks_them() {
        let request =
            |id, version: &str| DeviceRequest::new(ProjectId(id), version.into(), "12345".into(), &[]).unwrap();
        assert_eq!(request(PROJECT_ID_MAX, &"v".repeat(128)).check_limits(5), Ok(()));
        assert_eq!(request(PROJECT_ID_MAX + 1, "1").check_limits(5), Err(RequestError::ProjectIdTooLarge));
        assert_eq!(request(1, &"v".repeat(129)).check_limits(5), Err(RequestError::ProjectVersionTooLong));
        assert_eq!(request(1, "a\0").check_limits(5), Err(RequestError::ProjectVersionNul));
        assert_eq!(request(1, "1").check_limits(4), Err(RequestError::DataTooLarge { bytes_max: 4 }));
    }

    #[test]
    fn a_task_query_reads_the_same_from_a_body_and_from_parameters() {
        let id = TaskId([0xab; 32]).to_string();
        let body = format!("{{\"projectID\":7,\"taskID\":\"{}\"}}", id.replace("0x", "0X"));
        let query = TaskQuery::parse(body.as_bytes()).unwrap();
        assert_eq!((query.project_id, query.task_id), (ProjectId(7), TaskId([0xab; 32])));
        assert!(query.task_id_text.starts_with("0X"));
        assert_eq!(TaskQuery::from_parameters("7", &id).unwrap().task_id, query.task_id);
        for (project, task) in
            [("", &id[..]), ("+7", &id), ("0", &id), ("7.0", &id), ("7", ""), ("7", "0x12"), ("7", "12")]
        {
            assert!(TaskQuery::from_parameters(project, task).is_err(), "{project} {task}");
        }
    }
}
