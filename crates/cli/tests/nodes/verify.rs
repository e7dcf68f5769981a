//! `lockstep verify`, as an operator and a reader use it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lockstep_testkit::cluster::{Cluster, ClusterOptions, open_params};
use lockstep_testkit::http::{get, post_message};
use lockstep_testkit::load::device_key;
use lockstep_testkit::process::{Limits, run_limited, text_of};
use lockstep_testkit::wait::eventually;
use lockstep_types::genesis::{AGE_MS_MAX, RETRY_MARGIN_MS};
use lockstep_types::{NetworkParams, ProjectId, ProjectSettings, Retention};

use crate::rules_examples::{params_with, rules_are_known, set_rules};
use crate::{SOON, binary};

/// A project with rules.
const WITH_RULES: u64 = 8;

/// What the command says, and its exit code.
fn verify(arguments: &[&str]) -> (String, Option<i32>) {
    let mut command = Command::new(binary());
    command.arg("verify").args(arguments);
    let output = run_limited(&mut command, Limits::default(), Duration::from_secs(60));
    (text_of(&output), output.status.code())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The newest file of a directory with this in its name.
fn file_of(directory: &Path, part: &str) -> PathBuf {
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|file| text(file).contains(part)).max().unwrap_or_else(|| panic!("no {part} in {directory:?}"))
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_is_checked_while_it_runs_and_a_node_when_it_is_stopped() {
    let hidden = ProjectSettings { public: false, ..ProjectSettings::open() };
    let params = NetworkParams {
        public_payloads: false,
        default_project: ProjectSettings { public: true, group_messages_max: 3, ..ProjectSettings::open() },
        projects: [(ProjectId(8), hidden)].into(),
        ..open_params()
    };
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3).with_params(params)).await;
    // Two changes of the members: a fourth node is admitted, and gets a vote.
    cluster.add_node().await;
    let mut last = String::new();
    for i in 0..30_usize {
        let project = ProjectId(7 + u64::from(i == 20));
        let body = lockstep_identity::sign_body(&device_key(1, i % 4), project, "0.1", &format!("reading {i}"));
        let answer = post_message(cluster.node(i % 3).address(), body.as_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        last = answer.json()["messageID"].as_str().unwrap().to_owned();
    }

    // A proof of the last message, for whoever has the genesis.
    let path = format!("/api/proofs/{last}");
    let address = cluster.node(1).address();
    let proof = eventually("the last message is final", SOON, async || {
        let answer = get(address, &path).await;
        // Another node took it in, so this one may not have it yet.
        assert!([200, 404, 503].contains(&answer.status), "{}", answer.text());
        if answer.status == 200 { Ok(answer.text()) } else { Err(answer.text()) }
    })
    .await;
    let (directory, home) = (cluster.directory().to_owned(), cluster.node(0).process.home().to_owned());
    let (proof_file, data_file) = (directory.join("proof.json"), directory.join("data"));
    let genesis = home.join("genesis.json");
    std::fs::write(&proof_file, &proof).unwrap();
    std::fs::write(&data_file, "reading 29").unwrap();
    let of_proof = ["--proof", text(&proof_file), "--genesis", text(&genesis), "--data", text(&data_file)];
    let (said, code) = verify(&of_proof);
    assert!(code == Some(0) && said.contains("sequence 30 of network") && said.contains("is the message's"), "{said}");
    std::fs::write(&data_file, "reading 28").unwrap();
    let (said, code) = verify(&of_proof);
    assert!(code == Some(1) && said.contains("the data is not that of the message"), "{said}");
    std::fs::write(&proof_file, proof.replacen("\"sequence\":30", "\"sequence\":29", 1)).unwrap();
    let (said, code) = verify(&of_proof[..4]);
    assert!(code == Some(1) && said.contains("NOT GOOD: the proof"), "{said}");

    // The whole history of a running node; one message is not shown to strangers.
    let url = cluster.node(2).url();
    let (said, code) = verify(&["--url", &url, "--genesis", text(&genesis)]);
    assert!(code == Some(0) && said.contains("messages  30") && said.contains("4 voters"), "{said}");
    assert!(said.contains("changed 2 times since genesis"), "{said}");
    assert!(said.contains("1 messages: the node does not show their payloads"), "{said}");
    assert_eq!(get(address, "/api/proofs/0x00").await.status, 400);
    assert_eq!(get(address, &format!("/api/proofs/{}", "ab".repeat(32))).await.status, 404);

    // A home, first of a node that runs.
    let (said, code) = verify(&["--home", text(&home)]);
    assert!(code == Some(2) && said.contains("a node runs on"), "{said}");
    cluster.terminate(0);
    cluster.node_mut(0).process.ended(SOON).await;
    let (said, code) = verify(&["--home", text(&home)]);
    assert!(code == Some(0) && said.contains("GOOD") && said.contains("messages  30"), "{said}");
    assert!(said.contains("from the genesis to height") && !said.contains("note"), "{said}");

    // Damage, with the part that it is in and the way out.
    let table = file_of(&home.join("store/state"), ".sst");
    flip(&table, 100);
    let (said, code) = verify(&["--home", text(&home)]);
    assert!(code == Some(1) && said.contains("the state: ") && said.contains("lockstep rebuild"), "{said}");
    flip(&table, 100);
    let entry = file_of(&home.join("store/log"), ".log");
    flip(&entry, 300);
    let (said, code) = verify(&["--home", text(&home)]);
    assert!(code == Some(1) && said.contains("the log: ") && said.contains("under a new"), "{said}");
    // The node itself does not start on it either.
    cluster.start_node(0);
    cluster.node_mut(0).process.ended(SOON).await;
    let process = &cluster.node(0).process;
    assert!(process.log().contains("is damaged at byte"), "{}", process.log_tail());
    flip(&entry, 300);
    let (said, code) = verify(&["--home", text(&home)]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(verify(&["--home", text(&directory.join("nowhere"))]).1, Some(2));
    assert_eq!(verify(&["--url", "http://127.0.0.1:1", "--genesis", text(&genesis)]).1, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_whose_beginning_was_forgotten_is_checked_from_what_is_kept() {
    let default_project = ProjectSettings { retry_window_ms: 6_000, ..ProjectSettings::open() };
    let retention = Retention { age_ms: 6_000 + RETRY_MARGIN_MS + AGE_MS_MAX, ..Retention::default() };
    let mut params = NetworkParams { retention, allow_unknown_projects: true, ..params_with(&[WITH_RULES]) };
    params.projects.insert(ProjectId(WITH_RULES), default_project.clone());
    params.default_project = default_project;
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(1).with_params(params)).await;
    // The changes of the members are kept, and lead from the genesis to what is.
    cluster.add_node().await;
    let (address, url) = (cluster.node(0).address(), cluster.node(0).url());
    let device = device_key(1, 0);
    let rules = cluster.directory().join("rules.toml");
    std::fs::write(&rules, "version = 1\n[aggregate]\nby = \"project\"\ncount = 9000\nage_ms = 2000000000\n").unwrap();
    eventually("the rules are set", SOON, async || set_rules(&cluster, WITH_RULES, &rules)).await;
    rules_are_known(&cluster, WITH_RULES).await;
    // It would wait in its group for three weeks.
    let body = lockstep_identity::sign_body(&device, ProjectId(WITH_RULES), "0.1", "{\"n\":1}");
    let answer = post_message(address, body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let waits = cluster.status(0).await.unwrap().head.height.0;
    let mut sent = 0;
    let first = eventually("the first batch is forgotten", Duration::from_secs(60), async || {
        sent += 1;
        let body = lockstep_identity::sign_body(&device, ProjectId(7), "0.1", &format!("reading {sent}"));
        let answer = post_message(address, body.as_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let page = get(address, &format!("/api/export?from={}", waits + 2)).await;
        if page.status == 410 { Ok(page.text()) } else { Err(format!("{sent} messages")) }
    })
    .await;
    assert!(first.contains("\"pruned\""), "{first}");
    let genesis = cluster.node(0).process.home().join("genesis.json");
    let (said, code) = verify(&["--url", &url, "--genesis", text(&genesis)]);
    assert!(code == Some(0) && said.contains(" from height ") && said.contains("changed 2 times"), "{said}");
    // And a group of several devices that is open while it is checked.
    for device in 1..3 {
        let data = format!("{{\"n\":{device}}}");
        let body = lockstep_identity::sign_body(&device_key(device, 0), ProjectId(WITH_RULES), "0.1", &data);
        assert_eq!(post_message(address, body.as_bytes()).await.status, 200);
    }
    let home = cluster.node(0).process.home().to_owned();
    cluster.terminate(0);
    cluster.node_mut(0).process.ended(SOON).await;
    let (said, code) = verify(&["--home", text(&home)]);
    assert!(code == Some(0) && said.contains(" from height ") && said.contains("changed 2 times"), "{said}");
}
