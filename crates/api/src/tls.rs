//! TLS: certificates that are read again when their files change, and handshakes within bounds.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lockstep_types::keccak256;
use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::options::Options;
use crate::server::ApiError;

/// Largest file of certificates, or key, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// HTTP/2 first: gRPC needs it, and everybody else takes what they know.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Time for a handshake while most places for them are taken; see [`Tls::handshake`].
const CROWDED_HANDSHAKE_TIME: Duration = Duration::from_secs(1);

/// Where certificate and key are, both as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, followed by those that lead to one that clients know.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What both files say, and a digest of their bytes, by which a change is noticed.
struct Loaded {
    certified: Arc<CertifiedKey>,
    digest: [u8; 32],
}

/// Why files are not taken. `digest` tells whether the same was said before; none where they could not be read.
struct Refused {
    reason: String,
    digest: Option<[u8; 32]>,
}

/// The certificate in use. A new one takes its place between two handshakes.
struct Current {
    certified: Mutex<Arc<CertifiedKey>>,
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.certified.lock()))
    }
}

/// What a server needs to speak TLS.
pub(crate) struct Tls {
    files: TlsFiles,
    acceptor: TlsAcceptor,
    current: Arc<Current>,
    /// Of the files as they were last looked at, good or bad.
    seen: Mutex<Option<[u8; 32]>>,
    handshakes: Semaphore,
    handshakes_max: usize,
    handshake_timeout: Duration,
    reload_interval: Duration,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    pub(crate) fn load(files: TlsFiles, options: &Options) -> Result<Self, ApiError> {
        let loaded = load(&files).map_err(|refused| ApiError::Tls(refused.reason))?;
        let current = Arc::new(Current { certified: Mutex::new(loaded.certified) });
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| ApiError::Tls(format!("TLS cannot be set up: {e}")))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Self {
            files,
            acceptor: TlsAcceptor::from(Arc::new(config)),
            current,
            seen: Mutex::new(Some(loaded.digest)),
            handshakes: Semaphore::new(options.handshakes_max),
            handshakes_max: options.handshakes_max,
            handshake_timeout: Duration::from_millis(options.handshake_timeout_ms),
            reload_interval: Duration::from_millis(options.tls_reload_interval_ms),
        })
    }

    /// Makes a connection secret. While most places are taken, a client has a short time only: whoever holds a place
    /// and says nothing makes room for others.
    pub(crate) async fn handshake<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long");
        let whole = async {
            // Never closed.
            let _place = self.handshakes.acquire().await.map_err(io::Error::other)?;
            let mut accepting = std::pin::pin!(self.acceptor.accept(stream));
            let short = CROWDED_HANDSHAKE_TIME.min(self.handshake_timeout);
            match tokio::time::timeout(short, accepting.as_mut()).await {
                Ok(result) => result,
                Err(elapsed) if self.is_crowded() => Err(late(elapsed)),
                Err(_) => accepting.await,
            }
        };
        tokio::time::timeout(self.handshake_timeout, whole).await.map_err(late)?
    }

    fn is_crowded(&self) -> bool {
        self.handshakes.available_permits().saturating_mul(4) < self.handshakes_max
    }

    /// Looks at the files again and again, and at once on SIGHUP, until told to stop.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut hangups = Hangups::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.reload_interval) => {}
                () = hangups.next() => {}
            }
            let this = Arc::clone(&self);
            // Fails only when it panics, or the runtime ends.
            let _ = tokio::task::spawn_blocking(move || this.reload()).await;
        }
    }

    fn reload(&self) {
        match load(&self.files) {
            Ok(loaded) => {
                if self.seen.lock().replace(loaded.digest) != Some(loaded.digest) {
                    *self.current.certified.lock() = loaded.certified;
                    tracing::info!(cert = %self.files.cert.display(), "the TLS certificate was read again");
                }
            }
            Err(refused) => {
                let before = std::mem::replace(&mut *self.seen.lock(), refused.digest);
                // Once for each thing that is wrong.
                if before != refused.digest {
                    tracing::warn!(reason = refused.reason, "the TLS certificate is left as it was");
                }
            }
        }
    }
}

/// The signal by which an operator says that files have changed.
struct Hangups(Option<tokio::signal::unix::Signal>);

impl Hangups {
    fn new() -> Self {
        let signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
        Self(signal.inspect_err(|error| tracing::warn!(%error, "SIGHUP cannot be heard")).ok())
    }

    async fn next(&mut self) {
        let heard = match &mut self.0 {
            Some(signal) => signal.recv().await,
            None => None,
        };
        if heard.is_none() {
            std::future::pending().await
        }
    }
}

/// The library that everything else here uses for TLS too.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn load(files: &TlsFiles) -> Result<Loaded, Refused> {
    let unread = |reason| Refused { reason, digest: None };
    let cert = read(&files.cert).map_err(unread)?;
    let key = read(&files.key).map_err(unread)?;
    let digest = keccak256(&[&keccak256(&[&cert]), &keccak256(&[&key])]);
    match certified(files, &cert, &key) {
        Ok(certified) => Ok(Loaded { certified: Arc::new(certified), digest }),
        Err(reason) => Err(Refused { reason, digest: Some(digest) }),
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let failed = |e: io::Error| format!("cannot read the TLS file {}: {e}", path.display());
    // Room for all of it at once: a buffer that grows leaves copies of a key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize + 1));
    File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("the TLS file {} has more than {FILE_BYTES_MAX} bytes", path.display()));
    }
    Ok(bytes)
}

fn certified(files: &TlsFiles, cert: &[u8], key: &[u8]) -> Result<CertifiedKey, String> {
    let (cert_path, key_path) = (files.cert.display(), files.key.display());
    let chain = CertificateDer::pem_slice_iter(cert).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|e| format!("{cert_path} is not valid PEM: {e}"))?;
    if chain.is_empty() {
        return Err(format!("{cert_path} holds no certificate (a PEM block \"CERTIFICATE\")"));
    }
    let key = PrivateKeyDer::from_pem_slice(key)
        .map(Zeroizing::new)
        .map_err(|_| format!("{key_path} holds no private key in PEM that can be read (without a password)"))?;
    let signer = aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|e| format!("the private key in {key_path} cannot be used for TLS: {e}"))?;
    let certified = CertifiedKey::new(chain, signer);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(e) => Err(format!("{cert_path} and {key_path} are no certificate and key that belong together: {e}")),
    }
}
