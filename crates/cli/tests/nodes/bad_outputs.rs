//! Outputs that are dead or slow, beside others that are not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_testkit::cluster::{Cluster, ClusterOptions, change_config};
use lockstep_testkit::history::History;
use lockstep_testkit::http::{get, local};
use lockstep_testkit::load::{Load, LoadOptions};
use lockstep_testkit::outputs::count_sqlite;
use lockstep_testkit::postgres::Postgres;
use lockstep_testkit::proxy::{Carrying, Proxy};
use lockstep_testkit::wait::eventually;

use crate::{SOON, binary};

/// Time between two looks while the rate is measured.
const LOOK: Duration = Duration::from_millis(250);
/// Looks of one phase.
const LOOKS: usize = 16;
/// Phases with good and with bad outputs, of each.
const PHASES: usize = 3;
/// What each answer of the slow store takes longer.
const SLOW: Duration = Duration::from_millis(1_500);
/// Devices, each with one message under way.
const DEVICES: usize = 64;

/// What a phase was like.
#[derive(Debug, Default)]
struct Phase {
    acknowledged: usize,
    seconds: f64,
    /// Batches that the good output lacked, at each look.
    lags: Vec<u64>,
}

impl Phase {
    fn rate(&self) -> f64 {
        self.acknowledged as f64 / self.seconds
    }
}

fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

async fn lag(cluster: &Cluster, node: usize, output: &str) -> u64 {
    let status = get(cluster.node(node).address(), "/api/status").await.json();
    let outputs = status["outputs"].as_array().unwrap().clone();
    outputs.iter().find(|view| view["name"] == output).unwrap()["lag"].as_u64().unwrap()
}

async fn final_height(cluster: &Cluster) -> u64 {
    get(cluster.node(0).address(), "/api/status").await.json()["head"]["final_height"].as_u64().unwrap()
}

async fn watch(cluster: &Cluster, history: &History, phase: &mut Phase) {
    // What was under way when the outputs changed belongs to neither phase.
    tokio::time::sleep(LOOK).await;
    let (before, begun) = (history.acknowledged(), Instant::now());
    for _ in 0..LOOKS {
        tokio::time::sleep(LOOK).await;
        phase.lags.push(lag(cluster, 0, "tasks").await);
    }
    phase.acknowledged += history.acknowledged() - before;
    phase.seconds += begun.elapsed().as_secs_f64();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_and_a_slow_output_hold_up_neither_ordering_nor_the_others() {
    let postgres = Postgres::start();
    let proxies = [Proxy::start(local(postgres.port())), Proxy::start(local(postgres.port()))];
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(3));
    for node in 0..3 {
        let home = cluster.node(node).process.home().to_owned();
        let mut sections = String::new();
        for (name, proxy) in ["dead", "slow"].iter().zip(&proxies) {
            let dsn = postgres.dsn().replace(&format!("port={}", postgres.port()), &format!("port={}", proxy.port()));
            assert!(dsn.contains(&format!("port={}", proxy.port())));
            std::fs::write(home.join(format!("{name}.dsn")), dsn).unwrap();
            sections += &format!(
                "\n[[output]]\nname = \"{name}\"\nscope = \"network\"\nkind = \"postgres\"\ndsn_file = \"{name}.dsn\"\n\
                 schema = \"{name}\"\n"
            );
        }
        change_config(&home, |text| format!("{text}{sections}"));
    }
    cluster.start_all().await;
    let history = Arc::new(History::new());
    let options = LoadOptions { clients: DEVICES, period: Duration::from_millis(1), ..LoadOptions::of(cluster.urls()) };
    let load = Load::start(&options, &history);
    // Rules change in the first seconds, and connections are made.
    eventually("everything is under way", SOON, async || {
        let lags = [lag(&cluster, 0, "dead").await, lag(&cluster, 0, "slow").await, lag(&cluster, 0, "tasks").await];
        if history.acknowledged() > 5_000 && lags.iter().all(|lag| *lag < 5_000) {
            Ok(())
        } else {
            Err(format!("{lags:?}"))
        }
    })
    .await;

    let (mut good, mut bad) = (Phase::default(), Phase::default());
    let mut made_while_dead = 0;
    for _ in 0..PHASES {
        proxies.iter().for_each(|proxy| proxy.set(Carrying::Good));
        watch(&cluster, &history, &mut good).await;
        proxies[0].set(Carrying::Dead);
        proxies[1].set(Carrying::Slow(SLOW));
        let before = final_height(&cluster).await;
        watch(&cluster, &history, &mut bad).await;
        made_while_dead = final_height(&cluster).await - before;
    }
    let behind = lag(&cluster, 0, "dead").await;
    proxies.iter().for_each(|proxy| proxy.set(Carrying::Good));
    load.stop().await;
    let ratio = bad.rate() / good.rate();
    let (lag_good, lag_bad) = (median(&mut good.lags), median(&mut bad.lags));
    println!(
        "good outputs: {:.0}/s, lag of SQLite {lag_good}; one dead ({behind} batches behind), one slow: {:.0}/s, lag {lag_bad}; ratio {ratio:.3}",
        good.rate(),
        bad.rate()
    );
    assert!(behind > made_while_dead / 2, "the dead output was none: {behind} of {made_while_dead}");
    assert!(ratio >= 0.9, "ordering keeps {ratio:.3} of its rate");
    // What is being ordered within a look is no lag.
    let in_a_look = made_while_dead / LOOKS as u64;
    assert!(lag_bad <= lag_good + in_a_look, "lag {lag_good} and {lag_bad}");

    // Nothing is lost of what they missed.
    eventually("every output has every task", SOON * 3, async || {
        let tasks = count_sqlite(&cluster.sqlite(0)).map_err(|e| e.to_string())?;
        let lags = [lag(&cluster, 0, "dead").await, lag(&cluster, 0, "slow").await, lag(&cluster, 0, "tasks").await];
        if lags == [0, 0, 0] && tasks as usize >= history.acknowledged() {
            Ok(())
        } else {
            Err(format!("{tasks} {lags:?}"))
        }
    })
    .await;
    cluster.assert_no_panics();
}
