//! The server secret for devices that encrypt, and the one before it, which stays good while it is replaced.

use std::path::Path;
use std::sync::Arc;

use lockstep_identity::envelope::EnvelopeError;
use lockstep_identity::{Opened, SecretError, ServerIdentity, ServerSecret, Token, TokenError};
use zeroize::Zeroizing;

use crate::devices::SecretCurve;
use crate::error::NodeError;

/// File of the secret in a home.
pub const SERVER_SECRET_FILE: &str = "server.secret";
/// File of the secret before it.
pub const SERVER_SECRET_OLD_FILE: &str = "server.secret.old";

/// See the module's documentation.
pub struct ServerSecrets {
    current: ServerIdentity,
    old: Option<ServerIdentity>,
    document: Arc<str>,
}

/// Reads the text of a secret: base64, and before it, where the curve of the master key is not `usual`, the curve's name and
/// a colon. So a secret and the one before it may differ in that.
///
/// # Errors
/// If it is no secret.
pub fn parse_secret(text: &str, usual: SecretCurve) -> Result<ServerSecret, SecretError> {
    let text = text.trim_start();
    let named = SecretCurve::ALL.into_iter().find_map(|curve| {
        let rest = text.strip_prefix(curve.name())?.strip_prefix(':')?;
        Some((curve, rest))
    });
    let (curve, text) = named.unwrap_or((usual, text));
    ServerSecret::from_base64(text, curve.into())
}

/// Writes a secret so that [`parse_secret`] reads it back.
pub fn secret_text(secret: &ServerSecret, usual: SecretCurve) -> Zeroizing<String> {
    let (text, curve) = (secret.to_base64(), SecretCurve::from(secret.curve()));
    Zeroizing::new(if curve == usual { format!("{}\n", *text) } else { format!("{}:{}\n", curve.name(), *text) })
}

fn read(path: &Path, usual: SecretCurve) -> Result<Option<ServerIdentity>, NodeError> {
    let bad = |e: &dyn std::fmt::Display| NodeError::Config(format!("{}: {e}", path.display()));
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let text = Zeroizing::new(text);
            let secret = parse_secret(&text, usual).map_err(|e| bad(&e))?;
            Ok(Some(ServerIdentity::new(secret)))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(bad(&error)),
    }
}

impl ServerSecrets {
    /// Reads the secrets of a home, whose master keys are on the `usual` curve where the files do not say it; `None` where
    /// it has none.
    ///
    /// # Errors
    /// If a file is there that holds no secret.
    pub fn read(home: &Path, usual: SecretCurve) -> Result<Option<Self>, NodeError> {
        let Some(current) = read(&home.join(SERVER_SECRET_FILE), usual)? else { return Ok(None) };
        let old = read(&home.join(SERVER_SECRET_OLD_FILE), usual)?;
        let document = current.document().into();
        Ok(Some(Self { current, old, document }))
    }

    /// What answers and tokens are made with.
    pub fn current(&self) -> &ServerIdentity {
        &self.current
    }

    /// The DID document of the current secret.
    pub fn document(&self) -> Arc<str> {
        self.document.clone()
    }

    /// Checks a token that this server issued, lately or before its secret was replaced.
    ///
    /// # Errors
    /// If it is no token of this server.
    pub fn verify_token(&self, text: &str) -> Result<Token, TokenError> {
        self.current.verify_token(text).or_else(|error| match &self.old {
            Some(old) => old.verify_token(text).map_err(|_| error),
            None => Err(error),
        })
    }

    /// Opens an envelope to the current secret or the one before it.
    ///
    /// # Errors
    /// If it is to neither, or was altered.
    pub fn open(&self, envelope: &[u8]) -> Result<Opened, EnvelopeError> {
        match (self.current.decrypt_request(envelope), &self.old) {
            (Err(EnvelopeError::NotForThisKey), Some(old)) => old.decrypt_request(envelope),
            (result, _) => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_on_the_usual_curve_unless_it_names_another() {
        let text = "Wlpa".repeat(21) + "Wg==";
        for (usual, curve) in SecretCurve::ALL.into_iter().flat_map(|a| SecretCurve::ALL.map(|b| (a, b))) {
            let secret = parse_secret(&format!("{}:{text}", curve.name()), usual).unwrap();
            let written = secret_text(&secret, usual);
            assert_eq!(written.contains(':'), curve != usual);
            let read = ServerIdentity::new(parse_secret(&written, usual).unwrap());
            assert_eq!(read.public_key().curve(), curve.into());
            assert_eq!(read.did(), ServerIdentity::new(secret).did());
        }
        assert!(parse_secret(&format!("p384:{text}"), SecretCurve::P256).is_err());
    }
}
