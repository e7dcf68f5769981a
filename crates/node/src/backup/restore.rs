//! Making a new home, in a new epoch, out of a backup.

use std::fs;
use std::path::{Path, PathBuf};

use lockstep_consensus::StateStore;
use lockstep_consensus::epoch::{begin_epoch, next_epoch};
use lockstep_store::disk::{free_bytes, sync_directory};
use lockstep_store::home::StoreHome;
use lockstep_types::{BatchHash, EpochReason, EpochRecord, Height, SigningKey};

use super::failed;
use super::manifest::{BackupManifest, backups_in};
use super::place::{BackupPlace, fetch_file};
use crate::clock::now_ms;
use crate::config::Config;
use crate::error::NodeError;
use crate::features::BUILT_WITH;
use crate::home::{Home, MemberOptions, config_error};

/// What the new node is like.
#[derive(Debug)]
pub struct RestoreOptions {
    /// Its settings.
    pub config: Config,
    /// Its public part.
    pub member: MemberOptions,
    /// The key that tasks are signed with; a new one where none is given.
    pub task_key: Option<SigningKey>,
}

/// A backup that was restored.
#[derive(Debug, Clone)]
pub struct Restored {
    /// How the new epoch began.
    pub record: EpochRecord,
    /// The backup.
    pub from: BackupManifest,
}

/// The newest backup in a place, or the newest one that is not above a height.
///
/// # Errors
/// If there is none, or one cannot be read.
pub fn pick(place: &dyn BackupPlace, height: Option<Height>) -> Result<BackupManifest, NodeError> {
    let fits = |manifest: &BackupManifest| height.is_none_or(|most| manifest.height <= most);
    let found = backups_in(place)?.into_iter().rfind(fits);
    let missing = match height {
        Some(height) => format!("there is no backup of height {height} or less; see `lockstep backup --list`"),
        None => "there is no backup here".into(),
    };
    found.ok_or_else(|| NodeError::Config(format!("{place}: {missing}")))
}

/// Makes a home in a new epoch, with a new key and store and the state of the backup. Everything is made beside it and
/// put into its place last. `on_file` is told bytes done and in all.
///
/// # Errors
/// If there is something in the way, this program cannot take part in the backup's network, the backup is damaged, or the
/// disk fails. Then there is no home.
pub fn restore(
    place: &dyn BackupPlace,
    manifest: &BackupManifest,
    home: &Home,
    options: RestoreOptions,
    mut on_file: impl FnMut(u64, u64),
) -> Result<Restored, NodeError> {
    BUILT_WITH.check_network(&manifest.genesis.params)?;
    // Without a slash at its end, which would make what is beside it what is in it.
    let target = &home.path().components().collect::<PathBuf>();
    if target.exists() && fs::read_dir(target).map_err(failed(target))?.next().is_some() {
        return Err(config_error(target, "there is something here already; a backup is restored into a new home"));
    }
    let mut making = target.as_os_str().to_owned();
    making.push(".restoring");
    let making = Home::at(PathBuf::from(making));
    if making.path().exists() {
        return Err(config_error(making.path(), "an earlier restore did not end; remove this directory and try again"));
    }
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(failed(parent))?;
    let (total, free) = (manifest.bytes(), free_bytes(parent).map_err(failed(parent))?);
    if total > free {
        return Err(config_error(parent, format!("{total} bytes are needed and {free} are free")));
    }
    let result = make(place, manifest, &making, options, |done| on_file(done, total)).and_then(|record| {
        if target.exists() {
            fs::remove_dir(target).map_err(failed(target))?;
        }
        fs::rename(making.path(), target).map_err(failed(target))?;
        sync_directory(parent).map_err(failed(parent))?;
        Ok(Restored { record, from: manifest.clone() })
    });
    // It holds nothing that was not made here just now.
    result.inspect_err(|_| drop(fs::remove_dir_all(making.path())))
}

fn make(
    place: &dyn BackupPlace,
    manifest: &BackupManifest,
    home: &Home,
    options: RestoreOptions,
    mut on_file: impl FnMut(u64),
) -> Result<EpochRecord, NodeError> {
    let member = home.create(&options.config, options.member, options.task_key.as_ref())?;
    let store = StoreHome::open(&home.file("store"))?;
    store.bind(&manifest.network)?;
    let path = store.state_path()?;
    fs::create_dir_all(&path).map_err(failed(&path))?;
    let mut done = 0;
    for file in &manifest.files {
        fetch_file(place, file, &path.join(&file.name))?;
        done += file.bytes;
        on_file(done);
    }
    sync_directory(&path).map_err(failed(&path))?;
    let state = StateStore::open(&store)?;
    let head = state.head()?;
    let end = head.map_or((Height(0), BatchHash::ZERO), |head| (head.height, head.hash));
    if end != (manifest.height, manifest.hash) {
        let reason = "the state in it does not end where its manifest says";
        return Err(NodeError::Config(format!("{place}/{}: {reason}", manifest.name())));
    }
    let epochs = manifest.epochs()?;
    let mut record = next_epoch(&state, &manifest.genesis, &epochs, member, EpochReason::Restore, now_ms())?;
    record.possible_loss = format!(
        "A backup of epoch {} was restored that ends at height {} (sequence {}). Everything that the network ordered and acknowledged after that is lost, unless it is submitted again.",
        manifest.epoch,
        manifest.height,
        manifest.next_sequence.0.saturating_sub(1),
    );
    begin_epoch(&store, &state, &manifest.genesis, &record)?;
    home.install_epochs(&epochs.with(record.clone(), &manifest.genesis)?)?;
    home.write_genesis(&manifest.genesis)?;
    Ok(record)
}
