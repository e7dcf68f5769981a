//! The node's clock, for what it proposes. Nothing that `apply` computes depends on it but by way of the log.

use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_types::TimeMs;

/// Milliseconds since the Unix epoch; 0 before it.
pub(crate) fn now_ms() -> TimeMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimeMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
