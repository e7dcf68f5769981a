//! Between openraft's types and the protobuf that is stored and sent.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lockstep_types::{DecodeError, proto};
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse};
use prost::Message as _;

use crate::raft_types::{Entry, LeaderId, LogId, Membership, Payload, StoredMembership, TypeConfig, Vote};

fn bad(what: &'static str, reason: &str) -> DecodeError {
    DecodeError::malformed(what, reason)
}

pub(crate) fn log_id_to(id: &LogId) -> proto::LogId {
    proto::LogId { term: *id.leader_id, leader: 0, index: id.index }
}

pub(crate) fn log_id_from(id: &proto::LogId) -> LogId {
    LogId::new_term_index(id.term, id.index)
}

pub(crate) fn vote_to(vote: &Vote) -> proto::Vote {
    proto::Vote { term: vote.leader_id.term, leader: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn vote_from(vote: &proto::Vote) -> Vote {
    Vote { leader_id: LeaderId { term: vote.term, voted_for: vote.leader }, committed: vote.committed }
}

fn required_vote(vote: Option<proto::Vote>) -> Result<Vote, DecodeError> {
    vote.as_ref().map(vote_from).ok_or_else(|| bad("raft message", "the vote is missing"))
}

pub(crate) fn membership_to(membership: &Membership) -> proto::Membership {
    proto::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|ids| proto::VoterSet { ids: ids.iter().copied().collect() })
            .collect(),
        nodes: membership.nodes().map(|(id, _)| *id).collect(),
    }
}

pub(crate) fn membership_from(membership: &proto::Membership) -> Result<Membership, DecodeError> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.iter().map(|config| config.ids.iter().copied().collect()).collect();
    let nodes: BTreeMap<_, _> = membership.nodes.iter().map(|id| (*id, openraft::EmptyNode {})).collect();
    Membership::new(configs, nodes).map_err(|e| bad("membership", &e.to_string()))
}

/// Encodes an entry as it is stored and sent.
pub(crate) fn entry_to(entry: &Entry) -> proto::Entry {
    let payload = match &entry.payload {
        EntryPayload::Blank => None,
        EntryPayload::Normal(Payload(command)) => Some(proto::entry::Payload::Command(command.clone())),
        EntryPayload::Membership(membership) => Some(proto::entry::Payload::Membership(membership_to(membership))),
    };
    proto::Entry { id: Some(log_id_to(&entry.log_id)), payload }
}

pub(crate) fn entry_from(entry: proto::Entry) -> Result<Entry, DecodeError> {
    let id = entry.id.ok_or_else(|| bad("log entry", "the id is missing"))?;
    let payload = match entry.payload {
        None => EntryPayload::Blank,
        Some(proto::entry::Payload::Command(command)) => EntryPayload::Normal(Payload(command)),
        Some(proto::entry::Payload::Membership(membership)) => EntryPayload::Membership(membership_from(&membership)?),
    };
    Ok(Entry { log_id: log_id_from(&id), payload })
}

pub(crate) fn decode_entry(bytes: Bytes) -> Result<Entry, DecodeError> {
    entry_from(proto::Entry::decode(bytes).map_err(|e| bad("log entry", &e.to_string()))?)
}

/// The stored form of an applied membership: its log id and itself, as an entry.
pub(crate) fn encode_stored_membership(stored: &StoredMembership) -> Vec<u8> {
    proto::Entry {
        id: stored.log_id().as_ref().map(log_id_to),
        payload: Some(proto::entry::Payload::Membership(membership_to(stored.membership()))),
    }
    .encode_to_vec()
}

pub(crate) fn decode_stored_membership(bytes: Bytes) -> Result<StoredMembership, DecodeError> {
    let entry = proto::Entry::decode(bytes).map_err(|e| bad("membership", &e.to_string()))?;
    match entry.payload {
        Some(proto::entry::Payload::Membership(membership)) => {
            Ok(StoredMembership::new(entry.id.as_ref().map(log_id_from), membership_from(&membership)?))
        }
        _ => Err(bad("membership", "another payload")),
    }
}

pub(crate) fn append_to(request: &AppendEntriesRequest<TypeConfig>) -> proto::AppendRequest {
    proto::AppendRequest {
        vote: Some(vote_to(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id_to),
        entries: request.entries.iter().map(entry_to).collect(),
        committed: request.leader_commit.as_ref().map(log_id_to),
    }
}

pub(crate) fn append_from(request: proto::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, DecodeError> {
    Ok(AppendEntriesRequest {
        vote: required_vote(request.vote)?,
        prev_log_id: request.previous.as_ref().map(log_id_from),
        entries: request.entries.into_iter().map(entry_from).collect::<Result<_, _>>()?,
        leader_commit: request.committed.as_ref().map(log_id_from),
    })
}

pub(crate) fn append_response_to(response: &AppendEntriesResponse<TypeConfig>) -> proto::AppendResponse {
    use proto::append_response::Result as Kind;
    let (result, matched, vote) = match response {
        AppendEntriesResponse::Success => (Kind::Success, None, None),
        AppendEntriesResponse::PartialSuccess(matched) => (Kind::Partial, matched.as_ref(), None),
        AppendEntriesResponse::Conflict => (Kind::Conflict, None, None),
        AppendEntriesResponse::HigherVote(vote) => (Kind::HigherVote, None, Some(vote)),
    };
    proto::AppendResponse { result: result.into(), matched: matched.map(log_id_to), vote: vote.map(vote_to) }
}

pub(crate) fn append_response_from(
    response: proto::AppendResponse,
) -> Result<AppendEntriesResponse<TypeConfig>, DecodeError> {
    use proto::append_response::Result as Kind;
    let unknown = |_| bad("raft message", "unknown append result");
    Ok(match Kind::try_from(response.result).map_err(unknown)? {
        Kind::Success => AppendEntriesResponse::Success,
        Kind::Partial => AppendEntriesResponse::PartialSuccess(response.matched.as_ref().map(log_id_from)),
        Kind::Conflict => AppendEntriesResponse::Conflict,
        Kind::HigherVote => AppendEntriesResponse::HigherVote(required_vote(response.vote)?),
    })
}

pub(crate) fn vote_request_to(request: &VoteRequest<TypeConfig>) -> proto::VoteRequest {
    proto::VoteRequest {
        vote: Some(vote_to(&request.vote)),
        last: request.last_log_id.as_ref().map(log_id_to),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(crate) fn vote_request_from(request: proto::VoteRequest) -> Result<VoteRequest<TypeConfig>, DecodeError> {
    let mut vote = VoteRequest::new(required_vote(request.vote)?, request.last.as_ref().map(log_id_from));
    vote.leadership_transfer = request.leadership_transfer;
    Ok(vote)
}

pub(crate) fn vote_response_to(response: &VoteResponse<TypeConfig>) -> proto::VoteResponse {
    proto::VoteResponse {
        vote: Some(vote_to(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(log_id_to),
    }
}

pub(crate) fn vote_response_from(response: proto::VoteResponse) -> Result<VoteResponse<TypeConfig>, DecodeError> {
    let last = response.last.as_ref().map(log_id_from);
    Ok(VoteResponse::new(required_vote(response.vote)?, last, response.granted))
}

pub(crate) fn transfer_to(request: &TransferLeaderRequest<TypeConfig>) -> proto::TransferLeader {
    proto::TransferLeader {
        from: Some(vote_to(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().map(log_id_to),
    }
}

pub(crate) fn transfer_from(request: proto::TransferLeader) -> Result<TransferLeaderRequest<TypeConfig>, DecodeError> {
    let last = request.last.as_ref().map(log_id_from);
    Ok(TransferLeaderRequest::new(required_vote(request.from)?, request.to, last))
}
