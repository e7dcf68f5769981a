//! Gateways: they send bundles to the peer-to-peer port of any node that admits them.

use std::process::{Command, Output};
use std::time::Duration;

use lockstep_node::{Gateway, GatewayError, GatewayRefusal, peer_id_of};
use lockstep_testkit::cluster::{Cluster, ClusterOptions, change_config};
use lockstep_testkit::http::get;
use lockstep_testkit::load::device_key;
use lockstep_types::{ProjectId, SigningKey};
use serde_json::Value;

use crate::{SOON, binary};

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes([n; 32]).unwrap()
}

fn reading(device: usize, project: u64, text: &str) -> String {
    lockstep_identity::sign_body(&device_key(1, device), ProjectId(project), "0.1", text)
}

/// Lets gateways in at all nodes, or takes their entries away again.
fn admit(cluster: &Cluster, entries: &str) {
    for node in 0..cluster.len() {
        change_config(cluster.node(node).process.home(), |text| {
            let kept = text.find("[[gateway]]").map_or(text, |at| &text[..at]);
            format!("{kept}\n{entries}")
        });
    }
}

fn entry(name: &str, key: &SigningKey, rest: &str) -> String {
    format!("[[gateway]]\nname = \"{name}\"\naddress = \"{}\"\n{rest}\n", key.address())
}

async fn follower(cluster: &Cluster) -> usize {
    for node in 0..cluster.len() {
        let status = get(cluster.node(node).address(), "/api/status").await.json();
        if status["role"] != "leader" {
            return node;
        }
    }
    panic!("all lead")
}

async fn connect(cluster: &Cluster, node: usize, key: &SigningKey) -> Gateway {
    // With the node's own key, so that nobody else can answer in its place.
    let home = cluster.node(node).process.home();
    let node_key = SigningKey::from_hex(&std::fs::read_to_string(home.join("node.key")).unwrap()).unwrap();
    let address = format!("{}/p2p/{}", cluster.node(node).p2p_address(), peer_id_of(&node_key.public()));
    Gateway::connect(key, &address, SOON).await.unwrap()
}

async fn submit(gateway: &Gateway, bundle: String) -> Result<Value, GatewayError> {
    let answer = gateway.submit(bundle.into(), SOON).await?;
    Ok(serde_json::from_slice(&answer).unwrap())
}

fn codes(answer: &Value) -> Vec<&str> {
    let entries = answer.as_array().unwrap_or_else(|| panic!("no array: {answer}"));
    entries.iter().map(|entry| entry["code"].as_str().unwrap_or("ok")).collect()
}

#[tokio::test]
async fn an_admitted_gateway_submits_to_any_node_and_others_see_its_messages() {
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(3));
    let (barn, mill, nobody) = (key(0x61), key(0x62), key(0x63));
    let public: String = mill.public().compressed().iter().map(|byte| format!("{byte:02x}")).collect();
    let mill_entry = format!("[[gateway]]\nname = \"mill\"\naddress = \"{public}\"\nprojects = [7, 8]\n");
    admit(&cluster, &(entry("barn", &barn, "") + &mill_entry));
    cluster.start_all().await;
    let follower = follower(&cluster).await;
    let other = (follower + 1) % 3;

    let gateway = connect(&cluster, follower, &barn).await;
    let messages: Vec<String> = (0..300).map(|n| reading(n % 5, 1 + n as u64 % 3, &n.to_string())).collect();
    let answer = submit(&gateway, format!("[{}]", messages.join(","))).await.unwrap();
    let sequences: Vec<u64> = answer.as_array().unwrap().iter().map(|e| e["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences.len(), 300);
    assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
    let last = sequences[299];
    let path = format!("/api/messages/{}?min_sequence={last}", answer[299]["messageID"].as_str().unwrap());
    let seen = get(cluster.node(other).address(), &path).await.json();
    assert_eq!((seen["sequence"].as_u64(), seen["evidence"]["kind"].as_str()), (Some(last), Some("device")), "{seen}");
    // The same again by another way is a retry; a broken message breaks no other; one message is a bundle, too.
    let lines = format!("{}\n{{broken\n{}", messages[0], reading(1, 9, "new"));
    let again = submit(&gateway, lines).await.unwrap();
    assert_eq!((&again[0]["sequence"], &again[0]["duplicate"]), (&answer[0]["sequence"], &true.into()));
    assert_eq!(codes(&again), ["ok", "malformed_json", "ok"], "{again}");
    let one = submit(&gateway, reading(2, 9, "one").replace(',', ",\n")).await.unwrap();
    assert_eq!(codes(&one), ["ok"], "{one}");
    let nonsense = submit(&gateway, "7".into()).await.unwrap();
    assert_eq!(nonsense["status"], 400, "{nonsense}");

    // Beyond its projects a gateway is refused for each message.
    let bundle = [reading(1, 7, "a"), reading(1, 9, "b"), reading(1, 8, "c")].join("\n");
    let limited = submit(&connect(&cluster, other, &mill).await, bundle).await.unwrap();
    assert_eq!(codes(&limited), ["ok", "gateway_project", "ok"], "{limited}");
    assert_eq!(limited[1]["status"], 403);

    let refused = submit(&connect(&cluster, follower, &nobody).await, reading(1, 7, "z")).await;
    assert_eq!(refused, Err(GatewayError::Refused(GatewayRefusal::NotAdmitted)));

    // Once it is no longer in the file and the node was restarted.
    admit(&cluster, &entry("mill", &mill, ""));
    cluster.node_mut(follower).process.kill();
    cluster.start_all().await;
    let refused = submit(&connect(&cluster, follower, &barn).await, reading(1, 7, "z")).await;
    assert_eq!(refused, Err(GatewayError::Refused(GatewayRefusal::NotAdmitted)));
    let allowed = submit(&connect(&cluster, follower, &mill).await, reading(1, 9, "b")).await.unwrap();
    assert_eq!(codes(&allowed), ["ok"]);
    assert_eq!(codes(&submit(&connect(&cluster, other, &barn).await, reading(1, 7, "y")).await.unwrap()), ["ok"]);
    cluster.assert_no_panics();
}

#[tokio::test]
async fn a_gateway_that_is_too_fast_is_refused_and_another_is_not() {
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(1));
    let (barn, mill) = (key(0x61), key(0x62));
    let limit = |text: &str| {
        text.replace("[limits.address]\nper_second = 0\nburst = 0", "[limits.address]\nper_second = 1\nburst = 3")
    };
    change_config(cluster.node(0).process.home(), limit);
    admit(&cluster, &(entry("barn", &barn, "") + &entry("mill", &mill, "")));
    cluster.start_all().await;
    let messages: Vec<String> = (0..5).map(|n| reading(n, 7, "x")).collect();
    let answer = submit(&connect(&cluster, 0, &barn).await, messages.join("\n")).await.unwrap();
    assert_eq!(codes(&answer), ["ok", "ok", "ok", "too_fast", "too_fast"], "{answer}");
    assert!(answer[3]["error"].as_str().unwrap().contains("this gateway"), "{answer}");
    let answer = submit(&connect(&cluster, 0, &mill).await, messages[4].clone()).await.unwrap();
    assert_eq!(codes(&answer), ["ok"]);
}

#[tokio::test]
async fn the_program_submits_as_a_gateway() {
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(1));
    let file = cluster.directory().join("gateway.key");
    let device = cluster.directory().join("device.key");
    std::fs::write(&file, "61".repeat(32)).unwrap();
    admit(&cluster, &entry("barn", &key(0x61), "projects = [7]"));
    cluster.start_all().await;
    let peer = cluster.node(0).p2p_address();
    let run = |gateway: &std::path::Path, project: &str| -> Output {
        Command::new(binary())
            .args(["submit", "--new-key", "--data", "21.5", "--project", project, "--peer", &peer])
            .args(["--key-file", device.to_str().unwrap(), "--gateway-key", gateway.to_str().unwrap()])
            .output()
            .unwrap()
    };
    let done = run(&file, "7");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let receipt: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(receipt["sequence"], 1);
    for (gateway, project, word) in [(file, "8", "gateway_project"), ("new.key".into(), "7", "admits no gateway")] {
        let refused = run(&cluster.directory().join(gateway), project);
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && error.contains(word), "{error}");
    }
    // The node's port is not an HTTP port, and no gateway's port is there.
    let gateway = Gateway::connect(&key(0x61), "/ip4/127.0.0.1/tcp/1", Duration::from_secs(5)).await;
    assert!(gateway.is_err_and(|error| error.to_string().contains("no node can be reached")));
}
