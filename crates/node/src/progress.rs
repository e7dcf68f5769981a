//! Where the progress of outputs is noted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use lockstep_consensus::{Blocking, Consensus, Role};
use lockstep_ledger::Command;
use lockstep_network::{Channel, Handle};
use lockstep_outputs::{Place, ProgressSink};
use lockstep_types::place::PLACES_MAX;
use lockstep_types::{OutputName, TaskNumber, proto};

use crate::control::forward_progress;
use crate::limits::{PROGRESS_BYTES_MAX, PROGRESS_TIMEOUT};
use crate::tracker::Tracker;

/// Puts progress of a network's output into the log.
pub(crate) struct LogSink {
    pub consensus: Consensus,
    pub network: Handle,
    pub tracker: Arc<Tracker>,
}

impl LogSink {
    async fn report(&self, report: proto::OutputProgress) -> Result<(), String> {
        let status = self.consensus.status().borrow().clone();
        if status.role == Role::Leader {
            let command = Command::progress(report).map_err(|e| e.to_string())?;
            return self.consensus.propose(command).await.map_err(|e| e.to_string());
        }
        let leader = status.leader.ok_or("no leader is known")?;
        let mut client = self.network.client(leader, Channel::Control);
        forward_progress(&mut client, report, PROGRESS_TIMEOUT).await.map_err(|e| e.to_string())
    }

    async fn report_all(&self, output: &OutputName, last: TaskNumber, places: &[Place]) -> Result<(), String> {
        for report in reports(output, last, places) {
            self.report(report).await?;
        }
        Ok(())
    }
}

/// What goes into the log: one report, or several where there are many places.
fn reports(output: &OutputName, last: TaskNumber, places: &[Place]) -> Vec<proto::OutputProgress> {
    let output = output.as_str();
    let empty = |task_number| proto::OutputProgress { output: output.to_owned(), task_number, places: Vec::new() };
    let (mut reports, mut bytes) = (vec![empty(last.0)], 0);
    for place in places {
        let size = place.locator.len() + place.commitment.len();
        let full = |report: &&mut proto::OutputProgress| {
            report.places.len() < PLACES_MAX && (report.places.is_empty() || bytes + size <= PROGRESS_BYTES_MAX)
        };
        match reports.last_mut().filter(full) {
            Some(report) => report.places.push(place.to_proto()),
            None => {
                // Those before it go only as far as their places.
                if let Some(before) = reports.last_mut() {
                    before.task_number = place.first.0.saturating_sub(1).min(last.0);
                }
                bytes = 0;
                reports.push(proto::OutputProgress { places: vec![place.to_proto()], ..empty(last.0) });
            }
        }
        bytes += size;
    }
    reports
}

#[async_trait]
impl ProgressSink for LogSink {
    async fn record(&self, output: &OutputName, last: TaskNumber, places: &[Place]) -> bool {
        match tokio::time::timeout(PROGRESS_TIMEOUT, self.report_all(output, last, places)).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => tracing::debug!(%output, %error, "progress was not recorded; it will be told again"),
            Err(_) => tracing::debug!(%output, "progress was not recorded in time; it will be told again"),
        }
        false
    }

    fn keeps_places(&self) -> bool {
        true
    }

    async fn recorded(&self, output: &OutputName) -> Option<TaskNumber> {
        self.tracker.progress().get(output).copied()
    }
}

/// An output of this operator's own: its store knows how far it is, and nobody else needs to.
pub(crate) struct NoSink;

#[async_trait]
impl ProgressSink for NoSink {
    async fn record(&self, _output: &OutputName, _last: TaskNumber, _places: &[Place]) -> bool {
        true
    }

    async fn recorded(&self, _output: &OutputName) -> Option<TaskNumber> {
        None
    }
}

/// The cursor of an output of this operator's own whose store keeps none: a small file in the node's home.
pub(crate) struct CursorFile {
    path: PathBuf,
    blocking: Blocking,
}

impl CursorFile {
    /// The cursor of the output with this name, in the epoch `epoch`: a later one begins anew.
    pub fn new(home: &Path, output: &OutputName, epoch: lockstep_types::Epoch, blocking: Blocking) -> Self {
        Self { path: home.join(format!("output-{output}-{epoch}.cursor")), blocking }
    }
}

fn read_cursor(path: &Path) -> Option<TaskNumber> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(TaskNumber(text.trim().parse().ok()?))
}

fn write_cursor(path: &Path, last: TaskNumber) -> std::io::Result<()> {
    let next = path.with_extension("next");
    std::fs::write(&next, format!("{last}\n"))?;
    std::fs::File::open(&next)?.sync_all()?;
    std::fs::rename(&next, path)
}

#[async_trait]
impl ProgressSink for CursorFile {
    async fn record(&self, output: &OutputName, last: TaskNumber, _places: &[Place]) -> bool {
        let path = self.path.clone();
        let written = self.blocking.run(move || write_cursor(&path, last)).await;
        // Lost, the tasks since come once more.
        if let Err(error) = written.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
            tracing::warn!(%output, %error, "the output's cursor cannot be written; after a restart tasks will come again");
        }
        // Nobody is told where tasks are, so there is nothing to keep.
        true
    }

    async fn recorded(&self, _output: &OutputName) -> Option<TaskNumber> {
        let path = self.path.clone();
        self.blocking.run(move || read_cursor(&path)).await.ok()?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_places_are_told_in_several_reports_and_none_is_ahead_of_its_places() {
        let place = |n: u64| Place {
            first: TaskNumber(n),
            last: TaskNumber(n),
            locator: "x".repeat(250),
            commitment: vec![1; if n.is_multiple_of(2) { 0 } else { 3_000 }],
            height: None,
            stage: lockstep_types::Stage::Accepted,
        };
        let name: OutputName = "da".parse().unwrap();
        assert_eq!(reports(&name, TaskNumber(9), &[]).len(), 1);
        let places: Vec<Place> = (1..=1_000).map(place).collect();
        let reports = reports(&name, TaskNumber(1_000), &places);
        assert!(reports.len() > 4);
        let mut next = 1;
        for report in &reports {
            assert!(report.places.len() <= PLACES_MAX);
            let bytes: usize = report.places.iter().map(|p| p.locator.len() + p.commitment.len()).sum();
            assert!(bytes <= PROGRESS_BYTES_MAX);
            for place in &report.places {
                assert_eq!(place.first_task, next);
                next += 1;
            }
            assert_eq!(report.task_number, next - 1);
            Command::progress(report.clone()).unwrap();
        }
        assert_eq!(next, 1_001);
    }

    #[tokio::test]
    async fn a_cursor_is_there_after_a_restart_and_another_epoch_begins_anew() {
        let home = tempfile::tempdir().unwrap();
        let name: OutputName = "celestia".parse().unwrap();
        let cursor = |epoch| CursorFile::new(home.path(), &name, lockstep_types::Epoch(epoch), Blocking::Inline);
        assert_eq!(cursor(0).recorded(&name).await, None);
        for last in [5, 1_000_000] {
            cursor(0).record(&name, TaskNumber(last), &[]).await;
            assert_eq!(cursor(0).recorded(&name).await, Some(TaskNumber(last)));
        }
        assert_eq!(cursor(1).recorded(&name).await, None);
    }
}
