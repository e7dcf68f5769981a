//! The nodes, and what they stand on: starts them, cuts them off, and starts them again from what their disks have.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::FutureExt as _;
use lockstep_consensus::runtime::{self, Scope};
use lockstep_consensus::{Consensus, RaftStatus, Role, StateStore};
use lockstep_ledger::{Head, Members};
use lockstep_network::{GossipFeed, Handle};
use lockstep_node::bare::{Bare, BareDoors, BareOptions, OpenOutput};
use lockstep_node::clock::{Clock, SimulatedClock};
use lockstep_node::home::{Home, Opened};
use lockstep_node::ingress::Ingress;
use lockstep_node::{AskMembers, NodeError};
use lockstep_store::home::StoreHome;
use lockstep_types::{Epochs, Genesis, Height, Member, MemberRole, NodeId, SigningKey, TimeMs};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::disk::Disk;
use super::links::Links;
use super::machine::{self, Machine, Newcomer};
use super::output::{self, Table};
use super::record::Record;
use super::scenario::Scenario;
use super::trace::Trace;
use crate::order::{Promise, Sighting};

/// The time at which every run begins, in milliseconds since 1970.
const START_MS: u64 = 1_790_000_000_000;
/// Time for a question to another node and its answer.
const ASK_TIME: Duration = Duration::from_millis(5);
/// Whoever is asked may have stopped for a while.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
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
    /// What operators, newcomers, owners of projects and readers reach of it.
    pub doors: BareDoors,
}

struct Inner {
    machines: BTreeMap<NodeId, Machine>,
    /// Counts the stores that were made.
    stores: u64,
    stopping: bool,
}

/// See the module's documentation. Clones are the same world.
#[derive(Clone)]
pub struct World {
    inner: Arc<Mutex<Inner>>,
    seed: u64,
    genesis: Arc<Genesis>,
    task_key: SigningKey,
    homes: PathBuf,
    clock: SimulatedClock,
    busy: Arc<AtomicUsize>,
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

/// Something that has to come to its end before all is well.
pub struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl World {
    /// Machines that are off, with homes below `homes`, which is empty.
    ///
    /// # Errors
    /// If a directory cannot be made.
    pub fn new(seed: u64, scenario: Scenario, homes: &std::path::Path, trace: Trace) -> Result<Self> {
        let genesis = machine::genesis(&scenario)?;
        let links = Links::new(seed ^ 0x11, trace.clone(), scenario.bugs);
        let table = |name, once, salt: u64| Table::new(name, once, seed ^ salt, (trace.clone(), scenario.bugs));
        let world = Self {
            inner: Arc::new(Mutex::new(Inner {
                machines: BTreeMap::new(),
                stores: scenario.nodes as u64,
                stopping: false,
            })),
            seed,
            task_key: machine::key(1_000),
            homes: homes.to_owned(),
            clock: SimulatedClock::new(START_MS),
            busy: Arc::default(),
            links,
            tables: [table("table", true, 0x21), table("blobs", false, 0x22)].into(),
            trace,
            record: Record::new(),
            scenario: Arc::new(scenario),
            genesis: Arc::new(genesis),
        };
        for (node, member) in world.genesis.clone().nodes() {
            let of = |number: &u64| format!("n{number}") == member.name;
            let number = (0..world.scenario.nodes as u64).find(of).context("a member of the genesis")?;
            let home = machine::make_home(homes, number, member)?;
            let newcomer = Newcomer { member: member.clone(), key: machine::key(number), home };
            world.add(node, newcomer, Vec::new());
        }
        Ok(world)
    }

    /// The network.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// All machines that have not left the network.
    pub fn nodes(&self) -> Vec<NodeId> {
        let inner = self.inner.lock();
        inner.machines.iter().filter(|(_, machine)| !machine.is_gone).map(|(node, _)| *node).collect()
    }

    /// A machine with an empty disk: a new one, or what becomes of `before`.
    ///
    /// # Errors
    /// If its directory cannot be made.
    pub(super) fn newcomer(&self, before: Option<NodeId>) -> Result<Newcomer> {
        let number = {
            let mut inner = self.inner.lock();
            inner.stores += 1;
            inner.stores
        };
        let (name, key) = match before {
            Some(node) => self.with(node, |machine| (machine.member.name.clone(), machine.key.clone())),
            None => (format!("n{number}"), machine::key(number)),
        };
        let member = machine::member(number, name, &key);
        let home = machine::make_home(&self.homes, number, &member)?;
        Ok(Newcomer { member, key, home })
    }

    /// A newcomer was admitted. It is off.
    pub(super) fn add(&self, node: NodeId, newcomer: Newcomer, found: Vec<(NodeId, Member)>) {
        let machine = Machine {
            home: newcomer.home,
            key: newcomer.key,
            incarnation: newcomer.member.incarnation,
            member: newcomer.member,
            found,
            disk: Disk::new(self.seed ^ (node.0 << 8), self.scenario.bugs),
            clock: self.clock.twin(),
            rules_max: self.scenario.rules_max[usize::from(node.0 > 2)],
            life: 0,
            scope: None,
            running: None,
            is_lost: false,
            is_gone: false,
        };
        self.inner.lock().machines.insert(node, machine);
    }

    /// Puts a machine away whose node has left.
    pub fn put_away(&self, node: NodeId) {
        self.trace.say(format_args!("node {node} is put away"));
        self.with(node, |machine| machine.is_gone = true);
        self.off(node, self.life(node), |_| {});
    }

    /// Until it is dropped, not all is well.
    pub fn busy(&self) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.busy.clone())
    }

    /// Whether somebody is.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    /// The key of a machine's node, which its operator signs with.
    pub fn key(&self, node: NodeId) -> SigningKey {
        self.with(node, |machine| machine.key.clone())
    }

    /// The members as the node has them that knows the most changes.
    pub fn members(&self) -> Option<Arc<Members>> {
        let known = self.nodes().into_iter().filter_map(|node| self.running(node));
        let members = known.map(|running| running.doors.members().borrow().clone());
        members.max_by_key(|members| (members.changes(), members.pending().is_some()))
    }

    /// A machine that may lose its disk: enough others have theirs.
    pub fn may_lose(&self, node: NodeId) -> bool {
        let voters = self.members().map_or(0, |members| members.set().voters().count());
        let damaged = |node: &NodeId| self.is_lost(*node) || self.disk(*node).is_damaged();
        !self.nodes().iter().any(damaged) && self.nodes().contains(&node) && (voters > 3 || self.scenario.nodes == 3)
    }

    fn with<T>(&self, node: NodeId, look: impl FnOnce(&mut Machine) -> T) -> T {
        look(self.inner.lock().machines.get_mut(&node).expect("a node of this world"))
    }

    /// The node, while it is up.
    pub fn running(&self, node: NodeId) -> Option<Running> {
        self.with(node, |machine| machine.running.clone())
    }

    /// Its disk.
    pub fn disk(&self, node: NodeId) -> Disk {
        self.with(node, |machine| machine.disk.clone())
    }

    /// What a clock shows that is right.
    pub fn true_time(&self) -> TimeMs {
        self.clock.now()
    }

    /// Lets time pass by the clocks of all machines.
    pub fn pass(&self, time: Duration) {
        self.clock.pass(time);
    }

    /// The clock of its machine.
    pub fn clock(&self, node: NodeId) -> SimulatedClock {
        self.with(node, |machine| machine.clock.clone())
    }

    /// Whether it stays away for good.
    pub fn is_lost(&self, node: NodeId) -> bool {
        self.with(node, |machine| machine.is_lost || machine.is_gone)
    }

    /// From its next start on it knows the newest rules.
    pub fn upgrade(&self, node: NodeId) {
        self.with(node, |machine| machine.rules_max = self.scenario.rules_max[1]);
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
                config: machine::config(&self.scenario, machine.rules_max)?,
                node_key: machine.key.clone(),
                task_key: self.task_key.clone(),
                genesis,
                epochs,
                node,
                found: machine.found.clone(),
                store: StoreHome::open(&machine.home.join("store"))?,
            };
            let tables = self.tables.clone();
            let open_output: OpenOutput = Arc::new(move |config, _home, owner| {
                let missing = || NodeError::Config(format!("there is no output {}", config.name));
                output::open(&tables, config.name.as_str(), owner).ok_or_else(missing)
            });
            let home = Home::at(&machine.home);
            let medium = Arc::new(machine.disk.clone());
            let clock = Clock::simulated(machine.clock.clone());
            anyhow::Ok(((home, opened, medium, clock, open_output), machine.incarnation, machine.life))
        })?;
        let (home, opened, medium, clock, open_output) = options;
        let network = Handle::on(self.links.up(node, scope.clone(), incarnation, feed));
        let ask_members = self.ask_members(node);
        Ok((BareOptions { home, opened, medium, network, inbox, clock, open_output, ask_members }, life))
    }

    /// How a node asks others who the members are: over the link between them, by way of their doors.
    fn ask_members(&self, from: NodeId) -> AskMembers {
        let world = self.clone();
        Arc::new(move |key, member, address| {
            let world = world.clone();
            async move {
                let at = address.split("/p2p/").next().unwrap_or_default().to_owned();
                let to =
                    world.nodes().into_iter().find(|node| world.with(*node, |machine| machine.member.p2p == at))?;
                tokio::time::sleep(ASK_TIME).await;
                let running = world.running(to).filter(|_| world.links.are_open(from, to))?;
                let doors = running.doors.clone();
                let asked = running.scope.run(async move { doors.ask_to_join(key.public(), &member).await }.boxed());
                let answer = tokio::time::timeout(ASK_TIMEOUT, tokio::spawn(asked)).await.ok()?.ok()?;
                Some(answer.ok()?.members)
            }
            .boxed()
        })
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
            note_divergence(&world.record, node, &why.to_string());
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
            let (state, head, doors) = (bare.state(), bare.head(), bare.doors());
            let running = Running { scope, ingress, consensus, state, head, doors };
            machine.running = Some(running.clone());
            running
        });
        runtime::spawn(watch_role(self.trace.clone(), self.record.clone(), node, running.consensus.status()));
        runtime::spawn(watch_removal(node, running.clone()));
        if self.scenario.forgets || self.scenario.years.is_some() {
            runtime::spawn(keep_batches(self.record.clone(), node, running.state, running.head.clone()));
        }
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

    /// Its process is stopped for a while, and goes on.
    pub async fn pause(&self, node: NodeId, time: Duration) {
        let Some(running) = self.running(node) else { return };
        running.scope.pause();
        tokio::time::sleep(time).await;
        self.trace.say(format_args!("node {node} goes on"));
        running.scope.resume();
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
        for node in self.nodes() {
            self.off(node, self.life(node), |_| {});
        }
    }
}

/// A node that finds that its state is not the one that all have has broken a promise, though it says so and stops.
fn note_divergence(record: &Record, node: NodeId, why: &str) {
    // A log is purged up to what the state on the disk has, and a node's own disk is all that it was started with.
    if why.contains("its state is damaged") || why.contains("but the log begins behind entry") {
        record.trouble(Promise::Agreement, format!("node {node} stopped: {why}"));
    }
}

/// Keeps what a node has and may forget.
async fn keep_batches(record: Record, node: NodeId, state: StateStore, mut head: watch::Receiver<Option<Head>>) {
    let mut next = Height(1);
    loop {
        let newest = head.borrow_and_update().as_ref().map_or(Height(0), |head| head.height);
        while next <= newest {
            // Of what it had forgotten before it came here others had more.
            let Ok(batches) = state.batches(next, 64, usize::MAX) else { return };
            let Some(last) = batches.last() else { break };
            next = last.header.height.next();
            record.keep(node, batches);
        }
        if head.changed().await.is_err() {
            return;
        }
    }
}

/// Tells of changes of the lead.
async fn watch_role(trace: Trace, record: Record, node: NodeId, mut status: watch::Receiver<RaftStatus>) {
    loop {
        let now = status.borrow_and_update().clone();
        if let Some(why) = &now.stopped {
            note_divergence(&record, node, why);
        }
        if now.role != Role::Follower || now.leader.is_some() || now.stopped.is_some() {
            let RaftStatus { role, term, leader, stopped, has_applied_term: _ } = now;
            let (leader, stopped) = (leader.map_or(0, |leader| leader.0), stopped.unwrap_or_default());
            trace.say(format_args!("node {node} is {role:?} in term {term} of node {leader} {stopped}"));
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// A node that is removed takes no more messages, as `Node::run` has it.
async fn watch_removal(node: NodeId, running: Running) {
    let mut members = running.doors.members();
    let is_removed = |members: &Arc<Members>| members.get(node).is_some_and(|known| known.role == MemberRole::Removed);
    if members.wait_for(is_removed).await.is_ok() {
        running.ingress.stop();
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
