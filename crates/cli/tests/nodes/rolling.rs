//! Restarts of all nodes one after the other, as an upgrade makes them, while devices submit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_testkit::audit::audit;
use lockstep_testkit::balancer::Balancer;
use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::history::History;
use lockstep_testkit::load::{Load, LoadOptions, LoadReport};

use crate::steps::{milliseconds, more_messages};
use crate::{SOON, binary};

/// How often every node is restarted.
const TIMES: usize = 2;
/// Messages acknowledged with all nodes up, between one restart and the next.
const MESSAGES_BETWEEN: usize = 300;
/// Longest time without an acknowledged message.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// What the restarts of all nodes took.
struct Rolled {
    /// Longest time without an acknowledgement, of each restart.
    silences: Vec<Duration>,
    /// … of those that restarted the leader.
    of_leaders: Vec<Duration>,
    /// From the signal to the end of the process.
    stops: Vec<Duration>,
    /// From the signal until the node was ready again.
    returns: Vec<Duration>,
}

/// Restarts each node in turn, and with the last of each time around whoever leads then if nobody of that time did.
async fn roll(cluster: &mut Cluster, history: &History) -> Rolled {
    let mut rolled = Rolled { silences: vec![], of_leaders: vec![], stops: vec![], returns: vec![] };
    for _ in 0..TIMES {
        for index in 0..cluster.len() {
            more_messages(history, MESSAGES_BETWEEN).await;
            let leads = cluster.wait_leader(SOON).await == index;
            let asked_at = Instant::now();
            cluster.terminate(index);
            let status = cluster.node_mut(index).process.ended(SOON + SOON).await;
            rolled.stops.push(asked_at.elapsed());
            assert!(status.success(), "{status}:\n{}", cluster.node(index).process.log_tail());
            cluster.start_node(index);
            cluster.wait_ready(index, SOON).await;
            rolled.returns.push(asked_at.elapsed());
            more_messages(history, MESSAGES_BETWEEN).await;
            let silence = history.longest_silence(asked_at, Instant::now());
            rolled.silences.push(silence);
            rolled.of_leaders.extend(leads.then_some(silence));
        }
    }
    rolled
}

async fn rolled(urls: impl FnOnce(&Cluster) -> LoadOptions) -> (Rolled, LoadReport, Arc<History>) {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    let history = Arc::new(History::new());
    let load = Load::start(&urls(&cluster), &history);
    let rolled = roll(&mut cluster, &history).await;
    let report = load.stop().await;
    println!("{:?}, {report:?}", audit(&mut cluster, &history).await);
    println!("longest time without an acknowledgement: {}", milliseconds(rolled.silences.clone()));
    println!("… where the leader was restarted: {}", milliseconds(rolled.of_leaders.clone()));
    println!("from the signal to the end of the process: {}", milliseconds(rolled.stops.clone()));
    println!("from the signal until it is ready again: {}", milliseconds(rolled.returns.clone()));
    (rolled, report, history)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_is_not_noticed_by_devices_that_try_the_next_node() {
    let (rolled, _, history) = rolled(|cluster| LoadOptions::of(cluster.urls())).await;
    assert_eq!(history.failures(), Vec::<String>::new());
    assert!(!rolled.of_leaders.is_empty());
    let longest = rolled.silences.iter().max().unwrap();
    assert!(*longest < SILENCE_MAX, "nothing was acknowledged for {longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_behind_a_balancer_is_not_noticed_by_devices() {
    let mut balancer = None;
    let behind = |cluster: &Cluster| {
        let nodes: Vec<_> = (0..cluster.len()).map(|index| cluster.node(index).address()).collect();
        let url = balancer.insert(Balancer::start(&nodes)).url();
        // Each request is balanced by itself, as a balancer that reads HTTP does.
        LoadOptions { keep_connections: false, ..LoadOptions::of(vec![url]) }
    };
    let (rolled, report, history) = rolled(behind).await;
    let turned_away = balancer.map_or(0, |balancer| balancer.turned_away());
    println!("requests that were answered with an error: {}, without a node: {turned_away}", report.retries);
    assert_eq!(history.failures(), Vec::<String>::new());
    assert_eq!(turned_away, 0);
    let longest = rolled.silences.iter().max().unwrap();
    assert!(*longest < SILENCE_MAX, "nothing was acknowledged for {longest:?}");
}
