//! Collects what every node of a cluster shows and what its outputs hold, and has it checked.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use lockstep_api::views::{BatchesView, TaskView};
use lockstep_client::Client;
use lockstep_types::TaskId;

use crate::check::{Checked, Findings, NodeChain, check};
use crate::cluster::Cluster;
use crate::history::History;
use crate::outputs::{count_postgres, count_sqlite, read_postgres, read_sqlite};
use crate::wait::eventually;

/// Batches asked for at a time.
const PAGE: usize = 100;
/// Tasks asked for at a time.
const READS: usize = 32;
/// Longest wait for nodes to agree on the head once there is no load.
const AGREE_DEADLINE: Duration = Duration::from_secs(30);
/// Longest wait for an output to have all tasks once there is no load.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(90);

/// Reads a node's whole chain, from height 1 to its head.
///
/// # Errors
/// When the node does not answer, or stops before its own head.
pub async fn read_chain(client: &Client, index: usize, node: &str) -> anyhow::Result<NodeChain> {
    let mut chain = NodeChain { node: node.to_owned(), batches: Vec::new(), tasks: Vec::new() };
    loop {
        let from = chain.batches.len() + 1;
        let page: BatchesView = client.get_json_from(index, &format!("/api/batches?from={from}&limit={PAGE}")).await?;
        let head = usize::try_from(page.head.0)?;
        ensure!(!page.batches.is_empty() || from > head, "{node}: no batches from {from}, the head is {head}");
        chain.batches.extend(page.batches);
        if chain.batches.len() >= head {
            break;
        }
    }
    let ids: Vec<TaskId> = chain.batches.iter().flat_map(|batch| batch.tasks.clone()).collect();
    let task = async |id: TaskId| -> anyhow::Result<TaskView> {
        client.get_json_from(index, &format!("/api/tasks/{id}")).await.with_context(|| format!("{node}: task {id}"))
    };
    chain.tasks = futures::stream::iter(ids).map(task).buffered(READS).try_collect().await?;
    Ok(chain)
}

/// Waits until all members agree and all outputs have everything, reads all of it, and checks it against the history.
/// All members must run, and nobody may submit meanwhile.
///
/// # Panics
/// When a promise was broken; the message says which.
pub async fn audit(cluster: &mut Cluster, history: &History) -> Checked {
    cluster.wait_head_equal(AGREE_DEADLINE).await;
    let genesis = cluster.genesis();
    let mut findings = Findings {
        records: history.records(),
        first_task: genesis.params.first_task_number,
        task_signer: Some(cluster.task_signer()),
        ..Findings::default()
    };
    let members = cluster.members();
    for index in members.iter().copied() {
        let name = format!("node {}", cluster.node(index).id);
        let chain = read_chain(cluster.client(), index, &name).await.unwrap_or_else(|e| panic!("{e:#}"));
        findings.chains.push(chain);
    }
    let tasks = findings.chains.first().map_or(0, |chain| chain.tasks.len() as u64);
    for index in members {
        let (path, name) = (cluster.sqlite(index), format!("SQLite of node {}", cluster.node(index).id));
        eventually(&name, PUBLISH_DEADLINE, async || has(count_sqlite(&path), tasks)).await;
        findings.outputs.push(read_sqlite(&path, &name).unwrap_or_else(|e| panic!("{name}: {e:#}")));
    }
    if let Some(dsn) = cluster.postgres() {
        eventually("PostgreSQL", PUBLISH_DEADLINE, async || has(count_postgres(dsn).await, tasks)).await;
        findings.outputs.push(read_postgres(dsn, "PostgreSQL").await.unwrap_or_else(|e| panic!("{e:#}")));
    }
    cluster.assert_no_panics();
    check(&findings).unwrap_or_else(|violations| panic!("{violations}"))
}

fn has(count: anyhow::Result<u64>, tasks: u64) -> Result<(), String> {
    match count {
        Ok(count) if count >= tasks => Ok(()),
        Ok(count) => Err(format!("{count} of {tasks} tasks are there")),
        Err(error) => Err(format!("{error:#}")),
    }
}
