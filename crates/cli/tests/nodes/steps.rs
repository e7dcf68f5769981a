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

/// What a node that is not running agrees to from its next start on: rules of `apply` up to this number.
pub fn agree_to_rules(cluster: &Cluster, index: usize, rules_max: u32) {
    let path = cluster.node(index).process.home().join("config.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let line = text.lines().find(|line| line.starts_with("rules_max = ")).unwrap().to_owned();
    std::fs::write(&path, text.replace(&line, &format!("rules_max = {rules_max}"))).unwrap();
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
