//! A relay between clients and a server, which breaks connections where a test says so.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_testkit::http::local;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Default)]
struct Manner {
    slow: Option<Duration>,
    /// What clients must not say: it and what follows is lost, and with it all connections.
    cut_at: Option<String>,
}

/// A relay. Ends with the value.
pub struct Relay {
    port: u16,
    manner: Arc<Mutex<Manner>>,
    down: watch::Sender<bool>,
    work: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.work.abort();
        self.down.send_replace(true);
    }
}

impl Relay {
    pub async fn start(to: u16) -> Self {
        let listener = TcpListener::bind(local(0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (manner, down) = (Arc::new(Mutex::new(Manner::default())), watch::channel(false).0);
        let work = tokio::spawn(accept(listener, to, Arc::clone(&manner), down.clone()));
        Self { port, manner, down, work }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn set_slow(&self, time: Option<Duration>) {
        self.manner.lock().unwrap().slow = time;
    }

    /// Breaks all connections and takes no other ones, or takes them again. Whether that was so before.
    pub fn set_down(&self, down: bool) -> bool {
        self.down.send_replace(down)
    }

    /// Goes down when a client says these words, before they get through.
    pub fn cut_at(&self, words: String) {
        self.manner.lock().unwrap().cut_at = Some(words);
    }
}

async fn accept(listener: TcpListener, to: u16, manner: Arc<Mutex<Manner>>, down: watch::Sender<bool>) {
    while let Ok((client, _)) = listener.accept().await {
        if *down.borrow() {
            continue;
        }
        let Ok(server) = TcpStream::connect(local(to)).await else { continue };
        let (manner, down) = (Arc::clone(&manner), down.clone());
        tokio::spawn(async move {
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            let mut ends = down.subscribe();
            tokio::select! {
                _ = pump(from_client, to_server, &manner, Some(&down)) => {}
                _ = pump(from_server, to_client, &manner, None) => {}
                _ = ends.wait_for(|down| *down) => {}
            }
        });
    }
}

/// Passes bytes on. `down` is given for what clients say.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    manner: &Mutex<Manner>,
    down: Option<&watch::Sender<bool>>,
) -> io::Result<()> {
    let mut bytes = vec![0; 64 << 10];
    // The end of what was passed on, so that words are found that came in two pieces.
    let mut before = Vec::new();
    loop {
        let count = from.read(&mut bytes).await?;
        if count == 0 {
            return Ok(());
        }
        let (slow, words) = {
            let manner = manner.lock().unwrap();
            (manner.slow, manner.cut_at.clone())
        };
        if let Some(time) = slow {
            tokio::time::sleep(time).await;
        }
        if let (Some(down), Some(words)) = (down, words) {
            let said = [&before[..], &bytes[..count]].concat();
            if let Some(at) = said.windows(words.len()).position(|window| window == words.as_bytes()) {
                manner.lock().unwrap().cut_at = None;
                to.write_all(&bytes[..at.saturating_sub(before.len())]).await?;
                down.send_replace(true);
                return Ok(());
            }
            before = said[said.len().saturating_sub(words.len())..].to_vec();
        }
        to.write_all(&bytes[..count]).await?;
    }
}
