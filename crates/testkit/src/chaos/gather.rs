//! What nodes and outputs hold in the end, for [`crate::order::check`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use lockstep_types::blob::{Blob, is_blob};
use lockstep_types::export::ExportedMessage;
use lockstep_types::{Batch, Certificate, ExportPage, ExportedBatch, Height, NodeId, Sequence, TaskNumber};

use tokio::time::Instant;

use super::LOOK_INTERVAL;
use super::stores::{self, Stores};
use super::watch::{Lives, Watch};
use crate::cluster::Cluster;
use crate::http;
use crate::order::{self, At, Chain, Evidence, Row, Store};
use crate::outputs::{OutputRows, count_sqlite};
use crate::sim::{Record, Seen};

/// All outputs have everything within this time after the load has ended.
const PUBLISHED_MAX: Duration = Duration::from_secs(1_200);

/// Times that everything is read anew because something came meanwhile.
const READINGS_MAX: usize = 20;

/// Waits until all nodes have the same and all stores have all of it, and reads everything. A message whose client has
/// given up may still be ordered, as long as it is in some node's pool: what was read while that happened is read again.
///
/// # Errors
/// When nodes and stores do not come to the same, or cannot be read.
pub async fn all(
    cluster: &Cluster,
    stores: &Stores,
    record: &Record,
    (watch, lives): (&Watch, &Lives),
) -> Result<Evidence> {
    for _ in 0..READINGS_MAX {
        let before = settled(cluster, watch).await?;
        println!("all {} tasks are published", before.tasks);
        for node in 0..cluster.len() {
            let head = cluster.status(node).await.map_err(anyhow::Error::msg)?.head;
            record.see(order::Sighting {
                at: record.now(),
                node: cluster.node(node).id,
                life: lives[node].load(Ordering::SeqCst),
                height: head.height,
                hash: head.hash,
                final_height: head.final_height,
            });
        }
        let at = record.now();
        let mut chains = Vec::new();
        for node in 0..cluster.len() {
            let (id, address) = (cluster.node(node).id, cluster.node(node).address());
            chains.push(chain(id, address, node == 0).await?);
        }
        let mut contents = stores.contents(cluster, at).await?;
        // When they came says nothing: what is final is looked at now and then only.
        let rows = watch.rows().into_iter().map(|row| Row { at, ..row }).collect();
        contents.push(Store { name: "a reader of the feed".into(), once: true, rows });
        let end = record.now();
        if standing(cluster).await.as_ref() != Ok(&before) {
            println!("something was ordered meanwhile: all is read again");
            continue;
        }
        let Seen { calls, mut sightings, troubles, .. } = record.take();
        sightings.retain(|seen| seen.at <= end);
        let genesis = cluster.genesis();
        let (first_task, first_set) = (genesis.params.first_task_number, genesis.first_set()?);
        let stores = contents;
        return Ok(Evidence {
            calls,
            chains,
            sightings,
            stores,
            first_task,
            first_set,
            troubles,
            ..Evidence::default()
        });
    }
    bail!("something was ordered all the time, though no device submits any more")
}

async fn settled(cluster: &Cluster, watch: &Watch) -> Result<Standing> {
    let until = Instant::now() + PUBLISHED_MAX;
    let mut shown = Instant::now();
    loop {
        let standing = standing(cluster).await;
        match standing {
            Ok(now) if now.lag == 0 && watch.read() as u64 >= now.tasks => return Ok(now),
            _ if Instant::now() > until => bail!("not all is published after {PUBLISHED_MAX:?}: {standing:?}"),
            _ => {}
        }
        if shown.elapsed() > Duration::from_secs(5) {
            println!("  waiting for nodes and stores: {standing:?}, read {}", watch.read());
            shown = Instant::now();
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Where everybody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    height: Height,
    tasks: u64,
    /// Batches that some output does not have.
    lag: u64,
}

/// Where all nodes are, if they have the same batches and all of them are final.
async fn standing(cluster: &Cluster) -> Result<Standing, String> {
    let (mut heads, mut lag, mut outputs) = (Vec::new(), 0, 0);
    for node in 0..cluster.len() {
        let view = cluster.status(node).await?;
        lag += view.outputs.iter().map(|output| output.lag + output.refused).sum::<u64>();
        outputs += view.outputs.len();
        heads.push(view.head);
    }
    if outputs != cluster.len() * stores::OUTPUTS {
        return Err(format!("{outputs} outputs"));
    }
    if heads.iter().any(|head| head.final_height != head.height || *head != heads[0]) {
        return Err(format!("{heads:?}"));
    }
    // Nothing lacks in this file where nothing lacks anywhere.
    let tasks = count_sqlite(&cluster.sqlite(0)).map_err(|e| e.to_string())?;
    Ok(Standing { height: heads[0].height, tasks, lag })
}

/// Reads a node's whole chain. With `checked`, that each batch has the messages and tasks which its header commits to.
///
/// # Errors
/// When the node does not answer, or shows what its headers do not commit to.
pub async fn chain(node: NodeId, address: SocketAddr, checked: bool) -> Result<Chain> {
    let (mut batches, mut certificates): (Vec<Batch>, BTreeMap<Height, Certificate>) = (vec![], BTreeMap::new());
    loop {
        let from = batches.len() + 1;
        let answer = http::request(address, "GET", &format!("/api/export?from={from}"), b"").await?;
        ensure!(answer.status == 200, "node {node}: {}", answer.text());
        let page = ExportPage::decode(Bytes::from(answer.body))?;
        for batch in page.batches {
            if checked {
                batch.outline().with_context(|| format!("node {node}"))?;
            }
            batches.push(whole(batch)?);
        }
        certificates.extend(page.certificates.into_iter().map(|certificate| (certificate.height, certificate)));
        if batches.len() as u64 >= page.head.0 {
            break;
        }
        ensure!(batches.len() >= from, "node {node} shows no batch from {from}, its head is {}", page.head);
    }
    let certificates = certificates.into_values().collect();
    // What the registry is, processes do not show whole.
    Ok(Chain { node, batches, certificates, registry: String::new() })
}

fn whole(batch: ExportedBatch) -> Result<Batch> {
    let message = |message| match message {
        ExportedMessage::Whole(message) => Ok(message),
        ExportedMessage::Withheld(message) => bail!("message {} is not shown", message.id),
    };
    let messages = batch.messages.into_iter().map(message).collect::<Result<_>>()?;
    Ok(Batch { header: batch.header, messages, tasks: batch.tasks, next_set: batch.next_set })
}

/// The rows of a table.
///
/// # Errors
/// When a task names a message that is not there.
pub fn table(rows: OutputRows, at: At) -> Result<Store> {
    let payloads: BTreeMap<Sequence, Vec<u8>> = rows.messages.into_iter().map(|row| (row.sequence, row.data)).collect();
    let mut found = Vec::with_capacity(rows.tasks.len());
    for task in rows.tasks {
        let payload = |sequence: &Sequence| {
            let data = payloads.get(sequence).with_context(|| format!("{}: no message {sequence}", rows.name))?;
            Ok((*sequence, data.clone()))
        };
        let messages = task.sequences.iter().map(payload).collect::<Result<_>>()?;
        found.push(Row { at, number: task.number, id: task.id, messages });
    }
    Ok(Store { name: rows.name, once: true, rows: found })
}

/// The tasks of a store of blobs. The same blob may be there more than once.
///
/// # Errors
/// When something is no blob.
pub fn blobs(name: &str, blobs: Vec<Bytes>, at: At) -> Result<Store> {
    let mut tasks: BTreeMap<(TaskNumber, Bytes), Vec<Row>> = BTreeMap::new();
    for bytes in blobs {
        let blob = Blob::decode(bytes.clone()).with_context(|| name.to_owned())?;
        let first = blob.tasks.first().with_context(|| format!("{name}: a blob without tasks"))?.number;
        let row = |task: lockstep_types::blob::BlobTask| {
            let messages = task.messages.into_iter().map(|m| (m.sequence, m.id, m.message.data)).collect();
            let rows = lockstep_types::task::rows(&task.id, task.ruled.as_deref(), messages);
            let messages = rows.into_iter().map(|(sequence, _, data)| (sequence, data.to_vec())).collect();
            Row { at, number: task.number, id: task.id, messages }
        };
        tasks.insert((first, bytes), blob.tasks.into_iter().map(row).collect());
    }
    Ok(Store { name: name.to_owned(), once: true, rows: tasks.into_values().flatten().collect() })
}

/// The blobs in a directory in which objects lie under their names.
///
/// # Errors
/// When it cannot be read.
pub fn blobs_below(directory: &Path) -> Result<Vec<Bytes>> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                let bytes = Bytes::from(std::fs::read(&path)?);
                found.extend(is_blob(&bytes).then_some(bytes));
            }
        }
    }
    Ok(found)
}
