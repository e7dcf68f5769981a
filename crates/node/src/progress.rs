//! Where the progress of outputs is noted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use lockstep_consensus::Consensus;
use lockstep_ledger::Command;
use lockstep_outputs::{Place, ProgressSink};
use lockstep_types::{OutputName, TaskNumber};

use crate::limits::PROGRESS_TIMEOUT;
use crate::tracker::Tracker;

/// Puts progress of a network's output into the log.
pub(crate) struct LogSink {
    pub consensus: Consensus,
    pub tracker: Arc<Tracker>,
}

#[async_trait]
impl ProgressSink for LogSink {
    async fn record(&self, output: &OutputName, last: TaskNumber, _places: &[Place]) {
        let command = Command::encode_progress(output, last);
        match tokio::time::timeout(PROGRESS_TIMEOUT, self.consensus.propose(command)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%output, %error, "progress was not recorded; the store knows it"),
            Err(_) => tracing::debug!(%output, "progress was not recorded in time; the store knows it"),
        }
    }

    async fn recorded(&self, output: &OutputName) -> Option<TaskNumber> {
        self.tracker.progress().get(output).copied()
    }
}

/// An output of this operator's own: its store knows how far it is, and nobody else needs to.
pub(crate) struct NoSink;

#[async_trait]
impl ProgressSink for NoSink {
    async fn record(&self, _output: &OutputName, _last: TaskNumber, _places: &[Place]) {}

    async fn recorded(&self, _output: &OutputName) -> Option<TaskNumber> {
        None
    }
}

/// The cursor of an output of this operator's own whose store keeps none: a small file in the node's home.
pub(crate) struct CursorFile {
    path: PathBuf,
}

impl CursorFile {
    /// The cursor of the output with this name, in the epoch `epoch`: a later one begins anew.
    pub fn new(home: &Path, output: &OutputName, epoch: lockstep_types::Epoch) -> Self {
        Self { path: home.join(format!("output-{output}-{epoch}.cursor")) }
    }

    fn read(&self) -> Option<TaskNumber> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        Some(TaskNumber(text.trim().parse().ok()?))
    }

    fn write(&self, last: TaskNumber) -> std::io::Result<()> {
        let next = self.path.with_extension("next");
        std::fs::write(&next, format!("{last}\n"))?;
        std::fs::File::open(&next)?.sync_all()?;
        std::fs::rename(&next, &self.path)
    }
}

#[async_trait]
impl ProgressSink for CursorFile {
    async fn record(&self, output: &OutputName, last: TaskNumber, _places: &[Place]) {
        // A few bytes: not worth a thread of its own. Lost, the tasks since come once more.
        if let Err(error) = self.write(last) {
            tracing::warn!(%output, %error, "the output's cursor cannot be written; after a restart tasks will come again");
        }
    }

    async fn recorded(&self, _output: &OutputName) -> Option<TaskNumber> {
        self.read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cursor_is_there_after_a_restart_and_another_epoch_begins_anew() {
        let home = tempfile::tempdir().unwrap();
        let name: OutputName = "celestia".parse().unwrap();
        let cursor = |epoch| CursorFile::new(home.path(), &name, lockstep_types::Epoch(epoch));
        assert_eq!(cursor(0).recorded(&name).await, None);
        for last in [5, 1_000_000] {
            cursor(0).record(&name, TaskNumber(last), &[]).await;
            assert_eq!(cursor(0).recorded(&name).await, Some(TaskNumber(last)));
        }
        assert_eq!(cursor(1).recorded(&name).await, None);
    }
}
