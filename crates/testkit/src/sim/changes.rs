//! Operators: who joins, who leaves, and who comes back with an empty disk, while everything else goes on.

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::join_all;
use lockstep_ledger::Members;
use lockstep_types::{Change, Epoch, MemberRole, NodeId, TimeMs};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::machine::Newcomer;
use super::world::{Running, World};
use crate::random::Random;

/// An operator waits for an answer of the node this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// A proposal counts for this long.
const PROPOSAL_LIFE_MS: u64 = 30_000;
/// Nobody leaves a network of fewer voters: another may lose its disk at the same time.
const VOTERS_MIN: usize = 5;
/// How often operators look after their machines.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A change that operators want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// A new machine joins, and is made a voter.
    Join,
    /// A new machine joins, and stays an observer.
    Observe,
    /// A voter leaves.
    Leave,
    /// A voter becomes an observer, and a voter again.
    Demote,
}

/// Brings all changes about, at random times, some of them at the same time.
pub(super) async fn run(world: World, mut random: Random) {
    const WISHES: [Wish; 5] = [Wish::Join, Wish::Join, Wish::Observe, Wish::Leave, Wish::Demote];
    let (start, length) = (Instant::now(), world.scenario.length);
    let length_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    let mut times: Vec<u64> = (0..world.scenario.changes).map(|_| random.number() % (length_ms * 5 / 6)).collect();
    times.sort_unstable();
    for time in times {
        sleep_until(start + Duration::from_millis(time)).await;
        let wish = WISHES[random.below(WISHES.len())];
        tokio::spawn(bring_about(world.clone(), Random::new(random.number()), wish));
    }
}

async fn bring_about(world: World, mut random: Random, wish: Wish) {
    let _busy = world.busy();
    world.trace.say(format_args!("wished: {wish:?}"));
    let done = match wish {
        Wish::Join | Wish::Observe => join(&world, &mut random, None, wish == Wish::Join).await,
        Wish::Leave => leave(&world, &mut random).await,
        Wish::Demote => demote(&world, &mut random).await,
    };
    world.trace.say(format_args!("{wish:?}: {done:?}"));
}

/// Operators look after their machines: one whose disk is lost or damaged is replaced.
pub(super) async fn look_after(world: World, mut random: Random) {
    loop {
        sleep(LOOK_INTERVAL).await;
        for node in world.nodes() {
            if !world.is_lost(node) && world.disk(node).was_damage_noticed() {
                world.trace.say(format_args!("the operator of node {node} sees that its disk is damaged"));
                world.wipe(node, false);
            }
            if world.is_lost(node) {
                let _busy = world.busy();
                sleep(Duration::from_millis(random.number() % 5_000)).await;
                let done = replace(&world, &mut random, node).await;
                world.trace.say(format_args!("node {node} is replaced: {done:?}"));
            }
        }
    }
}

/// Within a node: with it, what operators asked it ends.
pub(super) async fn within<T: Send + 'static>(
    running: &Running,
    ask: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    timeout(PATIENCE, tokio::spawn(running.scope.run(ask.boxed()))).await.ok()?.ok()
}

/// Some node that is up.
pub(super) fn any(world: &World, random: &mut Random) -> Option<(NodeId, Running)> {
    let nodes = world.nodes();
    let node = nodes[random.below(nodes.len())];
    Some((node, world.running(node)?))
}

/// Lets the operators of all voters approve what is wanted, again and again, until nothing is. What that is follows from
/// the members; `None`: nothing any more.
pub(super) async fn agree(world: &World, random: &mut Random, wanted: impl Fn(&Members) -> Option<Change>) {
    loop {
        sleep(Duration::from_millis(100 + random.number() % 400)).await;
        let Some(members) = world.members() else { continue };
        if members.pending().is_some() {
            continue;
        }
        let Some(change) = wanted(&members) else { return };
        let Some((_, asked)) = any(world, random) else { continue };
        let expires = TimeMs(asked.doors.now().0 + PROPOSAL_LIFE_MS);
        let proposal = members.propose(Epoch(0), change, expires);
        let Ok(network) = world.genesis().id() else { return };
        let voters = members.set().voters().filter_map(|voter| Some((voter.node, world.running(voter.node)?)));
        let approve = |(node, running): (NodeId, Running)| {
            let approval = proposal.clone().approve(&network, node, &world.key(node));
            let doors = running.doors.clone();
            async move { within(&running, async move { doors.approve(approval).await }).await }
        };
        for refused in join_all(voters.map(approve)).await.into_iter().flatten().filter_map(Result::err) {
            world.trace.say(format_args!("not approved: {refused}"));
        }
    }
}

/// Asks some node whether a newcomer was admitted, which also tells its operator that it wants to be.
async fn ask(world: &World, random: &mut Random, newcomer: &Newcomer) -> Option<lockstep_node::JoinAnswer> {
    sleep(Duration::from_millis(1 + random.number() % 200)).await;
    let (_, running) = any(world, random)?;
    let (doors, member, key) = (running.doors.clone(), newcomer.member.clone(), newcomer.key.public());
    let answer = within(&running, async move { doors.ask_to_join(key, &member).await }).await?;
    answer.inspect_err(|error| world.trace.say(format_args!("not admitted: {error}"))).ok()
}

/// A new machine, or what becomes of one that lost its disk, applies, is admitted, started, and made a voter.
pub(super) async fn join(
    world: &World,
    random: &mut Random,
    before: Option<NodeId>,
    votes: bool,
) -> anyhow::Result<()> {
    let newcomer = world.newcomer(before)?;
    while ask(world, random, &newcomer).await.is_none() {}
    let incarnation = newcomer.member.incarnation;
    let has = |members: &Members| members.all().any(|(_, known)| known.member.incarnation == incarnation);
    let asked = |world: &World| {
        let running = world.nodes().into_iter().filter_map(|node| world.running(node));
        let mut newcomers = running.flat_map(|running| running.doors.newcomers());
        newcomers.find(|member| member.incarnation == incarnation)
    };
    // Operators approve whom they see asking. A node that was started again has forgotten who did.
    while world.members().is_none_or(|members| !has(&members)) {
        ask(world, random, &newcomer).await;
        let Some(member) = asked(world) else { continue };
        agree(world, random, |members| (!has(members)).then(|| Change::Admit(member.clone()))).await;
    }
    let (node, found) = loop {
        if let Some(answer) = ask(world, random, &newcomer).await
            && let Some(node) = answer.node
        {
            break (node, answer.members);
        }
    };
    world.trace.say(format_args!("node {node} was admitted"));
    world.add(node, newcomer, found);
    world.start(node);
    let is_observer = |members: &Members| members.get(node).is_some_and(|known| known.role == MemberRole::Observer);
    if votes {
        // One that loses its disk before that is replaced by its operator.
        let wanted = |members: &Members| is_observer(members) && !world.is_lost(node);
        agree(world, random, |members| wanted(members).then_some(Change::Promote(node))).await;
    }
    Ok(())
}

/// A voter leaves a network that has enough others, and its machine is put away.
pub(super) async fn retire(world: &World, random: &mut Random, node: NodeId) {
    let is_there = |members: &Members| role(members, node).is_some_and(|role| role != MemberRole::Removed);
    agree(world, random, |members| is_there(members).then_some(Change::Remove(node))).await;
    world.put_away(node);
}

fn role(members: &Members, node: NodeId) -> Option<MemberRole> {
    members.get(node).map(|known| known.role)
}

/// A voter that has its disk, where there are enough of them.
fn some_voter(world: &World, random: &mut Random) -> Option<NodeId> {
    let members = world.members()?;
    let nodes = world.nodes();
    let well = |node: &NodeId| nodes.contains(node) && !world.is_lost(*node);
    let voters: Vec<NodeId> = members.set().voters().map(|voter| voter.node).filter(well).collect();
    (voters.len() >= VOTERS_MIN).then(|| voters[random.below(voters.len())])
}

fn may_go(members: &Members, node: NodeId) -> bool {
    role(members, node) == Some(MemberRole::Voter) && members.set().voters().count() >= VOTERS_MIN
}

async fn leave(world: &World, random: &mut Random) -> anyhow::Result<()> {
    let Some(node) = some_voter(world, random) else { return Ok(()) };
    agree(world, random, |members| may_go(members, node).then_some(Change::Remove(node))).await;
    if world.members().is_some_and(|members| role(&members, node) == Some(MemberRole::Removed)) {
        sleep(Duration::from_millis(random.number() % 3_000)).await;
        world.put_away(node);
    }
    Ok(())
}

async fn demote(world: &World, random: &mut Random) -> anyhow::Result<()> {
    let Some(node) = some_voter(world, random) else { return Ok(()) };
    agree(world, random, |members| may_go(members, node).then_some(Change::Demote(node))).await;
    sleep(Duration::from_millis(random.number() % 5_000)).await;
    let observes = |members: &Members| role(members, node) == Some(MemberRole::Observer) && !world.is_lost(node);
    agree(world, random, |members| observes(members).then_some(Change::Promote(node))).await;
    Ok(())
}

/// The member whose disk is lost is removed, and its machine comes back as a new one.
pub(super) async fn replace(world: &World, random: &mut Random, node: NodeId) -> anyhow::Result<()> {
    let voted = world.members().is_none_or(|members| role(&members, node) != Some(MemberRole::Observer));
    retire(world, random, node).await;
    join(world, random, Some(node), voted).await
}
