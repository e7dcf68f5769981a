//! A network that grows old. Its days follow each other: a day's messages come, what happens on it happens, then time
//! passes by all clocks at once. Only what nodes measure with timers, as elections, goes by the runtime's time.

use std::time::Duration;

use futures::future::{join, join_all};
use lockstep_consensus::Role;
use lockstep_ledger::{Command, OutputState};
use lockstep_types::genesis::AGE_MS_MAX;
use lockstep_types::{OutputName, Place, ProjectId, Stage, TaskNumber};
use tokio::time::{Instant, sleep};

use super::census::{self, Census, Life};
use super::owner::{self, Owner};
use super::scenario::Scenario;
use super::world::{Running, World};
use super::{changes, clients, faults};
use crate::random::Random;

/// A life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Years {
    /// How long it is.
    pub days: u64,
    /// Messages of each day.
    pub day_messages: usize,
    /// Orders of the owner, for each project.
    pub orders: usize,
    /// How often something goes wrong.
    pub faults: usize,
}

/// What is older goes.
pub(super) const KEPT_MS: u64 = 30 * DAY.as_secs() * 1_000;
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// A day takes at least this long by the runtime's time.
const DAY_TIME: Duration = Duration::from_millis(100);
/// How often a machine is replaced: the oldest each time, so that all three are replaced twice.
const REPLACEMENTS: u64 = 6;
/// Outputs that come, are fed by nobody, hold back what is kept, and are removed.
const GUESTS: u64 = 6;
/// Days that each of them is there.
const GUEST_DAYS: u64 = 20;
/// How often there is a census.
const CENSUSES: u64 = 100;
/// Outputs that nodes have in their configuration.
const OUTPUTS: u64 = 2;
/// Time that there is for the registration of a project.
const REGISTERED_WITHIN: Duration = Duration::from_secs(60);
/// Pause before an operator tries again.
const AGAIN: Duration = Duration::from_millis(100);

/// Projects with an owner, whose retry windows are theirs.
pub(super) fn owned(scenario: &Scenario) -> impl Iterator<Item = ProjectId> {
    let first = if scenario.years.is_some() { 1 } else { owner::PROJECT.0 };
    (first..=owner::PROJECT.0).map(ProjectId)
}

/// What happens on a day.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// The owner of a project gives an order.
    Order(usize),
    /// The oldest machine loses its disk, and comes back with an empty one.
    Restore,
    /// A machine with another key takes the oldest one's place.
    Rotate,
    /// An output is there that nobody feeds any more.
    GuestComes(u64),
    /// It is removed, and perhaps is added anew.
    GuestGoes(u64),
    /// Something goes wrong, while the days go on.
    Fault,
}

/// What nodes stored in the quarters of a life: the most of each prefix.
pub(super) struct Growth([Census; 4]);

impl Years {
    /// Ten years at a message an hour.
    pub const TEN: Self = Self { days: 3_652, day_messages: 24, orders: 50, faults: 40 };
    /// Long enough to see what grows.
    pub const SHORT: Self = Self { days: 1_200, day_messages: 4, orders: 10, faults: 8 };

    /// All its messages.
    pub fn messages(&self) -> usize {
        usize::try_from(self.days).unwrap_or(usize::MAX).saturating_mul(self.day_messages)
    }

    fn events(&self, random: &mut Random) -> Vec<(u64, Event)> {
        let mut events = Vec::new();
        for project in 0..4 {
            events.extend((0..self.orders).map(|_| (random.number() % self.days, Event::Order(project))));
        }
        for number in 0..REPLACEMENTS {
            let event = if number % 2 == 0 { Event::Restore } else { Event::Rotate };
            events.push(((number + 1) * self.days / (REPLACEMENTS + 1), event));
        }
        for guest in 0..GUESTS {
            let day = (2 * guest + 1) * self.days / (2 * GUESTS);
            events.push((day, Event::GuestComes(guest)));
            events.push(((day + GUEST_DAYS).min(self.days - 1), Event::GuestGoes(guest)));
        }
        events.extend((0..self.faults).map(|_| (random.number() % self.days, Event::Fault)));
        events.sort_by_key(|(day, _)| *day);
        events
    }

    /// Lives it.
    pub(super) async fn live(&self, world: &World, mut random: Random) -> Growth {
        let mut owners = Vec::new();
        for project in owned(&world.scenario) {
            let owner =
                Owner::register(world, Random::new(random.number()), project, Instant::now() + REGISTERED_WITHIN);
            if let Some(mut owner) = owner.await {
                owner.begin().await;
                owners.push(owner);
            }
        }
        let mut events = self.events(&mut random).into_iter().peekable();
        let mut growth = Growth(Default::default());
        let mut number = 0;
        for day in 0..self.days {
            while let Some((_, event)) = events.next_if(|(due, _)| *due <= day) {
                world.trace.say(format_args!("day {day}: {event:?}"));
                happen(world, &mut random, &mut owners, event).await;
            }
            let submit = |number| clients::submit_new(world.clone(), Random::new(random.number()), number);
            let messages: Vec<_> = (number..number + self.day_messages).map(submit).collect();
            number += self.day_messages;
            let (all_answered, ()) = join(join_all(messages), sleep(DAY_TIME)).await;
            if all_answered.contains(&false) {
                // Ages are counted by timers: no copy may live to see the next day.
                sleep(Duration::from_millis(AGE_MS_MAX) + DAY_TIME).await;
            }
            world.pass(DAY);
            if day % (self.days / CENSUSES).max(1) == 0 {
                growth.look(world, usize::try_from(day * 4 / self.days).unwrap_or(3));
            }
        }
        owners.into_iter().for_each(Owner::finish);
        growth
    }
}

async fn happen(world: &World, random: &mut Random, owners: &mut [Owner], event: Event) {
    match event {
        Event::Order(project) => {
            if let Some(owner) = owners.get_mut(project) {
                owner.go_on().await;
            }
        }
        Event::Restore | Event::Rotate => {
            let _busy = world.busy();
            let oldest = world.nodes()[0];
            let done = if matches!(event, Event::Restore) {
                world.wipe(oldest, false);
                changes::replace(world, random, oldest).await
            } else {
                let joined = changes::join(world, random, None, true).await;
                changes::retire(world, random, oldest).await;
                joined
            };
            world.trace.say(format_args!("{event:?}: {done:?}"));
        }
        Event::GuestComes(guest) => {
            propose(world, |leader| {
                let last = leader.head.borrow().as_ref().map_or(TaskNumber(1), |head| head.next_task_number);
                let task_number = TaskNumber(last.0.saturating_sub(1).max(1));
                let place = Place {
                    first: task_number,
                    last: task_number,
                    locator: "guest".into(),
                    commitment: Vec::new(),
                    height: None,
                    stage: Stage::Final,
                };
                Command::OutputProgress { output: name(guest), task_number, places: vec![place] }
            })
            .await;
        }
        Event::GuestGoes(guest) => {
            propose(world, |_| Command::Output { output: name(guest), state: OutputState::Removed }).await;
            if guest % 2 == 0 {
                propose(world, |_| Command::Output { output: name(guest), state: OutputState::Running }).await;
            }
        }
        Event::Fault => {
            let kind = world.scenario.kinds[random.below(world.scenario.kinds.len())];
            tokio::spawn(faults::cause(world.clone(), Random::new(random.number()), kind));
        }
    }
}

fn name(guest: u64) -> OutputName {
    format!("guest-{guest}").parse().expect("a name as outputs have it")
}

/// Has the leader put something into the log, however long that takes.
async fn propose(world: &World, command: impl Fn(&Running) -> Command) {
    loop {
        let running = world.nodes().into_iter().filter_map(|node| world.running(node));
        let leader = running.into_iter().find(|running| running.consensus.status().borrow().role == Role::Leader);
        if let Some(leader) = leader {
            let (bytes, consensus) = (command(&leader).encode(), leader.consensus.clone());
            if let Some(Ok(())) = changes::within(&leader, async move { consensus.propose(bytes).await }).await {
                return;
            }
        }
        sleep(AGAIN).await;
    }
}

impl Growth {
    fn look(&mut self, world: &World, quarter: usize) {
        for node in world.nodes().into_iter().filter(|node| !world.is_lost(*node)) {
            census::highest(&mut self.0[quarter], &world.disk(node).census());
        }
    }

    /// What grew though it may not, by the first half and the last quarter.
    pub(super) fn check(&self, world: &World) -> Vec<String> {
        let life = Life {
            projects: owned(&world.scenario).count() as u64,
            devices: clients::devices().len() as u64,
            changes: world.members().map_or(0, |members| members.changes()),
            outputs: OUTPUTS + GUESTS,
            cuts: 0,
        };
        let mut first_half = self.0[0].clone();
        census::highest(&mut first_half, &self.0[1]);
        census::grown(&first_half, &self.0[3], &life)
    }
}
