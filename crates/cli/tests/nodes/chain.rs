//! A network whose devices come from a chain: anvil's, with contracts that have the real ones' events.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_api::views::{ChainView, StatusView};
use lockstep_testkit::anvil::{Anvil, Contracts};
use lockstep_testkit::cluster::{Cluster, ClusterOptions, change_config};
use lockstep_testkit::http::{get, post_message};
use lockstep_testkit::load::device_key;
use lockstep_testkit::wait::{always, eventually};
use lockstep_types::{Address, ChainSource, NetworkParams, ProjectId, ProjectSettings, SigningKey, TaskId};

use crate::{SOON, binary};

const CHAIN: u64 = 4_690;
const PROJECT: ProjectId = ProjectId(7);
const OWNER: Address = Address([0x0e; 20]);
const CONFIRMATIONS: u64 = 12;
/// Blocks without events that the log is told of in one entry.
const EMPTY_BLOCKS: u64 = 256;
const POLL_MS: u64 = 100;

fn device(n: usize) -> SigningKey {
    device_key(7, n)
}

fn params(anvil_contracts: &Contracts, attestations: u64) -> NetworkParams {
    let chain = ChainSource {
        chain_id: CHAIN,
        registry: anvil_contracts.registry,
        project_device: anvil_contracts.project_device,
        task_manager: Some(anvil_contracts.task_manager),
        start_block: 0,
        confirmations: CONFIRMATIONS,
        attestations,
    };
    let projects = BTreeMap::from([(PROJECT, ProjectSettings::default())]);
    NetworkParams { projects, chain: Some(chain), ..NetworkParams::default() }
}

/// Writes down where a node reads the chain.
fn set_endpoint(cluster: &Cluster, index: usize, anvil: &Anvil) {
    fs::write(cluster.node(index).process.home().join("chain.rpc"), anvil.url()).unwrap();
}

/// Three nodes that have an endpoint each, all of one chain unless a test changes it before they are started.
fn prepare(anvil: &Anvil, contracts: &Contracts, attestations: u64) -> Cluster {
    let cluster = Cluster::prepare(binary(), ClusterOptions::of(3).with_params(params(contracts, attestations)));
    for index in 0..cluster.len() {
        let section = format!("\n[chain]\nrpc_file = \"chain.rpc\"\npoll_ms = {POLL_MS}\n");
        change_config(cluster.node(index).process.home(), |text| text.to_owned() + &section);
        set_endpoint(&cluster, index, anvil);
    }
    cluster
}

async fn start(attestations: u64) -> (Anvil, Contracts, Cluster) {
    let anvil = Anvil::start(CHAIN).await;
    let contracts = Contracts::deploy(&anvil).await;
    let mut cluster = prepare(&anvil, &contracts, attestations);
    cluster.start_all().await;
    (anvil, contracts, cluster)
}

async fn register(anvil: &Anvil, contracts: &Contracts, key: &SigningKey) {
    contracts.register(anvil, key.address(), OWNER, [1; 32], b"ipfs://document").await;
}

async fn approve(anvil: &Anvil, contracts: &Contracts, key: &SigningKey) {
    contracts.approve(anvil, PROJECT, &[key.address()]).await;
}

/// The statuses of a device's new messages at all nodes.
async fn submit(cluster: &Cluster, key: &SigningKey) -> Vec<u16> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut statuses = Vec::new();
    for index in 0..cluster.len() {
        let data = format!("reading {}", COUNT.fetch_add(1, Ordering::Relaxed));
        let body = lockstep_identity::sign_body(key, PROJECT, "0.1", &data);
        statuses.push(post_message(cluster.node(index).address(), body.as_bytes()).await.status);
    }
    statuses
}

/// Waits until a device's messages are answered so by all nodes.
async fn answered(cluster: &Cluster, key: &SigningKey, status: u16) {
    eventually(&format!("messages are answered with {status}"), SOON, async || {
        let statuses = submit(cluster, key).await;
        if statuses.iter().all(|found| *found == status) { Ok(()) } else { Err(format!("{statuses:?}")) }
    })
    .await;
}

/// Nothing is shown before all members agree on rules that know chains.
fn chain_of(status: &StatusView) -> ChainView {
    status.chain.clone().unwrap_or(ChainView { block: None, behind: None, problem: None })
}

/// Waits until all nodes have applied the same, up to a block of the chain at least; returns one's view.
async fn followed(cluster: &Cluster, block: u64) -> StatusView {
    eventually(&format!("all nodes have the same registry up to block {block}"), SOON, async || {
        let mut views = Vec::new();
        for index in 0..cluster.len() {
            views.push(cluster.status(index).await?);
        }
        let place = |view: &StatusView| (view.head.height, view.head.hash, view.effects, chain_of(view).block);
        let equal = views.iter().all(|view| place(view) == place(&views[0]));
        if equal && chain_of(&views[0]).block >= Some(block) {
            return Ok(views[0].clone());
        }
        Err(format!("{:?}", views.iter().map(|view| (place(view), &view.chain)).collect::<Vec<_>>()))
    })
    .await
}

/// Waits until some node's operator is told something.
async fn complained(cluster: &Cluster, words: &str) {
    eventually(&format!("an operator is told: {words}"), SOON, async || {
        let mut all = Vec::new();
        for index in 0..cluster.len() {
            all.extend(cluster.status(index).await?.complaints);
        }
        if all.iter().any(|complaint| complaint.contains(words)) { Ok(()) } else { Err(format!("{all:?}")) }
    })
    .await;
}

#[tokio::test]
async fn devices_of_a_chain_submit_through_every_node_as_long_as_they_are_approved() {
    let (anvil, contracts, cluster) = start(2).await;
    let (approved, registered) = (device(1), device(2));
    register(&anvil, &contracts, &approved).await;
    register(&anvil, &contracts, &registered).await;
    approve(&anvil, &contracts, &approved).await;
    assert_eq!(submit(&cluster, &approved).await, [403; 3], "nothing is confirmed yet");
    let block = anvil.head().await;
    anvil.mine(CONFIRMATIONS).await;
    followed(&cluster, block).await;
    answered(&cluster, &approved, 200).await;
    assert_eq!(submit(&cluster, &registered).await, [403; 3]);

    let block = contracts.unapprove(&anvil, PROJECT, &[approved.address()]).await;
    approve(&anvil, &contracts, &registered).await;
    anvil.mine(CONFIRMATIONS + 1).await;
    followed(&cluster, block + 1).await;
    answered(&cluster, &registered, 200).await;
    assert_eq!(submit(&cluster, &approved).await, [403; 3]);

    contracts.remove(&anvil, registered.address(), OWNER).await;
    anvil.mine(CONFIRMATIONS).await;
    answered(&cluster, &registered, 403).await;
    for index in 0..cluster.len() {
        assert_eq!(cluster.status(index).await.unwrap().complaints, [""; 0]);
    }
    cluster.assert_no_panics();
}

#[tokio::test]
async fn blocks_without_events_are_told_the_log_only_when_they_are_many() {
    let (anvil, contracts, mut cluster) = start(2).await;
    register(&anvil, &contracts, &device(1)).await;
    let block = anvil.head().await;
    anvil.mine(CONFIRMATIONS).await;
    let before = followed(&cluster, block).await;
    anvil.mine(EMPTY_BLOCKS / 2).await;
    let leader = cluster.leader().await.unwrap();
    eventually("the leader sees the blocks", SOON, async || {
        let chain = chain_of(&cluster.status(leader).await?);
        if chain.behind >= Some(EMPTY_BLOCKS / 2) { Ok(()) } else { Err(format!("{chain:?}")) }
    })
    .await;
    let quiet = Duration::from_millis(10 * POLL_MS);
    always("the log is not told", quiet, async || {
        let now = cluster.status(leader).await?;
        let told = chain_of(&now).block != chain_of(&before).block;
        if told { Err(format!("{now:?}")) } else { Ok(()) }
    })
    .await;
    anvil.mine(EMPTY_BLOCKS / 2).await;
    let after = followed(&cluster, block + EMPTY_BLOCKS).await;
    assert_ne!(after.effects, before.effects);
    cluster.assert_no_panics();
}

#[tokio::test]
async fn following_goes_on_after_the_chain_and_the_nodes_were_away() {
    let (mut anvil, contracts, mut cluster) = start(2).await;
    let (first, second, third) = (device(1), device(2), device(3));
    for key in [&first, &second, &third] {
        register(&anvil, &contracts, key).await;
    }
    approve(&anvil, &contracts, &first).await;
    anvil.mine(CONFIRMATIONS).await;
    answered(&cluster, &first, 200).await;

    // The chain is away while something happens that the nodes have not seen: devices go on as they were.
    approve(&anvil, &contracts, &second).await;
    anvil.stop().await;
    answered(&cluster, &first, 200).await;
    let leader = cluster.leader().await.unwrap();
    cluster.restart(leader, SOON).await;
    cluster.wait_ready(leader, SOON).await;
    assert_eq!(submit(&cluster, &second).await, [403; 3]);
    anvil.start_again().await;
    anvil.mine(CONFIRMATIONS).await;
    answered(&cluster, &second, 200).await;

    for index in 0..cluster.len() {
        cluster.kill(index);
    }
    approve(&anvil, &contracts, &third).await;
    let block = anvil.head().await;
    anvil.mine(CONFIRMATIONS).await;
    cluster.start_all().await;
    followed(&cluster, block).await;
    for key in [&first, &second, &third] {
        answered(&cluster, key, 200).await;
    }
    cluster.assert_no_panics();
}

#[tokio::test]
async fn a_reorganisation_within_the_confirmations_changes_nothing() {
    let (anvil, contracts, cluster) = start(2).await;
    let (kept, lost, new) = (device(1), device(2), device(3));
    for key in [&kept, &lost, &new] {
        register(&anvil, &contracts, key).await;
    }
    approve(&anvil, &contracts, &kept).await;
    let block = anvil.head().await;
    anvil.mine(CONFIRMATIONS).await;
    followed(&cluster, block).await;

    approve(&anvil, &contracts, &lost).await;
    anvil.mine(5).await;
    anvil.reorg(10).await;
    approve(&anvil, &contracts, &new).await;
    let block = anvil.head().await;
    anvil.mine(CONFIRMATIONS).await;
    followed(&cluster, block).await;
    answered(&cluster, &kept, 200).await;
    answered(&cluster, &new, 200).await;
    assert_eq!(submit(&cluster, &lost).await, [403; 3]);
    for index in 0..cluster.len() {
        assert_eq!(cluster.status(index).await.unwrap().complaints, [""; 0]);
    }
    cluster.assert_no_panics();
}

#[tokio::test]
async fn a_deeper_reorganisation_is_followed_no_further_and_operators_are_told() {
    let (anvil, contracts, cluster) = start(2).await;
    let (kept, new) = (device(1), device(2));
    register(&anvil, &contracts, &kept).await;
    approve(&anvil, &contracts, &kept).await;
    register(&anvil, &contracts, &new).await;
    let block = anvil.head().await;
    anvil.mine(CONFIRMATIONS).await;
    followed(&cluster, block).await;

    anvil.reorg(2 * CONFIRMATIONS.div_ceil(2) + 2).await;
    approve(&anvil, &contracts, &new).await;
    anvil.mine(CONFIRMATIONS).await;
    complained(&cluster, "deeper than 12 blocks").await;
    assert_eq!(submit(&cluster, &new).await, [403; 3]);
    answered(&cluster, &kept, 200).await;
    cluster.assert_no_panics();
}

#[tokio::test]
async fn one_voter_with_an_endpoint_that_lies_stops_the_following_until_it_is_corrected() {
    let (anvil, liar) = (Anvil::start(CHAIN).await, Anvil::start(CHAIN).await);
    let contracts = Contracts::deploy(&anvil).await;
    // The same addresses, but another history.
    assert_eq!(Contracts::deploy(&liar).await.registry, contracts.registry);
    let mut cluster = prepare(&anvil, &contracts, 1);
    set_endpoint(&cluster, 2, &liar);
    let key = device(1);
    register(&anvil, &contracts, &key).await;
    approve(&anvil, &contracts, &key).await;
    // Whoever leads finds something to ask the others about.
    register(&liar, &contracts, &device(2)).await;
    anvil.mine(CONFIRMATIONS).await;
    liar.mine(anvil.head().await - liar.head().await).await;
    cluster.start_all().await;
    complained(&cluster, "differ").await;
    assert_eq!(submit(&cluster, &key).await, [403; 3]);
    assert_eq!(chain_of(&cluster.status(0).await.unwrap()).block, None);

    set_endpoint(&cluster, 2, &anvil);
    cluster.restart(2, SOON).await;
    cluster.wait_ready(2, SOON).await;
    answered(&cluster, &key, 200).await;
    eventually("nobody complains any more", SOON, async || {
        for index in 0..cluster.len() {
            let complaints = cluster.status(index).await?.complaints;
            if !complaints.is_empty() {
                return Err(format!("{complaints:?}"));
            }
        }
        Ok(())
    })
    .await;
    cluster.assert_no_panics();
}

/// Waits until all nodes tell these states of a task.
async fn told(cluster: &Cluster, task: TaskId, states: &[&str]) {
    let path = format!("/task?projectID={PROJECT}&taskID={task}");
    eventually(&format!("all nodes tell {states:?}"), SOON, async || {
        for index in 0..cluster.len() {
            let answer = get(cluster.node(index).address(), &path).await.json();
            let told: Vec<&str> =
                answer["states"].as_array().unwrap().iter().map(|state| state["state"].as_str().unwrap()).collect();
            if told != states {
                return Err(format!("node at place {index}: {answer}"));
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn what_becomes_of_a_task_on_the_chain_is_told_by_every_node_also_after_a_restart() {
    let (anvil, contracts, mut cluster) = start(2).await;
    let key = device(1);
    register(&anvil, &contracts, &key).await;
    approve(&anvil, &contracts, &key).await;
    anvil.mine(CONFIRMATIONS).await;
    answered(&cluster, &key, 200).await;
    let body = lockstep_identity::sign_body(&key, PROJECT, "0.1", "the one of the task");
    let answer = post_message(cluster.node(0).address(), body.as_bytes()).await.json();
    let task: TaskId = answer["taskID"].as_str().unwrap().parse().unwrap();
    told(&cluster, task, &["packed"]).await;
    contracts.assign(&anvil, PROJECT, task, OWNER, 99).await;
    anvil.mine(CONFIRMATIONS).await;
    told(&cluster, task, &["packed", "assigned"]).await;
    contracts.settle(&anvil, ProjectId(8), task, OWNER).await;
    contracts.settle(&anvil, PROJECT, task, OWNER).await;
    anvil.mine(CONFIRMATIONS).await;
    told(&cluster, task, &["packed", "assigned", "settled"]).await;
    for index in 0..cluster.len() {
        cluster.kill(index);
    }
    cluster.start_all().await;
    told(&cluster, task, &["packed", "assigned", "settled"]).await;
    cluster.assert_no_panics();
}
