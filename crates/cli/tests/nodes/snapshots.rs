//! A node that was away for so long that the others no longer have the log that it needs.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_testkit::audit::audit;
use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::history::History;
use lockstep_testkit::http;
use lockstep_testkit::load::{Load, LoadOptions};
use lockstep_testkit::wait::eventually;

use crate::{SOON, binary};

const LOG_BYTES_MAX: u64 = 256 << 10;
const LOG_ENTRIES_MAX: u64 = 300;
const LOG_KEPT_ENTRIES: u64 = 50;
/// How far the others' logs go on beyond what the node needs, before it comes back.
const ENTRIES_AWAY: u64 = 600;
/// RocksDB's own files beside the entries: what is written ahead and what is not yet tidied up.
const LOG_DISK_BYTES_MAX: u64 = 24 << 20;
const AWAY_MAX: Duration = Duration::from_secs(120);

/// What an operator writes into config.toml.
pub fn keep_logs_short(home: &Path) {
    let path = home.join("config.toml");
    let text = fs::read_to_string(&path).unwrap();
    let settings = [
        ("log_bytes_max", LOG_BYTES_MAX),
        ("log_entries_max", LOG_ENTRIES_MAX),
        ("log_kept_entries", LOG_KEPT_ENTRIES),
    ];
    let line = |line: &str| {
        let setting = settings.iter().find(|(name, _)| line.starts_with(name));
        setting.map_or_else(|| line.to_owned(), |(name, value)| format!("{name} = {value}")) + "\n"
    };
    let changed: String = text.lines().map(line).collect();
    assert_ne!(text, changed, "init writes all settings of raft");
    fs::write(path, changed).unwrap();
}

async fn metric(cluster: &Cluster, node: usize, name: &str) -> Result<u64, String> {
    let answer =
        http::request(cluster.node(node).address(), "GET", "/metrics", b"").await.map_err(|e| e.to_string())?;
    let text = answer.text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    value.map(|value| value as u64).ok_or_else(|| format!("no {name}"))
}

pub async fn last_index(cluster: &Cluster, node: usize) -> u64 {
    let purged = metric(cluster, node, "lockstep_log_purged_index ").await.unwrap();
    purged + metric(cluster, node, "lockstep_log_entries ").await.unwrap()
}

pub async fn wait_purged(cluster: &Cluster, node: usize, index: u64) {
    eventually("the log is purged", AWAY_MAX, async || {
        match metric(cluster, node, "lockstep_log_purged_index ").await? {
            purged if purged >= index => Ok(()),
            purged => Err(format!("up to {purged} of {index}")),
        }
    })
    .await;
}

fn bytes_in(path: &Path) -> u64 {
    fs::read_dir(path).unwrap().flatten().filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_for_long_catches_up_by_a_copy_of_the_state_and_logs_stay_short() {
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(3));
    for index in 0..cluster.len() {
        keep_logs_short(cluster.node(index).process.home());
    }
    cluster.start_all().await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    // First a follower, then the leader.
    for round in 0..2 {
        let leader = cluster.wait_leader(SOON).await;
        let away = (leader + 1 + 2 * round) % cluster.len();
        let needed = last_index(&cluster, away).await;
        cluster.kill(away);
        for other in (0..cluster.len()).filter(|other| *other != away) {
            wait_purged(&cluster, other, needed + ENTRIES_AWAY).await;
        }
        let back = Instant::now();
        cluster.start_node(away);
        eventually("it has got the state", SOON, async || {
            let log = cluster.node(away).process.log();
            if log.contains("the state was replaced by the copy") { Ok(()) } else { Err("not yet".into()) }
        })
        .await;
        println!("it has the state {:?} after its start", back.elapsed());
        cluster.wait_ready(away, SOON).await;
        // As a killed node comes back by itself, so it does after this.
        cluster.kill(away);
        cluster.start_node(away);
        cluster.wait_ready(away, SOON).await;
    }
    let report = load.stop().await;
    for index in 0..cluster.len() {
        let store = cluster.node(index).process.home().join("store");
        let entries = eventually("the log is short", 2 * SOON, async || {
            // What a member that fetches the state needs is kept for up to twenty seconds longer.
            match metric(&cluster, index, "lockstep_log_entries ").await? {
                entries if entries <= 2 * LOG_ENTRIES_MAX => Ok(entries),
                entries => Err(format!("{entries} entries")),
            }
        })
        .await;
        let disk = bytes_in(&store.join("log"));
        println!(
            "node {index}: {entries} entries, {disk} bytes of log on disk, {:?}",
            fs::read_dir(&store).unwrap().count()
        );
        assert!(disk <= LOG_DISK_BYTES_MAX, "{disk} bytes of log");
        let copies = fs::read_dir(store.join("snapshots")).unwrap().count();
        assert!(copies <= 2, "{copies} copies of the state");
    }
    println!("{:?}, {report:?}", audit(&mut cluster, &history).await);
    cluster.assert_no_panics();
}
