//! The client against small servers that behave as told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockstep_client::{BenchOptions, Client, ClientError, ClientOptions, Fleet, bench};
use lockstep_types::{ProjectId, SigningKey};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A server that answers each request with what its script makes of the request's number and body.
struct Scripted {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

type Script = fn(usize, &str) -> (u16, String);

impl Scripted {
    async fn start(script: Script) -> Self {
        Self::start_with(script, usize::MAX).await
    }

    /// Closes each connection after so many answers, without saying so in the answer.
    async fn start_with(script: Script, answers_per_connection: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = Self { addr, connections: Arc::default(), requests: Arc::default() };
        let (connections, requests) = (server.connections.clone(), server.requests.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, script, requests.clone(), answers_per_connection));
            }
        });
        server
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    fn counts(&self) -> (usize, usize) {
        (self.connections.load(Ordering::SeqCst), self.requests.load(Ordering::SeqCst))
    }
}

async fn serve(mut stream: TcpStream, script: Script, requests: Arc<AtomicUsize>, answers: usize) {
    let mut read = Vec::new();
    for _ in 0..answers {
        let (head, length) = loop {
            if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&read[..at]).to_lowercase();
                let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
                if read.len() >= at + 4 + length {
                    break (at + 4, length);
                }
            }
            match stream.read_buf(&mut read).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        };
        let body = String::from_utf8_lossy(&read[head..head + length]).into_owned();
        read.drain(..head + length);
        let number = requests.fetch_add(1, Ordering::SeqCst);
        let (status, text) = script(number, &body);
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn accepted(number: usize) -> String {
    let id = format!("0x{number:064x}");
    format!("{{\"messageID\":\"{id}\",\"taskID\":\"\",\"sequence\":{},\"height\":1,\"duplicate\":false}}", number + 1)
}

fn accepts(number: usize, _: &str) -> (u16, String) {
    (200, accepted(number))
}

fn busy(_: usize, _: &str) -> (u16, String) {
    (429, "{\"error\":\"full\",\"code\":\"busy\"}".into())
}

fn unavailable(_: usize, _: &str) -> (u16, String) {
    (503, "{\"error\":\"no majority\",\"code\":\"outcome_unknown\"}".into())
}

fn refuses(_: usize, _: &str) -> (u16, String) {
    (400, "{\"error\":\"data is missing\",\"code\":\"missing_field\"}".into())
}

async fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

const LONG: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_node_that_is_down_busy_or_without_majority_is_passed_over() {
    let (busy, unavailable, good) =
        (Scripted::start(busy).await, Scripted::start(unavailable).await, Scripted::start(accepts).await);
    let urls = vec![free_port().await, busy.url(), unavailable.url(), good.url()];
    let client = Client::new(urls).unwrap();
    let first = client.submit("{}", LONG).await.unwrap();
    assert_eq!((first.url, first.attempts, first.sequence.0, first.task_id), (good.url(), 4, 1, None));
    // It stays with the node that answered.
    let second = client.submit("{}", LONG).await.unwrap();
    assert_eq!((second.attempts, busy.counts().1, unavailable.counts().1), (1, 1, 1));
}

#[tokio::test]
async fn connections_are_kept_and_a_closed_one_is_replaced_unnoticed() {
    let server = Scripted::start(accepts).await;
    let client = Client::new(vec![server.url()]).unwrap();
    for _ in 0..5 {
        client.submit("{}", LONG).await.unwrap();
    }
    assert_eq!(server.counts(), (1, 5));
    let server = Scripted::start_with(accepts, 2).await;
    let client = Client::new(vec![server.url()]).unwrap();
    for _ in 0..6 {
        assert_eq!(client.submit("{}", LONG).await.unwrap().attempts, 1);
    }
    assert_eq!(server.counts(), (3, 6));
}

#[tokio::test]
async fn a_refusal_is_reported_at_once_in_the_words_of_the_node() {
    let (bad, good) = (Scripted::start(refuses).await, Scripted::start(accepts).await);
    let client = Client::new(vec![bad.url(), good.url()]).unwrap();
    let error = client.submit("{}", LONG).await.unwrap_err();
    let ClientError::Refused { status, code, error, .. } = error else { panic!("{error}") };
    assert_eq!((status, &*code, &*error), (400, "missing_field", "data is missing"));
    assert_eq!(good.counts().1, 0);
}

#[tokio::test]
async fn a_busy_network_is_asked_again_until_it_answers_or_the_deadline_passes() {
    let server = Scripted::start(|n, b| if n < 3 { busy(n, b) } else { accepts(n, b) }).await;
    let options = ClientOptions { backoff_first: Duration::from_millis(5), ..ClientOptions::default() };
    let client = Client::with_options(vec![server.url()], options.clone()).unwrap();
    assert_eq!(client.submit("{}", LONG).await.unwrap().attempts, 4);
    let never = Scripted::start(busy).await;
    let client = Client::with_options(vec![never.url()], options).unwrap();
    let error = client.submit("{}", Duration::from_millis(100)).await.unwrap_err();
    let ClientError::Exhausted { attempts, last, .. } = error else { panic!("{error}") };
    assert!(attempts > 1 && last.contains("429") && last.contains("full"), "{attempts} {last}");
}

#[tokio::test]
async fn a_node_that_never_answers_costs_one_attempt() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let good = Scripted::start(accepts).await;
    let options = ClientOptions { attempt_timeout: Duration::from_millis(50), ..ClientOptions::default() };
    let urls = vec![format!("http://{}", silent.local_addr().unwrap()), good.url()];
    let client = Client::with_options(urls, options).unwrap();
    assert_eq!(client.submit("{}", LONG).await.unwrap().attempts, 2);
}

#[tokio::test]
async fn json_is_read_and_what_is_no_answer_is_said_so() {
    let server = Scripted::start(|_, _| (200, "{\"height\":7}".into())).await;
    let client = Client::new(vec![server.url()]).unwrap();
    let value: serde_json::Value = client.get_json("/api/status").await.unwrap();
    assert_eq!(value["height"], 7);
    let value: serde_json::Value = client.get_json_from(5, "/api/status").await.unwrap();
    assert_eq!(value["height"], 7);
    assert!(matches!(client.submit("{}", LONG).await, Err(ClientError::Answer { .. })));
    assert!(matches!(Client::new(vec![]), Err(ClientError::NoNodes)));
    assert!(matches!(Client::new(vec!["ftp://x".into()]), Err(ClientError::Url { .. })));
}

fn checks_the_signature(number: usize, body: &str) -> (u16, String) {
    match lockstep_identity::apinode::parse(body.as_bytes()).and_then(|request| request.authenticate()) {
        Ok(_) => (200, accepted(number)),
        Err(_) => refuses(number, body),
    }
}

#[tokio::test]
async fn a_fleet_keeps_its_rate_and_tells_of_every_acknowledgement() {
    let server = Scripted::start(checks_the_signature).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    let fleet = Fleet {
        // Every second device begins with a node that is down.
        urls: vec![server.url(), free_port().await],
        devices: 10,
        rate: 100.0,
        project: ProjectId(7),
        version: "1".into(),
        seed: 1,
        history: Some(Arc::new(move |ack| noted.lock().push(ack))),
    };
    let token = CancellationToken::new();
    let running = tokio::spawn(fleet.run(token.clone()));
    let deadline = tokio::time::Instant::now() + LONG;
    while seen.lock().len() < 50 {
        assert!(tokio::time::Instant::now() < deadline, "no readings");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    token.cancel();
    let stats = running.await.unwrap().unwrap();
    let seen = seen.lock();
    assert_eq!((stats.acknowledged, stats.refused, stats.unknown), (seen.len() as u64, 0, 0), "{stats:?}");
    assert!(stats.retries > 0 && stats.acknowledged as f64 <= 100.0 * stats.seconds + 10.0, "{stats:?}");
    let devices: std::collections::HashSet<_> = seen.iter().map(|a| a.device).collect();
    assert_eq!(devices.len(), 10);
    let key: SigningKey = lockstep_client::fleet::device_key(1, 3).unwrap();
    assert!(devices.contains(&key.address()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_benchmark_counts_what_was_acknowledged_and_shows_errors() {
    let good = Scripted::start(checks_the_signature).await;
    let bad = Scripted::start(busy).await;
    let options = BenchOptions {
        urls: vec![good.url(), bad.url()],
        concurrency: 4,
        seconds: 1,
        warmup_seconds: 0,
        presigned_max: 20,
        ..BenchOptions::default()
    };
    let report = bench::run(options).await.unwrap();
    assert!(report.acknowledged > 10 && report.errors > 0, "{report:?}");
    assert_eq!(report.per_url[&good.url()].acknowledged, report.acknowledged);
    assert_eq!(report.per_url[&bad.url()].errors, report.errors);
    assert!(report.error_samples.iter().all(|e| e.contains("429")), "{:?}", report.error_samples);
    assert!(report.presigned == 20 && report.signed_while_running > 0);
    assert!(report.p50_ms > 0.0 && report.p50_ms <= report.p99_ms && report.p99_ms <= report.max_ms);
    // One connection for each client, kept throughout.
    assert_eq!((good.counts().0, bad.counts().0), (2, 2));
    assert!(serde_json::to_string(&report).unwrap().contains("\"per_second\""));
}
