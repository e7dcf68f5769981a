//! What a backup consists of, and looking at the backups in a place.

use std::collections::BTreeMap;

use lockstep_consensus::copy::is_data_file;
use lockstep_types::{
    BatchHash, Digest, Epoch, EpochRecord, Epochs, Genesis, Height, NetworkId, Sequence, TaskNumber, TimeMs,
};
use serde::{Deserialize, Serialize};

use super::place::{BackupPlace, PlaceError, check_file};
use super::{BACKUP_VERSION, FILES_MAX};
use crate::error::NodeError;

/// A file of the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupFile {
    /// Its name in the state's directory.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// keccak256 of its content; its name in the backup is this, in hex without `0x`.
    pub sum: Digest,
}

impl BackupFile {
    /// Its name in a place for backups.
    pub fn key(&self) -> String {
        self.sum.to_string().trim_start_matches("0x").to_owned()
    }
}

/// `backup-EPOCH-HEIGHT.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupManifest {
    /// [`BACKUP_VERSION`] when it was made.
    pub version: u32,
    /// The network.
    pub network: NetworkId,
    /// The epoch that it was in.
    pub epoch: Epoch,
    /// Height of the newest batch in it.
    pub height: Height,
    /// Hash of that batch.
    pub hash: BatchHash,
    /// That batch's time.
    pub time_ms: TimeMs,
    /// Sequence of the next message.
    pub next_sequence: Sequence,
    /// Number of the next task.
    pub next_task_number: TaskNumber,
    /// Number of the oldest task in it; 0 where it does not say: in version 1.
    #[serde(default)]
    pub oldest_task_number: TaskNumber,
    /// Height of the newest certificate in it.
    pub final_height: Height,
    /// When it was made, by the node's clock.
    pub made_ms: TimeMs,
    /// The network's genesis.
    pub genesis: Genesis,
    /// The network's epochs after the first.
    pub epochs: Vec<EpochRecord>,
    /// The state's files.
    pub files: Vec<BackupFile>,
}

impl BackupManifest {
    /// Its file's name.
    pub fn name(&self) -> String {
        format!("backup-{}-{}.json", self.epoch, self.height)
    }

    /// The network's epochs after the first.
    ///
    /// # Errors
    /// If they do not follow from each other.
    pub fn epochs(&self) -> Result<Epochs, NodeError> {
        Ok(Epochs::new(self.epochs.clone(), &self.genesis)?)
    }

    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Reads one and checks that it fits together. Its files are not looked at.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(place: &dyn BackupPlace, name: &str) -> Result<Self, NodeError> {
        Self::parse(&place.read_manifest(name)?, &format_args!("{place}/{name}"))
    }

    /// The same for its text; `at` says where it was.
    pub(crate) fn parse(text: &str, at: &dyn std::fmt::Display) -> Result<Self, NodeError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let bad = |reason: &dyn std::fmt::Display| NodeError::Place(PlaceError::damaged(at, reason));
        let Version { version } = serde_json::from_str(text).map_err(|e| bad(&e))?;
        if version > BACKUP_VERSION {
            let reason = format!("has version {version}, this program knows {BACKUP_VERSION}; upgrade it");
            return Err(bad(&reason));
        }
        let manifest: Self = serde_json::from_str(text).map_err(|e| bad(&e))?;
        let genesis = Genesis::parse(&manifest.genesis.to_text()?)?;
        if genesis.id()? != manifest.network || manifest.epochs()?.current() != manifest.epoch {
            return Err(bad(&"its network or epoch is not that of its genesis and epochs"));
        }
        if manifest.files.len() > FILES_MAX || manifest.files.iter().any(|file| !is_data_file(&file.name)) {
            return Err(bad(&"it names files that are not of a state"));
        }
        Ok(manifest)
    }
}

/// The backups in a place, oldest first.
///
/// # Errors
/// If the place, or one of them, cannot be read.
pub fn backups_in(place: &dyn BackupPlace) -> Result<Vec<BackupManifest>, NodeError> {
    let names = place.manifests()?;
    let mut found =
        names.iter().map(|name| BackupManifest::read(place, name)).collect::<Result<Vec<_>, NodeError>>()?;
    found.sort_by_key(|manifest| (manifest.epoch, manifest.height));
    Ok(found)
}

/// What was found in a place for backups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckReport {
    /// Files that were read, and their bytes.
    pub files: u64,
    /// See `files`.
    pub bytes: u64,
    /// What is wrong, a sentence each.
    pub faults: Vec<String>,
}

/// Reads every file of every backup and compares it with its checksum. `on_file` is told bytes done and in all.
///
/// # Errors
/// If a manifest cannot be read, or the place no longer answers.
pub fn check_backups(place: &dyn BackupPlace, mut on_file: impl FnMut(u64, u64)) -> Result<CheckReport, NodeError> {
    let mut files: BTreeMap<String, (BackupFile, Vec<String>)> = BTreeMap::new();
    for manifest in backups_in(place)? {
        for file in &manifest.files {
            let known = files.entry(file.sum.to_string()).or_insert_with(|| (file.clone(), Vec::new()));
            known.1.push(manifest.name());
        }
    }
    let total = files.values().map(|(file, _)| file.bytes).sum();
    let mut report = CheckReport::default();
    for (file, used_by) in files.values() {
        match check_file(place, file) {
            Ok(()) => {}
            Err(fault @ (PlaceError::Missing(_) | PlaceError::Damaged { .. })) => {
                report.faults.push(format!("{fault}; it is part of {}", used_by.join(", ")));
            }
            Err(error) => return Err(error.into()),
        }
        (report.files, report.bytes) = (report.files + 1, report.bytes + file.bytes);
        on_file(report.bytes, total);
    }
    Ok(report)
}
