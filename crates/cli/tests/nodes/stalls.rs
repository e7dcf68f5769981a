//! Disks that do not answer for a while: what a node says meanwhile, and what becomes of a message whose sender gets no
//! answer. For real: the nodes run on a library that lets their syncs and reads wait (`testkit::disk`).

use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_testkit::audit::audit;
use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::disk::library;
use lockstep_testkit::history::History;
use lockstep_testkit::http::{Answer, request};
use lockstep_testkit::load::{Load, LoadOptions};
use lockstep_testkit::wait::{always, eventually};
use tokio::time::timeout;

use crate::steps::more_messages;
use crate::{SOON, binary};

/// A sync takes this long: two retry windows.
const SYNC: Duration = Duration::from_secs(20);
/// Every read and every sync takes this long.
const STALL: Duration = Duration::from_secs(10);
/// `/livez` answers within this time, whatever the disk does.
const LIVE_MAX: Duration = Duration::from_secs(1);
/// `/readyz` says within this time that the disk does not answer.
const NOTICED: Duration = Duration::from_secs(3);

/// `lockstep submit`, with half a minute more than the disk takes.
fn submit(url: &str, key: &Path, data: &str) -> tokio::task::JoinHandle<Output> {
    let mut command = std::process::Command::new(binary());
    command.args(["submit", "--url", url, "--timeout", "60", "--new-key", "--key-file"]).arg(key);
    command.args(["--project", "7", "--data", data]);
    tokio::task::spawn_blocking(move || command.output().unwrap())
}

async fn get(cluster: &Cluster, node: usize, path: &str) -> Option<Answer> {
    timeout(LIVE_MAX, request(cluster.node(node).address(), "GET", path, b"")).await.ok()?.ok()
}

/// Three nodes of which one is down; the places of the leader and of the other one.
async fn two_of_three() -> (Cluster, usize, usize) {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3).with_disks()).await;
    let leader = cluster.wait_leader(SOON).await;
    let (gone, follower) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(gone);
    (cluster, leader, follower)
}

/// A message to a node, while the disk of one that is needed lets a sync wait, has one place.
async fn one_place(mut cluster: Cluster, stalled: usize, asked: usize) {
    let key = cluster.directory().join("device.key");
    cluster.disk(stalled).delay_syncs(SYNC);
    let begun = Instant::now();
    let submitting = submit(&cluster.node(asked).url(), &key, "{\"n\":1}");
    eventually("the node says that its disk does not answer", SOON, async || {
        match get(&cluster, stalled, "/readyz").await {
            Some(answer) if answer.status == 503 && answer.text().contains("disk") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // What begins now is quick again; what has begun takes its time.
    cluster.disk(stalled).heal();
    let output = submitting.await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(begun.elapsed() >= SYNC / 2, "nothing waited for the disk: {said}");
    cluster.start_all().await;
    let head = cluster.wait_head_equal(SOON).await;
    assert_eq!(head.sequence.0, 1, "one message has {} places: {said}", head.sequence);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_to_a_follower_whose_sync_waits_has_one_place() {
    if library().is_none() {
        println!("the library is for Linux with glibc");
        return;
    }
    let (cluster, _, follower) = two_of_three().await;
    one_place(cluster, follower, follower).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_has_one_place_where_the_leaders_sync_waits() {
    if library().is_none() {
        println!("the library is for Linux with glibc");
        return;
    }
    let (cluster, leader, follower) = two_of_three().await;
    one_place(cluster, leader, follower).await;
}

/// Reads that wait are many, and take nobody's place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_answers_nothing_says_so_and_the_others_go_on() {
    if library().is_none() {
        println!("the library is for Linux with glibc");
        return;
    }
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3).with_disks()).await;
    let history = Arc::new(History::new());
    let leader = cluster.wait_leader(SOON).await;
    let stalled = (leader + 1) % 3;
    let others: Vec<usize> = (0..3).filter(|node| *node != stalled).collect();
    let load = Load::start(&LoadOptions::of(others.iter().map(|node| cluster.node(*node).url()).collect()), &history);
    more_messages(&history, 300).await;
    // After a restart what it has is on its disk, and not in its memory.
    cluster.restart(stalled, SOON).await;
    cluster.wait_ready(stalled, SOON).await;
    let disk = cluster.disk(stalled);
    disk.delay_syncs(STALL);
    disk.delay_reads(STALL);
    let begun = Instant::now();
    let address = cluster.node(stalled).address();
    let reads: Vec<_> = (1..200)
        .map(|height| {
            let path = format!("/api/batches/{height}");
            tokio::spawn(async move { timeout(STALL / 2, request(address, "GET", &path, b"")).await.is_err() })
        })
        .collect();
    eventually("it says so", NOTICED, async || match get(&cluster, stalled, "/readyz").await {
        Some(answer) if answer.status == 503 => {
            println!("{}", answer.text());
            Ok(())
        }
        other => Err(format!("{other:?}")),
    })
    .await;
    let before = history.acknowledged();
    let rest = STALL.saturating_sub(begun.elapsed() + Duration::from_secs(1));
    always("it lives, and is not ready", rest, async || {
        let (live, ready) = tokio::join!(get(&cluster, stalled, "/livez"), get(&cluster, stalled, "/readyz"));
        match (live, ready) {
            (Some(live), Some(ready)) if live.status == 200 && ready.status == 503 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let meanwhile = history.acknowledged() - before;
    assert!(meanwhile > 100, "the others ordered {meanwhile} messages in {rest:?}");
    let mut waited = 0;
    for read in reads {
        waited += usize::from(read.await.unwrap());
    }
    assert!(waited > 0, "no read waited for the disk");
    cluster.disk(stalled).heal();
    cluster.wait_ready(stalled, STALL * 4).await;
    load.stop().await;
    println!("{waited} reads waited, {meanwhile} messages meanwhile; {:?}", audit(&mut cluster, &history).await);
}
