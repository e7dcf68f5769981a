//! Mistakes of operators: each ends the program at once, with one sentence that says what is wrong.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use lockstep_testkit::cluster::{Cluster, ClusterOptions, genesis_of};
use lockstep_testkit::process::{Limits, run, run_limited, text_of};
use lockstep_types::{Genesis, NetworkParams};

use crate::{SOON, binary};

/// Within this time the operator knows.
const WITHIN: Duration = Duration::from_secs(10);
/// Exit code for what an operator must change first.
const CONFIGURATION: i32 = 2;

/// Starts a node that cannot start; wants the reason in the last line that it prints, and no panic.
pub fn refuses_to_start(home: &Path, limits: Limits, reasons: &[&str]) -> i32 {
    let mut command = Command::new(binary());
    command.arg("start").arg("--home").arg(home);
    refuses(&run_limited(&mut command, limits, WITHIN), reasons)
}

fn refuses(output: &Output, reasons: &[&str]) -> i32 {
    let printed = text_of(output);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = errors.lines().last().unwrap_or_default().to_owned();
    println!("{}: {last}", output.status);
    assert!(!output.status.success(), "{printed}");
    assert!(!errors.contains("panicked at"), "{printed}");
    assert!(reasons.iter().any(|reason| last.contains(reason)), "none of {reasons:?} is in the last line:\n{printed}");
    output.status.code().unwrap_or_else(|| panic!("ended by a signal ({}):\n{printed}", output.status))
}

/// A network of `nodes` that never ran, and the home of its first node.
fn prepared(nodes: usize) -> (Cluster, PathBuf) {
    let cluster = Cluster::prepare(binary(), ClusterOptions::of(nodes));
    let home = cluster.node(0).process.home().to_owned();
    (cluster, home)
}

fn change(file: &Path, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(file).unwrap();
    fs::write(file, change(text)).unwrap();
}

#[test]
fn a_damaged_configuration_is_named_with_its_file() {
    let (_cluster, home) = prepared(1);
    let file = home.join("config.toml");
    let whole = fs::read_to_string(&file).unwrap();
    for (damage, reason) in [
        ("[http".to_owned(), "config.toml"),
        (String::new(), "config.toml"),
        (whole.replace("hold_ms", "hold_msec"), "hold_msec"),
        (whole.replace("\nheartbeat_ms = ", "\nheartbeat_ms = 9"), "three times"),
        (whole.replace("listen = \"127.0.0.1:", "listen = \"nowhere:"), "config.toml"),
    ] {
        assert_ne!(damage, whole);
        fs::write(&file, damage).unwrap();
        assert_eq!(refuses_to_start(&home, Limits::default(), &[reason]), CONFIGURATION);
    }
    fs::remove_file(&file).unwrap();
    assert_eq!(refuses_to_start(&home, Limits::default(), &["config.toml"]), CONFIGURATION);
}

#[test]
fn damaged_or_missing_keys_genesis_and_homes_are_named() {
    for (file, damage) in [("node.key", "12"), ("task.key", "xyz"), ("genesis.json", "{")] {
        let (_cluster, home) = prepared(1);
        fs::write(home.join(file), damage).unwrap();
        let reason = if file == "genesis.json" { "genesis" } else { file };
        assert_eq!(refuses_to_start(&home, Limits::default(), &[reason]), CONFIGURATION);
        fs::remove_file(home.join(file)).unwrap();
        assert_eq!(refuses_to_start(&home, Limits::default(), &[file]), CONFIGURATION);
    }
    let (cluster, _home) = prepared(1);
    let nowhere = cluster.directory().join("nowhere");
    assert_eq!(refuses_to_start(&nowhere, Limits::default(), &["lockstep init"]), CONFIGURATION);
}

#[test]
fn a_used_http_port_is_named() {
    let (cluster, home) = prepared(1);
    let port = cluster.node(0).http_port;
    let _used = TcpListener::bind(("127.0.0.1", port)).unwrap();
    refuses_to_start(&home, Limits::default(), &[&format!("127.0.0.1:{port}")]);
}

#[test]
fn a_used_p2p_port_is_named() {
    let (cluster, home) = prepared(1);
    let port = cluster.node(0).p2p_port;
    let _used = TcpListener::bind(("127.0.0.1", port)).unwrap();
    refuses_to_start(&home, Limits::default(), &[&format!("/tcp/{port}")]);
}

#[tokio::test]
async fn a_second_process_in_the_same_home_is_refused() {
    let cluster = Cluster::start(binary(), ClusterOptions::of(1)).await;
    let home = cluster.node(0).process.home().to_owned();
    refuses_to_start(&home, Limits::default(), &["another process runs on it"]);
    // Not even with ports of its own.
    let ports = [lockstep_testkit::ports::free_port(), lockstep_testkit::ports::free_port()];
    change(&home.join("config.toml"), |text| {
        text.replace(&cluster.node(0).http_port.to_string(), &ports[0].to_string())
            .replace(&cluster.node(0).p2p_port.to_string(), &ports[1].to_string())
    });
    refuses_to_start(&home, Limits::default(), &["another process runs on it"]);
    assert!(cluster.status(0).await.is_ok());
}

#[tokio::test]
async fn the_genesis_of_another_network_is_refused_by_init_and_by_start() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(1)).await;
    cluster.terminate(0);
    assert!(cluster.node_mut(0).process.ended(SOON).await.success());
    let home = cluster.node(0).process.home().to_owned();
    let members = genesis_of(&home).members;
    let other = Genesis::new("other", members, NetworkParams::default()).unwrap();
    let file = cluster.directory().join("other.json");
    fs::write(&file, other.to_text().unwrap()).unwrap();
    let mut command = Command::new(binary());
    command.arg("init").arg("--home").arg(&home).arg("--genesis").arg(&file);
    refuses(&run_limited(&mut command, Limits::default(), WITHIN), &["another genesis"]);
    fs::copy(&file, home.join("genesis.json")).unwrap();
    refuses_to_start(&home, Limits::default(), &["belongs to network"]);
}

#[test]
fn the_key_of_another_member_or_of_nobody_is_refused() {
    let (cluster, home) = prepared(2);
    fs::copy(cluster.node(1).process.home().join("node.key"), home.join("node.key")).unwrap();
    assert_eq!(
        refuses_to_start(&home, Limits::default(), &["not the one that this member joined with"]),
        CONFIGURATION
    );
    let (stranger, _) = prepared(1);
    fs::copy(stranger.node(0).process.home().join("node.key"), home.join("node.key")).unwrap();
    assert_eq!(refuses_to_start(&home, Limits::default(), &["is no first member"]), CONFIGURATION);
}

#[tokio::test]
async fn a_lost_store_is_not_made_again() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(1)).await;
    cluster.kill(0);
    let home = cluster.node(0).process.home().to_owned();
    fs::remove_dir_all(home.join("store")).unwrap();
    for _ in 0..2 {
        refuses_to_start(&home, Limits::default(), &["must join under a new id"]);
        assert!(!home.join("store").exists());
    }
    // Another store in its place is not taken either.
    let other = cluster.directory().join("other");
    run(binary(), ["init", "--home", &other.display().to_string(), "--name", "other"]);
    fs::rename(other.join("store"), home.join("store")).unwrap();
    refuses_to_start(&home, Limits::default(), &["must join under a new id"]);
}

#[tokio::test]
async fn a_store_whose_log_is_gone_does_not_start_as_an_empty_one() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(1)).await;
    cluster.kill(0);
    let home = cluster.node(0).process.home().to_owned();
    fs::remove_dir_all(home.join("store/log")).unwrap();
    refuses_to_start(&home, Limits::default(), &["log", "store"]);
}
