//! Repeats of messages that were under way when the network lost its majority.

use std::net::SocketAddr;
use std::time::Duration;

use lockstep_testkit::cluster::{Cluster, ClusterOptions, open_params};
use lockstep_testkit::disk::library;
use lockstep_testkit::http::{get, post_message, request};
use lockstep_testkit::load::device_key;
use lockstep_testkit::wait::eventually;
use lockstep_types::genesis::{RETRY_MARGIN_MS, RETRY_WINDOW_MS_MIN};
use lockstep_types::{NetworkParams, ProjectId, ProjectSettings, TimeMs};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{SOON, binary};

/// Messages, in as many requests as are of use: more than a leader proposes at once.
const REQUESTS: usize = 3;
const MESSAGES_OF_REQUEST: usize = 1_000;
/// The shortest window.
const WINDOW_MS: u64 = RETRY_WINDOW_MS_MIN;
/// From the messages to their repeats, which still are some by when they come in, for one second.
const REPEATED_AFTER: Duration = Duration::from_millis(WINDOW_MS + RETRY_MARGIN_MS - 1_000);
/// From the repeats to the start of the node that makes a majority again: by when they are proposed they are none any more.
/// Pools hold them for five seconds.
const MAJORITY_AFTER: Duration = Duration::from_millis(1_700);
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
    let default_project = ProjectSettings { retry_window_ms: WINDOW_MS, ..ProjectSettings::open() };
    let params = NetworkParams { default_project, ..open_params() };
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3).with_disks().with_params(params)).await;
    let leader = cluster.wait_leader(SOON).await;
    let (follower, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let address = cluster.node(follower).address();
    // So that the batches of the time before are there, and are told from those that are to come.
    let warm = lockstep_identity::sign_body(&device_key(1, 0), ProjectId(7), "0.1", "before");
    assert_eq!(post_message(address, warm.as_bytes()).await.status, 200);
    let before = cluster.wait_head_equal(SOON).await;
    let bodies = bodies();
    cluster.kill(third);
    cluster.disk(follower).delay_syncs(SYNC_TAKES);
    let begun = Instant::now();
    let firsts = timeout(LEADER_DIES_AFTER, send_all(cluster.node(leader).address(), bodies.clone())).await;
    assert!(firsts.is_err(), "the leader answered without a majority: {:?}", firsts.unwrap_or_default().first());
    cluster.kill(leader);
    cluster.disk(follower).heal();

    sleep_until(begun + REPEATED_AFTER).await;
    let repeats = tokio::spawn(send_all(address, bodies));
    sleep_until(begun + REPEATED_AFTER + MAJORITY_AFTER).await;
    cluster.start_node(third);
    repeats.await.unwrap();
    // It comes into the pool behind them, and has its place when they have theirs.
    let last = lockstep_identity::sign_body(&device_key(1, 0), ProjectId(7), "0.1", "after");
    eventually("a message after the repeats has a place", SOON, async || {
        let answer = post_message(address, last.as_bytes()).await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    let head = cluster.wait_head_equal(SOON).await;
    let time_of = async |height: u64| {
        let batch = get(address, &format!("/api/batches/{height}")).await.json();
        TimeMs(batch["time_ms"].as_u64().unwrap_or_else(|| panic!("{batch}")))
    };
    let (inherited, newest) = (time_of(before.height.0 + 1).await, time_of(head.height.0).await);
    let apart = Duration::from_millis(newest.0 - inherited.0);
    println!("the first batch after the outage was proposed {apart:?} before the last one");
    assert!(apart > REPEATED_AFTER - LEADER_DIES_AFTER, "the follower had nothing of the leader that died");
    let ordered = usize::try_from(head.sequence.0 - before.sequence.0 - 1).unwrap();
    assert_eq!(ordered, REQUESTS * MESSAGES_OF_REQUEST, "each message has one place");
    cluster.assert_no_panics();
}
