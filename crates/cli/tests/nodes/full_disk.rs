//! Disks without room. As root on a small file system of their own; else by a limit on the size of files.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lockstep_testkit::audit::audit;
use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::history::History;
use lockstep_testkit::load::{Load, LoadOptions};
use lockstep_testkit::process::Limits;
use lockstep_testkit::wait::eventually;

use crate::start_errors::refuses_to_start;
use crate::{SOON, binary};

/// A node that cannot write may take this long to say so.
const NOTICED: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(copied.success(), "{} was not copied", from.display());
}

/// A small file system in memory, in the place of a directory with the same content.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where this process may not mount.
    fn over(directory: &Path, bytes: u64) -> Option<Self> {
        let kept = tempfile::tempdir().unwrap();
        copy(directory, kept.path());
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            return None;
        }
        let disk = Self(directory.to_owned());
        copy(kept.path(), directory);
        Some(disk)
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.filler()).unwrap();
        // Down to single bytes: the first write that fails may have been a large one.
        for size in [MIB as usize, 4096, 1] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process may still have files open there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_node_on_a_full_disk_does_not_start_until_there_is_room() {
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(1));
    let home = cluster.node(0).process.home().to_owned();
    if let Some(disk) = SmallDisk::over(&home.join("store"), 64 * MIB) {
        disk.fill();
        refuses_to_start(&home, Limits::default(), &["No space left"]);
        refuses_to_start(&home, Limits::default(), &["No space left"]);
        disk.free();
        cluster.start_all().await;
        cluster.kill(0);
        drop(disk);
    } else {
        println!("no right to mount: a limit on the size of files instead");
        refuses_to_start(&home, Limits { file_bytes_max: Some(0) }, &["File too large"]);
        cluster.start_all().await;
    }
}

#[tokio::test]
async fn a_node_that_may_not_write_its_files_does_not_start() {
    // None at all; the first small ones, but not the stores' logs.
    for file_bytes_max in [0, 100, 4096] {
        let cluster = Cluster::prepare(binary(), ClusterOptions::of(1));
        let home = cluster.node(0).process.home().to_owned();
        refuses_to_start(&home, Limits { file_bytes_max: Some(file_bytes_max) }, &["File too large"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up_under_load_costs_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(1));
    let home = cluster.node(0).process.home().to_owned();
    let Some(disk) = SmallDisk::over(&home.join("store"), 64 * MIB) else {
        println!("no right to mount: only the start on a full disk is tested here");
        return;
    };
    cluster.start_all().await;
    let history = Arc::new(History::new());
    let options = LoadOptions { deadline: Duration::from_secs(1), ..LoadOptions::of(cluster.urls()) };
    let load = Load::start(&options, &history);
    eventually("messages are acknowledged", SOON, async || match history.acknowledged() {
        100.. => Ok(()),
        few => Err(format!("{few}")),
    })
    .await;
    disk.fill();
    // It may have room in files that it has already; then nothing is acknowledged any more, or the process ends.
    eventually("the node notices", NOTICED, async || match history.failures().len() {
        64.. => Ok(()),
        few => Err(format!("{few} submissions failed, {} did not", history.acknowledged())),
    })
    .await;
    load.stop().await;
    println!("acknowledged: {}, one of the failures: {:?}", history.acknowledged(), history.failures().last());
    let status = cluster.node_mut(0).process.ended(NOTICED).await;
    assert_eq!(status.code(), Some(1), "{status}");
    let log = cluster.node(0).process.log();
    assert!(log.contains("No space left"), "the operator is told why:\n{log}");
    println!("it has ended: {}", log.lines().last().unwrap_or_default());
    cluster.node(0).process.assert_no_panic();
    cluster.kill(0);
    disk.free();
    cluster.start_all().await;
    println!("{:?}", audit(&mut cluster, &history).await);
    drop(disk);
}
