//! HTTP/1.1 by hand: requests that no well-behaved client would send.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest wait for an answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not a whole HTTP/1.1 answer");
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(wrong)?;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).ok_or_else(wrong)?;
        Ok(Self { status, head, body: bytes[end + 4..].to_vec() })
    }
}

/// The loopback address with a port.
pub fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// The text of a request with a body of known length, on a connection of its own.
pub fn request_bytes(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Sends bytes as they are and reads to the end of the connection. A connection that breaks while bytes are still
/// being sent is no error as long as an answer came.
///
/// # Errors
/// When no answer came.
pub async fn send(address: SocketAddr, bytes: &[u8]) -> io::Result<Answer> {
    let exchange = async {
        let (reader, mut writer) = TcpStream::connect(address).await?.into_split();
        let mut answer = Vec::new();
        let mut reader = reader.take(ANSWER_BYTES_MAX);
        let (_, read) = tokio::join!(writer.write_all(bytes), reader.read_to_end(&mut answer));
        match Answer::parse(&answer) {
            Ok(answer) => Ok(answer),
            Err(error) => Err(read.err().unwrap_or(error)),
        }
    };
    tokio::time::timeout(ANSWER_DEADLINE, exchange).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// Sends a request on a connection of its own.
///
/// # Errors
/// When no answer came.
pub async fn request(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
    send(address, &request_bytes(method, path, body)).await
}

/// `POST /message` on a connection of its own.
///
/// # Panics
/// When no answer came.
pub async fn post_message(address: SocketAddr, body: &[u8]) -> Answer {
    request(address, "POST", "/message", body).await.unwrap_or_else(|e| panic!("POST /message at {address}: {e}"))
}

/// `GET` on a connection of its own.
///
/// # Panics
/// When no answer came.
pub async fn get(address: SocketAddr, path: &str) -> Answer {
    request(address, "GET", path, b"").await.unwrap_or_else(|e| panic!("GET {path} at {address}: {e}"))
}
