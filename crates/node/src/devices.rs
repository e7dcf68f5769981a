//! What `config.toml` says of devices that encrypt.

use lockstep_identity::Curve;
use serde::{Deserialize, Serialize};

/// The section `[devices]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DevicesConfig {
    /// The curve of the master key in `server.secret` and `server.secret.old`, where the file does not say it.
    pub server_secret_curve: SecretCurve,
}

impl DevicesConfig {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The curve of a server's master key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretCurve {
    /// That of new deployments.
    #[default]
    Secp256k1,
    /// That of some older deployments.
    P256,
}

impl SecretCurve {
    pub(crate) const ALL: [Self; 2] = [Self::Secp256k1, Self::P256];

    /// Its name in `config.toml` and before a secret.
    pub fn name(self) -> &'static str {
        match self {
            Self::Secp256k1 => "secp256k1",
            Self::P256 => "p256",
        }
    }
}

impl From<Curve> for SecretCurve {
    fn from(curve: Curve) -> Self {
        match curve {
            Curve::Secp256k1 => Self::Secp256k1,
            Curve::P256 => Self::P256,
        }
    }
}

impl From<SecretCurve> for Curve {
    fn from(curve: SecretCurve) -> Self {
        match curve {
            SecretCurve::Secp256k1 => Self::Secp256k1,
            SecretCurve::P256 => Self::P256,
        }
    }
}
