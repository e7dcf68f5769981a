//! Where the chain is read that the network follows, and who is asked what became of tasks. A program without the feature
//! `chain` reads this too, and says that it was built without.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Most blocks in one request where the file says nothing.
pub const CHAIN_SPAN_MAX_DEFAULT: u64 = 1_000;
/// The most that it may say.
pub const CHAIN_SPAN_MAX: u64 = 10_000;

/// Where the chain is read that says which devices there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainConfig {
    /// A file with the URL of a JSON-RPC endpoint, so that this one holds no secret.
    pub rpc_file: PathBuf,
    /// URL of the gateway that devices' documents are fetched from, such as `https://gateway.example/ipfs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// A file with that URL, where it holds a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_file: Option<PathBuf>,
    /// Most blocks in one request for events, and in one update.
    #[serde(default = "default_span_max")]
    pub span_max: u64,
    /// How often the leader asks for new blocks; others ask less often.
    #[serde(default = "default_poll_ms")]
    pub poll_ms: u64,
}

/// Fewer would be no pause at all.
const POLL_MS_MIN: u64 = 50;

fn default_span_max() -> u64 {
    CHAIN_SPAN_MAX_DEFAULT
}

fn default_poll_ms() -> u64 {
    5_000
}

impl ChainConfig {
    pub(super) fn check(&self) -> Result<(), String> {
        if !(1..=CHAIN_SPAN_MAX).contains(&self.span_max) {
            return Err(format!("chain.span_max must be from 1 to {CHAIN_SPAN_MAX}"));
        }
        if self.poll_ms < POLL_MS_MIN {
            return Err(format!("chain.poll_ms must be at least {POLL_MS_MIN}"));
        }
        if self.gateway.is_some() && self.gateway_file.is_some() {
            return Err("chain takes `gateway` or `gateway_file`, not both".into());
        }
        Ok(())
    }
}

/// Where the coordinator is: one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorConfig {
    /// Its URL, such as `http://10.0.0.7:9001`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A file with that URL, where it holds a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_file: Option<PathBuf>,
}

impl CoordinatorConfig {
    pub(super) fn check(&self) -> Result<(), String> {
        match (&self.url, &self.url_file) {
            (Some(_), Some(_)) | (None, None) => Err("coordinator takes one of `url` and `url_file`".into()),
            _ => Ok(()),
        }
    }
}
