//! `POST /messages`, and idempotency keys.

use crate::common::*;
use lockstep_api::Options;
use serde_json::Value;

async fn send(server: &Running, body: &str) -> Answer {
    exchange(server.addr, &post_to("/messages", body.as_bytes(), "")).await
}

fn array(messages: &[String]) -> String {
    format!("[{}]", messages.join(","))
}

#[tokio::test]
async fn each_message_of_a_bulk_has_its_answer_in_its_place() {
    let server = start(Options::default());
    let unsigned = unsigned("a");
    let messages = [signed("a"), "{}".into(), signed("busy"), unsigned, "7".into(), signed("unavailable"), signed("b")];
    for body in [array(&messages), messages.join("\n")] {
        let answer = send(&server, &body).await;
        assert_eq!(answer.status, 200);
        let entries = answer.json();
        assert_eq!(entries.as_array().unwrap().len(), messages.len());
        for (index, (status, code)) in [
            (1, (400, "missing_field")),
            (2, (429, "busy")),
            (3, (400, "forbidden")),
            (4, (400, "malformed_json")),
            (5, (503, "outcome_unknown")),
        ] {
            let entry = &entries[index];
            assert_eq!((&entry["status"], &entry["code"]), (&status.into(), &code.into()), "{entry}");
            assert!(entry["error"].is_string() && entry.get("messageID").is_none(), "{entry}");
        }
        assert_eq!(entries[2]["retryAfterMs"], 1500);
        assert_eq!(entries[1].get("retryAfterMs"), None);
        assert!(entries[5]["content_id"].is_string());
        for index in [0, 6] {
            let entry = &entries[index];
            assert!(entry["messageID"].is_string() && entry["taskID"].is_string(), "{entry}");
            assert!(entry["height"].is_u64() && entry["duplicate"] == false && entry.get("error").is_none());
        }
        assert!(entries[0]["sequence"].as_u64() < entries[6]["sequence"].as_u64());
    }
}

#[tokio::test]
async fn an_entry_is_what_the_message_alone_would_be_answered() {
    let server = start(Options::default());
    let alone = exchange(server.addr, &post(signed("x").as_bytes(), "")).await.json();
    let entry = send(&server, &array(&[signed("x")])).await.json()[0].clone();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&alone), keys(&entry));
    assert_eq!(alone["messageID"], entry["messageID"]);
}

#[tokio::test]
async fn an_unreadable_bulk_is_refused_whole() {
    let server = start(Options { bulk_messages_max: 3, bulk_bytes_max: 2_000, ..Options::default() });
    let one = signed("a");
    send(&server, &format!("[{one},")).await.assert_problem(400, "malformed_json");
    send(&server, "").await.assert_problem(400, "malformed_json");
    send(&server, &array(&vec![one.clone(); 4])).await.assert_problem(413, "too_many_messages");
    send(&server, &vec![one.clone(); 4].join("\n")).await.assert_problem(413, "too_many_messages");
    send(&server, &array(&[signed(&"x".repeat(2_000))])).await.assert_problem(413, "too_large");
    let empty = send(&server, "[]").await;
    assert_eq!((empty.status, empty.json()), (200, Value::Array(vec![])));
    // Nothing of what was refused was submitted.
    assert_eq!(send(&server, &array(&[one])).await.json()[0]["sequence"], 1);
    get(server.addr, "/messages").await.assert_problem(405, "wrong_method");
}

#[tokio::test]
async fn a_thousand_messages_go_together_and_take_a_place_each() {
    let server = start(Options { submits_max: 1_000, ..Options::default() });
    let messages: Vec<String> = (0..1_000).map(|n| signed(&format!("n{n}"))).collect();
    let entries = send(&server, &array(&messages)).await.json();
    let sequences: Vec<u64> = entries.as_array().unwrap().iter().map(|e| e["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences, (1..=1_000).collect::<Vec<_>>(), "in their order");

    let mut held = tokio::net::TcpStream::connect(server.addr).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut held, &post(signed("never").as_bytes(), "")).await.unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        let answer = send(&server, &array(&messages)).await;
        if answer.status == 429 {
            answer.assert_problem(429, "busy");
            break;
        }
        assert!(std::time::Instant::now() < deadline, "never refused");
    }
    assert_eq!(send(&server, &array(&messages[..999])).await.status, 200, "places were not given back");
}

#[tokio::test]
async fn an_idempotency_key_tells_equal_unsigned_messages_apart() {
    let server = start_with(Options::default(), Fake { allow_unsigned: true, ..Fake::default() });
    let id = async |body: String, headers: &str| {
        let answer = exchange(server.addr, &post(body.as_bytes(), headers)).await;
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        answer.json()["messageID"].clone()
    };
    let none = id(unsigned("21.5"), "").await;
    let first = id(unsigned("21.5"), "Idempotency-Key: a\r\n").await;
    let second = id(unsigned("21.5"), "idempotency-key: b\r\n").await;
    assert!(none != first && none != second && first != second);
    assert_eq!(first, id(unsigned("21.5"), "Idempotency-Key: a\r\n").await, "a retry");
    assert_eq!(id(signed("x"), "").await, id(signed("x"), "Idempotency-Key: a\r\n").await, "a device does not sign it");
}

#[tokio::test]
async fn an_idempotency_key_that_cannot_be_one_is_refused() {
    let server = start_with(Options::default(), Fake { allow_unsigned: true, ..Fake::default() });
    let long = format!("idempotency-key: {}\r\n", "x".repeat(65));
    for headers in
        ["idempotency-key:\r\n", "idempotency-key: ü\r\n", &long, "idempotency-key: a\r\nidempotency-key: a\r\n"]
    {
        let answer = exchange(server.addr, &post(unsigned("x").as_bytes(), headers)).await;
        answer.assert_problem(400, "invalid_idempotency_key");
        assert_eq!(exchange(server.addr, &post(signed("x").as_bytes(), headers)).await.status, 200, "{headers}");
    }
}
