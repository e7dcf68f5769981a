//! Making a damaged state anew. The damaged one is put aside, never removed; the log and the vote are not touched.

use std::fs;
use std::path::PathBuf;

use lockstep_consensus::rebuild::check_log;
use lockstep_store::disk::sync_directory;
use lockstep_store::home::{StoreHome, write_new_file};

use crate::clock::now_ms;
use crate::error::NodeError;
use crate::home::{Home, config_error};

/// Says that the state has to be fetched before consensus starts.
const MARKER: &str = "REBUILD";

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilding {
    /// Where the damaged state is now; `None` where there was none.
    pub kept: Option<PathBuf>,
    /// Whether the next start fetches the state from another member; else it is made from the log.
    pub from_member: bool,
    /// Entries of the log.
    pub entries: u64,
}

/// Checks the log of a stopped node, puts its state aside, and has the next start make it anew.
///
/// # Errors
/// If the node runs, or the log is damaged: then nothing was changed, and the sentence says what to do.
pub fn rebuild(home: &Home) -> Result<Rebuilding, NodeError> {
    if home.is_running() {
        return Err(config_error(home.path(), "its node runs; stop it first"));
    }
    let opened = home.open()?;
    let standing = check_log(&opened.store).map_err(|error| {
        NodeError::Config(format!(
            "{}: {error}. The log cannot be made anew: it holds what this node has promised to the others. Nothing was changed. Have the node removed (`lockstep members remove {}` on a majority of the others), and join again under a new id: `lockstep init --join ADDRESS --home NEW_DIR`, then `lockstep start --home NEW_DIR`",
            opened.store.log_path().display(),
            opened.node
        ))
    })?;
    let store = home.file("store");
    let failed = |e: std::io::Error| config_error(&store, e);
    let now = now_ms().0;
    let state = opened.store.state_path()?;
    let from_member = standing.purged.is_some_and(|index| index > 0);
    if from_member {
        let marker = marker(&opened.store);
        if !marker.exists() {
            write_new_file(&marker, &format!("{}\n", standing.purged.unwrap_or(0)), 0o644).map_err(failed)?;
        }
    }
    let kept = state.exists().then(|| store.join(format!("damaged-state-{now}")));
    if let Some(kept) = &kept {
        fs::rename(&state, kept).map_err(failed)?;
    }
    let pointer = store.join("STATE");
    if pointer.exists() {
        fs::rename(&pointer, store.join(format!("damaged-STATE-{now}"))).map_err(failed)?;
    }
    sync_directory(&store).map_err(failed)?;
    let entries = standing.last.saturating_sub(standing.purged.unwrap_or(0));
    Ok(Rebuilding { kept, from_member, entries })
}

fn marker(store: &StoreHome) -> PathBuf {
    store.log_path().with_file_name(MARKER)
}

/// Index of the entry that the state has to reach at least, where it has to be fetched; and that of the log's last.
///
/// # Errors
/// If the log is damaged.
pub(crate) fn wanted(store: &StoreHome) -> Result<Option<(u64, u64)>, NodeError> {
    if !marker(store).exists() {
        return Ok(None);
    }
    let standing = check_log(store)?;
    Ok(Some((standing.purged.unwrap_or(0), standing.last)))
}

/// The state is there.
///
/// # Errors
/// If the disk fails.
pub(crate) fn done(store: &StoreHome) -> Result<(), NodeError> {
    let marker = marker(store);
    fs::remove_file(&marker).map_err(|e| config_error(&marker, e))
}
