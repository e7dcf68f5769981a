//! Who is at the other end, as far as a limit on requests is concerned, and the limit itself.
//!
//! It is looked at before anything of a request's body is read. Addresses are weak names: many devices share one behind
//! a gateway or a carrier's NAT, and a balancer is one address for all. So there is no limit unless an operator sets it.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use ipnet::IpNet;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::grpc;
use crate::options::Options;
use crate::ports::Sender;
use crate::problem::Problem;
use crate::rate::Buckets;
use crate::routes::{App, path};

/// Who sent a request to a proxy, its own proxies behind it; the last one is whom the proxy itself saw.
const FORWARDED_FOR: &str = "x-forwarded-for";
/// Most addresses that are looked at in that header.
const FORWARDS_MAX: usize = 16;
/// Bits of an IPv6 address that count: whoever has one address has the rest of its network too.
const IPV6_PREFIX_BITS: u32 = 64;
/// Asked by the operator's own machinery, which must hear of a node just when much is going on.
const UNLIMITED_PATHS: [&str; 3] = [path::LIVE, path::READY, path::METRICS];

/// Addresses of proxies whose `X-Forwarded-For` is believed: one address, or a network such as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustedProxy(IpNet);

impl TryFrom<String> for TrustedProxy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let address = text.parse::<IpAddr>().map(IpNet::from);
        let network = address.or_else(|_| text.parse::<IpNet>());
        network.map(Self).map_err(|_| format!("{text:?} is no address and no network such as 10.0.0.0/8"))
    }
}

impl From<TrustedProxy> for String {
    fn from(proxy: TrustedProxy) -> Self {
        proxy.0.to_string()
    }
}

/// The address that a request's connection came from; set for each request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) IpAddr);

/// What the limit on addresses counts by; set for each request while there is a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Caller(IpAddr);

impl Caller {
    pub(crate) fn new(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) => {
                let network = v6.to_bits() >> (128 - IPV6_PREFIX_BITS) << (128 - IPV6_PREFIX_BITS);
                Self(IpAddr::V6(Ipv6Addr::from_bits(network)))
            }
            v4 => Self(v4),
        }
    }
}

/// The limit on requests by address.
pub(crate) struct Callers {
    is_limited: bool,
    trusted: Vec<TrustedProxy>,
    buckets: Mutex<Buckets<Caller>>,
    started: Instant,
}

impl Callers {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            is_limited: !options.address_rate.is_unlimited(),
            trusted: options.trusted_proxies.clone(),
            buckets: Mutex::new(Buckets::new(options.address_rate, options.addresses_max)),
            started: Instant::now(),
        }
    }

    /// Counts one request or message.
    pub(crate) fn take(&self, caller: Caller) -> Result<(), Problem> {
        let taken = self.buckets.lock().take(caller, self.started.elapsed());
        taken.map_err(|e| Problem::too_fast(Sender::Address, e.retry_after_ms))
    }

    /// Who sent a request: the connection's other end, or, where that is a trusted proxy, the last one that the proxies
    /// name and that is none itself. What stands before it anybody may have written.
    fn caller(&self, peer: IpAddr, headers: &HeaderMap) -> Caller {
        if !self.is_trusted(peer) {
            return Caller::new(peer);
        }
        let mut client = peer;
        let lines = headers.get_all(FORWARDED_FOR).iter().rev().filter_map(|line| line.to_str().ok());
        for text in lines.flat_map(|line| line.rsplit(',')).take(FORWARDS_MAX) {
            let Ok(address) = text.trim().parse::<IpAddr>() else { break };
            client = address;
            if !self.is_trusted(address) {
                break;
            }
        }
        Caller::new(client)
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        is_trusted(&self.trusted, address)
    }
}

/// Whether an address is that of a proxy whose word counts.
pub(crate) fn is_trusted(trusted: &[TrustedProxy], address: IpAddr) -> bool {
    trusted.iter().any(|proxy| proxy.0.contains(&address.to_canonical()))
}

/// Refuses who is too fast before anything else is done for the request.
pub(crate) async fn limit(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    if !app.callers.is_limited || UNLIMITED_PATHS.contains(&route) {
        return next.run(request).await;
    }
    let is_grpc = [path::GRPC, path::GRPC_READER].contains(&route);
    let Some(peer) = request.extensions().get::<PeerAddress>().copied() else { return next.run(request).await };
    let caller = app.callers.caller(peer.0, request.headers());
    if let Err(problem) = app.callers.take(caller) {
        return if is_grpc { grpc::refuse(&problem) } else { problem.into_response() };
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callers(trusted: &[&str]) -> Callers {
        let trusted = trusted.iter().map(|text| TrustedProxy::try_from((*text).to_owned()).unwrap()).collect();
        Callers::new(&Options { trusted_proxies: trusted, ..Options::default() })
    }

    #[test]
    fn only_a_trusted_proxy_is_believed_and_only_its_last_stranger() {
        let callers = callers(&["10.0.0.0/8", "fd00::1"]);
        // (connection from, header lines, who counts)
        let table: [(&str, &[&str], &str); 11] = [
            ("192.0.2.1", &[], "192.0.2.1"),
            ("192.0.2.1", &["198.51.100.7"], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["198.51.100.7, 10.0.0.2"], "198.51.100.7"),
            ("10.0.0.1", &["203.0.113.9", "198.51.100.7,10.0.0.2"], "198.51.100.7"),
            ("10.0.0.1", &["198.51.100.7", "nonsense"], "10.0.0.1"),
            ("::ffff:10.0.0.1", &["198.51.100.7"], "198.51.100.7"),
            ("fd00::1", &["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::"),
            ("fd00::2", &["198.51.100.7"], "fd00::"),
        ];
        for (peer, lines, expected) in table {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_FOR, line.parse().unwrap());
            }
            let caller = callers.caller(peer.parse().unwrap(), &headers);
            assert_eq!(caller, Caller(expected.parse().unwrap()), "{peer} {lines:?}");
        }
    }

    #[test]
    fn one_network_of_ipv6_is_one_caller() {
        let caller = |text: &str| Caller::new(text.parse().unwrap());
        assert_eq!(caller("2001:db8::1"), caller("2001:db8::ffff:1"));
        assert_ne!(caller("2001:db8::1"), caller("2001:db8:0:1::1"));
        assert_eq!(caller("::ffff:192.0.2.1"), caller("192.0.2.1"));
        assert_ne!(caller("192.0.2.1"), caller("192.0.2.2"));
    }

    #[test]
    fn what_is_no_address_is_no_proxy() {
        for bad in ["", "10.0.0.0/33", "proxy.example", "10.0.0"] {
            assert!(TrustedProxy::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
