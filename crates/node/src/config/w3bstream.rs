//! W3bstream's network, where tasks are announced on it. A program without the feature `gossip` reads this too, and says that
//! it was built without.

use std::path::PathBuf;

use lockstep_types::OutputName;
use serde::{Deserialize, Serialize};

use super::{Layout, OutputConfig, OutputKind};

/// Announcements of one task where the file says nothing: they come to an end within half an hour.
pub const ATTEMPTS_MAX_DEFAULT: u32 = 12;

/// W3bstream's network, on which tasks of one output are announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct W3bstreamConfig {
    /// The chain of W3bstream's contracts; it is in the name of their network's protocol.
    pub chain_id: u64,
    /// Multiaddresses to listen on, TCP.
    pub listen: Vec<String>,
    /// Multiaddresses that others are told, where those of `listen` are not the way in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advertise: Vec<String>,
    /// Peers of that network to begin with, each with /p2p/ and a peer id at its end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bootstrap: Vec<String>,
    /// The node's key on that network, and of nothing else; made when it is missing.
    #[serde(default = "default_key_file")]
    pub key_file: PathBuf,
    /// The output whose tasks are announced.
    pub output: OutputName,
    /// Announcements of one task at most.
    #[serde(default = "default_attempts_max")]
    pub attempts_max: u32,
}

fn default_key_file() -> PathBuf {
    "w3bstream.key".into()
}

fn default_attempts_max() -> u32 {
    ATTEMPTS_MAX_DEFAULT
}

impl W3bstreamConfig {
    /// Checks it against the outputs; the error names the setting.
    pub(super) fn check(&self, outputs: &[OutputConfig]) -> Result<(), String> {
        let named = outputs.iter().find(|output| output.name == self.output);
        let named = named.ok_or_else(|| format!("w3bstream.output: there is no output {}", self.output))?;
        // Whoever hears of a task there looks for it in tables of the layout apinode.
        match named.kind {
            OutputKind::Sqlite { layout: Layout::Apinode, .. }
            | OutputKind::Postgres { layout: Layout::Apinode, .. } => {}
            _ => return Err(format!("w3bstream.output: output {} has no tables of the layout apinode", self.output)),
        }
        if self.attempts_max == 0 {
            return Err("w3bstream.attempts_max must be at least 1".into());
        }
        Ok(())
    }
}
