//! Nodes that come and go while devices submit, by the commands of their operators.

use std::sync::Arc;
use std::time::Instant;

use lockstep_testkit::audit::audit;
use lockstep_testkit::cluster::{Ballot, Cluster, ClusterOptions};
use lockstep_testkit::history::History;
use lockstep_testkit::load::{Load, LoadOptions};

use crate::steps::{TAKEOVER_MAX, first_answer_after, milliseconds, more_messages};
use crate::{SOON, binary};

/// Messages acknowledged between one change and the next.
const MESSAGES_BETWEEN: usize = 300;

fn member_urls(cluster: &Cluster) -> Vec<String> {
    cluster.members().into_iter().map(|index| cluster.node(index).url()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_node_grows_to_three_and_then_leaves_them() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(1)).await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, MESSAGES_BETWEEN).await;
    let (mut joins, begun) = (Vec::new(), Instant::now());
    for _ in 0..2 {
        let asked_at = Instant::now();
        let index = cluster.add_node().await;
        joins.push(asked_at.elapsed());
        assert_eq!(cluster.voters().len(), index + 1);
        load.set_urls(member_urls(&cluster));
        more_messages(&history, MESSAGES_BETWEEN).await;
    }
    println!("from the first word to a vote: {}", milliseconds(joins));
    println!("longest time without an acknowledgement: {:?}", history.longest_silence(begun, Instant::now()));

    // The others know each other well enough to go on without the first one.
    let first = cluster.node(0).id;
    let (removed_at, urls) = (Instant::now(), member_urls(&cluster));
    load.set_urls(urls[1..].to_vec());
    cluster.remove_node(0).await;
    println!("removed after {:?}", removed_at.elapsed());
    let leader = cluster.wait_leader(SOON).await;
    assert_ne!(cluster.node(leader).id, first);
    first_answer_after(&history, Instant::now()).await;
    let silence = history.longest_silence(removed_at, Instant::now());
    println!("longest time without an acknowledgement while the leader was removed: {silence:?}");
    more_messages(&history, MESSAGES_BETWEEN).await;

    let report = load.stop().await;
    println!("{:?}, {report:?}", audit(&mut cluster, &history).await);
    assert_eq!(history.failures(), Vec::<String>::new());
    assert!(silence <= TAKEOVER_MAX, "nothing was acknowledged for {silence:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_approved_is_finished_by_whoever_leads_after_a_crash() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, MESSAGES_BETWEEN).await;
    let newcomer = cluster.ask_to_join(0).await.unwrap();
    cluster.change(Ballot::Admit, newcomer).await;
    cluster.wait_ready(newcomer, SOON).await;
    // The leader dies right after the approval that decides.
    let voted = cluster.vote(Ballot::Promote, newcomer).await;
    let leader = cluster.wait_leader(SOON).await;
    cluster.kill(leader);
    println!("voted: {voted:?}");
    cluster.wait_leader(SOON).await;
    cluster.change(Ballot::Promote, newcomer).await;
    cluster.start_all().await;
    load.set_urls(member_urls(&cluster));
    more_messages(&history, MESSAGES_BETWEEN).await;
    let report = load.stop().await;
    println!("{:?}, {report:?}", audit(&mut cluster, &history).await);
}
