//! Alt-DA servers and Celestia. The servers here are ours, written after the specification of the OP Stack and the API of
//! celestia-node: they say that our requests are what those describe, not that other software takes them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lockstep_types::blob::Blob;
use lockstep_types::keccak256;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The namespace that [`Kind::Celestia`] takes, as 20 hex digits.
pub const NAMESPACE: &str = "00000000006c6f636b73";
/// The token that [`Kind::Celestia`] wants.
pub const TOKEN: &str = "a-token-of-the-tests";

/// What a server has, and how it behaves.
#[derive(Debug, Default)]
pub struct Held {
    /// By commitment; for Celestia, by height and commitment.
    pub blobs: BTreeMap<Vec<u8>, Bytes>,
    /// Everything that was ever put in.
    pub puts: Vec<Bytes>,
    /// Commitments by height.
    pub blocks: BTreeMap<u64, Vec<Vec<u8>>>,
    /// Height of its chain.
    pub height: u64,
    /// Whether what is in it is final.
    pub is_final: bool,
    /// Every request is answered 503.
    pub down: bool,
    /// Every request waits so long first.
    pub slow: Option<Duration>,
    /// First task of blobs that are refused.
    pub refuses: Option<u64>,
    /// Whether commitments are given as text.
    pub as_text: bool,
    /// Gives something else back than it was given.
    pub forgetful: bool,
}

/// Shared by a server and the test.
pub type Shared = Arc<Mutex<Held>>;

async fn behave(State(held): State<Shared>, request: Request, next: Next) -> Response {
    let (down, slow) = {
        let held = held.lock();
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
    let mut held = held.lock();
    let expected = [&[0][..], &keccak256(&[&blob])].concat();
    if held.refused(&blob) || bytes_of(&key) != Some(expected.clone()) {
        return StatusCode::BAD_REQUEST;
    }
    held.put(expected, blob);
    StatusCode::OK
}

async fn put_generic(State(held): State<Shared>, headers: HeaderMap, blob: Bytes) -> Response {
    let mut held = held.lock();
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
    let found = bytes_of(&key).and_then(|key| held.lock().blobs.get(&key).cloned());
    found.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |blob| Body::from(blob).into_response())
}

/// A commitment: not Celestia's own, which takes its shares, but as opaque as that is to whoever gets it.
fn commitment(height: u64, data: &[u8]) -> Vec<u8> {
    keccak256(&[&height.to_be_bytes(), data]).to_vec()
}

fn call(held: &mut Held, method: &str, params: &Value) -> Result<Value, String> {
    let namespace = STANDARD.encode([&[0; 19][..], &hex::decode(NAMESPACE).expect("hex")].concat());
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
            let blobs = params[0].as_array().map(Vec::as_slice).unwrap_or_default();
            if blobs.is_empty() || !params[1].is_object() {
                return Err("not what blob.Submit takes".into());
            }
            let mut submitted = Vec::new();
            for blob in blobs {
                if blob["namespace"] != *namespace || blob["share_version"] != 0 {
                    return Err("not what blob.Submit takes".into());
                }
                let data = Bytes::from(STANDARD.decode(text(&blob["data"])?).map_err(|e| e.to_string())?);
                if held.refused(&data) {
                    return Err("broadcasting tx: blob size too large".into());
                }
                submitted.push(data);
            }
            held.height += 1;
            let keys: Vec<_> = submitted.iter().map(|data| commitment(held.height, data)).collect();
            keys.iter().zip(submitted).for_each(|(key, data)| held.put(key.clone(), data));
            held.blocks.insert(held.height, keys);
            Ok(held.height.into())
        }
        "blob.GetAll" => {
            let height = params[0].as_u64().ok_or("no height")?;
            if params[1] != json!([namespace]) {
                return Err("another namespace".into());
            }
            let keys = held.blocks.get(&height).into_iter().flatten();
            let blobs = keys.filter_map(|key| Some((key, held.blobs.get(key)?)));
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
    let question: Value = serde_json::from_slice(&question).expect("JSON");
    let answer = call(&mut held.lock(), question["method"].as_str().expect("a method"), &question["params"]);
    let body = match answer {
        Ok(result) => json!({"jsonrpc": "2.0", "id": question["id"], "result": result}),
        Err(message) => json!({"jsonrpc": "2.0", "id": question["id"], "error": {"code": 1, "message": message}}),
    };
    Body::from(body.to_string()).into_response()
}

/// What a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Alt-DA, where the key is the hash.
    Keccak,
    /// Alt-DA, where the server makes the commitment.
    Generic,
    /// Celestia.
    Celestia,
}

/// All of them.
pub const KINDS: [Kind; 3] = [Kind::Keccak, Kind::Generic, Kind::Celestia];

/// A running server; it ends with the value.
#[derive(Debug)]
pub struct Server {
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub url: String,
    /// What it has.
    pub held: Shared,
    work: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl Server {
    /// Starts one, on the runtime of the caller.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn start(kind: Kind) -> Self {
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
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let work = tokio::spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listening socket");
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper_util::service::TowerToHyperService::new(routes.clone());
                tokio::spawn(async move {
                    let http = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                    // A client that goes away is no failure.
                    let _ = http.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
                });
            }
        });
        held.lock().is_final = true;
        Self { kind, url, held, work }
    }

    /// Everything that was ever put in, in order.
    ///
    /// # Panics
    /// When something that is no blob was put in.
    pub fn blobs(&self) -> Vec<Blob> {
        self.held.lock().puts.iter().map(|bytes| Blob::decode(bytes.clone()).expect("a blob")).collect()
    }
}
