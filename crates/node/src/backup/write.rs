//! Making a backup of a running node's state, on a thread of its own that gives way to everything else.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_consensus::StateStore;
use lockstep_consensus::copy::{head_of_copy, is_data_file, sum_of};
use lockstep_store::home::StoreHome;
use lockstep_types::{Digest, Epochs, Genesis, Hash32, Height};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::location::BackupLocation;
use super::manifest::{BackupFile, BackupManifest};
use super::place::{BackupPlace, OpenPlace, PlaceError};
use super::{BACKUP_VERSION, failed};
use crate::clock::now_ms;
use crate::endings::Endings;
use crate::error::NodeError;
use crate::jobs::{Job, JobError, Jobs, Progress};

/// Name of the copy of the state that is being backed up, in `store/snapshots`. One that a crash left is removed at start.
const COPY: &str = "backup";

/// How far a backup is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackupProgress {
    /// Bytes that are in the backup already, or were found there.
    pub bytes_done: u64,
    /// Bytes of the state.
    pub bytes_total: u64,
    /// Files that had to be copied.
    pub files_copied: u64,
    /// Bytes that had to be copied.
    pub bytes_copied: u64,
    /// Whether it has ended.
    pub ended: bool,
    /// What was made, once it is complete.
    pub made: Option<BackupMade>,
    /// Why it failed.
    pub error: Option<String>,
}

/// A complete backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupMade {
    /// Where its manifest is.
    pub manifest: String,
    /// Height of the newest batch in it.
    pub height: Height,
}

/// Checksums of table files, by name and size, within one lineage of the state.
type Sums = HashMap<(String, u64), Hash32>;

/// What backups work with.
pub(crate) struct BackupParts {
    pub state: StateStore,
    pub store: StoreHome,
    pub genesis: Genesis,
    pub epochs: Epochs,
    pub open: OpenPlace,
}

struct Maker {
    parts: BackupParts,
    sums: Mutex<(u64, Sums)>,
}

/// Backups of a running node, one at a time.
pub(crate) struct Backups {
    maker: Arc<Maker>,
    jobs: Jobs<(), BackupProgress>,
}

impl Progress for BackupProgress {
    fn has_ended(&self) -> bool {
        self.ended
    }

    fn end(&mut self, error: Option<String>) {
        self.ended = true;
        self.error = error;
    }
}

/// A directory that goes with the value.
pub(crate) struct Scratch(pub PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a copy of the state was not removed");
        }
    }
}

impl Backups {
    /// None yet. `stop`: the node ends.
    pub fn new(parts: BackupParts, endings: Endings, stop: CancellationToken) -> Self {
        Self { maker: Arc::new(Maker { parts, sums: Mutex::default() }), jobs: Jobs::new("backup", endings, stop) }
    }

    /// How far the newest backup is; `None` where there was none since the start.
    pub fn progress(&self) -> Option<BackupProgress> {
        self.jobs.progress(&())
    }

    /// Begins a backup.
    pub fn start(&self, to: &BackupLocation) -> Result<(), String> {
        if !to.is_absolute() {
            return Err("the directory has to be an absolute path".into());
        }
        let (maker, to) = (self.maker.clone(), to.clone());
        let work = move |job: &Job<BackupProgress>| {
            let made = maker.write(&to, job);
            match &made {
                Ok(made) => tracing::info!(manifest = made.manifest, "a backup was made"),
                Err(error) => tracing::error!(%error, "a backup failed"),
            }
            made.map(|made| job.note(|progress| progress.made = Some(made)))
        };
        let started = self.jobs.start((), "a backup".to_owned(), BackupProgress::default(), work);
        started.map_err(|error| match error {
            JobError::UnderWay => "a backup is being made already: wait for it".to_owned(),
            JobError::Thread(error) => error.to_string(),
        })
    }
}

impl Maker {
    fn write(&self, to: &BackupLocation, job: &Job<BackupProgress>) -> Result<BackupMade, NodeError> {
        let parts = &self.parts;
        let place = (parts.open)(to)?;
        let copy = Scratch(parts.store.snapshots_path().join(COPY));
        if copy.0.exists() {
            fs::remove_dir_all(&copy.0).map_err(failed(&copy.0))?;
        }
        fs::create_dir_all(parts.store.snapshots_path()).map_err(failed(&copy.0))?;
        let lineage = parts.state.copy_to(&copy.0)?;
        let head = head_of_copy(&copy.0, &parts.genesis)?;
        let mut manifest = BackupManifest {
            version: BACKUP_VERSION,
            network: parts.genesis.id()?,
            epoch: parts.epochs.current(),
            height: head.height,
            hash: head.hash,
            time_ms: head.time_ms,
            next_sequence: head.next_sequence,
            next_task_number: head.next_task_number,
            oldest_task_number: head.horizon.task_number.max(parts.genesis.params.first_task_number),
            final_height: head.final_height,
            made_ms: now_ms(),
            genesis: parts.genesis.clone(),
            epochs: parts.epochs.records().to_vec(),
            files: Vec::new(),
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(&copy.0).map_err(failed(&copy.0))? {
            let entry = entry.map_err(failed(&copy.0))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_data_file(&name) {
                found.push((name, entry.metadata().map_err(failed(&copy.0))?.len()));
            }
        }
        found.sort();
        job.note(|progress| progress.bytes_total = found.iter().map(|(_, bytes)| bytes).sum());
        self.forget_sums_but_of(lineage, &found);
        for (name, bytes) in found {
            manifest.files.push(self.write_file(&copy.0, (name, bytes), &*place, job)?);
            job.note(|progress| progress.bytes_done += bytes);
        }
        let path = format!("{place}/{}", manifest.name());
        let text = serde_json::to_string_pretty(&manifest).map_err(|e| PlaceError::damaged(&path, e))? + "\n";
        place.put_manifest(&manifest.name(), &text)?;
        Ok(BackupMade { manifest: path, height: manifest.height })
    }

    fn forget_sums_but_of(&self, lineage: u64, found: &[(String, u64)]) {
        let mut sums = self.sums.lock();
        if sums.0 != lineage {
            *sums = (lineage, Sums::new());
        }
        sums.1.retain(|file, _| found.contains(file));
    }

    fn write_file(
        &self,
        copy: &Path,
        key: (String, u64),
        place: &dyn BackupPlace,
        job: &Job<BackupProgress>,
    ) -> Result<BackupFile, NodeError> {
        let from = copy.join(&key.0);
        let known = self.sums.lock().1.get(&key).copied();
        let sum = known.map_or_else(|| sum_of(&from), Ok).map_err(failed(&from))?;
        let (name, bytes) = key;
        // Only table files are written once and keep their names.
        if name.ends_with(".sst") {
            self.sums.lock().1.insert((name.clone(), bytes), sum);
        }
        let file = BackupFile { name, bytes, sum: Digest(sum) };
        if place.put_file(&file, &from)? {
            job.note(|progress| {
                progress.files_copied += 1;
                progress.bytes_copied += bytes;
            });
        }
        Ok(file)
    }
}
