//! Rules of a project, from the owner's command line to what devices hear, on nodes that are killed and started again.

use std::path::Path;
use std::process::{Command, Output};

use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::http::{get, post_message};
use lockstep_testkit::load::device_key;
use lockstep_testkit::wait::eventually;
use lockstep_types::{NetworkParams, ProjectId, ProjectSettings, SigningKey};
use serde_json::{Value, json};

use crate::{SOON, binary};

fn owner() -> SigningKey {
    SigningKey::from_bytes([0x78; 32]).unwrap()
}

fn lockstep(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

fn example(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples").join(name).display().to_string()
}

async fn submit(cluster: &Cluster, node: usize, project: u64, data: &Value) -> (u16, Value) {
    let body = lockstep_identity::sign_body(&device_key(3, 0), ProjectId(project), "1", &data.to_string());
    let answer = post_message(cluster.node(node).address(), body.as_bytes()).await;
    (answer.status, answer.json())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_sets_rules_devices_hear_why_and_all_nodes_have_the_same() {
    let params = NetworkParams {
        projects: [7, 8].map(|id| (ProjectId(id), ProjectSettings::open())).into(),
        owners: [(ProjectId(7), owner().address())].into(),
        ..NetworkParams::default()
    };
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3).with_params(params)).await;
    let key = cluster.directory().join("owner.key");
    std::fs::write(&key, hex::encode(owner().secret_bytes())).unwrap();
    let set = |cluster: &Cluster, node: usize, what: &[&str]| {
        let url = cluster.node(node).url();
        let rest = ["--url", &url, "--project", "7", "--key-file", key.to_str().unwrap()];
        let done = lockstep(&[&["projects", "set"], what, &rest].concat());
        if done.status.success() { Ok(()) } else { Err(text(&done.stderr)) }
    };
    let rules = example("weather/rules.toml");
    eventually("the rules are set", SOON, async || set(&cluster, 1, &["--rules", &rules])).await;
    let reading = |ts: u64, celsius: f64| json!({"station": "brocken", "ts": ts, "celsius": celsius});
    // At a node that may not have seen the order yet.
    eventually("what is out of range is refused", SOON, async || {
        let (status, said) = submit(&cluster, 2, 7, &reading(1, 99.0)).await;
        if (status, &said["reason"]) == (422, &json!("out_of_range")) {
            Ok(())
        } else {
            Err(format!("{status} {said}"))
        }
    })
    .await;
    let (status, said) = submit(&cluster, 0, 7, &reading(3_600_000, 4.0)).await;
    assert_eq!(status, 200, "{said}");
    // Only the state knows the device's last message: apply says it.
    let (status, said) = submit(&cluster, 1, 7, &reading(3_500_000, 4.0)).await;
    assert_eq!((status, &said["code"], &said["reason"]), (422, &json!("rules"), &json!("not_monotonic")), "{said}");
    let (status, said) = submit(&cluster, 1, 7, &json!({"station": "Brocken!", "ts": 1, "celsius": 1})).await;
    assert_eq!((status, &said["reason"]), (422, &json!("schema")), "{said}");
    let (status, said) = submit(&cluster, 1, 7, &reading(3_700_000, 19.0)).await;
    assert_eq!(status, 200, "{said}");
    // Another project has no rules.
    assert_eq!(submit(&cluster, 2, 8, &json!("anything")).await.0, 200);

    // What cannot be used is refused before it is sent, with its place.
    let bad = cluster.directory().join("bad.toml");
    std::fs::write(&bad, "version = 1\n[[filter]]\nwhen = \"1 +\"\ndo = \"drop\"\nreason = \"x\"\n").unwrap();
    let error = set(&cluster, 0, &["--rules", bad.to_str().unwrap()]).unwrap_err();
    assert!(error.contains("filter[0]"), "{error}");

    // A node forgets nothing of it.
    let leader = cluster.wait_leader(SOON).await;
    cluster.kill(leader);
    cluster.start_node(leader);
    cluster.wait_ready(leader, SOON).await;
    let (status, said) = submit(&cluster, leader, 7, &reading(3_650_000, 5.0)).await;
    assert_eq!((status, &said["reason"]), (422, &json!("not_monotonic")), "{said}");
    // Who has the order yet refuses what is out of range at its door; who has not lets apply refuse it, which counts it.
    let by_apply = |figures: &Value| figures["refused"]["expect:out_of_range"].as_u64().unwrap_or(0);
    let mut first = None;
    for node in 0..3 {
        eventually("every node has the same figures", SOON, async || {
            let project = get(cluster.node(node).address(), "/api/projects/7").await.json();
            let mut figures = project["figures"].clone();
            let counted = by_apply(&figures);
            figures["refused"].as_object_mut().map(|refused| refused.remove("expect:out_of_range"));
            let expected =
                json!({"taken": 2, "flagged": 1, "late": 0, "tasks": 0, "refused": {"expect:not_monotonic": 2}});
            if figures == expected && counted <= 1 && *first.get_or_insert(counted) == counted {
                Ok(())
            } else {
                Err(project.to_string())
            }
        })
        .await;
    }
    let url = cluster.node(0).url();
    let history = lockstep(&["projects", "history", "--url", &url, "--project", "7"]);
    let history = text(&history.stdout);
    assert!(history.contains("(these hold)") && history.contains("not taken, expect:not_monotonic: 2"), "{history}");

    // And no more of it.
    set(&cluster, 0, &["--no-rules"]).unwrap();
    assert_eq!(submit(&cluster, 0, 7, &reading(1, 999.0)).await.0, 200);
    cluster.assert_no_panics();
}

#[test]
fn rules_are_tried_out_without_a_network() {
    let directory = tempfile::tempdir().unwrap();
    let first = directory.path().join("rules.toml").display().to_string();
    assert!(lockstep(&["projects", "init", "--rules", &first]).status.success());
    assert!(!lockstep(&["projects", "init", "--rules", &first]).status.success(), "a file is never overwritten");
    let input = directory.path().join("m.jsonl").display().to_string();
    std::fs::write(&input, "{\"data\":{\"celsius\":20}}\n\n{\"data\":{\"celsius\":70}}\n").unwrap();
    let tried = lockstep(&["projects", "test", "--rules", &first, "--input", &input]);
    let said = text(&tried.stdout);
    assert!(said.contains("line 1: taken as 1") && said.contains("line 3: refused by expect, out_of_range"), "{said}");
    let (rules, messages) = (example("weather/rules.toml"), example("weather/messages.jsonl"));
    let tried = lockstep(&["projects", "test", "--rules", &rules, "--input", &messages, "--json"]);
    let lines: Vec<Value> = text(&tried.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let tasks: Vec<&Value> = lines.iter().filter(|line| line["task"].is_number()).collect();
    assert_eq!(tasks[0]["payload"]["celsius"], 10.0, "{tasks:?}");
    std::fs::write(&input, "{\"data\":1}\n{\"dato\":1}\n").unwrap();
    let tried = lockstep(&["projects", "test", "--rules", &first, "--input", &input]);
    assert!(!tried.status.success() && text(&tried.stderr).contains("m.jsonl:2"), "{}", text(&tried.stderr));
}
