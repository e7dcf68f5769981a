//! Three operators who form a network by exchanging files, as the documentation tells them to.

use std::fs;
use std::path::{Path, PathBuf};

use lockstep_testkit::http::{get, local, post_message};
use lockstep_testkit::ports::free_port;
use lockstep_testkit::process::{NodeProcess, run};
use lockstep_testkit::wait::eventually;
use serde_json::Value;

use crate::{SOON, binary};

struct Operator {
    home: PathBuf,
    http_port: u16,
}

fn operator(directory: &Path, name: &str) -> Operator {
    let (home, http_port, p2p_port) = (directory.join(name), free_port(), free_port());
    let home_text = home.display().to_string();
    let p2p = format!("/ip4/127.0.0.1/tcp/{p2p_port}");
    let (url, listen) = (format!("http://127.0.0.1:{http_port}"), format!("127.0.0.1:{http_port}"));
    let arguments = ["init", "--home", &home_text, "--name", name, "--p2p-address", &p2p, "--http-url", &url];
    run(binary(), arguments.into_iter().chain(["--http-listen", &listen]));
    for file in ["config.toml", "node.key", "task.key", "member.json", "store"] {
        assert!(home.join(file).exists(), "{file}");
    }
    let member = fs::read_to_string(home.join("member.json")).unwrap();
    for secret in ["node.key", "task.key"] {
        let secret = fs::read_to_string(home.join(secret)).unwrap();
        assert!(!member.contains(secret.trim()), "the public part has a secret");
    }
    Operator { home, http_port }
}

/// What the operator at a place runs, naming the members in an order of his own.
fn form(operators: &[Operator], at: usize, order: &[usize]) -> String {
    let home = operators[at].home.display().to_string();
    let mut arguments = vec!["init".to_owned(), "--home".into(), home, "--network".into(), "garden".into()];
    for place in order {
        arguments.push("--member".into());
        arguments.push(operators[*place].home.join("member.json").display().to_string());
    }
    arguments.push("--allow-unknown-projects".into());
    arguments.push("--public-payloads".into());
    run(binary(), arguments)
}

fn status(port: u16) -> Option<Value> {
    let url = format!("http://127.0.0.1:{port}");
    let output = std::process::Command::new(binary()).args(["status", "--json", "--url", &url]).output().unwrap();
    output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
}

fn device_arguments<'a>(command: &'a str, key: &'a str, data: &'a str) -> [&'a str; 9] {
    [command, "--key-file", key, "--project", "7", "--project-version", "0.1", "--data", data]
}

#[tokio::test]
async fn three_operators_form_the_same_network_whatever_order_they_name_the_members_in() {
    let directory = tempfile::tempdir().unwrap();
    let operators = ["ann", "bob", "cem"].map(|name| operator(directory.path(), name));
    let said = [[0, 1, 2], [2, 0, 1], [1, 2, 0]].iter().enumerate().map(|(at, order)| form(&operators, at, order));
    let ids: Vec<String> =
        said.map(|text| text.lines().find(|line| line.starts_with("id ")).unwrap().to_owned()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let files: Vec<String> =
        operators.iter().map(|o| fs::read_to_string(o.home.join("genesis.json")).unwrap()).collect();
    assert!(files.iter().all(|file| *file == files[0]));

    let mut nodes: Vec<NodeProcess> =
        operators.iter().map(|o| NodeProcess::new(binary(), &o.home, &o.home.with_extension("log"))).collect();
    nodes.iter_mut().for_each(NodeProcess::start);
    for operator in &operators {
        eventually("the node knows a leader and both others", SOON, async || {
            let status = status(operator.http_port).ok_or("no status")?;
            let connected = status["peers"].as_array().unwrap().iter().filter(|peer| peer["connected"] == true).count();
            let ready = get(local(operator.http_port), "/readyz").await.status == 200;
            if connected == 2 && status["leader"].is_object() && ready { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    }
    submit_to_each(directory.path(), &operators).await;
    nodes.iter().for_each(NodeProcess::assert_no_panic);
}

async fn submit_to_each(directory: &Path, operators: &[Operator]) {
    let key = directory.join("device.key").display().to_string();
    for (at, operator) in operators.iter().enumerate() {
        let (url, data) = (format!("http://127.0.0.1:{}", operator.http_port), format!("reading {at}"));
        let mut arguments = device_arguments("submit", &key, &data).to_vec();
        arguments.extend(["--url", &url]);
        if at == 0 {
            arguments.push("--new-key");
        }
        let answer: Value = serde_json::from_str(&run(binary(), arguments)).unwrap();
        assert_eq!((&answer["sequence"], &answer["duplicate"]), (&(at + 1).into(), &false.into()), "{answer}");

        // The same by `sign` and any HTTP client, at another node.
        let body = run(binary(), device_arguments("sign", &key, &data));
        let other = local(operators[(at + 1) % operators.len()].http_port);
        // A node that has not applied it yet gives the same position, and cannot know that it was given before.
        let applied = get(other, &format!("/api/status?min_sequence={}", at + 1)).await;
        assert_eq!(applied.status, 200, "{}", applied.text());
        let again = post_message(other, body.as_bytes()).await.json();
        assert_eq!((&again["messageID"], &again["duplicate"]), (&answer["messageID"], &true.into()), "{again}");
    }
    let unsigned = br#"{"projectID":7,"projectVersion":"0.1","data":"x"}"#;
    let refused = post_message(local(operators[0].http_port), unsigned).await;
    assert_eq!(refused.status, 400, "this network takes no unsigned messages: {}", refused.text());
    for operator in operators {
        eventually("the node has all messages", SOON, async || {
            let status = status(operator.http_port).ok_or("no status")?;
            if status["head"]["sequence"] == operators.len() { Ok(()) } else { Err(status["head"].to_string()) }
        })
        .await;
    }
}
