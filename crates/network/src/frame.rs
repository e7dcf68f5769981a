//! Frames on a stream: a length of 4 bytes, big endian, and as many bytes. The length's highest bit marks a refusal,
//! whose bytes are its reason as text and after which the stream ends.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, FutureExt};

use crate::limits::{FRAME_TIMEOUT, REFUSAL_BYTES_MAX};

const REFUSAL_BIT: u32 = 1 << 31;
/// What yamux sends in one piece. Small parts are collected to this size, larger ones written without a copy here.
const WRITE_CHUNK: usize = 16 << 10;
/// First allocation for a frame's body; it doubles as bytes arrive, so that a length alone costs nothing.
const READ_CHUNK: usize = 64 << 10;

/// After a failed write the peer's refusal may be on its way already: how long to look for it.
const REFUSAL_GRACE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {bytes} bytes exceeds the limit of {max}")]
    TooLarge { bytes: u64, max: u64 },
    /// The peer ended the stream between two frames.
    #[error("the peer closed the stream")]
    Closed,
    #[error("the peer refused: {0}")]
    Refused(String),
    #[error("the rest of a frame did not come in time")]
    Late,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl FrameError {
    /// Label for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Closed => "closed",
            Self::Refused(_) => "refused",
            Self::Late => "late",
            Self::Io(_) => "io",
        }
    }
}

/// Reads one frame of at most `max` bytes. Waits without end for its beginning, and [`FRAME_TIMEOUT`] for its rest.
/// Not cancel safe: drop the stream with the future.
pub(crate) async fn read<S: AsyncRead + Unpin>(stream: &mut S, max: u64) -> Result<Bytes, FrameError> {
    let mut header = [0; 4];
    let first = stream.read(&mut header).await?;
    if first == 0 {
        return Err(FrameError::Closed);
    }
    let rest = async {
        stream.read_exact(&mut header[first..]).await?;
        let length = u32::from_be_bytes(header);
        let refused = length & REFUSAL_BIT != 0;
        let bytes = u64::from(length & !REFUSAL_BIT);
        let max = if refused { REFUSAL_BYTES_MAX } else { max };
        if bytes > max {
            return Err(FrameError::TooLarge { bytes, max });
        }
        let body = read_body(stream, bytes as usize).await?;
        if refused {
            return Err(FrameError::Refused(String::from_utf8_lossy(&body).into_owned()));
        }
        Ok(body)
    };
    tokio::time::timeout(FRAME_TIMEOUT, rest).await.unwrap_or(Err(FrameError::Late))
}

async fn read_body<S: AsyncRead + Unpin>(stream: &mut S, bytes: usize) -> io::Result<Bytes> {
    let mut body = BytesMut::new();
    let mut filled = 0;
    while filled < bytes {
        if filled == body.len() {
            body.resize(bytes.min((2 * filled).max(READ_CHUNK)), 0);
        }
        match stream.read(&mut body[filled..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => filled += n,
        }
    }
    Ok(body.freeze())
}

/// Whether an idle stream can still be asked on: its peer has neither ended it nor said something unasked. Never
/// waits.
pub(crate) fn is_idle<S: AsyncRead + Unpin>(stream: &mut S) -> bool {
    stream.read(&mut [0]).now_or_never().is_none()
}

/// The bytes of `parts` together.
pub(crate) fn length(parts: &[Bytes]) -> u64 {
    parts.iter().map(|part| part.len() as u64).sum()
}

/// Writes `parts` as one frame and flushes once. The caller has checked the length. Not cancel safe.
pub(crate) async fn write<S: AsyncWrite + Unpin>(stream: &mut S, parts: &[Bytes]) -> Result<(), FrameError> {
    write_with(stream, length(parts) as u32, parts).await
}

/// Writes a refusal. The caller then drops the stream without closing it: yamux resets it then, which also wakes a
/// peer that is still writing, while a close would leave it waiting for credit for ever. What was written before the
/// reset can still be read.
pub(crate) async fn refuse<S: AsyncWrite + Unpin>(stream: &mut S, reason: &str) -> Result<(), FrameError> {
    let reason = Bytes::copy_from_slice(&reason.as_bytes()[..reason.len().min(REFUSAL_BYTES_MAX as usize)]);
    write_with(stream, REFUSAL_BIT | reason.len() as u32, &[reason]).await
}

/// Writes one frame and reads one of at most `max` bytes. A peer that refuses a request stops reading it, so a failed
/// write looks for the refusal before it is reported. Not cancel safe.
pub(crate) async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    parts: &[Bytes],
    max: u64,
) -> Result<Bytes, FrameError> {
    if let Err(error) = write(stream, parts).await {
        return match tokio::time::timeout(REFUSAL_GRACE, read(stream, max)).await {
            Ok(Err(refused @ FrameError::Refused(_))) => Err(refused),
            _ => Err(error),
        };
    }
    read(stream, max).await
}

async fn write_with<S: AsyncWrite + Unpin>(stream: &mut S, header: u32, parts: &[Bytes]) -> Result<(), FrameError> {
    let total = 4 + length(parts) as usize;
    let mut chunk = Vec::with_capacity(total.min(WRITE_CHUNK));
    chunk.extend_from_slice(&header.to_be_bytes());
    for part in parts {
        let mut rest = &part[..];
        while chunk.len() + rest.len() >= WRITE_CHUNK {
            if chunk.is_empty() {
                stream.write_all(rest).await?;
                rest = &[];
                break;
            }
            let (now, later) = rest.split_at(WRITE_CHUNK - chunk.len());
            chunk.extend_from_slice(now);
            stream.write_all(&chunk).await?;
            chunk.clear();
            rest = later;
        }
        chunk.extend_from_slice(rest);
    }
    if !chunk.is_empty() {
        stream.write_all(&chunk).await?;
    }
    Ok(stream.flush().await?)
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use futures::io::Cursor;

    use super::*;

    /// Gives a header and then counts how much room the reader offers.
    struct Liar {
        header: Cursor<Vec<u8>>,
        largest_offer: usize,
    }

    impl AsyncRead for Liar {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
            self.largest_offer = self.largest_offer.max(buf.len());
            Pin::new(&mut self.header).poll_read(cx, buf)
        }
    }

    #[tokio::test]
    async fn frames_read_back_whatever_their_parts() {
        for sizes in [vec![], vec![0], vec![1], vec![3, 16_380], vec![16_384, 1], vec![10; 5_000], vec![7, 300_000, 9]]
        {
            let parts: Vec<Bytes> = sizes.iter().zip(0..).map(|(n, i)| Bytes::from(vec![i as u8; *n])).collect();
            let mut wire = Cursor::new(Vec::new());
            write(&mut wire, &parts).await.unwrap();
            let bytes = wire.into_inner();
            assert_eq!(bytes.len(), 4 + length(&parts) as usize);
            assert_eq!(read(&mut &bytes[..], 1 << 20).await.unwrap(), parts.concat());
        }
    }

    #[tokio::test]
    async fn an_oversized_length_is_refused_before_anything_is_read_or_allocated() {
        let mut liar = Liar { header: Cursor::new((1_u32 << 30).to_be_bytes().to_vec()), largest_offer: 0 };
        let error = read(&mut liar, 1 << 20).await.unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { bytes, max } if bytes == 1 << 30 && max == 1 << 20));
        assert!(liar.largest_offer <= 4);
    }

    #[tokio::test]
    async fn a_length_within_the_limit_allocates_only_as_bytes_arrive() {
        let mut liar = Liar { header: Cursor::new((1_u32 << 30).to_be_bytes().to_vec()), largest_offer: 0 };
        assert!(matches!(read(&mut liar, 1 << 31).await, Err(FrameError::Io(_))));
        assert_eq!(liar.largest_offer, READ_CHUNK);
    }

    #[tokio::test]
    async fn a_refusal_carries_its_reason_and_is_bounded() {
        let mut wire = Cursor::new(Vec::new());
        refuse(&mut wire, &"no".repeat(1_000)).await.unwrap();
        let error = read(&mut &wire.into_inner()[..], 10).await.unwrap_err();
        assert!(matches!(error, FrameError::Refused(reason) if reason.len() == REFUSAL_BYTES_MAX as usize));
    }
}
