//! What became of tasks on the chain, for whoever asks this node. Nothing of it goes to the log: each node with an
//! endpoint reads for itself, and keeps what it read in a file of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lockstep_chain::{ChainError, ChainReader};
use lockstep_types::{Hash32, ProjectId, TaskId, TimeMs, keccak256};
use parking_lot::Mutex;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Chain;
use super::task_store::TaskStore;
use super::trouble::{Notice, Trouble, Troubles};
use crate::clock::now_ms;
use crate::error::NodeError;

/// What this node knows of tasks on the chain. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct TaskStates(Option<Arc<Mutex<TaskStore>>>);

impl TaskStates {
    /// Opens the file where there is something to follow.
    ///
    /// # Errors
    /// If it cannot be opened or made.
    pub fn open(path: &Path, reader: Option<&ChainReader>) -> Result<Self, NodeError> {
        let source = reader.and_then(|reader| {
            let manager = reader.source().task_manager?;
            Some(keccak256(&[&reader.source().id(), manager.as_bytes()]))
        });
        let Some(source): Option<Hash32> = source else { return Ok(Self::default()) };
        let failed = |e| NodeError::Config(format!("{}: {e}: remove the file, it is made again", path.display()));
        let store = TaskStore::open(path, &source).map_err(failed)?;
        Ok(Self(Some(Arc::new(Mutex::new(store)))))
    }

    /// What became of a task: `assigned` and `settled`, each with the time at which this node read it.
    pub fn of(&self, project: ProjectId, task: &TaskId) -> Vec<(&'static str, TimeMs)> {
        let Some(store) = &self.0 else { return Vec::new() };
        let states = store.lock().states(project, task).unwrap_or_else(|error| {
            tracing::error!(%error, "what became of a task on the chain cannot be read");
            Vec::new()
        });
        states.into_iter().map(|(settled, time)| (if settled { "settled" } else { "assigned" }, time)).collect()
    }
}

/// Reads what becomes of tasks.
#[derive(Clone)]
pub(crate) struct TaskFollower {
    pub chain: Chain,
    pub states: TaskStates,
}

fn disk(error: &rusqlite::Error) -> Trouble {
    Trouble::Lasting(format!("the file of tasks' states cannot be used: {error}"))
}

impl TaskFollower {
    /// Follows until `stop`. A node with nothing to follow only waits.
    pub async fn run(self, stop: CancellationToken) {
        let (Some(reader), Some(store)) = (&self.chain.0.reader, &self.states.0) else {
            return stop.cancelled().await;
        };
        let mut troubles = Troubles::default();
        loop {
            let step = async {
                let found = step(reader, store).await;
                let more = found == Ok(true);
                match troubles.record(found.map(drop), Instant::now()) {
                    Some(Notice::Worse(reason)) => tracing::warn!(reason, "states of tasks are not followed"),
                    Some(Notice::Better) => tracing::info!("states of tasks can be followed again"),
                    None => {}
                }
                if !more {
                    sleep(troubles.pause(self.chain.0.poll, rand::random_range(0.5..1.0))).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = step => {}
            }
        }
    }
}

/// Reads the next blocks; true when there may be more.
async fn step(reader: &ChainReader, store: &Arc<Mutex<TaskStore>>) -> Result<bool, Trouble> {
    let source = reader.source();
    let cursor = store.lock().cursor().map_err(|e| disk(&e))?;
    let first = cursor.map_or(source.start_block, |(last, _)| last.saturating_add(1));
    let confirmed = reader.head().await?.checked_sub(source.confirmations);
    let Some(confirmed) = confirmed.filter(|confirmed| *confirmed >= first) else { return Ok(false) };
    let mut last = confirmed.min(first.saturating_add(source.span_max - 1));
    let found = loop {
        match reader.task_states(first, last).await {
            Err(ChainError::TooManyLogs { .. }) if last > first => last = first + (last - first) / 2,
            found => break found?,
        }
    };
    let (store, now) = (store.clone(), now_ms());
    let kept = tokio::task::spawn_blocking(move || {
        let mut store = store.lock();
        if cursor.is_some_and(|(_, hash)| hash != found.parent_hash) {
            tracing::warn!(block = first, "the chain was reorganised: states of tasks are read from the beginning");
            return store.clear();
        }
        store.keep(&found.states, (found.last, found.last_hash), now)
    });
    kept.await.map_err(|e| Trouble::Lasting(e.to_string()))?.map_err(|e| disk(&e))?;
    Ok(true)
}
