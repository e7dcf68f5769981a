//! HTTP/1.1 with as little work as possible, for measuring: the load generator shares its cores with the nodes.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::url::Endpoint;

/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// One connection, one request at a time.
pub(crate) struct RawConnection {
    stream: TcpStream,
    answer: Vec<u8>,
}

/// What a node answered, in the connection's buffer.
pub(crate) struct RawAnswer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
    /// Whether the connection takes another request.
    pub(crate) reusable: bool,
}

/// Head of an answer, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    length: usize,
    body_at: usize,
    closes: bool,
}

impl RawConnection {
    pub(crate) async fn open(endpoint: &Endpoint) -> io::Result<Self> {
        let stream = TcpStream::connect(&endpoint.address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, answer: Vec::with_capacity(1024) })
    }

    /// Sends a whole request and reads a whole answer. After an error the connection is of no more use.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> io::Result<RawAnswer<'_>> {
        self.stream.write_all(request).await?;
        self.answer.clear();
        let head = loop {
            self.read_more().await?;
            if let Some(head) = parse_head(&self.answer)? {
                break head;
            }
        };
        while self.answer.len() < head.body_at + head.length {
            self.read_more().await?;
        }
        let body = &self.answer[head.body_at..head.body_at + head.length];
        Ok(RawAnswer { status: head.status, body, reusable: !head.closes })
    }

    async fn read_more(&mut self) -> io::Result<()> {
        if self.answer.len() > ANSWER_BYTES_MAX {
            return Err(invalid("the answer is too long"));
        }
        match self.stream.read_buf(&mut self.answer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// Puts a request for `POST /message` into `out`.
pub(crate) fn write_request(out: &mut Vec<u8>, endpoint: &Endpoint, body: &str) {
    use io::Write as _;
    out.clear();
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "POST /message HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        endpoint.authority,
        body.len()
    );
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn parse_head(bytes: &[u8]) -> io::Result<Option<Head>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| invalid("the answer's head is not text"))?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    let status =
        status.and_then(|line| line.get(..3)?.parse().ok()).ok_or_else(|| invalid("not an HTTP/1.1 answer"))?;
    let (mut length, mut closes) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok();
        } else if name.eq_ignore_ascii_case("connection") {
            closes = value.trim().eq_ignore_ascii_case("close");
        }
    }
    let length = length.filter(|n| *n <= ANSWER_BYTES_MAX).ok_or_else(|| invalid("no usable Content-Length"))?;
    Ok(Some(Head { status, length, body_at: end + 4, closes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
        for cut in 0..answer.len() - 2 {
            assert_eq!(parse_head(&answer[..cut]).unwrap(), None);
        }
        let head = Head { status: 200, length: 2, body_at: answer.len() - 2, closes: true };
        assert_eq!(parse_head(answer).unwrap(), Some(head));
        for bad in ["HTTP/1.1 200 OK\r\n\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.1 200\r\ncontent-length: 9999999\r\n\r\n"] {
            assert!(parse_head(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
