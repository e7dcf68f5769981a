//! What members ask each other beside raft and bundles: signatures for certificates, marks, approvals for
//! the leader, barriers, the time, who signed twice, and what voters find on the chain.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_api::OrderProblem;
use lockstep_consensus::Consensus;
use lockstep_ledger::{Command, Members};
use lockstep_network::{CallError, Client, Service};
use lockstep_types::conflict::Conflict;
use lockstep_types::elements::{self, Bound, KIND_FIELDS_MAX};
use lockstep_types::place::PLACES_MAX;
use lockstep_types::registry::ORDER_DEVICES_MAX;
use lockstep_types::{
    Approval, BatchHash, BatchHeader, DecodeError, Height, NodeId, OutputName, Signature, SignedOrder, TimeMs, proto,
};
use prost::Message as _;
use tokio::sync::watch;

use crate::barrier::Barriers;
use crate::certify::Certifier;
use crate::chain::Chain;
use crate::conflicts::Conflicts;
use crate::limits::PROGRESS_TIMEOUT;
use crate::operator::Operator;
use crate::registry::Orders;

pub(crate) type Request = proto::control_request::Kind;
pub(crate) type Response = proto::control_response::Kind;

/// A member did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ControlError {
    /// No answer; ask again.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It says why not.
    #[error("{0}")]
    Refused(String),
    /// It cannot tell whether it was done.
    #[error("{0}")]
    Unknown(String),
    /// Its answer makes no sense.
    #[error("the answer cannot be read")]
    Malformed,
}

/// Answers members.
pub(crate) struct ControlService {
    pub consensus: Consensus,
    pub certifier: Certifier,
    pub operator: Operator,
    pub orders: Orders,
    pub conflicts: Conflicts,
    pub chain: Chain,
    pub barriers: Barriers,
    pub members: watch::Receiver<Arc<Members>>,
    pub rules_known: u32,
    /// Outputs of the network that this node can feed.
    pub outputs: Vec<OutputName>,
}

/// Most marks that a member is told.
const MARKS_MAX: usize = 1_024;
/// Most outputs of the network that a member can feed.
const OUTPUTS_MAX: usize = 1_024;
/// Counted before a request is read: what is empty takes two bytes here and up to hundreds in memory.
const BOUNDS: [Bound; 6] = [
    Bound { path: &[2, 1], count_max: MARKS_MAX },
    // conflict: the signed headers.
    Bound { path: &[5, 2], count_max: 2 },
    // order: devices that are added, removed, and whose tokens are revoked.
    Bound { path: &[7, 1, 7, 1], count_max: ORDER_DEVICES_MAX },
    Bound { path: &[7, 1, 8, 1], count_max: ORDER_DEVICES_MAX },
    Bound { path: &[7, 1, 9, 1], count_max: ORDER_DEVICES_MAX },
    // progress: places.
    Bound { path: &[9, 3], count_max: PLACES_MAX },
];

/// Reads a request of a member.
pub(crate) fn decode(request: Bytes) -> Result<proto::ControlRequest, DecodeError> {
    elements::check_fields("control request", &request, KIND_FIELDS_MAX)?;
    elements::check("control request", &request, &BOUNDS)?;
    proto::ControlRequest::decode(request).map_err(|e| DecodeError::malformed("control request", e))
}

/// Reads an answer of a member.
pub(crate) fn decode_answer(answer: Bytes) -> Result<proto::ControlResponse, DecodeError> {
    // Names of outputs.
    let bounds = [Bound { path: &[8, 1], count_max: OUTPUTS_MAX }];
    elements::check_fields("control answer", &answer, KIND_FIELDS_MAX)?;
    elements::check("control answer", &answer, &bounds)?;
    proto::ControlResponse::decode(answer).map_err(|e| DecodeError::malformed("control answer", e))
}

impl ControlService {
    async fn answer(&self, from: NodeId, request: Bytes) -> Result<Response, String> {
        let request = decode(request).map_err(|e| e.to_string())?;
        match request.kind.ok_or("this node does not know the request; upgrade it")? {
            Request::Certify(wanted) => {
                let hash = BatchHash::try_from(&wanted.hash[..]).map_err(|e| e.to_string())?;
                let (header, own, signature) =
                    self.certifier.sign(Height(wanted.height), hash).await.map_err(|e| e.to_string())?;
                Ok(Response::Certify(proto::CertifyResponse {
                    hash: Bytes::copy_from_slice(&own.0),
                    signature: Bytes::copy_from_slice(&signature.0),
                    header: (own != hash).then(|| header.to_proto()),
                }))
            }
            Request::Marks(marks) => {
                // Only the leader knows what was acknowledged; anyone else could shut a member out.
                if self.consensus.status().borrow().leader != Some(from) {
                    return Err("marks come from the leader".into());
                }
                let marks = marks.marks.into_iter().map(|mark| (NodeId(mark.node), mark.index));
                self.consensus.pledges().learn(marks);
                Ok(Response::Marks(proto::MarksResponse { rules_version: self.rules_known }))
            }
            Request::Conflict(conflict) => {
                let conflict = Conflict::from_proto(conflict).map_err(|e| e.to_string())?;
                let (conflicts, members) = (self.conflicts.clone(), self.members.borrow().clone());
                let kept = self.consensus.blocking().run(move || conflicts.keep(conflict, &members));
                kept.await.map_err(|e| e.to_string())?.map(|()| Response::Done(proto::Done {}))
            }
            Request::Clock(proto::ClockRequest {}) => {
                Ok(Response::Clock(proto::ClockResponse { time_ms: self.operator.clock().0 }))
            }
            Request::Order(order) => {
                let order = SignedOrder::from_proto(order).map_err(|e| e.to_string())?;
                match self.orders.decide(order).await {
                    Ok(()) => Ok(Response::Done(proto::Done {})),
                    Err(OrderProblem::Unavailable(text)) => Ok(Response::Unknown(text)),
                    Err(refused) => Err(refused.to_string()),
                }
            }
            Request::Approval(approval) => {
                let approval = Approval::from_proto(approval).map_err(|e| e.to_string())?;
                self.operator.decide(approval).await.map(|()| Response::Done(proto::Done {}))
            }
            Request::Outputs(proto::OutputsRequest {}) => {
                let names = self.outputs.iter().map(|name| name.as_str().to_owned()).collect();
                Ok(Response::Outputs(proto::OutputsResponse { names }))
            }
            Request::Progress(report) => {
                let command = Command::progress(report).map_err(|e| e.to_string())?;
                let proposed = tokio::time::timeout(PROGRESS_TIMEOUT, self.consensus.propose(command)).await;
                proposed.map_err(|_| "no majority answered in time")?.map_err(|e| e.to_string())?;
                Ok(Response::Done(proto::Done {}))
            }
            Request::OutputChange(change) => {
                let (output, state) = Command::output_from_proto(&change).map_err(|e| e.to_string())?;
                let command = Command::encode_output(&output, state);
                let proposed = tokio::time::timeout(PROGRESS_TIMEOUT, self.consensus.propose(command)).await;
                proposed.map_err(|_| "no majority answered in time")?.map_err(|e| e.to_string())?;
                Ok(Response::Done(proto::Done {}))
            }
            Request::Barrier(proto::BarrierRequest {}) => {
                let index = self.barriers.of_leader().await.map_err(|e| e.to_string())?;
                Ok(Response::Barrier(proto::BarrierResponse { index }))
            }
            Request::Attest(wanted) => {
                // Each question costs this operator questions to an endpoint.
                if self.consensus.status().borrow().leader != Some(from) {
                    return Err("attestations are for the leader".into());
                }
                Ok(Response::Attest(self.chain.answer(&wanted).await?))
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

/// Asks a member.
pub(crate) async fn ask(client: &mut Client, kind: Request, timeout: Duration) -> Result<Response, ControlError> {
    let request = proto::ControlRequest { kind: Some(kind) }.encode_to_vec();
    let answer = client.call(&[request.into()], timeout).await?;
    let answer = decode_answer(answer).map_err(|_| ControlError::Malformed)?;
    match answer.kind.ok_or(ControlError::Malformed)? {
        Response::Refused(reason) => Err(ControlError::Refused(reason)),
        Response::Unknown(reason) => Err(ControlError::Unknown(reason)),
        kind => Ok(kind),
    }
}

/// What a voter signed: its own batch at the height, its signature, and the header where it is another batch than the
/// leader's.
pub(crate) type SignedBatch = (BatchHash, Signature, Option<BatchHeader>);

/// Asks a voter to sign the batch at a height.
pub(crate) async fn ask_to_certify(
    client: &mut Client,
    height: Height,
    hash: BatchHash,
    timeout: Duration,
) -> Result<SignedBatch, ControlError> {
    let wanted = proto::CertifyRequest { height: height.0, hash: Bytes::copy_from_slice(&hash.0) };
    match ask(client, Request::Certify(wanted), timeout).await? {
        Response::Certify(answer) => {
            let hash = BatchHash::try_from(&answer.hash[..]).map_err(|_| ControlError::Malformed)?;
            let signature = Signature::try_from(&answer.signature[..]).map_err(|_| ControlError::Malformed)?;
            let header = answer.header.map(BatchHeader::from_proto).transpose().map_err(|_| ControlError::Malformed)?;
            Ok((hash, signature, header))
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

/// Tells a member who signed two batches at one height.
pub(crate) async fn tell_conflict(
    client: &mut Client,
    conflict: &Conflict,
    timeout: Duration,
) -> Result<(), ControlError> {
    match ask(client, Request::Conflict(conflict.to_proto()), timeout).await? {
        Response::Done(_) => Ok(()),
        _ => Err(ControlError::Malformed),
    }
}

/// Asks a member for its time.
pub(crate) async fn ask_clock(client: &mut Client, timeout: Duration) -> Result<TimeMs, ControlError> {
    match ask(client, Request::Clock(proto::ClockRequest {}), timeout).await? {
        Response::Clock(answer) => Ok(TimeMs(answer.time_ms)),
        _ => Err(ControlError::Malformed),
    }
}

/// Brings an order to the leader.
pub(crate) async fn forward_order(
    client: &mut Client,
    order: &SignedOrder,
    timeout: Duration,
) -> Result<(), ControlError> {
    match ask(client, Request::Order(order.to_proto()), timeout).await? {
        Response::Done(_) => Ok(()),
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

/// Asks a member which outputs of the network it can feed.
pub(crate) async fn ask_outputs(client: &mut Client, timeout: Duration) -> Result<Vec<OutputName>, ControlError> {
    match ask(client, Request::Outputs(proto::OutputsRequest {}), timeout).await? {
        Response::Outputs(answer) => {
            answer.names.iter().map(|name| name.parse().map_err(|_| ControlError::Malformed)).collect()
        }
        _ => Err(ControlError::Malformed),
    }
}

/// Brings a report on an output to the leader.
pub(crate) async fn forward_progress(
    client: &mut Client,
    report: proto::OutputProgress,
    timeout: Duration,
) -> Result<(), ControlError> {
    match ask(client, Request::Progress(report), timeout).await? {
        Response::Done(_) => Ok(()),
        _ => Err(ControlError::Malformed),
    }
}

/// Asks the leader for a barrier; tells the index of its entry.
pub(crate) async fn ask_for_barrier(client: &mut Client, timeout: Duration) -> Result<u64, ControlError> {
    match ask(client, Request::Barrier(proto::BarrierRequest {}), timeout).await? {
        Response::Barrier(answer) => Ok(answer.index),
        _ => Err(ControlError::Malformed),
    }
}

/// Brings to the leader how an output of the network is to be.
pub(crate) async fn forward_output(
    client: &mut Client,
    change: proto::OutputChange,
    timeout: Duration,
) -> Result<(), ControlError> {
    match ask(client, Request::OutputChange(change), timeout).await? {
        Response::Done(_) => Ok(()),
        _ => Err(ControlError::Malformed),
    }
}
