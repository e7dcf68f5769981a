//! `POST /message` and `GET /task` over real sockets, with the published vectors.

use crate::common::*;
use base64::Engine as _;
use lockstep_api::Options;
use serde_json::Value;

fn cases(file: &str) -> Vec<Value> {
    let path = format!("{}/../identity/tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let mut whole: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let Value::Array(cases) = whole["cases"].take() else { panic!("no cases") };
    cases
}

fn body(case: &Value) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(case["body_base64"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn every_vector_gets_the_status_of_the_reference() {
    let server = start(Options::default());
    for case in cases("requests_accept.json") {
        let expected = if case["class"] == "unit" { 400 } else { 200 };
        let answer = exchange(server.addr, &post(&body(&case), "content-type: application/json\r\n")).await;
        assert_eq!(answer.status, expected, "{}: {}", case["name"], String::from_utf8_lossy(&answer.body));
    }
    for case in cases("requests_reject.json") {
        let answer = exchange(server.addr, &post(&body(&case), "")).await;
        assert_eq!(Some(u64::from(answer.status)), case["http_status"].as_u64(), "{}", case["name"]);
        let body = answer.json();
        assert!(body["error"].is_string() && body["code"].is_string(), "{body}");
    }
}

#[tokio::test]
async fn an_answer_has_a_length_and_is_neither_chunked_nor_compressed() {
    let server = start(Options::default());
    let headers = "accept-encoding: gzip, deflate, br\r\nte: trailers\r\n";
    let first = exchange(server.addr, &post(signed("a").as_bytes(), headers)).await;
    assert_eq!(first.status, 200);
    assert_eq!(first.header("content-length"), Some(&*first.body.len().to_string()));
    assert_eq!((first.header("transfer-encoding"), first.header("content-encoding")), (None, None));
    let json = first.json();
    assert_eq!((&json["taskID"], &json["sequence"], &json["height"]), (&"".into(), &1.into(), &1.into()));
    assert_eq!(json["duplicate"], false);
    assert!(json["messageID"].as_str().unwrap().parse::<lockstep_types::MessageId>().is_ok());
    let second = exchange(server.addr, &post(signed("b").as_bytes(), "")).await.json();
    assert_eq!(second["taskID"], lockstep_types::TaskId([7; 32]).to_string());
}

#[tokio::test]
async fn the_content_type_does_not_matter_and_a_chunked_body_is_taken() {
    let server = start(Options::default());
    for header in ["", "content-type: text/plain\r\n", "content-type: nonsense/;;\r\n"] {
        assert_eq!(exchange(server.addr, &post(signed("a").as_bytes(), header)).await.status, 200, "{header}");
    }
    let mut request = b"POST /message HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for part in signed("chunked").as_bytes().chunks(50) {
        request.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        request.extend_from_slice(part);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(exchange(server.addr, &request).await.status, 200);
}

#[tokio::test]
async fn each_refusal_has_its_status_and_says_when_to_come_back() {
    let server = start(Options::default());
    let send = async |data: &str| exchange(server.addr, &post(signed(data).as_bytes(), "")).await;
    let busy = send("busy").await;
    busy.assert_problem(429, "busy");
    assert_eq!(busy.header("retry-after"), Some("2"));
    let unavailable = send("unavailable").await;
    unavailable.assert_problem(503, "outcome_unknown");
    assert_eq!(unavailable.header("retry-after"), Some("1"));
    assert!(unavailable.json()["content_id"].as_str().unwrap().parse::<lockstep_types::ContentId>().is_ok());
    let stopping = send("stopping").await;
    stopping.assert_problem(503, "stopping");
    assert_eq!(stopping.header("retry-after"), Some("1"));
    send("forbidden").await.assert_problem(403, "forbidden");
    send("large").await.assert_problem(413, "too_large");
    send(&"x".repeat((64 << 10) + 1)).await.assert_problem(413, "too_large");
    assert_eq!(send(&"\u{1}".repeat(64 << 10)).await.status, 200);
}

#[tokio::test]
async fn hostile_json_is_answered() {
    let server = start(Options::default());
    let deep = format!("{{\"a\":{}", "[".repeat(400_000));
    exchange(server.addr, &post(deep.as_bytes(), "")).await.assert_problem(400, "nested_too_deep");
    exchange(server.addr, &post(b"", "")).await.assert_problem(400, "malformed_json");
    exchange(server.addr, &post(b"\xff\xfe", "")).await.assert_problem(400, "malformed_json");
}

#[tokio::test]
async fn a_task_is_found_by_json_body_and_by_parameters() {
    let server = start(Options::default());
    let id = lockstep_types::TaskId([7; 32]).to_string().replace("0x", "0X");
    let with_body = async |body: String| {
        let head = format!("GET /task HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        exchange(server.addr, (head + &body).as_bytes()).await
    };
    let known = with_body(format!("{{\"projectID\":7,\"taskID\":\"{id}\"}}")).await;
    let expected = serde_json::json!({
        "projectID": 7, "taskID": id, "states": [{ "state": "packed", "time": "2024-02-29T12:34:56.789Z" }],
    });
    assert_eq!((known.status, known.json()), (200, expected.clone()));
    let by_query = get(server.addr, &format!("/task?projectID=7&taskID={id}")).await;
    assert_eq!((by_query.status, by_query.json()), (200, expected));
    for (project, task) in [(8, id.clone()), (7, lockstep_types::TaskId([8; 32]).to_string())] {
        let unknown = with_body(format!("{{\"projectID\":{project},\"taskID\":\"{task}\"}}")).await;
        assert_eq!((unknown.status, &unknown.json()["states"]), (200, &serde_json::json!([])));
    }
    get(server.addr, "/task?projectID=7").await.assert_problem(400, "missing_field");
    get(server.addr, "/task").await.assert_problem(400, "missing_field");
    with_body("{\"projectID\":7,\"taskID\":\"0x12\"}".into()).await.assert_problem(400, "wrong_type");
}
