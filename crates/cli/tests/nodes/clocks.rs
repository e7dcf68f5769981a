//! Wall clocks that jump under a running node, and wrong ones that a node starts with.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lockstep_testkit::cluster::{Cluster, ClusterOptions, open_params};
use lockstep_testkit::disk::library;
use lockstep_testkit::http::{get, post_message};
use lockstep_testkit::load::device_key;
use lockstep_testkit::wait::eventually;
use lockstep_types::genesis::RETRY_MARGIN_MS;
use lockstep_types::{NetworkParams, ProjectId, ProjectSettings};
use serde_json::Value;

use crate::{SOON, binary};

/// A little less than the time within which the same content is a retry: the window of 10 s, and the margin.
const JUMP_MS: i64 = 10_000 + RETRY_MARGIN_MS as i64 - 100;
/// From the message to its retry.
const MEANWHILE: Duration = Duration::from_millis(500);
const DAY_MS: i64 = 24 * 3_600_000;
/// How far batch time may be from the clock.
const SECONDS_MS: u64 = 5_000;
/// Longest wait for a window of 6 s to end: at the slowed pace that takes 12 s.
const WINDOW_ENDS: Duration = Duration::from_secs(30);

fn reading(text: &str) -> String {
    lockstep_identity::sign_body(&device_key(1, 0), ProjectId(7), "0.1", text)
}

/// A network with the shortest retry windows that there are, 6 s.
fn short_windows(nodes: usize) -> ClusterOptions {
    let default_project = ProjectSettings { retry_window_ms: 6_000, ..ProjectSettings::open() };
    ClusterOptions::of(nodes).with_disks().with_params(NetworkParams { default_project, ..open_params() })
}

async fn submit(cluster: &Cluster, node: usize, text: &str) -> Value {
    let answer = post_message(cluster.node(node).address(), reading(text).as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// The time of the batch that a message is in.
async fn batch_time(cluster: &Cluster, node: usize, ordered: &Value) -> u64 {
    let answer = get(cluster.node(node).address(), &format!("/api/batches/{}", ordered["height"])).await;
    answer.json()["time_ms"].as_u64().unwrap_or_else(|| panic!("{}", answer.text()))
}

/// What a right clock shows.
fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

async fn is_new_in_the_end(cluster: &Cluster, node: usize, text: &str) {
    eventually(&format!("{text} counts as a new reading"), WINDOW_ENDS, async || {
        let again = submit(cluster, node, text).await;
        if again["duplicate"] == false { Ok(()) } else { Err(again.to_string()) }
    })
    .await;
}

/// Retry windows go by the leader's clock. One that was put forward made a retry a second message (chaos, seed 3).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_put_forward_ends_no_retry_window() {
    if library().is_none() {
        println!("the library is for Linux with glibc");
        return;
    }
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3).with_disks()).await;
    let leader = cluster.wait_leader(SOON).await;
    let address = cluster.node(leader).address();
    let body = |text: &str| lockstep_identity::sign_body(&device_key(1, 0), ProjectId(7), "0.1", text);
    let first = post_message(address, body("first").as_bytes()).await.json();
    let begun = Instant::now();
    cluster.disk(leader).clock_off_ms(JUMP_MS);
    for n in 0.. {
        let other = post_message(address, body(&n.to_string()).as_bytes()).await;
        assert_eq!(other.status, 200, "{}", other.text());
        if begun.elapsed() >= MEANWHILE {
            break;
        }
    }
    let again = post_message(address, body("first").as_bytes()).await.json();
    assert_eq!((&again["sequence"], &again["duplicate"]), (&first["sequence"], &true.into()), "{first} {again}");
    cluster.assert_no_panics();
}

/// Batch time stood still for a day after a clock was a day ahead for 12 s: what was sent then was a repeat for that long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_a_day_ahead_for_twelve_seconds_moves_batch_time_by_seconds() {
    if library().is_none() {
        println!("the library is for Linux with glibc");
        return;
    }
    let cluster = Cluster::start(binary(), short_windows(1)).await;
    cluster.disk(0).clock_off_ms(DAY_MS);
    let begun = Instant::now();
    for n in 0.. {
        let other = submit(&cluster, 0, &n.to_string()).await;
        let time = batch_time(&cluster, 0, &other).await;
        assert!(time.abs_diff(now_ms()) < SECONDS_MS, "{time} is far from {}", now_ms());
        if begun.elapsed() >= Duration::from_secs(12) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    submit(&cluster, 0, "sent then").await;
    cluster.disk(0).clock_off_ms(0);
    assert_eq!(submit(&cluster, 0, "sent then").await["duplicate"], true);
    is_new_in_the_end(&cluster, 0, "sent then").await;
    let last = submit(&cluster, 0, "last").await;
    let time = batch_time(&cluster, 0, &last).await;
    assert!(time.abs_diff(now_ms()) < SECONDS_MS, "{time} is far from {}", now_ms());
    cluster.assert_no_panics();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_after_a_day_has_the_time_of_the_clock_and_batch_time_that_is_ahead_goes_on_and_is_told() {
    if library().is_none() {
        println!("the library is for Linux with glibc");
        return;
    }
    let mut cluster = Cluster::start(binary(), short_windows(1)).await;
    submit(&cluster, 0, "the day before").await;
    let day = u64::try_from(DAY_MS).unwrap();
    cluster.disk(0).clock_off_ms(DAY_MS);
    cluster.restart(0, SOON).await;
    cluster.wait_ready(0, SOON).await;
    let first = submit(&cluster, 0, "a day later").await;
    let time = batch_time(&cluster, 0, &first).await;
    assert!(time.abs_diff(now_ms() + day) < SECONDS_MS, "{time} is far from {}", now_ms() + day);
    let complaints = async |cluster: &Cluster| cluster.status(0).await.unwrap().complaints.join("\n");
    assert_eq!(complaints(&cluster).await, "");

    // That clock was wrong.
    cluster.disk(0).clock_off_ms(0);
    cluster.restart(0, SOON).await;
    cluster.wait_ready(0, SOON).await;
    assert!(complaints(&cluster).await.contains("batch time is ahead of this node's clock by"));
    submit(&cluster, 0, "and another").await;
    assert_eq!(submit(&cluster, 0, "and another").await["duplicate"], true);
    is_new_in_the_end(&cluster, 0, "and another").await;
    cluster.assert_no_panics();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_wrong_at_start_does_not_move_batch_time_while_a_voter_is_missing() {
    if library().is_none() {
        println!("the library is for Linux with glibc");
        return;
    }
    let (wrong, right, missing) = (0, 1, 2);
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3).with_disks()).await;
    submit(&cluster, right, "before").await;
    cluster.kill(missing);
    cluster.kill(wrong);
    cluster.disk(wrong).clock_off_ms(365 * DAY_MS);
    cluster.start_node(wrong);
    eventually("the node with the wrong clock leads", 3 * SOON, async || {
        let leader = cluster.wait_leader(SOON).await;
        if leader == wrong {
            return Ok(());
        }
        cluster.restart(right, SOON).await;
        Err("the other one led".into())
    })
    .await;
    cluster.wait_ready(right, SOON).await;
    for node in [wrong, right] {
        let ordered = submit(&cluster, node, &format!("by node {node}")).await;
        let time = batch_time(&cluster, node, &ordered).await;
        assert!(time.abs_diff(now_ms()) < SECONDS_MS, "{time} is far from {}", now_ms());
    }
    let told = cluster.status(wrong).await.unwrap().complaints.join("\n");
    assert!(told.contains("ahead of another voter's"), "{told}");

    // Three know who is right.
    cluster.start_node(missing);
    cluster.wait_ready(missing, SOON).await;
    eventually("another node leads", 2 * SOON, async || match cluster.wait_leader(SOON).await {
        leader if leader == wrong => Err("it still leads".into()),
        _ => Ok(()),
    })
    .await;
    let told = cluster.status(wrong).await.unwrap().complaints.join("\n");
    assert!(told.contains("it does not lead until it is set right"), "{told}");
    cluster.assert_no_panics();
}
