//! Every kind of output at once, while leaders are killed.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lockstep_testkit::cluster::{Cluster, ClusterOptions, change_config, open_params};
use lockstep_testkit::da::{Kind, NAMESPACE, Server, TOKEN};
use lockstep_testkit::history::History;
use lockstep_testkit::http::get;
use lockstep_testkit::load::{Load, LoadOptions};
use lockstep_testkit::outputs::count_sqlite;
use lockstep_testkit::postgres::Postgres;
use lockstep_testkit::process::{Limits, run_limited};
use lockstep_testkit::wait::eventually;
use lockstep_types::{NetworkParams, ProjectSettings};
use serde_json::Value;

use crate::steps::more_messages;
use crate::{SOON, binary};

/// Leader kills where nobody asks for more; two minutes of them are 24.
const KILLS: usize = 4;
/// From one kill to the next.
const KILL_EVERY: Duration = Duration::from_secs(5);
/// Longest that one audit may take.
const AUDIT_MAX: Duration = Duration::from_secs(300);

/// Sections of config.toml, with the files that they name.
fn sections(shared: &str, servers: &[Server], nats: &str) -> (String, Vec<(String, String)>) {
    let mut text = format!(
        "\n[[output]]\nname = \"sprout-file\"\nscope = \"node\"\nkind = \"sqlite\"\npath = \"sprout.sqlite\"\nlayout = \"sprout\"\n\
         \n[[output]]\nname = \"sprout\"\nscope = \"network\"\nkind = \"postgres\"\ndsn_file = \"postgres.dsn\"\nschema = \"sprout\"\nlayout = \"sprout\"\n\
         \n[[output]]\nname = \"objects\"\nscope = \"network\"\nkind = \"object\"\nurl = \"file:{shared}\"\n\
         \n[[output]]\nname = \"nats\"\nscope = \"network\"\nkind = \"nats\"\nurl_file = \"nats.url\"\nreplicas = 3\n"
    );
    let mut files = vec![("nats.url".to_owned(), nats.to_owned()), ("celestia.token".to_owned(), TOKEN.to_owned())];
    for server in servers {
        let (name, settings) = match server.kind {
            Kind::Keccak => ("keccak", "kind = \"altda\"\nmode = \"keccak\"".to_owned()),
            Kind::Generic => ("generic", "kind = \"altda\"\nmode = \"generic\"".to_owned()),
            Kind::Celestia => (
                "celestia",
                format!("kind = \"celestia\"\nnamespace = \"{NAMESPACE}\"\ntoken_file = \"celestia.token\""),
            ),
        };
        text +=
            &format!("\n[[output]]\nname = \"{name}\"\nscope = \"network\"\nurl_file = \"{name}.url\"\n{settings}\n");
        files.push((format!("{name}.url"), server.url.clone()));
    }
    (text, files)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_are_killed_and_every_output_has_each_task_as_the_chain_has_it() {
    let kills: usize = std::env::var("LOCKSTEP_OUTPUT_KILLS").map_or(KILLS, |text| text.parse().expect("a number"));
    let (postgres, nats) = (Postgres::start(), lockstep_testkit::nats::Nats::start());
    let servers = [Kind::Keccak, Kind::Generic, Kind::Celestia].map(Server::start);
    // Tasks of several messages that reach back to earlier batches.
    let default_project = ProjectSettings { group_messages_max: 2, group_age_max_ms: 300, ..ProjectSettings::open() };
    let params = NetworkParams { default_project, ..open_params() };
    let options = ClusterOptions::of(3).with_params(params).with_postgres(postgres.dsn());
    let mut cluster = Cluster::prepare(binary(), options);
    let shared = cluster.directory().join("shared-blobs");
    let (sections, files) = sections(&shared.display().to_string(), &servers, &nats.urls().replace(',', "\n"));
    for node in 0..3 {
        let home = cluster.node(node).process.home().to_owned();
        change_config(&home, |text| format!("{text}{sections}"));
        files.iter().for_each(|(name, text)| std::fs::write(home.join(name), text).unwrap());
    }
    cluster.start_all().await;
    // Stores without a cursor are read where the log says that tasks are.
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, 200).await;
    for _ in 0..kills {
        let next = tokio::time::Instant::now() + KILL_EVERY;
        let leader = cluster.wait_leader(SOON).await;
        cluster.kill(leader);
        more_messages(&history, 20).await;
        cluster.start_node(leader);
        cluster.wait_ready(leader, SOON).await;
        tokio::time::sleep_until(next).await;
    }
    load.stop().await;

    let tasks = eventually("every output has every task", SOON * 6, async || {
        let (mut lags, mut lacking) = (BTreeMap::<String, Vec<Value>>::new(), 0);
        for node in 0..3 {
            let status = get(cluster.node(node).address(), "/api/status").await.json();
            for output in status["outputs"].as_array().unwrap() {
                lacking += u64::from(output["lag"] != 0);
                let name = output["name"].as_str().unwrap().to_owned();
                lags.entry(name).or_default().push(output["lag"].clone());
            }
        }
        let tasks = count_sqlite(&cluster.sqlite(0)).map_err(|e| e.to_string())?;
        let packed = history.acknowledged() as u64 <= 2 * tasks;
        if lacking == 0 && lags.len() == 9 && packed { Ok(tasks) } else { Err(format!("{tasks} tasks, lags {lags:?}")) }
    })
    .await;
    println!("{kills} leaders killed, {} messages, {tasks} tasks", history.acknowledged());

    let home = cluster.node(0).process.home().to_owned();
    let names = ["tasks", "w3bstream", "sprout-file", "sprout", "objects", "nats", "keccak", "generic", "celestia"];
    let mut wrong = Vec::new();
    for name in names {
        let mut command = Command::new(binary());
        command.args(["outputs", "audit", name, "--json", "--home"]).arg(&home);
        let output = run_limited(&mut command, Limits::default(), AUDIT_MAX);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let found: Value = serde_json::from_str(&said).unwrap_or_default();
        println!("audit of {name}: {:?}, {} good of {tasks}", output.status.code(), found["good"]);
        if output.status.code() != Some(0) || found["good"].as_u64() < Some(tasks) {
            wrong.push(format!("{name}: {said}{}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // At least once, in identical bytes: whoever put a part in a second time put the same in.
    for server in &servers {
        let puts = server.held.lock().puts.clone();
        let distinct: BTreeSet<_> = puts.iter().collect();
        let parts: BTreeSet<u64> = server.blobs().iter().map(|blob| blob.tasks[0].number.0).collect();
        println!("{:?}: {} blobs put in, {} different", server.kind, puts.len(), distinct.len());
        assert_eq!(distinct.len(), parts.len(), "{:?}", server.kind);
    }
    cluster.assert_no_panics();
}
