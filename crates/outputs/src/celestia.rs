//! Blobs on Celestia, by the JSON-RPC of a node of its data availability layer.
//!
//! `blob.Submit` answers with the height of the block that has the blob. What is there is read with `blob.GetAll`,
//! which also tells the commitment, and is final once `blob.Included` says so of the proof of `blob.GetProof`.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use lockstep_chain::{ChainError, Endpoint, EndpointError, Rpc};
use lockstep_types::{Hash32, Height};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::deposits::{Deposit, DepositError, Deposited, Deposits};
use crate::output::{Owner, Stage};

/// Bytes of a namespace: its version, and its id.
const NAMESPACE_BYTES: usize = 29;
/// Bytes of an id that are one's own in version 0.
const OWN_BYTES: usize = 10;
/// Version of shares without a signer.
const SHARE_VERSION: u32 = 0;
/// Longest answer: all blobs that a block has in the namespace, as text.
const ANSWER_BYTES_MAX: usize = 48 << 20;
/// Longest answer without blobs.
const SMALL_ANSWER_BYTES_MAX: usize = 4 << 20;
/// What a node complains about that will never be otherwise for a blob.
const REFUSALS: [&str; 3] = ["too large", "blob size", "exceeds the max"];

/// What a node says where there is no such blob.
const NOT_FOUND: &str = "blob: not found";

/// A namespace of version 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace([u8; NAMESPACE_BYTES]);

/// Why a text cannot be a [`Namespace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a namespace is written as 20 hex digits, of which the first 18 are not all 0")]
pub struct NamespaceError;

impl std::str::FromStr for Namespace {
    type Err = NamespaceError;
    fn from_str(text: &str) -> Result<Self, NamespaceError> {
        let mut bytes = [0; NAMESPACE_BYTES];
        let own = &mut bytes[NAMESPACE_BYTES - OWN_BYTES..];
        hex::decode_to_slice(text.strip_prefix("0x").unwrap_or(text), own).map_err(|_| NamespaceError)?;
        // With nothing but the last byte it is one of those that the protocol keeps for itself.
        if own[..OWN_BYTES - 1].iter().all(|byte| *byte == 0) { Err(NamespaceError) } else { Ok(Self(bytes)) }
    }
}

impl std::fmt::Display for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(&self.0[NAMESPACE_BYTES - OWN_BYTES..]))
    }
}

/// Where the node is, and how it pays.
#[derive(Clone)]
pub struct CelestiaOptions {
    /// Its URL; never shown whole.
    pub endpoint: Endpoint,
    /// The node's token with the right to write, where it asks for one.
    pub token: Option<String>,
    /// Where blobs go.
    pub namespace: Namespace,
    /// Price of gas in utia; `None`: the node chooses.
    pub gas_price: Option<f64>,
    /// For one request; submitting waits for a block.
    pub timeout: Duration,
}

impl std::fmt::Debug for CelestiaOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoint, namespace, gas_price, timeout, .. } = self;
        let mut shown = f.debug_struct("CelestiaOptions");
        shown.field("endpoint", endpoint).field("namespace", namespace).field("gas_price", gas_price);
        shown.field("timeout", timeout).finish_non_exhaustive()
    }
}

impl CelestiaOptions {
    /// The usual limits.
    pub fn new(endpoint: Endpoint, namespace: Namespace) -> Self {
        Self { endpoint, token: None, namespace, gas_price: None, timeout: Duration::from_secs(120) }
    }
}

/// A node.
pub struct CelestiaNode {
    rpc: Rpc,
    namespace: Namespace,
    /// What `blob.Submit` is told of the transaction.
    transaction: Value,
}

/// An output over a Celestia node.
pub type CelestiaOutput = Deposits<CelestiaNode>;

impl CelestiaOutput {
    /// Connects at the first call.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn new(options: CelestiaOptions, owner: Owner) -> Result<Self, EndpointError> {
        let CelestiaOptions { endpoint, token, namespace, gas_price, timeout } = options;
        let rpc = Rpc::with_timeout(endpoint, timeout)?;
        let rpc = match token {
            Some(token) => rpc.with_token(token),
            None => rpc,
        };
        let transaction =
            gas_price.map_or_else(|| json!({}), |price| json!({"gas_price": price, "is_gas_price_set": true}));
        Ok(Self::over(CelestiaNode { rpc, namespace, transaction }, owner))
    }
}

/// A blob as the node tells it.
#[derive(Deserialize)]
struct NodeBlob {
    data: String,
    commitment: String,
}

fn failed(error: ChainError) -> DepositError {
    match &error {
        ChainError::Rpc { message, .. } if REFUSALS.iter().any(|words| message.to_lowercase().contains(words)) => {
            DepositError::Refused(error.to_string())
        }
        ChainError::Refused { status: 413 } => DepositError::Refused(error.to_string()),
        ChainError::Refused { status: 401 | 403 } => {
            DepositError::Retryable(format!("{error}; look at the token, which must allow to write"))
        }
        _ => DepositError::Retryable(error.to_string()),
    }
}

impl CelestiaNode {
    fn namespace(&self) -> String {
        STANDARD.encode(self.namespace.0)
    }

    /// All blobs of a block in the namespace, with their commitments.
    async fn blobs(&self, height: Height) -> Result<Vec<(Bytes, Vec<u8>)>, DepositError> {
        let params = json!([height.0, [self.namespace()]]);
        let found: Option<Vec<NodeBlob>> =
            self.rpc.call("blob.GetAll", params, ANSWER_BYTES_MAX).await.map_err(failed)?;
        let decode = |text: &str| {
            let malformed = |_| DepositError::Retryable("blob.GetAll answers something that is not base64".to_owned());
            STANDARD.decode(text).map_err(malformed)
        };
        let blobs = found.unwrap_or_default().into_iter();
        blobs.map(|blob| Ok((decode(&blob.data)?.into(), decode(&blob.commitment)?))).collect()
    }

    fn height(at: &Deposited) -> Result<Height, DepositError> {
        at.height.ok_or_else(|| DepositError::Retryable("a place without a height".to_owned()))
    }
}

#[async_trait]
impl Deposit for CelestiaNode {
    const PART_BYTES: usize = 1_536 << 10;
    /// What a transaction takes beside its own fields: 4,095 shares.
    const BYTES_MAX: usize = 1_973_786;
    /// A block comes every few seconds, and a transaction waits for one: so it takes along what there is.
    const TOGETHER_BYTES_MAX: usize = Self::PART_BYTES;

    async fn put(&self, blob: &Bytes, hash: &Hash32) -> Result<Deposited, DepositError> {
        let places = self.put_together(&[(blob.clone(), *hash)]).await?;
        places.into_iter().next().ok_or_else(|| DepositError::Retryable("the blob was given no place".to_owned()))
    }

    async fn put_together(&self, blobs: &[(Bytes, Hash32)]) -> Result<Vec<Deposited>, DepositError> {
        let namespace = self.namespace();
        let submitted = |(blob, _): &(Bytes, Hash32)| {
            let data = STANDARD.encode(blob);
            json!({"namespace": namespace, "data": data, "share_version": SHARE_VERSION, "index": -1})
        };
        let params = json!([blobs.iter().map(submitted).collect::<Vec<_>>(), self.transaction]);
        let height = self.rpc.call("blob.Submit", params, SMALL_ANSWER_BYTES_MAX).await.map_err(failed)?;
        let height = Height(height);
        let there: HashMap<Bytes, Vec<u8>> = self.blobs(height).await?.into_iter().collect();
        let place = |(blob, _): &(Bytes, Hash32)| {
            let absent = || DepositError::Retryable(format!("block {height} does not have the blob"));
            let commitment = there.get(blob).ok_or_else(absent)?.clone();
            let locator = format!("celestia:{height}/{}", self.namespace);
            Ok(Deposited { locator, commitment, height: Some(height), stage: Stage::Included })
        };
        blobs.iter().map(place).collect()
    }

    async fn get(&self, at: &Deposited) -> Result<Bytes, DepositError> {
        let height = Self::height(at)?;
        let params = json!([height.0, self.namespace(), STANDARD.encode(&at.commitment)]);
        let found = self.rpc.call("blob.Get", params, ANSWER_BYTES_MAX).await;
        let found: NodeBlob = found.map_err(|error| match &error {
            ChainError::Rpc { message, .. } if message.contains(NOT_FOUND) => DepositError::Absent(error.to_string()),
            _ => failed(error),
        })?;
        let malformed = |_| DepositError::Retryable("blob.Get answers something that is not base64".to_owned());
        Ok(STANDARD.decode(found.data).map_err(malformed)?.into())
    }

    async fn stage(&self, at: &Deposited) -> Result<Stage, DepositError> {
        let height = Self::height(at)?;
        let (namespace, commitment) = (self.namespace(), STANDARD.encode(&at.commitment));
        let params = json!([height.0, namespace, commitment]);
        let proof: Value = self.rpc.call("blob.GetProof", params, SMALL_ANSWER_BYTES_MAX).await.map_err(failed)?;
        let params = json!([height.0, namespace, proof, commitment]);
        let included: bool = self.rpc.call("blob.Included", params, SMALL_ANSWER_BYTES_MAX).await.map_err(failed)?;
        Ok(if included { Stage::Final } else { Stage::Included })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_of_version_0_and_not_the_protocols_own() {
        let namespace: Namespace = "000008e5f679bf7116cb".parse().unwrap();
        assert_eq!(STANDARD.encode(namespace.0), "AAAAAAAAAAAAAAAAAAAAAAAAAAAACOX2eb9xFss=");
        assert_eq!(namespace.to_string(), "000008e5f679bf7116cb");
        for bad in ["", "00", "00000000000000000001", "zz0008e5f679bf7116cb", "000008e5f679bf7116cb00"] {
            assert_eq!(bad.parse::<Namespace>(), Err(NamespaceError), "{bad}");
        }
    }

    #[test]
    fn options_do_not_show_the_token() {
        let endpoint = "http://127.0.0.1:26658".parse().unwrap();
        let mut options = CelestiaOptions::new(endpoint, "000008e5f679bf7116cb".parse().unwrap());
        options.token = Some("topsecret".into());
        assert!(!format!("{options:?}").contains("topsecret"));
    }
}
