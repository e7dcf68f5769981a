//! Listening addresses.

use std::net::{IpAddr, SocketAddr, TcpListener};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use crate::options::{NetworkError, multiaddr};

/// Reads the addresses and makes sure that each port is free. libp2p would share a port with another process of the
/// same user (SO_REUSEPORT), and each would get some of the connections.
pub(crate) fn listen_addresses(listen: &[String]) -> Result<Vec<Multiaddr>, NetworkError> {
    let mut addresses = Vec::new();
    for text in listen {
        let address = multiaddr(text, "the listening address")?;
        if let Some(socket) = tcp_socket(&address) {
            TcpListener::bind(socket).map_err(|error| NetworkError::Listen {
                address: text.clone(),
                reason: match error.kind() {
                    std::io::ErrorKind::AddrInUse => format!("port {} is in use by another program", socket.port()),
                    _ => error.to_string(),
                },
            })?;
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn tcp_socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) if port != 0 => Some((ip, port).into()),
        _ => None,
    }
}
