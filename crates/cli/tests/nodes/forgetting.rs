//! Nodes that forget, and go down before what they forgot is forgotten on their disks. Write buffers and table files are
//! small, so that a short run has as many files as a long one.

use std::path::Path;
use std::time::Duration;

use lockstep_identity::sign_body;
use lockstep_testkit::cluster::{Cluster, ClusterOptions, open_params};
use lockstep_testkit::disk::{Loss, library};
use lockstep_testkit::http::post_message;
use lockstep_testkit::load::device_key;
use lockstep_testkit::process::Limits;
use lockstep_testkit::random::Random;
use lockstep_testkit::spoil;
use lockstep_testkit::wait::eventually;
use lockstep_types::genesis::{AGE_MS_MAX, RETRY_MARGIN_MS, RETRY_WINDOW_MS_MIN};
use lockstep_types::{Height, NetworkParams, ProjectId, ProjectSettings, Retention, Sequence};

use crate::epochs::{fails, text, works};
use crate::start_errors::refuses_to_start;
use crate::{SOON, binary};

/// How long anything is kept: as short as a network may have it.
const KEPT_MS: u64 = RETRY_WINDOW_MS_MIN + RETRY_MARGIN_MS + AGE_MS_MAX;
/// The smallest sizes that a store takes.
const SMALL_FILES: [(&str, &str); 2] =
    [("LOCKSTEP_STORE_WRITE_BUFFER_BYTES", "65536"), ("LOCKSTEP_STORE_TABLE_FILE_BYTES", "16384")];
/// Large messages of one round, and the bytes of each: many files.
const LARGE: usize = 40;
/// See [`LARGE`].
const LARGE_BYTES: usize = 60_000;
/// Time for all of it to be forgotten: it grows old, the leader looks, and each node looks again.
const FORGOTTEN_MAX: Duration = Duration::from_secs(150);
/// What a node says when files are gone.
const REMOVED: &str = "was removed from this node's store";

/// How often nodes go down; `LOCKSTEP_FORGETTING_ROUNDS` says otherwise.
fn rounds() -> usize {
    std::env::var("LOCKSTEP_FORGETTING_ROUNDS").map_or(1, |text| text.parse().expect("a number of rounds"))
}

fn params() -> NetworkParams {
    let default_project = ProjectSettings { retry_window_ms: RETRY_WINDOW_MS_MIN, ..ProjectSettings::open() };
    let retention = Retention { age_ms: KEPT_MS, ..Retention::default() };
    NetworkParams { retention, default_project, ..open_params() }
}

async fn network(options: ClusterOptions) -> Cluster {
    let mut cluster = Cluster::prepare(binary(), options.with_params(params()));
    for index in 0..cluster.len() {
        let small = SMALL_FILES.map(|(name, value)| (name.to_owned(), value.to_owned()));
        cluster.node_mut(index).process.add_environment(small);
    }
    cluster.start_all().await;
    cluster
}

/// Submits messages that differ from all others.
struct Device {
    random: Random,
    sent: u64,
}

impl Device {
    async fn submit(&mut self, cluster: &Cluster, index: usize, bytes: usize) {
        self.sent += 1;
        let noise: String = (0..bytes / 16).map(|_| format!("{:016x}", self.random.number())).collect();
        let body = sign_body(&device_key(1, 0), ProjectId(7), "0.1", &format!("{} {noise}", self.sent));
        eventually("the message is ordered", SOON, async || {
            let answer = post_message(cluster.node(index).address(), body.as_bytes()).await;
            if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
        })
        .await;
    }
}

/// The oldest batch on a node's disk, as it says.
fn removed_below(cluster: &Cluster, index: usize) -> Height {
    let log = cluster.node(index).process.log();
    let said =
        log.lines().rev().find(|line| line.contains(REMOVED)).and_then(|line| line.split("oldest_height").nth(1));
    let is_digit = |c: &char| c.is_ascii_digit();
    let digits: String = said.unwrap_or_default().chars().skip_while(|c| !is_digit(c)).take_while(is_digit).collect();
    Height(digits.parse().unwrap_or_default())
}

/// Bytes of a state's table files.
fn table_bytes(home: &Path) -> u64 {
    let store = home.join("store");
    let state =
        std::fs::read_to_string(store.join("STATE")).map_or_else(|_| "state".into(), |name| name.trim().to_owned());
    let files = std::fs::read_dir(store.join(state)).unwrap().flatten();
    let tables = files.filter(|file| file.path().extension().is_some_and(|kind| kind == "sst"));
    tables.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

/// Many files are written, forgotten and removed, on every node. In the end the ledgers have forgotten more than the disks.
async fn forget_much(cluster: &Cluster, device: &mut Device) -> (Height, Sequence) {
    let nodes = 0..cluster.len();
    for sent in 0..LARGE {
        device.submit(cluster, sent % nodes.len(), LARGE_BYTES).await;
    }
    let home = |index: usize| cluster.node(index).process.home();
    let full: Vec<u64> = nodes.clone().map(|index| table_bytes(home(index))).collect();
    let large = cluster.status(0).await.unwrap().head.height;
    // Little is written from here on, so that no write buffer is full.
    eventually("all of it is forgotten, and gone from every disk", FORGOTTEN_MAX, async || {
        tokio::time::sleep(Duration::from_millis(250)).await;
        device.submit(cluster, 0, 16).await;
        for index in nodes.clone() {
            let oldest = cluster.status(index).await?.head.oldest_height;
            let (removed, bytes) = (removed_below(cluster, index), table_bytes(home(index)));
            if removed <= large || oldest <= removed || bytes > full[index] / 2 {
                let full = full[index];
                return Err(format!(
                    "node {index}: oldest {oldest}, removed below {removed} of {large}, {bytes}/{full} bytes"
                ));
            }
        }
        Ok(())
    })
    .await;
    let head = cluster.status(0).await.unwrap().head;
    (head.oldest_height, head.sequence)
}

/// All nodes go down at one moment.
fn kill_all(cluster: &mut Cluster) {
    (0..cluster.len()).for_each(|index| cluster.pause(index));
    (0..cluster.len()).for_each(|index| cluster.kill(index));
}

async fn go_down_and_come_back(options: ClusterOptions, loss: Option<Loss>) {
    let mut cluster = network(options).await;
    let mut device = Device { random: Random::from_environment(), sent: 0 };
    for round in 0..rounds() {
        let (oldest, sequence) = forget_much(&cluster, &mut device).await;
        kill_all(&mut cluster);
        for (index, loss) in (0..cluster.len()).filter_map(|index| Some((index, loss?))) {
            let lost = cluster.disk(index).lose_power(loss, &mut device.random).unwrap();
            println!("round {round}: node {index} lost {lost:?}");
        }
        cluster.start_all().await;
        let head = cluster.wait_head_equal(SOON).await;
        assert!(head.oldest_height >= oldest && head.sequence >= sequence, "{head:?} after {oldest}, {sequence}");
        for index in 0..cluster.len() {
            device.submit(&cluster, index, 16).await;
        }
    }
    cluster.wait_head_equal(SOON).await;
    for index in 0..cluster.len() {
        cluster.terminate(index);
        cluster.node_mut(index).process.ended(SOON).await;
        let said = works(&["verify", "--home", &text(cluster.node(index).process.home())]);
        assert!(said.contains(" from height "), "{said}");
    }
    cluster.assert_no_panics();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_after_it_has_forgotten_starts_again() {
    go_down_and_come_back(ClusterOptions::of(1), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_all_killed_after_they_have_forgotten_start_again() {
    go_down_and_come_back(ClusterOptions::of(3), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_all_lose_power_after_they_have_forgotten_start_again() {
    if library().is_none() {
        println!("the library is for Linux with glibc");
        return;
    }
    go_down_and_come_back(ClusterOptions::of(3).with_disks(), Some(Loss::Pages)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_lacks_what_it_has_not_forgotten_is_brought_back_whole() {
    let mut cluster = network(ClusterOptions::of(1)).await;
    let mut device = Device { random: Random::from_environment(), sent: 0 };
    let (oldest, sequence) = forget_much(&cluster, &mut device).await;
    kill_all(&mut cluster);
    let home = cluster.node(0).process.home().to_owned();
    // As a later horizon would have it, which was not the last either.
    let taken = spoil::forget_early(&home, oldest.next()).unwrap();
    assert!(taken > 1, "the disk has forgotten as much as the ledger");
    refuses_to_start(&home, Limits::default(), &["its state is damaged"]);
    let said = works(&["recover", "--unsafe", "--home", &text(&home)]);
    assert!(!said.contains("eft out"), "nothing has to be: {said}");
    cluster.start_node(0);
    cluster.wait_ready(0, SOON).await;
    let head = cluster.status(0).await.unwrap().head;
    assert!(head.sequence >= sequence && head.oldest_height >= oldest, "{head:?}");
    device.submit(&cluster, 0, 16).await;
    cluster.terminate(0);
    cluster.node_mut(0).process.ended(SOON).await;
    println!("{}", works(&["verify", "--home", &text(&home)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_contradicts_its_state_is_left_behind_and_what_is_left_out_is_listed() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(1)).await;
    let mut device = Device { random: Random::from_environment(), sent: 0 };
    for _ in 0..5 {
        device.submit(&cluster, 0, 16).await;
    }
    cluster.terminate(0);
    cluster.node_mut(0).process.ended(SOON).await;
    let home = cluster.node(0).process.home().to_owned();
    let made = spoil::contradict(&home).await.unwrap();
    refuses_to_start(&home, Limits::default(), &["a majority of voters certified", "its state is damaged"]);

    let said = fails(&["recover", "--unsafe", "--home", &text(&home)], "--stop-before");
    assert!(said.contains(&format!("with {} messages", made.messages_behind)), "{said}");
    assert!(!home.join("store.epoch-0").exists(), "nothing was done");
    let entry = said.split("--stop-before ").nth(1).unwrap().split('`').next().unwrap();
    let list = home.join(format!("left-out.epoch-0.entry-{entry}.jsonl"));
    let listed = std::fs::read_to_string(&list).unwrap();
    assert_eq!(listed.lines().filter(|line| line.contains("\"message\"")).count() as u64, made.messages_behind);
    // Not a word of it is enough, nor is another entry.
    let other = (entry.parse::<u64>().unwrap() - 1).to_string();
    fails(&["recover", "--home", &text(&home), "--stop-before", entry], "--unsafe");
    fails(&["recover", "--unsafe", "--home", &text(&home), "--stop-before", &other], "--stop-before");

    let said = works(&["recover", "--unsafe", "--home", &text(&home), "--stop-before", entry]);
    assert!(said.contains(&format!("parent   height {}", made.height)), "{said}");
    assert!(said.contains("Left out") && said.contains(list.file_name().unwrap().to_str().unwrap()), "{said}");
    cluster.start_node(0);
    cluster.wait_ready(0, SOON).await;
    device.submit(&cluster, 0, 16).await;
    eventually("the new epoch has certified it", SOON, async || {
        let head = cluster.status(0).await?.head;
        let is_final = head.height == made.height.next() && head.final_height == head.height;
        if is_final { Ok(()) } else { Err(format!("{head:?}")) }
    })
    .await;
    cluster.terminate(0);
    cluster.node_mut(0).process.ended(SOON).await;
    println!("{}", works(&["verify", "--home", &text(&home)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lacks_what_it_keeps_says_so_and_forgets_nothing_more() {
    let mut cluster = network(ClusterOptions::of(1)).await;
    let mut device = Device { random: Random::from_environment(), sent: 0 };
    for _ in 0..10 {
        device.submit(&cluster, 0, 16).await;
    }
    let head = cluster.status(0).await.unwrap().head;
    cluster.terminate(0);
    cluster.node_mut(0).process.ended(SOON).await;
    assert!(spoil::forget_early(cluster.node(0).process.home(), head.height).unwrap() > 0);
    cluster.start_node(0);
    cluster.wait_ready(0, SOON).await;
    let said = eventually("it says so", SOON, async || {
        let complaints = cluster.status(0).await?.complaints.join("; ");
        if complaints.contains("nothing is forgotten any more") { Ok(complaints) } else { Err(complaints) }
    })
    .await;
    assert!(said.contains("lockstep rebuild"), "{said}");
    assert_eq!(cluster.status(0).await.unwrap().head.oldest_height, head.oldest_height);
    // It goes on ordering.
    device.submit(&cluster, 0, 16).await;
}
