//! Alt-DA servers and Celestia. The servers here are ours, written after the specification of the OP Stack and the API of
//! celestia-node: they say that our requests are what those describe, not that other software takes them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use lockstep_outputs::publisher::State as PublisherState;
use lockstep_outputs::{
    AltDaMode, AltDaOptions, AltDaOutput, CelestiaOptions, CelestiaOutput, FinalTask, Output, OutputError, Owner, Stage,
};
use lockstep_types::blob::Blob;
use lockstep_types::{Height, TaskNumber, keccak256};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::blobs::{Faulty, PART, blob_tasks};
use crate::conformance::Store;
use crate::stored::{walk, wrong};
use crate::support::{FIRST, Feed, number, owner};

const NAMESPACE: &str = "00000000006c6f636b73";
const TOKEN: &str = "a-token-of-the-tests";

/// What a server has, and how it behaves.
#[derive(Default)]
struct Held {
    /// By commitment; for Celestia, by height and commitment.
    blobs: BTreeMap<Vec<u8>, Bytes>,
    /// Everything that was ever put in.
    puts: Vec<Bytes>,
    height: u64,
    is_final: bool,
    down: bool,
    slow: Option<Duration>,
    /// First task of blobs that are refused.
    refuses: Option<u64>,
    /// Whether commitments are given as text.
    as_text: bool,
    /// Gives something else back than it was given.
    forgetful: bool,
}

type Shared = Arc<Mutex<Held>>;

async fn behave(State(held): State<Shared>, request: Request, next: Next) -> Response {
    let (down, slow) = {
        let held = held.lock().unwrap();
        (held.down, held.slow)
    };
    if let Some(time) = slow {
        tokio::time::sleep(time).await;
    }
    if down { StatusCode::SERVICE_UNAVAILABLE.into_response() } else { next.run(request).await }
}

impl Held {
    fn refused(&self, blob: &Bytes) -> bool {
        let first = Blob::decode(blob.clone()).ok().and_then(|blob| blob.tasks.first().map(|task| task.number.0));
        self.refuses.is_some() && first == self.refuses
    }

    fn put(&mut self, key: Vec<u8>, blob: Bytes) {
        self.puts.push(blob.clone());
        let kept = if self.forgetful { Bytes::from_static(b"something else") } else { blob };
        self.blobs.insert(key, kept);
    }
}

fn bytes_of(key: &str) -> Option<Vec<u8>> {
    hex::decode(key.strip_prefix("0x")?).ok()
}

async fn put_keyed(State(held): State<Shared>, Path(key): Path<String>, blob: Bytes) -> StatusCode {
    let mut held = held.lock().unwrap();
    let expected = [&[0][..], &keccak256(&[&blob])].concat();
    if held.refused(&blob) || bytes_of(&key) != Some(expected.clone()) {
        return StatusCode::BAD_REQUEST;
    }
    held.put(expected, blob);
    StatusCode::OK
}

async fn put_generic(State(held): State<Shared>, headers: HeaderMap, blob: Bytes) -> Response {
    let mut held = held.lock().unwrap();
    if held.refused(&blob) || headers["content-type"] != "application/octet-stream" {
        return StatusCode::BAD_REQUEST.into_response();
    }
    held.height += 1;
    let commitment = [&[1, 0xff][..], &held.height.to_be_bytes()].concat();
    held.put(commitment.clone(), blob);
    let answer = if held.as_text { format!("0x{}", hex::encode(&commitment)).into_bytes() } else { commitment };
    Body::from(answer).into_response()
}

async fn get_keyed(State(held): State<Shared>, Path(key): Path<String>) -> Response {
    let found = bytes_of(&key).and_then(|key| held.lock().unwrap().blobs.get(&key).cloned());
    found.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |blob| Body::from(blob).into_response())
}

/// A commitment: not Celestia's own, which takes its shares, but as opaque as that is to whoever gets it.
fn commitment(height: u64, data: &[u8]) -> Vec<u8> {
    keccak256(&[&height.to_be_bytes(), data]).to_vec()
}

fn call(held: &mut Held, method: &str, params: &Value) -> Result<Value, String> {
    let namespace = STANDARD.encode([&[0; 19][..], &hex::decode(NAMESPACE).unwrap()].concat());
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| "not a text".to_owned());
    let at = |held: &Held| -> Result<(Vec<u8>, Bytes), String> {
        if params[1] != *namespace {
            return Err("another namespace".into());
        }
        let place = params.as_array().map_or(0, Vec::len) - 1;
        let key = STANDARD.decode(text(&params[place])?).map_err(|e| e.to_string())?;
        let blob = held.blobs.get(&key).cloned().ok_or("blob: not found")?;
        Ok((key, blob))
    };
    match method {
        "blob.Submit" => {
            let [blob] = params[0].as_array().map(Vec::as_slice).unwrap_or_default() else {
                return Err("one blob was expected".into());
            };
            if blob["namespace"] != *namespace || blob["share_version"] != 0 || !params[1].is_object() {
                return Err("not what blob.Submit takes".into());
            }
            let data = Bytes::from(STANDARD.decode(text(&blob["data"])?).map_err(|e| e.to_string())?);
            if held.refused(&data) {
                return Err("broadcasting tx: blob size too large".into());
            }
            held.height += 1;
            held.put(commitment(held.height, &data), data);
            Ok(held.height.into())
        }
        "blob.GetAll" => {
            let height = params[0].as_u64().ok_or("no height")?;
            if params[1] != json!([namespace]) {
                return Err("another namespace".into());
            }
            let blobs = held.blobs.iter().filter(|(key, data)| **key == commitment(height, data));
            let blob = |(key, data): (&Vec<u8>, &Bytes)| json!({"namespace": namespace, "data": STANDARD.encode(data), "share_version": 0, "commitment": STANDARD.encode(key), "index": 1});
            let found: Vec<Value> = blobs.map(blob).collect();
            Ok(if found.is_empty() { Value::Null } else { found.into() })
        }
        "blob.Get" => {
            let (key, data) = at(held)?;
            Ok(
                json!({"namespace": namespace, "data": STANDARD.encode(data), "share_version": 0, "commitment": STANDARD.encode(key), "index": 1}),
            )
        }
        "blob.GetProof" => at(held).map(|_| json!([{"start": 0, "end": 1, "nodes": ["AA=="]}])),
        "blob.Included" => at(held).map(|_| (held.is_final && params[2][0]["end"] == 1).into()),
        other => Err(format!("method '{other}' not found")),
    }
}

async fn rpc(State(held): State<Shared>, headers: HeaderMap, question: Bytes) -> Response {
    if headers.get("authorization").is_none_or(|value| value != &format!("Bearer {TOKEN}")) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let question: Value = serde_json::from_slice(&question).unwrap();
    let answer = call(&mut held.lock().unwrap(), question["method"].as_str().unwrap(), &question["params"]);
    let body = match answer {
        Ok(result) => json!({"jsonrpc": "2.0", "id": question["id"], "result": result}),
        Err(message) => json!({"jsonrpc": "2.0", "id": question["id"], "error": {"code": 1, "message": message}}),
    };
    Body::from(body.to_string()).into_response()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Keccak,
    Generic,
    Celestia,
}

const KINDS: [Kind; 3] = [Kind::Keccak, Kind::Generic, Kind::Celestia];

/// A running server.
struct Server {
    kind: Kind,
    url: String,
    held: Shared,
    work: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl Server {
    fn start(kind: Kind) -> Self {
        let held = Shared::default();
        let routes = match kind {
            Kind::Celestia => Router::new().route("/", post(rpc)),
            _ => Router::new()
                .route("/put/{key}", post(put_keyed).put(put_keyed))
                .route("/put", post(put_generic).put(put_generic))
                .route("/get/{key}", get(get_keyed)),
        };
        let limit = axum::extract::DefaultBodyLimit::max(64 << 20);
        let routes = routes.layer(limit).layer(from_fn_with_state(held.clone(), behave)).with_state(held.clone());
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let work = tokio::spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper_util::service::TowerToHyperService::new(routes.clone());
                tokio::spawn(async move {
                    let http = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                    // A client that goes away is no failure.
                    let _ = http.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
                });
            }
        });
        held.lock().unwrap().is_final = true;
        Self { kind, url, held, work }
    }

    fn blobs(&self) -> Vec<Blob> {
        self.held.lock().unwrap().puts.iter().map(|bytes| Blob::decode(bytes.clone()).unwrap()).collect()
    }
}

#[async_trait]
impl Store for Server {
    fn open(&self, owner: Owner) -> Arc<dyn Output> {
        let endpoint = self.url.parse().unwrap();
        let mode = match self.kind {
            Kind::Keccak => AltDaMode::Keccak,
            Kind::Generic => AltDaMode::Generic,
            Kind::Celestia => {
                let mut options = CelestiaOptions::new(endpoint, NAMESPACE.parse().unwrap());
                options.token = Some(TOKEN.into());
                return Arc::new(CelestiaOutput::new(options, owner).unwrap());
            }
        };
        Arc::new(AltDaOutput::new(AltDaOptions::new(endpoint, mode), owner).unwrap())
    }

    fn tasks(&self) -> fn(RangeInclusive<u64>) -> Vec<FinalTask> {
        blob_tasks
    }

    async fn rows(&self) -> Vec<String> {
        let tasks = self.blobs().into_iter().flat_map(|blob| blob.tasks);
        tasks.map(|task| format!("task {} {}", task.number, task.id)).collect()
    }

    async fn break_down_at(&self, _task: u64, _writing: BoxFuture<'static, Result<(), OutputError>>) -> OutputError {
        unimplemented!("blobs appear as a whole")
    }

    async fn read_as_w3bstream(&self, _task: &FinalTask, _project_id: i64) -> Vec<Vec<u8>> {
        unimplemented!("there is nothing to look a task up by")
    }

    async fn write_as_another(&self) {
        unimplemented!("everybody may write")
    }
}

#[async_trait]
impl Faulty for Server {
    fn set_down(&self, down: bool) {
        self.held.lock().unwrap().down = down;
    }

    fn set_slow(&self, time: Option<Duration>) {
        self.held.lock().unwrap().slow = time;
    }

    async fn set_refusing(&self, task: Option<u64>) {
        self.held.lock().unwrap().refuses = task;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_slow_or_picky_gets_everything_that_it_takes() {
    // Of the suite, what does not speak of a cursor or of looking tasks up: these stores have neither. Who publishes
    // late or twice puts identical bytes in once more, which the claims of this file are about.
    for kind in KINDS {
        println!("{kind:?}");
        crate::blob_suite!(Server::start(kind));
        crate::conformance_suite!(Server::start(kind);
            three_nodes_can_set_up_at_once,
            what_cannot_be_stored_is_refused_and_changes_nothing,
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_tasks_again_are_identical_bytes_whoever_publishes_them() {
    for kind in KINDS {
        let server = Server::start(kind);
        let tasks = blob_tasks(FIRST..=FIRST + PART + 3);
        let first = server.open(owner()).publish(&tasks, None).await.unwrap();
        let other = server.open(owner());
        let second = other.publish(&tasks, None).await.unwrap();
        {
            let held = server.held.lock().unwrap();
            assert_eq!(held.puts[..2], held.puts[2..]);
            // The key is the hash: there is nothing new at the server, and nothing else to tell.
            assert_eq!(first == second, kind == Kind::Keccak);
            assert_eq!(held.blobs.len(), if kind == Kind::Keccak { 2 } else { 4 });
            let distinct: BTreeSet<&Bytes> = held.blobs.values().collect();
            assert_eq!(distinct.len(), 2);
        }
        for task in tasks {
            assert_eq!(other.read(&task.id).await.unwrap(), Some(task));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_publishes_next_goes_on_from_what_was_recorded() {
    for kind in KINDS {
        let server = Server::start(kind);
        let feed = Feed::new();
        feed.finalize(FIRST + PART - 1);
        let node = crate::blobs::publisher(&feed, server.open(owner()));
        node.wait_for("all tasks", |s| s.state == PublisherState::CaughtUp && s.last_published.is_some()).await;
        crate::support::eventually("it is recorded", || async {
            (feed.records().last() == Some(&TaskNumber(FIRST + PART - 1))).then_some(())
        })
        .await;
        node.stop().await;
        let before = server.held.lock().unwrap().puts.len();
        feed.finalize(FIRST + 2 * PART - 1);
        // A new process, which knows nothing itself.
        let node = crate::blobs::publisher(&feed, server.open(owner()));
        node.wait_for("the rest", |s| s.last_published == number(FIRST + 2 * PART - 1)).await;
        node.stop().await;
        let rest: Vec<u64> =
            server.blobs()[before..].iter().flat_map(|blob| &blob.tasks).map(|task| task.number.0).collect();
        assert_eq!(rest, (FIRST + PART..FIRST + 2 * PART).collect::<Vec<_>>(), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_given_back_is_not_confirmed() {
    for kind in KINDS {
        let server = Server::start(kind);
        server.held.lock().unwrap().forgetful = true;
        let refused = server.open(owner()).publish(&blob_tasks(FIRST..=FIRST), None).await;
        assert!(matches!(refused, Err(OutputError::Retryable(_))), "{kind:?}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commitments_are_taken_as_bytes_and_as_text() {
    for as_text in [false, true] {
        let server = Server::start(Kind::Generic);
        server.held.lock().unwrap().as_text = as_text;
        let receipt = server.open(owner()).publish(&blob_tasks(FIRST..=FIRST), None).await.unwrap();
        let place = &receipt.places[0];
        assert_eq!(place.commitment, [&[1, 0xff][..], &1_u64.to_be_bytes()].concat());
        assert_eq!((place.locator.as_str(), place.stage), ("altda:0x01ff0000000000000001", Stage::Accepted));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_of_celestia_names_the_block_and_is_final_when_the_node_says_so() {
    let server = Server::start(Kind::Celestia);
    let output = server.open(owner());
    for (is_final, stage) in [(false, Stage::Included), (true, Stage::Final)] {
        server.held.lock().unwrap().is_final = is_final;
        let receipt = output.publish(&blob_tasks(FIRST..=FIRST), None).await.unwrap();
        let place = &receipt.places[0];
        let height = place.height.unwrap();
        assert_eq!((height, place.stage), (Height(1 + u64::from(is_final)), stage));
        assert_eq!(place.locator, format!("celestia:{height}/{NAMESPACE}"));
    }
    // Without the token nothing goes, and the operator reads why.
    let options = CelestiaOptions::new(server.url.parse().unwrap(), NAMESPACE.parse().unwrap());
    let refused = CelestiaOutput::new(options, owner()).unwrap().publish(&blob_tasks(FIRST..=FIRST), None).await;
    assert!(matches!(&refused, Err(OutputError::Retryable(reason)) if reason.contains("token")), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_receipts_tell_of_is_read_again_and_what_is_changed_is_named() {
    for kind in KINDS {
        let server = Server::start(kind);
        let (last, second) = (FIRST + 4 * PART - 1, FIRST + PART);
        let tasks = blob_tasks(FIRST..=last);
        let receipt = server.open(owner()).publish(&tasks, None).await.unwrap();
        // Once more, as after a change of the leader.
        let again = server.open(owner()).publish(&tasks[..PART as usize], None).await.unwrap();
        let places: Vec<_> = again.places.iter().chain(&receipt.places).cloned().collect();
        let output = server.open(owner());
        for (first, max) in [(0, 7), (FIRST + 5, 1_000), (last + 1, 7)] {
            let found = walk(&output, first, max, &places).await;
            let wanted: Vec<_> = tasks.iter().filter(|task| task.number.0 >= first).cloned().collect();
            assert!(found.tasks == wanted && found.damaged.is_empty(), "{kind:?} from {first}: {:?}", found.damaged);
        }
        assert_eq!(walk(&output, 0, 7, &[]).await, Default::default());
        let key = |part: usize| receipt.places[part].commitment.clone();
        {
            let mut held = server.held.lock().unwrap();
            held.blobs.remove(&key(1));
            held.blobs.insert(key(2), Bytes::from_static(b"something else"));
        }
        let found = walk(&output, 0, 1_000, &places).await;
        assert_eq!(wrong(&found, &tasks), (second..second + 2 * PART).collect(), "{kind:?}: {:?}", found.damaged);
        server.held.lock().unwrap().down = true;
        let down = output.stored(TaskNumber(FIRST), 7, &places).await;
        assert!(matches!(down, Err(OutputError::Retryable(_))), "{kind:?}: {down:?}");
    }
}
