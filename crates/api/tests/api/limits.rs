//! What a stranger can do to the sockets.

use std::time::{Duration, Instant};

use crate::common::*;
use lockstep_api::{ApiError, Options, Server};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_body_that_says_it_is_too_large_is_refused_before_it_is_read() {
    let server = start(Options::default());
    let head = "POST /message HTTP/1.1\r\nhost: x\r\ncontent-length: 10485760\r\n\r\n";
    let answer = exchange(server.addr, head.as_bytes()).await;
    answer.assert_problem(413, "too_large");
    assert_eq!(answer.header("connection"), Some("close"));
}

#[tokio::test]
async fn a_body_of_10_mib_is_refused_and_the_server_goes_on() {
    let server = start(Options::default());
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(b"POST /message HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let sending = tokio::spawn(async move {
        let chunk = [b"10000\r\n", &[b' '; 65536][..], b"\r\n"].concat();
        for _ in 0..160 {
            // The server may close before all is sent.
            if writer.write_all(&chunk).await.is_err() {
                break;
            }
        }
    });
    let mut answer = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut reader, &mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    sending.await.unwrap();
    assert_eq!(exchange(server.addr, &post(signed("a").as_bytes(), "")).await.status, 200);
}

#[tokio::test]
async fn a_slow_body_is_answered_with_408() {
    let server = start(Options { body_read_timeout_ms: 100, ..Options::default() });
    let begun = "POST /message HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    exchange(server.addr, begun.as_bytes()).await.assert_problem(408, "timeout");
}

#[tokio::test]
async fn bodies_beyond_the_memory_for_them_are_refused() {
    let options = Options { bodies_bytes_max: 1000, body_bytes_max: 1000, ..Options::default() };
    let server = start(options);
    let mut first = TcpStream::connect(server.addr).await.unwrap();
    let head = b"POST /message HTTP/1.1\r\nhost: x\r\ncontent-length: 901\r\n\r\n";
    first.write_all(&[&head[..], &[b' '; 900]].concat()).await.unwrap();
    let deadline = Instant::now() + SOON;
    loop {
        let answer = exchange(server.addr, &post(&[b' '; 200], "")).await;
        if answer.status == 429 {
            break;
        }
        assert!(Instant::now() < deadline, "never refused");
    }
    drop(first);
    let deadline = Instant::now() + SOON;
    while exchange(server.addr, &post(signed("a").as_bytes(), "")).await.status != 200 {
        assert!(Instant::now() < deadline, "the bytes of a dropped request were never given back");
    }
}

#[tokio::test]
async fn large_answers_that_nobody_takes_are_counted() {
    let request = b"GET /api/batches?from=1&limit=100 HTTP/1.1\r\nhost: x\r\n\r\n";
    let size = exchange(start(Options::default()).addr, request).await.body.len();
    // One answer, and not two.
    let server = start(Options { answers_bytes_max: size * 3 / 2, ..Options::default() });
    assert_eq!(exchange(server.addr, request).await.status, 200);
    let deaf = tokio::spawn(async move {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        // Far more than the sockets between them hold; the server stops reading when it cannot write.
        stream.write_all(&request.repeat((64 << 20) / size)).await.unwrap();
        std::future::pending::<()>().await;
    });
    let deadline = Instant::now() + SOON;
    loop {
        let answer = exchange(server.addr, request).await;
        if answer.status == 429 {
            answer.assert_problem(429, "busy");
            break;
        }
        assert!(Instant::now() < deadline, "never refused");
    }
    deaf.abort();
    let deadline = Instant::now() + SOON;
    while exchange(server.addr, request).await.status != 200 {
        assert!(Instant::now() < deadline, "the bytes of answers whose client went away were never given back");
    }
}

#[tokio::test]
async fn messages_beyond_the_limit_on_waiting_ones_are_refused() {
    let server = start(Options { submits_max: 2, ..Options::default() });
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(&post(signed("never").as_bytes(), "")).await.unwrap();
        held.push(stream);
    }
    let deadline = Instant::now() + SOON;
    loop {
        let answer = exchange(server.addr, &post(signed("a").as_bytes(), "")).await;
        if answer.status == 429 {
            answer.assert_problem(429, "busy");
            break;
        }
        assert!(Instant::now() < deadline, "never refused");
    }
    drop(held);
    let deadline = Instant::now() + SOON;
    while exchange(server.addr, &post(signed("a").as_bytes(), "")).await.status != 200 {
        assert!(Instant::now() < deadline, "places of clients that went away were never given back");
    }
}

#[tokio::test]
async fn oversized_headers_are_refused() {
    let server = start(Options::default());
    let request = format!("GET /livez HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "a".repeat(40_000));
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    // The server may close before all is sent.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
}

#[tokio::test]
async fn a_head_that_trickles_in_ends_the_connection() {
    let server = start(Options { header_read_timeout_ms: 200, ..Options::default() });
    for first in ["", "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        if !first.is_empty() {
            stream.write_all(first.as_bytes()).await.unwrap();
            assert_eq!(read_answer(&mut stream).await.status, 200);
        }
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.unwrap();
        assert!(closes_within(&mut stream, SOON).await);
    }
}

#[tokio::test]
async fn an_idle_connection_outlives_the_time_for_heads_but_not_its_own() {
    let server = start(Options { header_read_timeout_ms: 50, idle_timeout_ms: 600, ..Options::default() });
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    for _ in 0..2 {
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert_eq!(read_answer(&mut stream).await.status, 200);
        assert!(!closes_within(&mut stream, Duration::from_millis(250)).await);
    }
    assert!(closes_within(&mut stream, SOON).await);
}

#[tokio::test]
async fn a_request_that_waits_long_is_not_idle() {
    let server = start(Options { header_read_timeout_ms: 50, idle_timeout_ms: 50, ..Options::default() });
    assert_eq!(exchange(server.addr, &post(signed("slow").as_bytes(), "")).await.status, 200);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_dropped_and_a_closed_one_makes_room() {
    let server = start(Options { connections_max: 2, ..Options::default() });
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert_eq!(read_answer(&mut stream).await.status, 200);
        idle.push(stream);
    }
    let mut third = TcpStream::connect(server.addr).await.unwrap();
    assert!(closes_within(&mut third, SOON).await);
    idle.pop();
    let deadline = Instant::now() + SOON;
    loop {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        if !closes_within(&mut stream, Duration::from_millis(50)).await {
            break;
        }
        assert!(Instant::now() < deadline, "no room was made");
    }
}

#[tokio::test]
async fn many_idle_connections_do_not_keep_others_waiting() {
    let server = start(Options::default());
    let mut idle = Vec::new();
    for _ in 0..500 {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(b"POST /message HTTP/1.1\r\n").await.unwrap();
        idle.push(stream);
    }
    let answer = tokio::time::timeout(SOON, exchange(server.addr, &post(signed("a").as_bytes(), ""))).await;
    assert_eq!(answer.unwrap().status, 200);
}

#[tokio::test]
async fn shutdown_lets_running_requests_finish_and_closes_the_rest() {
    let server = start(Options::default());
    let mut idle = TcpStream::connect(server.addr).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(read_answer(&mut idle).await.status, 200);
    let mut running = TcpStream::connect(server.addr).await.unwrap();
    running.write_all(&post(signed("slow").as_bytes(), "")).await.unwrap();
    // The request must have reached its handler: another one on a later connection is answered.
    assert_eq!(exchange(server.addr, &post(signed("a").as_bytes(), "")).await.status, 200);
    server.stop.cancel();
    assert_eq!(read_answer(&mut running).await.status, 200);
    assert!(closes_within(&mut idle, SOON).await);
    tokio::time::timeout(SOON, server.served).await.unwrap().unwrap();
    assert!(TcpStream::connect(server.addr).await.is_err());
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever() {
    let server = start(Options { drain_timeout_ms: 100, ..Options::default() });
    let mut stuck = TcpStream::connect(server.addr).await.unwrap();
    stuck.write_all(&post(signed("never").as_bytes(), "")).await.unwrap();
    assert_eq!(exchange(server.addr, &post(signed("a").as_bytes(), "")).await.status, 200);
    server.stop.cancel();
    tokio::time::timeout(SOON, server.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_found_before_the_start() {
    let server = start(Options::default());
    assert!(matches!(Server::bind(Options::default(), server.addr), Err(ApiError::Bind { .. })));
    let bad = Options { headers_bytes_max: 10, ..Options::default() };
    assert!(matches!(Server::bind(bad, "127.0.0.1:0".parse().unwrap()), Err(ApiError::Options(_))));
}
