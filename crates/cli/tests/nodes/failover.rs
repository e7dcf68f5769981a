//! Nodes that are killed, and nodes that are asked to stop, while devices submit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_testkit::audit::audit;
use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::history::History;
use lockstep_testkit::load::{Load, LoadOptions};
use lockstep_testkit::postgres::Postgres;
use lockstep_testkit::random::Random;

use crate::steps::{TAKEOVER_MAX, first_answer_after, milliseconds, more_messages};
use crate::{SOON, binary};

const KILLS: usize = 10;
/// Messages acknowledged with all nodes up, between one kill and the next.
const MESSAGES_BETWEEN: usize = 300;
/// How often all nodes are started and asked to stop: what ends in the wrong order does not do so every time.
const STOPS: usize = 10;
/// How often all nodes are killed at once.
const BLACKOUTS: usize = 3;
/// Longest time without an acknowledged message while the lead is handed over.
const HAND_OVER_SILENCE_MAX: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_nine_of_any_node_again_and_again_loses_moves_and_repeats_nothing() {
    let mut random = Random::from_environment();
    let postgres = Postgres::start();
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3).with_postgres(postgres.dsn())).await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions { seed: random.number(), ..LoadOptions::of(cluster.urls()) }, &history);
    let (mut takeovers, mut others, mut returns) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..KILLS {
        more_messages(&history, MESSAGES_BETWEEN).await;
        let leader = cluster.wait_leader(SOON).await;
        let victim = if round % 2 == 0 { leader } else { random.below(cluster.len()) };
        let term = cluster.status(leader).await.unwrap().term;
        let killed_at = Instant::now();
        cluster.kill(victim);
        if victim == leader {
            let led = cluster.wait_other_leader(victim, term, SOON);
            let (led, answered) = tokio::join!(led, first_answer_after(&history, killed_at));
            takeovers.push(led.max(answered) - killed_at);
        } else {
            others.push(first_answer_after(&history, killed_at).await - killed_at);
        }
        let started_at = Instant::now();
        cluster.start_node(victim);
        cluster.wait_ready(victim, SOON).await;
        returns.push(started_at.elapsed());
    }
    more_messages(&history, MESSAGES_BETWEEN).await;
    let report = load.stop().await;
    let checked = audit(&mut cluster, &history).await;
    println!("{checked:?}, {report:?}");
    println!("leader killed, until a new one acknowledges: {}", milliseconds(takeovers.clone()));
    println!("another node killed, until the next acknowledgement: {}", milliseconds(others));
    println!("killed node ready again: {}", milliseconds(returns));
    println!("failed calls: {:?}", history.failures());
    assert!(takeovers.len() >= KILLS / 2);
    let longest = takeovers.iter().max().unwrap();
    assert!(*longest <= TAKEOVER_MAX, "a takeover took {longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_that_are_asked_to_stop_hand_over_and_no_submission_fails() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    let (mut silences, mut stops) = (Vec::new(), Vec::new());
    for _ in 0..cluster.len() {
        more_messages(&history, MESSAGES_BETWEEN).await;
        let leader = cluster.wait_leader(SOON).await;
        let asked_at = Instant::now();
        cluster.terminate(leader);
        let status = cluster.node_mut(leader).process.ended(SOON + SOON).await;
        stops.push(asked_at.elapsed());
        assert!(status.success(), "{status}:\n{}", cluster.node(leader).process.log_tail());
        assert_ne!(cluster.wait_leader(SOON).await, leader);
        more_messages(&history, MESSAGES_BETWEEN).await;
        silences.push(history.longest_silence(asked_at, Instant::now()));
        cluster.start_node(leader);
        cluster.wait_ready(leader, SOON).await;
    }
    let report = load.stop().await;
    let checked = audit(&mut cluster, &history).await;
    println!("{checked:?}, {report:?}");
    println!("longest time without an acknowledgement: {}", milliseconds(silences.clone()));
    println!("from the signal to the end of the process: {}", milliseconds(stops));
    assert_eq!(history.failures(), Vec::<String>::new());
    let longest = silences.iter().max().unwrap();
    assert!(*longest < HAND_OVER_SILENCE_MAX, "nothing was acknowledged for {longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_nine_of_all_nodes_at_once_loses_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    for _ in 0..BLACKOUTS {
        more_messages(&history, MESSAGES_BETWEEN).await;
        (0..cluster.len()).for_each(|index| cluster.kill(index));
        cluster.start_all().await;
    }
    more_messages(&history, MESSAGES_BETWEEN).await;
    let report = load.stop().await;
    println!("{:?}, {report:?}", audit(&mut cluster, &history).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_asked_to_stop_all_at_once_end_without_an_error_every_time() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    let mut bad = Vec::new();
    for _ in 0..STOPS {
        more_messages(&history, MESSAGES_BETWEEN / 10).await;
        (0..cluster.len()).for_each(|index| cluster.terminate(index));
        for index in 0..cluster.len() {
            let process = &mut cluster.node_mut(index).process;
            let status = process.ended(SOON + SOON).await;
            if !status.success() {
                bad.push(format!("{status}: {}", process.log().lines().last().unwrap_or_default()));
            }
        }
        cluster.start_all().await;
    }
    let report = load.stop().await;
    println!("{:?}, {report:?}", audit(&mut cluster, &history).await);
    assert_eq!(bad, Vec::<String>::new(), "{} of {} stops", bad.len(), STOPS * cluster.len());
}
