//! Publishes final tasks to one output: in order, for ever, while this node is the one to do it.

mod backoff;
mod progress;
mod retry;
mod work;

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use lockstep_types::{OutputName, ProjectId, TaskNumber};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::work::Work;
use crate::output::{Output, Owner};
use crate::source::{ProgressSink, TaskSigner, TaskSource};

/// Most tasks of one call to an output.
pub const TASKS_PER_PUBLISH_MAX: usize = 1024;
/// Most payload bytes of one call to an output (one task may exceed it).
pub const BYTES_PER_PUBLISH_MAX: usize = 4 << 20;

/// What a publisher is made of.
pub struct Options {
    /// The output's name.
    pub name: OutputName,
    /// Whose tasks these are: the same as the adapter was made with.
    pub owner: Owner,
    /// The store.
    pub output: Arc<dyn Output>,
    /// Final tasks.
    pub source: Arc<dyn TaskSource>,
    /// Where progress is noted.
    pub sink: Arc<dyn ProgressSink>,
    /// The task key.
    pub signer: TaskSigner,
    /// Number of the newest final task; `None` while there is none.
    pub newest: watch::Receiver<Option<TaskNumber>>,
    /// Whether this node publishes: the leader for an output of the network, always for one of the node. When it turns
    /// false, the call under way is given up.
    pub active: watch::Receiver<bool>,
    /// Whether an operator holds it up. When it turns true, the call under way is given up.
    pub paused: watch::Receiver<bool>,
    /// Projects whose tasks are for this store; `None`: all. Those of others are passed over. It has to be the same on
    /// all nodes that feed the store, and what was passed over does not come when it is changed.
    pub projects: Option<BTreeSet<ProjectId>>,
    /// What the sink was last told, by this node or any other, so that an idle network writes nothing.
    pub recorded: Option<TaskNumber>,
}

/// What a publisher is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// Another node publishes.
    #[default]
    Standby,
    /// An operator holds it up.
    Paused,
    /// Tasks are on their way.
    Publishing,
    /// Every final task is in the store.
    CaughtUp,
    /// Something failed and is tried again by itself.
    Retrying,
    /// An operator must act; it is looked at again from time to time.
    Blocked,
}

/// A look at a publisher.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// Number of the last task known to be in the store.
    pub last_published: Option<TaskNumber>,
    /// Final tasks that are not known to be in the store. Computed when it is asked for.
    pub lag: u64,
    /// Why it does not get on; `None` when it does.
    pub last_error: Option<String>,
    /// The newest gap that this node had to leave: first and last task that never came.
    pub newest_gap: Option<(TaskNumber, TaskNumber)>,
    /// The first tasks that the store refused and why, as this node saw them last: at most
    /// [`crate::aside::REFUSED_PER_ANSWER_MAX`]. In the layout sprout each halts its project.
    pub refused: Vec<(TaskNumber, String)>,
    /// How many there are in all.
    pub refused_count: u64,
}

/// A view on a running publisher.
#[derive(Debug, Clone)]
pub struct Handle {
    status: watch::Receiver<Status>,
    newest: watch::Receiver<Option<TaskNumber>>,
    owner: Owner,
    retry: Arc<watch::Sender<u64>>,
}

impl Handle {
    /// How it stands now.
    pub fn status(&self) -> Status {
        let status = self.status.borrow().clone();
        Status { lag: self.lag_behind(status.last_published), ..status }
    }

    /// Final tasks behind this one.
    pub fn lag_behind(&self, last: Option<TaskNumber>) -> u64 {
        self.newest().map_or(0, |newest| newest.next().0.saturating_sub(self.owner.next(last).0))
    }

    /// Number of the newest final task.
    pub fn newest(&self) -> Option<TaskNumber> {
        *self.newest.borrow()
    }

    /// Tries refused tasks again, soon. `false`: this node does not publish now, so ask the one that does.
    pub fn retry(&self) -> bool {
        let publishes = !matches!(self.status.borrow().state, State::Standby | State::Paused);
        if publishes {
            self.retry.send_modify(|count| *count += 1);
        }
        publishes
    }

    /// Waits for a change of the state, the last task or the error. `false`: the publisher has ended, and none follows.
    pub async fn changed(&mut self) -> bool {
        self.status.changed().await.is_ok()
    }
}

/// The place of the publishers of one output, which follow one another in it: when one has broken off, the next one begins
/// over a store that was opened anew, and the view on them stays the same. Clones are the same place.
#[derive(Debug, Clone)]
pub struct Slot {
    status: watch::Sender<Status>,
    retry: Arc<watch::Sender<u64>>,
    /// What the next publisher is asked to try again.
    asked: watch::Receiver<u64>,
}

impl Default for Slot {
    fn default() -> Self {
        let (retry, asked) = watch::channel(0);
        Self { status: watch::Sender::new(Status::default()), retry: Arc::new(retry), asked }
    }
}

impl Slot {
    /// The view on whichever publisher is in it. `owner` and `newest` are as theirs.
    pub fn handle(&self, owner: Owner, newest: watch::Receiver<Option<TaskNumber>>) -> Handle {
        Handle { status: self.status.subscribe(), newest, owner, retry: self.retry.clone() }
    }

    /// A publisher, to be run. There must be one at a time.
    pub fn publisher(&self, options: Options) -> Publisher {
        let turn = Turn { active: options.active.clone(), paused: options.paused.clone() };
        Publisher { turn, work: Work::new(options, self.status.clone(), self.asked.clone()) }
    }

    /// Says of a publisher that broke off why it did, until the next one has done something. What is asked from now on
    /// is for that one; what was asked before may be why.
    pub fn broke_off(&mut self, reason: &str) {
        self.asked = self.retry.subscribe();
        self.status.send_modify(|status| {
            status.state = State::Retrying;
            status.last_error = Some(format!("publishing broke off and begins again: {reason}"));
        });
    }
}

/// The service that feeds one output.
pub struct Publisher {
    turn: Turn,
    work: Work,
}

/// Whether it is ours to publish.
#[derive(Clone)]
struct Turn {
    active: watch::Receiver<bool>,
    paused: watch::Receiver<bool>,
}

impl Turn {
    /// What to do until it is; `None`: it is.
    fn rest(&self) -> Option<State> {
        match (*self.paused.borrow(), *self.active.borrow()) {
            (true, _) => Some(State::Paused),
            (false, false) => Some(State::Standby),
            (false, true) => None,
        }
    }

    /// Waits for a change. Where the owner of a value has gone that stays as it is.
    async fn changed(&mut self) {
        tokio::select! {
            () = changed(&mut self.active) => {}
            () = changed(&mut self.paused) => {}
        }
    }

    async fn end(&mut self) {
        while self.rest().is_none() {
            self.changed().await;
        }
    }
}

async fn changed(value: &mut watch::Receiver<bool>) {
    if value.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Publisher {
    /// A publisher, to be run, and a view on it.
    pub fn new(options: Options) -> (Self, Handle) {
        let slot = Slot::default();
        let handle = slot.handle(options.owner, options.newest.clone());
        (slot.publisher(options), handle)
    }

    /// Publishes until `token` is cancelled. Nothing is lost by stopping at any point: the store says where to go on.
    pub fn run(self, token: CancellationToken) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        // Boxed, so that this crate compiles it, and not each program that awaits it.
        Box::pin(self.run_until(token))
    }

    async fn run_until(mut self, token: CancellationToken) {
        loop {
            while let Some(state) = self.turn.rest() {
                self.work.rest(state);
                tokio::select! {
                    biased;
                    () = token.cancelled() => return,
                    () = self.turn.changed() => {}
                }
            }
            let mut turn = self.turn.clone();
            tokio::select! {
                biased;
                () = token.cancelled() => return,
                () = turn.end() => {}
                // Dropped at an await point, it leaves all of a call's tasks in the store or none.
                never = self.work.run() => match never {},
            }
        }
    }
}
