//! What a test network is doing, for the one who watches it.

use std::convert::Infallible;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use lockstep_api::views::StatusView;
use lockstep_client::Client;
use serde::Deserialize;

use crate::testnet::layout::Layout;

const INTERVAL: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(100);

/// One client a node, so that a node that is down does not delay the others' figures.
fn clients(layout: &Layout) -> Vec<Client> {
    layout.nodes.iter().filter_map(|node| Client::new(vec![node.http.clone()]).ok()).collect()
}

async fn status(client: &Client) -> Option<StatusView> {
    tokio::time::timeout(INTERVAL, client.get_json_from(0, "/api/status")).await.ok()?.ok()
}

/// Waits until every node answers and knows a leader.
pub async fn wait_for_leader(layout: &Layout, limit: Duration) -> anyhow::Result<()> {
    let clients = clients(layout);
    let wait = async {
        for client in &clients {
            while status(client).await.is_none_or(|status| status.leader.is_none()) {
                tokio::time::sleep(POLL).await;
            }
        }
    };
    tokio::time::timeout(limit, wait)
        .await
        .map_err(|_| anyhow::anyhow!("no leader within {} s; the nodes' logs are in node-N/node.log", limit.as_secs()))
}

#[derive(Debug, Default, Clone, Copy)]
struct Totals {
    ordered: u64,
    batches: u64,
    tasks: u64,
    published: u64,
}

#[derive(Deserialize)]
struct BatchTasks {
    tasks: Vec<String>,
}

#[derive(Deserialize)]
struct TaskNumber {
    number: u64,
}

/// Number of the newest task up to a height, from the node's own answers.
async fn tasks_up_to(client: &Client, height: u64) -> Option<u64> {
    if height == 0 {
        return Some(0);
    }
    let batch: BatchTasks = client.get_json_from(0, &format!("/api/batches/{height}")).await.ok()?;
    let task: TaskNumber = client.get_json_from(0, &format!("/api/tasks/{}", batch.tasks.last()?)).await.ok()?;
    Some(task.number)
}

async fn totals(client: &Client, status: &StatusView, before: Totals) -> Totals {
    let height = status.head.height.0;
    let published = status.outputs.iter().map(|output| output.height.0).min().unwrap_or(0);
    Totals {
        ordered: status.head.sequence.0,
        batches: height,
        tasks: tasks_up_to(client, height).await.unwrap_or(before.tasks),
        published: tasks_up_to(client, published).await.unwrap_or(before.published),
    }
}

/// Shows a line a second, or in a terminal a table that stays in its place, until dropped.
pub async fn show(layout: &Layout) -> Infallible {
    let clients = clients(layout);
    let in_place = std::io::stdout().is_terminal();
    let (mut before, mut last, mut drawn) = (None::<Totals>, Instant::now(), 0);
    loop {
        tokio::time::sleep(INTERVAL).await;
        let mut statuses = Vec::new();
        for client in &clients {
            statuses.push(status(client).await);
        }
        let newest = statuses.iter().zip(&clients).filter_map(|(s, c)| Some((s.as_ref()?, c)));
        let Some((newest, client)) = newest.max_by_key(|(status, _)| status.head.sequence) else {
            continue;
        };
        let now = totals(client, newest, before.unwrap_or_default()).await;
        let lines = lines(layout, &statuses, now, before.unwrap_or(now), last.elapsed());
        (before, last) = (Some(now), Instant::now());
        if in_place {
            if drawn > 0 {
                print!("\x1b[{drawn}A\x1b[J");
            }
            println!("{}", lines.join("\n"));
            drawn = lines.len();
        } else {
            println!("{}", lines.first().cloned().unwrap_or_default());
        }
        // Nobody to tell if standard output is gone.
        let _ = std::io::stdout().flush();
    }
}

fn lines(
    layout: &Layout,
    statuses: &[Option<StatusView>],
    now: Totals,
    before: Totals,
    elapsed: Duration,
) -> Vec<String> {
    let seconds = elapsed.as_secs_f64().max(0.001);
    let rate = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds).round();
    let leader = statuses.iter().flatten().find_map(|status| status.leader.as_ref());
    let leader = leader.map_or("none".into(), |leader| leader.id.to_string());
    let summary = format!(
        "leader {leader}  ordered {} ({}/s)  batches {} ({}/s)  tasks {} ({}/s)  published {} ({}/s)",
        now.ordered,
        rate(now.ordered, before.ordered),
        now.batches,
        rate(now.batches, before.batches),
        now.tasks,
        rate(now.tasks, before.tasks),
        now.published,
        rate(now.published, before.published),
    );
    let node = |(node, status): (&crate::testnet::layout::Node, &Option<StatusView>)| match status {
        Some(status) => format!(
            "  node {}  {}  height {}  sequence {}  {}",
            node.id,
            format!("{:?}", status.role).to_lowercase(),
            status.head.height,
            status.head.sequence,
            node.http
        ),
        None => format!("  node {}  does not answer  {}", node.id, node.http),
    };
    std::iter::once(summary).chain(layout.nodes.iter().zip(statuses).map(node)).collect()
}
