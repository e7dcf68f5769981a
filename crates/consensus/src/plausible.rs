//! What no member that runs this program says in raft's messages. openraft takes them at their word: a gap in the
//! entries of an append, or an acknowledgement of what was never sent, would be in the log before anything noticed, and
//! a term near the end of the numbers would leave none for an election. So they are held against each other here first.
//!
//! Raft itself goes on trusting its voters: see docs/hostile.md for what a voter that lies can still do.

use bytes::Bytes;
use lockstep_types::elements::{self, Bound, KIND_FIELDS_MAX};
use lockstep_types::{DecodeError, NodeId, proto};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest};

use crate::limits::{RAFT_ENTRIES_MAX, RAFT_NODES_MAX, SNAPSHOT_FILES_MAX, TERM_LEAP_MAX};
use crate::raft_types::{Entry, LogId, TypeConfig, Vote};

fn bad(reason: &str) -> DecodeError {
    DecodeError::malformed("raft message", reason)
}

/// What is repeated in a `BulkResponse`: voter sets and files of an offer.
const BULK_ANSWER: [Bound; 2] =
    [Bound { path: &[4, 4, 1], count_max: RAFT_NODES_MAX }, Bound { path: &[4, 6], count_max: SNAPSHOT_FILES_MAX }];

fn read_one<M: prost::Message + Default>(what: &'static str, bytes: Bytes, bounds: &[Bound]) -> Result<M, DecodeError> {
    elements::check_fields(what, &bytes, KIND_FIELDS_MAX)?;
    elements::check(what, &bytes, bounds)?;
    M::decode(bytes).map_err(|e| DecodeError::malformed(what, e))
}

/// Reads an answer to a request of raft; refuses what is more than one.
pub(crate) fn read_raft_answer(bytes: Bytes) -> Result<proto::RaftResponse, DecodeError> {
    read_one("raft answer", bytes, &[])
}

/// Reads a request on the channel for copies of the state; refuses what is more than one.
pub(crate) fn read_bulk_request(bytes: Bytes) -> Result<proto::BulkRequest, DecodeError> {
    read_one("bulk request", bytes, &[])
}

/// Reads an answer there; refuses what is more than one.
pub(crate) fn read_bulk_answer(bytes: Bytes) -> Result<proto::BulkResponse, DecodeError> {
    read_one("bulk answer", bytes, &BULK_ANSWER)
}

/// Counts what is repeated in an encoded `RaftRequest`, before it is read.
pub(crate) fn check_size(request: &[u8]) -> Result<(), DecodeError> {
    let bounds = [
        // append: entries; in each, the voter sets of a membership.
        Bound { path: &[1, 3], count_max: RAFT_ENTRIES_MAX },
        Bound { path: &[1, 3, 3, 1], count_max: RAFT_NODES_MAX },
        // offer: voter sets and files.
        Bound { path: &[5, 4, 1], count_max: RAFT_NODES_MAX },
        Bound { path: &[5, 6], count_max: SNAPSHOT_FILES_MAX },
    ];
    elements::check_fields("raft message", request, KIND_FIELDS_MAX)?;
    elements::check("raft message", request, &bounds)
}

/// A term that elections can have led to, from this node's own.
pub(crate) fn check_term(term: u64, own: u64) -> Result<(), DecodeError> {
    if term > own.saturating_add(TERM_LEAP_MAX) {
        return Err(bad("its term is further ahead than elections can have led"));
    }
    Ok(())
}

fn check_vote(vote: &Vote, from: NodeId, is_leader: bool, own: u64) -> Result<(), DecodeError> {
    if vote.leader_id.voted_for != from.0 {
        return Err(bad("its vote is for another node than the one that sent it"));
    }
    if vote.committed != is_leader {
        return Err(bad("only a leader's messages, and all of them, bear a vote that was won"));
    }
    check_term(vote.leader_id.term, own)
}

fn check_known(id: Option<&LogId>, vote: &Vote) -> Result<(), DecodeError> {
    if id.is_some_and(|id| *id.leader_id > vote.leader_id.term) {
        return Err(bad("it names an entry of a later term than its own"));
    }
    Ok(())
}

/// An append of the leader `from`, for a node whose own term is `own`.
pub(crate) fn check_append(
    append: &AppendEntriesRequest<TypeConfig>,
    from: NodeId,
    own: u64,
) -> Result<(), DecodeError> {
    check_vote(&append.vote, from, true, own)?;
    check_known(append.leader_commit.as_ref(), &append.vote)?;
    let mut before = append.prev_log_id;
    check_known(before.as_ref(), &append.vote)?;
    for entry in &append.entries {
        let next = before.map_or(Some(0), |id| id.index.checked_add(1));
        if next != Some(entry.log_id.index) {
            return Err(bad("its entries do not follow each other"));
        }
        if before.is_some_and(|id| *id.leader_id > *entry.log_id.leader_id) {
            return Err(bad("an entry has an earlier term than the one before it"));
        }
        before = Some(entry.log_id);
    }
    check_known(before.as_ref(), &append.vote)
}

/// A request of the candidate `from` for a vote, or the question whether it would get one.
pub(crate) fn check_vote_request(request: &VoteRequest<TypeConfig>, from: NodeId, own: u64) -> Result<(), DecodeError> {
    check_vote(&request.vote, from, false, own)?;
    check_known(request.last_log_id.as_ref(), &request.vote)
}

/// What the leader `from` says when it hands over.
pub(crate) fn check_transfer(
    transfer: &TransferLeaderRequest<TypeConfig>,
    from: NodeId,
    own: u64,
) -> Result<(), DecodeError> {
    check_vote(transfer.from_leader(), from, true, own)?;
    check_known(transfer.last_log_id(), transfer.from_leader())
}

/// The answer to an append of `entries` behind `previous`: only one of these can be the last that is acknowledged. No
/// other id will do because it is smaller: one of an earlier term is, however large its index.
pub(crate) fn check_append_answer(
    answer: &AppendEntriesResponse<TypeConfig>,
    previous: Option<LogId>,
    entries: &[Entry],
    own: u64,
) -> Result<(), DecodeError> {
    let was_sent = |id: &LogId| previous == Some(*id) || entries.iter().any(|entry| entry.log_id == *id);
    match answer {
        AppendEntriesResponse::PartialSuccess(Some(matched)) if !was_sent(matched) => {
            Err(bad("it acknowledges entries that were not sent"))
        }
        AppendEntriesResponse::HigherVote(vote) => check_term(vote.leader_id.term, own),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;

    use super::*;
    use crate::raft_types::{LeaderId, Payload};

    const LEADER: NodeId = NodeId(3);

    fn vote(term: u64, node: u64, committed: bool) -> Vote {
        Vote { leader_id: LeaderId { term, voted_for: node }, committed }
    }

    fn id(term: u64, index: u64) -> LogId {
        LogId::new_term_index(term, index)
    }

    fn append(previous: Option<LogId>, entries: &[(u64, u64)]) -> AppendEntriesRequest<TypeConfig> {
        let payload = || EntryPayload::Normal(Payload(Bytes::from_static(b"x")));
        let entries = entries.iter().map(|(term, index)| Entry { log_id: id(*term, *index), payload: payload() });
        AppendEntriesRequest {
            vote: vote(5, 3, true),
            prev_log_id: previous,
            entries: entries.collect(),
            leader_commit: previous,
        }
    }

    #[test]
    fn only_what_a_leader_can_have_is_taken_from_it() {
        let good = |append| check_append(&append, LEADER, 5).is_ok();
        assert!(good(append(Some(id(2, 7)), &[(2, 8), (5, 9), (5, 10)])));
        assert!(good(append(None, &[(0, 0), (1, 1)])) && good(append(Some(id(5, 7)), &[])));
        for entries in [&[(2, 9)][..], &[(2, 8), (2, 10)], &[(2, 8), (2, 8)], &[(1, 8)], &[(3, 8), (2, 9)], &[(6, 8)]] {
            assert!(!good(append(Some(id(2, 7)), entries)), "{entries:?}");
        }
        assert!(!good(append(None, &[(1, 1)])), "the first entry is missing");
        assert!(!good(append(Some(id(2, u64::MAX)), &[(2, 0)])), "behind the last number");
        assert!(!good(append(Some(id(6, 7)), &[])), "of a later term");
        for vote in [vote(5, 4, true), vote(5, 3, false), vote(6 + TERM_LEAP_MAX, 3, true), vote(u64::MAX, 3, true)] {
            assert!(!good(AppendEntriesRequest { vote, ..append(Some(id(2, 7)), &[]) }), "{vote}");
        }
        assert!(!good(AppendEntriesRequest { leader_commit: Some(id(6, 1)), ..append(None, &[]) }));
    }

    #[test]
    fn a_candidate_asks_for_itself_with_a_vote_that_it_has_not_won() {
        let good = |vote, last| check_vote_request(&VoteRequest::new(vote, last), LEADER, 5).is_ok();
        assert!(good(vote(6, 3, false), Some(id(5, 9))) && good(vote(5 + TERM_LEAP_MAX, 3, false), None));
        assert!(!good(vote(6, 4, false), None) && !good(vote(6, 3, true), None));
        assert!(!good(vote(6 + TERM_LEAP_MAX, 3, false), None) && !good(vote(6, 3, false), Some(id(7, 1))));
    }

    #[test]
    fn nobody_acknowledges_what_it_was_not_sent() {
        let request = append(Some(id(2, 7)), &[(5, 8), (5, 9)]);
        let good = |answer| check_append_answer(&answer, request.prev_log_id, &request.entries, 5).is_ok();
        for known in [id(2, 7), id(5, 8), id(5, 9)] {
            assert!(good(AppendEntriesResponse::PartialSuccess(Some(known))), "{known}");
        }
        for unknown in [id(2, u64::MAX), id(2, 8), id(4, 9), id(1, 7), id(2, 6)] {
            assert!(!good(AppendEntriesResponse::PartialSuccess(Some(unknown))), "{unknown}");
        }
        assert!(good(AppendEntriesResponse::PartialSuccess(None)) && good(AppendEntriesResponse::Success));
        assert!(!good(AppendEntriesResponse::PartialSuccess(Some(id(5, 10)))));
        assert!(good(AppendEntriesResponse::HigherVote(vote(6, 2, false))));
        assert!(!good(AppendEntriesResponse::HigherVote(vote(u64::MAX, 2, false))));
    }
}
