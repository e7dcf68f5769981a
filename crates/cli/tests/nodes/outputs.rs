//! What operators do with outputs.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use lockstep_testkit::cluster::{Cluster, ClusterOptions, change_config};
use lockstep_testkit::history::History;
use lockstep_testkit::http::{get, post_message};
use lockstep_testkit::load::{Load, LoadOptions, device_key};
use lockstep_testkit::outputs::count_sqlite;
use lockstep_testkit::postgres::Postgres;
use lockstep_testkit::wait::eventually;
use lockstep_types::ProjectId;
use serde_json::Value;

use crate::steps::more_messages;
use crate::{SOON, binary};

fn outputs(home: &Path, arguments: &[&str]) -> Result<String, String> {
    let out = Command::new(binary()).arg("outputs").args(arguments).arg("--home").arg(home).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if out.status.success() { Ok(text(out.stdout)) } else { Err(text(out.stderr)) }
}

async fn submit(cluster: &Cluster, text: &str) {
    let body = lockstep_identity::sign_body(&device_key(1, 1), ProjectId(7), "0.1", text);
    assert_eq!(post_message(cluster.node(0).address(), body.as_bytes()).await.status, 200);
}

async fn output(cluster: &Cluster) -> Value {
    get(cluster.node(0).address(), "/api/status").await.json()["outputs"][0].clone()
}

#[tokio::test]
async fn an_output_is_held_up_over_a_restart_and_goes_on_with_everything() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(1)).await;
    let home = cluster.node(0).process.home().to_owned();
    let name = output(&cluster).await["name"].as_str().unwrap().to_owned();
    submit(&cluster, "before").await;
    eventually("the task is published", SOON, async || {
        let status = outputs(&home, &["status"])?;
        if status.contains("last task 1, lag 0") { Ok(()) } else { Err(status) }
    })
    .await;
    outputs(&home, &["pause", &name]).unwrap();
    submit(&cluster, "while it is held up").await;
    eventually("the output lags", SOON, async || {
        let status = outputs(&home, &["status"])?;
        if status.contains("paused, last task 1, lag 1") { Ok(()) } else { Err(status) }
    })
    .await;
    assert!(outputs(&home, &["retry", &name]).unwrap_err().contains("paused"));
    assert!(cluster.restart(0, SOON).await.success());
    cluster.wait_ready(0, SOON).await;
    submit(&cluster, "still").await;
    eventually("it is still held up", SOON, async || {
        let view = output(&cluster).await;
        if view["paused"] == true && view["lag"] == 2 { Ok(()) } else { Err(view.to_string()) }
    })
    .await;
    outputs(&home, &["resume", &name]).unwrap();
    eventually("all tasks are published", SOON, async || {
        let status = outputs(&home, &["status"])?;
        if status.contains("caught up, last task 3, lag 0") { Ok(()) } else { Err(status) }
    })
    .await;
    outputs(&home, &["retry", &name]).unwrap();
    assert!(outputs(&home, &["pause", "nowhere"]).unwrap_err().contains("nowhere"));
    cluster.assert_no_panics();
}

/// How the shared output is, as a node says.
async fn shared_output(cluster: &Cluster, node: usize) -> Value {
    let status = get(cluster.node(node).address(), "/api/status").await.json();
    status["outputs"].as_array().unwrap().iter().find(|output| output["name"] == "shared").unwrap().clone()
}

#[tokio::test]
async fn an_output_of_the_network_is_held_up_whoever_leads_until_it_is_let_go_on() {
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(3));
    let shared = cluster.directory().join("shared.sqlite");
    let homes: Vec<_> = (0..3).map(|node| cluster.node(node).process.home().to_owned()).collect();
    for home in &homes {
        change_config(home, |text| {
            let path = shared.display();
            format!(
                "{text}\n[[output]]\nname = \"shared\"\nscope = \"network\"\nkind = \"sqlite\"\npath = \"{path}\"\n"
            )
        });
    }
    cluster.start_all().await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, 50).await;
    let leader = cluster.wait_leader(SOON).await;
    // Any node will do.
    outputs(&homes[(leader + 1) % 3], &["pause", "shared"]).unwrap();
    let paused_at = eventually("nothing is under way any more", SOON, async || {
        let before = count_sqlite(&shared).map_err(|e| e.to_string())?;
        more_messages(&history, 20).await;
        let now = count_sqlite(&shared).map_err(|e| e.to_string())?;
        if before == now { Ok(now) } else { Err(format!("{before} and {now} tasks")) }
    })
    .await;
    // A change of the leader, and a restart of all, one after the other.
    cluster.kill(leader);
    cluster.wait_leader(SOON).await;
    more_messages(&history, 20).await;
    cluster.start_node(leader);
    cluster.wait_ready(leader, SOON).await;
    for node in 0..3 {
        assert!(cluster.restart(node, SOON).await.success());
        cluster.wait_ready(node, SOON).await;
    }
    more_messages(&history, 20).await;
    for node in 0..3 {
        let view = shared_output(&cluster, node).await;
        assert_eq!(view["paused"], true, "node {node}: {view}");
    }
    assert_eq!(count_sqlite(&shared).unwrap(), paused_at);
    outputs(&homes[leader], &["resume", "shared"]).unwrap();
    load.stop().await;
    eventually("it has everything", SOON, async || {
        let have = count_sqlite(&shared).map_err(|e| e.to_string())?;
        let tasks = count_sqlite(&cluster.sqlite(0)).map_err(|e| e.to_string())?;
        let views = [shared_output(&cluster, 0).await, shared_output(&cluster, 1).await];
        let done = have == tasks && views.iter().all(|view| view["lag"] == 0 && view["paused"] != true);
        if done { Ok(()) } else { Err(format!("{have} of {tasks}: {views:?}")) }
    })
    .await;

    // Whoever checks a node's directory knows the records of all this.
    outputs(&homes[0], &["pause", "shared"]).unwrap();
    cluster.terminate(0);
    cluster.node_mut(0).process.ended(SOON).await;
    let checked = Command::new(binary()).arg("verify").arg("--home").arg(&homes[0]).output().unwrap();
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success() && said.contains("GOOD") && !said.contains("note"), "{said}");
    cluster.assert_no_panics();
}

#[tokio::test]
async fn w3bstreams_operator_is_told_what_to_set_and_no_secret() {
    let postgres = Postgres::start();
    let cluster = Cluster::start(binary(), ClusterOptions::of(1).with_postgres(postgres.dsn())).await;
    let home = cluster.node(0).process.home().to_owned();
    let status = get(cluster.node(0).address(), "/api/status").await.json();
    let name = status["outputs"].as_array().unwrap().last().unwrap()["name"].as_str().unwrap().to_owned();
    let told = outputs(&home, &["w3bstream", &name, "--role", "reader"]).unwrap();
    assert!(told.contains("DATASOURCE_DSN=postgres://reader:PASSWORD@"), "{told}");
    let key = std::fs::read_to_string(home.join("task.key")).unwrap();
    assert!(told.contains("datasourcePublicKey: 0x04") && !told.contains(key.trim()), "{told}");
}
