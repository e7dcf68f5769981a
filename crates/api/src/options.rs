//! Limits of the doors, named, with defaults.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::caller::TrustedProxy;
use crate::rate::Rate;
use crate::server::ApiError;

/// The smallest read buffer that hyper takes, and so the smallest limit on headers.
const HEADERS_BYTES_MIN: usize = 8 << 10;

/// Limits of the doors. Byte counts are in bytes, times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Largest `data` of a message: the network's parameter.
    pub message_bytes_max: u64,
    /// Largest request body; over it: 413. See [`Options::for_messages_of`].
    pub body_bytes_max: usize,
    /// Request bodies held in memory at a time, all connections together; over it: 429.
    pub bodies_bytes_max: usize,
    /// Large answers (pages of tasks, of batches and of the history) whose clients have not taken them yet, all
    /// connections together; over it: 429.
    pub answers_bytes_max: usize,
    /// A body must have come in whole after this time; else 408.
    pub body_read_timeout_ms: u64,
    /// A request's head must have come in whole after this time; else the connection is closed. Checked at
    /// intervals of a quarter of it.
    pub header_read_timeout_ms: u64,
    /// A connection without a request for this long is closed.
    pub idle_timeout_ms: u64,
    /// Largest head of a request; over it: 431.
    pub headers_bytes_max: usize,
    /// Open connections; one more is dropped at once.
    pub connections_max: usize,
    /// Those of one address (of IPv6: one /64 network), trusted proxies not counted; one more is dropped at once. 0 is no
    /// limit, which is the default: nobody but the operator knows how many clients are behind an address.
    pub connections_per_address_max: usize,
    /// Messages that wait for their position; over it: 429.
    pub submits_max: usize,
    /// Messages in one `POST /messages`, at most `submits_max`; over it: 413.
    pub bulk_messages_max: usize,
    /// Largest body of it, at most `bodies_bytes_max`; over it: 413.
    pub bulk_bytes_max: usize,
    /// gRPC streams of messages, all connections together; over it: RESOURCE_EXHAUSTED.
    pub submit_streams_max: usize,
    /// Messages of one such stream that wait for their position; while there are so many no more are read.
    pub stream_in_flight_max: usize,
    /// Readers of feeds, all connections together; over it: 429.
    pub feeds_max: usize,
    /// Requests of one address, each message of a bulk or stream counted; over it: 429. Unlimited by default.
    pub address_rate: Rate,
    /// Addresses that are remembered for that; beyond it the least busy is forgotten.
    pub addresses_max: usize,
    /// Proxies whose word counts for who sent a request.
    pub trusted_proxies: Vec<TrustedProxy>,
    /// TLS handshakes under way; others wait within their time.
    pub handshakes_max: usize,
    /// A handshake must be done after this time, waiting included; else the connection is closed.
    pub handshake_timeout_ms: u64,
    /// How often it is looked whether the files of the TLS certificate have changed.
    pub tls_reload_interval_ms: u64,
    /// Reads under way, those that wait for a sequence included; over it: 429.
    pub reads_max: usize,
    /// Requests under way on one HTTP/2 connection.
    pub streams_per_connection_max: u32,
    /// Longest wait of a read for its `min_sequence`; then 503.
    pub min_sequence_wait_ms: u64,
    /// At shutdown, time that running requests get to finish.
    pub drain_timeout_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self::for_messages_of(64 << 10)
    }
}

impl Options {
    /// Defaults for a network whose messages have at most `message_bytes_max` bytes of data. JSON may spell one
    /// byte with six characters (`\u0000`); the rest of a request gets 128 KiB.
    pub fn for_messages_of(message_bytes_max: u64) -> Self {
        let data_bytes = usize::try_from(message_bytes_max.saturating_mul(6)).unwrap_or(usize::MAX);
        Self {
            message_bytes_max,
            body_bytes_max: data_bytes.saturating_add(128 << 10),
            bodies_bytes_max: 256 << 20,
            answers_bytes_max: 128 << 20,
            body_read_timeout_ms: 10_000,
            header_read_timeout_ms: 10_000,
            idle_timeout_ms: 75_000,
            headers_bytes_max: 16 << 10,
            connections_max: 8192,
            connections_per_address_max: 0,
            submits_max: 8192,
            bulk_messages_max: 1_000,
            bulk_bytes_max: 8 << 20,
            submit_streams_max: 1_024,
            stream_in_flight_max: 256,
            feeds_max: 1_024,
            address_rate: Rate::UNLIMITED,
            addresses_max: 65_536,
            trusted_proxies: Vec::new(),
            handshakes_max: 2_048,
            handshake_timeout_ms: 10_000,
            tls_reload_interval_ms: 30_000,
            reads_max: 1024,
            streams_per_connection_max: 256,
            min_sequence_wait_ms: 5_000,
            drain_timeout_ms: 5_000,
        }
    }

    pub(crate) fn check(&self) -> Result<(), ApiError> {
        let invalid = |reason: &str| Err(ApiError::Options(reason.to_owned()));
        if self.headers_bytes_max < HEADERS_BYTES_MIN {
            return invalid("headers_bytes_max must be at least 8192");
        }
        if self.bodies_bytes_max < self.body_bytes_max {
            return invalid("bodies_bytes_max must be at least body_bytes_max");
        }
        let counts = [
            self.connections_max,
            self.submits_max,
            self.bulk_messages_max,
            self.submit_streams_max,
            self.stream_in_flight_max,
            self.feeds_max,
            self.addresses_max,
            self.handshakes_max,
            self.reads_max,
            self.streams_per_connection_max as usize,
        ];
        if counts.contains(&0) {
            return invalid("a limit on connections, handshakes, submits, reads or streams must be at least 1");
        }
        let times = [
            self.body_read_timeout_ms,
            self.header_read_timeout_ms,
            self.idle_timeout_ms,
            self.handshake_timeout_ms,
            self.tls_reload_interval_ms,
        ];
        if times.contains(&0) {
            return invalid("timeouts must be at least 1 ms");
        }
        Ok(())
    }

    /// What no retry could get in must not be told to come back.
    pub(crate) fn bulk_messages_max(&self) -> usize {
        self.bulk_messages_max.min(self.submits_max)
    }

    pub(crate) fn bulk_bytes_max(&self) -> usize {
        self.bulk_bytes_max.min(self.bodies_bytes_max)
    }

    pub(crate) fn body_read_timeout(&self) -> Duration {
        Duration::from_millis(self.body_read_timeout_ms)
    }

    pub(crate) fn min_sequence_wait(&self) -> Duration {
        Duration::from_millis(self.min_sequence_wait_ms)
    }

    pub(crate) fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_body_holds_the_largest_message_fully_escaped() {
        let options = Options::default();
        assert_eq!(options.body_bytes_max, 512 << 10);
        assert!(options.body_bytes_max as u64 > 6 * options.message_bytes_max);
        assert!(options.check().is_ok());
        assert!(Options::for_messages_of(u64::MAX).check().is_err());
    }
}
