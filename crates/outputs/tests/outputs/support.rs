//! Tasks, feeds and waiting, for all tests here.

use std::future::Future;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_outputs::{
    FinalMessage, FinalTask, Handle, Options, Output, Owner, Place, ProgressSink, Publisher, SourceError, Status,
    TaskSigner, TaskSource, UnsignedTask,
};
use lockstep_types::{
    Address, Epoch, MessageId, NetworkId, OutputName, ProjectId, Sequence, Signature, SigningKey, TaskId, TaskNumber,
    TimeMs, keccak256,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How long stores are down: longer than it takes a publisher to try a few times. `LOCKSTEP_OUTAGE_SECONDS` sets it.
pub async fn outage() {
    let seconds = std::env::var("LOCKSTEP_OUTAGE_SECONDS").map_or(2, |text| text.parse().expect("seconds"));
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}
/// Number of the first task in all tests.
pub const FIRST: u64 = 5;

pub fn owner() -> Owner {
    Owner { network: NetworkId([0xab; 32]), epoch: Epoch(2), first_task_number: TaskNumber(FIRST) }
}

/// Task `number` of the one history that the tests share. Tasks have two messages, interleaved with their neighbour's.
pub fn unsigned(number: u64) -> UnsignedTask {
    let (pair, place) = ((number - FIRST) / 2, (number - FIRST) % 2);
    let message = |sequence: u64| FinalMessage {
        sequence: Sequence(sequence),
        id: MessageId(keccak256(&[b"message", &sequence.to_be_bytes()])),
        data: Bytes::from(format!("{{\"reading\":{sequence}}}\0\u{1F321}")),
    };
    UnsignedTask {
        number: TaskNumber(number),
        id: TaskId(keccak256(&[&number.to_be_bytes()])),
        project_id: ProjectId(7),
        project_version: "1.0.0-ü".to_owned(),
        device: Address([0xd1; 20]),
        time_ms: TimeMs(1_790_000_000_123 + number),
        messages: vec![message(4 * pair + 1 + place), message(4 * pair + 3 + place)],
        ruled: None,
        origin: None,
    }
}

/// Tasks with a signature that only looks like one: adapters do not care.
pub fn tasks(numbers: RangeInclusive<u64>) -> Vec<FinalTask> {
    numbers
        .map(|number| {
            let UnsignedTask { number, id, project_id, project_version, device, time_ms, messages, origin, .. } =
                unsigned(number);
            let signature = Signature([number.0 as u8; 65]);
            FinalTask { number, id, project_id, project_version, device, time_ms, messages, signature, origin }
        })
        .collect()
}

pub fn number(n: u64) -> Option<TaskNumber> {
    Some(TaskNumber(n))
}

/// Asks again and again until the answer is `Some`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let waiting = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

/// A source whose history grows when the test says so; also a sink that counts.
pub struct Feed {
    pub newest: watch::Sender<Option<TaskNumber>>,
    forgotten: Mutex<Option<TaskNumber>>,
    asked: Mutex<Vec<u64>>,
    mixed: AtomicBool,
    lost: AtomicU64,
    /// Nothing that it is told is noted.
    pub deaf: AtomicBool,
    pub recorded: Mutex<Vec<TaskNumber>>,
    pub places: Mutex<Vec<Place>>,
}

impl Feed {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            newest: watch::channel(None).0,
            forgotten: Mutex::default(),
            asked: Mutex::default(),
            mixed: AtomicBool::default(),
            lost: AtomicU64::default(),
            deaf: AtomicBool::default(),
            recorded: Mutex::default(),
            places: Mutex::default(),
        })
    }

    /// Every third task is of project 8.
    pub fn mix(&self) {
        self.mixed.store(true, Ordering::SeqCst);
    }

    /// Leaves a task out.
    pub fn lose(&self, number: u64) {
        self.lost.store(number, Ordering::SeqCst);
    }

    /// The task of a number.
    pub fn task(&self, number: u64) -> UnsignedTask {
        let mut task = unsigned(number);
        if self.mixed.load(Ordering::SeqCst) && number.is_multiple_of(3) {
            task.project_id = ProjectId(8);
        }
        task
    }

    /// How often it was asked for what follows `number`.
    pub fn asked_from(&self, number: u64) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| **asked == number).count()
    }

    /// Tasks up to `number` are no longer kept.
    pub fn forget(&self, number: u64) {
        *self.forgotten.lock().unwrap() = Some(TaskNumber(number));
    }

    /// All tasks up to `number` are final.
    pub fn finalize(&self, number: u64) {
        self.newest.send_replace(Some(TaskNumber(number)));
    }

    pub fn records(&self) -> Vec<TaskNumber> {
        self.recorded.lock().unwrap().clone()
    }
}

#[async_trait]
impl TaskSource for Feed {
    async fn tasks_after(
        &self,
        number: Option<TaskNumber>,
        max_tasks: usize,
        _max_bytes: usize,
    ) -> Result<Vec<UnsignedTask>, SourceError> {
        let next = owner().next(number).0;
        self.asked.lock().unwrap().push(next - 1);
        if let Some(forgotten) = (*self.forgotten.lock().unwrap()).filter(|forgotten| forgotten.0 >= next) {
            return Err(SourceError::Forgotten(forgotten));
        }
        let newest = self.newest.borrow().map_or(0, |n| n.0);
        let lost = self.lost.load(Ordering::SeqCst);
        Ok((next..=newest).filter(|n| *n != lost).take(max_tasks).map(|n| self.task(n)).collect())
    }

    async fn parts_after(
        &self,
        _number: Option<TaskNumber>,
        _max_tasks: usize,
        _max_bytes: usize,
        _part_bytes: usize,
    ) -> Result<Vec<UnsignedTask>, SourceError> {
        Err(SourceError::Unavailable("these tasks have no origin".to_owned()))
    }
}

#[async_trait]
impl ProgressSink for Feed {
    async fn record(&self, _output: &OutputName, last: TaskNumber, places: &[Place]) -> bool {
        if self.deaf.load(Ordering::SeqCst) {
            return false;
        }
        self.recorded.lock().unwrap().push(last);
        self.places.lock().unwrap().extend_from_slice(places);
        true
    }

    fn keeps_places(&self) -> bool {
        true
    }

    async fn recorded(&self, _output: &OutputName) -> Option<TaskNumber> {
        self.recorded.lock().unwrap().last().copied()
    }
}

/// A publisher at work, as one node has it.
pub struct Node {
    pub handle: Handle,
    pub active: watch::Sender<bool>,
    pub paused: watch::Sender<bool>,
    token: CancellationToken,
    running: JoinHandle<()>,
}

pub fn signer() -> TaskSigner {
    TaskSigner::new(SigningKey::from_bytes([0x11; 32]).unwrap())
}

impl Node {
    pub fn start(feed: &Arc<Feed>, output: Arc<dyn Output>, active: bool, recorded: Option<TaskNumber>) -> Self {
        Self::start_with(feed, output, active, |options| options.recorded = recorded)
    }

    /// With a source and a sink of its own.
    pub fn start_from(
        feed: &Arc<Feed>,
        (source, sink): (Arc<dyn TaskSource>, Arc<dyn ProgressSink>),
        output: Arc<dyn Output>,
        active: bool,
        recorded: Option<TaskNumber>,
    ) -> Self {
        Self::start_with(feed, output, active, |options| {
            (options.source, options.sink, options.recorded) = (source, sink, recorded);
        })
    }

    pub fn start_with(
        feed: &Arc<Feed>,
        output: Arc<dyn Output>,
        active: bool,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let (source, sink): (Arc<dyn TaskSource>, Arc<dyn ProgressSink>) = (feed.clone(), feed.clone());
        let ((active, active_seen), (paused, paused_seen)) = (watch::channel(active), watch::channel(false));
        let mut options = Options {
            name: "test".parse().unwrap(),
            owner: owner(),
            output,
            source,
            sink,
            signer: signer(),
            newest: feed.newest.subscribe(),
            active: active_seen,
            paused: paused_seen,
            projects: None,
            recorded: None,
        };
        change(&mut options);
        let (publisher, handle) = Publisher::new(options);
        let token = CancellationToken::new();
        let running = tokio::spawn(publisher.run(token.clone()));
        Self { handle, active, paused, token, running }
    }

    pub async fn wait_for(&self, what: &str, condition: impl Fn(&Status) -> bool) -> Status {
        eventually(what, || async { Some(self.handle.status()).filter(&condition) }).await
    }

    pub async fn stop(self) {
        self.token.cancel();
        tokio::time::timeout(DEADLINE, self.running).await.expect("ends in time").expect("does not panic");
    }
}
