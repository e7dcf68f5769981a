//! Credential tokens: a server's signed word that a device is the one it says.
//!
//! Source: vectors/ioconnect/README.md, section 3. A token has no expiry; the curve is that of the issuer's key,
//! whatever the header's label.

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::base64url;
use crate::did::Did;
use crate::keys::MasterPublicKey;
use crate::secret::ServerIdentity;

/// Longest token that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 2_048;
/// What a token of ours never exceeds, in bytes: devices have a fixed buffer for it.
pub const ISSUED_TOKEN_BYTES_MAX: usize = 960;

/// base64url of `{"alg":"ES256"}`.
const HEADER: &str = "eyJhbGciOiJFUzI1NiJ9";
/// The last second of the year 9999, which is as far as RFC 3339 goes.
const LAST_SECOND: u64 = 253_402_300_799;

/// Why a token is refused. The device has to ask for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than [`TOKEN_BYTES_MAX`].
    #[error("a token has at most {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    /// Not three parts of base64url, the last of 64 bytes.
    #[error("a token is three parts of base64url, the last of 64 bytes")]
    Malformed,
    /// Not signed by the issuer asked about.
    #[error("the token was not issued here, or was altered")]
    Signature,
    /// Properly signed, but names no device.
    #[error("the token names no device")]
    NoSubject,
}

impl TokenError {
    /// A word for machines, stable across versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLong | Self::Malformed => "malformed_token",
            Self::Signature => "bad_token",
            Self::NoSubject => "token_without_subject",
        }
    }
}

/// What a valid token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The device.
    pub subject: Did,
    /// When it was issued, in seconds since the Unix epoch; `None` where the token does not say so in RFC 3339.
    pub issued_at_s: Option<u64>,
}

impl Token {
    /// Checks a token against its issuer's key. Costs one signature verification. As the reference, looks neither
    /// at `alg` nor at `iss`: only the key says who signed. Whether a token is too old is for the caller to say.
    pub fn verify(issuer: &MasterPublicKey, text: &str) -> Result<Self, TokenError> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        base64url::decode(header).ok_or(TokenError::Malformed)?;
        // A fourth part would leave a dot in here, which is not in the alphabet.
        let payload = base64url::decode(payload).ok_or(TokenError::Malformed)?;
        let signature = base64url::decode_array(signature).ok_or(TokenError::Malformed)?;
        if !issuer.verifies(signed.as_bytes(), &signature) {
            return Err(TokenError::Signature);
        }
        let claims: Value = serde_json::from_slice(&payload).map_err(|_| TokenError::NoSubject)?;
        let credential = &claims["vp"];
        let subject = credential["credentialSubject"][0]["id"].as_str().ok_or(TokenError::NoSubject)?;
        let subject = subject.parse().map_err(|_| TokenError::NoSubject)?;
        Ok(Self { subject, issued_at_s: credential["issuanceDate"].as_str().and_then(seconds) })
    }
}

impl ServerIdentity {
    /// A token for the device `subject`, issued at `issued_at_s` seconds since the Unix epoch. The same arguments
    /// give the same token.
    pub fn issue_token(&self, subject: &Did, issued_at_s: u64) -> String {
        let claims = claims(&self.did(), subject, &date_text(issued_at_s));
        let mut token = format!("{HEADER}.{}", base64url::encode(claims));
        let signature = self.party.secret.master.sign(token.as_bytes());
        token.push('.');
        token.push_str(&base64url::encode(signature));
        token
    }

    /// [`Token::verify`] with the server's own key.
    pub fn verify_token(&self, text: &str) -> Result<Token, TokenError> {
        Token::verify(self.public_key(), text)
    }
}

/// To the byte what the C library prints.
fn claims(issuer: &Did, subject: &Did, date: &str) -> String {
    let context = "\"https://www.w3.org/2018/credentials/v1\", \"https://www.w3.org/2018/credentials/examples/v1\"";
    format!(
        "{{\n\t\"iss\":\t\"{issuer}\",\n\t\"vp\":\t{{\n\t\t\"@context\":\t[{context}],\n\
         \t\t\"id\":\t\"http://example.org/credentials/3731\",\n\t\t\"type\":\t[\"VerifiableCredential\"],\n\
         \t\t\"credentialSubject\":\t[{{\n\t\t\t\t\"id\":\t\"{subject}\"\n\t\t\t}}],\n\
         \t\t\"issuer\":\t{{\n\t\t\t\"id\":\t\"{issuer}\"\n\t\t}},\n\t\t\"issuanceDate\":\t\"{date}\"\n\t}}\n}}"
    )
}

fn date_text(seconds: u64) -> String {
    let seconds = i64::try_from(seconds.min(LAST_SECOND)).unwrap_or_default();
    let date = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    date.format(&Rfc3339).expect("a date of the years 1970 to 9999 has a text")
}

fn seconds(date: &str) -> Option<u64> {
    let date = OffsetDateTime::parse(date, &Rfc3339).ok()?;
    u64::try_from(date.unix_timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_read_back_and_the_unreadable_is_none() {
        for at in [0, 1, 951_827_696, 1_794_895_645, LAST_SECOND] {
            assert_eq!(seconds(&date_text(at)), Some(at));
        }
        assert_eq!(date_text(1_795_327_645), "2026-11-22T06:07:25Z");
        assert_eq!(date_text(u64::MAX), "9999-12-31T23:59:59Z");
        assert_eq!(seconds("2026-11-22T07:07:25.9+01:00"), Some(1_795_327_645));
        for bad in ["", "2026-11-22", "yesterday", "1960-01-01T00:00:00Z", "2026-13-01T00:00:00Z"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
