//! One connection: when it is idle, when its client is too slow, when it ends.
//!
//! hyper's own limit on the time for a request's head also ends a connection that merely waits for its next
//! request, so the two times are kept here: what is read from the socket tells which of them runs.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::caller::PeerAddress;
use crate::metrics::{self, Dropped, OpenConnection};
use crate::options::Options;
use crate::tls::Tls;

/// Between a polite request to close an idle connection and dropping it.
const CLOSE_GRACE: Duration = Duration::from_secs(1);
/// Times that hold instead of the configured ones, where those are longer, while most places are taken: whoever only
/// holds a place makes room for those who use it.
const CROWDED_HEAD_TIME: Duration = Duration::from_secs(1);
const CROWDED_IDLE_TIME: Duration = Duration::from_secs(10);
const HTTP2_PREFACE: &[u8] = b"PRI";
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);

/// What all connections of a server share.
pub(crate) struct Shared {
    router: Router,
    options: Options,
    builder: auto::Builder<TokioExecutor>,
    connections: TaskTracker,
    stop: CancellationToken,
    tls: Option<Arc<Tls>>,
}

impl Shared {
    pub(crate) fn new(
        router: Router,
        options: Options,
        connections: TaskTracker,
        stop: CancellationToken,
        tls: Option<Arc<Tls>>,
    ) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            // See the module's documentation.
            .header_read_timeout(None)
            .max_buf_size(options.headers_bytes_max);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(HTTP2_PING_INTERVAL)
            .max_concurrent_streams(options.streams_per_connection_max)
            .max_header_list_size(u32::try_from(options.headers_bytes_max).unwrap_or(u32::MAX));
        Self { router, options, builder, connections, stop, tls }
    }

    /// Times for a request's head and between requests, as they are now.
    fn patience(&self) -> (Duration, Duration) {
        let head = Duration::from_millis(self.options.header_read_timeout_ms);
        let idle = Duration::from_millis(self.options.idle_timeout_ms);
        if self.connections.len() > self.options.connections_max / 4 * 3 {
            return (head.min(CROWDED_HEAD_TIME), idle.min(CROWDED_IDLE_TIME));
        }
        (head, idle)
    }

    fn overdue(&self, activity: &Activity) -> Option<Dropped> {
        let (head, idle) = self.patience();
        activity.overdue(head, idle)
    }

    /// Serves one connection until it ends, is too slow or idle for too long, or the server stops.
    pub(crate) async fn serve(self: Arc<Self>, stream: TcpStream, peer: IpAddr) {
        let _open = OpenConnection::new();
        let Some(tls) = &self.tls else { return self.talk(stream, peer).await };
        let secret = tokio::select! {
            biased;
            () = self.stop.cancelled() => return,
            secret = tls.handshake(stream) => secret,
        };
        match secret {
            Ok(stream) => self.talk(stream, peer).await,
            Err(error) => {
                metrics::dropped(Dropped::Handshake);
                tracing::debug!(%peer, %error, "no TLS handshake");
            }
        }
    }

    /// Times and counts are those of what comes out of the TLS, where there is any.
    async fn talk<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: S, peer: IpAddr) {
        let activity = Arc::new(Activity::new());
        let io = TokioIo::new(Watched { stream, activity: Arc::clone(&activity) });
        let requests = {
            let (router, activity) = (self.router.clone(), Arc::clone(&activity));
            hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
                let (router, running) = (router.clone(), Running::new(&activity));
                request.extensions_mut().insert(PeerAddress(peer));
                request.extensions_mut().insert(Busy(Arc::clone(&activity)));
                async move {
                    let response = router.oneshot(request.map(Body::new)).await;
                    drop(running);
                    response
                }
            })
        };
        let mut connection = std::pin::pin!(self.builder.serve_connection(io, requests));
        let shortest = self.options.header_read_timeout_ms.min(self.options.idle_timeout_ms);
        let mut check = tokio::time::interval((Duration::from_millis(shortest) / 4).max(Duration::from_millis(1)));
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "connection ended");
                    }
                    return;
                }
                () = self.stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = tokio::time::timeout(self.options.drain_timeout(), connection).await;
                    return;
                }
                _ = check.tick() => match self.overdue(&activity) {
                    None => {}
                    Some(Dropped::Idle) => {
                        metrics::dropped(Dropped::Idle);
                        connection.as_mut().graceful_shutdown();
                        let _ = tokio::time::timeout(CLOSE_GRACE, connection).await;
                        return;
                    }
                    Some(reason) => {
                        metrics::dropped(reason);
                        return;
                    }
                },
            }
        }
    }
}

/// What happens on a connection. Times are milliseconds since it was accepted, plus 1, so that 0 means none.
struct Activity {
    accepted: Instant,
    running: AtomicU32,
    head_since: AtomicU64,
    idle_since: AtomicU64,
    has_read: AtomicBool,
    is_http2: AtomicBool,
}

impl Activity {
    fn new() -> Self {
        Self {
            accepted: Instant::now(),
            running: AtomicU32::new(0),
            // A new connection owes a request at once.
            head_since: AtomicU64::new(1),
            idle_since: AtomicU64::new(1),
            has_read: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn received(&self, bytes: &[u8]) {
        if !self.has_read.swap(true, Ordering::Relaxed) && bytes.starts_with(HTTP2_PREFACE) {
            // HTTP/2 frames say nothing about heads of requests; its idle time and its pings bound it.
            self.is_http2.store(true, Ordering::Relaxed);
            self.head_since.store(0, Ordering::Relaxed);
        }
        let waits = self.running.load(Ordering::Relaxed) == 0 && self.head_since.load(Ordering::Relaxed) == 0;
        if waits && !self.is_http2.load(Ordering::Relaxed) {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    fn overdue(&self, head: Duration, idle: Duration) -> Option<Dropped> {
        if self.running.load(Ordering::Acquire) > 0 {
            return None;
        }
        let now = self.now();
        let passed = |since: u64| Duration::from_millis(now.saturating_sub(since));
        match self.head_since.load(Ordering::Relaxed) {
            0 => (passed(self.idle_since.load(Ordering::Relaxed)) >= idle).then_some(Dropped::Idle),
            since => (passed(since) >= head).then_some(Dropped::SlowHead),
        }
    }
}

/// By which a request can go on after its answer has begun.
#[derive(Clone)]
pub(crate) struct Busy(Arc<Activity>);

impl Busy {
    /// The connection is not idle for as long as the result lives.
    pub(crate) fn hold(&self) -> Running {
        Running::new(&self.0)
    }
}

/// A request under way.
pub(crate) struct Running(Arc<Activity>);

impl Running {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.running.fetch_add(1, Ordering::Relaxed);
        activity.head_since.store(0, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Ordering::Relaxed);
        self.0.running.fetch_sub(1, Ordering::Release);
    }
}

/// A socket that tells [`Activity`] what comes in.
struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(new @ [_, ..]) = buf.filled().get(before..) {
            self.activity.received(new);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
