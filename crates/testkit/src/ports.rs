//! Ports for servers of tests that run side by side, and are stopped and started again.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below Linux's ephemeral range, so that no outgoing connection takes the port while its server is stopped.
const PORT_FIRST: u16 = 20_000;
const PORT_COUNT: u16 = 12_000;

/// A TCP port on the loopback address that nobody listens on, and that this process has not given out before.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes start at different places, threads of one process share the counter.
    let start = u16::try_from(std::process::id() % u32::from(PORT_COUNT)).unwrap_or_default();
    for _ in 0..PORT_COUNT {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(97).wrapping_add(start) % PORT_COUNT;
        let port = PORT_FIRST + offset;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {PORT_FIRST} and {}", PORT_FIRST + PORT_COUNT);
}
