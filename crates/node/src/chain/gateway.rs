//! The gateway that devices' documents are fetched from.

pub use lockstep_chain::DocumentError as FetchError;
use lockstep_chain::{DocumentOptions, Documents, Endpoint};
use lockstep_types::Hash32;

use crate::error::NodeError;

/// Fetches documents.
pub(crate) struct Gateway(Documents);

impl Gateway {
    /// Asks nobody yet.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn new(endpoint: Endpoint) -> Result<Self, NodeError> {
        let documents = Documents::new(DocumentOptions::new(endpoint));
        documents.map(Self).map_err(|e| NodeError::Config(format!("config.toml: chain.gateway: {e}")))
    }

    /// The document at an address, which has this hash. Failures are remembered for a while.
    ///
    /// # Errors
    /// If the gateway does not give it.
    pub async fn fetch(&self, uri: &str, hash: &Hash32) -> Result<Vec<u8>, FetchError> {
        self.0.fetch(uri, hash).await
    }
}
