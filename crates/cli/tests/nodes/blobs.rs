//! Outputs that are stores of blobs: every node makes the same, and each blob checks itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lockstep_testkit::cluster::{Cluster, ClusterOptions, change_config, open_params};
use lockstep_testkit::history::History;
use lockstep_testkit::http::{get, post_message};
use lockstep_testkit::load::{Load, LoadOptions, device_key};
use lockstep_testkit::outputs::count_sqlite;
use lockstep_testkit::process::{Limits, run_limited, text_of};
use lockstep_testkit::wait::eventually;
use lockstep_types::{Blob, Epochs, NetworkParams, ProjectId, ProjectSettings};
use serde_json::Value;

use crate::steps::more_messages;
use crate::{SOON, binary};

/// Names and contents of the links in a store.
fn links(store: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(store.join("index")).into_iter().flatten().map(Result::unwrap);
    // Files on their way to their names have others, and may be gone when they are looked at.
    let entries = entries.filter(|entry| !entry.file_name().into_string().unwrap().contains('#'));
    let link =
        |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap());
    entries.map(link).collect()
}

fn last_task(store: &Path) -> u64 {
    let link = links(store).into_values().next_back();
    link.map_or(0, |link| serde_json::from_str::<Value>(&link).unwrap()["last"].as_u64().unwrap())
}

fn verify(file: &Path, home: &Path, task_key: &str) -> (String, Option<i32>) {
    let mut command = Command::new(binary());
    command.arg("verify").arg(file).arg("--genesis").arg(home.join("genesis.json")).args(["--task-key", task_key]);
    let output = run_limited(&mut command, Limits::default(), Duration::from_secs(60));
    (text_of(&output), output.status.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_makes_the_same_blobs_and_they_check_themselves() {
    // Tasks that reach back, and readings that come again.
    let default_project = ProjectSettings {
        group_messages_max: 2,
        group_age_max_ms: 300,
        retry_window_ms: 6_000,
        ..ProjectSettings::open()
    };
    let params = NetworkParams { default_project, ..open_params() };
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(3).with_params(params));
    let shared = cluster.directory().join("shared-blobs");
    for node in 0..3 {
        let home = cluster.node(node).process.home().to_owned();
        change_config(&home, |text| {
            let shared = shared.display();
            format!(
                "{text}\n[[output]]\nname = \"blobs\"\nscope = \"node\"\nkind = \"object\"\nurl = \"file:blobs\"\n\
                 [[output]]\nname = \"shared\"\nscope = \"network\"\nkind = \"object\"\nurl = \"file:{shared}\"\n"
            )
        });
    }
    cluster.start_all().await;
    let again = lockstep_identity::sign_body(&device_key(9, 0), ProjectId(7), "0.1", "the same reading");
    let first = eventually("the reading is taken", SOON, async || {
        let answer = post_message(cluster.node(0).address(), again.as_bytes()).await;
        if answer.status == 200 { Ok(answer.json()) } else { Err(answer.text()) }
    })
    .await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, 200).await;
    // A change of the members, and a leader that dies.
    cluster.add_node().await;
    more_messages(&history, 200).await;
    let leader = cluster.wait_leader(SOON).await;
    cluster.kill(leader);
    more_messages(&history, 200).await;
    cluster.start_node(leader);
    cluster.wait_ready(leader, SOON).await;
    let repeated = eventually("the same reading is a new one", SOON, async || {
        let answer = post_message(cluster.node(leader).address(), again.as_bytes()).await;
        let (said, text) = (answer.json(), answer.text());
        if answer.status == 200 && said["messageID"] != first["messageID"] { Ok(said) } else { Err(text) }
    })
    .await;
    load.stop().await;
    // Its group is closed by age, and its task is final a moment later: until then nobody lags without it.
    eventually("the repeated reading is published", SOON, async || {
        let path = format!("/api/messages/{}", repeated["messageID"].as_str().unwrap());
        let answer = get(cluster.node(leader).address(), &path).await;
        if answer.json()["status"] == "published" { Ok(()) } else { Err(answer.text()) }
    })
    .await;

    let stores: Vec<_> = (0..3).map(|node| cluster.node(node).process.home().join("blobs")).chain([shared]).collect();
    let tasks = eventually("every store has every task", SOON * 2, async || {
        let mut lags = Vec::new();
        for node in 0..3 {
            let status = get(cluster.node(node).address(), "/api/status").await.json();
            lags.extend(status["outputs"].as_array().unwrap().iter().map(|output| output["lag"].clone()));
        }
        let tasks = count_sqlite(&cluster.sqlite(0)).map_err(|e| e.to_string())?;
        let have: Vec<u64> = stores.iter().map(|store| last_task(store)).collect();
        let all = have.iter().all(|last| *last == tasks) && lags.iter().all(|lag| *lag == 0);
        if all { Ok(tasks) } else { Err(format!("{tasks} tasks, stores have {have:?}, lags {lags:?}")) }
    })
    .await;
    assert!(tasks > 300, "{tasks} tasks");

    // The same bytes everywhere, whoever wrote them and when. A group that is closed by its age only now makes one more task.
    let links = |store: &Path| {
        let mut links = links(store);
        links.retain(|first, _| *first <= format!("{tasks:020}"));
        links
    };
    let all = links(&stores[0]);
    for store in &stores[1..] {
        assert_eq!(links(store), all, "{}", store.display());
    }
    let (genesis, signer) = (cluster.genesis(), cluster.task_signer());
    let (mut next, mut changes, mut repeats, mut reaching_back) = (1, 0, 0, 0);
    for link in all.values() {
        let link: Value = serde_json::from_str(link).unwrap();
        let bytes = fs::read(stores[0].join(link["blob"].as_str().unwrap())).unwrap();
        let blob = Blob::decode(bytes.into()).unwrap();
        let proven = blob.verify(&genesis, &Epochs::default(), Some(&signer)).unwrap();
        assert_eq!((proven.first.0, link["first"].as_u64()), (next, Some(next)));
        (next, changes) = (proven.last.0 + 1, changes.max(proven.changes));
        let messages = || blob.tasks.iter().flat_map(|task| &task.messages);
        repeats += messages().filter(|message| message.count > 1).count();
        reaching_back += messages().filter(|m| m.sequence < blob.anchor.header.first_sequence).count();
    }
    println!("{tasks} tasks in {} blobs, {repeats} repeats, {reaching_back} messages of earlier batches", all.len());
    assert_eq!(next, tasks + 1);
    assert!(changes >= 1 && repeats >= 1 && reaching_back >= 1, "{changes} changes, {repeats}, {reaching_back}");

    // As an operator or reader does it.
    let link: Value = serde_json::from_str(all.values().next_back().unwrap()).unwrap();
    let file = stores[3].join(link["blob"].as_str().unwrap());
    let (home, key) = (cluster.node(1).process.home().to_owned(), signer.to_string());
    let (said, code) = verify(&file, &home, &key);
    assert!(code == Some(0) && said.contains(&format!("to {tasks} are of network")), "{said}");
    let (said, code) = verify(&file, &home, &format!("0x{}", "11".repeat(20)));
    assert!(code == Some(1) && said.contains("not with the task key"), "{said}");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let (said, code) = verify(&file, &home, &key);
    assert!(code == Some(1) && said.contains("NOT GOOD: the blob"), "{said}");
    cluster.assert_no_panics();
}
