//! `/api`, probes and the page.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::*;
use lockstep_api::Options;
use lockstep_api::views::{BatchesView, MessageView, StatusView, TaskView};

#[tokio::test]
async fn views_read_back_as_they_were_written() {
    let server = start(Options::default());
    let status = get(server.addr, "/api/status").await;
    assert_eq!(status.json()["role"], "leader");
    let status: StatusView = serde_json::from_slice(&status.body).unwrap();
    assert_eq!(status.head.height.0, 250);
    let message = get(server.addr, &format!("/api/messages/0x{}", "02".repeat(32))).await;
    assert_eq!(
        message.json()["evidence"],
        serde_json::json!({ "kind": "ingress", "node": format!("0x{}", "01".repeat(20)) })
    );
    assert!(message.json()["data"].is_null() && message.json()["device"].is_null());
    serde_json::from_slice::<MessageView>(&message.body).unwrap();
    let task = get(server.addr, &format!("/api/tasks/{}", "07".repeat(32))).await;
    serde_json::from_slice::<TaskView>(&task.body).unwrap();
    assert_eq!(get(server.addr, "/api/batches/1").await.json()["messages"][0]["device"], serde_json::Value::Null);
}

#[tokio::test]
async fn a_list_shows_the_newest_batches_unless_told_where_to_begin() {
    let server = start(Options::default());
    for (path, first, count) in [
        ("/api/batches", 231, 20),
        ("/api/batches?limit=5", 246, 5),
        ("/api/batches?limit=1000", 151, 100),
        ("/api/batches?from=3&limit=2", 3, 2),
        ("/api/batches?from=0&limit=1", 1, 1),
        ("/api/batches?from=251", 0, 0),
    ] {
        let list: BatchesView = serde_json::from_slice(&get(server.addr, path).await.body).unwrap();
        let heights = (list.batches.first().map_or(0, |b| b.height.0), list.batches.len());
        assert_eq!(heights, (first, count), "{path}");
    }
}

#[tokio::test]
async fn every_error_has_the_same_shape() {
    let server = start(Options { min_sequence_wait_ms: 50, ..Options::default() });
    for (path, status, code) in [
        ("/nowhere", 404, "unknown_path"),
        ("/api", 404, "unknown_path"),
        ("/message", 405, "wrong_method"),
        ("/api/batches/0", 404, "not_found"),
        ("/api/batches/x", 400, "invalid_request"),
        ("/api/batches/%ff", 400, "invalid_request"),
        ("/api/batches?from=x", 400, "invalid_request"),
        ("/api/batches?from=13", 410, "pruned"),
        ("/api/messages/12", 400, "invalid_request"),
        ("/api/tasks/0x00", 400, "invalid_request"),
        ("/api/proofs/12", 400, "invalid_request"),
        ("/api/export?from=x", 400, "invalid_request"),
        ("/api/export?from=13", 410, "pruned"),
        ("/api/status?min_sequence=x", 400, "invalid_request"),
        ("/api/status?min_sequence=251", 503, "behind"),
    ] {
        let answer = get(server.addr, path).await;
        answer.assert_problem(status, code);
        assert_eq!(answer.header("retry-after").is_some(), status == 503, "{path}");
    }
    assert_eq!(get(server.addr, "/api/status?min_sequence=250").await.status, 200);
}

#[tokio::test]
async fn probes_tell_alive_from_ready() {
    let server = start_with(Options::default(), Fake { not_ready: true, ..Fake::default() });
    assert_eq!(get(server.addr, "/livez").await.status, 200);
    let ready = get(server.addr, "/readyz").await;
    ready.assert_problem(503, "not_ready");
    assert_eq!(ready.json()["error"], "catching up: 5 batches behind");
    assert_eq!(get(start(Options::default()).addr, "/readyz").await.status, 200);
    assert_eq!(get(server.addr, "/metrics").await.body, b"lockstep_up 1\n");
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let server = start(Options::default());
    let page = get(server.addr, "/").await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    let text = String::from_utf8(page.body).unwrap();
    assert!(!text.contains("src=\"http") && !text.contains("href=\"http") && !text.contains("innerHTML"));
}

#[tokio::test]
async fn readers_beyond_the_limit_are_told_to_come_back_while_devices_go_on() {
    let server = start(Options { reads_max: 1, min_sequence_wait_ms: 2_000, ..Options::default() });
    let waiting = tokio::spawn(async move { get(server.addr, "/api/status?min_sequence=999").await.status });
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(1);
    loop {
        let answer = get(server.addr, "/api/status").await;
        if answer.status == 429 {
            assert_eq!(answer.header("retry-after"), Some("1"));
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the limit was never reached");
    }
    assert_eq!(exchange(server.addr, &post(signed("a").as_bytes(), "")).await.status, 200);
    assert_eq!(waiting.await.unwrap(), 503);
}

#[tokio::test]
async fn a_proof_is_there_or_not_yet_or_no_longer() {
    let server = start(Options::default());
    for (byte, status, code) in [("02", 404, "not_found"), ("03", 503, "not_final"), ("04", 410, "pruned")] {
        let answer = get(server.addr, &format!("/api/proofs/0x{}", byte.repeat(32))).await;
        answer.assert_problem(status, code);
        assert_eq!(answer.header("retry-after"), (status == 503).then_some("1"));
    }
}

#[tokio::test]
async fn a_history_is_handed_over_in_pages() {
    let server = start(Options::default());
    let answer = get(server.addr, "/api/export").await;
    assert_eq!(answer.header("content-type"), Some("application/x-protobuf"));
    let page = lockstep_types::ExportPage::decode(answer.body.into()).unwrap();
    assert_eq!((page.oldest_height.0, page.head.0), (14, 250));
    assert_eq!(get(server.addr, "/api/boundaries").await.json()["boundaries"], serde_json::json!([]));
}

#[tokio::test]
async fn only_a_confirmed_look_up_waits_for_a_confirmation_and_without_one_it_has_no_answer() {
    let confirmations = Arc::new(AtomicU64::new(0));
    let fake = Fake { confirmations: confirmations.clone(), ..Fake::default() };
    let server = start_with(Options::default(), fake);
    let (known, unknown) = ("02".repeat(32), "03".repeat(32));
    for (query, status, count) in [
        ("", 404, 0),
        ("?confirmed=0", 404, 0),
        ("?confirmed=1", 404, 1),
        ("?confirmed=2", 400, 1),
        ("?confirmed=x", 400, 1),
    ] {
        let answer = get(server.addr, &format!("/api/messages/0x{unknown}{query}")).await;
        assert_eq!((answer.status, confirmations.load(Ordering::Relaxed)), (status, count), "{query}");
    }
    assert_eq!(get(server.addr, &format!("/api/messages/0x{known}?confirmed=1")).await.status, 200);
    let server = start_with(Options::default(), Fake { not_ready: true, ..Fake::default() });
    for id in [&known, &unknown] {
        let answer = get(server.addr, &format!("/api/messages/0x{id}?confirmed=1")).await;
        answer.assert_problem(503, "unavailable");
        assert!(answer.header("retry-after").is_some());
    }
    get(server.addr, &format!("/api/messages/0x{unknown}")).await.assert_problem(404, "not_found");
}
