//! Addresses of nodes.

use crate::error::ClientError;

/// `http://host:port`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// As it was given, without a slash at the end.
    pub(crate) url: String,
    /// For the `Host` header.
    pub(crate) authority: String,
    /// For connecting: host and port, always with a port.
    pub(crate) address: String,
}

impl Endpoint {
    pub(crate) fn parse(text: &str) -> Result<Self, ClientError> {
        let bad = || ClientError::Url { url: text.to_owned() };
        let url = text.trim().trim_end_matches('/');
        let authority = url.strip_prefix("http://").ok_or_else(bad)?;
        let strange = |c: char| c.is_whitespace() || c.is_control() || "/?#@".contains(c);
        if authority.is_empty() || authority.contains(strange) {
            return Err(bad());
        }
        // The colons of an IPv6 address stand inside brackets.
        let after_host = authority.rfind(']').map_or(authority, |at| &authority[at + 1..]);
        let address = match after_host.rsplit_once(':') {
            Some((_, port)) => port.parse::<u16>().map(|_| authority.to_owned()).map_err(|_| bad())?,
            None => format!("{authority}:80"),
        };
        Ok(Self { url: url.to_owned(), authority: authority.to_owned(), address })
    }

    /// At least one, or an error.
    pub(crate) fn parse_all(urls: &[String]) -> Result<Vec<Self>, ClientError> {
        if urls.is_empty() {
            return Err(ClientError::NoNodes);
        }
        urls.iter().map(|url| Self::parse(url)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart_and_others_refused() {
        let address = |url| Endpoint::parse(url).map(|e| e.address).ok();
        assert_eq!(address("http://127.0.0.1:9000/").as_deref(), Some("127.0.0.1:9000"));
        assert_eq!(address("http://node-1").as_deref(), Some("node-1:80"));
        assert_eq!(address("http://[::1]:9000").as_deref(), Some("[::1]:9000"));
        assert_eq!(address("http://[::1]").as_deref(), Some("[::1]:80"));
        for bad in
            ["", "127.0.0.1:9000", "https://x", "http://", "http://x:99999", "http://x/y", "http://a b", "http://u@x"]
        {
            assert_eq!(address(bad), None, "{bad}");
        }
    }
}
