//! Nodes that have much to catch up on when they are needed: after a restart, and when the lead is handed to them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_testkit::audit::audit;
use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::disk::library;
use lockstep_testkit::history::{Content, History};
use lockstep_testkit::http::request;
use lockstep_testkit::load::{Load, LoadOptions};
use lockstep_types::ProjectId;
use serde_json::json;

use crate::snapshots::{keep_logs_short, last_index, wait_purged};
use crate::steps::{TAKEOVER_MAX, first_answer_after, more_messages};
use crate::{SOON, binary};

/// Log entries that a node misses: more than the others keep, so that it needs a copy of the state.
const ENTRIES_AWAY: u64 = 600;
/// How much longer a sync of the followers takes, so that they are behind the leader's log all the time.
const SYNC_DELAY: Duration = Duration::from_millis(400);
/// Messages acknowledged before and after a hand-over.
const MESSAGES: usize = 200;

async fn is_ready(cluster: &Cluster, node: usize) -> bool {
    match request(cluster.node(node).address(), "GET", "/readyz", b"").await {
        Ok(answer) => answer.status == 200,
        Err(_) => false,
    }
}

/// A node that says it is ready takes a message, or has stopped to say so meanwhile.
async fn takes_messages_if_ready(cluster: &Cluster, node: usize, number: usize, history: &History) {
    if !is_ready(cluster, node).await {
        return;
    }
    let asked_at = Instant::now();
    let data = format!("probe {number} of {node}");
    let message = json!({"projectID": 7, "projectVersion": "0.1", "data": data}).to_string();
    let project_version = "0.1".to_owned();
    let probe = Content { device: None, project_id: ProjectId(7), project_version, data: data.into_bytes() };
    // Whatever becomes of it: the history has to know that somebody submitted it.
    history.fail(history.invoke(probe), "a probe".to_owned());
    let mut last = String::new();
    while asked_at.elapsed() < SOON {
        match request(cluster.node(node).address(), "POST", "/message", message.as_bytes()).await {
            Ok(answer) if answer.status == 200 => return,
            Ok(answer) => last = answer.text(),
            Err(error) => last = error.to_string(),
        }
        if !is_ready(cluster, node).await {
            return;
        }
    }
    panic!("node {} says that it is ready, and took nothing for {SOON:?}: {last}", node + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_that_restart_under_load_with_a_backlog_take_messages_again() {
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(3));
    for index in cluster.members() {
        keep_logs_short(cluster.node(index).process.home());
    }
    cluster.start_all().await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, MESSAGES).await;
    let leader = cluster.wait_leader(SOON).await;
    let (long, short) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(long);
    wait_purged(&cluster, leader, last_index(&cluster, leader).await + ENTRIES_AWAY).await;
    // One has to fetch a copy of the state, the other to apply what it had not written yet; before both are back nothing is
    // acknowledged, and devices go on.
    cluster.kill(short);
    let began = Instant::now();
    cluster.start_node(long);
    cluster.start_node(short);
    for number in 0..5 {
        for node in cluster.members() {
            takes_messages_if_ready(&cluster, node, number, &history).await;
        }
    }
    let answered = first_answer_after(&history, began).await;
    for node in cluster.members() {
        cluster.wait_ready(node, SOON).await;
        takes_messages_if_ready(&cluster, node, 5, &history).await;
    }
    more_messages(&history, MESSAGES).await;
    load.stop().await;
    println!("acknowledged again after {:?}; {:?}", answered - began, audit(&mut cluster, &history).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_to_a_voter_that_lags_leaves_the_network_with_a_leader() {
    if library().is_none() {
        println!("the library is for Linux with glibc");
        return;
    }
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3).with_disks()).await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    for slow in [true, false] {
        more_messages(&history, MESSAGES).await;
        let leader = cluster.wait_leader(SOON).await;
        let others: Vec<usize> = cluster.members().into_iter().filter(|node| *node != leader).collect();
        if slow {
            others.iter().for_each(|node| cluster.disk(*node).delay_syncs(SYNC_DELAY));
            more_messages(&history, MESSAGES / 10).await;
        } else {
            // The one that has most stands still, as far as the leader knows it is there; the other has been away.
            cluster.kill(others[0]);
            more_messages(&history, MESSAGES).await;
            cluster.start_node(others[0]);
            cluster.pause(others[1]);
        }
        let asked_at = Instant::now();
        cluster.terminate(leader);
        let status = cluster.node_mut(leader).process.ended(SOON).await;
        assert!(status.success(), "{status}:\n{}", cluster.node(leader).process.log_tail());
        if !slow {
            cluster.resume(others[1]);
        }
        let gone_at = Instant::now();
        let answered = first_answer_after(&history, if slow { asked_at } else { gone_at }).await;
        let delays = if slow { 4 * SYNC_DELAY } else { Duration::ZERO };
        let silence = history.longest_silence(gone_at, answered);
        println!("slow {slow}: nothing was acknowledged for {silence:?}");
        assert!(silence < TAKEOVER_MAX + delays, "nothing was acknowledged for {silence:?}");
        others.iter().for_each(|node| cluster.disk(*node).heal());
        cluster.start_node(leader);
        cluster.wait_ready(leader, SOON).await;
    }
    load.stop().await;
    println!("{:?}", audit(&mut cluster, &history).await);
}
