//! All nodes lose power at one moment, and what they had not synced goes. For real: the nodes run on a library that
//! keeps account of it (`testkit::disk`).

use std::sync::Arc;
use std::time::Duration;

use lockstep_testkit::audit::{audit, read_chain};
use lockstep_testkit::chaos;
use lockstep_testkit::check::{Findings, Promise, check};
use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::disk::{Loss, Lost, library};
use lockstep_testkit::history::History;
use lockstep_testkit::load::{Load, LoadOptions};
use lockstep_testkit::random::Random;

use crate::steps::more_messages;
use crate::{SOON, binary};

/// Power losses of one run.
const LOSSES: usize = 6;
/// Messages between one and the next.
const MESSAGES: usize = 150;
/// A short run of everything that can go wrong; `make chaos` takes longer.
const CHAOS: Duration = Duration::from_secs(40);

fn lose_power(cluster: &mut Cluster, random: &mut Random) -> Lost {
    let mut lost = Lost::default();
    // At one moment: nobody goes on while others are being killed.
    (0..cluster.len()).for_each(|node| cluster.pause(node));
    (0..cluster.len()).for_each(|node| cluster.kill(node));
    for node in 0..cluster.len() {
        let loss = Loss::any(random);
        lost += cluster.disk(node).lose_power(loss, random).unwrap();
    }
    lost
}

async fn under_load(cluster: &Cluster) -> (Arc<History>, Load) {
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, MESSAGES).await;
    (history, load)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_lose_power_again_and_again_and_nothing_that_was_acknowledged_is_lost() {
    if library().is_none() {
        println!("the library is for Linux with glibc");
        return;
    }
    let mut random = Random::from_environment();
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3).with_disks()).await;
    let (history, load) = under_load(&cluster).await;
    let mut lost = Lost::default();
    for _ in 0..LOSSES {
        more_messages(&history, MESSAGES).await;
        lost += lose_power(&mut cluster, &mut random);
        cluster.start_all().await;
    }
    load.stop().await;
    println!("{:?}, {lost:?}", audit(&mut cluster, &history).await);
    assert!(lost.bytes > 0 && lost.files > 0, "the power losses took nothing: {lost:?}");
    assert!((0..3).all(|node| cluster.disk(node).syncs() > 0));
}

/// What makes the test above worth something: had the nodes not synced, it would have been seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_do_not_sync_lose_what_they_acknowledged_and_the_checker_says_so() {
    if library().is_none() {
        println!("the library is for Linux with glibc");
        return;
    }
    let mut random = Random::from_environment();
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3).with_disks()).await;
    (0..3).for_each(|node| cluster.disk(node).ignore_syncs(true));
    let (history, load) = under_load(&cluster).await;
    load.stop().await;
    (0..3).for_each(|node| cluster.pause(node));
    (0..3).for_each(|node| cluster.kill(node));
    for node in 0..3 {
        cluster.disk(node).lose_power(Loss::All, &mut random).unwrap();
        cluster.disk(node).ignore_syncs(false);
    }
    cluster.start_all().await;
    cluster.wait_head_equal(SOON).await;
    let chain = read_chain(cluster.client(), 0, "node 1").await.unwrap();
    let first_task = cluster.genesis().params.first_task_number;
    let findings = Findings { records: history.records(), chains: vec![chain], first_task, ..Findings::default() };
    let violations = check(&findings).unwrap_err();
    println!("{} of {} acknowledged messages are lost", violations.0.len(), history.acknowledged());
    assert_eq!(violations.promises(), [Promise::Kept]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_time_of_chaos_breaks_no_promise() {
    let options = chaos::Options {
        binary: binary().to_owned(),
        length: CHAOS,
        nodes: 5,
        seed: std::env::var("LOCKSTEP_SEED").map_or(1, |text| text.parse().expect("a number")),
        per_second: 400,
        no_sync: false,
        keep: false,
    };
    let (report, violations) = chaos::play(options).await.unwrap();
    println!("{report:?}");
    assert_eq!(violations.count, 0, "{violations}");
    assert!(report.fault_count() > 0 && report.acknowledged.values().all(|count| *count > 0), "{report:?}");
}
