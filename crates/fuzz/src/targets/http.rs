//! Whole requests to the doors for HTTP and gRPC, over ports that make answers up.

// Its own tests use all of it, and are tests.
#[path = "../../../api/tests/api/common.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod common;

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Request};
use http_body_util::BodyExt as _;
use lockstep_api::{Options, Ports};
use lockstep_identity::sign_body;
use lockstep_types::{OrderKind, proto};
use prost::Message as _;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt as _;

use crate::target::Target;
use crate::world::{OPEN, key, order};

pub(super) const TARGETS: &[Target] = &[Target::new("http", seeds, read).with_factor(512)];

/// In simulated time.
const ANSWER_MAX: Duration = Duration::from_secs(300);
/// A feed goes on for ever.
const ANSWER_BYTES_MAX: usize = 1 << 20;

struct Door {
    runtime: Runtime,
    router: Router,
}

thread_local! {
    static DOOR: OnceCell<Door> = const { OnceCell::new() };
}

fn door() -> Door {
    let fake = Arc::new(common::Fake { allow_unsigned: true, ..common::Fake::default() });
    fake.final_tasks.send_replace(9);
    let ports = Ports {
        submit: fake.clone(),
        read: fake.clone(),
        sealed: fake.clone(),
        registry: fake.clone(),
        feed: fake,
        prover: None,
    };
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime is made");
    Door { runtime, router: lockstep_api::fuzz::router(Options::default(), ports) }
}

/// A head as HTTP/1.1 has it, an empty line, a body.
fn request(bytes: &[u8]) -> Option<Request<Body>> {
    let end = bytes.windows(2).position(|two| two == b"\n\n").unwrap_or(bytes.len());
    let body = bytes.get(end + 2..).unwrap_or_default().to_vec();
    let mut lines = bytes[..end].split(|byte| *byte == b'\n');
    let first = std::str::from_utf8(lines.next()?).ok()?;
    let (method, target) = first.split_once(' ')?;
    let mut request = Request::builder().method(method).uri(target).body(Body::from(body)).ok()?;
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        request.headers_mut().append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
    }
    Some(request)
}

/// True where the answer is not a refusal.
fn read(bytes: &[u8]) -> bool {
    let Some(request) = request(bytes) else { return false };
    DOOR.with(|door_of_thread| {
        let Door { runtime, router } = door_of_thread.get_or_init(door);
        runtime.block_on(async {
            let answer = tokio::time::timeout(ANSWER_MAX, router.clone().oneshot(request)).await;
            // Fake nodes let some messages wait for ever.
            let Ok(Ok(answer)) = answer else { return false };
            let (head, mut body) = answer.into_parts();
            assert_ne!(head.status.as_u16(), 500, "nothing that a client says is the node's fault");
            let is_refusal = head.status.is_client_error() || head.status.is_server_error();
            let mut bytes = Vec::new();
            while bytes.len() < ANSWER_BYTES_MAX {
                match tokio::time::timeout(Duration::from_secs(20), body.frame()).await {
                    Ok(Some(Ok(frame))) => bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
                    Ok(_) => break,
                    Err(_) => break,
                }
                if head.headers.get("content-type").is_some_and(|kind| kind == "text/event-stream") {
                    break;
                }
            }
            if is_refusal {
                let refusal = serde_json::from_slice::<serde_json::Value>(&bytes);
                assert!(refusal.is_ok_and(|refusal| refusal["error"].is_string()), "a refusal says why, as JSON");
            }
            !is_refusal
        })
    })
}

fn seeds() -> Vec<Vec<u8>> {
    let hex = |byte: &str| byte.repeat(32);
    let gets = [
        "/".to_owned(),
        "/api/status".into(),
        "/api/members".into(),
        "/api/batches?from=1&limit=3".into(),
        "/api/batches/7?min_sequence=9".into(),
        format!("/api/messages/0x{}", hex("02")),
        format!("/api/tasks/0x{}", hex("07")),
        "/api/tasks?project=7&after=3&limit=5".into(),
        "/api/feed?from_height=3".into(),
        format!("/api/proofs/0x{}", hex("03")),
        "/api/boundaries?from=1".into(),
        "/api/export?from=20".into(),
        "/api/projects".into(),
        "/api/projects/7".into(),
        format!("/api/projects/7/devices?from=0x{}&limit=3", "01".repeat(20)),
        "/api/openapi.json".into(),
        "/metrics".into(),
        "/readyz".into(),
        "/didDoc".into(),
        format!("/message/0x{}", hex("02")),
        format!("/v1/task/0x{}", hex("07")),
    ];
    let mut seeds: Vec<Vec<u8>> = gets.iter().map(|path| format!("GET {path}\n\n").into_bytes()).collect();
    let body = sign_body(&key(100), OPEN, "0.1", "21.5");
    let task = format!("GET /task\n\n{{\"projectID\":7,\"taskID\":\"0x{}\"}}", hex("07"));
    seeds.push(task.into_bytes());
    seeds.push(format!("POST /message\nidempotency-key: a\n\n{body}").into_bytes());
    seeds.push(format!("POST /messages\nx-forwarded-for: 10.0.0.1\n\n[{body},{body}]").into_bytes());
    seeds.push(b"POST /message\nauthorization: Bearer good\n\nan envelope".to_vec());
    seeds.push(b"GET /api/feed\nlast-event-id: 3\nauthorization: Bearer reader\n\n".to_vec());
    seeds.push(format!("POST /issue_vc\n\n{{\"clientID\":\"did:io:0x{}\"}}", "01".repeat(20)).into_bytes());
    let order = order(1, OrderKind::Owner(key(51).address())).to_proto().encode_to_vec();
    seeds.push([b"POST /api/orders\n\n".to_vec(), order].concat());
    let submit =
        proto::SubmitRequest { project_id: 7, project_version: "0.1".into(), data: "x".into(), ..Default::default() };
    let tasks = proto::TasksRequest { project_id: 7, after: 1, from_height: 0 };
    for (call, message) in [("Sequencer/Submit", submit.encode_to_vec()), ("Reader/Tasks", tasks.encode_to_vec())] {
        let head = format!("POST /lockstep.v1.{call}\ncontent-type: application/grpc\nte: trailers\n\n");
        let frame = [&[0][..], &u32::try_from(message.len()).unwrap_or_default().to_be_bytes(), &message].concat();
        seeds.push([head.into_bytes(), frame].concat());
    }
    seeds
}
