//! Publishes final tasks to one output: in order, for ever, while this node is the one to do it.

mod backoff;
mod progress;
mod work;

use std::sync::Arc;

use lockstep_types::{OutputName, TaskNumber};
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
    /// What the sink was last told, by this node or any other, so that an idle network writes nothing.
    pub recorded: Option<TaskNumber>,
}

/// What a publisher is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// Another node publishes.
    #[default]
    Standby,
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
}

/// A view on a running publisher.
#[derive(Debug, Clone)]
pub struct Handle {
    status: watch::Receiver<Status>,
    newest: watch::Receiver<Option<TaskNumber>>,
    owner: Owner,
}

impl Handle {
    /// How it stands now.
    pub fn status(&self) -> Status {
        let status = self.status.borrow().clone();
        let newest = *self.newest.borrow();
        let missing = newest.map_or(0, |n| n.next().0.saturating_sub(self.owner.next(status.last_published).0));
        Status { lag: missing, ..status }
    }

    /// Waits for a change of the state, the last task or the error. `false`: the publisher has ended.
    pub async fn changed(&mut self) -> bool {
        self.status.changed().await.is_ok()
    }
}

/// The service that feeds one output.
pub struct Publisher {
    active: watch::Receiver<bool>,
    work: Work,
}

impl Publisher {
    /// A publisher, to be run, and a view on it.
    pub fn new(options: Options) -> (Self, Handle) {
        let (status, receiver) = watch::channel(Status::default());
        let active = options.active.clone();
        let handle = Handle { status: receiver, newest: options.newest.clone(), owner: options.owner };
        (Self { active, work: Work::new(options, status) }, handle)
    }

    /// Publishes until `token` is cancelled. Nothing is lost by stopping at any point: the store says where to go on.
    pub async fn run(mut self, token: CancellationToken) {
        loop {
            self.work.stand_by();
            tokio::select! {
                biased;
                () = token.cancelled() => return,
                () = until(&mut self.active, true) => {}
            }
            let mut active = self.active.clone();
            tokio::select! {
                biased;
                () = token.cancelled() => return,
                () = until(&mut active, false) => {}
                // Dropped at an await point, it leaves all of a call's tasks in the store or none.
                never = self.work.run() => match never {},
            }
        }
    }
}

/// Waits until the value is `wanted`. Where its owner has gone it stays as it is.
async fn until(value: &mut watch::Receiver<bool>, wanted: bool) {
    if value.wait_for(|value| *value == wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}
