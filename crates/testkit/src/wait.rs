//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// Between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Asks `condition` again and again until it holds. Its error says what is still missing.
///
/// # Panics
/// When it does not hold `within` that time; the message ends with the last error.
pub async fn eventually<T>(what: &str, within: Duration, mut condition: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + within;
    loop {
        let missing = match condition().await {
            Ok(value) => return value,
            Err(missing) => missing,
        };
        assert!(Instant::now() < deadline, "{what}: not within {within:?}; {missing}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Asks `condition` again and again for a whole time, and wants it to hold each time.
///
/// # Panics
/// As soon as it does not hold.
pub async fn always<T>(what: &str, during: Duration, mut condition: impl AsyncFnMut() -> Result<T, String>) {
    let (started, deadline) = (Instant::now(), Instant::now() + during);
    while Instant::now() < deadline {
        if let Err(broken) = condition().await {
            panic!("{what}: no longer after {:?}; {broken}", started.elapsed());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
