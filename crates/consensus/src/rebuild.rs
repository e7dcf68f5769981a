//! Making a damaged state anew, of a node whose log and vote are whole: from the log where that still begins at the
//! beginning, else by a copy that another member has. The log and the vote stay as they are: what this node has
//! promised holds.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use lockstep_store::home::StoreHome;
use lockstep_store::{Kind, LogWriter, RocksStorage, Storage};
use lockstep_types::{NodeId, proto};
use prost::Message as _;

use crate::epoch::EpochError;
use crate::fetch::{Fetch, prepare};
use crate::limits::PIECE_TIMEOUT;
use crate::log_store::LogStore;
use crate::plausible;
use crate::pledges::Pledges;
use crate::shelf::SnapshotDirectory;
use crate::snapshot::Manifest;
use crate::state_store::{StateStore, check_copy};
use crate::transport::Transport;

/// Pause before members are asked again for a copy of the state.
const ASK_PAUSE: Duration = Duration::from_secs(1);

/// A log that was read from its beginning to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogStanding {
    /// Index of the newest entry that was purged; `None` where none was.
    pub purged: Option<u64>,
    /// Index of the last entry.
    pub last: u64,
}

/// Reads the whole log of a stopped node: every entry, the vote and the pledges.
///
/// # Errors
/// What of it is damaged.
pub fn check_log(home: &StoreHome) -> Result<LogStanding, EpochError> {
    let storage: Arc<dyn Storage> = Arc::new(RocksStorage::open(&home.log_path(), Kind::Log)?);
    let writer = Arc::new(LogWriter::inline(storage.clone()));
    Pledges::open(&*storage, writer.clone()).map_err(io::Error::other)?;
    let log = LogStore::open(storage, writer)?;
    let standing = LogStanding { purged: log.purged_index(), last: log.last_index().unwrap_or(0) };
    let mut next = standing.purged.map_or(0, |index| index + 1);
    while next <= standing.last {
        let entries = log.read(next, u64::MAX)?;
        match (entries.first(), entries.last()) {
            (Some(first), Some(last)) if first.log_id.index == next => next = last.log_id.index + 1,
            // Nothing was ever written to a new log.
            (None, None) if next == 0 && standing.last == 0 => break,
            _ => {
                let reason = format!("entry {next} of the log is missing");
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason).into());
            }
        }
    }
    Ok(standing)
}

/// Fetches a copy of the state from whichever member has one that goes at least to entry `at_least`, and puts it in
/// the place of this node's. Goes on until it has one; raft must not run yet.
pub async fn fetch_state(state: &StateStore, transport: Arc<dyn Transport>, members: &[NodeId], at_least: u64) {
    loop {
        for node in members {
            match fetch_from(state, transport.clone(), *node, at_least).await {
                Ok(index) => {
                    tracing::info!(%node, index, "the state was made anew from a member's copy");
                    return;
                }
                Err(error) => tracing::warn!(%node, %error, "no copy of the state came from this member"),
            }
        }
        tokio::time::sleep(ASK_PAUSE).await;
    }
}

async fn fetch_from(
    state: &StateStore,
    transport: Arc<dyn Transport>,
    node: NodeId,
    at_least: u64,
) -> Result<u64, String> {
    use proto::bulk_response::Kind;
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let request = proto::BulkRequest { kind: Some(proto::bulk_request::Kind::Copy(proto::CopyRequest { at_least })) };
    let answer = transport.connect_bulk(node).call(request.encode_to_vec().into(), PIECE_TIMEOUT).await;
    let answer = answer.map_err(|e| text(&e))?;
    let answer = plausible::read_bulk_answer(answer).map_err(|e| text(&e))?;
    let offer = match answer.kind {
        Some(Kind::Offer(offer)) => offer,
        Some(Kind::Failed(reason) | Kind::Gone(reason)) => return Err(reason),
        _ => return Err("it does not know this request: upgrade it".into()),
    };
    let (_, manifest) = Manifest::from_offer(offer).map_err(|e| text(&e))?;
    let index = manifest.last().map_or(0, |id| id.index);
    if index < at_least {
        return Err(format!("its copy ends with entry {index}, and entry {at_least} is needed"));
    }
    let bytes = manifest.bytes();
    tracing::info!(%node, index, bytes, "fetching a copy of the state");
    let (id, parent, wanted) = (manifest.id(), state.home().snapshots_path(), manifest.clone());
    let blocking = state.blocking();
    let directory = blocking.run(move || prepare(&parent, id, &wanted)).await;
    let directory = directory.map_err(|e| text(&e))?.map_err(|e| text(&e))?;
    Fetch::new(node, transport, id, directory.clone(), &manifest).doing(blocking).run().await.map_err(|e| text(&e))?;
    let (state, meta) = (state.clone(), manifest.meta.clone());
    let install = move || {
        check_copy(&**state.medium(), &directory, &meta)?;
        state.install(&SnapshotDirectory::received(directory), &meta)
    };
    blocking.run(install).await.map_err(|e| text(&e))?.map_err(|e| text(&e))?;
    Ok(index)
}
