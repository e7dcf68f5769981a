//! What tests with load wait for, and how they show what they measured.

use std::time::{Duration, Instant};

use lockstep_testkit::cluster::Cluster;
use lockstep_testkit::history::History;
use lockstep_testkit::http::get;
use lockstep_testkit::wait::eventually;

use crate::SOON;

/// Between a leader's death and a new leader with its first acknowledged message.
pub const TAKEOVER_MAX: Duration = Duration::from_secs(3);

/// Waits until that many more messages are acknowledged.
pub async fn more_messages(history: &History, count: usize) {
    let wanted = history.acknowledged() + count;
    eventually("messages are acknowledged", SOON, async || match history.acknowledged() {
        have if have >= wanted => Ok(()),
        have => Err(format!("{have} of {wanted}; failures: {:?}", history.failures().last())),
    })
    .await;
}

/// Waits until the network has these rules of `apply`: a new one gets there within seconds, one version after another.
pub async fn rules_hold(cluster: &Cluster, wanted: u64) {
    eventually("the rules hold", SOON, async || {
        let rules = get(cluster.node(0).address(), "/api/status").await.json()["rules_version"].as_u64();
        if rules >= Some(wanted) { Ok(()) } else { Err(format!("{rules:?}")) }
    })
    .await;
}

/// When the first message that was submitted after an instant was acknowledged.
pub async fn first_answer_after(history: &History, instant: Instant) -> Instant {
    eventually("a message submitted after the fault is acknowledged", SOON, async || {
        history.first_answer_to_calls_after(instant).ok_or_else(|| format!("{:?}", history.failures().last()))
    })
    .await
}

/// Times from the shortest to the longest.
pub fn milliseconds(mut times: Vec<Duration>) -> String {
    times.sort();
    let shown: Vec<String> = times.iter().map(|time| time.as_millis().to_string()).collect();
    format!("{} ms", shown.join(" "))
}
