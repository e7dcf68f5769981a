//! What operators do with outputs.

use std::path::Path;
use std::process::Command;

use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::http::{get, post_message};
use lockstep_testkit::load::device_key;
use lockstep_testkit::postgres::Postgres;
use lockstep_testkit::wait::eventually;
use lockstep_types::ProjectId;
use serde_json::Value;

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
