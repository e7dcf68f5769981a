//! A server's port that is slow, or dead, when the test says so.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use crate::background::Background;

/// Bytes that are carried at once.
const CHUNK_BYTES: usize = 64 << 10;

/// How a [`Proxy`] carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrying {
    /// As fast as it can.
    Good,
    /// Every answer of the server comes so much later.
    Slow(Duration),
    /// Not at all: connections end, and new ones end at once.
    Dead,
}

/// A port before a server. It ends with the value.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    carrying: watch::Sender<Carrying>,
    _work: Background,
}

impl Proxy {
    /// Before the server at `target`.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        listener.set_nonblocking(true).expect("a socket that does not block");
        let (carrying, state) = watch::channel(Carrying::Good);
        let work = Background::spawn("proxy", move || async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listening socket");
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                // However it ends, both sides see it by their sockets.
                tokio::spawn(carry(client, target, state.clone()));
            }
        });
        Self { port, carrying, _work: work }
    }

    /// The port, on the loopback address.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How it carries from now on.
    pub fn set(&self, carrying: Carrying) {
        self.carrying.send_replace(carrying);
    }
}

async fn carry(client: TcpStream, target: SocketAddr, mut state: watch::Receiver<Carrying>) {
    if *state.borrow() == Carrying::Dead {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let answers = state.clone();
    tokio::select! {
        () = copy(from_client, to_server, None) => {}
        () = copy(from_server, to_client, Some(answers)) => {}
        _ = state.wait_for(|state| *state == Carrying::Dead) => {}
    }
}

/// Carries until one side ends; `delay` says how long each piece waits.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Option<watch::Receiver<Carrying>>) {
    let mut bytes = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let wait = delay.as_ref().map(|state| *state.borrow());
        if let Some(Carrying::Slow(wait)) = wait {
            tokio::time::sleep(wait).await;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
