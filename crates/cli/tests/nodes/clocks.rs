//! Wall clocks that jump under a running node.

use std::time::{Duration, Instant};

use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::disk::library;
use lockstep_testkit::http::post_message;
use lockstep_testkit::load::device_key;
use lockstep_types::ProjectId;
use lockstep_types::genesis::RETRY_MARGIN_MS;

use crate::{SOON, binary};

/// A little less than the time within which the same content is a retry: the window of 10 s, and the margin.
const JUMP_MS: i64 = 10_000 + RETRY_MARGIN_MS as i64 - 100;
/// From the message to its retry.
const MEANWHILE: Duration = Duration::from_millis(500);

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
