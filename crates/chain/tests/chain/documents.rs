//! Documents from a gateway that behaves well, badly, and not at all.

use std::time::Duration;

use crate::support::{Reply, Server};
use lockstep_chain::{DOCUMENT_BYTES_MAX, DocumentError, DocumentOptions, Documents};
use lockstep_testkit::wait::eventually;
use lockstep_types::{Hash32, keccak256};

const DOCUMENT: &[u8] = br#"{"id":"did:io:0x01"}"#;
/// SHA-256 of DOCUMENT.
const DOCUMENT_SHA256: &str = "a191dddbd553ef1f42d47499062e6f8ef398b22f82ec5dc0336cc9aabc1c4fab";

fn documents(gateway: &str) -> Documents {
    let options =
        DocumentOptions { timeout: Duration::from_millis(500), ..DocumentOptions::new(gateway.parse().unwrap()) };
    Documents::new(options).unwrap()
}

fn hash() -> Hash32 {
    keccak256(&[DOCUMENT])
}

/// What a server that always replies so leads to, asked twice; and how often it was asked.
async fn twice(reply: impl Fn(&str, &str) -> Reply + Send + Sync + 'static) -> (DocumentError, usize) {
    let server = Server::start(reply).await;
    let documents = documents(&server.url);
    let error = documents.fetch("ipfs://Qm", &hash()).await.unwrap_err();
    assert_eq!(documents.fetch("ipfs://Qm", &hash()).await, Err(error.clone()));
    (error, server.requests())
}

#[tokio::test]
async fn a_document_comes_from_the_gateway_if_either_hash_fits() {
    let server = Server::start(|line, _| match line {
        "GET /ipfs/Qmabc HTTP/1.1" => Reply::new(200, DOCUMENT),
        _ => Reply::new(404, ""),
    })
    .await;
    let gateway = format!("{}/ipfs", server.url);
    let documents = documents(&gateway);
    let sha256: Hash32 = hex::decode(DOCUMENT_SHA256).unwrap().try_into().unwrap();
    for hash in [hash(), sha256] {
        assert_eq!(documents.fetch("ipfs://Qmabc", &hash).await.unwrap(), DOCUMENT);
        assert_eq!(documents.fetch(&format!("{gateway}/Qmabc"), &hash).await.unwrap(), DOCUMENT);
    }
    assert_eq!(documents.fetch("ipfs://other", &hash()).await, Err(DocumentError::Status { status: 404 }));
}

#[tokio::test]
async fn nobody_but_the_gateway_is_contacted() {
    let (gateway, other) =
        (Server::start(|_, _| Reply::new(200, DOCUMENT)).await, Server::start(|_, _| Reply::new(200, DOCUMENT)).await);
    let documents = documents(&gateway.url);
    assert_eq!(documents.fetch(&format!("{}/Qm", other.url), &hash()).await, Err(DocumentError::NotAllowed));
    assert_eq!(documents.fetch("", &hash()).await, Err(DocumentError::NoUri));
    assert_eq!((gateway.requests(), other.requests()), (0, 0));

    // Not even when the gateway says so.
    let there = format!("HTTP/1.1 302 x\r\nlocation: {}/Qm\r\ncontent-length: 0\r\n\r\n", other.url);
    let (error, _) = twice(move |_, _| Reply::Raw(there.clone().into_bytes())).await;
    assert_eq!((error, other.requests()), (DocumentError::Status { status: 302 }, 0));
}

#[tokio::test]
async fn failures_are_remembered() {
    assert_eq!(twice(|_, _| Reply::new(200, "other bytes")).await, (DocumentError::WrongHash, 1));
    assert_eq!(twice(|_, _| Reply::new(503, "")).await, (DocumentError::Status { status: 503 }, 1));
}

#[tokio::test]
async fn a_document_beyond_the_limit_is_refused_whatever_its_length_says() {
    let too_large = DocumentError::TooLarge { bytes_max: DOCUMENT_BYTES_MAX as u64 };
    let announced = "HTTP/1.1 200 x\r\ncontent-length: 65537\r\n\r\n";
    assert_eq!(twice(|_, _| Reply::Stall(announced.into())).await, (too_large.clone(), 1));
    let endless = [b"HTTP/1.1 200 x\r\nconnection: close\r\n\r\n", &[b'x'; DOCUMENT_BYTES_MAX + 1][..]].concat();
    assert_eq!(twice(move |_, _| Reply::Stall(endless.clone())).await, (too_large, 1));
}

#[tokio::test]
async fn the_largest_document_is_taken() {
    let largest = vec![b'x'; DOCUMENT_BYTES_MAX];
    let server = Server::start({
        let largest = largest.clone();
        move |_, _| Reply::new(200, &largest)
    })
    .await;
    assert_eq!(documents(&server.url).fetch("ipfs://Qm", &keccak256(&[&largest])).await, Ok(largest));
}

#[tokio::test]
async fn a_gateway_that_stalls_is_a_timeout() {
    assert_eq!(twice(|_, _| Reply::Stall(Vec::new())).await, (DocumentError::Timeout, 1));
    let half = "HTTP/1.1 200 x\r\ncontent-length: 20\r\n\r\n{\"id\"";
    assert_eq!(twice(|_, _| Reply::Stall(half.into())).await, (DocumentError::Timeout, 1));
}

#[tokio::test]
async fn a_gateway_that_is_down_is_unreachable_and_named_nowhere() {
    let url = Server::start(|_, _| Reply::new(200, "")).await.url.clone();
    let documents = documents(&url.replace("http://", "http://user:passw0rd@"));
    let error = documents.fetch("ipfs://Qm", &hash()).await.unwrap_err();
    assert!(matches!(error, DocumentError::Unreachable { .. }) && error.is_retryable(), "{error}");
    let shown = format!("{documents:?} {error} {error:?}");
    assert!(!shown.contains("passw0rd"), "{shown}");
}

#[tokio::test]
async fn what_failed_is_asked_again_after_a_while() {
    let server = Server::start(|_, _| Reply::new(404, "")).await;
    let options =
        DocumentOptions { failure_ttl: Duration::from_millis(50), ..DocumentOptions::new(server.url.parse().unwrap()) };
    let documents = Documents::new(options).unwrap();
    eventually("it is asked a second time", Duration::from_secs(30), async || {
        documents.fetch("ipfs://Qm", &hash()).await.unwrap_err();
        if server.requests() == 2 { Ok(()) } else { Err("it was asked once".to_owned()) }
    })
    .await;
}
