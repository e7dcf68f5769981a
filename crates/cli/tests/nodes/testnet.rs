//! A network to try things out with, and the load generator.

use std::fs;
use std::path::Path;

use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::process::run;
use serde_json::Value;

use crate::binary;

#[test]
fn a_test_network_comes_up_with_its_devices_says_where_it_is_and_leaves_no_process_behind() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("net").display().to_string();
    let arguments = ["testnet", "up", "--nodes", "3", "--home", &home, "--http-base-port", "0", "--for", "4"];
    let printed = run(binary(), arguments.into_iter().chain(["--devices", "10", "--rate", "100"]));
    println!("{printed}");
    assert!(printed.lines().any(|line| line == "ready"), "{printed}");
    assert!(printed.contains(" 0 refused, 0 unknown"), "{printed}");
    let list = fs::read_to_string(Path::new(&home).join("testnet.json")).unwrap();
    let nodes: Vec<Value> = serde_json::from_str(&list).unwrap();
    assert_eq!(nodes.len(), 3);
    for node in nodes {
        for member in ["id", "pid", "home", "http", "grpc", "p2p", "peer_id"] {
            assert!(!node[member].is_null(), "no {member} in {node}");
        }
        let left = fs::read_to_string(format!("/proc/{}/cmdline", node["pid"])).unwrap_or_default();
        assert!(!left.contains(node["home"].as_str().unwrap()), "{node} still runs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_load_generator_counts_what_the_network_has() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    let urls = cluster.urls().join(",");
    let arguments = ["bench", "--urls", &urls, "--concurrency", "16", "--seconds", "3", "--payload", "128"];
    let report: Value = serde_json::from_str(&run(binary(), arguments)).unwrap();
    println!("{report:#}");
    let acknowledged = report["acknowledged"].as_u64().unwrap();
    assert_eq!(report["errors"], 0);
    assert!(acknowledged > 0);
    let head = cluster.wait_head_equal(crate::SOON).await;
    assert!(head.sequence.0 >= acknowledged, "{acknowledged} acknowledged, {} ordered", head.sequence);
    cluster.assert_no_panics();
}
