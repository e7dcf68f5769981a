//! A node as devices see it: it orders what it is sent, keeps to no retry window at all, and fails as told. Without a
//! window every message that is sent twice is two messages, which is what the tests look for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lockstep_client::{ClientOptions, Device, DeviceOptions};
use lockstep_identity::{
    Curve, DeviceIdentity, Did, Document, PartySecret, ServerIdentity, SproutRequest, TaskRequest, apinode, sprout,
};
use lockstep_types::{ContentId, ProjectId, SigningKey};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const PROJECT: ProjectId = ProjectId(7);

/// What the node does with messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Good,
    /// Orders, and closes the connection without an answer.
    Silent,
    /// Closes the connection without ordering.
    Lost,
    /// 429 with `Retry-After: 1`.
    Busy,
    Stopping,
    Unknown,
    Forbidden,
    /// In a bulk, takes every second message.
    Half,
}

pub struct State {
    pub mode: Mode,
    /// Goes back to good after so many requests for messages.
    pub failures_left: usize,
    pub ready: bool,
    pub bulk: bool,
    /// Every ordering, in order.
    pub ordered: Vec<(ContentId, String)>,
    /// Path and body of every request.
    pub requests: Vec<(String, Vec<u8>)>,
    pub server: Arc<ServerIdentity>,
    pub device: Option<Document>,
    pub permitted: bool,
    pub authorizations: Vec<String>,
}

#[derive(Clone)]
pub struct Node {
    pub addr: SocketAddr,
    pub state: Arc<Mutex<State>>,
}

pub fn server_identity() -> Arc<ServerIdentity> {
    Arc::new(ServerIdentity::new(PartySecret::generate(Curve::Secp256k1, &mut rand::rng())))
}

impl Node {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve(listener)
    }

    pub fn serve(listener: TcpListener) -> Self {
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            mode: Mode::Good,
            failures_left: usize::MAX,
            ready: true,
            bulk: false,
            ordered: Vec::new(),
            requests: Vec::new(),
            server: server_identity(),
            device: None,
            permitted: true,
            authorizations: Vec::new(),
        }));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, Arc::clone(&shared)));
            }
        });
        Self { addr, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn fails(&self, mode: Mode, times: usize) {
        let mut state = self.state.lock();
        (state.mode, state.failures_left) = (mode, times);
    }

    /// The data of what it ordered.
    pub fn data(&self) -> Vec<String> {
        self.state.lock().ordered.iter().map(|(_, data)| data.clone()).collect()
    }

    pub fn count(&self, path: &str) -> usize {
        self.state.lock().requests.iter().filter(|(p, _)| p.starts_with(path)).count()
    }
}

/// An address where nobody listens.
pub async fn nowhere() -> String {
    format!("http://{}", TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap())
}

pub fn key() -> SigningKey {
    SigningKey::from_bytes([5; 32]).unwrap()
}

pub fn ioid() -> DeviceIdentity {
    DeviceIdentity::new(PartySecret::generate(Curve::P256, &mut rand::rng()))
}

/// Short times: what is unknown is settled after 60 ms. The window is `pool` and `safe` together.
pub fn options(safe: Duration) -> DeviceOptions {
    let pool_time = Duration::from_millis(50);
    let client = ClientOptions {
        backoff_first: Duration::from_millis(5),
        backoff_max: Duration::from_millis(40),
        ..ClientOptions::default()
    };
    DeviceOptions { give_up_after: Duration::from_secs(10), retry_window: pool_time + safe, pool_time, client }
}

pub fn signing(urls: &[String], options: DeviceOptions) -> Device {
    Device::builder(urls.iter().cloned()).options(options).signing(key()).unwrap()
}

struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Option<Answer> {
    Some(Answer { status, headers: String::new(), body: body.into() })
}

fn problem(status: u16, code: &str) -> Option<Answer> {
    answer(status, json!({"error": "a sentence", "code": code}).to_string())
}

async fn connection(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut read = Vec::new();
    loop {
        let (head, start, length) = loop {
            if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&read[..at]).into_owned();
                let length = header(&head, "content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
                if read.len() >= at + 4 + length {
                    break (head, at + 4, length);
                }
            }
            match stream.read_buf(&mut read).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        };
        let body: Vec<u8> = read[start..start + length].to_vec();
        read.drain(..start + length);
        let answered = respond(&mut state.lock(), &head, &body);
        let Some(Answer { status, headers, body }) = answered else { return };
        let head = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n", body.len());
        if stream.write_all(&[head.as_bytes(), &body].concat()).await.is_err() {
            return;
        }
    }
}

fn header(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (n, value) = line.split_once(':')?;
        n.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

fn respond(state: &mut State, head: &str, body: &[u8]) -> Option<Answer> {
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    state.requests.push((path.to_owned(), body.to_vec()));
    match (method, path) {
        ("GET", "/didDoc") => answer(200, state.server.document()),
        ("POST", "/issue_vc") => {
            let did: Did = sprout::parse_token_request(body).unwrap();
            match &state.device {
                Some(device) if device.did == did => {
                    let token = state.server.issue_token(&did, 1_700_000_000);
                    answer(200, state.server.encrypt_answer(device, &token, &mut rand::rng()).unwrap())
                }
                _ => answer(403, "unknown device"),
            }
        }
        ("GET", path) if path.starts_with("/api/messages/") => {
            let (path, is_confirmed) = match path.strip_suffix("?confirmed=1") {
                Some(path) => (path, true),
                None => (path, false),
            };
            let found = state.ordered.iter().position(|(id, _)| path.ends_with(&id.to_string()));
            match found {
                _ if is_confirmed && !state.ready => problem(503, "unavailable"),
                Some(at) => answer(200, json!({"sequence": at + 1, "height": 1, "task_id": null}).to_string()),
                None => problem(404, "not_found"),
            }
        }
        ("GET", path) if path.starts_with("/message/") => {
            let id = path.trim_start_matches("/message/");
            let states = json!({"messageID": id, "states": [{"state": "received", "time": "2025-01-01T00:00:00Z"}]});
            encrypted(state, &states.to_string())
        }
        ("POST", "/message" | "/v1/task" | "/messages") => message(state, head, path, body),
        _ => problem(404, "unknown_path"),
    }
}

fn encrypted(state: &State, text: &str) -> Option<Answer> {
    let device = state.device.as_ref().unwrap();
    answer(200, state.server.encrypt_answer(device, text, &mut rand::rng()).unwrap())
}

fn message(state: &mut State, head: &str, path: &str, body: &[u8]) -> Option<Answer> {
    if path == "/messages" && !state.bulk {
        return problem(404, "unknown_path");
    }
    let mode = state.mode;
    if mode != Mode::Good {
        match state.failures_left.checked_sub(1) {
            Some(left) => state.failures_left = left,
            None => state.mode = Mode::Good,
        }
    }
    match state.mode {
        Mode::Good | Mode::Half => {}
        Mode::Silent => {
            take(state, head, path, body);
            return None;
        }
        Mode::Lost => return None,
        Mode::Busy => {
            let mut busy = problem(429, "busy")?;
            busy.headers = "retry-after: 1\r\n".to_owned();
            return Some(busy);
        }
        Mode::Stopping => return problem(503, "stopping"),
        Mode::Unknown => return problem(503, "outcome_unknown"),
        Mode::Forbidden => return problem(403, "forbidden"),
    }
    take(state, head, path, body)
}

fn take(state: &mut State, head: &str, path: &str, body: &[u8]) -> Option<Answer> {
    if path == "/messages" {
        let messages: Vec<Value> = serde_json::from_slice(body).unwrap();
        let half = state.mode == Mode::Half;
        let mut answers = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            answers.push(match index % 2 == 1 && half {
                true => json!({"error": "full", "code": "busy", "status": 429, "retryAfterMs": 5}),
                false => serde_json::from_slice(&signed(state, message.to_string().as_bytes()).body).unwrap(),
            });
        }
        return answer(200, Value::Array(answers).to_string());
    }
    if path == "/v1/task" {
        let request = TaskRequest::parse(body).unwrap();
        let by = request.candidates(&[]).unwrap().into_iter().find(|c| c.device == key().address()).unwrap();
        let message = request.into_message(by, &[]).unwrap();
        order(state, message.content_id(), &message.message().data);
        return answer(200, json!({"taskID": message.message().task_alias().unwrap()}).to_string());
    }
    match header(head, "authorization") {
        None => Some(signed(state, body)),
        Some(authorization) => with_token(state, &authorization, body),
    }
}

fn with_token(state: &mut State, authorization: &str, body: &[u8]) -> Option<Answer> {
    state.authorizations.push(authorization.to_owned());
    let token = sprout::token_of(Some(authorization), None).unwrap();
    let Ok(token) = state.server.verify_token(token) else { return answer(401, "bad token") };
    if !state.permitted {
        return answer(401, "not permitted");
    }
    let Ok(opened) = state.server.decrypt_request(body) else { return answer(400, "undecryptable") };
    let request = SproutRequest::parse(&opened.plaintext).unwrap();
    let message = request.vouch(token.subject.address(), [0; 32], &key());
    order(state, message.content_id(), &message.message().data);
    encrypted(state, &sprout::message_answer(&message.content_id().to_string()))
}

fn signed(state: &mut State, body: &[u8]) -> Answer {
    let message = apinode::parse(body).unwrap().authenticate().unwrap();
    let content_id = message.content_id();
    if &message.message().data[..] == b"bad" {
        let body = json!({"error": "a sentence", "code": "bad", "status": 400}).to_string().into_bytes();
        return Answer { status: 400, headers: String::new(), body };
    }
    let sequence = order(state, content_id, &message.message().data);
    let body = json!({
        "messageID": content_id, "taskID": "", "sequence": sequence, "height": 1, "duplicate": false
    });
    Answer { status: 200, headers: String::new(), body: body.to_string().into_bytes() }
}

fn order(state: &mut State, id: ContentId, data: &[u8]) -> usize {
    state.ordered.push((id, String::from_utf8_lossy(data).into_owned()));
    state.ordered.len()
}

/// How often each data was ordered.
pub fn copies(data: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    data.iter().for_each(|d| *counts.entry(&d[..]).or_default() += 1);
    counts
}
