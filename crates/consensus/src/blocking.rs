//! Work that blocks, for the disk or with much to compute, away from the threads that others wait for.

use std::fmt;

/// How such work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocking {
    /// On tokio's threads for it.
    Threads,
    /// At once, where it is asked for: in a simulation, where nothing may run beside it.
    Inline,
}

/// The work panicked, or the process ends.
#[derive(Debug, Clone, thiserror::Error)]
#[error("work beside was not done: {0}")]
pub struct NotDone(String);

impl NotDone {
    fn new(reason: &impl fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

impl Blocking {
    /// Does `work` and waits for it.
    ///
    /// # Errors
    /// If it panicked, or the process ends.
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, NotDone> {
        match self {
            Self::Threads => tokio::task::spawn_blocking(work).await.map_err(|e| NotDone::new(&e)),
            Self::Inline => Ok(work()),
        }
    }
}
