//! `lockstep status`.

use anyhow::Context as _;
use lockstep_api::views::{StatusView, TransferView};
use lockstep_client::Client;

use crate::args::Status;

pub async fn run(options: &Status) -> anyhow::Result<()> {
    let client = Client::new(vec![options.url.clone()])?;
    let status: StatusView =
        client.get_json_from(0, "/api/status").await.with_context(|| format!("no status from {}", options.url))?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print(&status);
    }
    Ok(())
}

fn print(status: &StatusView) {
    let role = serde_json::to_value(status.role).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    println!("network  {} (epoch {})", status.network, status.epoch);
    println!("node     {} {} {}", status.node.id, status.node.address, status.node.peer_id);
    println!("role     {role}, term {}", status.term);
    match &status.leader {
        Some(leader) => println!("leader   {} {}", leader.id, leader.http),
        None => println!("leader   none known"),
    }
    let head = &status.head;
    println!("head     height {}, sequence {}, {}", head.height, head.sequence, head.hash);
    println!("final    to height {}, kept from height {}", head.final_height, head.oldest_height);
    if let Some(chain) = &status.chain {
        let block = chain.block.map_or_else(|| "none yet".to_owned(), |block| block.to_string());
        let behind = chain.behind.map(|blocks| format!(", {blocks} confirmed blocks behind")).unwrap_or_default();
        println!("chain    followed to block {block}{behind}");
    }
    if let Some(w3bstream) = &status.w3bstream {
        let problem = w3bstream.problem.as_deref().map(|problem| format!(": {problem}")).unwrap_or_default();
        let (peers, announced, waiting) = (w3bstream.peers, w3bstream.announced, w3bstream.waiting);
        println!("w3bstream {peers} peers listen, {announced} tasks announced, {waiting} wait{problem}");
    }
    if let Some(state) = &status.fetching {
        println!("fetching the state from node {}: {}", state.node, so_far(state));
    }
    for state in &status.sending {
        println!("sending  the state to node {}: {}", state.node, so_far(state));
    }
    for peer in &status.peers {
        let connected = if peer.connected { "connected" } else { "NOT connected" };
        println!("peer     {} {} {connected} {}", peer.id, peer.name, peer.http);
    }
    for output in &status.outputs {
        let error = output.error.as_deref().map(|e| format!(": {e}")).unwrap_or_default();
        if output.removed {
            println!("output   {} REMOVED{error}", output.name);
            continue;
        }
        let paused = if output.paused { ", PAUSED" } else { "" };
        println!("output   {} at height {}, lag {}{paused}{error}", output.name, output.height, output.lag);
        if output.refused > 0 {
            println!(
                "output   {} refused {} tasks: `lockstep outputs status` says why, `retry` tries them again",
                output.name, output.refused
            );
        }
        for gap in &output.gaps {
            println!(
                "output   {} never got tasks {} to {}: they were forgotten before",
                output.name, gap.first, gap.last
            );
        }
    }
    if let Some(held) = &status.held_back {
        println!(
            "kept     from height {} on for output {}, which lacks task {}",
            held.height, held.output, held.next_task
        );
    }
    println!("version  {}, rules {}", status.version, status.rules_version);
    for complaint in &status.complaints {
        println!("LOOK AT  {complaint}");
    }
}

fn so_far(state: &TransferView) -> String {
    let problem = state.problem.as_deref().map(|problem| format!(": {problem}")).unwrap_or_default();
    format!("{} of {} bytes{problem}", state.bytes, state.of)
}
