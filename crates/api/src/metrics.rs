//! Names and labels of this crate's metrics.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use metrics::{Gauge, counter, describe_counter, describe_gauge, gauge};
use parking_lot::Mutex;

use crate::routes::path;

/// Requests answered, by `route` and `class` of status (`2xx`).
const REQUESTS: &str = "lockstep_http_requests_total";
/// Connections open now.
const CONNECTIONS: &str = "lockstep_http_connections";
/// Connections that the server closed, by `reason`.
const CONNECTIONS_DROPPED: &str = "lockstep_http_connections_dropped_total";

/// Age of the text that `/metrics` gives out, at most. To make it takes a millisecond or more of a core, and anybody may
/// ask, as often as they like.
const TEXT_AGE_MAX: Duration = Duration::from_millis(100);

/// The text of `/metrics`, made once for all who ask at about the same time.
#[derive(Default)]
pub(crate) struct Text(Mutex<Option<(Instant, Bytes)>>);

impl Text {
    /// The text, while it is new enough.
    pub(crate) fn kept(&self) -> Option<Bytes> {
        let kept = self.0.lock();
        kept.as_ref().filter(|(made, _)| made.elapsed() < TEXT_AGE_MAX).map(|(_, text)| text.clone())
    }

    /// Keeps a new text.
    pub(crate) fn keep(&self, text: String) -> Bytes {
        let text = Bytes::from(text);
        *self.0.lock() = Some((Instant::now(), text.clone()));
        text
    }
}

/// Tells the recorder what the metrics mean. Once, at start.
pub(crate) fn describe() {
    describe_counter!(REQUESTS, "Requests answered, by route and class of status");
    describe_gauge!(CONNECTIONS, "Open connections");
    describe_counter!(CONNECTIONS_DROPPED, "Connections that the server closed, by reason");
}

/// Why a connection was closed from this side.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dropped {
    TooMany,
    TooManyOfAddress,
    SlowHead,
    Idle,
    Handshake,
}

pub(crate) fn dropped(reason: Dropped) {
    let reason = match reason {
        Dropped::TooMany => "too_many",
        Dropped::TooManyOfAddress => "too_many_of_address",
        Dropped::SlowHead => "slow_head",
        Dropped::Idle => "idle",
        Dropped::Handshake => "handshake",
    };
    counter!(CONNECTIONS_DROPPED, "reason" => reason).increment(1);
}

/// Counts one open connection for as long as it lives.
pub(crate) struct OpenConnection(Gauge);

impl OpenConnection {
    pub(crate) fn new() -> Self {
        let gauge = gauge!(CONNECTIONS);
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Counts answers.
pub(crate) async fn count(request: Request, next: Next) -> Response {
    let route = route_label(request.extensions().get::<MatchedPath>());
    let response = next.run(request).await;
    if route == path::MESSAGE && response.status() == StatusCode::OK {
        // The hot path keeps its counter instead of looking it up.
        static ACCEPTED: OnceLock<metrics::Counter> = OnceLock::new();
        ACCEPTED.get_or_init(|| counter!(REQUESTS, "route" => path::MESSAGE, "class" => "2xx")).increment(1);
    } else {
        counter!(REQUESTS, "route" => route, "class" => class_label(response.status())).increment(1);
    }
    response
}

/// Labels come from a fixed set: a path that someone made up must not become a time series.
fn route_label(matched: Option<&MatchedPath>) -> &'static str {
    let matched = matched.map_or("", MatchedPath::as_str);
    path::ALL.iter().copied().find(|route| *route == matched).unwrap_or("unknown")
}

fn class_label(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}
