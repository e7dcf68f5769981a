//! Readers that follow final tasks while nodes come and go, and what they may see.

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use lockstep_client::{Client, Follow, Followed};
use lockstep_testkit::audit::audit;
use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::history::History;
use lockstep_testkit::http::{get, post_message, send};
use lockstep_testkit::load::{Load, LoadOptions, device_key};
use lockstep_testkit::wait::eventually;
use lockstep_types::{NetworkParams, ProjectId, ProjectSettings, SigningKey, TaskNumber};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::steps::more_messages;
use crate::{SOON, binary};

const KILLS: usize = 4;
const MESSAGES_BETWEEN: usize = 200;

fn json(task: &Followed) -> Value {
    serde_json::from_str(&task.json).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_never_skips_repeats_or_goes_back_while_leaders_are_killed() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    let client = Client::new(cluster.urls()).unwrap();
    let (told, told_so_far) = tokio::sync::watch::channel(0);
    let enough = CancellationToken::new();
    let until = enough.clone();
    let following = tokio::spawn(async move {
        let (mut feed, mut tasks) = (client.follow(Follow::default()), Vec::<Followed>::new());
        while let Some(task) = until.run_until_cancelled(feed.next()).await {
            let task = task.unwrap();
            told.send_replace(task.number.0);
            tasks.push(task);
        }
        tasks
    });
    for _ in 0..KILLS {
        more_messages(&history, MESSAGES_BETWEEN).await;
        let leader = cluster.wait_leader(SOON).await;
        cluster.kill(leader);
        cluster.wait_leader(SOON).await;
        more_messages(&history, MESSAGES_BETWEEN).await;
        cluster.start_node(leader);
        cluster.wait_ready(leader, SOON).await;
    }
    more_messages(&history, MESSAGES_BETWEEN).await;
    load.stop().await;
    let newest = |answer: Value| answer["newest"].as_u64().unwrap();
    let last = eventually("the feed has all that is final", SOON, async || {
        let page = get(cluster.node(0).address(), "/api/tasks?limit=1").await.json();
        let (told, newest) = (*told_so_far.borrow(), newest(page));
        (told == newest).then_some(newest).ok_or_else(|| format!("{told} of {newest}"))
    })
    .await;
    enough.cancel();
    let tasks = tokio::time::timeout(SOON, following).await.unwrap().unwrap();
    let numbers: Vec<u64> = tasks.iter().map(|task| task.number.0).collect();
    assert_eq!(numbers, (1..=last).collect::<Vec<_>>());
    // What was told is what every node has, to the byte, and every acknowledged message is in it.
    let mut messages = BTreeSet::new();
    for task in &tasks {
        let task = json(task);
        messages.extend(task["messages"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().to_owned()));
    }
    for node in 0..3 {
        for task in [&tasks[0], &tasks[tasks.len() / 2], &tasks[tasks.len() - 1]] {
            let id = json(task)["id"].as_str().unwrap().to_owned();
            let own = eventually("the node has it", SOON, async || {
                let answer = get(cluster.node(node).address(), &format!("/api/tasks/{id}")).await;
                (answer.status == 200).then(|| answer.json()).ok_or_else(|| answer.text())
            })
            .await;
            let told = json(task);
            for field in ["number", "messages", "height", "signature", "time_ms"] {
                assert_eq!(own[field], told[field], "{field} at node {node}");
            }
        }
    }
    let checked = audit(&mut cluster, &history).await;
    println!("{} tasks, {} messages, {checked:?}", tasks.len(), messages.len());
    assert_eq!(messages.len() as u64, last, "one message a task");
}

fn owner() -> SigningKey {
    SigningKey::from_bytes([0x77; 32]).unwrap()
}

fn lockstep(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).output().unwrap()
}

#[tokio::test]
async fn a_reader_token_opens_the_payloads_of_its_project_until_it_is_withdrawn() {
    let params = NetworkParams {
        projects: [7, 8].map(|id| (ProjectId(id), ProjectSettings::open())).into(),
        owners: [(ProjectId(7), owner().address())].into(),
        public_payloads: false,
        ..NetworkParams::default()
    };
    let cluster = Cluster::start(binary(), ClusterOptions::of(3).with_params(params)).await;
    let key = cluster.directory().join("owner.key");
    std::fs::write(&key, hex::encode(owner().secret_bytes())).unwrap();
    let owner = |node: usize, what: &[&str]| {
        let url = cluster.node(node).url();
        let rest = ["--url", &url, "--project", "7", "--key-file", key.to_str().unwrap()];
        lockstep(&[&["projects", "readers"], what, &rest].concat())
    };
    let token = eventually("the token is made", SOON, async || {
        let made = owner(1, &["add"]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if made.status.success() { Ok(text(&made.stdout)) } else { Err(text(&made.stderr)) }
    })
    .await;
    let file = cluster.directory().join("reader.token");
    std::fs::write(&file, &token).unwrap();
    for (project, node) in [(7, 0), (8, 1), (7, 2)] {
        let body = lockstep_identity::sign_body(&device_key(1, node), ProjectId(project), "0.1", "21.5");
        assert_eq!(post_message(cluster.node(node).address(), body.as_bytes()).await.status, 200);
    }
    let tail = async |arguments: &[&str]| {
        let url = cluster.node(2).url();
        let all = [&["tail", "--url", &url, "--all"], arguments].concat();
        let out = tokio::process::Command::new(binary()).args(all).output();
        let out = tokio::time::timeout(SOON, out).await.unwrap().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let token_file = ["--token-file", file.to_str().unwrap()];
    let shown = |task: &Value| (task["project_id"].as_u64().unwrap(), task["messages"][0]["data"].is_string());
    let open = tail(&[&["--count", "3"], &token_file[..]].concat()).await;
    let mut seen: Vec<_> = open.iter().map(shown).collect();
    seen.sort_unstable();
    assert_eq!(seen, [(7, true), (7, true), (8, false)]);
    let closed = tail(&["--project", "7", "--count", "2"]).await;
    assert_eq!(closed.iter().map(shown).collect::<Vec<_>>(), [(7, false), (7, false)]);
    let id = open.iter().find(|task| task["project_id"] == 7).unwrap()["id"].as_str().unwrap().to_owned();
    let read = async |node: usize| {
        let head = format!(
            "GET /api/tasks/{id} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        send(cluster.node(node).address(), head.as_bytes()).await.unwrap().json()
    };
    assert!(read(1).await["messages"][0]["data"].is_string());
    assert!(owner(2, &["remove", "--all"]).status.success());
    for node in 0..3 {
        eventually("the token opens nothing any more", SOON, async || {
            read(node).await["messages"][0]["data"].is_null().then_some(()).ok_or_else(|| "it does".to_owned())
        })
        .await;
    }
    let mut past = cluster.client().follow(Follow { after: Some(TaskNumber(99)), ..Follow::default() });
    let nothing = tokio::time::timeout(Duration::from_millis(300), past.next()).await;
    assert!(nothing.is_err(), "what is not there yet is waited for");
}
