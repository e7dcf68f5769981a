//! Networks between nodes that are cut, and nodes that stop for a while without ending, while devices submit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_testkit::audit::audit;
use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::history::History;
use lockstep_testkit::http::get;
use lockstep_testkit::load::{Load, LoadOptions};
use lockstep_testkit::wait::{always, eventually};

use crate::steps::{TAKEOVER_MAX, first_answer_after, milliseconds, more_messages};
use crate::{SOON, binary};

/// Messages acknowledged with the network whole, between one fault and the next.
const MESSAGES_BETWEEN: usize = 300;
/// Answers that were on their way when the network was cut are there by then.
const UNDER_WAY: Duration = Duration::from_millis(300);
/// Short enough for connections to live on; see `SILENCE_MAX` of the network.
const SHORT: Duration = Duration::from_secs(3);
/// Long enough for connections to be given up by both sides.
const LONG: Duration = Duration::from_secs(7);

async fn network() -> (Cluster, Arc<History>, Load) {
    let cluster = Cluster::start(binary(), ClusterOptions::of(3).with_partitions()).await;
    let history = Arc::new(History::new());
    let patience = LoadOptions { attempt_timeout: Duration::from_secs(1), ..LoadOptions::of(cluster.urls()) };
    let load = Load::start(&patience, &history);
    more_messages(&history, MESSAGES_BETWEEN).await;
    (cluster, history, load)
}

/// Messages that a node said after an instant to have ordered. What was ordered before it may tell to whoever asks
/// again, also when it is cut off.
fn answers_of(history: &History, url: &str, after: Instant) -> usize {
    let records = history.records();
    let answers = records.iter().filter_map(|record| record.acknowledgement());
    answers.filter(|answer| answer.node == url && answer.at > after && !answer.duplicate).count()
}

async fn audited(mut cluster: Cluster, history: &History, load: Load) {
    let report = load.stop().await;
    let checked = audit(&mut cluster, history).await;
    println!("{checked:?}, {report:?}, failures: {:?}", history.failures());
    let fabric = cluster.fabric();
    assert_eq!((fabric.strangers(), cluster.bypasses()), (0, vec![]), "connections that a cut does not reach");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_acknowledges_nothing_more_and_the_others_go_on() {
    let (mut cluster, history, load) = network().await;
    let mut takeovers = Vec::new();
    for (lasts, closes) in [(SHORT, false), (LONG, false), (SHORT, true)] {
        let leader = cluster.wait_leader(SOON).await;
        let term = cluster.status(leader).await.unwrap().term;
        let cut_at = Instant::now();
        cluster.isolate(leader);
        let led = cluster.wait_other_leader(leader, term, SOON);
        let (led, answered) = tokio::join!(led, first_answer_after(&history, cut_at + UNDER_WAY));
        takeovers.push(led.max(answered) - cut_at);
        let url = cluster.node(leader).url();
        let rest = lasts.saturating_sub(cut_at.elapsed());
        always("the old leader acknowledges nothing", rest, async || {
            match answers_of(&history, &url, cut_at + UNDER_WAY) {
                0 => Ok(()),
                count => Err(format!("{count} answers")),
            }
        })
        .await;
        assert_eq!(answers_of(&history, &url, cut_at + UNDER_WAY), 0);
        if closes {
            cluster.heal_and_close()
        } else {
            cluster.heal()
        }
        let healed_at = Instant::now();
        cluster.wait_ready(leader, SOON).await;
        eventually("the old leader acknowledges again", SOON, async || {
            // Devices stay with a node that answers, so those that went away have to be sent back: again and again,
            // because it may not have heard yet that another one leads.
            load.set_urls(cluster.urls());
            match answers_of(&history, &url, healed_at) {
                0 => Err("no answer yet".to_owned()),
                _ => Ok(()),
            }
        })
        .await;
        more_messages(&history, MESSAGES_BETWEEN).await;
    }
    println!("leader cut off, until a new one acknowledges: {}", milliseconds(takeovers.clone()));
    audited(cluster, &history, load).await;
    let longest = takeovers.iter().max().unwrap();
    assert!(*longest <= TAKEOVER_MAX, "a takeover took {longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_cut_off_disturbs_nobody_and_catches_up() {
    let (mut cluster, history, load) = network().await;
    let leader = cluster.wait_leader(SOON).await;
    let term = cluster.status(leader).await.unwrap().term;
    let follower = (leader + 1) % cluster.len();
    let cut_at = Instant::now();
    cluster.isolate(follower);
    tokio::time::sleep(LONG).await;
    let url = cluster.node(follower).url();
    assert_eq!(answers_of(&history, &url, cut_at + UNDER_WAY), 0);
    let silence = history.longest_silence(cut_at, Instant::now());
    cluster.heal();
    let healed_at = Instant::now();
    cluster.wait_ready(follower, SOON).await;
    println!("it is ready {:?} after the healing", healed_at.elapsed());
    more_messages(&history, MESSAGES_BETWEEN).await;
    let status = cluster.status(leader).await.unwrap();
    println!("longest time without an acknowledgement: {silence:?}");
    audited(cluster, &history, load).await;
    assert_eq!(status.term, term, "a node that comes back does not depose the leader");
    assert!(
        silence < Duration::from_secs(2),
        "one of three nodes was cut off, nothing was acknowledged for {silence:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_cut_off_tell_the_balancer_that_they_are_not_ready() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3).with_partitions()).await;
    let leader = cluster.wait_leader(SOON).await;
    for victim in [(leader + 1) % cluster.len(), leader] {
        let cut_at = Instant::now();
        cluster.isolate(victim);
        let address = cluster.node(victim).address();
        eventually("the balancer is told", SOON, async || match get(address, "/readyz").await {
            answer if answer.status == 503 => Ok(()),
            answer => Err(answer.text()),
        })
        .await;
        println!("node {victim} (the leader is {leader}) said so after {:?}", cut_at.elapsed());
        cluster.heal();
        cluster.wait_ready(victim, SOON).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_with_one_cable_cut_goes_on() {
    let (mut cluster, history, load) = network().await;
    let leader = cluster.wait_leader(SOON).await;
    let cut_at = Instant::now();
    cluster.fabric().cut(leader, (leader + 1) % cluster.len());
    tokio::time::sleep(LONG).await;
    let silence = history.longest_silence(cut_at, Instant::now());
    cluster.heal_and_close();
    cluster.start_all().await;
    more_messages(&history, MESSAGES_BETWEEN).await;
    println!("longest time without an acknowledgement: {silence:?}");
    audited(cluster, &history, load).await;
    assert!(silence <= TAKEOVER_MAX, "nothing was acknowledged for {silence:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_in_pieces_acknowledges_nothing_and_goes_on_when_it_is_whole() {
    let (mut cluster, history, load) = network().await;
    let cut_at = Instant::now();
    cluster.partition(&[&[0], &[1], &[2]]);
    // A device that had no answer asks another node once more, which knows the place that the message has already.
    tokio::time::sleep(UNDER_WAY + lockstep_testkit::load::LoadOptions::of(Vec::new()).deadline).await;
    let before = history.acknowledged();
    tokio::time::sleep(SHORT).await;
    assert_eq!(history.acknowledged(), before, "no node has a majority");
    cluster.heal();
    let healed_at = Instant::now();
    first_answer_after(&history, healed_at).await;
    println!("in pieces for {:?}, acknowledges {:?} after the healing", healed_at - cut_at, healed_at.elapsed());
    cluster.start_all().await;
    more_messages(&history, MESSAGES_BETWEEN).await;
    audited(cluster, &history, load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stands_still_is_replaced_and_takes_back_nothing() {
    let (mut cluster, history, load) = network().await;
    let mut takeovers = Vec::new();
    for lasts in [SHORT, LONG, SHORT] {
        let leader = cluster.wait_leader(SOON).await;
        let term = cluster.status(leader).await.unwrap().term;
        let paused_at = Instant::now();
        cluster.pause(leader);
        let led = cluster.wait_other_leader(leader, term, SOON);
        let (led, answered) = tokio::join!(led, first_answer_after(&history, paused_at + UNDER_WAY));
        takeovers.push(led.max(answered) - paused_at);
        tokio::time::sleep(lasts.saturating_sub(paused_at.elapsed())).await;
        cluster.resume(leader);
        cluster.wait_ready(leader, SOON).await;
        more_messages(&history, MESSAGES_BETWEEN).await;
    }
    println!("leader paused, until a new one acknowledges: {}", milliseconds(takeovers.clone()));
    audited(cluster, &history, load).await;
    let longest = takeovers.iter().max().unwrap();
    assert!(*longest <= TAKEOVER_MAX, "a takeover took {longest:?}");
}
