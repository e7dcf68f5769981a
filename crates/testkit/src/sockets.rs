//! Which process holds a socket, as the kernel tells it to anybody who may look at those processes.

use std::fs;
use std::net::{IpAddr, SocketAddr};

/// The kernel's table of TCP connections over IPv4.
const TABLE: &str = "/proc/net/tcp";
/// Column "st" of an established connection.
const ESTABLISHED: &str = "01";

/// Which of these processes has the connection from `local` to `remote`; `None` where none of them has it any more.
pub fn holder(local: SocketAddr, remote: SocketAddr, processes: &[u32]) -> Option<u32> {
    let table = fs::read_to_string(TABLE).ok()?;
    let socket = format!("socket:[{}]", inode(&table, local, remote)?);
    processes.iter().copied().find(|process| has_file(*process, &socket))
}

/// The remote ends of the connections of these processes to any of `ports` on this machine.
pub fn connections_to(ports: &[u16], processes: &[u32]) -> Vec<(u32, u16)> {
    let table = fs::read_to_string(TABLE).unwrap_or_default();
    let mut found = Vec::new();
    for row in rows(&table).filter(|row| row.state == ESTABLISHED) {
        let port = row.remote.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
        let Some(port) = port.filter(|port| ports.contains(port)) else { continue };
        let socket = format!("socket:[{}]", row.inode);
        found.extend(processes.iter().filter(|process| has_file(**process, &socket)).map(|process| (*process, port)));
    }
    found
}

struct Row<'a> {
    local: &'a str,
    remote: &'a str,
    state: &'a str,
    inode: &'a str,
}

fn rows(table: &str) -> impl Iterator<Item = Row<'_>> {
    table.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_ascii_whitespace().take(10).collect();
        let [_, local, remote, state, .., inode] = columns[..] else { return None };
        Some(Row { local, remote, state, inode })
    })
}

fn inode(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<&str> {
    let (local, remote) = (column(local)?, column(remote)?);
    // A process that listens where it dials from has other sockets with the same local port.
    rows(table).find(|row| row.local == local && row.remote == remote).map(|row| row.inode)
}

/// An address as the table has it: the four bytes as one number of this machine, then the port.
fn column(address: SocketAddr) -> Option<String> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port()))
}

fn has_file(process: u32, wanted: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == wanted))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_holder_of_a_connection_is_found_by_its_two_ends() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (local, remote) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let own = std::process::id();
        assert_eq!(holder(local, remote, &[1, own]), Some(own));
        assert_eq!(holder(local, remote, &[]), None);
        assert_eq!(connections_to(&[remote.port()], &[own]), [(own, remote.port())]);
        drop(stream);
        assert_eq!(connections_to(&[remote.port()], &[own]), []);
        assert_eq!(holder(local, remote, &[own]), None);
    }
}
