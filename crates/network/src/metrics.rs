//! Names of this crate's metrics. Labels are bounded: channel, direction, result, reason; never a message or device.

/// Gauge: members with at least one connection.
pub const MEMBERS_CONNECTED: &str = "lockstep_network_members_connected";
/// Counter: connections that came or went, by `event`: `opened`, `stranger`, `gateway` (opened by one), `closed`, `silent`,
/// `dial_failed`, `inbound_failed`.
pub const CONNECTIONS: &str = "lockstep_network_connections_total";
/// Counter: messages given to gossip, by `result`: `sent`, `no_peers`, `duplicate`, `queue_full`, `too_large`, `failed`.
pub const GOSSIP_PUBLISHED: &str = "lockstep_network_gossip_published_total";
/// Counter: messages handed to the consumer.
pub const GOSSIP_RECEIVED: &str = "lockstep_network_gossip_received_total";
/// Counter: received messages that were not passed on, by `reason`: `inbox_full`, `too_large`, `ignored`,
/// `rejected`, `verdict_lost`.
pub const GOSSIP_IGNORED: &str = "lockstep_network_gossip_ignored_total";
/// Counter: streams that ended other than by the peer's orderly close, by `channel`, `side` (`client`, `server`) and
/// `kind`.
pub const STREAM_ERRORS: &str = "lockstep_network_stream_errors_total";

pub(crate) fn connection(event: &'static str) {
    metrics::counter!(CONNECTIONS, "event" => event).increment(1);
}

pub(crate) fn published(result: &'static str) {
    metrics::counter!(GOSSIP_PUBLISHED, "result" => result).increment(1);
}

pub(crate) fn received() {
    metrics::counter!(GOSSIP_RECEIVED).increment(1);
}

pub(crate) fn ignored(reason: &'static str) {
    metrics::counter!(GOSSIP_IGNORED, "reason" => reason).increment(1);
}

pub(crate) fn stream_error(channel: &'static str, side: &'static str, kind: &'static str) {
    metrics::counter!(STREAM_ERRORS, "channel" => channel, "side" => side, "kind" => kind).increment(1);
}

pub(crate) fn members_connected(count: usize) {
    metrics::gauge!(MEMBERS_CONNECTED).set(count as f64);
}
