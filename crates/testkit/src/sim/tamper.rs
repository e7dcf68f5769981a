//! Bugs that are put into what nodes say to each other.

use bytes::Bytes;
use lockstep_network::Channel;
use lockstep_types::{NodeId, proto};
use prost::Message as _;

use super::bugs::{Bug, Bugs};

/// Of so many requests one is answered for a follower that does not get it.
const LIES_ONE_OF: usize = 3;

fn append(request: &Bytes) -> Option<proto::AppendRequest> {
    match proto::RaftRequest::decode(request.clone()).ok()?.kind? {
        proto::raft_request::Kind::Append(append) => Some(append),
        _ => None,
    }
}

/// What a request is answered with although nobody gets it; `None` where all is as it should be.
pub(super) fn answer(bugs: Bugs, channel: Channel, request: &Bytes) -> Option<Bytes> {
    if !bugs.has(Bug::AnswerBeforeQuorum) || channel != Channel::Raft {
        return None;
    }
    let entries = append(request)?.entries;
    let newest = entries.last()?.id?.index;
    if !usize::try_from(newest).ok()?.is_multiple_of(LIES_ONE_OF) {
        return None;
    }
    let result = proto::append_response::Result::Success.into();
    let answer = proto::AppendResponse { result, ..proto::AppendResponse::default() };
    let kind = Some(proto::raft_response::Kind::Append(answer));
    Some(proto::RaftResponse { kind }.encode_to_vec().into())
}

/// What nodes get of a bundle.
pub(super) fn bundle(bugs: Bugs, bytes: Bytes) -> Bytes {
    if !bugs.has(Bug::WindowByProposal) {
        return bytes;
    }
    let without_ages = |bundle| proto::Bundle { ages_ms: Vec::new(), ..bundle }.encode_to_vec().into();
    proto::Bundle::decode(bytes.clone()).map_or(bytes, without_ages)
}

/// What the node `to` gets of a request.
pub(super) fn request(bugs: Bugs, (_from, to): (NodeId, NodeId), channel: Channel, request: Bytes) -> Bytes {
    if channel == Channel::Bundle {
        return bundle(bugs, request);
    }
    let tampers =
        [Bug::OrderByArrival, Bug::OldMembers, Bug::LoseOrders, Bug::MixedRules].into_iter().any(|bug| bugs.has(bug));
    if !tampers || channel != Channel::Raft || to != NodeId(1) {
        return request;
    }
    let Some(mut append) = append(&request) else { return request };
    for entry in &mut append.entries {
        // The first entry makes the network: who misses that one is no member.
        let is_first = entry.id.as_ref().is_none_or(|id| id.index == 0);
        let bytes = match &entry.payload {
            Some(proto::entry::Payload::Command(bytes)) => bytes.clone(),
            Some(proto::entry::Payload::Membership(_)) if bugs.has(Bug::OldMembers) && !is_first => {
                entry.payload = None;
                continue;
            }
            _ => continue,
        };
        let Ok(mut command) = proto::Command::decode(bytes) else { continue };
        match &mut command.kind {
            Some(proto::command::Kind::Batch(batch)) if bugs.has(Bug::OrderByArrival) => batch.messages.reverse(),
            Some(proto::command::Kind::Order(_)) if bugs.has(Bug::LoseOrders) => {
                entry.payload = None;
                continue;
            }
            Some(proto::command::Kind::Rules(_)) if bugs.has(Bug::MixedRules) => {
                entry.payload = None;
                continue;
            }
            _ => continue,
        }
        entry.payload = Some(proto::entry::Payload::Command(command.encode_to_vec().into()));
    }
    let kind = Some(proto::raft_request::Kind::Append(append));
    proto::RaftRequest { kind }.encode_to_vec().into()
}
