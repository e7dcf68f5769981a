//! Gateways: boxes at sites, with keys of their own, that send bundles of messages over the peer-to-peer port.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lockstep_api::{Bundles, GatewayRights};
use lockstep_network::GatewayService;
use lockstep_network::limits::GATEWAYS_MAX;
use lockstep_types::{Address, ProjectId, PublicKey};
use serde::{Deserialize, Serialize};

/// Longest name of a gateway, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// A gateway that this node admits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// The operator's name for it.
    pub name: String,
    /// Its key.
    pub address: GatewayAddress,
    /// The projects that it may submit to; all, where this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projects: Option<BTreeSet<ProjectId>>,
}

/// The address of a gateway's key; may be written as the public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GatewayAddress(Address);

impl TryFrom<String> for GatewayAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        let address = match digits.len() {
            40 => format!("0x{digits}").parse().ok(),
            _ => hex::decode(digits).ok().and_then(|bytes| PublicKey::from_sec1(&bytes).ok()).map(|key| key.address()),
        };
        let wrong =
            || format!("{text:?} is neither an address (0x and 40 hex digits) nor a secp256k1 public key in hex");
        address.map(Self).ok_or_else(wrong)
    }
}

impl From<GatewayAddress> for String {
    fn from(address: GatewayAddress) -> Self {
        address.0.to_string()
    }
}

impl GatewayConfig {
    /// The address of its key.
    pub fn address(&self) -> Address {
        self.address.0
    }

    /// Looks for what is wrong with all of them together.
    pub(crate) fn check(gateways: &[Self]) -> Result<(), String> {
        if gateways.len() > GATEWAYS_MAX {
            return Err(format!("at most {GATEWAYS_MAX} gateways can be admitted"));
        }
        for (i, gateway) in gateways.iter().enumerate() {
            let name = &gateway.name;
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(format!("a gateway's name has 1 to {NAME_BYTES_MAX} bytes"));
            }
            if gateways[..i].iter().any(|other| other.name == *name) {
                return Err(format!("two gateways are named {name}"));
            }
            if gateways[..i].iter().any(|other| other.address == gateway.address) {
                return Err(format!("gateway {name} has the key of another one"));
            }
            if gateway.projects.as_ref().is_some_and(BTreeSet::is_empty) {
                return Err(format!("gateway {name}: `projects` is empty; leave it out to admit it to all projects"));
            }
        }
        Ok(())
    }
}

/// Serves those that are admitted.
pub(crate) struct Gateways {
    bundles: Bundles,
    admitted: BTreeMap<Address, (String, GatewayRights)>,
}

impl Gateways {
    pub fn new(bundles: Bundles, gateways: &[GatewayConfig]) -> Self {
        let rights = |gateway: &GatewayConfig| {
            let address = gateway.address();
            (address, (gateway.name.clone(), GatewayRights { address, projects: gateway.projects.clone() }))
        };
        Self { bundles, admitted: gateways.iter().map(rights).collect() }
    }
}

impl GatewayService for Gateways {
    async fn handle(&self, from: Address, request: Bytes) -> Bytes {
        match self.admitted.get(&from) {
            Some((name, gateway)) => {
                tracing::debug!(gateway = name, bytes = request.len(), "a bundle of a gateway");
                self.bundles.submit(gateway, request).await
            }
            // The network lets nobody else through.
            None => Bytes::from_static(b"[]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::SigningKey;

    use super::*;

    #[test]
    fn a_gateway_is_named_by_its_address_or_its_public_key() {
        let key = SigningKey::from_bytes([5; 32]).unwrap();
        let read = |text: String| GatewayAddress::try_from(text);
        let address = GatewayAddress(key.address());
        assert_eq!(read(key.address().to_string()), Ok(address));
        assert_eq!(read(hex::encode(key.public().compressed())), Ok(address));
        assert_eq!(read(format!("0x{}", hex::encode(key.public().compressed()))), Ok(address));
        for bad in ["", "0x", "0x12", &"0".repeat(66), &"zz".repeat(20)] {
            assert!(read(bad.into()).is_err_and(|error| error.contains("40 hex digits")), "{bad}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let gateway = |name: &str, key: u8| GatewayConfig {
            name: name.into(),
            address: GatewayAddress(SigningKey::from_bytes([key; 32]).unwrap().address()),
            projects: None,
        };
        let none = GatewayConfig { projects: Some(BTreeSet::new()), ..gateway("c", 3) };
        let error = |gateways: &[GatewayConfig]| GatewayConfig::check(gateways).unwrap_err();
        assert_eq!(GatewayConfig::check(&[gateway("a", 1), gateway("b", 2)]), Ok(()));
        assert!(error(&[gateway("a", 1), gateway("a", 2)]).contains("two gateways are named a"));
        assert!(error(&[gateway("a", 1), gateway("b", 1)]).contains("gateway b has the key of another"));
        assert!(error(&[none]).contains("leave it out"));
    }
}
