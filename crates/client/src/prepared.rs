//! A message that is ready to be sent, any number of times.

use bytes::Bytes;
use lockstep_identity::{Did, RequestError, SignedKey, SproutRequest, TaskContent, TaskRequest, apinode, sign_task};
use lockstep_types::go_json::push_string;
use lockstep_types::{Address, Api, ContentId, Evidence, Message, NodeId, ProjectId, Signature, SigningKey};

use crate::error::ClientError;

/// The device API that a message goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `POST /message` with a device's signature.
    Signed = 1,
    /// `POST /v1/task`.
    Task = 2,
    /// `POST /message`, encrypted, with a token.
    Encrypted = 3,
}

impl Way {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Signed, Self::Task, Self::Encrypted].into_iter().find(|way| *way as u8 == byte)
    }
}

/// A message as it will be sent: each time the same bytes (encrypted anew where it goes encrypted), so that a node
/// that has it already knows it again. `Debug` does not show what it says.
#[derive(Clone, PartialEq, Eq)]
pub struct Prepared {
    pub(crate) way: Way,
    pub(crate) content_id: ContentId,
    /// The request's body; before encryption, where it goes encrypted.
    pub(crate) body: Bytes,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prepared({:?}, {}, {} bytes)", self.way, self.content_id, self.body.len())
    }
}

impl Prepared {
    /// The name of what the message says. The message's id is the same when this content is ordered for the first
    /// time.
    pub fn content_id(&self) -> ContentId {
        self.content_id
    }

    /// The body of `POST /message`, signed.
    pub(crate) fn signed(key: &SigningKey, project: ProjectId, version: &str, data: &str) -> Result<Self, ClientError> {
        let body = apinode::sign_body(key, project, version, data);
        // Read as a node reads it, so that what it would refuse is refused here.
        let read = apinode::parse(body.as_bytes())?;
        read.check_limits(u64::MAX)?;
        let data = Bytes::from(read.data);
        let content_id = content_id(Api::Apinode, key.address(), (project, version), Bytes::new(), data);
        Ok(Self { way: Way::Signed, content_id, body: body.into() })
    }

    /// The body of `POST /v1/task`. The nonce makes it unique.
    pub(crate) fn task(
        (key, keys): (&SigningKey, &[SignedKey]),
        nonce: u64,
        project: ProjectId,
        version: &str,
        data: &[u8],
    ) -> Result<Self, ClientError> {
        let content = TaskContent { nonce, project_id: project, project_version: version, payload: data };
        let body = sign_task(key, content, keys)?;
        let read = TaskRequest::parse(&body)?;
        read.check_limits(u64::MAX)?;
        let nonce = Bytes::copy_from_slice(&nonce.to_be_bytes());
        let content_id = content_id(Api::TaskV1, key.address(), (project, version), nonce, read.payload);
        Ok(Self { way: Way::Task, content_id, body: body.into() })
    }

    /// What is encrypted for `POST /message`.
    pub(crate) fn encrypted(device: &Did, project: ProjectId, version: &str, data: &str) -> Result<Self, ClientError> {
        let mut body = format!("{{\"projectID\":{project},\"projectVersion\":");
        push_string(&mut body, version);
        body.push_str(",\"data\":");
        push_string(&mut body, data);
        body.push('}');
        let content_id = Self::content_of_encrypted(device, body.as_bytes())?;
        Ok(Self { way: Way::Encrypted, content_id, body: body.into() })
    }

    /// The name of what `device` says with `body`.
    pub(crate) fn content_of_encrypted(device: &Did, body: &[u8]) -> Result<ContentId, RequestError> {
        let read = SproutRequest::parse(body)?;
        read.check_limits(u64::MAX)?;
        let project = (read.project_id, &*read.project_version);
        Ok(content_id(Api::Encrypted, device.address(), project, Bytes::new(), read.data))
    }

    /// The body as text.
    pub(crate) fn text(&self) -> &str {
        // Only bodies of encrypted messages are asked for, and these were made of text.
        std::str::from_utf8(&self.body).unwrap_or_default()
    }
}

fn content_id(api: Api, device: Address, project: (ProjectId, &str), nonce: Bytes, data: Bytes) -> ContentId {
    // The content id does not cover the evidence.
    let evidence = Evidence::Device(Signature([0; 65]));
    let (project_id, project_version) = (project.0, project.1.to_owned());
    Message { api, project_id, project_version, data, device, nonce, evidence, via: NodeId(0) }.content_id()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes([5; 32]).unwrap()
    }

    #[test]
    fn a_content_id_is_what_a_node_makes_of_the_request() {
        let prepared = Prepared::signed(&key(), ProjectId(7), "0.1", "<21.5>").unwrap();
        let node = apinode::parse(&prepared.body).unwrap().authenticate().unwrap();
        assert_eq!(prepared.content_id, node.content_id());

        for data in [&b"{ \"t\": 1 }"[..], b"\x00\xff", b"21"] {
            let prepared = Prepared::task((&key(), &[]), 9, ProjectId(7), "", data).unwrap();
            let request = TaskRequest::parse(&prepared.body).unwrap();
            let by = request.candidates(&[]).unwrap().into_iter().find(|c| c.device == key().address()).unwrap();
            assert_eq!(prepared.content_id, request.into_message(by, &[]).unwrap().content_id());
        }

        let did = Did(Address([3; 20]));
        let prepared = Prepared::encrypted(&did, ProjectId(7), "0.1", "a\"b\n").unwrap();
        let request = SproutRequest::parse(&prepared.body).unwrap();
        let node = request.vouch(did.address(), [0; 32], &key());
        assert_eq!(prepared.content_id, node.content_id());
    }

    #[test]
    fn what_nodes_would_refuse_is_not_sent() {
        for (project, version, data) in
            [(0, "1", "x"), (1, "", "x"), (1, "1", ""), (u64::MAX, "1", "x"), (1, "\0", "x")]
        {
            assert!(Prepared::signed(&key(), ProjectId(project), version, data).is_err(), "{project} {version}");
            assert!(Prepared::encrypted(&Did(Address([3; 20])), ProjectId(project), version, data).is_err());
        }
        assert!(Prepared::task((&key(), &[]), 0, ProjectId(1), "1", b"x").is_err());
        assert!(!format!("{:?}", Prepared::signed(&key(), ProjectId(1), "1", "secret").unwrap()).contains("secret"));
    }
}
