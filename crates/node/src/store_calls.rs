//! Calls to an output's store from a thread of its own.

use std::time::Duration;

use lockstep_outputs::OutputError;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// How often a call to a store that is not available is made, and the rest between two.
const ATTEMPTS_MAX: usize = 5;
/// See [`ATTEMPTS_MAX`].
const REST: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub(crate) struct StoreCalls {
    pub runtime: Handle,
    /// Nothing is called any more when it is cancelled.
    pub stop: CancellationToken,
}

impl StoreCalls {
    /// Makes a call, again where the store is not available, unless it is all to end.
    pub fn call<T, F: Future<Output = Result<T, OutputError>>>(&self, call: impl Fn() -> F) -> Result<T, OutputError> {
        let calling = async {
            let mut attempt = 1;
            loop {
                match call().await {
                    Err(OutputError::Retryable(_)) if attempt < ATTEMPTS_MAX => {
                        attempt += 1;
                        tokio::time::sleep(REST).await;
                    }
                    result => return result,
                }
            }
        };
        let ending = || Err(OutputError::Retryable("it was told to stop".into()));
        if self.stop.is_cancelled() {
            return ending();
        }
        self.runtime.block_on(async {
            tokio::select! {
                () = self.stop.cancelled() => ending(),
                result = calling => result,
            }
        })
    }
}
