//! What nodes and outputs hold in the end, for [`crate::order::check`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use lockstep_types::blob::{Blob, is_blob};
use lockstep_types::export::ExportedMessage;
use lockstep_types::{Batch, Certificate, ExportPage, ExportedBatch, Height, NodeId, Sequence, TaskNumber};

use crate::http;
use crate::order::{At, Chain, Row, Store};
use crate::outputs::OutputRows;

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
            let messages = task.messages.into_iter().map(|m| (m.sequence, m.message.data.to_vec())).collect();
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
