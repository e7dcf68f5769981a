//! Feeds of what is final: pages, server-sent events, gRPC.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::common::*;
use lockstep_api::views::TasksView;
use lockstep_api::{Options, Server};
use lockstep_types::TaskNumber;
use lockstep_types::proto::reader_client::ReaderClient;
use lockstep_types::proto::{BatchesRequest, TasksRequest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tonic::Code;

const SOON: Duration = Duration::from_secs(5);

fn with_tasks(options: Options, newest: u64) -> (Running, watch::Sender<u64>) {
    let fake = Fake { final_tasks: watch::Sender::new(newest), ..Fake::default() };
    let tasks = fake.final_tasks.clone();
    (run(Server::bind(options, "127.0.0.1:0".parse().unwrap()).unwrap(), fake), tasks)
}

/// A reader of server-sent events.
struct Events {
    stream: TcpStream,
    read: String,
}

impl Events {
    async fn open(addr: SocketAddr, query: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET /api/feed{query} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self { stream, read: String::new() }
    }

    /// The numbers of the next `count` tasks, with what else came as words.
    async fn next(&mut self, count: usize) -> Vec<String> {
        let mut found = Vec::new();
        while found.len() < count {
            let Some(at) = self.read.find("event: ") else {
                let mut chunk = [0; 4096];
                let n = tokio::time::timeout(SOON, self.stream.read(&mut chunk)).await.unwrap().unwrap();
                assert!(n > 0, "the feed ended: {}", self.read);
                self.read.push_str(&String::from_utf8_lossy(&chunk[..n]));
                continue;
            };
            let Some(end) = self.read[at..].find("\n\n") else {
                let mut chunk = [0; 4096];
                let n = tokio::time::timeout(SOON, self.stream.read(&mut chunk)).await.unwrap().unwrap();
                self.read.push_str(&String::from_utf8_lossy(&chunk[..n]));
                continue;
            };
            let event = self.read[at..at + end].to_owned();
            self.read.drain(..at + end + 2);
            let id = event.lines().find_map(|line| line.strip_prefix("id: "));
            match event.lines().next() {
                Some("event: task") => found.push(id.unwrap().to_owned()),
                Some(other) => found.push(other.to_owned()),
                None => {}
            }
        }
        found
    }
}

fn numbers(range: impl IntoIterator<Item = u64>) -> Vec<String> {
    range.into_iter().map(|n| n.to_string()).collect()
}

#[tokio::test]
async fn pages_lead_from_one_to_the_next_and_leave_nothing_out() {
    let (server, _tasks) = with_tasks(Options::default(), 25);
    let (mut after, mut seen) = (0, Vec::new());
    loop {
        let page = get(server.addr, &format!("/api/tasks?after={after}&limit=7")).await;
        let page: TasksView = serde_json::from_slice(&page.body).unwrap();
        assert_eq!(page.newest, Some(TaskNumber(25)));
        if page.tasks.is_empty() {
            break;
        }
        seen.extend(page.tasks.iter().map(|task| task.number.0));
        after = page.next.unwrap().0;
    }
    assert_eq!(seen, (3..=25).collect::<Vec<_>>());
    for (query, status, code) in [
        ("after=1", 410, "pruned"),
        ("after=x", 400, "invalid_request"),
        ("project=0", 400, "invalid_request"),
        ("after=3&from_height=2", 400, "invalid_request"),
    ] {
        get(server.addr, &format!("/api/tasks?{query}")).await.assert_problem(status, code);
        get(server.addr, &format!("/api/feed?{query}")).await.assert_problem(status, code);
    }
    exchange(server.addr, b"GET /api/feed HTTP/1.1\r\nhost: x\r\nlast-event-id: x\r\n\r\n")
        .await
        .assert_problem(400, "invalid_request");
}

#[tokio::test]
async fn events_go_on_with_what_becomes_final_and_where_a_reader_left_off() {
    let (server, tasks) = with_tasks(Options::default(), 5);
    let mut all = Events::open(server.addr, "", "").await;
    let mut some = Events::open(server.addr, "?project=7&after=3", "").await;
    assert_eq!(all.next(3).await, numbers(3..=5));
    tasks.send_replace(30);
    assert_eq!(all.next(25).await, numbers(6..=30));
    assert_eq!(some.next(9).await, numbers((6..=30).step_by(3)));
    let mut back = Events::open(server.addr, "?from_height=1", "last-event-id: 28\r\n").await;
    assert_eq!(back.next(2).await, numbers(29..=30));
    tasks.send_replace(31);
    assert_eq!((all.next(1).await, back.next(1).await), (numbers([31]), numbers([31])));
}

#[tokio::test]
async fn payloads_are_for_whoever_shows_the_reader_token() {
    let (server, _tasks) = with_tasks(Options::default(), 3);
    for (header, shown) in
        [("", false), ("authorization: Bearer wrong\r\n", false), ("authorization: Bearer reader\r\n", true)]
    {
        for path in
            ["/api/tasks", &format!("/api/tasks/{}", "07".repeat(32)), &format!("/api/messages/{}", "02".repeat(32))]
        {
            let answer =
                exchange(server.addr, format!("GET {path} HTTP/1.1\r\nhost: x\r\n{header}\r\n").as_bytes()).await;
            let text = String::from_utf8(answer.body).unwrap();
            assert_eq!((answer.status, text.contains("MjEuNQ==")), (200, shown), "{path} {header}");
        }
    }
    let mut client = ReaderClient::connect(format!("http://{}", server.addr)).await.unwrap();
    for (token, data) in [("Bearer reader", Some(&b"21.5"[..])), ("Bearer wrong", None)] {
        let mut request = tonic::Request::new(TasksRequest::default());
        request.metadata_mut().insert("authorization", token.parse().unwrap());
        let mut feed = client.tasks(request).await.unwrap().into_inner();
        let task = feed.message().await.unwrap().unwrap();
        assert_eq!((task.number, task.messages[0].data.as_deref()), (3, data));
    }
}

#[tokio::test]
async fn a_grpc_feed_is_held_back_by_its_reader_and_says_what_is_forgotten() {
    let (server, tasks) = with_tasks(Options::default(), 5);
    let mut client = ReaderClient::connect(format!("http://{}", server.addr)).await.unwrap();
    let refused = client.tasks(TasksRequest { after: 1, ..TasksRequest::default() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    let refused = client.batches(BatchesRequest { from_height: 13 }).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    let mut feed = client.tasks(TasksRequest { after: 4, ..TasksRequest::default() }).await.unwrap().into_inner();
    assert_eq!(feed.message().await.unwrap().unwrap().number, 5);
    tasks.send_replace(200);
    for expected in 6..=200 {
        let task = tokio::time::timeout(SOON, feed.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(task.number, expected);
    }
}

#[tokio::test]
async fn a_reader_that_takes_nothing_loses_its_place() {
    let (server, _tasks) =
        with_tasks(Options { feeds_max: 1, idle_timeout_ms: 200, ..Options::default() }, u64::MAX / 2);
    // More is ready than the sockets hold, and it reads none of it.
    let _holds = Events::open(server.addr, "", "").await;
    let ask = async || {
        let mut next = Events::open(server.addr, "", "").await;
        let mut head = [0; 12];
        next.stream.read_exact(&mut head).await.unwrap();
        head == *b"HTTP/1.1 200"
    };
    let until = std::time::Instant::now() + SOON;
    while ask().await {
        assert!(std::time::Instant::now() < until, "the first one did not get its place");
    }
    while !ask().await {
        assert!(std::time::Instant::now() < until + SOON, "its place was not given to another");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn feeds_have_places_and_end_with_the_node() {
    let (server, tasks) = with_tasks(Options { feeds_max: 2, idle_timeout_ms: 200, ..Options::default() }, 5);
    let mut first = Events::open(server.addr, "?after=4", "").await;
    assert_eq!(first.next(1).await, numbers([5]));
    let second = Events::open(server.addr, "?after=5", "").await;
    let full = Arc::new(server.addr);
    loop {
        // The second one takes its place when its request was read.
        let mut stream = TcpStream::connect(*full).await.unwrap();
        stream.write_all(b"GET /api/feed?after=5 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let answer = read_answer(&mut stream).await;
        if answer.status == 429 {
            break;
        }
    }
    // Longer than a connection may idle.
    tokio::time::sleep(Duration::from_millis(600)).await;
    tasks.send_replace(6);
    assert_eq!(first.next(1).await, numbers([6]), "a quiet feed is not idle");
    drop(second);
    server.stop.cancel();
    assert!(closes_within(&mut first.stream, SOON).await);
    tokio::time::timeout(SOON, server.served).await.unwrap().unwrap();
}
