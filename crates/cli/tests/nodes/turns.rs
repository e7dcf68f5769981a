//! Outputs of the network that not every node has.

use std::sync::Arc;

use lockstep_testkit::cluster::{Cluster, ClusterOptions, change_config};
use lockstep_testkit::history::History;
use lockstep_testkit::http::get;
use lockstep_testkit::load::{Load, LoadOptions};
use lockstep_testkit::outputs::{count_sqlite, read_sqlite};
use lockstep_testkit::wait::eventually;
use serde_json::Value;

use crate::steps::more_messages;
use crate::{SOON, binary};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_an_output_of_the_network_does_not_hold_it_up_and_all_nodes_know_where_tasks_are() {
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(3));
    let shared = cluster.directory().join("shared.sqlite");
    // Two of three have it, so that whoever leads next, one is left.
    for node in 0..2 {
        let home = cluster.node(node).process.home().to_owned();
        change_config(&home, |text| {
            let path = shared.display();
            format!(
                "{text}\n[[output]]\nname = \"shared\"\nscope = \"network\"\nkind = \"sqlite\"\npath = \"{path}\"\n"
            )
        });
    }
    cluster.start_all().await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    // Leaders change until the one without the output has led.
    let mut led = Vec::new();
    while !led.contains(&2) || led.len() < 3 {
        assert!(led.len() < 30, "node 3 never leads: {led:?}");
        more_messages(&history, 50).await;
        let leader = cluster.wait_leader(SOON).await;
        led.push(leader);
        if leader == 2 {
            let before = count_sqlite(&shared).unwrap_or(0);
            eventually("the output gets on although its leader does not have it", SOON, async || {
                let now = count_sqlite(&shared).map_err(|e| e.to_string())?;
                if now > before + 50 { Ok(()) } else { Err(format!("{before} and {now} tasks")) }
            })
            .await;
        }
        cluster.kill(leader);
        more_messages(&history, 20).await;
        cluster.start_node(leader);
        cluster.wait_ready(leader, SOON).await;
    }
    load.stop().await;
    let tasks = eventually("every task is there", SOON * 2, async || {
        let tasks = count_sqlite(&cluster.sqlite(0)).map_err(|e| e.to_string())?;
        let have = count_sqlite(&shared).map_err(|e| e.to_string())?;
        let mut lags = Vec::new();
        for node in 0..3 {
            let status = get(cluster.node(node).address(), "/api/status").await.json();
            lags.extend(status["outputs"].as_array().unwrap().iter().map(|output| output["lag"].clone()));
        }
        let all = have == tasks && lags.iter().all(|lag| *lag == 0);
        if all { Ok(tasks) } else { Err(format!("{have} of {tasks} tasks, lags {lags:?}")) }
    })
    .await;

    // What another node published without having told anyone is found out by the next.
    let rows = read_sqlite(&shared, "shared").unwrap();
    assert_eq!(rows.tasks.len() as u64, tasks);
    println!("{tasks} tasks, leaders {led:?}");
    // A follower hears of the newest entries with the next heartbeat.
    eventually("every node knows where every task is", SOON, async || {
        let mut untold = Vec::new();
        for task in &rows.tasks {
            for node in 0..3 {
                let view = get(cluster.node(node).address(), &format!("/api/tasks/{}", task.id)).await.json();
                let receipts = view["receipts"].as_array().cloned().unwrap_or_default();
                let place = |receipt: &Value| receipt["output"] == "shared" && receipt["stage"] == "final";
                match receipts.iter().find(|receipt| place(receipt)) {
                    Some(receipt) => assert_eq!(receipt["locator"], "sqlite:tasks", "{view}"),
                    None => untold.push((node, task.number.0)),
                }
            }
        }
        if untold.is_empty() { Ok(()) } else { Err(format!("without a receipt: {untold:?}; leaders {led:?}")) }
    })
    .await;
    cluster.assert_no_panics();
}
