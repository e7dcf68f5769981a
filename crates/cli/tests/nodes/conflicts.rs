//! A voter that signed two batches at one height: the others acknowledge nothing while it has a vote.

use std::fs;

use lockstep_testkit::cluster::{Ballot, Cluster, ClusterOptions};
use lockstep_testkit::wait::eventually;
use lockstep_types::certificate::sign_batch;
use lockstep_types::conflict::Conflict;
use lockstep_types::{BatchHeader, Height, NodeId, ProjectId, SigningKey, TimeMs};
use prost::Message as _;
use serde_json::{Value, json};

use crate::{SOON, binary};

/// A header of a batch that nobody made.
fn header(cluster: &Cluster, time_ms: u64) -> BatchHeader {
    let network = cluster.genesis().id().unwrap();
    BatchHeader { time_ms: TimeMs(time_ms), ..BatchHeader::of_nothing(network, Height(1_000)) }
}

async fn submit(cluster: &Cluster, index: usize, data: &str) -> u16 {
    let key = SigningKey::from_bytes([7; 32]).unwrap();
    let body = lockstep_identity::apinode::sign_body(&key, ProjectId(7), "0.1", data);
    let answer = lockstep_testkit::http::request(cluster.node(index).address(), "POST", "/message", body.as_bytes());
    answer.await.map_or(0, |answer| answer.status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_while_a_voter_that_signed_twice_has_a_vote() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    assert_eq!(submit(&cluster, 0, "before").await, 200);
    let culprit = 2;
    let node: NodeId = cluster.status(culprit).await.unwrap().node.id;
    let key = fs::read_to_string(cluster.node(culprit).process.home().join("node.key")).unwrap();
    let key = SigningKey::from_hex(&key).unwrap();
    let signed = [1, 2].map(|time| {
        let header = header(&cluster, time);
        let signature = sign_batch(&key, &header.hash());
        (header, signature)
    });
    let proof = Conflict { node, signed }.to_proto().encode_to_vec();
    let name = format!("conflict-0-1000-{node}.hex");
    // As a node writes it down that has seen both.
    let text: String = proof.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(cluster.node(0).process.home().join(&name), text).unwrap();
    cluster.kill(0);
    cluster.start_node(0);
    for index in 0..cluster.len() {
        eventually("the node shows it", SOON, async || {
            let complaints = cluster.status(index).await?.complaints;
            let shown =
                complaints.iter().any(|c| c.contains(&format!("node {node} signed two batches at height 1000")));
            if shown { Ok(()) } else { Err(format!("{complaints:?}")) }
        })
        .await;
        let kept = cluster.node(index).process.home().join(&name);
        eventually("every node keeps the proof", SOON, async || {
            if kept.exists() { Ok(()) } else { Err(kept.display().to_string()) }
        })
        .await;
        assert_eq!(submit(&cluster, index, "meanwhile").await, 503);
    }
    // The way out: without its vote the others go on.
    cluster.change(Ballot::Remove, culprit).await;
    for index in [0, 1] {
        eventually("messages are taken again", SOON, async || match submit(&cluster, index, "afterwards").await {
            200 => Ok(()),
            status => Err(status.to_string()),
        })
        .await;
        let status: Value = serde_json::to_value(cluster.status(index).await.unwrap()).unwrap();
        assert_eq!(status["complaints"], json!([]));
    }
    cluster.assert_no_panics();
}
