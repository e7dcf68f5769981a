//! Tasks are announced to a peer that is set as those of W3bstream.

use lockstep_api::views::W3bstreamView;
use lockstep_testkit::anvil::{Anvil, Contracts};
use lockstep_testkit::cluster::{Cluster, ClusterOptions, change_config, open_params};
use lockstep_testkit::http::post_message;
use lockstep_testkit::load::device_key;
use lockstep_testkit::postgres::Postgres;
use lockstep_testkit::w3bstream_peer::Peer;
use lockstep_testkit::wait::eventually;
use lockstep_types::{Address, ChainSource, NetworkParams, ProjectId, TaskId};

use crate::{SOON, binary};

const CHAIN: u64 = 4_690;
const PROJECT: ProjectId = ProjectId(7);

async fn listening_peer() -> Peer {
    let mut peer = Peer::start(CHAIN).await;
    peer.subscribe().await;
    peer
}

/// Writes down that a node announces the tasks of an output.
fn announce(cluster: &Cluster, index: usize, output: &str, peer: &Peer) {
    let (listen, bootstrap) = ("/ip4/127.0.0.1/tcp/0", peer.address());
    let section = format!(
        "\n[w3bstream]\nchain_id = {CHAIN}\nlisten = [\"{listen}\"]\nbootstrap = [\"{bootstrap}\"]\noutput = \"{output}\"\n"
    );
    change_config(cluster.node(index).process.home(), |text| text.to_owned() + &section);
}

/// A device's message that is a task of its own; returns the announcement that is to come.
async fn submit(cluster: &Cluster, index: usize, data: &str) -> (TaskId, String) {
    let body = lockstep_identity::sign_body(&device_key(3, 1), PROJECT, "0.1", data);
    let answer = post_message(cluster.node(index).address(), body.as_bytes()).await.json();
    let task: TaskId = answer["taskID"].as_str().unwrap_or_else(|| panic!("no task: {answer}")).parse().unwrap();
    (task, format!(r#"{{"ProjectID":7,"TaskID":"{task}"}}"#))
}

/// Waits until an announcement is heard; returns who made it.
async fn hears(peer: &Peer, announcement: &str) -> String {
    eventually(&format!("{announcement} is heard"), SOON, async || {
        let messages = peer.messages();
        let found = messages.iter().find(|message| message["data"] == announcement);
        let found = found.ok_or_else(|| format!("heard: {messages:?}"))?;
        assert_eq!((&found["topic"], &found["signed"]), (&"w3bstream-task".into(), &true.into()));
        Ok(found["from"].as_str().unwrap().to_owned())
    })
    .await
}

async fn view(cluster: &Cluster, index: usize) -> Result<W3bstreamView, String> {
    cluster.status(index).await?.w3bstream.ok_or_else(|| "the node does not announce".into())
}

async fn connected(cluster: &Cluster, index: usize) -> W3bstreamView {
    eventually("the node has a peer that listens", SOON, async || {
        let view = view(cluster, index).await?;
        if view.peers > 0 && view.problem.is_none() { Ok(view) } else { Err(format!("{view:?}")) }
    })
    .await
}

#[tokio::test]
async fn a_node_announces_its_tasks_once_their_rows_are_there_and_goes_on_after_a_restart() {
    let peer = listening_peer().await;
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(1));
    announce(&cluster, 0, "tasks", &peer);
    cluster.start_all().await;
    let before = connected(&cluster, 0).await;
    let (task, announcement) = submit(&cluster, 0, "first").await;
    assert_eq!(hears(&peer, &announcement).await, before.peer_id);
    let rows = rusqlite::Connection::open(cluster.node(0).process.home().join("tasks.sqlite")).unwrap();
    let count: i64 =
        rows.query_row("SELECT count(*) FROM tasks WHERE task_id = ?1", [&task.0[..]], |row| row.get(0)).unwrap();
    assert_eq!(count, 1);
    let key = std::fs::metadata(cluster.node(0).process.home().join("w3bstream.key")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);

    cluster.restart(0, SOON).await;
    cluster.wait_ready(0, SOON).await;
    assert_eq!(connected(&cluster, 0).await.peer_id, before.peer_id);
    let (_, announcement) = submit(&cluster, 0, "second").await;
    hears(&peer, &announcement).await;
    cluster.assert_no_panics();
}

#[tokio::test]
async fn the_leader_announces_what_the_network_publishes_and_after_it_the_next_one_does() {
    let (peer, postgres) = (listening_peer().await, Postgres::start());
    let options = ClusterOptions::of(3).with_postgres(postgres.dsn());
    let mut cluster = Cluster::prepare(binary(), options);
    for index in 0..cluster.len() {
        announce(&cluster, index, "w3bstream", &peer);
    }
    cluster.start_all().await;
    let leader = cluster.wait_leader(SOON).await;
    for index in 0..cluster.len() {
        connected(&cluster, index).await;
    }
    let (_, announcement) = submit(&cluster, (leader + 1) % 3, "first").await;
    assert_eq!(hears(&peer, &announcement).await, view(&cluster, leader).await.unwrap().peer_id);

    cluster.kill(leader);
    let next = eventually("another node leads", SOON, async || match cluster.leader().await {
        Ok(next) if next != leader => Ok(next),
        other => Err(format!("{other:?}")),
    })
    .await;
    let (_, announcement) = submit(&cluster, next, "second").await;
    assert_eq!(hears(&peer, &announcement).await, view(&cluster, next).await.unwrap().peer_id);
    cluster.assert_no_panics();
}

#[tokio::test]
async fn a_task_that_the_chain_calls_assigned_is_not_announced_again() {
    let (peer, anvil) = (listening_peer().await, Anvil::start(CHAIN).await);
    let contracts = Contracts::deploy(&anvil).await;
    let chain = ChainSource {
        chain_id: CHAIN,
        registry: contracts.registry,
        project_device: contracts.project_device,
        task_manager: Some(contracts.task_manager),
        start_block: 0,
        confirmations: 1,
        attestations: 1,
    };
    let params = NetworkParams { chain: Some(chain), ..open_params() };
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(1).with_params(params));
    announce(&cluster, 0, "tasks", &peer);
    let home = cluster.node(0).process.home().to_owned();
    change_config(&home, |text| text.to_owned() + "\n[chain]\nrpc_file = \"chain.rpc\"\npoll_ms = 100\n");
    std::fs::write(home.join("chain.rpc"), anvil.url()).unwrap();
    let owner = Address([0x0e; 20]);
    let key = device_key(3, 1);
    contracts.register(&anvil, key.address(), owner, [1; 32], b"ipfs://document").await;
    contracts.approve(&anvil, PROJECT, &[key.address()]).await;
    anvil.mine(2).await;
    cluster.start_all().await;
    eventually("the device is known", SOON, async || {
        let chain = cluster.status(0).await?.chain;
        if chain.as_ref().is_some_and(|chain| chain.block.is_some()) { Ok(()) } else { Err(format!("{chain:?}")) }
    })
    .await;
    connected(&cluster, 0).await;
    let (task, announcement) = submit(&cluster, 0, "only").await;
    hears(&peer, &announcement).await;
    assert_eq!(view(&cluster, 0).await.unwrap().waiting, 1);
    contracts.assign(&anvil, PROJECT, task, owner, 99).await;
    anvil.mine(2).await;
    // Far below what the attempts would take.
    eventually("it waits no longer", SOON, async || match view(&cluster, 0).await? {
        view if view.waiting == 0 => Ok(()),
        view => Err(format!("{view:?}")),
    })
    .await;
    cluster.assert_no_panics();
}
