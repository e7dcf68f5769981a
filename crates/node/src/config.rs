//! A node's own configuration, `config.toml`. Nothing in it changes what the network computes: that is the genesis.

mod chain;
mod outputs;
mod w3bstream;

use std::net::SocketAddr;

use lockstep_consensus::CompactionOptions;
use lockstep_ledger::{PoolLimits, RULES_FIRST, RULES_NEWEST};
pub use lockstep_outputs::Layout;
use lockstep_types::OutputName;
use serde::{Deserialize, Serialize};

use crate::devices::DevicesConfig;
use crate::doors::{LimitsConfig, TlsConfig};
use crate::error::NodeError;
use crate::gateways::GatewayConfig;

pub use self::chain::{CHAIN_SPAN_MAX, CHAIN_SPAN_MAX_DEFAULT, ChainConfig, CoordinatorConfig};
pub use self::outputs::{OutputConfig, OutputKind, Scope};
#[cfg(feature = "gossip")]
pub use self::w3bstream::ATTEMPTS_MAX_DEFAULT;
pub use self::w3bstream::W3bstreamConfig;

/// The file. Paths are relative to the node's home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// HTTP and gRPC.
    pub http: HttpConfig,
    /// Peer-to-peer.
    pub p2p: P2pConfig,
    /// Limits on what waits for its place.
    #[serde(default)]
    pub pool: PoolConfig,
    /// How fast devices, projects and addresses may send.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// TLS on the HTTP port; without it that is plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Timing of consensus.
    #[serde(default)]
    pub raft: RaftConfig,
    /// How far the network may be taken.
    #[serde(default)]
    pub upgrade: UpgradeConfig,
    /// Devices that encrypt.
    #[serde(default, skip_serializing_if = "DevicesConfig::is_default")]
    pub devices: DevicesConfig,
    /// Where this node reads the chain of the network's devices, if the network has one. Without it the node has no
    /// opinion about the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<ChainConfig>,
    /// Who is asked what became of tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<CoordinatorConfig>,
    /// W3bstream's network, where this node announces tasks on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub w3bstream: Option<W3bstreamConfig>,
    /// Stores that this node feeds.
    #[serde(default, rename = "output", skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputConfig>,
    /// Gateways that may send bundles of messages to this node's peer-to-peer port.
    #[serde(default, rename = "gateway", skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<GatewayConfig>,
}

/// HTTP and gRPC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// Address and port.
    pub listen: SocketAddr,
    /// How long a message is held while no majority can be reached; real devices give up after 3 to 5 s.
    #[serde(default = "default_hold_ms")]
    pub hold_ms: u64,
    /// Most open connections.
    #[serde(default = "default_connections_max")]
    pub connections_max: usize,
}

/// Requests end before their message leaves the pool, so that what they are told is true.
const HOLD_MS_MAX: u64 = 4_000;

fn default_hold_ms() -> u64 {
    2_500
}

fn default_connections_max() -> usize {
    8_192
}

impl HttpConfig {
    /// Defaults at an address.
    pub fn at(listen: SocketAddr) -> Self {
        Self { listen, hold_ms: default_hold_ms(), connections_max: default_connections_max() }
    }
}

/// Peer-to-peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct P2pConfig {
    /// Multiaddresses to listen on.
    pub listen: Vec<String>,
    /// Multiaddresses that other nodes are told, where those of `listen` are not the way in (port mapping, a proxy).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advertise: Vec<String>,
    /// Further addresses of members, each with /p2p/ and a peer id at its end, for when those of the member list no
    /// longer lead anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bootstrap: Vec<String>,
    /// A message that is not ordered after this time is gossiped to all nodes, so that any of them can carry on.
    #[serde(default = "default_gossip_delay_ms")]
    pub gossip_delay_ms: u64,
}

fn default_gossip_delay_ms() -> u64 {
    150
}

impl P2pConfig {
    /// Defaults at an address.
    pub fn at(listen: String) -> Self {
        Self {
            listen: vec![listen],
            advertise: Vec::new(),
            bootstrap: Vec::new(),
            gossip_delay_ms: default_gossip_delay_ms(),
        }
    }
}

/// Limits on what waits for its place; beyond them: 429.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolConfig {
    /// Most messages.
    pub messages_max: usize,
    /// Most bytes.
    pub bytes_max: usize,
    /// Threads that check signatures; 0: one a core.
    pub verify_threads: usize,
}

impl Default for PoolConfig {
    fn default() -> Self {
        let limits = PoolLimits::default();
        Self { messages_max: limits.messages_max, bytes_max: limits.bytes_max, verify_threads: 0 }
    }
}

/// Timing of consensus, and how long its log may get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaftConfig {
    /// T: a leader that is silent for 2.5 T to 3 T is replaced.
    pub election_timeout_ms: u64,
    /// How often a leader speaks when there is nothing to say.
    pub heartbeat_ms: u64,
    /// Bytes of log entries since the last snapshot; with more, a snapshot is made and the log purged.
    pub log_bytes_max: u64,
    /// Log entries since the last snapshot; as `log_bytes_max`.
    pub log_entries_max: u64,
    /// Newest log entries that are kept although a snapshot contains them, at most half of `log_bytes_max`.
    pub log_kept_entries: u64,
}

impl Default for RaftConfig {
    fn default() -> Self {
        let CompactionOptions { log_bytes_max, log_entries_max, log_kept_entries } = CompactionOptions::default();
        Self { election_timeout_ms: 700, heartbeat_ms: 200, log_bytes_max, log_entries_max, log_kept_entries }
    }
}

impl RaftConfig {
    /// How long the log may get.
    pub fn compaction(&self) -> CompactionOptions {
        CompactionOptions {
            log_bytes_max: self.log_bytes_max,
            log_entries_max: self.log_entries_max,
            log_kept_entries: self.log_kept_entries,
        }
    }
}

/// How far the network may be taken by new versions of the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpgradeConfig {
    /// Newest rules of `apply` that this operator agrees to; they hold once every member agrees. Lower it to hold an
    /// upgrade back. Up to [`REHEARSED_RULES`] more than this program has are taken to rehearse an upgrade: they are the
    /// newest rules under another number.
    pub rules_max: u32,
}

/// Rules of `apply` that an upgrade can be rehearsed with.
pub const REHEARSED_RULES: u32 = 8;

impl UpgradeConfig {
    /// The newest rules of `apply` that the node knows, whether or not its operator agrees to them yet.
    pub fn rules_known(&self) -> u32 {
        self.rules_max.max(RULES_NEWEST)
    }
}

impl Default for UpgradeConfig {
    fn default() -> Self {
        Self { rules_max: RULES_NEWEST }
    }
}

impl Config {
    /// Outputs that the nodes of the network feed in turns.
    pub(crate) fn network_outputs(&self) -> impl Iterator<Item = OutputName> {
        self.outputs.iter().filter(|output| output.scope == Scope::Network).map(|output| output.name.clone())
    }

    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// A sentence that names the line or the setting.
    pub fn parse(text: &str) -> Result<Self, NodeError> {
        let bad = |reason: String| NodeError::Config(format!("config.toml: {reason}"));
        let config: Self = toml::from_str(text).map_err(|e| bad(e.to_string().trim().replace('\n', " ")))?;
        if config.http.hold_ms == 0 || config.http.hold_ms > HOLD_MS_MAX {
            return Err(bad(format!("hold_ms must be from 1 to {HOLD_MS_MAX}")));
        }
        let raft = &config.raft;
        if raft.heartbeat_ms == 0 || raft.election_timeout_ms < 3 * raft.heartbeat_ms {
            return Err(bad("election_timeout_ms must be at least three times heartbeat_ms".into()));
        }
        if !(RULES_FIRST..=RULES_NEWEST + REHEARSED_RULES).contains(&config.upgrade.rules_max) {
            return Err(bad(format!(
                "rules_max must be from {RULES_FIRST} to {RULES_NEWEST} (or up to {} to rehearse an upgrade)",
                RULES_NEWEST + REHEARSED_RULES
            )));
        }
        if raft.log_bytes_max == 0 || raft.log_entries_max == 0 {
            return Err(bad("log_bytes_max and log_entries_max must be at least 1".into()));
        }
        if config.pool.messages_max == 0 || config.pool.bytes_max == 0 || config.http.connections_max == 0 {
            return Err(bad("limits must be at least 1".into()));
        }
        config.chain.as_ref().map_or(Ok(()), ChainConfig::check).map_err(bad)?;
        config.coordinator.as_ref().map_or(Ok(()), CoordinatorConfig::check).map_err(bad)?;
        GatewayConfig::check(&config.gateways).map_err(bad)?;
        config.w3bstream.as_ref().map_or(Ok(()), |w3bstream| w3bstream.check(&config.outputs)).map_err(bad)?;
        for (i, output) in config.outputs.iter().enumerate() {
            if config.outputs[..i].iter().any(|other| other.name == output.name) {
                return Err(bad(format!("two outputs are named {}", output.name)));
            }
        }
        Ok(config)
    }

    /// The file's text.
    ///
    /// # Errors
    /// If it cannot be written as TOML.
    pub fn to_text(&self) -> Result<String, NodeError> {
        toml::to_string(self).map_err(|e| NodeError::Config(format!("config.toml cannot be written: {e}")))
    }

    /// The pool's limits.
    pub fn pool_limits(&self) -> PoolLimits {
        PoolLimits { messages_max: self.pool.messages_max, bytes_max: self.pool.bytes_max }
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::ProjectId;

    use super::*;
    use crate::blob_outputs::BlobKind;

    fn example() -> Config {
        Config {
            http: HttpConfig::at("127.0.0.1:9000".parse().unwrap()),
            p2p: P2pConfig::at("/ip4/127.0.0.1/tcp/9100".into()),
            pool: PoolConfig::default(),
            limits: LimitsConfig {
                trusted_proxies: vec!["10.0.0.1".to_owned().try_into().unwrap()],
                ..LimitsConfig::default()
            },
            tls: Some(TlsConfig { cert: "cert.pem".into(), key: "key.pem".into() }),
            raft: RaftConfig::default(),
            upgrade: UpgradeConfig::default(),
            devices: DevicesConfig { server_secret_curve: crate::devices::SecretCurve::P256 },
            chain: Some(ChainConfig {
                rpc_file: "chain.rpc".into(),
                gateway: Some("https://gateway.example/ipfs".into()),
                gateway_file: None,
                span_max: 500,
                poll_ms: 2_000,
            }),
            coordinator: Some(CoordinatorConfig { url: None, url_file: Some("coordinator.url".into()) }),
            w3bstream: Some(W3bstreamConfig {
                chain_id: 2,
                listen: vec!["/ip4/0.0.0.0/tcp/9200".into()],
                advertise: Vec::new(),
                bootstrap: vec!["/dns4/w3bstream.example/tcp/8000/p2p/16Uiu2HAm6teP".into()],
                key_file: "w3bstream.key".into(),
                output: "tasks".parse().unwrap(),
                attempts_max: 5,
            }),
            outputs: vec![
                OutputConfig {
                    name: "tasks".parse().unwrap(),
                    scope: Scope::Node,
                    projects: Some([ProjectId(7), ProjectId(8)].into()),
                    kind: OutputKind::Sqlite { path: "tasks.sqlite".into(), layout: Layout::Apinode },
                },
                OutputConfig {
                    name: "w3bstream".parse().unwrap(),
                    scope: Scope::Network,
                    projects: None,
                    kind: OutputKind::Postgres {
                        dsn_file: "postgres.dsn".into(),
                        schema: "public".into(),
                        layout: Layout::Sprout,
                        ca_file: Some("postgres-ca.pem".into()),
                    },
                },
                OutputConfig {
                    name: "blobs".parse().unwrap(),
                    scope: Scope::Network,
                    projects: None,
                    kind: OutputKind::Blobs(BlobKind::Object {
                        url: "s3://tasks/ours".into(),
                        credentials_file: Some("s3.credentials".into()),
                    }),
                },
            ],
            gateways: vec![GatewayConfig {
                name: "barn".into(),
                address: format!("0x{}", "5a".repeat(20)).try_into().unwrap(),
                projects: Some([lockstep_types::ProjectId(7)].into()),
            }],
        }
    }

    #[test]
    fn a_written_configuration_reads_back() {
        assert_eq!(Config::parse(&example().to_text().unwrap()).unwrap(), example());
    }

    #[test]
    fn mistakes_are_named() {
        let text = example().to_text().unwrap();
        let error = |text: &str| Config::parse(text).unwrap_err().to_string();
        assert!(error(&text.replace("hold_ms", "hold_msec")).contains("hold_msec"));
        assert!(error(&text.replace("name = \"w3bstream\"", "name = \"tasks\"")).contains("two outputs"));
        assert!(error(&text.replace("output = \"tasks\"", "output = \"w3bstream\"")).contains("layout apinode"));
        assert!(error(&text.replace("projects = [7, 8]", "projects = []")).contains("`projects`"));
        assert!(error(&text.replace("\"sprout\"", "\"spruce\"")).contains("spruce"));
        assert!(error(&text.replace("per_second = 1000", "per_second = -1")).contains("per_second"));
        assert!(error(&text.replace("cert = ", "certs = ")).contains("certs"));
        assert!(error(&text.replace("10.0.0.1/32", "nowhere")).contains("nowhere"));
        assert!(error(&text.replace("0x5a", "0x")).contains("40 hex digits"));
        assert!(error(&text.replace("projects = [7]", "projects = []")).contains("gateway barn"));
        assert!(error(&text.replace("url_file", "url = \"http://a\"\nurl_file")).contains("one of"));
        assert!(error("[http").contains("config.toml"));
        assert!(error(&text.replace("span_max = 500", "span_max = 0")).contains("span_max"));
        assert!(error(&text.replace("poll_ms = 2000", "poll_ms = 1")).contains("poll_ms"));
        assert!(error(&text.replace("poll_ms", "gateway_file = \"g\"\npoll_ms")).contains("not both"));
        assert!(error(&text.replace("output = \"tasks\"", "output = \"nowhere\"")).contains("no output nowhere"));
        assert!(error(&text.replace("attempts_max = 5", "attempts_max = 0")).contains("attempts_max"));
        assert!(error(&text.replace("heartbeat_ms = 200", "heartbeat_ms = 600")).contains("three times"));
    }
}
