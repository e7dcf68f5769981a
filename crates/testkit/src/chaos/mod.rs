//! Chaos: a network of real processes under load, on which a seed lets everything go wrong that can, for as long as one
//! likes; then all is mended, and the checker of the simulation compares what clients were told with what every node
//! and every store holds. docs/reliability.md says what that shows.

mod devices;
mod faults;
mod gather;
mod stores;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lockstep_types::{NetworkParams, ProjectId, ProjectSettings, SigningKey};
use serde::Serialize;
use tokio::time::Instant;

use self::devices::{Devices, PROJECT, TASK_PROJECT};
use self::faults::{Fault, Means, draw};
use self::stores::{State, Stores};
use self::watch::{Lives, Watch};
use crate::cluster::{Cluster, ClusterOptions, open_params};
use crate::disk::{self, Loss, Lost};
use crate::http;
use crate::order::{self, Evidence, Promise, Told, Violations};
use crate::partition::Healing;
use crate::process::{raise_open_files, run};
use crate::random::Random;
use crate::sim::{Record, Seen};

/// Size of the small file system in memory of one node. It takes what is in it only.
const TMPFS_BYTES: u64 = 8 << 30;
/// Room that is left on it when it is full.
const TMPFS_ROOM_BYTES: u64 = 64 << 10;
/// Faults of one round at most.
const FAULTS_MAX: usize = 3;
/// Pause before each of them at most.
const PAUSE_MAX_MS: usize = 1_500;
/// How long they last at least, and how much longer at most.
const HOLD_MS: (usize, usize) = (500, 5_000);
/// Load between two rounds.
const CALM: Duration = Duration::from_millis(1_500);
/// A network that was mended acknowledges within this time.
const PROGRESS_MAX: Duration = Duration::from_secs(60);
/// All nodes are ready within this time after everything was mended.
const READY_MAX: Duration = Duration::from_secs(120);
/// Rounds between two long absences of one node.
const ABSENCE_EVERY: usize = 12;
/// How long such an absence lasts.
const ABSENCE: Duration = Duration::from_secs(45);
/// Times that a node may end by itself while everything is being mended.
const ENDS_MAX: usize = 8;
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What to play.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program.
    pub binary: PathBuf,
    /// For how long.
    pub length: Duration,
    /// How many nodes.
    pub nodes: usize,
    /// What goes wrong follows from it.
    pub seed: u64,
    /// Messages that devices submit in a second, together, while all is well.
    pub per_second: u32,
    /// Nodes' syncs do nothing, as if the program did not ask for them: what the checker has to find.
    pub no_sync: bool,
    /// Keeps the nodes' files.
    pub keep: bool,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// How long faults went on, in seconds.
    pub seconds: u64,
    /// Faults, by kind.
    pub faults: BTreeMap<&'static str, usize>,
    /// Messages that were acknowledged, by device API.
    pub acknowledged: BTreeMap<&'static str, u64>,
    /// … in all.
    pub acknowledged_total: u64,
    /// Messages of which devices do not know whether they were ordered.
    pub unknown: usize,
    /// Messages that nodes refused.
    pub refused: usize,
    /// Times that a node ended by itself, as on a disk that was full or failed.
    pub ended_by_themselves: usize,
    /// The first refusal of each API, in words.
    pub refusals: BTreeMap<&'static str, String>,
    /// Longest time from the mending of everything to an acknowledgement, in milliseconds.
    pub longest_recovery_ms: u64,
    /// Batches, messages and tasks of the order.
    pub batches: usize,
    /// See [`Report::batches`].
    pub messages: usize,
    /// See [`Report::batches`].
    pub tasks: usize,
    /// Stores that were compared, the reader of the feed among them, and how many tasks each has.
    pub stores: BTreeMap<String, usize>,
    /// Times that nodes were seen and compared with the order.
    pub sightings: usize,
    /// Changes of names that power losses took.
    pub lost_names: usize,
    /// Bytes that power losses took.
    pub lost_bytes: u64,
    /// Promises that were broken.
    pub violations: usize,
}

impl Report {
    /// All faults.
    pub fn fault_count(&self) -> usize {
        self.faults.values().sum()
    }
}

/// Plays, mends, compares. Prints what it does.
///
/// # Errors
/// When the network cannot be made, or what it holds not be read. Broken promises are in the second part of the value.
pub async fn play(options: Options) -> Result<(Report, Violations)> {
    let files = raise_open_files();
    println!("chaos: --seed {} --nodes {} ({files} open files)", options.seed, options.nodes);
    let mut play = Play::start(options).await?;
    let begun = Instant::now();
    let until = begun + play.options.length;
    let mut round = 0;
    while Instant::now() < until && !play.is_broken() {
        round += 1;
        play.round(round).await;
    }
    play.report.seconds = begun.elapsed().as_secs();
    play.finish().await
}

struct Play {
    cluster: Cluster,
    stores: Stores,
    random: Random,
    record: Record,
    lives: Lives,
    devices: Devices,
    watch: Watch,
    means: Means,
    /// A node that is away for several rounds, and until when.
    absent: Option<(usize, Instant)>,
    /// Nodes whose disk failed, so that what they have not synced is lost.
    bad: Vec<usize>,
    report: Report,
    lost: Lost,
    options: Options,
    begun: Instant,
    broken: bool,
}

fn owner() -> SigningKey {
    SigningKey::from_bytes([0x77; 32]).expect("a key")
}

fn params() -> NetworkParams {
    // Tasks of several messages that reach back to earlier batches.
    let settings = ProjectSettings { group_messages_max: 16, group_age_max_ms: 400, ..ProjectSettings::open() };
    NetworkParams {
        projects: [(PROJECT, settings.clone()), (TASK_PROJECT, ProjectSettings { devices: None, ..settings.clone() })]
            .into(),
        owners: [PROJECT, TASK_PROJECT].map(|project| (project, owner().address())).into(),
        default_project: settings,
        ..open_params()
    }
}

impl Play {
    async fn start(options: Options) -> Result<Self> {
        ensure!(options.binary.exists(), "there is no program {}: build it first", options.binary.display());
        let stores = Stores::start();
        let has_disks = disk::library().is_some();
        let mut wanted = ClusterOptions::of(options.nodes)
            .with_params(params())
            .with_postgres(stores.dsn())
            .with_partitions()
            .with_own_addresses()
            .with_tmpfs(options.nodes - 1, TMPFS_BYTES);
        if has_disks {
            wanted = wanted.with_disks();
        } else {
            println!("no power losses: the library for them is for Linux with glibc");
        }
        let mut cluster = Cluster::prepare(&options.binary, wanted);
        stores.configure(&cluster)?;
        cluster.start_all().await;
        register(&cluster, options.seed)?;
        if options.no_sync {
            (0..options.nodes).for_each(|node| cluster.disk(node).ignore_syncs(true));
        }
        let means = Means { nodes: options.nodes, disks: has_disks, tmpfs: cluster.tmpfs().is_some() };
        println!("{means:?}, files in {}", cluster.directory().display());
        let record = Record::new();
        let lives: Lives = Arc::new((0..options.nodes).map(|_| AtomicU64::new(1)).collect());
        let addresses = |cluster: &Cluster| (0..cluster.len()).map(|node| cluster.node(node).address()).collect();
        let named = (0..options.nodes).map(|node| (cluster.node(node).id, cluster.node(node).address())).collect();
        Ok(Self {
            watch: Watch::start(named, &lives, &record),
            devices: Devices::start(addresses(&cluster), &record, options.seed, options.per_second),
            random: Random::new(options.seed),
            cluster,
            stores,
            record,
            lives,
            means,
            absent: None,
            bad: Vec::new(),
            report: Report { seed: options.seed, ..Report::default() },
            lost: Lost::default(),
            options,
            begun: Instant::now(),
            broken: false,
        })
    }

    fn is_broken(&self) -> bool {
        self.broken
    }

    /// Something that must not be. The run ends with this round.
    fn trouble(&mut self, promise: Promise, text: String) {
        println!("  TROUBLE: {text}");
        self.record.trouble(promise, text);
        self.broken = true;
    }

    async fn round(&mut self, round: usize) {
        if round.is_multiple_of(ABSENCE_EVERY) && self.absent.is_none() {
            let node = self.random.below(self.means.nodes);
            self.kill(node);
            self.absent = Some((node, Instant::now() + ABSENCE));
            *self.report.faults.entry("long absence").or_default() += 1;
        }
        if self.absent.is_some_and(|(_, until)| Instant::now() >= until) {
            self.absent = None;
        }
        let mut said = Vec::new();
        for _ in 0..=self.random.below(FAULTS_MAX) {
            let pause = self.random.below(PAUSE_MAX_MS) as u64;
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let leader = self.cluster.leader().await.ok();
            let fault = draw(&mut self.random, self.means, leader);
            said.push(fault.to_string());
            *self.report.faults.entry(fault.kind()).or_default() += 1;
            self.apply(fault).await;
        }
        let hold = HOLD_MS.0 + self.random.below(HOLD_MS.1);
        tokio::time::sleep(Duration::from_millis(hold as u64)).await;
        let healed_at = self.mend();
        let recovered = self.progress(healed_at).await;
        self.settle().await;
        let minutes = self.begun.elapsed().as_secs();
        let absent = self.absent.map_or_else(String::new, |(node, _)| format!(" ({} is away)", node + 1));
        println!(
            "{:02}:{:02} round {round}: {}{absent}; {} acknowledged, {} tasks read, recovered in {} ms",
            minutes / 60,
            minutes % 60,
            said.join(", "),
            self.devices.counts().total(),
            self.watch.read(),
            recovered.as_millis()
        );
        tokio::time::sleep(CALM).await;
    }

    fn kill(&mut self, node: usize) {
        self.cluster.kill(node);
        self.lives[node].fetch_add(1, Ordering::SeqCst);
    }

    fn lose_power(&mut self, node: usize) {
        let loss = Loss::any(&mut self.random);
        match self.cluster.disk(node).lose_power(loss, &mut self.random) {
            Ok(lost) => self.lost += lost,
            Err(error) => self.trouble(Promise::Sane, format!("the test could not take a disk back: {error}")),
        }
    }

    fn is_running(&mut self, node: usize) -> bool {
        self.cluster.node_mut(node).process.is_running()
    }

    async fn apply(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(nodes) => nodes.into_iter().for_each(|node| self.kill(node)),
            Fault::Pause(node) => {
                if self.is_running(node) && !self.cluster.node(node).process.is_paused() {
                    self.cluster.pause(node);
                }
            }
            Fault::Restart(node) => self.restart(node).await,
            Fault::RollingRestart => {
                for node in 0..self.means.nodes {
                    self.restart(node).await;
                    let ready = async |play: &Self| is_ready(play.cluster.node(node).address()).await;
                    let until = Instant::now() + Duration::from_secs(10);
                    while self.is_running(node) && Instant::now() < until && !ready(self).await {
                        tokio::time::sleep(LOOK_INTERVAL).await;
                    }
                }
            }
            Fault::Isolate(node) => self.cluster.fabric().isolate(node),
            Fault::Split(nodes) => nodes.iter().for_each(|node| {
                let others = (0..self.means.nodes).filter(|other| !nodes.contains(other));
                others.for_each(|other| self.cluster.fabric().cut(*node, other));
            }),
            Fault::Cut(one, other) => self.cluster.fabric().cut(one, other),
            Fault::CutOneWay(from, to) => self.cluster.fabric().cut_one_way(from, to),
            Fault::Mute(node) => self.cluster.fabric().mute(node),
            Fault::Deafen(node) => self.cluster.fabric().deafen(node),
            Fault::SlowLinks(node, pace) => self.cluster.fabric().slow(node, pace),
            Fault::DropConnections(node) => self.cluster.fabric().drop_connections(node),
            Fault::FullDisk(node) => self.cluster.disk(node).fill(true),
            Fault::FullTmpfs => {
                let Some(tmpfs) = self.cluster.tmpfs() else { return };
                let full = tmpfs.used_bytes().and_then(|used| tmpfs.resize(used + TMPFS_ROOM_BYTES));
                // What was written in between may be more than the new size, which is refused.
                if let Err(error) = full {
                    println!("  the tmpfs is not full: {error}");
                }
            }
            Fault::SlowDisk(node, by) => self.cluster.disk(node).delay_syncs(by),
            Fault::BadDisk(node) => {
                self.cluster.disk(node).fail_syncs(true);
                self.bad.push(node);
            }
            Fault::Clock(node, off) => self.cluster.disk(node).clock_off_ms(off),
            Fault::PowerLoss(node) => {
                self.kill(node);
                self.lose_power(node);
            }
            Fault::PowerLossOfAll => {
                let nodes = 0..self.means.nodes;
                // At one moment: nobody goes on while others are being killed.
                for node in nodes.clone() {
                    if self.is_running(node) && !self.cluster.node(node).process.is_paused() {
                        self.cluster.pause(node);
                    }
                }
                nodes.clone().for_each(|node| self.kill(node));
                nodes.for_each(|node| self.lose_power(node));
            }
            Fault::StoreDown(store) => self.stores.set(store, State::Down),
            Fault::StoreSlow(store) => self.stores.set(store, State::Slow),
        }
    }

    async fn restart(&mut self, node: usize) {
        if !self.is_running(node) || self.cluster.node(node).process.is_paused() {
            return;
        }
        self.cluster.terminate(node);
        let until = Instant::now() + Duration::from_secs(40);
        while self.is_running(node) && Instant::now() < until {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        self.kill(node);
        self.cluster.start_node(node);
    }

    /// Ends all faults, and starts whoever does not run. Returns when.
    fn mend(&mut self) -> Instant {
        let how = if self.random.below(2) == 0 { Healing::Flow } else { Healing::Close };
        self.cluster.fabric().heal(how);
        self.stores.heal();
        if let Some(Err(error)) = self.cluster.tmpfs().map(|tmpfs| tmpfs.resize(TMPFS_BYTES)) {
            self.trouble(Promise::Sane, format!("the test could not give a tmpfs room: {error}"));
        }
        for node in std::mem::take(&mut self.bad) {
            self.report.ended_by_themselves +=
                usize::from(self.cluster.node(node).process.pid().is_some() && !self.is_running(node));
            self.kill(node);
            self.lose_power(node);
        }
        for node in 0..self.means.nodes {
            if self.means.disks {
                self.cluster.disk(node).heal();
            }
            if self.cluster.node(node).process.is_paused() {
                self.cluster.resume(node);
            }
            self.start_again(node);
        }
        Instant::now()
    }

    fn is_absent(&self, node: usize) -> bool {
        self.absent.is_some_and(|(absent, _)| absent == node)
    }

    /// Whether it had to be started.
    fn start_again(&mut self, node: usize) -> bool {
        if self.is_running(node) || self.is_absent(node) {
            return false;
        }
        // Whoever was killed has no process id any more.
        self.report.ended_by_themselves += usize::from(self.cluster.node(node).process.pid().is_some());
        self.kill(node);
        self.cluster.start_node(node);
        true
    }

    /// Waits for an acknowledgement of a message that was submitted after `since`.
    async fn progress(&mut self, since: Instant) -> Duration {
        let since = self.record.at(since);
        let until = Instant::now() + PROGRESS_MAX;
        while Instant::now() < until {
            if let Some(answered) = self.record.first_answer_to_calls_after(since) {
                let recovered = answered - since;
                let ms = u64::try_from(recovered.as_millis()).unwrap_or(u64::MAX);
                self.report.longest_recovery_ms = self.report.longest_recovery_ms.max(ms);
                return recovered;
            }
            for node in 0..self.means.nodes {
                self.start_again(node);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let text = format!("nothing was acknowledged for {PROGRESS_MAX:?} after all was well");
        self.trouble(Promise::Progress, text);
        PROGRESS_MAX
    }

    /// Waits until all nodes are ready. One that ends by itself, as on a disk that was full a moment ago, is started again.
    async fn settle(&mut self) {
        let until = Instant::now() + READY_MAX;
        for node in (0..self.means.nodes).filter(|node| !self.is_absent(*node)).collect::<Vec<_>>() {
            let mut ends = 0;
            while !is_ready(self.cluster.node(node).address()).await {
                ends += usize::from(self.start_again(node));
                if ends > ENDS_MAX || Instant::now() > until {
                    let log = self.cluster.node(node).process.log_tail();
                    let text = format!("node {} is not ready; it ended {ends} times by itself:\n{log}", node + 1);
                    return self.trouble(Promise::Progress, text);
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
    }

    async fn finish(mut self) -> Result<(Report, Violations)> {
        println!("everything is mended");
        self.absent = None;
        let healed_at = self.mend();
        self.settle().await;
        if !self.is_broken() {
            self.progress(healed_at).await;
        }
        let Self { mut cluster, stores, record, lives, devices, watch, mut report, lost, options, broken, .. } = self;
        if options.keep {
            cluster.keep_files();
        }
        let counts = Arc::clone(devices.counts());
        devices.stop().await;
        report.acknowledged = counts.by_api();
        (report.acknowledged_total, report.refusals) = (counts.total(), counts.refusals());
        (report.lost_names, report.lost_bytes) = (lost.names, lost.bytes);
        let evidence =
            if broken { None } else { Some(gather::all(&cluster, &stores, &record, (&watch, &lives)).await?) };
        let evidence = evidence.unwrap_or_else(|| {
            let Seen { calls, sightings, troubles, .. } = record.take();
            Evidence { calls, sightings, troubles, ..Evidence::default() }
        });
        let told = |wanted: fn(&Told) -> bool| evidence.calls.iter().filter(|call| wanted(&call.told)).count();
        report.unknown = told(|told| *told == Told::Unknown);
        report.refused = told(|told| *told == Told::Refused);
        report.sightings = evidence.sightings.len();
        if let Some(chain) = evidence.chains.first() {
            report.batches = chain.batches.len();
            report.messages = chain.batches.iter().map(|batch| batch.messages.len()).sum();
            report.tasks = chain.batches.iter().map(|batch| batch.tasks.len()).sum();
        }
        report.stores = evidence.stores.iter().map(|store| (store.name.clone(), store.rows.len())).collect();
        println!(
            "comparing {} calls, {} nodes and {} stores",
            evidence.calls.len(),
            evidence.chains.len(),
            report.stores.len()
        );
        let violations = order::check(&evidence);
        report.violations = violations.count;
        // Said before the stores' many files are removed, which takes a while.
        println!("{} faults, {} messages acknowledged: {violations}", report.fault_count(), report.acknowledged_total);
        for node in 0..cluster.len() {
            cluster.node(node).process.assert_no_panic();
        }
        if violations.count > 0 {
            cluster.keep_files();
            println!("files of the nodes: {}", cluster.directory().display());
        }
        Ok((report, violations))
    }
}

async fn is_ready(address: std::net::SocketAddr) -> bool {
    let request = http::request(address, "GET", "/readyz", b"");
    let answer = tokio::time::timeout(Duration::from_secs(1), request).await;
    matches!(answer, Ok(Ok(answer)) if answer.status == 200)
}

/// Registers the devices whose APIs want that.
fn register(cluster: &Cluster, seed: u64) -> Result<()> {
    let key = cluster.directory().join("owner.key");
    std::fs::write(&key, hex::encode(owner().secret_bytes())).context("the owner's key")?;
    let (node, file) = (cluster.node(0), cluster.directory().join("did.json"));
    let (url, key) = (node.url(), key.display().to_string());
    let add = |project: ProjectId, device: &str| {
        let project = project.to_string();
        let first = ["devices", "add", "--url", &url, "--project", &project, "--key-file", &key, device];
        run(node.process.binary(), first);
    };
    for identity in devices::identities(seed) {
        std::fs::write(&file, identity.document()).context("a document")?;
        add(PROJECT, &file.display().to_string());
    }
    devices::task_keys(seed).iter().for_each(|key| add(TASK_PROJECT, &key.address().to_string()));
    Ok(())
}
