//! Names of this crate's metrics. Labels are bounded; never a task or peer.

use crate::plan::End;

/// Gauge: peers of W3bstream's network that listen to announcements.
pub const PEERS: &str = "lockstep_w3bstream_peers";
/// Gauge: tasks that wait to be announced, or announced again.
pub const WAITING: &str = "lockstep_w3bstream_waiting_tasks";
/// Counter: attempts to announce, by `result`: `sent`, `nobody` (nobody listens), `busy` (all queues are full),
/// `failed`.
pub const ANNOUNCEMENTS: &str = "lockstep_w3bstream_announcements_total";
/// Counter: tasks that are not announced any more, by `reason`: `assigned`, `attempts`, `age`, `displaced` (by newer
/// ones).
pub const ENDED: &str = "lockstep_w3bstream_ended_tasks_total";

pub(crate) fn peers(count: usize) {
    metrics::gauge!(PEERS).set(count as f64);
}

pub(crate) fn waiting(count: usize) {
    metrics::gauge!(WAITING).set(count as f64);
}

pub(crate) fn announced(result: &'static str) {
    metrics::counter!(ANNOUNCEMENTS, "result" => result).increment(1);
}

pub(crate) fn ended(end: End) {
    let reason = match end {
        End::Assigned => "assigned",
        End::Attempts => "attempts",
        End::Age => "age",
        End::Displaced => "displaced",
    };
    metrics::counter!(ENDED, "reason" => reason).increment(1);
}
