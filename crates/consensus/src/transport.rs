//! Raft's messages to other members, over a port that the network (or a simulation) stands behind.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_types::{DecodeError, NodeId, proto};
use openraft::OptionalSend;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use prost::Message as _;

use crate::convert;
use crate::log_store::LogStore;
use crate::offer::Offering;
use crate::plausible;
use crate::raft_types::{TypeConfig, Vote};
use crate::shelf::SnapshotDirectory;
use crate::state_store::StateStore;

/// A request to a member was not answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransportError {
    /// There is no connection: ask again later.
    #[error("not connected: {0}")]
    Unreachable(String),
    /// The connection broke, or there was no answer in time: ask again at once.
    #[error("no answer: {0}")]
    Broken(String),
}

/// Makes connections to members.
pub trait Transport: Send + Sync + 'static {
    /// A connection of its own to a member; made when it is first used.
    fn connect(&self, target: NodeId) -> Box<dyn Connection>;

    /// As [`Transport::connect`], for pieces of a copy of the state: the other end is
    /// [`Consensus::serve_bulk`](crate::Consensus::serve_bulk).
    fn connect_bulk(&self, target: NodeId) -> Box<dyn Connection>;
}

/// Requests to one member, one at a time. A call that is dropped half-way, or fails, must not let its answer pass
/// for that of a later call.
#[async_trait]
pub trait Connection: Send + Sync + 'static {
    /// Sends a request and waits for the answer.
    async fn call(&mut self, request: Bytes, timeout: Duration) -> Result<Bytes, TransportError>;
}

/// Least time for an answer. openraft's own limit is its heartbeat interval, which a follower that is busy with a long
/// append may well exceed; giving up then would send the same entries again and make it busier still.
const ANSWER_TIMEOUT_MIN: Duration = Duration::from_secs(2);

pub(crate) struct Connector {
    pub transport: Arc<dyn Transport>,
    pub log: LogStore,
    pub state: StateStore,
}

pub(crate) struct Link {
    target: NodeId,
    connection: Box<dyn Connection>,
    log: LogStore,
    state: StateStore,
}

impl RaftNetworkFactory<TypeConfig> for Connector {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _node: &openraft::EmptyNode) -> Link {
        let target = NodeId(target);
        let connection = self.transport.connect(target);
        Link { target, connection, log: self.log.clone(), state: self.state.clone() }
    }
}

type RpcError = RPCError<TypeConfig>;
type Response = proto::raft_response::Kind;

fn malformed(error: &DecodeError) -> RpcError {
    RPCError::Network(NetworkError::new(error))
}

impl Link {
    pub(crate) async fn call(
        &mut self,
        kind: proto::raft_request::Kind,
        option: &RPCOption,
    ) -> Result<Response, RpcError> {
        let request = proto::RaftRequest { kind: Some(kind) }.encode_to_vec();
        let answer =
            self.connection.call(request.into(), option.soft_ttl().max(ANSWER_TIMEOUT_MIN)).await.map_err(|error| {
                match error {
                    TransportError::Unreachable(_) => RPCError::Unreachable(Unreachable::new(&error)),
                    TransportError::Broken(_) => RPCError::Network(NetworkError::new(&error)),
                }
            })?;
        let answer = plausible::read_raft_answer(answer).map_err(|e| RPCError::Network(NetworkError::new(&e)))?;
        match answer.kind {
            // The peer's raft has stopped, or cannot serve this: treat it as away.
            Some(Response::Failed(reason)) => Err(RPCError::Unreachable(Unreachable::from_string(reason))),
            Some(kind) => Ok(kind),
            None => Err(malformed(&DecodeError::malformed("raft answer", "unknown kind"))),
        }
    }

    async fn call_vote(
        &mut self,
        kind: proto::raft_request::Kind,
        term: u64,
        option: &RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        match self.call(kind, option).await? {
            Response::Vote(vote) => {
                let answer = convert::vote_response_from(vote).map_err(|e| malformed(&e))?;
                plausible::check_term(answer.vote.leader_id.term, term).map_err(|e| malformed(&e))?;
                Ok(answer)
            }
            _ => Err(malformed(&DecodeError::malformed("raft answer", "not to a vote"))),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotDirectory;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        if request.entries.first().is_some_and(|first| self.log.is_withheld(first.log_id.index)) {
            // Openraft purges what it has just failed to send, and turns to a snapshot.
            let reason = "these entries are about to be purged, because the log is too long";
            return Err(RPCError::Unreachable(Unreachable::from_string(reason)));
        }
        let kind = proto::raft_request::Kind::Append(convert::append_to(&request));
        match self.call(kind, &option).await? {
            Response::Append(answer) => {
                let answer = convert::append_response_from(answer).map_err(|e| malformed(&e))?;
                let (term, previous) = (request.vote.leader_id.term, request.prev_log_id);
                plausible::check_append_answer(&answer, previous, &request.entries, term).map_err(|e| malformed(&e))?;
                Ok(answer)
            }
            _ => Err(malformed(&DecodeError::malformed("raft answer", "not to an append"))),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let kind = proto::raft_request::Kind::Vote(convert::vote_request_to(&request));
        self.call_vote(kind, request.vote.leader_id.term, &option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let kind = proto::raft_request::Kind::PreVote(convert::vote_request_to(&request));
        self.call_vote(kind, request.vote.leader_id.term, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<TypeConfig, SnapshotDirectory>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let (target, state) = (self.target, self.state.clone());
        Offering { target, state, vote, directory: snapshot.snapshot }.run(self, cancel, &option).await
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let kind = proto::raft_request::Kind::Transfer(convert::transfer_to(&request));
        match self.call(kind, &option).await? {
            Response::Append(_) => Ok(Ok(())),
            _ => Err(malformed(&DecodeError::malformed("raft answer", "not to a transfer"))),
        }
    }
}
