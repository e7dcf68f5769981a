//! The nodes, and what they stand on: starts them, cuts them off, and starts them again from what their disks have.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::FutureExt as _;
use lockstep_consensus::runtime::{self, Scope};
use lockstep_consensus::{Consensus, RaftStatus, Role, StateStore};
use lockstep_ledger::Head;
use lockstep_network::{GossipFeed, Handle};
use lockstep_node::NodeError;
use lockstep_node::bare::{Bare, BareOptions, OpenOutput};
use lockstep_node::clock::{Clock, SimulatedClock};
use lockstep_node::config::Config;
use lockstep_node::home::{Home, Opened};
use lockstep_node::ingress::Ingress;
use lockstep_store::home::StoreHome;
use lockstep_types::{
    DevicePolicy, Epochs, Genesis, Height, Incarnation, Member, NetworkParams, NodeId, ProjectSettings, SigningKey,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::disk::Disk;
use super::links::Links;
use super::output::{self, Table};
use super::record::Record;
use super::scenario::Scenario;
use super::trace::Trace;
use crate::order::{Promise, Sighting};

/// The time at which every run begins, in milliseconds since 1970.
const START_MS: u64 = 1_790_000_000_000;
/// The same content within this time is a retry: longer than any run.
const RETRY_WINDOW_MS: u64 = 3_600_000;
/// An operator starts a node that has ended by itself after this time.
const OPERATOR_TIME: Duration = Duration::from_secs(2);

/// A node that is up.
#[derive(Clone)]
pub struct Running {
    /// Its tasks.
    pub scope: Scope,
    /// Where messages enter.
    pub ingress: Arc<Ingress>,
    /// Its part in consensus.
    pub consensus: Consensus,
    /// What it has applied.
    pub state: StateStore,
    /// Where its ledger is.
    pub head: watch::Receiver<Option<Head>>,
}

/// A machine.
struct Machine {
    home: PathBuf,
    key: SigningKey,
    incarnation: Incarnation,
    disk: Disk,
    clock: SimulatedClock,
    rules_max: u32,
    /// Counts its starts.
    life: u64,
    /// The node's tasks, while it is being started or up.
    scope: Option<Scope>,
    running: Option<Running>,
    /// It lost its disk, or it found that its history is another one: it stays away.
    is_lost: bool,
}

struct Inner {
    machines: Vec<Machine>,
    stopping: bool,
}

/// See the module's documentation. Clones are the same world.
#[derive(Clone)]
pub struct World {
    inner: Arc<Mutex<Inner>>,
    seed: u64,
    genesis: Arc<Genesis>,
    task_key: SigningKey,
    nodes: Arc<[NodeId]>,
    /// What nodes talk over.
    pub links: Links,
    /// What they publish to.
    pub tables: Arc<[Table]>,
    /// What happened.
    pub trace: Trace,
    /// What was seen.
    pub record: Record,
    /// What is run.
    pub scenario: Arc<Scenario>,
}

fn key(number: u64) -> SigningKey {
    let mut bytes = [7; 32];
    bytes[24..].copy_from_slice(&(number + 1).to_be_bytes());
    SigningKey::from_bytes(bytes).expect("not zero, and below the order of the curve")
}

fn incarnation(number: usize) -> Incarnation {
    Incarnation([u8::try_from(number + 1).unwrap_or(u8::MAX); 16])
}

fn genesis(scenario: &Scenario) -> Result<Genesis> {
    let member = |number: usize| Member {
        name: format!("n{number}"),
        public_key: hex::encode(key(number as u64).public().compressed()),
        incarnation: incarnation(number),
        p2p: format!("/ip4/127.0.0.1/tcp/{}", 9100 + number),
        http: format!("http://127.0.0.1:{}", 9000 + number),
    };
    let mut params = NetworkParams { allow_unsigned: true, allow_unknown_projects: true, ..NetworkParams::default() };
    params.default_project = ProjectSettings {
        retry_window_ms: RETRY_WINDOW_MS,
        devices: Some(DevicePolicy::Any),
        ..ProjectSettings::open()
    };
    let genesis = Genesis::new("sim", (0..scenario.nodes).map(member).collect(), params)?;
    Ok(genesis)
}

fn config(scenario: &Scenario, rules_max: u32) -> Result<Config> {
    let text = format!(
        r#"
        [http]
        listen = "127.0.0.1:1"
        [p2p]
        listen = ["/ip4/127.0.0.1/tcp/1"]
        [raft]
        log_entries_max = {}
        log_kept_entries = {}
        [upgrade]
        rules_max = {rules_max}
        [[output]]
        name = "table"
        scope = "network"
        kind = "sqlite"
        path = "table.sqlite"
        [[output]]
        name = "blobs"
        scope = "network"
        kind = "sqlite"
        path = "blobs.sqlite"
        "#,
        scenario.log_entries_max,
        scenario.log_entries_max / 2
    );
    Ok(Config::parse(&text)?)
}

impl World {
    /// Machines that are off, with homes below `homes`, which is empty.
    ///
    /// # Errors
    /// If a directory cannot be made.
    pub fn new(seed: u64, scenario: Scenario, homes: &std::path::Path, trace: Trace) -> Result<Self> {
        let genesis = genesis(&scenario)?;
        let clock = SimulatedClock::new(START_MS);
        let (mut machines, mut nodes) = (Vec::new(), Vec::new());
        for (number, (node, member)) in (0_u64..).zip(genesis.nodes()) {
            let own =
                (0..scenario.nodes).find(|n| format!("n{n}") == member.name).context("a member of the genesis")?;
            let home = homes.join(&member.name);
            std::fs::create_dir_all(home.join("store"))?;
            std::fs::write(home.join("store/INCARNATION"), format!("{}\n", member.incarnation))?;
            nodes.push(node);
            machines.push(Machine {
                home,
                key: key(own as u64),
                incarnation: member.incarnation,
                disk: Disk::new(seed ^ (number << 8), scenario.bugs),
                clock: clock.twin(),
                rules_max: scenario.rules_max[usize::from(number >= 2)],
                life: 0,
                scope: None,
                running: None,
                is_lost: false,
            });
        }
        let links = Links::new(seed ^ 0x11, trace.clone(), scenario.bugs);
        let table = |name, once, salt: u64| Table::new(name, once, seed ^ salt, (trace.clone(), scenario.bugs));
        Ok(Self {
            inner: Arc::new(Mutex::new(Inner { machines, stopping: false })),
            seed,
            genesis: Arc::new(genesis),
            task_key: key(1_000),
            nodes: nodes.into(),
            links,
            tables: [table("table", true, 0x21), table("blobs", false, 0x22)].into(),
            trace,
            record: Record::new(),
            scenario: Arc::new(scenario),
        })
    }

    /// All nodes.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    fn with<T>(&self, node: NodeId, look: impl FnOnce(&mut Machine) -> T) -> T {
        let place = self.nodes.iter().position(|other| *other == node).expect("a node of this world");
        look(&mut self.inner.lock().machines[place])
    }

    /// The node, while it is up.
    pub fn running(&self, node: NodeId) -> Option<Running> {
        self.with(node, |machine| machine.running.clone())
    }

    /// Its disk.
    pub fn disk(&self, node: NodeId) -> Disk {
        self.with(node, |machine| machine.disk.clone())
    }

    /// Its clock.
    pub fn clock(&self, node: NodeId) -> SimulatedClock {
        self.with(node, |machine| machine.clock.clone())
    }

    /// Whether it stays away for good.
    pub fn is_lost(&self, node: NodeId) -> bool {
        self.with(node, |machine| machine.is_lost)
    }

    /// From its next start on it knows the newest rules.
    pub fn upgrade(&self, node: NodeId) {
        self.with(node, |machine| machine.rules_max = lockstep_ledger::RULES_NEWEST);
    }

    /// Whether its tasks run.
    pub fn is_on(&self, node: NodeId) -> bool {
        self.with(node, |machine| machine.scope.is_some())
    }

    fn options(&self, node: NodeId, scope: &Scope) -> Result<(BareOptions, u64)> {
        let (feed, inbox) = GossipFeed::new();
        let genesis = (*self.genesis).clone();
        let epochs = Epochs::new(Vec::new(), &genesis)?;
        let (options, incarnation, life) = self.with(node, |machine| {
            machine.life += 1;
            let opened = Opened {
                config: config(&self.scenario, machine.rules_max)?,
                node_key: machine.key.clone(),
                task_key: self.task_key.clone(),
                genesis,
                epochs,
                node,
                found: Vec::new(),
                store: StoreHome::open(&machine.home.join("store"))?,
            };
            let tables = self.tables.clone();
            let open_output: OpenOutput = Arc::new(move |config, _home, owner| {
                let missing = || NodeError::Config(format!("there is no output {}", config.name));
                output::open(&tables, config.name.as_str(), owner).ok_or_else(missing)
            });
            let home = Home::at(&machine.home);
            let medium = Arc::new(machine.disk.clone());
            let clock = Clock::Simulated(machine.clock.clone());
            anyhow::Ok(((home, opened, medium, clock, open_output), machine.incarnation, machine.life))
        })?;
        let (home, opened, medium, clock, open_output) = options;
        let network = Handle::on(self.links.up(node, scope.clone(), incarnation, feed));
        Ok((BareOptions { home, opened, medium, network, inbox, clock, open_output }, life))
    }

    /// Starts a node, if it is off and not lost.
    pub fn start(&self, node: NodeId) {
        if self.is_on(node) || self.is_lost(node) || self.inner.lock().stopping {
            return;
        }
        let life = self.with(node, |machine| machine.life);
        let scope = Scope::new(self.seed ^ (node.0 << 32) ^ (life << 48));
        self.with(node, |machine| machine.scope = Some(scope.clone()));
        let (options, life) = match self.options(node, &scope) {
            Ok(options) => options,
            Err(error) => return self.record.trouble(Promise::Sane, format!("node {node} cannot start: {error:#}")),
        };
        self.trace.say(format_args!("node {node} is started"));
        let world = self.clone();
        let run = async move {
            let why = match Bare::start(options).await {
                Ok(mut bare) => {
                    world.is_up(node, life, &bare);
                    bare.ended().await
                }
                Err(error) => error,
            };
            world.trace.say(format_args!("node {node} ended: {why}"));
        };
        let (world, ended) = (self.clone(), tokio::spawn(scope.run(run.boxed())));
        tokio::spawn(async move {
            let cut_off = ended.abort_handle();
            tokio::select! {
                biased;
                () = scope.ended() => cut_off.abort(),
                // An ended or panicked process is gone, and started again by its operator.
                _ = ended => {
                    world.off(node, life, |disk| disk.lose_process());
                    tokio::time::sleep(OPERATOR_TIME).await;
                    world.start(node);
                }
            }
        });
    }

    fn is_up(&self, node: NodeId, life: u64, bare: &Bare) {
        let running = self.with(node, |machine| {
            let scope = machine.scope.clone().expect("it is being started");
            let (ingress, consensus) = (bare.ingress(), bare.consensus());
            let running = Running { scope, ingress, consensus, state: bare.state(), head: bare.head() };
            machine.running = Some(running.clone());
            running
        });
        runtime::spawn(watch_role(self.trace.clone(), node, running.consensus.status()));
        runtime::spawn(watch_head(self.record.clone(), node, life, running.head));
    }

    /// Turns a node off at once.
    fn off(&self, node: NodeId, life: u64, and: impl FnOnce(&Disk)) {
        let before = self.with(node, |machine| {
            if machine.life != life {
                return None;
            }
            let (scope, running) = (machine.scope.take()?, machine.running.take());
            Some((scope, running, machine.disk.clone()))
        });
        let Some((scope, _running, disk)) = before else { return };
        and(&disk);
        self.links.down(node);
        scope.end();
    }

    fn life(&self, node: NodeId) -> u64 {
        self.with(node, |machine| machine.life)
    }

    /// The power goes.
    pub fn lose_power(&self, node: NodeId) {
        self.trace.say(format_args!("node {node} loses its power"));
        self.off(node, self.life(node), Disk::lose_power);
    }

    /// The process ends.
    pub fn kill(&self, node: NodeId) {
        self.trace.say(format_args!("node {node} is killed"));
        self.off(node, self.life(node), Disk::lose_process);
    }

    /// Everything on its disk is gone. It is not started again, unless `comes_back`.
    pub fn wipe(&self, node: NodeId, comes_back: bool) {
        self.trace.say(format_args!("node {node} loses its disk"));
        self.off(node, self.life(node), Disk::wipe);
        self.with(node, |machine| machine.is_lost = !comes_back);
    }

    /// Turns all nodes off for good.
    pub fn stop(&self) {
        self.inner.lock().stopping = true;
        for node in self.nodes.iter() {
            self.off(*node, self.life(*node), |_| {});
        }
    }
}

/// Tells of changes of the lead.
async fn watch_role(trace: Trace, node: NodeId, mut status: watch::Receiver<RaftStatus>) {
    loop {
        let now = status.borrow_and_update().clone();
        if now.role != Role::Follower || now.leader.is_some() || now.stopped.is_some() {
            let RaftStatus { role, term, leader, stopped } = now;
            let (leader, stopped) = (leader.map_or(0, |leader| leader.0), stopped.unwrap_or_default());
            trace.say(format_args!("node {node} is {role:?} in term {term} of node {leader} {stopped}"));
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Writes down where a node's ledger is, whenever it moves.
async fn watch_head(record: Record, node: NodeId, life: u64, mut head: watch::Receiver<Option<Head>>) {
    loop {
        let now = head.borrow_and_update().clone();
        if let Some(now) = now.filter(|now| now.height > Height(0)) {
            let (height, hash, final_height) = (now.height, now.hash, now.final_height);
            record.see(Sighting { at: record.now(), node, life, height, hash, final_height });
        }
        if head.changed().await.is_err() {
            return;
        }
    }
}
