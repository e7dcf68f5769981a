//! A URL that may hold credentials, and the HTTP client that asks it.

use std::error::Error as _;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, Url};

/// Until a connection stands, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is closed after this time: many servers close theirs after a minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections that are kept open without a request.
const IDLE_CONNECTIONS_MAX: usize = 4;
/// Of a reason that somebody else's software words.
const REASON_CHARS_MAX: usize = 200;

/// An `http` or `https` URL. Path, query and user information may be credentials, so only scheme, host and port
/// are ever shown.
#[derive(Clone)]
pub struct Endpoint(Url);

/// Why a text cannot be an [`Endpoint`]. Never repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not a URL at all.
    #[error("not a URL; write it as https://host/path")]
    NotAUrl,
    /// Another scheme, or no host.
    #[error("the URL must begin with http:// or https:// and name a host")]
    Scheme,
    /// No HTTP client can be made, most likely because the system has no certificates of authorities.
    #[error("TLS cannot be set up; install the system's CA certificates")]
    Tls,
}

impl Endpoint {
    /// The URL with everything that it may hide.
    pub fn url(&self) -> &Url {
        &self.0
    }

    /// Whether a text from outside repeats a part of the URL that may be a credential.
    pub(crate) fn is_repeated_in(&self, text: &str) -> bool {
        // Shorter parts are words such as `rpc` and `v1`.
        let secret = |part: &str| part.len() >= 8 && text.contains(part);
        let url = &self.0;
        url.password().is_some_and(secret)
            || secret(url.username())
            || url.path().split('/').any(secret)
            || url.query_pairs().any(|(_, value)| secret(&value))
    }

    /// A client that follows no redirect and uses no proxy: it connects to the URL's host and nowhere else.
    /// `timeout` covers each request up to the last byte of its answer.
    pub fn client(&self, timeout: Duration) -> Result<Client, EndpointError> {
        let builder = Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("lockstep/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .timeout(timeout);
        // Without TLS no certificates are needed, and a machine without any shall still read a local node.
        let builder = if self.0.scheme() == "http" { builder.tls_certs_only([]) } else { builder };
        builder.build().map_err(|_| EndpointError::Tls)
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let mut url: Url = text.trim().parse().map_err(|_| EndpointError::NotAUrl)?;
        url.set_fragment(None);
        match url.scheme() {
            "http" | "https" if url.has_host() => Ok(Self(url)),
            _ => Err(EndpointError::Scheme),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.origin().ascii_serialization())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What can go wrong before there is a whole answer.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// No connection, or it broke.
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    /// Too slow.
    #[error("the server did not answer in time")]
    Timeout,
    /// Longer than was asked for.
    #[error("the answer is too long")]
    TooLarge,
}

impl From<reqwest::Error> for TransferError {
    fn from(error: reqwest::Error) -> Self {
        if error.is_timeout() {
            return Self::Timeout;
        }
        // reqwest's own text names the URL; the innermost cause says what happened.
        let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
        while let Some(inner) = cause.and_then(|cause| cause.source()) {
            cause = Some(inner);
        }
        let reason = cause.map_or_else(|| "the request failed".to_owned(), ToString::to_string);
        Self::Unreachable(shortened(&reason))
    }
}

/// Printable and short, whoever wrote it.
pub(crate) fn shortened(text: &str) -> String {
    text.chars().take(REASON_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Sends a request and waits for the head of the answer.
pub async fn send(request: RequestBuilder) -> Result<Response, TransferError> {
    Ok(request.send().await?)
}

/// The body, or an error as soon as it is known to be longer than `bytes_max`.
pub async fn read_body(mut response: Response, bytes_max: usize) -> Result<Vec<u8>, TransferError> {
    if response.content_length().is_some_and(|length| length > bytes_max as u64) {
        return Err(TransferError::TooLarge);
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > bytes_max {
            return Err(TransferError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_never_shows_what_may_be_a_credential() {
        let text = "https://user:passw0rd@rpc.example.org:8443/v3/0123456789abcdef?key=topsecret1";
        let endpoint: Endpoint = text.parse().unwrap();
        assert_eq!(format!("{endpoint} {endpoint:?}"), ["https://rpc.example.org:8443"; 2].join(" "));
        for part in ["passw0rd", "0123456789abcdef", "topsecret1"] {
            assert!(endpoint.is_repeated_in(&format!("project {part} has no credit")), "{part}");
        }
        assert!(!endpoint.is_repeated_in("the v3 range is too large"));
    }

    #[test]
    fn only_http_urls_with_a_host_are_endpoints() {
        let refused = |text: &str| text.parse::<Endpoint>().unwrap_err();
        assert_eq!(refused("file:///etc/passwd"), EndpointError::Scheme);
        assert_eq!(refused("localhost"), EndpointError::NotAUrl);
        assert!(" http://127.0.0.1:8545\n".parse::<Endpoint>().is_ok());
    }
}
