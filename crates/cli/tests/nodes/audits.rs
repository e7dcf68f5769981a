//! Outputs that are added to a network, how they fill, and what audits say of them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lockstep_testkit::cluster::{Cluster, ClusterOptions, open_params};
use lockstep_testkit::history::History;
use lockstep_testkit::http::get;
use lockstep_testkit::load::{Load, LoadOptions};
use lockstep_testkit::outputs::count_sqlite;
use lockstep_testkit::postgres::Postgres;
use lockstep_testkit::process::{Limits, run_limited};
use lockstep_testkit::wait::eventually;
use lockstep_types::{NetworkParams, ProjectSettings};
use rusqlite::Connection;
use serde_json::Value;
use tokio_postgres::NoTls;

use crate::steps::more_messages;
use crate::{SOON, binary};

/// Longest that one audit may take here.
const AUDIT_MAX: Duration = Duration::from_secs(60);
/// The outputs of the network of several nodes.
const OUTPUTS: [&str; 5] = ["tasks", "w3bstream", "sprout-file", "sprout", "blobs"];

fn outputs(home: &Path, arguments: &[&str]) -> (String, String, Option<i32>) {
    let mut command = Command::new(binary());
    command.arg("outputs").args(arguments).arg("--home").arg(home);
    let out = run_limited(&mut command, Limits::default(), AUDIT_MAX);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(out.stdout), text(out.stderr), out.status.code())
}

fn add(home: &Path, arguments: &[&str]) -> String {
    let (said, problem, code) = outputs(home, &[&["add"], arguments].concat());
    assert_eq!(code, Some(0), "{problem}");
    said
}

/// What an audit found, as JSON, and the exit code.
fn audit(home: &Path, name: &str, more: &[&str]) -> (Value, Option<i32>) {
    let (said, problem, code) = outputs(home, &[&["audit", name, "--json"], more].concat());
    let found = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}{problem}"));
    println!("{name}: {code:?} {found}\n{problem}");
    (found, code)
}

/// Whether an audit has found nothing wrong in so many tasks.
fn is_good(found: &(Value, Option<i32>), tasks: u64) -> bool {
    found.1 == Some(0) && found.0["good"] == tasks && found.0["findings"]["listed"] == serde_json::json!([])
}

/// Each finding: kind, first task, and in words.
fn listed(found: &Value) -> Vec<(String, Option<u64>, String)> {
    let finding = |f: &Value| {
        let words = |member: &str| f[member].as_str().unwrap().to_owned();
        (words("kind"), f["tasks"][0].as_u64(), words("what"))
    };
    found["findings"]["listed"].as_array().unwrap().iter().map(finding).collect()
}

async fn wait_all_published(cluster: &Cluster, outputs: usize, history: &History) -> u64 {
    eventually("every output has every task", SOON * 2, async || {
        let tasks = count_sqlite(&cluster.sqlite(0)).map_err(|e| e.to_string())?;
        let file = Connection::open(cluster.sqlite(0)).map_err(|e| e.to_string())?;
        let messages = file.query_row("SELECT count(*) FROM messages", [], |row| row.get::<_, i64>(0));
        // Groups that are not full yet become tasks when they are old enough.
        if messages.map_err(|e| e.to_string())? < history.acknowledged() as i64 {
            return Err(format!("{tasks} tasks, and some messages are in none yet"));
        }
        for node in 0..cluster.len() {
            let status = get(cluster.node(node).address(), "/api/status").await.json();
            let views = status["outputs"].as_array().unwrap().clone();
            if views.len() != outputs || views.iter().any(|output| output["lag"] != 0) || tasks == 0 {
                return Err(format!("{tasks} tasks, {views:?}"));
            }
        }
        Ok(tasks)
    })
    .await
}

async fn alter_postgres(dsn: &str, sql: &str) {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute(sql).await.unwrap();
}

fn alter_sqlite(path: &Path, sql: &str) {
    let file = Connection::open(path).unwrap();
    file.busy_timeout(SOON).unwrap();
    file.execute_batch(sql).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_finds_nothing_in_good_stores_and_names_every_row_that_was_touched() {
    let postgres = Postgres::start();
    // Tasks that reach back to earlier batches.
    let default_project = ProjectSettings { group_messages_max: 2, group_age_max_ms: 300, ..ProjectSettings::open() };
    let params = NetworkParams { default_project, ..open_params() };
    let options = ClusterOptions::of(3).with_params(params).with_postgres(postgres.dsn());
    let mut cluster = Cluster::prepare(binary(), options);
    let homes: Vec<_> = (0..3).map(|node| cluster.node(node).process.home().to_owned()).collect();
    for home in &homes {
        let said = add(home, &["sprout-file", "--kind", "sqlite", "--layout", "sprout", "--path", "sprout.sqlite"]);
        assert!(said.contains("the next start takes it up"), "{said}");
        let sprout = ["sprout", "--kind", "postgres", "--scope", "network", "--dsn-file", "postgres.dsn"];
        let said = add(home, &[&sprout[..], &["--schema", "sprout", "--layout", "sprout"]].concat());
        assert!(said.contains("at all nodes"), "{said}");
        add(home, &["blobs", "--kind", "object", "--url", "file:blobs"]);
    }
    cluster.start_all().await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, 600).await;
    load.stop().await;
    let tasks = wait_all_published(&cluster, OUTPUTS.len(), &history).await;
    // Of the leader and of others, also where they do not publish.
    for home in &homes[..2] {
        for name in OUTPUTS {
            let found = audit(home, name, &[]);
            assert!(is_good(&found, tasks), "{name}: {found:?}");
        }
    }
    let (home, dsn) = (&homes[0], postgres.dsn());
    assert_eq!(outputs(home, &["pause", "tasks"]).2, Some(0));
    assert!(is_good(&audit(home, "tasks", &["--from", "101"]), tasks - 100));
    let (said, problem, code) = outputs(home, &["audit", "nowhere"]);
    assert!(code == Some(2) && problem.contains("no output nowhere"), "{said}{problem}");
    let (said, problem, code) = outputs(home, &["audit", "tasks"]);
    assert!(code == Some(0) && said.contains("as they should be") && problem.contains("tasks"), "{said}{problem}");

    // Apinode: a payload, a task, a stranger's row, and what is left of a task.
    let of = |task: u64| {
        format!("(SELECT max(id) FROM messages WHERE task_id = (SELECT task_id FROM tasks WHERE id = {task}))")
    };
    let apinode = format!(
        "UPDATE messages SET data = (SELECT data FROM messages WHERE id = {}) WHERE id = {}; \
         UPDATE tasks SET project_id = 8 WHERE id = 20; \
         DELETE FROM messages WHERE task_id = (SELECT task_id FROM tasks WHERE id = 31); DELETE FROM tasks WHERE id = 31; \
         DELETE FROM tasks WHERE id = 33; \
         INSERT INTO messages (id, project_version) VALUES (90000000, 'theirs')",
        of(9),
        of(10)
    );
    alter_sqlite(&cluster.sqlite(0), &apinode);
    alter_postgres(&dsn, &apinode).await;
    for name in ["tasks", "w3bstream"] {
        let (found, code) = audit(home, name, &[]);
        let all = listed(&found);
        assert!(code == Some(1) && found["good"] == tasks - 4, "{found}");
        let is_listed = |kind: &str, task: Option<u64>, what: &str| {
            assert!(
                all.iter().any(|(k, t, w)| k == kind && *t == task && w.contains(what)),
                "{kind} {task:?}: {all:?}"
            );
        };
        is_listed("different", Some(10), "payload of message");
        is_listed("damaged", Some(20), "project_id");
        is_listed("missing", Some(31), "");
        is_listed("missing", Some(33), "");
        is_listed("stray", None, "row 90000000 of messages is of no task");
        let strays = all.iter().filter(|(kind, ..)| kind == "stray").count();
        assert!(strays == 2 || strays == 3, "{all:?}");
    }
    let (said, problem, code) = outputs(home, &["audit", "w3bstream"]);
    assert!(code == Some(1) && said.contains("task 31: missing") && problem.contains("NOT GOOD"), "{said}{problem}");
    assert!(!said.contains("task 9:"), "{said}");

    // Sprout: a client, a signature, a row that came twice.
    let of = |task: u64| of(task).replace("task_id", "internal_task_id");
    let sprout = format!(
        "UPDATE messages SET client_id = 'did:io:0x{}' WHERE internal_task_id = (SELECT internal_task_id FROM tasks WHERE id = 12); \
         UPDATE tasks SET signature = (SELECT signature FROM tasks WHERE id = 13) WHERE id = 14; \
         INSERT INTO messages (id, message_id, internal_task_id) SELECT 90000000, message_id, internal_task_id FROM messages WHERE id = {}",
        "5a".repeat(20),
        of(16)
    );
    alter_sqlite(&home.join("sprout.sqlite"), &sprout);
    alter_postgres(&dsn, &format!("SET search_path = sprout; {sprout}")).await;
    for name in ["sprout-file", "sprout"] {
        let (found, code) = audit(home, name, &[]);
        let all = listed(&found);
        assert!(code == Some(1) && found["good"] == tasks - 3 && all.len() == 3, "{found}");
        assert!(all[0].0 == "different" && all[0].1 == Some(12) && all[0].2.contains("device"), "{all:?}");
        assert_eq!(all[1], ("different".to_owned(), Some(14), "signature".to_owned()));
        assert!(all[2].0 == "damaged" && all[2].1 == Some(16), "{all:?}");
    }

    // Blobs: one that is gone.
    let mut links: Vec<_> =
        fs::read_dir(home.join("blobs/index")).unwrap().map(|entry| entry.unwrap().path()).collect();
    links.sort();
    let link: Value = serde_json::from_str(&fs::read_to_string(&links[links.len() / 2]).unwrap()).unwrap();
    fs::remove_file(home.join("blobs").join(link["blob"].as_str().unwrap())).unwrap();
    let (found, code) = audit(home, "blobs", &[]);
    let gone = link["last"].as_u64().unwrap() - link["first"].as_u64().unwrap() + 1;
    assert!(code == Some(1) && found["good"] == tasks - gone, "{found}");
    let all = listed(&found);
    assert!(all.len() == 1 && all[0].0 == "damaged" && all[0].1 == link["first"].as_u64(), "{all:?}");
    assert!(is_good(&audit(&homes[1], "blobs", &[]), tasks), "another node's store is its own");
    cluster.assert_no_panics();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_that_is_added_later_fills_from_the_oldest_task() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(1)).await;
    let home = cluster.node(0).process.home().to_owned();
    let history = Arc::new(History::new());
    let options = LoadOptions { clients: 64, period: Duration::from_millis(1), ..LoadOptions::of(cluster.urls()) };
    let load = Load::start(&options, &history);
    more_messages(&history, 4_000).await;
    load.stop().await;
    let tasks = wait_all_published(&cluster, 1, &history).await;

    let more = ["more", "--kind", "sqlite", "--path", "more.sqlite"];
    let refused = |arguments: &[&str], why: &str| {
        let before = fs::read(home.join("config.toml")).unwrap();
        let (said, problem, code) = outputs(&home, &[&["add"], arguments].concat());
        assert!(code == Some(2) && problem.contains(why), "{said}{problem}");
        assert_eq!(fs::read(home.join("config.toml")).unwrap(), before);
    };
    refused(&["more", "--kind", "tape"], "tape");
    refused(&["tasks", "--kind", "sqlite", "--path", "b"], "already");
    refused(&["more", "--kind", "sqlite", "--path", "nowhere/more.sqlite"], "cannot be reached");
    refused(&["more", "--kind", "sqlite", "--path", "tasks.sqlite", "--layout", "sprout"], "layout");
    let said = add(&home, &more);
    println!("{said}");
    assert!(said.contains("has no task") && said.contains("when it is started again"), "{said}");
    refused(&more, "already");
    assert!(outputs(&home, &["audit", "more"]).1.contains("no output more"));

    // Somebody watches while the node is started again.
    let watched = home.clone();
    let watching = tokio::task::spawn_blocking(move || outputs(&watched, &["status", "more", "--watch"]));
    assert!(cluster.restart(0, SOON).await.success());
    cluster.wait_ready(0, SOON).await;
    let (said, shown, code) = watching.await.unwrap();
    println!("{shown}{said}");
    assert!(code == Some(0) && said.contains(&format!("up to task {tasks}")), "{said}{shown}");
    assert_eq!(count_sqlite(&home.join("more.sqlite")).unwrap(), tasks);
    assert!(is_good(&audit(&home, "more", &[]), tasks));
    cluster.assert_no_panics();
}
