//! One run: load and faults, then all is well again, then everything is compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lockstep_consensus::StateStore;
use lockstep_types::{Address, Batch, Certificate, Height, NodeId};
use tokio::runtime::RngSeed;
use tokio::time::{sleep, timeout};

use super::bugs::Bug;
use super::scenario::Scenario;
use super::trace::Trace;
use super::world::World;
use super::{changes, clients, faults, owner, panics, readers, years};
use crate::order::{self, Chain, Evidence, Promise, Row, Store, Told, Violations};
use crate::random::Random;

/// When all is well again, everything is everywhere within this time.
const CALM_MAX: Duration = Duration::from_secs(40);
/// … and clients have sent what they had to send.
const CLIENTS_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whether it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Batch time may be ahead of the true one by this much: clocks are off by six seconds at most, but for leaps, which are
/// not to be gone by.
const AHEAD_MAX: Duration = Duration::from_secs(10);
/// Where batches are forgotten an output is dead for this long: longer than anything is kept.
const DEAD_OUTPUT_TIME: Duration = Duration::from_secs(35);
/// Events that a report shows.
const SHOWN_EVENTS: usize = 60;

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// The hash of all that happened.
    pub hash: u64,
    /// How much happened.
    pub events: u64,
    /// Calls of clients, and those of them that were answered with a place.
    pub calls: (usize, usize),
    /// Messages in the order.
    pub messages: usize,
    /// Simulated time.
    pub simulated: Duration,
    /// Broken promises.
    pub violations: Violations,
    /// The last events, in words.
    pub last_events: Vec<String>,
}

/// A directory that is removed with the value; in memory where the machine has a place for that.
fn homes() -> Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    let parent: PathBuf = if memory.is_dir() { memory.into() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("lockstep-sim-").tempdir_in(parent).context("a directory for small files")
}

/// Runs a scenario with a seed. With `echo` every event is printed when it happens.
///
/// # Errors
/// If the machine has no room for it; never for what the run shows.
pub fn run(seed: u64, scenario: &Scenario, echo: bool) -> Result<Report> {
    let homes = homes()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&seed.to_be_bytes()))
        .build()?;
    clients::make_messages();
    lockstep_types::signature::simulated::begin();
    panics::collect();
    let report = runtime.block_on(play(seed, scenario.clone(), homes.path(), echo));
    // What is left of nodes ends here, and may panic where it is not used to that.
    let panicked = panics::take();
    drop(runtime);
    let mut report = report?;
    panicked.into_iter().for_each(|panic| report.violations.add(Promise::Sane, panic));
    Ok(report)
}

async fn play(seed: u64, scenario: Scenario, homes: &Path, echo: bool) -> Result<Report> {
    let mut random = Random::new(seed);
    let trace = Trace::new(echo);
    let world = World::new(random.number(), scenario, homes, trace.clone())?;
    world.nodes().into_iter().for_each(|node| world.start(node));
    let clients = if world.scenario.years.is_some() { Vec::new() } else { clients::start(&world, &mut random) };
    let faults = tokio::spawn(faults::run(world.clone(), Random::new(random.number())));
    let changes = start_others(&world, &mut random);
    if world.scenario.bugs.has(Bug::PublishBeforeFinal) {
        tokio::spawn(publish_too_early(world.clone()));
    }
    let growth = match world.scenario.years {
        Some(years) => Some(years.live(&world, Random::new(random.number())).await),
        None => {
            sleep(world.scenario.length).await;
            None
        }
    };
    faults.abort();
    changes.abort();
    faults::heal(&world);
    // Whoever has waited for so long has been told "unknown" for good.
    let all = futures::future::join_all(clients);
    let _ = timeout(CLIENTS_MAX, all).await;
    if timeout(CALM_MAX, calm(&world)).await.is_err() {
        world.record.trouble(Promise::Progress, format!("{CALM_MAX:?} after all was well: {}", standing(&world)));
    }
    if let Some(growth) = growth {
        growth.check(&world).into_iter().for_each(|what| world.record.trouble(Promise::Bounded, what));
    }
    let simulated = world.record.now();
    let evidence = evidence(&world).await?;
    trace.say(format_args!("the end, with {} calls", evidence.calls.len()));
    let mut violations = order::check(&evidence);
    let acknowledged = evidence.calls.iter().filter(|call| matches!(call.told, Told::Ordered { .. })).count();
    let newest =
        evidence.chains.iter().filter_map(|chain| chain.batches.last()).map(|batch| batch.header.time_ms).max();
    let ahead_ms = newest.map_or(0, |newest| newest.0.saturating_sub(world.true_time().0));
    if u128::from(ahead_ms) > AHEAD_MAX.as_millis() {
        violations.add(Promise::Once, format!("batch time is {ahead_ms} ms ahead of every clock that is right"));
    }
    let messages = evidence.chains.first().map_or(0, |chain| chain.batches.iter().map(|b| b.messages.len()).sum());
    if acknowledged < world.scenario.messages / 2 {
        violations.add(Promise::Progress, format!("only {acknowledged} calls were answered with a place"));
    }
    world.stop();
    Ok(Report {
        seed,
        hash: trace.hash(),
        events: trace.events(),
        calls: (evidence.calls.len(), acknowledged),
        messages,
        simulated,
        violations,
        last_events: trace.last(SHOWN_EVENTS),
    })
}

/// An output that nobody reaches for a while, and that gets everything then.
async fn dead_output(world: World, mut random: Random) {
    let until = world.scenario.length.saturating_sub(DEAD_OUTPUT_TIME);
    sleep(until * u32::try_from(random.below(1_000)).unwrap_or_default() / 1_000).await;
    let table = &world.tables[random.below(world.tables.len())];
    world.trace.say(format_args!("output {} is dead", table.name()));
    table.go_away();
    sleep(DEAD_OUTPUT_TIME).await;
    table.heal();
}

/// Operators, an owner and readers, as the scenario has them.
fn start_others(world: &World, random: &mut Random) -> tokio::task::JoinHandle<()> {
    let scenario = &world.scenario;
    let mut random = Random::new(random.number());
    let mut draw = || Random::new(random.number());
    if scenario.replaces {
        tokio::spawn(changes::look_after(world.clone(), draw()));
    }
    if scenario.forgets {
        tokio::spawn(dead_output(world.clone(), draw()));
    }
    if scenario.has_owner {
        tokio::spawn(owner::run(world.clone(), draw()));
    }
    for reader in 0..scenario.readers {
        tokio::spawn(readers::run(world.clone(), draw(), reader));
    }
    tokio::spawn(changes::run(world.clone(), draw()))
}

/// A publisher that does not wait for certificates.
async fn publish_too_early(world: World) {
    let table = world.tables[0].clone();
    loop {
        sleep(Duration::from_millis(300)).await;
        let Some(node) = world.nodes().first().copied() else { continue };
        let Some(running) = world.running(node) else { continue };
        let Some(head) = running.head.borrow().clone() else { continue };
        let next = table.last_task().map_or(lockstep_types::TaskNumber(1), lockstep_types::TaskNumber::next);
        if head.height == head.final_height || next >= head.next_task_number {
            continue;
        }
        let Ok(Some(batch)) = running.state.batch_of_task(next) else { continue };
        let Some(task) = batch.task_at(next) else { continue };
        table.write_behind_its_back(unsigned(&batch, task));
    }
}

fn unsigned(batch: &Batch, task: &lockstep_types::Task) -> lockstep_outputs::FinalTask {
    let message = |sequence: &lockstep_types::Sequence| {
        let found = batch.message_at(*sequence)?;
        Some(lockstep_outputs::FinalMessage { sequence: *sequence, id: found.id, data: found.message.data.clone() })
    };
    let messages = task.sequences.iter().filter_map(message).collect();
    lockstep_outputs::FinalTask {
        number: task.number,
        id: task.id,
        project_id: task.project_id,
        project_version: task.project_version.clone(),
        device: task.device,
        time_ms: batch.header.time_ms,
        messages: lockstep_outputs::FinalMessage::rows(&task.id, task.ruled.as_deref(), messages),
        signature: lockstep_types::Signature([0; 65]),
        origin: None,
    }
}

/// Waits until every node that is not lost has the same, all of it final and in every output.
async fn calm(world: &World) {
    while !is_calm(world) {
        sleep(LOOK_INTERVAL).await;
    }
}

fn is_calm(world: &World) -> bool {
    let is_left = |node: &NodeId| world.scenario.replaces && world.is_lost(*node);
    if world.is_busy() || world.nodes().iter().any(is_left) {
        return false;
    }
    let mut heads = Vec::new();
    for node in world.nodes().iter().filter(|node| !world.is_lost(**node)) {
        let Some(running) = world.running(*node) else { return false };
        let Some(head) = running.head.borrow().clone() else { return false };
        heads.push(head);
    }
    let Some(first) = heads.first() else { return false };
    let newest = first.next_task_number.0 - 1;
    first.final_height == first.height
        && heads.iter().all(|head| head == first)
        && world.members().is_some_and(|members| members.pending().is_none())
        && (0..world.scenario.readers).all(|reader| world.record.last_read(reader).map_or(0, |last| last.0) >= newest)
        && world.tables.iter().all(|table| table.last_task().map_or(0, |last| last.0) >= newest)
}

/// Where everybody is, in words.
fn standing(world: &World) -> String {
    let node = |node: &NodeId| {
        let Some(running) = world.running(*node) else { return format!("node {node} is off") };
        let (status, head) = (running.consensus.status().borrow().clone(), running.head.borrow().clone());
        let head = head.map_or((0, 0), |head| (head.height.0, head.final_height.0));
        format!(
            "node {node} {:?} term {} leader {:?} at {head:?} {:?}",
            status.role, status.term, status.leader, status.stopped
        )
    };
    let nodes: Vec<String> = world.nodes().iter().map(node).collect();
    let tables: Vec<String> =
        world.tables.iter().map(|table| format!("{} has {:?}", table.name(), table.last_task())).collect();
    let readers: Vec<_> = (0..world.scenario.readers).map(|reader| world.record.last_read(reader)).collect();
    let pending = world.members().and_then(|members| members.pending().map(|pending| pending.proposal.change.clone()));
    let (nodes, tables, busy) = (nodes.join("; "), tables.join("; "), world.is_busy());
    format!("{nodes}; {tables}; readers {readers:?}; under way {pending:?}, busy {busy}")
}

/// What a node holds, behind what was seen of the batches that it has forgotten.
fn chain_of(node: NodeId, state: &StateStore, seen: &BTreeMap<Height, Batch>) -> Result<Chain> {
    let kept = state.head()?.map_or(Height(0), |head| head.horizon.height);
    let mut batches: Vec<Batch> = seen.range(..kept).map(|(_, batch)| batch.clone()).collect();
    let mut certificates: Vec<Certificate> = Vec::new();
    loop {
        let next = Height(batches.len() as u64 + 1);
        let more = state.batches(next, 1_000, usize::MAX)?;
        if more.is_empty() {
            break;
        }
        batches.extend(more);
    }
    while let Some(next) = state.certificate_from(certificates.last().map_or(Height(1), |last| last.height.next()))? {
        certificates.push(next);
    }
    let projects = state.projects()?;
    let registry = match projects.get(&owner::PROJECT) {
        Some(project) => {
            let grants = state.grants(owner::PROJECT, &Address::ZERO, usize::MAX)?;
            let listed = grants.into_iter().filter(|(_, grant)| grant.listed).map(|(device, _)| device);
            owner::in_words(project.orders, listed)
        }
        None => String::new(),
    };
    Ok(Chain { node, batches, certificates, registry })
}

async fn evidence(world: &World) -> Result<Evidence> {
    let seen = world.record.take();
    let mut chains = Vec::new();
    for node in world.nodes() {
        let Some(running) = world.running(node) else { continue };
        match chain_of(node, &running.state, &seen.batches) {
            Ok(chain) => chains.push(chain),
            // It says so, and shows nothing.
            Err(error) if world.disk(node).is_damaged() => world.trace.say(format_args!("node {node}: {error}")),
            // Bytes that were changed without a word may make no sense.
            Err(error) if world.scenario.bugs.has(Bug::ServeFlipped) => world.trace.say(format_args!("{error}")),
            Err(error) => return Err(error),
        }
    }
    let store = |table: &super::output::Table| Store {
        name: table.name().to_owned(),
        once: table.has_cursor(),
        rows: table
            .written()
            .into_iter()
            .map(|written| Row {
                at: world.record.at(written.at),
                number: written.task.number,
                id: written.task.id,
                messages: written.task.messages.iter().map(|m| (m.sequence, m.data.to_vec())).collect(),
            })
            .collect(),
    };
    let stores = world.tables.iter().map(store).collect();
    let first_task = lockstep_types::TaskNumber(1);
    Ok(Evidence {
        calls: seen.calls,
        chains,
        sightings: seen.sightings,
        stores,
        feeds: seen.feeds,
        bans: seen.bans,
        registry: seen.registry,
        first_task,
        first_set: world.genesis().first_set()?,
        windows: years::owned(&world.scenario).map(|project| (project, owner::WINDOW_MS)).collect(),
        window_ms: Some(world.scenario.retry_window_ms),
        troubles: seen.troubles,
    })
}
