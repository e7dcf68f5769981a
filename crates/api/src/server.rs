//! Binding, accepting, and stopping in order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::Shared;
use crate::gateway::Bundles;
use crate::metrics::{self, Dropped};
use crate::options::Options;
use crate::per_address::PerAddress;
use crate::ports::Ports;
use crate::routes::{self, App};
use crate::tls::{Tls, TlsFiles};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Pause after an accept that failed for want of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// A limit makes no sense.
    #[error("{0}")]
    Options(String),
    /// Certificate or key cannot be used. The text names the file.
    #[error("{0}")]
    Tls(String),
    /// The address is in use or not ours: choose another one.
    #[error("cannot listen on {addr}: {source}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// The doors, not open yet.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Checks the options and takes the address, so that mistakes show before anything else starts. Clients can
    /// connect from now on; they are served by [`Bound::run`]. Must be called in a tokio runtime.
    pub fn bind(options: Options, addr: SocketAddr) -> Result<Bound, ApiError> {
        options.check()?;
        let listener = listen(addr).map_err(|source| ApiError::Bind { addr, source })?;
        let local_addr = listener.local_addr().map_err(|source| ApiError::Bind { addr, source })?;
        Ok(Bound { options, listener, local_addr, tls: None })
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // So that a restart need not wait for old connections to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// A server that holds its address.
#[derive(Debug)]
pub struct Bound {
    options: Options,
    listener: TcpListener,
    local_addr: SocketAddr,
    tls: Option<Arc<Tls>>,
}

impl Bound {
    /// The same server with TLS, and nothing else, on its port. The files are looked at again every
    /// `tls_reload_interval_ms` and on SIGHUP; what cannot be used then changes nothing but the log.
    ///
    /// # Errors
    /// If the files cannot be read or used now.
    pub fn with_tls(self, files: TlsFiles) -> Result<Self, ApiError> {
        let tls = Arc::new(Tls::load(files, &self.options)?);
        Ok(Self { tls: Some(tls), ..self })
    }

    /// The address, with the port that the system chose where 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `token` is cancelled; then accepts no more, lets running requests finish within
    /// `drain_timeout_ms`, closes all connections and returns.
    pub async fn run(self, ports: Ports, token: CancellationToken) {
        self.open(ports, token).run().await;
    }

    /// The same in two steps, for whoever lets messages in beside HTTP, too.
    pub fn open(self, ports: Ports, token: CancellationToken) -> Open {
        let app = App::new(self.options.clone(), ports, token);
        Open { bound: self, app: Arc::new(app) }
    }
}

/// A server that knows whom it serves.
pub struct Open {
    bound: Bound,
    app: Arc<App>,
}

impl Open {
    /// The door for bundles, within the same limits on what is under way.
    pub fn bundles(&self) -> Bundles {
        Bundles::new(self.app.clone())
    }

    /// See [`Bound::run`].
    pub fn run(self) -> BoxFuture<'static, ()> {
        // Boxed, so that this crate compiles it, and not each program that awaits it.
        Box::pin(self.serve())
    }

    async fn serve(self) {
        metrics::describe();
        let Self { bound: Bound { options, listener, local_addr, tls }, app } = self;
        let (connections_max, token) = (options.connections_max, app.stop.clone());
        let addresses = Arc::new(PerAddress::new(&options));
        let router = routes::router(app);
        let connections = TaskTracker::new();
        tracing::info!(addr = %local_addr, tls = tls.is_some(), "serving HTTP and gRPC");
        let watching = tls.clone().map(|tls| tokio::spawn(tls.watch(token.clone())));
        let shared = Arc::new(Shared::new(router, options, connections.clone(), token.clone(), tls));
        loop {
            let accepted = tokio::select! {
                biased;
                () = token.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) if connections.len() >= connections_max => {
                    drop(stream);
                    metrics::dropped(Dropped::TooMany);
                }
                Ok((stream, peer)) => {
                    let Some(place) = addresses.take(peer.ip()) else {
                        metrics::dropped(Dropped::TooManyOfAddress);
                        continue;
                    };
                    // Answers are small and must not wait for more to send.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
                    }
                    let serve = Arc::clone(&shared).serve(stream, peer.ip());
                    connections.spawn(async move {
                        serve.await;
                        drop(place);
                    });
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Closed first, so that clients go elsewhere while the rest is drained.
        drop(listener);
        connections.close();
        connections.wait().await;
        if let Some(watching) = watching {
            let _ = watching.await;
        }
    }
}

/// Errors of a connection that was gone before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
