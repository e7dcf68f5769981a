//! Repeats of messages that were under way when the network lost its majority.

use std::net::SocketAddr;
use std::time::Duration;

use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::disk::library;
use lockstep_testkit::http::request;
use lockstep_testkit::load::device_key;
use lockstep_types::ProjectId;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{SOON, binary};

/// Messages, in as many requests as are of use: more than a leader proposes at once.
const REQUESTS: usize = 3;
const MESSAGES_OF_REQUEST: usize = 1_000;
/// From the messages to their repeats: less than the retry window, which is 10 s.
const REPEATED_AFTER: Duration = Duration::from_millis(9_000);
/// … and to the start of the node that makes a majority again: so much that repeats are proposed when the window is over.
const MAJORITY_AFTER: Duration = Duration::from_millis(10_200);
/// The follower's disk takes so much longer for a sync that the leader is gone by then.
const SYNC_TAKES: Duration = Duration::from_secs(3);
/// By then the follower has the leader's entries, and has not synced them.
const LEADER_DIES_AFTER: Duration = Duration::from_millis(1_500);

fn bodies() -> Vec<String> {
    let body =
        |n: usize| lockstep_identity::sign_body(&device_key(1, n % 8), ProjectId(7), "0.1", &format!("reading {n}"));
    let messages: Vec<String> = (0..REQUESTS * MESSAGES_OF_REQUEST).map(body).collect();
    messages.chunks(MESSAGES_OF_REQUEST).map(|chunk| format!("[{}]", chunk.join(","))).collect()
}

/// Sends all of them at the same time, and says what became of each message that was answered.
async fn send_all(address: SocketAddr, bodies: Vec<String>) -> Vec<Value> {
    let mut sending = JoinSet::new();
    for body in bodies {
        sending.spawn(async move { request(address, "POST", "/messages", body.as_bytes()).await });
    }
    let answers = sending.join_all().await;
    answers.into_iter().flatten().flat_map(|answer| answer.json().as_array().cloned().unwrap_or_default()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_within_its_window_has_one_place_after_an_outage() {
    if library().is_none() {
        println!("the library is for Linux with glibc");
        return;
    }
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3).with_disks()).await;
    let leader = cluster.wait_leader(SOON).await;
    let (follower, third) = ((leader + 1) % 3, (leader + 2) % 3);
    (0..3).for_each(|node| assert!(cluster.disk(node).syncs() > 0, "node {node} syncs past the library"));
    let before = cluster.wait_head_equal(SOON).await.sequence.0;
    let bodies = bodies();
    cluster.kill(third);
    cluster.disk(follower).delay_syncs(SYNC_TAKES);
    let begun = Instant::now();
    let firsts = timeout(LEADER_DIES_AFTER, send_all(cluster.node(leader).address(), bodies.clone())).await;
    assert!(firsts.is_err(), "the leader answered without a majority: {:?}", firsts.unwrap_or_default().first());
    cluster.kill(leader);
    cluster.disk(follower).heal();

    sleep_until(begun + REPEATED_AFTER).await;
    let repeats = tokio::spawn(send_all(cluster.node(follower).address(), bodies));
    sleep_until(begun + MAJORITY_AFTER).await;
    cluster.start_node(third);
    let repeats = repeats.await.unwrap();
    let head = cluster.wait_head_equal(SOON).await;
    let placed = repeats.iter().filter(|answer| answer["sequence"].is_u64()).count();
    let inherited = repeats.iter().filter(|answer| answer["duplicate"] == true).count();
    let ordered = usize::try_from(head.sequence.0 - before).unwrap();
    println!("{placed} answered with a place, {inherited} of them with that of the first copy; {ordered} ordered");
    assert!(inherited > 0, "the follower had nothing of the leader that died: {:?}", repeats.first());
    assert!(
        ordered <= REQUESTS * MESSAGES_OF_REQUEST,
        "{ordered} places for {} messages",
        REQUESTS * MESSAGES_OF_REQUEST
    );
    cluster.assert_no_panics();
}
