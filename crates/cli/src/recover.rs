//! `lockstep recover` and `lockstep rebuild`.

use std::time::Duration;

use lockstep_api::views::StatusView;
use lockstep_client::{Client, ClientOptions};
use lockstep_node::recover::{Plan, Recovered};
use lockstep_node::{Home, NodeError, rebuild, recover};
use lockstep_types::NodeId;

use crate::args::{Rebuild, Recover};

/// Longest wait for another voter to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

fn refuse(reason: String) -> anyhow::Result<()> {
    Err(NodeError::Config(reason).into())
}

pub async fn recover(options: Recover) -> anyhow::Result<()> {
    let home = Home::at(&options.home);
    if !recover::is_unfinished(&home) {
        let plan = recover::plan(&home)?;
        let answering = answering(&plan).await;
        // With this node started, they would be a majority.
        if !options.even_so && answering.len() + 1 > plan.voters.len() / 2 && plan.voters.len() > 1 {
            let nodes: Vec<String> = answering.iter().map(ToString::to_string).collect();
            return refuse(format!(
                "of the {} voters node {} answers: together with this one that is a majority, so nothing is lost; start this node instead (`--even-so` goes on all the same and shuts the others out)",
                plan.voters.len(),
                nodes.join(", ")
            ));
        }
    }
    if !options.accept_loss {
        return refuse(format!(
            "this begins a new epoch in {}, with this node as its only voter: what the other voters acknowledged and this node has not received is lost for good, and all other nodes have to join again. First try to get a majority of the voters back. If they are lost: `lockstep recover --unsafe --home {0}`",
            home.path().display()
        ));
    }
    let target = home.clone();
    let recovered = tokio::task::spawn_blocking(move || recover::recover(&target, options.stop_before)).await??;
    explain(&home, &recovered);
    Ok(())
}

/// Voters of the network that answer, this node not included.
async fn answering(plan: &Plan) -> Vec<NodeId> {
    let others = plan.voters.iter().filter(|(node, _)| *node != plan.node);
    let asked = others.map(|(node, member)| {
        let (node, url, network, epoch) = (*node, member.http.clone(), plan.genesis.network.clone(), plan.epoch);
        tokio::spawn(async move {
            let limits = ClientOptions { attempt_timeout: ASK_TIMEOUT, ..ClientOptions::default() };
            let client = Client::with_options(vec![url], limits).ok()?;
            let asked = client.get_json_from::<StatusView>(0, "/api/status");
            let status = tokio::time::timeout(2 * ASK_TIMEOUT, asked).await.ok()?.ok()?;
            (status.network == network && status.epoch == epoch && status.node.id == node).then_some(node)
        })
    });
    let mut found = Vec::new();
    for asked in asked.collect::<Vec<_>>() {
        found.extend(asked.await.ok().flatten());
    }
    found
}

fn explain(home: &Home, recovered: &Recovered) {
    let record = &recovered.record;
    let node = record.members.first().map_or(0, |member| member.node.0);
    println!("epoch    {}", record.epoch);
    println!("parent   height {}, {}", record.parent_height, record.parent_hash);
    println!("node     {node}, the only voter");
    println!("lost?    {}", record.possible_loss);
    println!("kept     the old store is {}", recovered.kept.display());
    println!("Other nodes of the old epoch join again, each in a new home:");
    println!("  lockstep init --join ADDRESS_OF_THIS_NODE --home NEW_DIR");
    println!("Outputs of the old epoch refuse this network until they are told, one by one:");
    println!("  lockstep outputs adopt --home {} NAME", home.path().display());
    println!("start it with: lockstep start --home {}", home.path().display());
}

pub async fn rebuild(options: &Rebuild) -> anyhow::Result<()> {
    let home = Home::at(&options.home);
    let target = home.clone();
    let done = tokio::task::spawn_blocking(move || rebuild::rebuild(&target)).await??;
    println!("the log is whole: {} entries were read", done.entries);
    match &done.kept {
        Some(kept) => println!("the state was put aside: {}; remove it when all is well", kept.display()),
        None => println!("there was no state"),
    }
    if done.from_member {
        println!(
            "the log no longer begins at the beginning: the next start fetches the state from another member first"
        );
    } else {
        println!("the next start makes the state anew from the log");
    }
    println!("start it with: lockstep start --home {}", home.path().display());
    Ok(())
}
