//! Those who submit messages: to any node, again where they hear nothing, and some twice.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::FutureExt as _;
use lockstep_api::{Accepted, Submit as _, SubmitError};
use lockstep_consensus::Role;
use lockstep_identity::DeviceRequest;
use lockstep_identity::apinode::{parse, sign_body};
use lockstep_types::{Address, ContentId, ProjectId, SigningKey};
use tokio::time::{Instant, sleep, timeout};

use super::bugs::Bug;
use super::world::{Running, World};
use crate::history::Content;
use crate::order::Told;
use crate::random::Random;

/// A client waits for an answer this long.
const PATIENCE: Duration = Duration::from_secs(4);
/// A message is submitted again at most so often.
const ATTEMPTS_MAX: usize = 12;
/// Messages that are there to be sent: signed once for all runs of a process.
const MESSAGES_MAX: usize = 512;
/// A message that is refused is submitted again, as if after so many attempts more.
const REFUSED_COUNTS: usize = 3;
/// Projects that they go to, where one has an owner.
const PROJECTS: usize = 4;
/// Devices that sign them.
const DEVICES: u8 = 16;

/// A message that is ready to be sent.
#[derive(Clone)]
struct Ready {
    request: DeviceRequest,
    content: ContentId,
}

/// To three projects that nobody owns.
static MESSAGES: LazyLock<Vec<Ready>> = LazyLock::new(|| messages(3));
/// To the same, and one that is registered.
static MESSAGES_WITH_OWNER: LazyLock<Vec<Ready>> = LazyLock::new(|| messages(4));

fn messages(projects: u64) -> Vec<Ready> {
    let keys: Vec<SigningKey> = (0..DEVICES).map(device).collect();
    (0..MESSAGES_MAX).map(|number| message(number, projects, &keys)).collect()
}

/// The devices.
pub(super) fn devices() -> Vec<Address> {
    static DEVICES_ALL: LazyLock<Vec<Address>> =
        LazyLock::new(|| (0..DEVICES).map(|number| device(number).address()).collect());
    DEVICES_ALL.clone()
}

fn device(number: u8) -> SigningKey {
    let mut secret = [9; 32];
    secret[31] = number;
    SigningKey::from_bytes(secret).expect("not zero, and below the order of the curve")
}

/// Makes what clients will send, with real signatures, where it was not done before.
pub(super) fn make_messages() {
    LazyLock::force(&MESSAGES);
    LazyLock::force(&MESSAGES_WITH_OWNER);
}

fn message(number: usize, projects: u64, keys: &[SigningKey]) -> Ready {
    let key = &keys[number % keys.len()];
    let (project, data) = (ProjectId(1 + number as u64 % projects), format!("reading {number}"));
    let body = sign_body(key, project, "1", &data);
    let request = parse(body.as_bytes()).expect("a request that was just made");
    let content = Content::signed(key.address(), project, "1", data.as_bytes()).id();
    Ready { request, content }
}

/// Submits a message that was not there before, to any of the four projects. Returns whether each node that was
/// asked answered: otherwise copies of it may be under way.
pub(super) async fn submit_new(world: World, mut random: Random, number: usize) -> bool {
    static KEYS: LazyLock<Vec<SigningKey>> = LazyLock::new(|| (0..DEVICES).map(device).collect());
    // Each project has messages of each device.
    let keys = &KEYS[number / PROJECTS % KEYS.len()..];
    let ready = message(number, PROJECTS as u64, &keys[..1]);
    submit(&world, &mut random, &ready).await
}

/// One of those who submit.
pub(super) struct Client {
    pub world: World,
    pub random: Random,
    /// Its messages.
    pub from: usize,
    pub to: usize,
    /// Average pause between two messages.
    pub pause: Duration,
}

fn told(world: &World, result: Result<Accepted, SubmitError>) -> Told {
    match result {
        Ok(Accepted { message_id, sequence, height, .. }) => Told::Ordered { sequence, height, message_id },
        Err(SubmitError::Unavailable { .. }) => Told::Unknown,
        Err(error) => {
            world.trace.say(format_args!("refused: {error}"));
            Told::Refused
        }
    }
}

impl Client {
    pub async fn run(mut self) {
        for number in self.from..self.to {
            let pause = self.random.below(2_000) as u32;
            sleep(self.pause * pause / 1_000).await;
            let messages = if self.world.scenario.has_owner { &MESSAGES_WITH_OWNER } else { &MESSAGES };
            let ready = messages[number % MESSAGES_MAX].clone();
            let twice = self.random.number() % 1_000 < self.world.scenario.twice_of_1000;
            if twice {
                // At the same time, at another node; or later.
                let (world, seed, ready) = (self.world.clone(), self.random.number(), ready.clone());
                let delay = Duration::from_millis(if seed.is_multiple_of(2) { 0 } else { seed % 20_000 });
                tokio::spawn(async move {
                    sleep(delay).await;
                    submit(&world, &mut Random::new(seed), &ready).await;
                });
            }
            submit(&self.world, &mut self.random, &ready).await;
        }
    }
}

/// Submits a message until it has a place, patience ends, or the same would count as another one. Returns whether each
/// node that was asked answered.
async fn submit(world: &World, random: &mut Random, ready: &Ready) -> bool {
    let (mut attempt, mut all_answered) = (0, true);
    let window_ends = Instant::now() + Duration::from_millis(world.scenario.retry_window_ms);
    while attempt < ATTEMPTS_MAX && Instant::now() < window_ends {
        let nodes = world.nodes();
        let node = nodes[random.below(nodes.len())];
        attempt += 1;
        let Some(running) = world.running(node) else {
            sleep(Duration::from_millis(50 + random.number() % 200)).await;
            continue;
        };
        let call = world.record.invoke(ready.content, node);
        let answer = timeout(PATIENCE, ask(world, running, ready, attempt - 1)).await;
        let told = answer.ok().flatten().unwrap_or(Told::Unknown);
        world.trace.note([node.0, call as u64, 20], &ready.content.0);
        let is_ordered = matches!(told, Told::Ordered { .. });
        let refused_counts = if world.scenario.years.is_some() { ATTEMPTS_MAX } else { REFUSED_COUNTS };
        attempt += if told == Told::Refused { refused_counts } else { 0 };
        all_answered &= told != Told::Unknown;
        world.record.answer(call, told);
        if is_ordered || attempt >= ATTEMPTS_MAX {
            break;
        }
        sleep(Duration::from_millis(20 + random.number() % 500)).await;
    }
    all_answered
}

/// Asks a node; `None` where it went down meanwhile.
async fn ask(world: &World, running: Running, ready: &Ready, attempt: usize) -> Option<Told> {
    let mut request = ready.request.clone();
    if world.scenario.bugs.has(Bug::ForgetContent) && attempt > 0 {
        // Without its signature it is another message, of whoever vouches for it.
        (request.signature, request.data) = (None, format!("{} again", request.data));
    }
    let is_new_leader = || {
        let status = running.consensus.status();
        let status = status.borrow();
        status.role == Role::Leader && !status.has_applied_term
    };
    let bugs = world.scenario.bugs;
    if bugs.has(Bug::GuessPosition) || bugs.has(Bug::AckBeforeApplyTerm) && is_new_leader() {
        let head = running.head.borrow().clone()?;
        let serve = async move { running.ingress.submit(request).await };
        tokio::spawn(running.scope.run(serve.boxed()));
        let (sequence, height, message_id) =
            (head.next_sequence, head.height.next(), lockstep_types::MessageId(ready.content.0));
        return Some(Told::Ordered { sequence, height, message_id });
    }
    let serve = async move { running.ingress.submit(request).await };
    // Within the node: with it, its requests end.
    let answered = tokio::spawn(running.scope.run(serve.boxed())).await.ok()?;
    Some(told(world, answered))
}

/// Starts all clients; each ends when its messages are sent.
pub(super) fn start(world: &World, random: &mut Random) -> Vec<tokio::task::JoinHandle<()>> {
    let scenario = Arc::clone(&world.scenario);
    let each = scenario.messages.div_ceil(scenario.clients);
    // Half of the time is for waiting.
    let pause = scenario.length / 2 / u32::try_from(each).unwrap_or(1).max(1);
    let client = |number: usize| Client {
        world: world.clone(),
        random: Random::new(random.number()),
        from: number * each,
        to: ((number + 1) * each).min(scenario.messages),
        pause,
    };
    (0..scenario.clients).map(client).collect::<Vec<_>>().into_iter().map(|client| tokio::spawn(client.run())).collect()
}
