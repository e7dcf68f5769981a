//! An output that nobody feeds any more, and what the network keeps for it.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_testkit::cluster::{Cluster, ClusterOptions, change_config, open_params};
use lockstep_testkit::http::{get, post_message};
use lockstep_testkit::load::device_key;
use lockstep_testkit::outputs::count_sqlite;
use lockstep_testkit::wait::eventually;
use lockstep_types::genesis::{AGE_MS_MAX, RETRY_MARGIN_MS, RETRY_WINDOW_MS_MIN};
use lockstep_types::{NetworkParams, ProjectId, ProjectSettings, Retention};
use serde_json::Value;

use crate::{SOON, binary};

/// What the network keeps, and the least that a retry window allows.
const AGE_MS: u64 = RETRY_WINDOW_MS_MIN + RETRY_MARGIN_MS + AGE_MS_MAX;
/// For a horizon to go on: the age, and some looks at what can be forgotten.
const FORGETS_WITHIN: Duration = Duration::from_secs(120);

fn run(arguments: &[&str]) -> Result<String, String> {
    let out = Command::new(binary()).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if out.status.success() { Ok(text(out.stdout)) } else { Err(text(out.stderr)) }
}

fn outputs(home: &Path, arguments: &[&str]) -> Result<String, String> {
    run(&[&["outputs"], arguments, &["--home", home.to_str().unwrap()]].concat())
}

/// A message, and with it a batch and a task.
async fn send(cluster: &Cluster, number: u64) -> Result<(), String> {
    let text = format!("reading {number}");
    let body = lockstep_identity::sign_body(&device_key(1, 0), ProjectId(7), "0.1", &text);
    let answer = post_message(cluster.node(0).address(), body.as_bytes()).await;
    if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
}

async fn status(cluster: &Cluster, node: usize) -> Value {
    get(cluster.node(node).address(), "/api/status").await.json()
}

/// Sends messages until every node says what it should.
async fn sends_until(cluster: &Cluster, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    static SENT: AtomicU64 = AtomicU64::new(1_000);
    eventually(what, FORGETS_WITHIN, async || {
        send(cluster, SENT.fetch_add(1, Ordering::Relaxed)).await?;
        for node in 0..3 {
            let status = status(cluster, node).await;
            if !holds(&status) {
                return Err(format!("node {node}: {status}"));
            }
        }
        Ok(status(cluster, 0).await)
    })
    .await
}

fn oldest_height(status: &Value) -> u64 {
    status["head"]["oldest_height"].as_u64().unwrap()
}

fn complains(status: &Value, of: &str) -> bool {
    status["complaints"].as_array().unwrap().iter().any(|complaint| complaint.as_str().unwrap().contains(of))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_is_gone_is_named_is_removed_and_comes_back_only_when_it_is_added_anew() {
    let params = NetworkParams {
        retention: Retention { age_ms: AGE_MS, ..Retention::default() },
        default_project: ProjectSettings { retry_window_ms: RETRY_WINDOW_MS_MIN, ..ProjectSettings::open() },
        ..open_params()
    };
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(3).with_params(params));
    let shared = cluster.directory().join("old.sqlite");
    let path = shared.to_str().unwrap().to_owned();
    let section = format!("\n[[output]]\nname = \"old\"\nscope = \"network\"\nkind = \"sqlite\"\npath = \"{path}\"\n");
    let homes: Vec<_> = (0..3).map(|node| cluster.node(node).process.home().to_owned()).collect();
    for home in &homes {
        change_config(home, |text| format!("{text}{section}"));
    }
    cluster.start_all().await;
    for number in 1..=5 {
        eventually("a message is ordered", SOON, async || send(&cluster, number).await).await;
    }
    // The two that do not feed it know from the log.
    eventually("the log knows that it has all tasks", SOON, async || {
        for home in &homes {
            let said = outputs(home, &["status", "old"])?;
            if !said.contains("last task 5, lag 0") {
                return Err(said);
            }
        }
        Ok(())
    })
    .await;

    // No node feeds it any more, and nobody has said that it is gone: it could come back.
    for (node, home) in homes.iter().enumerate() {
        change_config(home, |text| text.replace(&section, ""));
        assert!(cluster.restart(node, SOON).await.success());
        cluster.wait_ready(node, SOON).await;
    }
    let is_held = |status: &Value| status["held_back"]["output"] == "old" && complains(status, "outputs remove old");
    let held = sends_until(&cluster, "all nodes name what holds the horizon", is_held).await;
    assert_eq!(held["held_back"]["next_task"], 6, "{held}");
    let kept = held["held_back"]["height"].as_u64().unwrap();
    assert!(oldest_height(&held) <= kept, "{held}");
    let said = run(&["status", "--url", &cluster.node(1).url()]).unwrap();
    assert!(said.contains(&format!("kept     from height {kept} on for output old")), "{said}");
    let said = outputs(&homes[1], &["status"]).unwrap();
    assert!(said.contains("old (of the network): not in this node's config.toml, last task 5"), "{said}");

    assert!(outputs(&homes[1], &["remove", "nowhere"]).unwrap_err().contains("nowhere"));
    let own = held["outputs"][0]["name"].as_str().unwrap();
    assert!(outputs(&homes[0], &["remove", own]).unwrap_err().contains("take it out of config.toml"));
    outputs(&homes[1], &["remove", "old"]).unwrap();
    let goes_on = |status: &Value| oldest_height(status) > kept && status.get("held_back").is_none();
    let mut seen = sends_until(&cluster, "the horizon goes on", goes_on).await;

    // A node whose configuration still names it, after a restart and after a crash.
    change_config(&homes[2], |text| format!("{text}{section}"));
    for crash in [false, true] {
        match crash {
            true => {
                cluster.kill(2);
                cluster.start_node(2);
            }
            false => assert!(cluster.restart(2, SOON).await.success()),
        }
        cluster.wait_ready(2, SOON).await;
        let head = seen["head"]["height"].as_u64().unwrap();
        let goes_on = |status: &Value| oldest_height(status) > head && status.get("held_back").is_none();
        seen = sends_until(&cluster, "the horizon goes on with a node that names it", goes_on).await;
        let named = status(&cluster, 2).await;
        let views = named["outputs"].as_array().unwrap();
        let view = views.iter().find(|output| output["name"] == "old").unwrap();
        assert!(view["removed"] == true && view["error"].as_str().unwrap().contains("take it out"), "{named}");
        assert!(complains(&named, "output old was removed"), "{named}");
        assert_eq!(count_sqlite(&shared).unwrap(), 5);
    }
    assert!(outputs(&homes[2], &["pause", "old"]).unwrap_err().contains("was removed"));
    for home in &homes {
        let said = outputs(home, &["status"]).unwrap();
        assert!(said.contains("old (of the network): removed"), "{said}");
    }

    // Added at one node, and fed by the one that has had it in its configuration since.
    let add = ["add", "old", "--scope", "network", "--kind", "sqlite", "--path", &path];
    let said = outputs(&homes[0], &add).unwrap();
    assert!(said.contains("added anew"), "{said}");
    eventually("a message is ordered", SOON, async || send(&cluster, 6).await).await;
    let view = async |node: usize| {
        let status = status(&cluster, node).await;
        status["outputs"].as_array().unwrap().iter().find(|output| output["name"] == "old").cloned()
    };
    eventually("it has all tasks that are kept", SOON, async || {
        let view = view(2).await.unwrap();
        let is_fed = view["lag"] == 0 && view.get("removed").is_none() && view.get("error").is_none();
        if is_fed && count_sqlite(&shared).unwrap() > 5 { Ok(()) } else { Err(view.to_string()) }
    })
    .await;
    eventually("the log knows how far it is", SOON, async || {
        let said = outputs(&homes[1], &["status"]).unwrap();
        if said.contains("not in this node's config.toml, last task") { Ok(()) } else { Err(said) }
    })
    .await;

    // Whoever checks a node's directory knows the records of all this.
    outputs(&homes[1], &["remove", "old"]).unwrap();
    cluster.terminate(1);
    cluster.node_mut(1).process.ended(SOON).await;
    let checked = run(&["verify", "--home", homes[1].to_str().unwrap()]).unwrap();
    assert!(checked.contains("GOOD") && !checked.contains("kinds"), "{checked}");
    cluster.assert_no_panics();
}
