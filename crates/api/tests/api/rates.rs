//! Limits on messages per second.

use crate::common::*;
use lockstep_api::rate::Rate;
use lockstep_api::{Options, TrustedProxy};
use lockstep_types::proto::SubmitRequest;
use lockstep_types::proto::sequencer_client::SequencerClient;
use tokio::io::AsyncWriteExt;
use tonic::Code;

/// So slow that nothing comes back during a test.
fn limited(burst: u32) -> Options {
    Options { address_rate: Rate { per_second: 1, burst }, ..Options::default() }
}

#[tokio::test]
async fn an_address_that_is_too_fast_is_told_when_to_come_back() {
    let server = start(Options { address_rate: Rate { per_second: 1, burst: 2 }, ..Options::default() });
    let send = async || exchange(server.addr, &post(signed("a").as_bytes(), "")).await;
    assert_eq!((send().await.status, send().await.status), (200, 200));
    let answer = send().await;
    answer.assert_problem(429, "too_fast");
    assert_eq!(answer.header("retry-after"), Some("1"));
    get(server.addr, "/api/status").await.assert_problem(429, "too_fast");
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(get(server.addr, path).await.status, 200, "{path} is for the operator's machinery");
    }
}

#[tokio::test]
async fn whoever_is_too_fast_is_refused_before_the_body_is_read() {
    let server = start(limited(1));
    assert_eq!(get(server.addr, "/api/status").await.status, 200);
    let mut stream = tokio::net::TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(b"POST /message HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n").await.unwrap();
    read_answer(&mut stream).await.assert_problem(429, "too_fast");
}

#[tokio::test]
async fn devices_behind_a_trusted_proxy_are_counted_by_themselves() {
    let proxy = TrustedProxy::try_from("127.0.0.0/8".to_owned()).unwrap();
    for (trusted, expected) in [(vec![proxy], 200), (vec![], 429)] {
        let server = start(Options { trusted_proxies: trusted, ..limited(1) });
        let from = async |client: &str| {
            let headers = format!("x-forwarded-for: {client}\r\n");
            exchange(server.addr, &post(signed("a").as_bytes(), &headers)).await.status
        };
        assert_eq!(from("192.0.2.1").await, 200);
        assert_eq!(from("192.0.2.2").await, expected);
        assert_eq!(from("192.0.2.1").await, 429);
    }
}

#[tokio::test]
async fn each_message_of_a_bulk_counts() {
    let server = start(limited(3));
    let messages: Vec<String> = (0..5).map(|n| signed(&format!("{n}"))).collect();
    let body = format!("[{}]", messages.join(","));
    let entries = exchange(server.addr, &post_to("/messages", body.as_bytes(), "")).await.json();
    let codes: Vec<_> = entries.as_array().unwrap().iter().map(|e| e["code"].as_str().unwrap_or("ok")).collect();
    assert_eq!(codes, ["ok", "ok", "ok", "too_fast", "too_fast"]);
    assert!(entries[3]["retryAfterMs"].as_u64().unwrap() > 500);
}

#[tokio::test]
async fn a_limit_that_the_node_reached_has_the_same_words() {
    let server = start(Options::default());
    let answer = exchange(server.addr, &post(signed("fast").as_bytes(), "")).await;
    answer.assert_problem(429, "too_fast");
    assert!(answer.json()["error"].as_str().unwrap().contains("this device"));
    assert_eq!(answer.header("retry-after"), Some("1"));
}

#[tokio::test]
async fn grpc_hears_of_the_limit_in_its_own_words() {
    let server = start(limited(1));
    let mut client = SequencerClient::connect(format!("http://{}", server.addr)).await.unwrap();
    assert_eq!(client.submit(SubmitRequest::default()).await.unwrap_err().code(), Code::InvalidArgument);
    let status = client.submit(SubmitRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert_eq!(status.metadata().get("retry-after").unwrap(), "1");
}
