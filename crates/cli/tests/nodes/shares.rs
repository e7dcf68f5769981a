//! A project that sends more than its nodes hold, beside one that sends little.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lockstep_testkit::cluster::{Cluster, ClusterOptions, change_config};
use lockstep_testkit::http::{get, post_message, request};
use lockstep_testkit::wait::eventually;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{SOON, binary};

/// What each node's pool holds, messages of one request of the project that floods, and its clients at each node.
const POOL_MESSAGES: usize = 120;
const FLOOD_MESSAGES: usize = 200;
const FLOODING: usize = 2;
/// Messages of the other project.
const MESSAGES: usize = 40;

fn message(project: u64, data: &str) -> Value {
    json!({"projectID": project, "projectVersion": "0.1", "data": data})
}

/// Sends more than there is room for, again and again. Counts what is taken and what hears 429.
async fn flood(address: SocketAddr, name: String, stop: Arc<AtomicBool>, counts: Arc<[AtomicU64; 2]>) {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let messages: Vec<_> = (0..FLOOD_MESSAGES).map(|n| message(8, &format!("{name} {round} {n}"))).collect();
        let body = Value::from(messages).to_string();
        let Ok(answer) = request(address, "POST", "/messages", body.as_bytes()).await else { continue };
        assert_eq!(answer.status, 200, "{}", answer.text());
        for of_message in answer.json().as_array().unwrap() {
            match of_message["code"].as_str() {
                None => counts[0].fetch_add(1, Ordering::Relaxed),
                Some("busy") => counts[1].fetch_add(1, Ordering::Relaxed),
                Some(_) => 0,
            };
        }
        round += 1;
    }
}

#[tokio::test]
async fn a_project_that_floods_hears_429_and_every_message_of_another_is_taken_at_once() {
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(3));
    for node in cluster.members() {
        change_config(cluster.node(node).process.home(), |text| {
            text.replace("messages_max = 50000", &format!("messages_max = {POOL_MESSAGES}"))
                // What the processor cannot do in time is nothing that this test looks for.
                .replace("hold_ms = 2500", "hold_ms = 4000")
        });
    }
    cluster.start_all().await;
    let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new([const { AtomicU64::new(0) }; 2]));
    let mut flooding = JoinSet::new();
    for node in cluster.members() {
        for client in 0..FLOODING {
            let address = cluster.node(node).address();
            flooding.spawn(flood(address, format!("{node} {client}"), stop.clone(), counts.clone()));
        }
    }
    let refused = || counts[1].load(Ordering::Relaxed);
    eventually("the flood is more than there is room for", SOON, async || match refused() {
        0 => Err("nobody heard 429".to_owned()),
        _ => Ok(()),
    })
    .await;
    let before = refused();
    for n in 0..MESSAGES {
        let address = cluster.node(n % cluster.len()).address();
        let answer = post_message(address, message(7, &format!("reading {n}")).to_string().as_bytes()).await;
        assert_eq!(answer.status, 200, "message {n}: {}", answer.text());
        assert_eq!(answer.json()["duplicate"], false, "message {n}");
    }
    assert!(refused() > before, "the flood went on");
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = flooding.join_next().await {
        ended.unwrap();
    }
    assert!(counts[0].load(Ordering::Relaxed) > 0, "what there is room for is taken");
    for node in cluster.members() {
        let metrics = get(cluster.node(node).address(), "/metrics").await.text();
        let without_room = |project: u64| {
            let name = format!("lockstep_project_messages_without_room_total{{project=\"{project}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok())
        };
        assert!(without_room(8).is_some_and(|count| count > 0.0), "node {node}");
        assert_eq!(without_room(7), None, "node {node}");
    }
    cluster.wait_head_equal(SOON).await;
}
