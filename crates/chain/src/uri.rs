//! From a URI that anybody may have written into the registry to a URL at the configured gateway, or none.

use reqwest::Url;

use crate::error::DocumentError;

/// Characters of a content id; the longest in use have about 110.
const CID_CHARS_MAX: usize = 128;
/// What follows the content id of a directory.
const PATH_SEGMENTS_MAX: usize = 8;

/// The URL of `uri` at `gateway`.
///
/// `ipfs://<cid>` and `ipfs://<cid>/path` become `<gateway>/<cid>` and so on. W3bstream's `ipfs://<host>/<cid>` is
/// read as `ipfs://<cid>`: the hash decides whether it is the right document, not the host. An `http` or `https`
/// URL must lie below the gateway itself.
pub(crate) fn at_gateway(gateway: &Url, uri: &str) -> Result<Url, DocumentError> {
    match uri.strip_prefix("ipfs://") {
        _ if uri.is_empty() => Err(DocumentError::NoUri),
        Some(rest) => by_content(gateway, rest).ok_or(DocumentError::NotAllowed),
        None => below(gateway, uri).ok_or(DocumentError::NotAllowed),
    }
}

fn by_content(gateway: &Url, rest: &str) -> Option<Url> {
    let is_plain = |segment: &&str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !segment.is_empty() && segment.bytes().all(allowed) && !segment.bytes().all(|byte| byte == b'.')
    };
    let mut segments: Vec<&str> = rest.split('/').collect();
    if segments.len() > 1 && segments[0].contains('.') && is_plain(&segments[0]) {
        segments.remove(0);
    }
    let (cid, path) = segments.split_first()?;
    let is_cid = (1..=CID_CHARS_MAX).contains(&cid.len()) && cid.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !is_cid || path.len() > PATH_SEGMENTS_MAX || !path.iter().all(is_plain) {
        return None;
    }
    let mut url = gateway.clone();
    url.path_segments_mut().ok()?.pop_if_empty().extend(segments);
    Some(url)
}

/// `uri` with the gateway's own credentials, if scheme, host and port are the gateway's and its path is below. The
/// parser has resolved `..` before, however it was written.
fn below(gateway: &Url, uri: &str) -> Option<Url> {
    let asked: Url = uri.parse().ok()?;
    let base = gateway.path().trim_end_matches('/');
    let inside = asked.path().strip_prefix(base).is_some_and(|rest| rest.starts_with('/'));
    let plain = asked.username().is_empty() && asked.password().is_none() && !asked.path().contains('%');
    if asked.origin() != gateway.origin() || !inside || !plain {
        return None;
    }
    let mut url = gateway.clone();
    url.set_path(asked.path());
    if url.query().is_none() {
        url.set_query(asked.query());
    }
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(gateway: &str, uri: &str) -> Result<String, DocumentError> {
        at_gateway(&gateway.parse().unwrap(), uri).map(Into::into)
    }

    #[test]
    fn content_ids_are_asked_of_the_gateway() {
        for gateway in ["https://gw.example/ipfs", "https://gw.example/ipfs/"] {
            assert_eq!(at(gateway, "ipfs://Qmabc").unwrap(), "https://gw.example/ipfs/Qmabc");
            assert_eq!(at(gateway, "ipfs://bafy/did.json").unwrap(), "https://gw.example/ipfs/bafy/did.json");
            assert_eq!(at(gateway, "ipfs://other.example/Qmabc").unwrap(), "https://gw.example/ipfs/Qmabc");
        }
        assert_eq!(at("http://u:p@gw:8080/?token=t", "ipfs://Qm").unwrap(), "http://u:p@gw:8080/Qm?token=t");
    }

    #[test]
    fn what_is_no_content_id_is_refused() {
        for rest in
            ["", "a.b", "Qm?x", "Qm#x", "../x", "Qm/../../admin", "Qm/", "Qm//x", "Qm/%2e%2e/x", "Qm@evil", "Qm\\x"]
        {
            assert_eq!(
                at("https://gw.example/ipfs", &format!("ipfs://{rest}")),
                Err(DocumentError::NotAllowed),
                "{rest}"
            );
        }
        let long = format!("ipfs://{}", "a".repeat(CID_CHARS_MAX + 1));
        assert_eq!(at("https://gw.example/ipfs", &long), Err(DocumentError::NotAllowed));
        assert_eq!(at("https://gw.example/ipfs", ""), Err(DocumentError::NoUri));
    }

    #[test]
    fn urls_are_taken_below_the_gateway_only() {
        let gateway = "https://gw.example/ipfs";
        assert_eq!(at(gateway, "https://gw.example/ipfs/Qm").unwrap(), "https://gw.example/ipfs/Qm");
        assert_eq!(at(gateway, "https://GW.example:443/ipfs/Qm").unwrap(), "https://gw.example/ipfs/Qm");
        for uri in [
            "http://gw.example/ipfs/Qm",
            "https://gw.example:8443/ipfs/Qm",
            "https://gw.example.evil/ipfs/Qm",
            "https://gw.example@evil/ipfs/Qm",
            "https://x@gw.example/ipfs/Qm",
            "https://gw.example/ipfsx/Qm",
            "https://gw.example/api/v0/shutdown",
            "https://gw.example/ipfs/../api/v0/shutdown",
            "https://gw.example/ipfs/%2e%2e/api",
            "https://gw.example/ipfs/..%2fapi",
            "http://169.254.169.254/ipfs/latest",
            "file:///etc/passwd",
            "/ipfs/Qm",
            "Qm",
        ] {
            assert_eq!(at(gateway, uri), Err(DocumentError::NotAllowed), "{uri}");
        }
    }
}
