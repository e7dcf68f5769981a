//! Where one member may be dialed, and how far each address is trusted. An address that leads elsewhere does no harm
//! but a dial: the key decides who answers.

use std::net::IpAddr;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

use crate::limits::{ADDRESS_BYTES_MAX, ADDRESSES_MAX};
use crate::options::split_peer;

/// Where an address is from; the earlier is trusted more and dialed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The member answered there.
    Proven,
    /// The member list.
    Listed,
    /// The member itself, this node's configuration, or its address book.
    Said,
    /// Another member. Not told on, or rumours would live for ever.
    Heard,
}

#[derive(Debug)]
struct Known {
    address: Multiaddr,
    origin: Origin,
}

/// The addresses of one member in the order in which they are dialed; within one origin the newest first.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    known: Vec<Known>,
    /// The one in the member list, which is never forgotten.
    listed: Option<Multiaddr>,
}

impl Addresses {
    pub fn iter(&self) -> impl Iterator<Item = &Multiaddr> {
        self.known.iter().map(|known| &known.address)
    }

    /// What may be told to others and kept on disk.
    pub fn to_tell(&self) -> impl Iterator<Item = &Multiaddr> {
        self.known.iter().filter(|known| known.origin < Origin::Heard).map(|known| &known.address)
    }

    pub fn listed(&self) -> Option<&Multiaddr> {
        self.listed.as_ref()
    }

    /// Takes over the address of the member list. True where it is another than before.
    pub fn list(&mut self, address: Option<Multiaddr>) -> bool {
        if self.listed == address {
            return false;
        }
        self.known.retain(|known| known.origin != Origin::Listed);
        self.listed.clone_from(&address);
        if let Some(address) = address {
            self.add(address, Origin::Listed);
        }
        true
    }

    /// Adds an address or raises the trust in it. True where something was learned. Where there are too many, the
    /// least trusted is forgotten, the oldest first.
    pub fn add(&mut self, address: Multiaddr, origin: Origin) -> bool {
        match self.known.iter().position(|known| known.address == address) {
            Some(place) => {
                let proven_anew = origin == Origin::Proven && place > 0;
                if self.known[place].origin <= origin && !proven_anew {
                    return false;
                }
                self.known.remove(place);
            }
            None => self.make_room(),
        }
        let place = self.known.partition_point(|known| known.origin < origin);
        self.known.insert(place, Known { address, origin });
        true
    }

    fn make_room(&mut self) {
        let last = self.known.iter().rposition(|known| Some(&known.address) != self.listed.as_ref());
        if let Some(last) = last.filter(|_| self.known.len() >= ADDRESSES_MAX) {
            self.known.remove(last);
        }
    }
}

/// An address as it is kept: without the peer id, if it is `peer`'s. `None` for what cannot be dialed, or is too long,
/// and for loopback unless `loopback` says that the network is on one machine: elsewhere it would lead to this one.
pub(crate) fn usable(address: Multiaddr, peer: &PeerId, loopback: bool) -> Option<Multiaddr> {
    let (address, named) = split_peer(address);
    if named.is_some_and(|named| named != *peer) || address.len() > ADDRESS_BYTES_MAX {
        return None;
    }
    let mut parts = address.iter();
    let host = match parts.next()? {
        Protocol::Ip4(ip) => Some(IpAddr::from(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::from(ip)),
        Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) => None,
        _ => return None,
    };
    if host.is_some_and(|ip| ip.is_unspecified() || ip.is_multicast() || (ip.is_loopback() && !loopback)) {
        return None;
    }
    let dialable = match (parts.next()?, parts.next()) {
        (Protocol::Tcp(port), None) => port != 0,
        (Protocol::Udp(port), Some(Protocol::QuicV1)) => cfg!(feature = "quic") && port != 0,
        _ => false,
    };
    (dialable && parts.next().is_none()).then_some(address)
}

/// Whether an address leads to the machine itself.
pub(crate) fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) => name == "localhost",
        _ => false,
    }
}

/// The host of `seen`, where a connection came from, with the port of `said`, where its owner says that it listens:
/// the way in from here, whatever the interfaces of that machine are called.
pub(crate) fn at_host_of(seen: &Multiaddr, said: &Multiaddr) -> Option<Multiaddr> {
    let host = seen.iter().next().filter(|part| matches!(part, Protocol::Ip4(_) | Protocol::Ip6(_)))?;
    Some(std::iter::once(host).chain(said.iter().skip(1)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap()
    }

    fn ports(addresses: &Addresses) -> Vec<u16> {
        let port = |a: &Multiaddr| match a.iter().last() {
            Some(Protocol::Tcp(port)) => port,
            other => panic!("{other:?}"),
        };
        addresses.iter().map(port).collect()
    }

    #[test]
    fn the_most_trusted_come_first_and_the_newest_of_them() {
        let mut addresses = Addresses::default();
        assert!(addresses.list(Some(address(1))));
        assert!(!addresses.list(Some(address(1))));
        assert!(addresses.add(address(2), Origin::Heard));
        assert!(addresses.add(address(3), Origin::Said));
        assert!(!addresses.add(address(3), Origin::Heard), "trust does not fall");
        assert!(addresses.add(address(4), Origin::Said));
        assert_eq!(ports(&addresses), [1, 4, 3, 2]);
        assert!(addresses.add(address(2), Origin::Proven));
        assert_eq!(ports(&addresses), [2, 1, 4, 3]);
        assert!(addresses.add(address(1), Origin::Proven));
        assert!(!addresses.add(address(1), Origin::Proven));
        assert_eq!(ports(&addresses), [1, 2, 4, 3]);
        assert!(addresses.add(address(2), Origin::Proven), "the last that answered comes first");
        assert_eq!(ports(&addresses), [2, 1, 4, 3]);
        addresses.add(address(5), Origin::Heard);
        assert_eq!(addresses.to_tell().count(), 4);
    }

    #[test]
    fn rumours_push_out_rumours_and_never_the_listed_address() {
        let mut addresses = Addresses::default();
        addresses.list(Some(address(1)));
        addresses.add(address(2), Origin::Proven);
        for port in 100..200 {
            assert!(addresses.add(address(port), Origin::Heard));
        }
        assert_eq!(ports(&addresses), [2, 1, 199, 198, 197, 196]);
        for port in 200..300 {
            addresses.add(address(port), Origin::Proven);
        }
        assert_eq!(ports(&addresses), [299, 298, 297, 296, 295, 1]);
        assert!(addresses.list(None));
        assert_eq!(ports(&addresses).len(), 5);
    }

    #[test]
    fn only_what_can_be_dialed_is_kept() {
        let peer = PeerId::random();
        let keep = |text: &str, loopback| usable(text.parse().unwrap(), &peer, loopback).map(|a| a.to_string());
        let good = "/ip4/10.0.0.1/tcp/9100";
        assert_eq!(keep(good, false).as_deref(), Some(good));
        assert_eq!(keep(&format!("{good}/p2p/{peer}"), false).as_deref(), Some(good));
        assert_eq!(keep(&format!("{good}/p2p/{}", PeerId::random()), false), None);
        assert!(keep("/dns4/node.example/tcp/9100", false).is_some());
        assert!(keep("/ip4/127.0.0.1/tcp/9100", true).is_some());
        for bad in
            ["/ip4/127.0.0.1/tcp/9100", "/ip6/::1/tcp/1", "/ip4/0.0.0.0/tcp/1", "/ip4/10.0.0.1/tcp/0", "/ip4/10.0.0.1"]
        {
            assert_eq!(keep(bad, false), None, "{bad}");
        }
        assert_eq!(keep("/ip4/10.0.0.1/tcp/1/ws", false), None);
        assert_eq!(keep(&format!("/dns4/{}/tcp/1", "x".repeat(400)), false), None);
    }

    #[test]
    fn the_way_in_is_the_host_that_was_seen_with_the_port_that_was_said() {
        let (seen, said) = ("/ip4/192.0.2.7/tcp/51234".parse().unwrap(), "/ip4/172.17.0.2/tcp/9100".parse().unwrap());
        assert_eq!(at_host_of(&seen, &said).unwrap().to_string(), "/ip4/192.0.2.7/tcp/9100");
    }
}
