//! How many connections one address holds, where the operator has set a limit.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::caller::{Caller, TrustedProxy, is_trusted};
use crate::options::Options;

/// Counts connections by address. There are at most as many entries as connections.
pub(crate) struct PerAddress {
    max: usize,
    trusted: Vec<TrustedProxy>,
    open: Mutex<HashMap<Caller, usize>>,
}

/// A connection's place among those of its address; given back when it is dropped.
pub(crate) struct AddressPlace(Option<(Arc<PerAddress>, Caller)>);

impl PerAddress {
    pub(crate) fn new(options: &Options) -> Self {
        let (max, trusted) = (options.connections_per_address_max, options.trusted_proxies.clone());
        Self { max, trusted, open: Mutex::default() }
    }

    /// A place; `None` where the address holds as many as it may. A trusted proxy is many clients, and is not counted.
    pub(crate) fn take(self: &Arc<Self>, peer: IpAddr) -> Option<AddressPlace> {
        if self.max == 0 || is_trusted(&self.trusted, peer) {
            return Some(AddressPlace(None));
        }
        let caller = Caller::new(peer);
        let mut open = self.open.lock();
        let count = open.entry(caller).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(AddressPlace(Some((Arc::clone(self), caller))))
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let Some((places, caller)) = &self.0 else { return };
        let mut open = places.open.lock();
        if let Some(count) = open.get_mut(caller) {
            *count -= 1;
            if *count == 0 {
                open.remove(caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(max: usize, trusted: &[&str]) -> Arc<PerAddress> {
        let trusted = trusted.iter().map(|text| TrustedProxy::try_from((*text).to_owned()).unwrap()).collect();
        let options = Options { connections_per_address_max: max, trusted_proxies: trusted, ..Options::default() };
        Arc::new(PerAddress::new(&options))
    }

    #[test]
    fn an_address_has_so_many_places_and_gets_them_back() {
        let places = places(2, &["10.0.0.0/8"]);
        let take = |text: &str| places.take(text.parse().unwrap());
        let (one, two) = (take("192.0.2.1").unwrap(), take("::ffff:192.0.2.1").unwrap());
        assert!(take("192.0.2.1").is_none() && take("192.0.2.2").is_some());
        drop(one);
        assert!(take("192.0.2.1").is_some());
        drop(two);
        let proxies: Vec<_> = (0..9).map(|_| take("10.0.0.1").unwrap()).collect();
        drop(proxies);
        let (a, b) = (take("2001:db8::1"), take("2001:db8::2"));
        assert!(a.is_some() && b.is_some() && take("2001:db8::3").is_none(), "one network of IPv6 is one address");
        drop((a, b));
        assert!(places.open.lock().is_empty(), "nothing is remembered of who has left");
    }

    #[test]
    fn without_a_limit_nothing_is_counted() {
        let places = places(0, &[]);
        let held: Vec<_> = (0..100).map(|_| places.take("192.0.2.1".parse().unwrap()).unwrap()).collect();
        assert!(places.open.lock().is_empty());
        drop(held);
    }
}
