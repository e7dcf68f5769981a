//! Rounds of random faults on a network that devices submit to. The same seed makes the same choices; what they meet
//! differs from run to run, because processes are not deterministic.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_types::{NetworkParams, ProjectSettings};
use tokio::task::JoinHandle;

use crate::audit::audit;
use crate::cluster::{Ballot, Cluster, ClusterOptions, Part, approve, open_params};
use crate::follow::{Order, read_on};
use crate::history::History;
use crate::load::{Load, LoadOptions};
use crate::partition::Healing;
use crate::random::Random;
use crate::wait::eventually;

/// Members at the beginning, and at least.
const MEMBERS_MIN: usize = 3;
/// Members at most.
const MEMBERS_MAX: usize = 5;
/// Faults and mendings in one round at most.
const EVENTS_MAX: usize = 4;
/// Pause before each of them at most.
const PAUSE_MAX_MS: usize = 800;
/// Load between the last of them and the look at the network.
const LOAD_LEAST: Duration = Duration::from_secs(2);
/// A network with a majority acknowledges within this time whatever was before.
const PROGRESS_MAX: Duration = Duration::from_secs(20);
/// Of this many events that take the majority away one is done.
const BLACKOUT_ONE_IN: usize = 6;
/// Rounds after which everything is mended once.
const MEND_EVERY: usize = 8;
/// Longest wait for a node to end, or to be ready again.
const NODE_DEADLINE: Duration = Duration::from_secs(40);
/// Batches that are read once more of a node that was started again.
const READ_AGAIN: usize = 300;

/// What happens to the network.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    Kill(usize),
    Start(usize),
    Pause(usize),
    Resume(usize),
    Restart(usize),
    Isolate(usize),
    Split(Vec<usize>),
    Cut(usize, usize),
    Heal(Healing),
    Ask,
    Vote(Ballot, usize),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |group: &[usize]| group.iter().map(|index| format!("{}", index + 1)).collect::<Vec<_>>().join(" ");
        match self {
            Self::Kill(index) => write!(f, "kill {}", index + 1),
            Self::Start(index) => write!(f, "start {}", index + 1),
            Self::Pause(index) => write!(f, "pause {}", index + 1),
            Self::Resume(index) => write!(f, "resume {}", index + 1),
            Self::Restart(index) => write!(f, "restart {}", index + 1),
            Self::Isolate(index) => write!(f, "isolate {}", index + 1),
            Self::Split(group) => write!(f, "split {} from the others", names(group)),
            Self::Cut(one, other) => write!(f, "cut {} from {}", one + 1, other + 1),
            Self::Heal(how) => write!(f, "heal ({how:?})"),
            Self::Ask => write!(f, "a newcomer asks"),
            Self::Vote(ballot, index) => write!(f, "vote: {ballot:?} {}", index + 1),
        }
    }
}

/// What the rounds came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoundsReport {
    /// Messages that were acknowledged.
    pub acknowledged: usize,
    /// Messages that devices gave up.
    pub given_up: usize,
    /// Events of all kinds.
    pub events: usize,
    /// Newcomers that became voters.
    pub joined: usize,
    /// Members that were removed.
    pub left: usize,
    /// Longest time from the last event of a round that left a majority to an acknowledgement.
    pub longest_recovery: Duration,
    /// Nodes that the network had at the end.
    pub members: usize,
}

/// Plays `count` rounds on a network of its own and checks it after each, and all of it in the end.
///
/// # Panics
/// When a promise was broken, or a network with a majority stands still; the seed and all events were printed before.
pub async fn rounds(binary: &Path, seed: u64, count: usize) -> RoundsReport {
    println!("rounds: LOCKSTEP_SEED={seed} LOCKSTEP_ROUNDS={count}");
    let mut play = Play::start(binary, seed).await;
    for round in 1..=count {
        let begun = Instant::now();
        play.round(round).await;
        if round % MEND_EVERY == 0 {
            play.mend().await;
        }
        play.look().await;
        println!("  {:.1} s, {}", begun.elapsed().as_secs_f64(), play.figures(begun).await);
    }
    play.finish().await
}

/// A change of membership that is being approved.
struct Voting {
    ballot: Ballot,
    index: usize,
    task: JoinHandle<Result<(), String>>,
}

impl Voting {
    /// Says what became of the vote; each of its commands has a deadline of its own.
    async fn end(self) {
        let result = self.task.await.expect("a vote does not panic");
        println!("  vote ({:?} {}): {result:?}", self.ballot, self.index + 1);
    }
}

struct Play {
    cluster: Cluster,
    random: Random,
    history: Arc<History>,
    load: Load,
    order: Order,
    /// Height to read on from, of each node.
    cursors: Vec<usize>,
    can_join: bool,
    newcomer: Option<usize>,
    voting: Option<Voting>,
    /// Who changes by a vote that may still have an effect.
    unsettled: Option<usize>,
    report: RoundsReport,
}

/// An odd seed plays with the retry window that networks have by default and devices that give up before its end; an
/// even one with devices that hardly give up, on a network that remembers for that long.
fn conditions(seed: u64, urls: Vec<String>) -> (NetworkParams, LoadOptions) {
    let load = LoadOptions {
        clients: 16,
        period: Duration::from_millis(100),
        attempt_timeout: Duration::from_secs(1),
        seed,
        ..LoadOptions::of(urls)
    };
    if seed % 2 == 1 {
        return (open_params(), load);
    }
    let default_project = ProjectSettings { retry_window_ms: 600_000, ..ProjectSettings::open() };
    let patient = LoadOptions { deadline: Duration::from_secs(60), ..load };
    (NetworkParams { default_project, ..open_params() }, patient)
}

impl Play {
    async fn start(binary: &Path, seed: u64) -> Self {
        let options = ClusterOptions::of(MEMBERS_MIN).with_params(conditions(seed, vec![]).0).with_partitions();
        let cluster = Cluster::start(binary, options).await;
        let history = Arc::new(History::new());
        let load = Load::start(&conditions(seed, cluster.urls()).1, &history);
        let can_join = cluster.operator(0).has_members().await;
        println!("nodes join and leave: {can_join}");
        Self {
            cursors: vec![1; cluster.len()],
            cluster,
            random: Random::new(seed),
            history,
            load,
            order: Order::default(),
            can_join,
            newcomer: None,
            voting: None,
            unsettled: None,
            report: RoundsReport::default(),
        }
    }

    async fn round(&mut self, round: usize) {
        let awake = self.awake();
        if !self.has_majority(&awake, None) {
            self.mend().await;
        }
        for _ in 0..=self.random.below(EVENTS_MAX) {
            let pause = self.random.below(PAUSE_MAX_MS) as u64;
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let event = self.choose().await;
            println!("round {round}: {event}");
            self.report.events += 1;
            self.apply(event).await;
        }
        let (settled_at, awake) = (Instant::now(), self.awake());
        if self.has_majority(&awake, None) {
            self.wait_progress(settled_at).await;
        }
        let rest = LOAD_LEAST.saturating_sub(settled_at.elapsed());
        tokio::time::sleep(rest).await;
        self.count_votes().await;
    }

    async fn wait_progress(&mut self, since: Instant) {
        let what = "a network with a majority acknowledges messages";
        let history = &self.history;
        let answered_at = eventually(what, PROGRESS_MAX, async || {
            let last = || format!("the last failure: {:?}", history.failures().last());
            history.first_answer_to_calls_after(since).ok_or_else(last)
        })
        .await;
        self.report.longest_recovery = self.report.longest_recovery.max(answered_at - since);
    }

    /// Members that can take part.
    fn awake(&mut self) -> Vec<usize> {
        self.cluster.awake()
    }

    fn down(&mut self) -> Vec<usize> {
        let mut members = self.cluster.members();
        members.retain(|index| !self.cluster.node_mut(*index).process.is_running());
        members
    }

    fn paused(&self) -> Vec<usize> {
        let mut members = self.cluster.members();
        members.retain(|index| self.cluster.node(*index).process.is_paused());
        members
    }

    /// Whether some of `awake` that all reach one another are a majority of the voters, whether or not the vote that is
    /// under way succeeds; `fault` is a cut that is not made yet.
    fn has_majority(&self, awake: &[usize], fault: Option<&Event>) -> bool {
        let would_cut = |one: usize, other: usize| match fault {
            Some(Event::Isolate(index)) => one == *index || other == *index,
            Some(Event::Split(group)) => group.contains(&one) != group.contains(&other),
            Some(Event::Cut(a, b)) => (one, other) == (*a, *b) || (other, one) == (*a, *b),
            _ => false,
        };
        let fabric = self.cluster.fabric();
        let reach = |one: usize, other: usize| one == other || !(would_cut(one, other) || fabric.is_cut(one, other));
        let sets = self.voter_sets();
        // Networks of tests are small enough to look at every subset.
        (1_u32..1 << awake.len()).any(|subset| {
            let group: Vec<usize> = (0..).zip(awake).filter(|(n, _)| subset >> n & 1 == 1).map(|(_, i)| *i).collect();
            let connected = group.iter().all(|one| group.iter().all(|other| reach(*one, *other)));
            let majority = |set: &Vec<usize>| 2 * group.iter().filter(|index| set.contains(index)).count() > set.len();
            connected && sets.iter().all(majority)
        })
    }

    /// The voters, and the voters as they will be if the vote that is under way succeeds.
    fn voter_sets(&self) -> Vec<Vec<usize>> {
        let voters = self.cluster.voters();
        let Some(index) = self.unsettled else { return vec![voters] };
        let mut changed = voters.clone();
        changed.retain(|voter| *voter != index);
        if changed.len() == voters.len() {
            changed.push(index);
        }
        vec![voters, changed]
    }

    /// Chooses an event that is possible now. One that takes the majority away is mostly passed over.
    async fn choose(&mut self) -> Event {
        loop {
            let event = self.candidate().await;
            let awake = self.awake();
            let gone = |index: usize| awake.iter().copied().filter(|other| *other != index).collect::<Vec<_>>();
            let keeps = match &event {
                Event::Kill(index) | Event::Pause(index) | Event::Restart(index) => {
                    self.has_majority(&gone(*index), None)
                }
                Event::Isolate(_) | Event::Split(_) | Event::Cut(..) => self.has_majority(&awake, Some(&event)),
                Event::Vote(Ballot::Demote | Ballot::Remove, index) => self.has_majority(&gone(*index), None),
                _ => true,
            };
            // The draw is made in each case, so that later choices do not depend on it.
            if self.random.below(BLACKOUT_ONE_IN) == 0 || keeps {
                return event;
            }
        }
    }

    async fn candidate(&mut self) -> Event {
        let (awake, down, paused) = (self.awake(), self.down(), self.paused());
        let mut possible: Vec<Event> = Vec::new();
        // What is mended is as likely as what breaks, or everything would be broken soon.
        for index in down {
            possible.extend([Event::Start(index), Event::Start(index)]);
        }
        for index in paused {
            possible.extend([Event::Resume(index), Event::Resume(index)]);
        }
        if self.is_cut() {
            possible.extend([Healing::Flow, Healing::Close, Healing::Flow, Healing::Close].map(Event::Heal));
        }
        if !awake.is_empty() {
            // Leaders are hit more often than the others.
            let leader = self.cluster.leader().await.ok().filter(|leader| awake.contains(leader));
            let any = awake[self.random.below(awake.len())];
            let other = awake[self.random.below(awake.len())];
            let victim = leader.unwrap_or(any);
            possible.extend([Event::Kill(any), Event::Kill(victim), Event::Restart(any), Event::Restart(victim)]);
            possible.extend([Event::Pause(any), Event::Pause(victim), Event::Isolate(any), Event::Isolate(victim)]);
            possible.push(Event::Split(if any == other { vec![any] } else { vec![any, other] }));
            if any != other {
                possible.push(Event::Cut(any, other));
            }
        }
        possible.extend(self.membership_events());
        let at = self.random.below(possible.len());
        possible.swap_remove(at)
    }

    fn is_cut(&self) -> bool {
        let fabric = self.cluster.fabric();
        let nodes = 0..self.cluster.len();
        nodes.clone().any(|one| nodes.clone().any(|other| fabric.is_cut(one, other)))
    }

    fn membership_events(&mut self) -> Vec<Event> {
        if !self.can_join || self.voting.is_some() || self.awake().is_empty() {
            return vec![];
        }
        let part = |index: usize| self.cluster.node(index).part;
        let event = match self.newcomer {
            Some(index) if part(index) == Part::Outside => Event::Vote(Ballot::Admit, index),
            Some(index) => Event::Vote(Ballot::Promote, index),
            None if self.cluster.members().len() < MEMBERS_MAX => Event::Ask,
            None => {
                let members = self.cluster.members();
                let index = members[self.random.below(members.len())];
                let demote = part(index) == Part::Voter && self.random.below(4) == 0;
                Event::Vote(if demote { Ballot::Demote } else { Ballot::Remove }, index)
            }
        };
        vec![event.clone(), event.clone(), event.clone(), event]
    }

    async fn apply(&mut self, event: Event) {
        match event {
            Event::Kill(index) => self.cluster.kill(index),
            Event::Start(index) => self.start_node(index),
            Event::Pause(index) => self.cluster.pause(index),
            Event::Resume(index) => self.cluster.resume(index),
            Event::Restart(index) => {
                let status = self.cluster.restart(index, NODE_DEADLINE).await;
                let log = || self.cluster.node(index).process.log_tail();
                assert!(status.success(), "node {} ended with {status}:\n{}", index + 1, log());
                self.read_again(index);
            }
            Event::Isolate(index) => self.cluster.isolate(index),
            Event::Split(group) => self.cluster.partition(&[&group]),
            Event::Cut(one, other) => self.cluster.fabric().cut(one, other),
            Event::Heal(how) => self.cluster.fabric().heal(how),
            Event::Ask => self.ask().await,
            Event::Vote(ballot, index) => self.vote(ballot, index),
        }
    }

    fn start_node(&mut self, index: usize) {
        self.cluster.start_node(index);
        self.read_again(index);
    }

    /// A node makes its state again from its log when it is started, so what it shows is read again.
    fn read_again(&mut self, index: usize) {
        self.cursors[index] = self.cursors[index].saturating_sub(READ_AGAIN).max(1);
    }

    async fn ask(&mut self) {
        let voters = self.cluster.voters();
        let able: Vec<usize> = self.awake().into_iter().filter(|index| voters.contains(index)).collect();
        let at = able[self.random.below(able.len())];
        match self.cluster.ask_to_join(at).await {
            Ok(index) => self.newcomer = Some(index),
            Err(error) => println!("  the newcomer was not answered: {error}"),
        }
        self.cursors.resize(self.cluster.len(), 1);
    }

    /// Lets operators vote while other things happen.
    fn vote(&mut self, ballot: Ballot, index: usize) {
        let (name, operators) = (self.cluster.name(index), self.cluster.operators());
        let task = tokio::spawn(async move { approve(&operators, ballot, &name).await });
        if ballot != Ballot::Admit {
            self.unsettled = Some(index);
        }
        self.voting = Some(Voting { ballot, index, task });
    }

    /// Sees what became of a vote, and whom the network has now.
    async fn count_votes(&mut self) {
        if let Some(voting) = self.voting.take_if(|voting| voting.task.is_finished()) {
            voting.end().await;
        }
        if !self.can_join {
            return;
        }
        let before: Vec<Part> = (0..self.cluster.len()).map(|index| self.cluster.node(index).part).collect();
        let Ok(changed) = self.cluster.refresh().await else { return };
        let pending = self.cluster.list().await.is_ok_and(|list| list.pending.is_some());
        if self.voting.is_none() && !pending {
            self.unsettled = None;
        }
        if !changed {
            return;
        }
        for (index, before) in before.into_iter().enumerate() {
            let now = self.cluster.node(index).part;
            if before != now {
                println!("  node {}: {before:?} -> {now:?}", index + 1);
                self.moved(index, before, now);
            }
        }
        let urls = self.cluster.members().into_iter().map(|index| self.cluster.node(index).url()).collect();
        self.load.set_urls(urls);
    }

    fn moved(&mut self, index: usize, before: Part, now: Part) {
        match now {
            Part::Voter if self.newcomer == Some(index) => {
                self.newcomer = None;
                self.report.joined += 1;
            }
            Part::Outside if before != Part::Outside => {
                self.report.left += 1;
                self.newcomer = self.newcomer.filter(|newcomer| *newcomer != index);
                self.cluster.kill(index);
            }
            // One that was demoted is promoted again, or leaves, like a newcomer.
            Part::Observer if before == Part::Voter && self.newcomer.is_none() => self.newcomer = Some(index),
            _ => {}
        }
    }

    /// Reads what every member shows that can be asked, and checks it.
    async fn look(&mut self) {
        for index in self.awake() {
            let name = format!("node {}", index + 1);
            let from = self.cursors[index];
            // A node that is just starting, or stopping, is asked next time.
            if let Ok(next) = read_on(&mut self.order, self.cluster.client(), index, &name, from).await {
                self.cursors[index] = next;
            }
        }
        self.order.compare(&self.history);
        self.cluster.assert_no_panics();
        self.order.verdict().unwrap_or_else(|violations| panic!("{violations}"));
        let bypasses = self.cluster.bypasses();
        assert!(bypasses.is_empty(), "connections that a cut does not reach, by place: {bypasses:?}");
    }

    async fn figures(&mut self, since: Instant) -> String {
        let (awake, down, paused) = (self.awake().len(), self.down().len(), self.paused().len());
        let leader = self.cluster.leader().await.map_or("none".to_owned(), |leader| (leader + 1).to_string());
        let times = self.history.times_since(since);
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        let cut = if self.is_cut() { ", cut" } else { "" };
        format!(
            "{} acknowledged (median {} ms), height {}, leader {leader}, {awake} up, {down} down, {paused} paused{cut}",
            times.len(),
            median.as_millis(),
            self.order.height(),
        )
    }

    /// Makes everything whole: no cuts, all members up and ready.
    async fn mend(&mut self) {
        println!("  everything is mended");
        let how = if self.random.below(2) == 0 { Healing::Flow } else { Healing::Close };
        self.cluster.fabric().heal(how);
        for index in self.paused() {
            self.cluster.resume(index);
        }
        for index in self.down() {
            self.start_node(index);
        }
        for index in self.cluster.members() {
            self.cluster.wait_ready(index, NODE_DEADLINE).await;
        }
    }

    async fn finish(mut self) -> RoundsReport {
        self.mend().await;
        self.wait_progress(Instant::now()).await;
        if let Some(voting) = self.voting.take() {
            voting.end().await;
        }
        self.count_votes().await;
        self.mend().await;
        self.load.stop().await;
        self.cluster.wait_head_equal(NODE_DEADLINE).await;
        self.order.compare(&self.history);
        let checked = audit(&mut self.cluster, &self.history).await;
        println!("{checked:?}");
        RoundsReport {
            acknowledged: checked.acknowledged,
            given_up: checked.failed,
            members: self.cluster.members().len(),
            ..self.report
        }
    }
}
