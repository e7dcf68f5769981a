//! Clients that hold connections and give nothing for them, while a device submits as always.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lockstep_testkit::audit::audit;
use lockstep_testkit::cluster::{Cluster, ClusterOptions, change_config};
use lockstep_testkit::http::{get, request};
use lockstep_testkit::process::raise_open_files;
use lockstep_testkit::wait::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::hostile::Device;
use crate::{SOON, binary};

/// What an attack may cost above what a node holds before it.
const MEMORY_GROWTH_MAX: u64 = 512 << 20;
/// A device on a connection that it has already hardly notices.
const KEPT_ANSWER_MAX: Duration = Duration::from_secs(2);
const SLOW_CONNECTIONS: usize = 1_000;
const DEAF_CONNECTIONS: usize = 200;
/// What takes work to answer, or much memory.
const DEAF_PATHS: [&str; 6] =
    ["/metrics", "/api/export", "/api/batches?limit=100", "/api/tasks?limit=1000", "/api/openapi.json", "/api/feed"];
/// What takes work even when nobody waits for it any more.
const LARGE: &str = "/api/batches?limit=100";
/// Clients that ask for it and leave, and when they do.
const LEAVING: usize = 64;
const LEAVES_AFTER: Duration = Duration::from_millis(20);
/// Requests on one connection whose answers nobody reads.
const PIPELINED: usize = 500;
/// A head that does not end is given up after 10 s, which is looked at every 2.5 s.
const SLOW_CLOSED: Duration = Duration::from_secs(25);
const ADDRESS_CONNECTIONS: usize = 64;

async fn submit_for(device: &Device, time: Duration) -> (u32, Duration) {
    let (started, mut count, mut longest) = (Instant::now(), 0, Duration::ZERO);
    while started.elapsed() < time {
        longest = longest.max(device.submit().await);
        count += 1;
    }
    (count, longest)
}

/// A request whose head, or body, comes a byte a second. Tells when the node had enough.
async fn drip(address: SocketAddr, start: &'static [u8]) -> Duration {
    let started = Instant::now();
    let Ok(mut stream) = TcpStream::connect(address).await else { return Duration::ZERO };
    let _ = stream.write_all(start).await;
    let mut answer = [0; 256];
    while started.elapsed() < SLOW_CLOSED {
        // An answer or an end: the node has decided.
        if tokio::time::timeout(Duration::from_secs(1), stream.read(&mut answer)).await.is_ok() {
            return started.elapsed();
        }
        if stream.write_all(b"x").await.is_err() {
            return started.elapsed();
        }
    }
    panic!("the node waits for ever for {start:?}");
}

/// Asks again and again and never reads an answer; stays until it is dropped.
async fn deaf(address: SocketAddr, path: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let requests = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").repeat(PIPELINED);
    // The node stops reading when it cannot write.
    let _ = tokio::time::timeout(Duration::from_secs(2), stream.write_all(requests.as_bytes())).await;
    Some(stream)
}

/// Asks for something large again and again, and each time leaves while it is put together.
async fn leave_early(address: SocketAddr, time: Duration) -> u32 {
    let (started, mut asked) = (Instant::now(), 0);
    while started.elapsed() < time {
        let Ok(mut stream) = TcpStream::connect(address).await else { continue };
        let request = format!("GET {LARGE} HTTP/1.1\r\nhost: x\r\n\r\n");
        asked += u32::from(stream.write_all(request.as_bytes()).await.is_ok());
        // Long enough for the request to be read.
        tokio::time::sleep(LEAVES_AFTER).await;
    }
    asked
}

/// A frame of HTTP/2: length, type, flags, stream, payload (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What HTTP/2 lets a client ask for without end.
fn http2_floods() -> Vec<(&'static str, Vec<u8>)> {
    let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat();
    // GET http / of the static table (RFC 7541, appendix A).
    let head = [0x82, 0x86, 0x84];
    // The same with a path of its own (RFC 7541, section 6.2.2).
    let large = [&[0x82, 0x86, 0x04, LARGE.len() as u8], LARGE.as_bytes()].concat();
    let with = |frames: Vec<u8>| [&preface[..], &frames].concat();
    let resets = |n: u32| [frame(1, 5, 2 * n + 1, &head), frame(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat();
    let open = frame(1, 1, 1, &head);
    let left = |n: u32| [frame(1, 5, 2 * n + 1, &large), frame(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat();
    vec![
        ("requests that are reset at once", with((0..20_000).flat_map(resets).collect())),
        ("large reads that are left at once", with((0..10_000).flat_map(left).collect())),
        ("pings", with(frame(6, 0, 0, &[7; 8]).repeat(100_000))),
        ("settings", with(frame(4, 0, 0, &[0, 4, 0, 0, 255, 255]).repeat(100_000))),
        ("a head without an end", with([open, frame(9, 0, 1, &[0x82; 1_024]).repeat(2_000)].concat())),
        ("empty data", with([frame(1, 4, 1, &head), frame(0, 0, 1, &[]).repeat(100_000)].concat())),
        ("a frame of 16 MiB", with(vec![0xff; 1 << 20])),
    ]
}

/// Writes and reads nothing; ends when the node does, or after a while.
async fn pour(address: SocketAddr, bytes: Vec<u8>) {
    let Ok(stream) = TcpStream::connect(address).await else { return };
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        let _ = writer.write_all(&bytes).await;
        let _ = reader.read_to_end(&mut Vec::new()).await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(8), write).await;
}

fn open_files(cluster: &Cluster, index: usize) -> usize {
    let pid = cluster.node(index).process.pid().unwrap();
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_gives_nothing_for_a_connection_loses_it_and_devices_do_not_notice() {
    raise_open_files();
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    let address = cluster.node(0).address();
    let device = Device::new(cluster.node(0).url());
    device.submit().await;
    let (memory, files) = (cluster.rss_bytes(0), open_files(&cluster, 0));

    // Heads and bodies a byte at a time.
    let mut slow = JoinSet::new();
    for n in 0..SLOW_CONNECTIONS {
        let start: &[u8] = match n % 3 {
            0 => b"POST /message HTTP/1.1\r\nx-slow: ",
            1 => b"POST /message HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{",
            _ => b"PRI * HTTP/2.0\r\n\r\nSM\r",
        };
        slow.spawn(drip(address, start));
    }
    let (count, longest) = submit_for(&device, Duration::from_secs(8)).await;
    println!("{count} messages beside {SLOW_CONNECTIONS} slow clients, {longest:?} at most");
    assert!(longest < KEPT_ANSWER_MAX, "{longest:?}");
    assert_eq!(get(address, "/livez").await.status, 200, "a newcomer is served");
    while let Some(ended) = slow.join_next().await {
        ended.unwrap();
    }

    // Answers that nobody reads: large ones, and feeds.
    let mut deafs = JoinSet::new();
    for n in 0..DEAF_CONNECTIONS {
        let path = DEAF_PATHS[n % DEAF_PATHS.len()];
        deafs.spawn(deaf(address, path));
    }
    let mut held = Vec::new();
    while let Some(ended) = deafs.join_next().await {
        held.extend(ended.unwrap());
    }
    let (count, longest) = submit_for(&device, Duration::from_secs(5)).await;
    println!("{count} messages beside {} deaf clients, {longest:?} at most", held.len());
    assert!(longest < KEPT_ANSWER_MAX, "{longest:?}");
    drop(held);

    // Large reads whose readers are gone when they are answered.
    let mut leaving = JoinSet::new();
    for _ in 0..LEAVING {
        leaving.spawn(leave_early(address, Duration::from_secs(5)));
    }
    let (count, longest) = submit_for(&device, Duration::from_secs(5)).await;
    let mut asked = 0;
    while let Some(ended) = leaving.join_next().await {
        asked += ended.unwrap();
    }
    println!("{count} messages beside {asked} large reads that are left, {longest:?} at most");
    assert!(longest < KEPT_ANSWER_MAX && asked > 100, "{longest:?}, {asked} large reads");

    // HTTP/2 at its limits.
    for (name, bytes) in http2_floods() {
        let mut floods = JoinSet::new();
        for _ in 0..8 {
            floods.spawn(pour(address, bytes.clone()));
        }
        let (count, longest) = submit_for(&device, Duration::from_secs(2)).await;
        println!("{count} messages beside eight floods of {name}, {longest:?} at most");
        assert!(longest < KEPT_ANSWER_MAX, "{name}: {longest:?}");
        while floods.join_next().await.is_some() {}
    }

    let peak = cluster.node(0).process.peak_rss_bytes();
    println!("memory: {} MiB before, {} MiB at most", memory >> 20, peak >> 20);
    assert!(peak < memory + MEMORY_GROWTH_MAX, "{memory} bytes before, {peak} at most");
    eventually("the connections are gone", SLOW_CLOSED, async || {
        let now = open_files(&cluster, 0);
        if now < files + 100 { Ok(()) } else { Err(format!("{files} files before, {now} now")) }
    })
    .await;
    cluster.assert_no_panics();
    let checked = audit(&mut cluster, &device.history).await;
    assert_eq!(checked.messages, checked.acknowledged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_holds_no_more_connections_than_it_may() {
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(1));
    change_config(cluster.node(0).process.home(), |text| {
        assert!(text.contains("address_connections = 0"), "{text}");
        text.replace("address_connections = 0", &format!("address_connections = {ADDRESS_CONNECTIONS}"))
    });
    cluster.start_all().await;
    let address = cluster.node(0).address();
    let device = Device::new(cluster.node(0).url());
    device.submit().await;
    let files = open_files(&cluster, 0);
    let mut flood = Vec::new();
    for _ in 0..5 * ADDRESS_CONNECTIONS {
        flood.extend(TcpStream::connect(address).await);
    }
    // The device has its place.
    device.submit().await;
    let now = open_files(&cluster, 0);
    assert!(now <= files + ADDRESS_CONNECTIONS, "{files} files before, {now} now");
    assert!(request(address, "GET", "/livez", b"").await.is_err(), "one more is dropped");
    drop(flood);
    eventually("places are given back", SOON, async || match request(address, "GET", "/livez", b"").await {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// A project's number is what a client says it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_numbers_of_all_are_numbers() {
    let cluster = Cluster::start(binary(), ClusterOptions::of(1)).await;
    let address = cluster.node(0).address();
    let device = Device::new(cluster.node(0).url());
    device.submit().await;
    let last = u64::MAX;
    for path in [
        format!("/api/projects/{last}/devices"),
        format!("/api/projects/{last}"),
        format!("/api/tasks?after={last}"),
        format!("/api/tasks?from_height={last}"),
        format!("/api/batches?from={last}"),
        format!("/api/batches/{last}"),
        format!("/api/boundaries?from={last}"),
        format!("/api/export?from={last}"),
        format!("/api/status?min_sequence={last}"),
    ] {
        let answer = request(address, "GET", &path, b"").await.unwrap();
        assert_ne!(answer.status, 500, "{path}: {}", answer.text());
    }
    cluster.assert_no_panics();
}
