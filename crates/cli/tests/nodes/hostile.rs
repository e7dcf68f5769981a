//! What a stranger can send to a node's two ports, while a device submits as always.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lockstep_client::{Client, ClientOptions};
use lockstep_identity::sign_body;
use lockstep_testkit::audit::audit;
use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::history::{Content, History};
use lockstep_testkit::http::{get, local, post_message, request, request_bytes, send};
use lockstep_testkit::load::device_key;
use lockstep_testkit::process::raise_open_files;
use lockstep_testkit::random::Random;
use lockstep_testkit::wait::eventually;
use lockstep_types::ProjectId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::{SOON, binary};

const IDLE_CONNECTIONS: u64 = 10_000;
/// Files that this process needs for other things.
const FILES_KEPT: u64 = 2_000;
const MESSAGES_UNDER_FLOOD: usize = 100;
/// A node closes a connection that sends no whole request for 10 s, looking every 2.5 s.
const SLOW_CLOSED: Duration = Duration::from_secs(20);
/// A device on a connection that it has already hardly notices a flood of idle ones.
const KEPT_ANSWER_MAX: Duration = Duration::from_secs(2);
/// What an attack may cost above what a node holds before it.
const MEMORY_GROWTH_MAX: u64 = 512 << 20;

/// A device that submits to one node and writes down what it is told.
pub(crate) struct Device {
    client: Client,
    pub(crate) history: History,
    number: std::cell::Cell<u64>,
}

impl Device {
    pub(crate) fn new(url: String) -> Self {
        let limits = ClientOptions { attempt_timeout: Duration::from_secs(4), ..ClientOptions::default() };
        let client = Client::with_options(vec![url], limits).unwrap();
        Self { client, history: History::new(), number: std::cell::Cell::new(0) }
    }

    pub(crate) async fn submit(&self) -> Duration {
        let number = self.number.replace(self.number.get() + 1);
        let (key, data) = (device_key(9, 0), format!("reading {number}"));
        let call = self.history.invoke(Content::signed(key.address(), ProjectId(7), "0.1", data.as_bytes()));
        let started = Instant::now();
        let body = sign_body(&key, ProjectId(7), "0.1", &data);
        let answer = self.client.submit(body, Duration::from_secs(5)).await;
        self.history.acknowledge(call, &answer.unwrap_or_else(|e| panic!("a normal message was not ordered: {e}")));
        started.elapsed()
    }
}

/// Bodies of `POST /message`, each with the answer that it must get.
fn bad_bodies() -> Vec<(&'static str, Vec<u8>, u16)> {
    let signature = format!("0x{}", "11".repeat(65));
    let with = |project: &str, version: &str, data: &str, rest: &str| {
        format!("{{\"projectID\":{project},\"projectVersion\":{version},\"data\":{data}{rest}}}").into_bytes()
    };
    let signed = |signature: &str| with("7", "\"1\"", "\"x\"", &format!(",\"signature\":{signature}"));
    let nested = |depth: usize| with("7", "\"1\"", "\"x\"", &format!(",\"more\":{}", "[".repeat(depth)));
    let closed =
        |depth: usize| with("7", "\"1\"", "\"x\"", &format!(",\"more\":{}{}", "[".repeat(depth), "]".repeat(depth)));
    vec![
        ("nothing", b"".to_vec(), 400),
        ("no JSON", b"hello".to_vec(), 400),
        ("bytes", vec![0xff, 0xfe, 0x00, 0x80], 400),
        ("an array", b"[]".to_vec(), 400),
        ("a text", b"\"x\"".to_vec(), 400),
        ("null", b"null".to_vec(), 400),
        ("half an object", b"{\"projectID\":7,\"proj".to_vec(), 400),
        ("an empty object", b"{}".to_vec(), 400),
        ("a project in quotes", with("\"7\"", "\"1\"", "\"x\"", ""), 400),
        ("a negative project", with("-7", "\"1\"", "\"x\"", ""), 400),
        ("half a project", with("7.5", "\"1\"", "\"x\"", ""), 400),
        ("a project with an exponent", with("7e0", "\"1\"", "\"x\"", ""), 400),
        ("project 2^63", with("9223372036854775808", "\"1\"", "\"x\"", ""), 400),
        ("project 2^64", with("18446744073709551616", "\"1\"", "\"x\"", ""), 400),
        ("a project of 10,000 digits", with(&"9".repeat(10_000), "\"1\"", "\"x\"", ""), 400),
        ("a version that is a number", with("7", "1", "\"x\"", ""), 400),
        ("an object for data", with("7", "\"1\"", "{\"a\":1}", ""), 400),
        ("NUL in the version", with("7", "\"1\\u0000\"", "\"x\"", ""), 400),
        ("a version of 129 bytes", with("7", &format!("\"{}\"", "v".repeat(129)), "\"x\"", ""), 400),
        ("a signature that is a number", signed("5"), 400),
        ("an empty signature", signed("\"\""), 400),
        ("no signature", signed("null"), 400),
        ("a signature without 0x", signed(&format!("\"{}\"", &signature[2..])), 400),
        ("a signature of other letters", signed(&format!("\"0x{}\"", "zz".repeat(65))), 400),
        ("half a digit pair", signed(&format!("\"{}\"", &signature[..131])), 400),
        ("a signature of 64 bytes", signed(&format!("\"{}\"", &signature[..130])), 400),
        ("a signature of 66 bytes", signed(&format!("\"{signature}11\"")), 400),
        ("a signature of nobody", signed(&format!("\"0x{}00\"", "00".repeat(64))), 400),
        ("100,000 open brackets", nested(100_000), 400),
        ("100,000 pairs of brackets", closed(100_000), 400),
        ("data of 64 KiB and a byte", with("7", "\"1\"", &format!("\"{}\"", "d".repeat((64 << 10) + 1)), ""), 413),
    ]
}

async fn malformed_requests(address: SocketAddr) {
    for (name, body, status) in bad_bodies() {
        let answer = post_message(address, &body).await;
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        let error = answer.json();
        assert!(error["error"].is_string() && error["code"].is_string(), "{name}: {error}");
    }
    for (method, path, status) in [
        ("GET", "/message", 405),
        ("DELETE", "/api/status", 405),
        ("GET", "/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/api/batches/abc", 400),
        ("GET", "/api/batches/18446744073709551615", 404),
        ("GET", "/api/batches?limit=-1", 400),
        ("GET", "/api/batches?from=18446744073709551615&limit=1000000", 200),
        ("GET", "/api/messages/zz", 400),
        ("GET", "/api/tasks/0x00", 400),
    ] {
        let answer = request(address, method, path, b"").await.unwrap();
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
    }
    for bytes in [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), b"GET\r\n\r\n".to_vec(), vec![0; 100_000]] {
        // Not HTTP: refused or cut off.
        if let Ok(answer) = send(address, &bytes).await {
            assert!((400..500).contains(&answer.status), "{}", answer.head);
        }
    }
    let long = format!("GET /api/status HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(200_000));
    if let Ok(answer) = send(address, long.as_bytes()).await {
        assert!((400..500).contains(&answer.status), "{}", answer.head);
    }
}

async fn large_bodies(address: SocketAddr) {
    // Refused for its announced length, without its body.
    let whole = request_bytes("POST", "/message", &vec![b' '; 10 << 20]);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&whole[..4096]).await.unwrap();
    let mut answer = vec![0; 4096];
    let count = tokio::time::timeout(SOON, stream.read(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");

    // Without an announced length it is cut off on the way: the answer may be lost with the connection.
    let mut chunked = b"POST /message HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..10 {
        chunked.extend_from_slice(b"100000\r\n");
        chunked.extend_from_slice(&vec![b' '; 1 << 20]);
        chunked.extend_from_slice(b"\r\n");
    }
    if let Ok(answer) = send(address, &chunked).await {
        assert_eq!(answer.status, 413, "{}", answer.text());
    }
    // Many at once take no more memory than what is allowed for all together.
    let mut many = JoinSet::new();
    for _ in 0..64 {
        let chunked = chunked.clone();
        many.spawn(async move { send(address, &chunked).await.map(|answer| answer.status) });
    }
    while let Some(ended) = many.join_next().await {
        if let Ok(status) = ended.unwrap() {
            assert!([413, 429].contains(&status), "{status}");
        }
    }
}

/// Sends a byte now and then; returns the answer's first line and how long the node was patient.
async fn slow_body(address: SocketAddr) -> (String, Duration) {
    let stream = TcpStream::connect(address).await.unwrap();
    let started = Instant::now();
    let (mut reader, mut writer) = stream.into_split();
    writer.write_all(b"POST /message HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{").await.unwrap();
    let drip = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if writer.write_all(b" ").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(SLOW_CLOSED, reader.read(&mut answer));
    let count = tokio::select! {
        () = drip => unreachable!(),
        read = read => read.expect("a slow body is not waited for without end").unwrap_or(0),
    };
    let line = String::from_utf8_lossy(&answer[..count]).lines().next().unwrap_or_default().to_owned();
    (line, started.elapsed())
}

async fn slow_head(address: SocketAddr) -> Duration {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let started = Instant::now();
    stream.write_all(b"POST /message HTTP/1.1\r\nhost: ").await.unwrap();
    let read = tokio::time::timeout(SLOW_CLOSED, stream.read(&mut [0; 1024])).await;
    read.expect("a slow head is not waited for without end").ok();
    started.elapsed()
}

async fn open_connections(address: SocketAddr, count: u64) -> Vec<TcpStream> {
    let mut opening = JoinSet::new();
    let mut open = Vec::new();
    for _ in 0..count {
        opening.spawn(async move { tokio::time::timeout(SOON, TcpStream::connect(address)).await });
        // Fewer than the node's backlog at a time.
        if opening.len() >= 200 {
            open.extend(opening.join_next().await.and_then(|ended| ended.unwrap().ok()?.ok()));
        }
    }
    while let Some(ended) = opening.join_next().await {
        open.extend(ended.unwrap().ok().and_then(Result::ok));
    }
    open
}

async fn idle_connections(address: SocketAddr, device: &Device) {
    let count = IDLE_CONNECTIONS.min(raise_open_files().saturating_sub(FILES_KEPT));
    device.submit().await;
    let flood = open_connections(address, count).await;
    println!("{} idle connections", flood.len());
    assert!(flood.len() as u64 > count / 2);
    let mut longest = Duration::ZERO;
    for _ in 0..MESSAGES_UNDER_FLOOD {
        longest = longest.max(device.submit().await);
    }
    println!("a device on a kept connection waits {longest:?} at most under the flood");
    assert!(longest < KEPT_ANSWER_MAX, "{longest:?}");
    // A newcomer gets its turn at the latest when the idle ones are closed.
    let started = Instant::now();
    eventually("a new connection is served", SLOW_CLOSED, async || {
        match request(address, "GET", "/livez", b"").await {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(answer.text()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    println!("a newcomer is served after {:?}", started.elapsed());
    drop(flood);
}

/// Bytes that are no peer, on the port for peers.
async fn garbage_for_peers(address: SocketAddr, random: &mut Random) {
    let mut strangers = JoinSet::new();
    for n in 0..100 {
        let bytes = match n % 5 {
            0 => random.bytes(4096),
            1 => b"\x13/multistream/1.0.0\n\x07/noise\n".iter().copied().chain(random.bytes(512)).collect(),
            2 => vec![0xff; 65_536],
            3 => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            // Announces a frame and sends nothing of it.
            _ => b"\x13/multistream/1.0.0\n\x07/noise\n\xff\xff".to_vec(),
        };
        strangers.spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            // Cut off sooner or later: both are right.
            let _ = stream.write_all(&bytes).await;
            let mut answer = Vec::new();
            let _ = tokio::time::timeout(Duration::from_secs(3), stream.read_to_end(&mut answer)).await;
            std::io::Result::Ok(())
        });
    }
    while let Some(ended) = strangers.join_next().await {
        // The node may refuse so many at once.
        let _ = ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_get_clear_refusals_and_change_nothing() {
    let mut random = Random::from_environment();
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    let address = cluster.node(0).address();
    let device = Device::new(cluster.node(0).url());
    device.submit().await;
    let before = cluster.rss_bytes(0);

    let slow = tokio::spawn(async move { tokio::join!(slow_body(address), slow_head(address)) });
    malformed_requests(address).await;
    device.submit().await;
    large_bodies(address).await;
    device.submit().await;
    garbage_for_peers(local(cluster.node(0).p2p_port), &mut random).await;
    device.submit().await;
    let ((line, body_after), head_after) = slow.await.unwrap();
    println!("slow body: {line:?} after {body_after:?}; slow head: closed after {head_after:?}");
    assert!(line.starts_with("HTTP/1.1 408"), "{line}");
    println!("memory: {} MiB before, {} MiB after requests", before >> 20, cluster.rss_bytes(0) >> 20);

    idle_connections(address, &device).await;
    let peak = cluster.node(0).process.peak_rss_bytes();
    println!("memory: {} MiB at the end, {} MiB at most", cluster.rss_bytes(0) >> 20, peak >> 20);
    assert!(peak < before + MEMORY_GROWTH_MAX, "{before} bytes before, {peak} at most");

    assert_eq!(get(address, "/livez").await.status, 200);
    let status = cluster.status(0).await.unwrap();
    assert!(status.peers.iter().all(|peer| peer.connected), "{:?}", status.peers);
    let checked = audit(&mut cluster, &device.history).await;
    assert_eq!(checked.messages, checked.acknowledged, "only the device's own messages are there");
    println!("{checked:?}");
}
