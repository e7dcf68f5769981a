//! How the doors are set up: limits on senders, TLS, and the API's port.

use std::path::{Path, PathBuf};

use lockstep_api::rate::Rate;
use lockstep_api::{ApiError, Bound, Options, Server, TlsFiles, TrustedProxy};
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// How fast devices, projects and addresses may send to this node; beyond: 429. A rate of 0 per second is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Messages of one device. Messages without a device (unsigned ones) are not counted here.
    pub device: Rate,
    /// Messages of one project, all its devices together.
    pub project: Rate,
    /// Requests, reads among them, of one address (of IPv6: one /64 network).
    pub address: Rate,
    /// Open HTTP connections of one address, counted in the same way, trusted proxies left out; one more is dropped at
    /// once. 0 is no limit.
    pub address_connections: usize,
    /// Addresses or networks of proxies whose `X-Forwarded-For` says whose request it is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<TrustedProxy>,
}

impl Default for LimitsConfig {
    /// A device that runs wild cannot take a node for itself, and no real one comes near. Addresses and projects have no
    /// limit, because nobody but the operator knows how many devices are behind one.
    fn default() -> Self {
        Self {
            device: Rate { per_second: 1_000, burst: 2_000 },
            project: Rate::UNLIMITED,
            address: Rate::UNLIMITED,
            address_connections: 0,
            trusted_proxies: Vec::new(),
        }
    }
}

/// Certificate and key of the HTTP port, both PEM. Paths are relative to the node's home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate, and those that lead to one that clients know.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Takes the API's port, with all that the configuration says of it.
pub(crate) fn bind_api(home: &Path, config: &Config, message_bytes_max: u64) -> Result<Bound, ApiError> {
    let options = Options {
        connections_max: config.http.connections_max,
        connections_per_address_max: config.limits.address_connections,
        address_rate: config.limits.address,
        trusted_proxies: config.limits.trusted_proxies.clone(),
        ..Options::for_messages_of(message_bytes_max)
    };
    let bound = Server::bind(options, config.http.listen)?;
    match &config.tls {
        Some(TlsConfig { cert, key }) => bound.with_tls(TlsFiles { cert: home.join(cert), key: home.join(key) }),
        None => Ok(bound),
    }
}
