//! What this program was built with, and what a network or a configuration needs of it.

use lockstep_ledger::check_rules;
use lockstep_types::NetworkParams;

use crate::config::Config;
use crate::error::NodeError;

/// Features of the program that a network or a configuration can need. Those of stores are asked for where these are opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Features {
    pub chain: bool,
    pub gossip: bool,
    pub rules: bool,
}

/// What this program has.
pub(crate) const BUILT_WITH: Features =
    Features { chain: cfg!(feature = "chain"), gossip: cfg!(feature = "gossip"), rules: lockstep_rules::HAS_ENGINE };

impl Features {
    /// Whether a node can take part in a network.
    ///
    /// # Errors
    /// Names what of the genesis needs which feature.
    pub fn check_network(self, params: &NetworkParams) -> Result<(), NodeError> {
        check_rules(params, self.rules)?;
        // A leader that cannot read the chain follows it for nobody.
        needs("the genesis: params.chain", params.chain.is_some(), ("chain", self.chain))
    }

    /// Whether a node can do what its configuration wants.
    ///
    /// # Errors
    /// Names the section and the feature that it needs.
    pub fn check_config(self, config: &Config) -> Result<(), NodeError> {
        needs("config.toml: [chain]", config.chain.is_some(), ("chain", self.chain))?;
        needs("config.toml: [coordinator]", config.coordinator.is_some(), ("chain", self.chain))?;
        needs("config.toml: [w3bstream]", config.w3bstream.is_some(), ("gossip", self.gossip))
    }
}

fn needs(what: &str, is_wanted: bool, (feature, is_there): (&str, bool)) -> Result<(), NodeError> {
    if !is_wanted || is_there {
        return Ok(());
    }
    Err(NodeError::Config(format!("{what}: {}", left_out(feature))))
}

/// What an operator does about a feature that is not there.
pub(crate) fn left_out(feature: &str) -> String {
    format!("this program was built without {feature}: build it with the feature {feature}")
}

#[cfg(test)]
mod tests {
    use lockstep_types::{Address, ChainSource};

    use super::*;
    use crate::config::{ChainConfig, CoordinatorConfig, HttpConfig, P2pConfig, W3bstreamConfig};

    const ALL: Features = Features { chain: true, gossip: true, rules: true };

    fn source() -> ChainSource {
        ChainSource {
            chain_id: 1,
            registry: Address([1; 20]),
            project_device: Address([2; 20]),
            task_manager: None,
            start_block: 1,
            confirmations: 1,
            attestations: 1,
        }
    }

    #[test]
    fn a_network_that_needs_what_is_not_there_is_refused_by_name() {
        let free = || NetworkParams { rules_fuel_per_second: Some(0), ..NetworkParams::default() };
        let on_chain = || NetworkParams { chain: Some(source()), ..free() };
        for (params, built_with, refused) in [
            (NetworkParams::default(), ALL, None),
            (on_chain(), ALL, None),
            (free(), Features { chain: false, gossip: false, rules: false }, None),
            (NetworkParams::default(), Features { rules: false, ..ALL }, Some("feature rules")),
            (on_chain(), Features { chain: false, ..ALL }, Some("feature chain")),
        ] {
            let error = built_with.check_network(&params).err();
            assert!(error.as_ref().is_none_or(NodeError::is_configuration), "{error:?}");
            let error = error.map(|error| error.to_string());
            assert_eq!(error.is_some(), refused.is_some(), "{error:?}");
            assert!(refused.is_none_or(|word| error.as_ref().is_some_and(|text| text.contains(word))), "{error:?}");
        }
    }

    #[test]
    fn a_section_that_needs_what_is_not_there_is_refused_by_name() {
        let plain = || Config {
            http: HttpConfig::at("127.0.0.1:9000".parse().unwrap()),
            p2p: P2pConfig::at("/ip4/127.0.0.1/tcp/9100".into()),
            pool: Default::default(),
            limits: Default::default(),
            tls: None,
            raft: Default::default(),
            upgrade: Default::default(),
            devices: Default::default(),
            chain: None,
            coordinator: None,
            w3bstream: None,
            outputs: Vec::new(),
            gateways: Vec::new(),
        };
        let chain = ChainConfig {
            rpc_file: "chain.rpc".into(),
            gateway: None,
            gateway_file: None,
            span_max: 500,
            poll_ms: 2_000,
        };
        let coordinator = CoordinatorConfig { url: Some("http://10.0.0.7:9001".into()), url_file: None };
        let w3bstream = W3bstreamConfig {
            chain_id: 2,
            listen: Vec::new(),
            advertise: Vec::new(),
            bootstrap: Vec::new(),
            key_file: "w3bstream.key".into(),
            output: "tasks".parse().unwrap(),
            attempts_max: 5,
        };
        let none = Features { chain: false, gossip: false, rules: false };
        assert!(none.check_config(&plain()).is_ok());
        for (config, section, feature) in [
            (Config { chain: Some(chain), ..plain() }, "[chain]", "feature chain"),
            (Config { coordinator: Some(coordinator), ..plain() }, "[coordinator]", "feature chain"),
            (Config { w3bstream: Some(w3bstream), ..plain() }, "[w3bstream]", "feature gossip"),
        ] {
            assert!(ALL.check_config(&config).is_ok(), "{section}");
            let error = none.check_config(&config).unwrap_err().to_string();
            assert!(error.contains(section) && error.contains(feature), "{error}");
        }
    }
}
