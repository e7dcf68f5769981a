//! What goes wrong, and when.

use std::time::Duration;

use lockstep_consensus::Role;
use lockstep_types::NodeId;
use tokio::time::{Instant, sleep, sleep_until};

use super::bugs::Bug;
use super::disk::Trouble;
use super::links::Quality;
use super::scenario::Fault;
use super::world::World;
use crate::random::Random;

/// How far a clock leaps.
const DAY_MS: i64 = 24 * 3_600_000;
/// How long a majority is away.
const OUTAGE_MS_MIN: u64 = 15_000;
/// See [`OUTAGE_MS_MIN`].
const OUTAGE_MS_MAX: u64 = 40_000;
/// A sync that does not return while a run lasts.
const NEVER: Duration = Duration::from_secs(24 * 3_600);
/// How long a node is away that comes back when what it lacks is forgotten: longer than the least that a network may keep.
const ABSENCE: Duration = Duration::from_secs(32);

/// Brings all faults about, one after the other, some of them at the same time.
pub(super) async fn run(world: World, mut random: Random) {
    let (start, length) = (Instant::now(), world.scenario.length);
    let length_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    let mut times: Vec<u64> = (0..world.scenario.faults).map(|_| random.number() % (length_ms * 5 / 6)).collect();
    times.sort_unstable();
    for time in times {
        sleep_until(start + Duration::from_millis(time)).await;
        let kind = world.scenario.kinds[random.below(world.scenario.kinds.len())];
        tokio::spawn(cause(world.clone(), Random::new(random.number()), kind));
    }
}

/// All is well again: nodes that can are started.
pub(super) fn heal(world: &World) {
    world.trace.say(format_args!("all is well again"));
    world.links.heal();
    world.tables.iter().for_each(super::output::Table::heal);
    for node in world.nodes() {
        world.clock(node).set_offset_ms(0);
        world.disk(node).trouble(Trouble::None);
        world.disk(node).slow(None);
        world.upgrade(node);
        world.start(node);
    }
}

/// Brings one about.
pub(super) async fn cause(world: World, mut random: Random, kind: Fault) {
    let nodes = world.nodes();
    let node = nodes[random.below(nodes.len())];
    let time = Duration::from_millis(200 + random.number() % 7_000);
    world.trace.say(format_args!("{kind:?} at node {node} for {time:?}"));
    match kind {
        Fault::Crash => {
            crash(&world, node, &mut random).await;
            sleep(time).await;
            world.start(node);
        }
        Fault::Kill => {
            world.kill(node);
            world.upgrade(node);
            sleep(time / 2).await;
            world.start(node);
        }
        Fault::Blackout => {
            nodes.iter().for_each(|node| world.lose_power(*node));
            for node in nodes {
                sleep(Duration::from_millis(random.number() % 1_000)).await;
                world.start(node);
            }
        }
        Fault::CutOneWay => {
            let other = nodes[random.below(nodes.len())];
            let cut = Quality { is_cut: true, ..Quality::GOOD };
            set_all(&world, &[(node, other)], cut);
            sleep(time).await;
            set_all(&world, &[(node, other)], Quality::GOOD);
        }
        Fault::Isolate => during(&world, &around(&nodes, node), Quality { is_cut: true, ..Quality::GOOD }, time).await,
        Fault::Split => {
            let side: Vec<bool> = nodes.iter().map(|_| random.below(2) == 0).collect();
            let sides = || nodes.iter().zip(&side);
            let across =
                sides().flat_map(|(a, left)| sides().filter(move |(_, right)| left != *right).map(|(b, _)| (*a, *b)));
            during(&world, &across.collect::<Vec<_>>(), Quality { is_cut: true, ..Quality::GOOD }, time).await;
        }
        Fault::SlowLinks => {
            let slow = Quality { delay_us_min: 50_000, delay_us_max: 400_000, ..Quality::GOOD };
            during(&world, &around(&nodes, node), slow, time).await;
        }
        Fault::LossyLinks => {
            let lossy = Quality { lost_of_1000: 50, twice_of_1000: 100, delay_us_max: 30_000, ..Quality::GOOD };
            let all: Vec<_> = nodes.iter().flat_map(|a| nodes.iter().map(|b| (*a, *b))).collect();
            during(&world, &all, lossy, time).await;
        }
        Fault::ClockOff => {
            let offset = i64::try_from(random.number() % 12_000).unwrap_or_default() - 6_000;
            // A node follows its machine's clock slowly. One that was just started goes by what it shows.
            let is_started = offset % 2 == 0;
            clock_off(&world, node, offset, is_started, time * 2).await;
        }
        Fault::ClockLeap => {
            // The same one each time: two that are off by as much would be a majority.
            let node = nodes[0];
            let offset = if random.below(2) == 0 { DAY_MS } else { -DAY_MS };
            let is_started = nodes.len() > 1 && random.below(2) == 0;
            clock_off(&world, node, offset, is_started, time * 2).await;
        }
        Fault::SlowDisk => {
            world.disk(node).slow(Some(Duration::from_millis(50 + random.number() % 400)));
            sleep(time).await;
            world.disk(node).slow(None);
        }
        Fault::HungSync => {
            world.disk(node).slow(Some(NEVER));
            sleep(time * 2).await;
            // Its operator has seen that it stands still, and switches the machine off and on.
            world.lose_power(node);
            world.disk(node).slow(None);
            sleep(time / 4).await;
            world.start(node);
        }
        Fault::SlowElection => {
            for node in &nodes {
                world.disk(*node).slow(Some(Duration::from_millis(100 + random.number() % 900)));
            }
            let leader = leader(&world, &nodes).unwrap_or(node);
            world.kill(leader);
            sleep(time).await;
            nodes.iter().for_each(|node| world.disk(*node).slow(None));
            world.start(leader);
        }
        Fault::Absence => {
            world.kill(node);
            sleep(ABSENCE).await;
            world.start(node);
        }
        Fault::BadDisk => {
            let trouble = if random.below(2) == 0 { Trouble::SyncFails } else { Trouble::Full };
            world.disk(node).trouble(trouble);
            sleep(time).await;
            world.disk(node).trouble(Trouble::None);
        }
        Fault::HandOver => {
            for node in &nodes {
                if let Some(running) = world.running(*node) {
                    running.consensus.hand_over(&nodes).await;
                }
            }
        }
        Fault::OutputTrouble => {
            let table = &world.tables[random.below(world.tables.len())];
            if random.below(2) == 0 {
                table.go_away()
            } else {
                table.falter()
            }
            sleep(time).await;
            table.heal();
        }
        Fault::Pause => world.pause(node, time).await,
        Fault::Flip => {
            if world.may_lose(node) {
                world.disk(node).flip();
            }
        }
        Fault::Wipe => wipe(&world, node, time).await,
        Fault::Outage => outage(&world, nodes, &mut random).await,
    }
}

/// Who leads, as it says itself.
fn leader(world: &World, nodes: &[NodeId]) -> Option<NodeId> {
    let leads = |node: &&NodeId| {
        world.running(**node).is_some_and(|running| running.consensus.status().borrow().role == Role::Leader)
    };
    nodes.iter().find(leads).copied()
}

/// A majority is away, each of them down or cut off, and comes back.
async fn outage(world: &World, mut nodes: Vec<NodeId>, random: &mut Random) {
    let (all, majority) = (nodes.clone(), nodes.len() / 2 + 1);
    let length = Duration::from_millis(OUTAGE_MS_MIN + random.number() % (OUTAGE_MS_MAX - OUTAGE_MS_MIN));
    let away: Vec<NodeId> = (0..majority).map(|_| nodes.swap_remove(random.below(nodes.len()))).collect();
    let cut = Quality { is_cut: true, ..Quality::GOOD };
    for node in &away {
        if random.below(2) == 0 {
            world.kill(*node);
        }
        set_all(world, &around(&all, *node), cut);
    }
    world.trace.say(format_args!("nodes {away:?} are away for {length:?}"));
    sleep(length).await;
    for node in away {
        set_all(world, &around(&all, node), Quality::GOOD);
        world.start(node);
    }
}

/// The clock of a node's machine is off for a while; from the node's start on, or under a node that runs.
async fn clock_off(world: &World, node: NodeId, offset_ms: i64, is_started: bool, time: Duration) {
    world.clock(node).set_offset_ms(offset_ms);
    if is_started {
        world.kill(node);
        world.start(node);
    }
    sleep(time).await;
    world.clock(node).set_offset_ms(0);
}

/// Cuts a node off after some number of its steps.
async fn crash(world: &World, node: NodeId, random: &mut Random) {
    if let Some(running) = world.running(node) {
        running.scope.end_after(1 + random.number() % 2_000);
        let _ = tokio::time::timeout(Duration::from_secs(1), running.scope.ended()).await;
    }
    world.lose_power(node);
}

/// A node loses its disk, where enough others have theirs.
async fn wipe(world: &World, node: NodeId, time: Duration) {
    let forgets = world.scenario.bugs.has(Bug::VoteAfterWipe);
    if forgets {
        world.wipe(node, true);
        sleep(time / 4).await;
        world.start(node);
    } else if world.may_lose(node) {
        world.wipe(node, false);
    }
}

fn around(nodes: &[NodeId], node: NodeId) -> Vec<(NodeId, NodeId)> {
    nodes.iter().filter(|other| **other != node).flat_map(|other| [(node, *other), (*other, node)]).collect()
}

fn set_all(world: &World, links: &[(NodeId, NodeId)], quality: Quality) {
    links.iter().for_each(|(from, to)| world.links.set(*from, *to, quality));
}

async fn during(world: &World, links: &[(NodeId, NodeId)], quality: Quality, time: Duration) {
    set_all(world, links, quality);
    sleep(time).await;
    set_all(world, links, Quality::GOOD);
}
