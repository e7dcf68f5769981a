//! An HTTP server that says what a test wants.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What the server does with a request.
pub enum Reply {
    /// Sends these bytes and closes.
    Raw(Vec<u8>),
    /// Sends these bytes and then nothing, without closing.
    Stall(Vec<u8>),
}

impl Reply {
    /// A whole answer.
    pub fn new(status: u16, body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let reply = format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        Self::Raw([reply.as_bytes(), body].concat())
    }
}

/// Ends with this value.
pub struct Server {
    pub url: String,
    requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves `reply(request line, body)` on a port of its own.
    pub async fn start(reply: impl Fn(&str, &str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (requests, reply) = (Arc::new(AtomicUsize::new(0)), Arc::new(reply));
        let count = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream, Arc::clone(&count), Arc::clone(&reply)));
            }
        });
        Self { url, requests, task }
    }

    /// How many requests came.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer<F: Fn(&str, &str) -> Reply>(mut stream: TcpStream, count: Arc<AtomicUsize>, reply: Arc<F>) {
    let Some((head, body)) = request(&mut stream).await else { return };
    count.fetch_add(1, Ordering::SeqCst);
    let line = head.lines().next().unwrap_or_default();
    // The client may have seen enough before it has read all.
    match reply(line, &body) {
        Reply::Raw(bytes) => drop(stream.write_all(&bytes).await),
        Reply::Stall(bytes) => {
            stream.write_all(&bytes).await.ok();
            std::future::pending::<()>().await;
        }
    }
    stream.shutdown().await.ok();
}

async fn request(stream: &mut TcpStream) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        // Neither GET nor POST: what begins a TLS handshake, perhaps.
        if !bytes[0].is_ascii_uppercase() {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            return Some((head.to_owned(), body.to_owned()));
        }
    }
}
