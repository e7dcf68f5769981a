//! `lockstep backup` and `lockstep restore`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use lockstep_node::Home;
use lockstep_node::admin::{AdminAnswer, AdminRequest, administer};
use lockstep_node::backup::{self, BackupLocation, BackupProgress, RestoreOptions, Restored};
use lockstep_types::Height;

use crate::args::{Backup, Restore};
use crate::init;
use crate::shown::Shown;

/// How often a running backup is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

pub async fn run(options: Backup) -> anyhow::Result<()> {
    if let Some(place) = options.list {
        return list(place).await;
    }
    if let Some(place) = options.check {
        return check(place).await;
    }
    let (Some(home), Some(to)) = (options.home, options.to) else { bail!("give --home and --to") };
    // The node has another working directory.
    let to = to.absolute().context("this directory is gone")?;
    let home = Home::at(home);
    administer(&home, &AdminRequest::Backup(to)).await?;
    let mut shown = Shown::default();
    loop {
        let AdminAnswer::Backup(Some(progress)) = administer(&home, &AdminRequest::BackupProgress).await? else {
            bail!("the node was restarted meanwhile: the backup is not complete; begin it again");
        };
        shown.show(progress.bytes_done, progress.bytes_total);
        if progress.ended {
            shown.end();
            return tell(&progress);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn tell(progress: &BackupProgress) -> anyhow::Result<()> {
    match (&progress.made, &progress.error) {
        (Some(made), None) => {
            println!(
                "{}: height {}, {} bytes, of which {} in {} files were copied",
                made.manifest, made.height, progress.bytes_total, progress.bytes_copied, progress.files_copied
            );
            Ok(())
        }
        (_, error) => bail!("no backup was made: {}", error.as_deref().unwrap_or("its task is gone")),
    }
}

async fn list(location: BackupLocation) -> anyhow::Result<()> {
    let read = move || backup::backups_in(&*backup::open_place(&location)?);
    for manifest in tokio::task::spawn_blocking(read).await?? {
        println!(
            "{}  network {}, epoch {}, height {}, sequence {}, final to {}, {} bytes, made at {} ms",
            manifest.name(),
            manifest.genesis.network,
            manifest.epoch,
            manifest.height,
            manifest.next_sequence.0.saturating_sub(1),
            manifest.final_height,
            manifest.bytes(),
            manifest.made_ms
        );
    }
    Ok(())
}

async fn check(location: BackupLocation) -> anyhow::Result<()> {
    let read = move || {
        let mut shown = Shown::default();
        let place = backup::open_place(&location)?;
        let report = backup::check_backups(&*place, |done, total| shown.show(done, total));
        shown.end();
        report
    };
    let report = tokio::task::spawn_blocking(read).await??;
    for fault in &report.faults {
        println!("{fault}");
    }
    if !report.faults.is_empty() {
        bail!("{} of {} files are damaged or missing", report.faults.len(), report.files);
    }
    println!("{} files, {} bytes: all as they were written", report.files, report.bytes);
    Ok(())
}

pub async fn restore(options: Restore) -> anyhow::Result<()> {
    let (config, member, task_key) = init::node(&options.node)?;
    let home = Home::at(options.home);
    let (from, height, target) = (options.from, options.height.map(Height), home.clone());
    let shares_key = task_key.is_some();
    let make = move || {
        let place = backup::open_place(&from)?;
        let manifest = backup::pick(&*place, height)?;
        eprintln!("restoring {} ({} bytes)", manifest.name(), manifest.bytes());
        let mut shown = Shown::default();
        let options = RestoreOptions { config, member, task_key };
        let restored = backup::restore(&*place, &manifest, &target, options, |done, total| shown.show(done, total));
        shown.end();
        restored
    };
    explain(&home, &tokio::task::spawn_blocking(make).await??, shares_key);
    Ok(())
}

fn explain(home: &Home, restored: &Restored, shares_key: bool) {
    let (record, from) = (&restored.record, &restored.from);
    let node = record.members.first().map_or(0, |member| member.node.0);
    println!("network  {} (epoch {})", from.genesis.network, record.epoch);
    println!("head     height {}, sequence {}, {}", from.height, from.next_sequence.0.saturating_sub(1), from.hash);
    println!("node     {node}, the only voter");
    println!("lost?    {}", record.possible_loss);
    println!("Nodes of epoch {} are not part of this network any more; each joins again in a new home:", from.epoch);
    println!("  lockstep init --join ADDRESS_OF_THIS_NODE --home NEW_DIR");
    println!("Outputs of epoch {} refuse this network until they are told, one by one:", from.epoch);
    println!("  lockstep outputs adopt --home {} NAME", home.path().display());
    println!("config.toml is a new one: enter the outputs and settings of the old nodes.");
    if !shares_key {
        println!("task.key is a new one: put the old one into its place if readers know that one.");
    }
    println!("start it with: lockstep start --home {}", home.path().display());
}
