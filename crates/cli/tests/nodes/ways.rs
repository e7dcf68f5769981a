//! Other ways in than one message by one request, and how fast they may be used.

use lockstep_testkit::cluster::{Cluster, ClusterOptions, change_config};
use lockstep_testkit::http::{post_message, request, send};
use lockstep_testkit::load::device_key;
use lockstep_types::ProjectId;
use serde_json::{Value, json};

use crate::binary;

fn reading(device: usize, text: &str) -> String {
    lockstep_identity::sign_body(&device_key(1, device), ProjectId(7), "0.1", text)
}

async fn post_all(cluster: &Cluster, node: usize, messages: &[String]) -> Vec<Value> {
    let body = format!("[{}]", messages.join(","));
    let address = cluster.node(node).address();
    let answer = request(address, "POST", "/messages", body.as_bytes()).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let Value::Array(entries) = answer.json() else { panic!("no array: {}", answer.text()) };
    entries
}

#[tokio::test]
async fn a_bulk_is_ordered_as_it_came_at_any_node() {
    let cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    for node in 0..3 {
        let messages: Vec<String> = (0..500).map(|n| reading(n % 7, &format!("{node}/{n}"))).collect();
        let entries = post_all(&cluster, node, &messages).await;
        let number = |entry: &Value, name: &str| entry[name].as_u64().unwrap_or_else(|| panic!("{entry}"));
        let sequences: Vec<u64> = entries.iter().map(|entry| number(entry, "sequence")).collect();
        assert_eq!(sequences.len(), messages.len());
        assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
        let batches = number(&entries[499], "height") - number(&entries[0], "height") + 1;
        assert!(batches <= 50, "{batches} batches for 500 messages that came together");
        // The same again: each has its first position.
        let again = post_all(&cluster, node, &messages).await;
        let first = |entry: &Value| (entry["sequence"].clone(), entry["messageID"].clone());
        assert!(again.iter().zip(&entries).all(|(a, b)| first(a) == first(b) && a["duplicate"] == true));
    }
}

#[tokio::test]
async fn an_idempotency_key_tells_equal_unsigned_messages_apart_on_the_network() {
    let cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    let body = json!({"projectID": 7, "projectVersion": "0.1", "data": "open"}).to_string();
    let submit = async |node: usize, key: &str| {
        let head = format!("POST /message HTTP/1.1\r\nhost: x\r\nconnection: close\r\nidempotency-key: {key}\r\n");
        let bytes = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        send(cluster.node(node).address(), bytes.as_bytes()).await.unwrap().json()
    };
    let (first, second) = (submit(0, "a").await, submit(1, "b").await);
    assert!(first["messageID"].is_string() && first["messageID"] != second["messageID"], "{first} {second}");
    let retry = submit(2, "a").await;
    assert_eq!((&retry["sequence"], &retry["duplicate"]), (&first["sequence"], &true.into()));
}

#[tokio::test]
async fn a_device_that_is_too_fast_is_refused_and_others_are_not() {
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(1));
    let home = cluster.node(0).process.home().to_owned();
    change_config(&home, |text| text.replace("per_second = 1000\nburst = 2000", "per_second = 1\nburst = 3"));
    cluster.start_all().await;
    let messages: Vec<String> = (0..5).map(|n| reading(1, &n.to_string())).collect();
    let entries = post_all(&cluster, 0, &messages).await;
    let codes: Vec<&str> = entries.iter().map(|entry| entry["code"].as_str().unwrap_or("ok")).collect();
    assert_eq!(codes, ["ok", "ok", "ok", "too_fast", "too_fast"]);
    let address = cluster.node(0).address();
    assert_eq!(post_message(address, reading(2, "more").as_bytes()).await.status, 200);
}
