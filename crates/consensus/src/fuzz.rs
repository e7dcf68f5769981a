//! What the fuzz targets call: every reader of bytes of this crate, with what must hold of what it takes. Not for
//! anybody else.

use bytes::Bytes;
use lockstep_types::{NetworkId, NodeId, proto};
use prost::Message as _;

use crate::audit;
use crate::convert;
use crate::plausible;
use crate::pledges::{Signed, decode_marks};
use crate::snapshot::Manifest;

/// Node that the bytes come from, and the term of the one that reads them.
const FROM: NodeId = NodeId(2);
const TERM: u64 = 5;

/// A request of raft, as `Consensus::serve` reads it. True where it would reach openraft.
pub fn raft_request(bytes: Bytes) -> bool {
    use proto::raft_request::Kind;
    if plausible::check_size(&bytes).is_err() {
        return false;
    }
    let Ok(proto::RaftRequest { kind: Some(kind) }) = proto::RaftRequest::decode(bytes) else { return false };
    match kind {
        Kind::Append(append) => {
            let Ok(append) = convert::append_from(append) else { return false };
            let written = convert::append_to(&append);
            let again = convert::append_from(written.clone()).map(|again| convert::append_to(&again));
            assert_eq!(again, Ok(written));
            let is_plausible = plausible::check_append(&append, FROM, TERM).is_ok();
            if is_plausible {
                let ids: Vec<_> =
                    append.prev_log_id.into_iter().chain(append.entries.iter().map(|e| e.log_id)).collect();
                assert!(ids.windows(2).all(|two| two[0].index + 1 == two[1].index && two[0] < two[1]));
            }
            is_plausible
        }
        Kind::Vote(vote) | Kind::PreVote(vote) => {
            let Ok(vote) = convert::vote_request_from(vote) else { return false };
            assert_eq!(convert::vote_request_from(convert::vote_request_to(&vote)).as_ref(), Ok(&vote));
            plausible::check_vote_request(&vote, FROM, TERM).is_ok()
        }
        Kind::Transfer(transfer) => {
            let Ok(transfer) = convert::transfer_from(transfer) else { return false };
            assert_eq!(convert::transfer_from(convert::transfer_to(&transfer)).as_ref(), Ok(&transfer));
            plausible::check_transfer(&transfer, FROM, TERM).is_ok()
        }
        Kind::Offer(offer) => snapshot_offer(offer),
    }
}

fn snapshot_offer(offer: proto::SnapshotOffer) -> bool {
    let Ok((vote, manifest)) = Manifest::from_offer(offer) else { return false };
    let again = Manifest::from_offer(manifest.to_offer(&vote));
    assert!(again.is_ok_and(|(voted, again)| voted == vote && again.id() == manifest.id()));
    true
}

/// An answer to a request of raft. True where it would reach openraft.
pub fn raft_answer(bytes: Bytes) -> bool {
    use proto::raft_response::Kind;
    let Ok(proto::RaftResponse { kind: Some(kind) }) = plausible::read_raft_answer(bytes) else { return false };
    match kind {
        Kind::Append(answer) => {
            let Ok(answer) = convert::append_response_from(answer) else { return false };
            let again = convert::append_response_from(convert::append_response_to(&answer));
            assert_eq!(again.as_ref(), Ok(&answer));
            plausible::check_append_answer(&answer, None, &[], TERM).is_ok()
        }
        Kind::Vote(answer) => {
            let Ok(answer) = convert::vote_response_from(answer) else { return false };
            assert_eq!(convert::vote_response_from(convert::vote_response_to(&answer)).as_ref(), Ok(&answer));
            plausible::check_term(answer.vote.leader_id.term, TERM).is_ok()
        }
        Kind::Failed(_) => false,
        Kind::Offer(answer) => answer.vote.as_ref().map(convert::vote_from).is_some(),
    }
}

/// A record of the log's own table: an entry, an applied membership, what was signed, marks.
pub fn log_record(bytes: Bytes) -> bool {
    let marks = decode_marks(&bytes).is_ok();
    let signed = Signed::decode(&bytes).is_ok();
    if let Ok(stored) = convert::decode_stored_membership(bytes.clone()) {
        let again = convert::decode_stored_membership(convert::encode_stored_membership(&stored).into());
        assert_eq!(again, Ok(stored));
    }
    let Ok(entry) = convert::decode_entry(bytes) else { return marks || signed };
    let again = convert::decode_entry(convert::entry_to(&entry).encode_to_vec().into());
    assert_eq!(again, Ok(entry));
    true
}

/// A log, as `lockstep check` reads it: pairs of a key and a value, each after one byte with its length.
pub fn whole_log(mut bytes: &[u8]) -> bool {
    let mut piece = || {
        let (length, rest) = bytes.split_first()?;
        let (piece, rest) = rest.split_at_checked(usize::from(*length))?;
        bytes = rest;
        Some(piece)
    };
    let mut pairs = Vec::new();
    while let (Some(key), Some(value)) = (piece(), piece()) {
        pairs.push((key, Bytes::copy_from_slice(value)));
    }
    audit::check_log_records(pairs).is_ok()
}

/// A record of the state, as `lockstep check` reads it: its key, whose first byte says what it is, and its value.
pub fn state_record(key: &[u8], value: Bytes) -> bool {
    let network = NetworkId([7; 32]);
    audit::chain_record(key, value.clone()).is_ok_and(|known| known)
        || audit::open_record(key, value.clone()).is_ok_and(|known| known)
        || audit::index_record(key, value, &network).is_ok_and(|known| known)
}
