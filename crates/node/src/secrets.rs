//! The server secret for devices that encrypt, and the one before it, which stays good while it is replaced.

use std::path::Path;
use std::sync::Arc;

use lockstep_identity::envelope::EnvelopeError;
use lockstep_identity::{Curve, Opened, ServerIdentity, ServerSecret, Token, TokenError};
use zeroize::Zeroizing;

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

fn read(path: &Path) -> Result<Option<ServerIdentity>, NodeError> {
    let bad = |e: &dyn std::fmt::Display| NodeError::Config(format!("{}: {e}", path.display()));
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let text = Zeroizing::new(text);
            let secret = ServerSecret::from_base64(&text, Curve::Secp256k1).map_err(|e| bad(&e))?;
            Ok(Some(ServerIdentity::new(secret)))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(bad(&error)),
    }
}

impl ServerSecrets {
    /// Reads the secrets of a home; `None` where it has none.
    ///
    /// # Errors
    /// If a file is there that holds no secret.
    pub fn read(home: &Path) -> Result<Option<Self>, NodeError> {
        let Some(current) = read(&home.join(SERVER_SECRET_FILE))? else { return Ok(None) };
        let old = read(&home.join(SERVER_SECRET_OLD_FILE))?;
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
