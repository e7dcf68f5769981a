//! TLS on the same port as everything else.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::*;
use hyper_util::rt::TokioIo;
use lockstep_api::{ApiError, Options, Server, TlsFiles};
use lockstep_types::proto::SubmitRequest;
use lockstep_types::proto::sequencer_client::SequencerClient;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Code;
use tonic::transport::{Endpoint, Uri};

const SOON: Duration = Duration::from_secs(5);

/// Writes a new certificate and its key, and returns the certificate.
fn write_certificate(files: &TlsFiles) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["node.example".to_owned()]).unwrap();
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.key_pair.serialize_pem()).unwrap();
    made.cert.der().clone()
}

fn files_in(directory: &Path) -> TlsFiles {
    TlsFiles { cert: directory.join("cert.pem"), key: directory.join("key.pem") }
}

struct Secure {
    directory: tempfile::TempDir,
    server: Running,
    root: CertificateDer<'static>,
}

impl Secure {
    fn start(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let files = files_in(directory.path());
        let root = write_certificate(&files);
        let bound = Server::bind(options, "127.0.0.1:0".parse().unwrap()).unwrap().with_tls(files).unwrap();
        Self { directory, server: run(bound, Fake::default()), root }
    }

    async fn connect(&self, protocol: &str) -> std::io::Result<TlsStream<TcpStream>> {
        connect(self.server.addr, &self.root, protocol).await
    }
}

async fn connect(
    addr: std::net::SocketAddr,
    root: &CertificateDer<'static>,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let name = ServerName::try_from("node.example").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(addr).await?).await
}

#[tokio::test]
async fn messages_go_over_tls_by_http_1_and_by_grpc() {
    let secure = Secure::start(Options::default());
    let mut stream = secure.connect("http/1.1").await.unwrap();
    for sequence in 1..=2 {
        stream.write_all(&post(signed("a").as_bytes(), "")).await.unwrap();
        assert_eq!(read_answer(&mut stream).await.json()["sequence"], sequence);
    }
    let (addr, root) = (secure.server.addr, secure.root.clone());
    let connector = tower::service_fn(move |_: Uri| {
        let root = root.clone();
        async move {
            let stream = connect(addr, &root, "h2").await?;
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let channel = Endpoint::from_static("http://node.example").connect_with_connector(connector).await.unwrap();
    let mut client = SequencerClient::new(channel);
    let refused = client.submit(SubmitRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn plain_http_gets_nothing_on_a_tls_port() {
    let secure = Secure::start(Options::default());
    let mut stream = TcpStream::connect(secure.server.addr).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(closes_within(&mut stream, SOON).await);
}

#[tokio::test]
async fn a_handshake_that_is_not_made_ends_the_connection() {
    let secure = Secure::start(Options { handshake_timeout_ms: 200, ..Options::default() });
    let mut stream = TcpStream::connect(secure.server.addr).await.unwrap();
    assert!(closes_within(&mut stream, SOON).await);
}

#[tokio::test]
async fn whoever_only_holds_a_place_for_handshakes_makes_room_for_others() {
    let secure = Secure::start(Options { handshakes_max: 2, ..Options::default() });
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(TcpStream::connect(secure.server.addr).await.unwrap());
    }
    let connected = tokio::time::timeout(Duration::from_secs(8), secure.connect("http/1.1")).await;
    assert!(connected.expect("never got a place").is_ok());
}

#[tokio::test]
async fn limits_on_connections_and_idle_times_hold_for_tls() {
    let options =
        Options { connections_max: 1, header_read_timeout_ms: 300, idle_timeout_ms: 300, ..Options::default() };
    let secure = Secure::start(options);
    let mut stream = secure.connect("http/1.1").await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(read_answer(&mut stream).await.status, 200);
    let mut second = TcpStream::connect(secure.server.addr).await.unwrap();
    assert!(closes_within(&mut second, SOON).await, "one connection more than allowed");
    assert!(closes_within(&mut stream, SOON).await, "idle");
    // One that says nothing after its handshake owes a request.
    let deadline = Instant::now() + SOON;
    let mut silent = loop {
        match secure.connect("http/1.1").await {
            Ok(stream) => break stream,
            Err(_) => assert!(Instant::now() < deadline, "no room was made"),
        }
    };
    assert!(closes_within(&mut silent, SOON).await);
    secure.server.stop.cancel();
    tokio::time::timeout(SOON, secure.server.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_new_certificate_is_used_and_a_bad_one_changes_nothing() {
    let secure = Secure::start(Options { tls_reload_interval_ms: 20, ..Options::default() });
    let files = files_in(secure.directory.path());
    let mut open = secure.connect("http/1.1").await.unwrap();

    std::fs::write(&files.cert, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let bad_since = Instant::now();
    while bad_since.elapsed() < Duration::from_millis(200) {
        assert!(secure.connect("http/1.1").await.is_ok(), "the old certificate is kept");
    }
    let root = write_certificate(&files);
    let deadline = Instant::now() + SOON;
    while connect(secure.server.addr, &root, "http/1.1").await.is_err() {
        assert!(Instant::now() < deadline, "the new certificate is not used");
    }
    assert!(secure.connect("http/1.1").await.is_err(), "the old certificate is gone");
    open.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(read_answer(&mut open).await.status, 200, "an open connection goes on");
}

#[tokio::test]
async fn bad_files_are_found_before_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let (files, others) = (files_in(directory.path()), tempfile::tempdir().unwrap());
    let reason = |files: TlsFiles| {
        let bound = Server::bind(Options::default(), "127.0.0.1:0".parse().unwrap()).unwrap();
        match bound.with_tls(files) {
            Err(ApiError::Tls(reason)) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert!(reason(files.clone()).contains("cert.pem: No such file"));
    write_certificate(&files);
    let other_files = files_in(others.path());
    write_certificate(&other_files);
    let mixed = TlsFiles { key: other_files.key, ..files.clone() };
    assert!(reason(mixed).contains("belong together"));
    let swapped = TlsFiles { cert: files.key.clone(), key: files.cert.clone() };
    assert!(reason(swapped).contains("holds no certificate"));
    let keyless = TlsFiles { key: files.cert.clone(), ..files.clone() };
    assert!(reason(keyless).contains("holds no private key"));
    std::fs::write(&files.cert, vec![b' '; (1 << 20) + 1]).unwrap();
    assert!(reason(files).contains("more than"));
}
