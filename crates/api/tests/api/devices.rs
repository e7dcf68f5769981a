//! The doors of the sprout generation and of the API of 2025: who is asked what, and with which status it is answered.

use crate::common::{Answer, exchange, start};
use lockstep_api::Options;

async fn ask(running: &crate::common::Running, text: &str) -> Answer {
    exchange(running.addr, text.as_bytes()).await
}

fn with(method: &str, path: &str, headers: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn a_token_makes_the_body_an_envelope_wherever_it_is_shown() {
    let running = start(Options::default());
    for (path, headers) in [
        ("/message", "Authorization: Bearer good\r\n"),
        ("/message", "Authorization: good\r\nContent-Type: nonsense\r\n"),
        ("/message?authorization=good", ""),
        ("/message?authorization=Bearer%20good", ""),
    ] {
        let answer = ask(&running, &with("POST", path, headers, "envelope")).await;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"sealed answer to envelope"[..]), "{path} {headers}");
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        assert_eq!(answer.header("content-length"), Some("25"));
        assert_eq!(answer.header("transfer-encoding"), None);
    }
    for (token, body, status) in [
        ("bad", "x", 401),
        ("good", "altered", 400),
        ("good", "not permitted", 401),
        ("good", "refused by the log", 401),
    ] {
        let headers = format!("Authorization: Bearer {token}\r\n");
        assert_eq!(ask(&running, &with("POST", "/message", &headers, body)).await.status, status, "{body}");
    }
}

#[tokio::test]
async fn states_are_sealed_for_a_token_and_plain_without() {
    let running = start(Options::default());
    let sealed = ask(&running, &with("GET", "/message/0x12", "Authorization: Bearer good\r\n", "")).await;
    assert_eq!((sealed.status, &sealed.body[..]), (200, &b"states of 0x12"[..]));
    let plain = ask(&running, &with("GET", "/message/nothing", "", "")).await;
    assert_eq!((plain.status, plain.json()), (200, serde_json::json!({"messageID": "nothing", "states": []})));
    assert_eq!(ask(&running, &with("GET", "/message/0x12", "Authorization: Bearer no\r\n", "")).await.status, 401);
}

#[tokio::test]
async fn tokens_are_for_known_devices() {
    let running = start(Options::default());
    assert_eq!(ask(&running, &with("GET", "/didDoc", "", "")).await.body, b"{}");
    let known = format!("{{\"clientID\":\"did:io:0x01{}\"}}", "00".repeat(19));
    let answer = ask(&running, &with("POST", "/issue_vc", "", &known)).await;
    assert_eq!((answer.status, &answer.body[..]), (200, &b"sealed token"[..]));
    assert_eq!(ask(&running, &with("POST", "/issue_vc", "", &known.replace("0x01", "0x02"))).await.status, 403);
    assert_eq!(ask(&running, &with("POST", "/issue_vc", "", "{}")).await.status, 400);
}

#[tokio::test]
async fn a_task_of_2025_is_known_by_its_own_name() {
    let running = start(Options::default());
    let body = |nonce: u64| {
        let signature = "11".repeat(64);
        format!("{{\"nonce\":{nonce},\"projectID\":\"7\",\"payload\":\"ab\",\"signature\":\"0x{signature}\"}}")
    };
    let answer = ask(&running, &with("POST", "/v1/task", "", &body(1))).await;
    assert_eq!((answer.status, answer.json()["taskID"].as_str().unwrap().len()), (200, 66));
    assert_eq!(ask(&running, &with("POST", "/v1/task", "", &body(2))).await.status, 409);
    assert_eq!(ask(&running, &with("POST", "/v1/task", "", "{}")).await.status, 400);
    let path = format!("/v1/task/{}", answer.json()["taskID"].as_str().unwrap());
    let states = ask(&running, &with("GET", &path, "", "")).await;
    assert_eq!((states.status, &states.json()["states"][0]["state"]), (200, &"packed".into()));
    assert_eq!(ask(&running, &with("GET", "/v1/task/0x12", "", "")).await.status, 400);
}

#[tokio::test]
async fn orders_say_why_they_are_refused() {
    let running = start(Options::default());
    for (body, status) in [("good", 200), ("stale", 409), ("nonsense", 400)] {
        assert_eq!(ask(&running, &with("POST", "/api/orders", "", body)).await.status, status, "{body}");
    }
    assert_eq!(ask(&running, &with("GET", "/api/projects/7", "", "")).await.json()["orders"], 0);
    assert_eq!(ask(&running, &with("GET", "/api/projects/8", "", "")).await.status, 404);
    assert_eq!(ask(&running, &with("GET", "/api/projects/7/devices", "", "")).await.status, 200);
}
