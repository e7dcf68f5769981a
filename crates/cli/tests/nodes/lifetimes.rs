//! Members that come and go, disks that are lost or put back, and rules that change, under load.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use lockstep_testkit::audit::audit;
use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::history::History;
use lockstep_testkit::load::{Load, LoadOptions};
use lockstep_testkit::wait::eventually;

use crate::steps::{agree_to_rules, more_messages};
use crate::{SOON, binary};

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => copy_all(&source, &target),
            kind if kind.is_file() => drop(fs::copy(source, target).unwrap()),
            // The administration socket.
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_node_grows_to_three_and_its_first_member_leaves_without_loss() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(1)).await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, 200).await;
    for _ in 0..2 {
        cluster.add_node().await;
        load.set_urls(cluster.urls());
        more_messages(&history, 200).await;
    }
    let status = cluster.status(0).await.unwrap();
    assert_eq!(status.peers.len(), 2);
    // The one that made the network, and leads it.
    cluster.change(lockstep_testkit::cluster::Ballot::Remove, 0).await;
    let ended = cluster.node_mut(0).process.ended(SOON).await;
    assert_eq!(ended.code(), Some(2), "{}", cluster.node(0).process.log_tail());
    assert!(cluster.node(0).process.log().contains("was removed from the network"));
    load.set_urls(cluster.urls());
    more_messages(&history, 200).await;
    load.stop().await;
    println!("{:?}", audit(&mut cluster, &history).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_knows_newer_members_when_it_is_back() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(1)).await;
    cluster.add_node().await;
    // Its state on the disk is from before the change; the log has it.
    cluster.kill(0);
    cluster.start_node(0);
    for index in 0..cluster.len() {
        cluster.wait_ready(index, SOON).await;
    }
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, 50).await;
    load.stop().await;
    println!("{:?}", audit(&mut cluster, &history).await);
}

/// Whether the node at a place says that others refuse it, with the way out, and is not ready.
async fn is_refused(cluster: &Cluster, index: usize, word: &str) {
    eventually("the node is refused by both others, and says so", SOON, async || {
        let status = cluster.status(index).await?;
        let refused = status.complaints.iter().filter(|c| c.contains(word) && c.contains("join again")).count();
        if refused == 2 { Ok(()) } else { Err(format!("{:?}", status.complaints)) }
    })
    .await;
    let ready = lockstep_testkit::http::get(cluster.node(index).address(), "/readyz").await;
    assert_eq!(ready.status, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_whose_disk_was_put_back_from_an_older_copy_is_refused_and_nothing_is_lost() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, 100).await;
    let victim = 2;
    cluster.terminate(victim);
    cluster.node_mut(victim).process.ended(SOON).await;
    let home = cluster.node(victim).process.home().to_owned();
    let yesterday = cluster.directory().join("yesterday");
    copy_all(&home, &yesterday);
    cluster.start_node(victim);
    cluster.wait_ready(victim, SOON).await;
    // More than two seconds of load: marks travel once a second.
    more_messages(&history, 2_000).await;
    cluster.kill(victim);
    let today = cluster.directory().join("today");
    fs::rename(&home, &today).unwrap();
    copy_all(&yesterday, &home);
    cluster.start_node(victim);
    is_refused(&cluster, victim, "restored from an older copy").await;
    more_messages(&history, 100).await;
    // It also does not help anybody to lead: without the third node there is no majority.
    let other = cluster.wait_leader(SOON).await;
    cluster.kill(other);
    let before = history.acknowledged();
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert!(history.acknowledged() <= before + LoadOptions::of(vec![]).clients, "a restored disk made up a majority");
    cluster.start_node(other);
    more_messages(&history, 100).await;
    // With today's disk it is a member as before.
    cluster.kill(victim);
    fs::remove_dir_all(&home).unwrap();
    fs::rename(&today, &home).unwrap();
    cluster.start_node(victim);
    cluster.wait_ready(victim, SOON).await;
    load.stop().await;
    println!("{:?}", audit(&mut cluster, &history).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_whose_disk_was_wiped_does_not_start_and_joins_again_under_a_new_id() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, 100).await;
    let victim = 1;
    cluster.kill(victim);
    let home = cluster.node(victim).process.home().to_owned();
    // The store is gone; key, genesis and settings are there.
    fs::remove_dir_all(home.join("store")).unwrap();
    cluster.start_node(victim);
    let ended = cluster.node_mut(victim).process.ended(SOON).await;
    assert_eq!(ended.code(), Some(2));
    assert!(cluster.node(victim).process.log().contains("must join under a new id"));
    // Another store under the same key is not taken for the old one.
    let other = cluster.directory().join("other");
    lockstep_testkit::process::run(binary(), ["init", "--home", &other.display().to_string()]);
    fs::rename(other.join("store"), home.join("store")).unwrap();
    cluster.start_node(victim);
    assert_eq!(cluster.node_mut(victim).process.ended(SOON).await.code(), Some(2));
    more_messages(&history, 100).await;
    cluster.remove_node(victim).await;
    let back = cluster.add_node().await;
    assert_eq!(cluster.node(back).id.0, 4);
    load.set_urls(cluster.urls());
    more_messages(&history, 100).await;
    load.stop().await;
    println!("{:?}", audit(&mut cluster, &history).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_rules_hold_once_every_member_agrees_and_a_rolling_restart_between_them_loses_nothing() {
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(3));
    cluster.start_all().await;
    cluster.wait_ready(0, SOON).await;
    let old_version = cluster.status(0).await.unwrap().rules_version;
    // There are no newer rules yet: those that hold, under the next number.
    let new_version = old_version + 1;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    for index in 0..3 {
        more_messages(&history, 100).await;
        assert_eq!(cluster.status(index).await.unwrap().rules_version, old_version);
        agree_to_rules(&cluster, index, new_version);
        assert!(cluster.restart(index, SOON).await.success());
        cluster.wait_ready(index, SOON).await;
    }
    eventually("the new rules hold on every node", SOON, async || {
        for index in 0..3 {
            let version = cluster.status(index).await?.rules_version;
            if version != new_version {
                return Err(format!("rules {version} at place {index}"));
            }
        }
        Ok(())
    })
    .await;
    more_messages(&history, 100).await;
    load.stop().await;
    assert_eq!(history.failures(), Vec::<String>::new());
    println!("{:?}", audit(&mut cluster, &history).await);
}
