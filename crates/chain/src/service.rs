//! Small answers of another service's HTTP interface, such as a coordinator's.

use std::time::Duration;

use reqwest::{Client, StatusCode};

use crate::endpoint::{Endpoint, EndpointError, TransferError, read_body, send};

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// No connection, or one that broke.
    #[error("it cannot be reached ({reason})")]
    Unreachable {
        /// The innermost cause, in the words of the system.
        reason: String,
    },
    /// No whole answer in time.
    #[error("it did not answer in time")]
    Timeout,
    /// Not 200; redirects are not followed.
    #[error("it answered with HTTP status {status}")]
    Status {
        /// The HTTP status.
        status: u16,
    },
    /// Larger than allowed.
    #[error("its answer is larger than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
}

/// Asks one service. Nobody else is ever contacted.
#[derive(Debug)]
pub struct Service {
    base: Endpoint,
    client: Client,
    bytes_max: usize,
}

impl Service {
    /// Contacts nobody yet. `timeout` is for one answer up to its last byte, which has at most `bytes_max` bytes.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn new(base: Endpoint, timeout: Duration, bytes_max: usize) -> Result<Self, EndpointError> {
        let client = base.client(timeout)?;
        Ok(Self { base, client, bytes_max })
    }

    /// Where it is, without what may be a credential.
    pub fn base(&self) -> &Endpoint {
        &self.base
    }

    /// The body of the answer to `GET` of a path below the service's URL.
    ///
    /// # Errors
    /// If there is no such answer.
    pub async fn get(&self, segments: &[&str]) -> Result<Vec<u8>, ServiceError> {
        let mut url = self.base.url().clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        let error = |error| match error {
            TransferError::Unreachable(reason) => ServiceError::Unreachable { reason },
            TransferError::Timeout => ServiceError::Timeout,
            TransferError::TooLarge => ServiceError::TooLarge { bytes_max: self.bytes_max as u64 },
        };
        let response = send(self.client.get(url)).await.map_err(error)?;
        if response.status() != StatusCode::OK {
            return Err(ServiceError::Status { status: response.status().as_u16() });
        }
        read_body(response, self.bytes_max).await.map_err(error)
    }
}
