//! Fetches the documents that devices' URIs name. Only the configured gateway is ever contacted.

use std::fmt;
use std::time::{Duration, Instant};

use lockstep_types::{Hash32, keccak256};
use parking_lot::Mutex;
use reqwest::{Client, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::endpoint::{Endpoint, EndpointError, read_body, send};
use crate::error::DocumentError;
use crate::failures::Failures;
use crate::uri::at_gateway;

/// Bytes of a document.
pub const DOCUMENT_BYTES_MAX: usize = 64 << 10;
/// For one document, from the connection to its last byte.
pub const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(3);
/// Documents that are fetched at a time; one more is [`DocumentError::Busy`].
pub const FETCHES_MAX: usize = 32;
/// How long a failure is the answer to the same question, unless configured otherwise.
pub const FAILURE_TTL: Duration = Duration::from_secs(60);

/// Where documents come from.
#[derive(Debug, Clone)]
pub struct DocumentOptions {
    /// The gateway's URL, without the content id: `https://host/ipfs`. May hold credentials.
    pub gateway: Endpoint,
    /// For one document; [`DOCUMENT_TIMEOUT`] by default.
    pub timeout: Duration,
    /// How long a failure is remembered; [`FAILURE_TTL`] by default.
    pub failure_ttl: Duration,
}

impl DocumentOptions {
    /// The defaults for a gateway.
    pub fn new(gateway: Endpoint) -> Self {
        Self { gateway, timeout: DOCUMENT_TIMEOUT, failure_ttl: FAILURE_TTL }
    }
}

/// Fetches documents through one gateway.
pub struct Documents {
    options: DocumentOptions,
    client: Client,
    fetches: Semaphore,
    failures: Mutex<Failures>,
}

impl Documents {
    /// Contacts nobody yet.
    pub fn new(options: DocumentOptions) -> Result<Self, EndpointError> {
        let client = options.gateway.client(options.timeout)?;
        let failures = Mutex::new(Failures::new(options.failure_ttl));
        Ok(Self { options, client, fetches: Semaphore::new(FETCHES_MAX), failures })
    }

    /// The document at `uri` whose hash the registry has. `hash` may be keccak256 or SHA-256 of the document's
    /// bytes: the registry does not say which it holds, ioID's tools write both, and a document that fits one
    /// hash by chance cannot be made for either.
    pub async fn fetch(&self, uri: &str, hash: &Hash32) -> Result<Vec<u8>, DocumentError> {
        // Both halves have a fixed length, so no two questions share a key.
        let key = keccak256(&[&keccak256(&[uri.as_bytes()]), hash]);
        if let Some(error) = self.failures.lock().get(&key, Instant::now()) {
            return Err(error);
        }
        let fetched = self.fetch_now(uri, hash).await;
        if let Err(error) = &fetched
            && error.is_of_gateway()
        {
            self.failures.lock().remember(key, error.clone(), Instant::now());
        }
        fetched
    }

    async fn fetch_now(&self, uri: &str, hash: &Hash32) -> Result<Vec<u8>, DocumentError> {
        let url = at_gateway(self.options.gateway.url(), uri)?;
        let _permit = self.fetches.try_acquire().map_err(|_| DocumentError::Busy)?;
        let response = send(self.client.get(url)).await?;
        if response.status() != StatusCode::OK {
            return Err(DocumentError::Status { status: response.status().as_u16() });
        }
        let document = read_body(response, DOCUMENT_BYTES_MAX).await?;
        if has_hash(&document, hash) { Ok(document) } else { Err(DocumentError::WrongHash) }
    }
}

impl fmt::Debug for Documents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Documents").field("options", &self.options).finish_non_exhaustive()
    }
}

fn has_hash(document: &[u8], hash: &Hash32) -> bool {
    keccak256(&[document]) == *hash || Sha256::digest(document).as_slice() == hash
}
