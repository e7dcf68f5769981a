//! What members ask each other beside raft and bundles: signatures for certificates, marks, approvals for the leader.

use std::time::Duration;

use bytes::Bytes;
use lockstep_consensus::Consensus;
use lockstep_network::{CallError, Client, Service};
use lockstep_types::{Approval, BatchHash, Height, NodeId, Signature, proto};
use prost::Message as _;

use crate::certify::Certifier;
use crate::operator::Operator;

type Request = proto::control_request::Kind;
type Response = proto::control_response::Kind;

/// A member did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ControlError {
    /// No answer; ask again.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It says why not.
    #[error("{0}")]
    Refused(String),
    /// Its answer makes no sense.
    #[error("the answer cannot be read")]
    Malformed,
}

/// Answers members.
pub(crate) struct ControlService {
    pub consensus: Consensus,
    pub certifier: Certifier,
    pub operator: Operator,
    pub rules_known: u32,
}

impl ControlService {
    async fn answer(&self, from: NodeId, request: Bytes) -> Result<Response, String> {
        let request = proto::ControlRequest::decode(request).map_err(|e| e.to_string())?;
        match request.kind.ok_or("this node does not know the request; upgrade it")? {
            Request::Certify(wanted) => {
                let hash = BatchHash::try_from(&wanted.hash[..]).map_err(|e| e.to_string())?;
                let (hash, signature) =
                    self.certifier.sign(Height(wanted.height), hash).await.map_err(|e| e.to_string())?;
                let hash = Bytes::copy_from_slice(&hash.0);
                Ok(Response::Certify(proto::CertifyResponse { hash, signature: Bytes::copy_from_slice(&signature.0) }))
            }
            Request::Marks(marks) => {
                // Only the leader knows what was acknowledged; anyone else could shut a member out.
                if self.consensus.status().borrow().leader != Some(from) {
                    return Err("marks come from the leader".into());
                }
                let marks = marks.marks.into_iter().map(|mark| (NodeId(mark.node), mark.index));
                self.consensus.pledges().learn(marks).map_err(|e| e.to_string())?;
                Ok(Response::Marks(proto::MarksResponse { rules_version: self.rules_known }))
            }
            Request::Approval(approval) => {
                let approval = Approval::from_proto(approval).map_err(|e| e.to_string())?;
                self.operator.decide(approval).await.map(|()| Response::Done(proto::Done {}))
            }
        }
    }
}

impl Service for ControlService {
    async fn handle(&self, from: NodeId, request: Bytes) -> Bytes {
        let kind = self.answer(from, request).await.unwrap_or_else(Response::Refused);
        proto::ControlResponse { kind: Some(kind) }.encode_to_vec().into()
    }
}

async fn ask(client: &mut Client, kind: Request, timeout: Duration) -> Result<Response, ControlError> {
    let request = proto::ControlRequest { kind: Some(kind) }.encode_to_vec();
    let answer = client.call(&[request.into()], timeout).await?;
    let answer = proto::ControlResponse::decode(answer).map_err(|_| ControlError::Malformed)?;
    match answer.kind.ok_or(ControlError::Malformed)? {
        Response::Refused(reason) => Err(ControlError::Refused(reason)),
        kind => Ok(kind),
    }
}

/// Asks a voter to sign the batch at a height: its own batch there, and its signature over that.
pub(crate) async fn ask_to_certify(
    client: &mut Client,
    height: Height,
    hash: BatchHash,
    timeout: Duration,
) -> Result<(BatchHash, Signature), ControlError> {
    let wanted = proto::CertifyRequest { height: height.0, hash: Bytes::copy_from_slice(&hash.0) };
    match ask(client, Request::Certify(wanted), timeout).await? {
        Response::Certify(answer) => {
            let hash = BatchHash::try_from(&answer.hash[..]).map_err(|_| ControlError::Malformed)?;
            let signature = Signature::try_from(&answer.signature[..]).map_err(|_| ControlError::Malformed)?;
            Ok((hash, signature))
        }
        _ => Err(ControlError::Malformed),
    }
}

/// Tells a member the marks; it says which rules it knows.
pub(crate) async fn tell_marks(
    client: &mut Client,
    marks: &[(NodeId, u64)],
    timeout: Duration,
) -> Result<u32, ControlError> {
    let mark = |(node, index): &(NodeId, u64)| proto::Mark { node: node.0, index: *index };
    let marks = proto::Marks { marks: marks.iter().map(mark).collect() };
    match ask(client, Request::Marks(marks), timeout).await? {
        Response::Marks(answer) => Ok(answer.rules_version),
        _ => Err(ControlError::Malformed),
    }
}

/// Brings an approval to the leader.
pub(crate) async fn forward_approval(
    client: &mut Client,
    approval: &Approval,
    timeout: Duration,
) -> Result<(), ControlError> {
    match ask(client, Request::Approval(approval.to_proto()), timeout).await? {
        Response::Done(_) => Ok(()),
        _ => Err(ControlError::Malformed),
    }
}
