//! Retries, groups, and questions for tasks, on a network of three.

use std::time::{Duration, Instant};

use lockstep_testkit::cluster::{Cluster, ClusterOptions, open_params};
use lockstep_testkit::http::{get, post_message, request};
use lockstep_testkit::load::device_key;
use lockstep_testkit::wait::eventually;
use lockstep_types::{NetworkParams, ProjectId, ProjectSettings};
use serde_json::{Value, json};

use crate::{SOON, binary};

fn body(device: usize, data: &str) -> String {
    lockstep_identity::sign_body(&device_key(1, device), ProjectId(7), "0.1", data)
}

/// Waits until a node has applied the message of an answer.
async fn applied(cluster: &Cluster, node: usize, answer: &Value) {
    let there = get(cluster.node(node).address(), &format!("/api/status?min_sequence={}", answer["sequence"])).await;
    assert_eq!(there.status, 200, "{}", there.text());
}

async fn submit(cluster: &Cluster, node: usize, body: &str) -> Value {
    let answer = post_message(cluster.node(node).address(), body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn with_project(settings: ProjectSettings) -> ClusterOptions {
    ClusterOptions::of(3).with_params(NetworkParams { default_project: settings, ..open_params() })
}

#[tokio::test]
async fn a_retry_has_its_first_position_on_every_node_and_a_reading_after_the_window_a_new_one() {
    // The least that a genesis may have.
    let window = Duration::from_secs(6);
    let retry_window_ms = u64::try_from(window.as_millis()).unwrap();
    let settings = ProjectSettings { retry_window_ms, ..ProjectSettings::open() };
    let mut cluster = Cluster::start(binary(), with_project(settings)).await;
    let reading = body(0, "21.5");
    let first = submit(&cluster, 0, &reading).await;
    let answered_at = Instant::now();
    assert_eq!(first["duplicate"], false);
    // At once: a node that has not applied the message yet must say the same as one that has.
    for node in [1, 2, 0, 1] {
        let again = submit(&cluster, node, &reading).await;
        assert!(answered_at.elapsed() < window / 2, "this machine is too slow for this test");
        assert_eq!(again["duplicate"], true, "node {node}: {again}");
        for member in ["messageID", "taskID", "sequence", "height"] {
            assert_eq!(again[member], first[member], "node {node}: {member}");
        }
    }
    let unsigned = json!({"projectID": 7, "projectVersion": "0.1", "data": "21.5"}).to_string();
    let other = submit(&cluster, 1, &unsigned).await;
    assert_eq!(other["duplicate"], false, "a message without a device is not that of a device");
    assert_eq!(submit(&cluster, 2, &unsigned).await["sequence"], other["sequence"]);
    applied(&cluster, 2, &other).await;

    let later = eventually("the reading counts as a new one", SOON, async || {
        let later = submit(&cluster, 2, &reading).await;
        if later["duplicate"] == false { Ok(later) } else { Err(format!("{later}")) }
    })
    .await;
    let passed = answered_at.elapsed();
    assert!(passed > window - Duration::from_millis(500), "after {passed:?}");
    assert_ne!(later["messageID"], first["messageID"]);
    assert!(later["sequence"].as_u64() > other["sequence"].as_u64());
    assert_eq!(cluster.wait_head_equal(SOON).await.sequence.0, 3);
}

#[tokio::test]
async fn groups_close_by_count_and_a_short_one_by_its_age_and_readers_find_the_tasks() {
    let age = Duration::from_secs(2);
    let settings = ProjectSettings {
        group_messages_max: 3,
        group_age_max_ms: u64::try_from(age.as_millis()).unwrap(),
        ..ProjectSettings::open()
    };
    let cluster = Cluster::start(binary(), with_project(settings)).await;
    let mut ids = Vec::new();
    for n in 0..3 {
        let answer = submit(&cluster, n, &body(0, &format!("reading {n}"))).await;
        assert_eq!(answer["taskID"] == "", n < 2, "the third message closes the group: {answer}");
        ids.push(answer["messageID"].clone());
        if n == 2 {
            let task = task_of(&cluster, 2, answer["taskID"].as_str().unwrap()).await;
            let listed: Vec<Value> = task["messages"].as_array().unwrap().iter().map(|m| m["id"].clone()).collect();
            assert_eq!(listed, ids);
        }
    }

    let opened_at = Instant::now();
    let alone = submit(&cluster, 1, &body(0, "alone")).await;
    assert_eq!(alone["taskID"], "");
    let id = alone["messageID"].as_str().unwrap().to_owned();
    let address = cluster.node(0).address();
    let task_id = eventually("the short group is closed", SOON, async || {
        let answer = get(address, &format!("/api/messages/{id}")).await;
        let message = answer.json();
        message["task_id"].as_str().map(str::to_owned).ok_or_else(|| answer.text())
    })
    .await;
    let after = opened_at.elapsed();
    println!("a group with an age of {age:?} was closed after {after:?}");
    assert!(after > age - Duration::from_millis(300) && after < age + Duration::from_secs(2), "after {after:?}");
    let task = task_of(&cluster, 0, &task_id).await;
    assert_eq!(task["messages"].as_array().unwrap().len(), 1);
    assert_eq!(task["messages"][0]["id"], id.as_str());
    questions_for_a_task(&cluster, &task_id).await;
}

async fn task_of(cluster: &Cluster, node: usize, id: &str) -> Value {
    let address = cluster.node(node).address();
    eventually("the node knows the task", SOON, async || {
        let answer = get(address, &format!("/api/tasks/{id}")).await;
        if answer.status == 200 { Ok(answer.json()) } else { Err(answer.text()) }
    })
    .await
}

async fn questions_for_a_task(cluster: &Cluster, id: &str) {
    for node in 0..cluster.len() {
        task_of(cluster, node, id).await;
        let address = cluster.node(node).address();
        let question = json!({"projectID": 7, "taskID": id}).to_string();
        let by_body = request(address, "GET", "/task", question.as_bytes()).await.unwrap().json();
        let by_query = get(address, &format!("/task?projectID=7&taskID={id}")).await.json();
        assert_eq!(by_body, by_query);
        assert_eq!((&by_body["projectID"], by_body["taskID"].as_str()), (&json!(7), Some(id)));
        assert_eq!(by_body["states"].as_array().unwrap().len(), 1);
        assert_eq!(by_body["states"][0]["state"], "packed");
        let other_project = get(address, &format!("/task?projectID=8&taskID={id}")).await.json();
        assert_eq!(other_project["states"], json!([]));
        let unknown = get(address, &format!("/task?projectID=7&taskID=0x{}", "ab".repeat(32))).await.json();
        assert_eq!(unknown["states"], json!([]));
        for bad in ["/task", "/task?projectID=7", "/task?projectID=7&taskID=12", "/task?projectID=x&taskID=0x12"] {
            assert_eq!(get(address, bad).await.status, 400, "{bad}");
        }
    }
}
