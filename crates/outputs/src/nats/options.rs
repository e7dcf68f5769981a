//! Where a stream is, and how its servers are reached.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};

/// Longest name of a stream, and longest prefix of subjects, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Most copies that servers keep of a stream.
const REPLICAS_MAX: usize = 5;
/// Most servers in one setting; those know the others of their cluster.
const SERVERS_MAX: usize = 16;

/// Longest rest between two tries to connect.
const RECONNECT_DELAY_MAX: Duration = Duration::from_millis(500);

/// Why a stream cannot be used. Never repeats a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NatsOptionsError {
    /// A server's URL.
    #[error(
        "write its servers as nats://host:port or tls://host:port, with user:password@ or token@ before the host if need be, one a line, at most {SERVERS_MAX}"
    )]
    Url,
    /// The stream's name.
    #[error("`stream` has letters, digits, - and _ only, at most {NAME_BYTES_MAX}")]
    Stream,
    /// The subjects' prefix.
    #[error("`subject` has words of letters, digits, - and _ with dots between them, at most {NAME_BYTES_MAX} bytes")]
    Subject,
    /// Copies.
    #[error("`replicas` is from 1 to {REPLICAS_MAX}")]
    Replicas,
    /// The file of credentials.
    #[error("the credentials are no user's JWT and seed, as `nsc` writes them")]
    Credentials,
}

/// Where the stream is.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsOptions {
    /// URLs of servers, with white space or commas between them. A user and password, or a token, in one of them is for
    /// all.
    pub servers: String,
    /// The stream's name.
    pub stream: String,
    /// What its subjects begin with.
    pub subject: String,
    /// Copies of each message, where the stream is made.
    pub replicas: usize,
    /// A user's JWT and seed, as the text of a `.creds` file.
    pub credentials: Option<String>,
    /// Certificates of those who vouch for the servers, in PEM; without it the system's.
    pub ca_file: Option<PathBuf>,
    /// Longest wait for one answer.
    pub timeout: Duration,
    /// For how long the servers know a message's id, where the stream is made. Nothing depends on it.
    pub duplicate_window: Duration,
}

impl fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, subject, replicas, ca_file, timeout, .. } = self;
        f.debug_struct("NatsOptions")
            .field("stream", stream)
            .field("subject", subject)
            .field("replicas", replicas)
            .field("ca_file", ca_file)
            .field("timeout", timeout)
            .finish_non_exhaustive()
    }
}

/// Checked options.
#[derive(Clone)]
pub(super) struct Target {
    pub servers: Vec<ServerAddr>,
    pub connect: ConnectOptions,
    pub stream: String,
    pub subject: String,
    pub replicas: usize,
    pub timeout: Duration,
    pub duplicate_window: Duration,
}

impl NatsOptions {
    /// The usual names and limits, and three copies.
    pub fn new(servers: impl Into<String>) -> Self {
        Self {
            servers: servers.into(),
            stream: "LOCKSTEP".to_owned(),
            subject: "lockstep".to_owned(),
            replicas: 3,
            credentials: None,
            ca_file: None,
            timeout: Duration::from_secs(5),
            duplicate_window: Duration::from_secs(120),
        }
    }

    /// Checks them. Nothing is connected yet.
    pub(super) fn check(&self) -> Result<Target, NatsOptionsError> {
        if !is_word(&self.stream) || self.stream.len() > NAME_BYTES_MAX {
            return Err(NatsOptionsError::Stream);
        }
        if !self.subject.split('.').all(is_word) || self.subject.len() > NAME_BYTES_MAX {
            return Err(NatsOptionsError::Subject);
        }
        if !(1..=REPLICAS_MAX).contains(&self.replicas) {
            return Err(NatsOptionsError::Replicas);
        }
        let mut connect = ConnectOptions::new()
            .name("lockstep")
            .connection_timeout(self.timeout)
            .request_timeout(Some(self.timeout))
            .reconnect_delay_callback(reconnect_delay);
        let mut servers = Vec::new();
        for text in self.servers.split([',', ' ', '\t', '\r', '\n']).filter(|text| !text.is_empty()) {
            let (server, login) = split_login(text).ok_or(NatsOptionsError::Url)?;
            servers.push(server);
            connect = match login {
                None => connect,
                Some((token, None)) => connect.token(token),
                Some((user, Some(password))) => connect.user_and_password(user, password),
            };
        }
        if servers.is_empty() || servers.len() > SERVERS_MAX {
            return Err(NatsOptionsError::Url);
        }
        if let Some(credentials) = &self.credentials {
            connect = connect.credentials(credentials).map_err(|_| NatsOptionsError::Credentials)?;
        }
        if let Some(file) = &self.ca_file {
            connect = connect.add_root_certificates(file.clone());
        }
        Ok(Target {
            servers,
            connect,
            stream: self.stream.clone(),
            subject: self.subject.clone(),
            replicas: self.replicas,
            timeout: self.timeout,
            duplicate_window: self.duplicate_window,
        })
    }
}

/// Before the next try to connect: none at first, and never so long that calls that wait for it give up.
fn reconnect_delay(attempts: usize) -> Duration {
    if attempts <= 1 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(attempts).unwrap_or(u32::MAX).min(16);
    Duration::from_millis(1 << doublings).min(RECONNECT_DELAY_MAX)
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// A user, or a token, and a password.
type Login = (String, Option<String>);

/// A server's address without the login in it, so that the client's own log never shows that.
fn split_login(text: &str) -> Option<(ServerAddr, Option<Login>)> {
    let mut url = text.parse::<ServerAddr>().ok()?.into_inner();
    let is_bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    if !matches!(url.scheme(), "nats" | "tls") || url.host_str().is_none_or(str::is_empty) || !is_bare {
        return None;
    }
    let password = url.password().map(decoded);
    let login = match (url.username(), password) {
        ("", None) => None,
        (user, None) => Some((decoded(user)?, None)),
        (user, Some(password)) => Some((decoded(user)?, Some(password?))),
    };
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    Some((ServerAddr::from_url(url).ok()?, login))
}

/// A part of a URL without its per cent signs.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                hex::decode(digits).ok()?.pop()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(change: impl FnOnce(&mut NatsOptions)) -> Option<NatsOptionsError> {
        let mut options = NatsOptions::new("nats://127.0.0.1:4222");
        change(&mut options);
        options.check().err()
    }

    #[test]
    fn mistakes_are_named_and_logins_are_never_shown() {
        assert_eq!(error(|o| o.servers = "nats://a:1, tls://u:topsecret@b\nc:4222".to_owned()), None);
        for servers in ["", "http://a", "nats://", "ws://a", "nats://a/b", "nats://u%zz@a", "nats://u:%ff@a"] {
            assert_eq!(error(|o| o.servers = servers.to_owned()), Some(NatsOptionsError::Url), "{servers}");
        }
        let many = "a ".repeat(SERVERS_MAX + 1);
        assert_eq!(error(|o| o.servers = many), Some(NatsOptionsError::Url));
        for name in ["", "a.b", "a b", "a*", &"a".repeat(NAME_BYTES_MAX + 1)] {
            assert_eq!(error(|o| o.stream = name.to_owned()), Some(NatsOptionsError::Stream), "{name}");
        }
        for subject in ["", "a..b", "a.", ">", "a.*", "$JS", &"a".repeat(NAME_BYTES_MAX + 1)] {
            assert_eq!(error(|o| o.subject = subject.to_owned()), Some(NatsOptionsError::Subject), "{subject}");
        }
        assert_eq!(error(|o| o.replicas = 0), Some(NatsOptionsError::Replicas));
        assert_eq!(error(|o| o.credentials = Some("topsecret".into())), Some(NatsOptionsError::Credentials));
        let mut options = NatsOptions::new("nats://u:topsecret@a");
        options.credentials = Some("topsecret".into());
        assert!(!format!("{options:?}").contains("topsecret"));
    }

    #[test]
    fn logins_are_taken_out_of_the_address() {
        let split = |text: &str| split_login(text).map(|(server, login)| (server.as_url_str().to_owned(), login));
        assert_eq!(split("a:4222"), Some(("nats://a:4222".into(), None)));
        assert_eq!(split("nats://t%40ken@a"), Some(("nats://a".into(), Some(("t@ken".into(), None)))));
        let login = Some(("user".to_owned(), Some("p:%/".to_owned())));
        assert_eq!(split("tls://user:p%3A%25%2f@[::1]:7"), Some(("tls://[::1]:7".into(), login)));
    }
}
