//! Announces what is due, while this node is the one to do it.

use std::convert::Infallible;
use std::time::Instant;

use lockstep_types::TaskNumber;
use tokio::sync::{oneshot, watch};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use crate::feed::{CommittedTask, TaskFeed};
use crate::limits::{FEED_PAUSE, READ_TASKS_MAX, REMEMBER_INTERVAL, TOGETHER_MAX};
use crate::metrics;
use crate::network::{Link, Publish, PublishError};
use crate::options::Options;
use crate::plan::{End, Plan, begin_at};

/// What is told of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub announced: u64,
    pub waiting: u64,
    pub problem: Option<String>,
}

/// See the module's documentation.
pub(crate) struct Teller<F> {
    feed: F,
    link: Link,
    plan: Plan,
    first_task: TaskNumber,
    committed: watch::Receiver<Option<TaskNumber>>,
    active: watch::Receiver<bool>,
    /// The next task to read; `None` until it is known where to begin.
    next: Option<TaskNumber>,
    /// After a failure the feed is left alone until then.
    read_again: Option<Instant>,
    /// Each task before was announced.
    remembered: Option<TaskNumber>,
    remembered_at: Option<Instant>,
    feed_problem: Option<String>,
    announce_problem: Option<String>,
    announced: u64,
    progress: watch::Sender<Progress>,
}

/// Waits until the value is `wanted`. Where its owner has gone it stays as it is.
async fn until(value: &mut watch::Receiver<bool>, wanted: bool) {
    if value.wait_for(|value| *value == wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl<F: TaskFeed> Teller<F> {
    pub fn new(options: &Options, feed: F, link: Link) -> (Self, watch::Receiver<Progress>) {
        let (progress, progress_out) = watch::channel(Progress::default());
        let teller = Self {
            feed,
            link,
            plan: Plan::new(options.attempts_max, options.pause_min),
            first_task: options.first_task,
            committed: options.committed.clone(),
            active: options.active.clone(),
            next: None,
            read_again: None,
            remembered: options.remembered,
            remembered_at: None,
            feed_problem: None,
            announce_problem: None,
            announced: 0,
            progress,
        };
        (teller, progress_out)
    }

    /// Announces until `stop` is cancelled. Stopping at any point loses nothing: what was not announced is read again.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let (mut active, mut ended) = (self.active.clone(), self.active.clone());
            tokio::select! {
                () = stop.cancelled() => return,
                () = until(&mut active, true) => {}
            }
            tokio::select! {
                // In this order: what is committed after this node's turn has ended is not for it to announce.
                biased;
                () = stop.cancelled() => return self.remember(),
                () = until(&mut ended, false) => {}
                never = self.work() => match never {},
            }
            self.stand_by();
        }
    }

    /// Another node announces now.
    fn stand_by(&mut self) {
        self.remember();
        self.plan.clear();
        (self.next, self.read_again, self.feed_problem, self.announce_problem) = (None, None, None, None);
        self.show();
    }

    /// Announces for ever. May be dropped at any await: at worst a task is announced once more.
    async fn work(&mut self) -> Infallible {
        loop {
            self.read_more().await;
            self.announce_due().await;
            if self.remembered_at.is_none_or(|at| at.elapsed() >= REMEMBER_INTERVAL) {
                self.remember();
            }
            self.show();
            self.wait().await;
        }
    }

    /// Waits until something is due, or may be.
    async fn wait(&mut self) {
        let wake = self.wake(Instant::now());
        let due = async {
            match wake {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            // Where the owner is gone the node is ending.
            changed = self.committed.changed() => if changed.is_err() { std::future::pending().await },
            changed = self.link.peers.changed() => match changed {
                Ok(()) if *self.link.peers.borrow_and_update() > 0 => self.plan.release(),
                Ok(()) => {}
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// When to look again, if nothing else happens.
    fn wake(&self, now: Instant) -> Option<Instant> {
        let read = match self.read_again {
            Some(at) => Some(at),
            None => self.wants_more().then_some(now),
        };
        let owed = self.owes_note().then(|| self.remembered_at.map_or(now, |at| at + REMEMBER_INTERVAL));
        [self.plan.next_due(now), read, owed].into_iter().flatten().min()
    }

    /// The number of tasks that are committed and were not read.
    fn unread(&self) -> u64 {
        let committed = *self.committed.borrow();
        self.next.zip(committed).map_or(0, |(next, last)| last.next().0.saturating_sub(next.0))
    }

    fn wants_more(&self) -> bool {
        self.unread() > 0 && self.plan.unsent() < READ_TASKS_MAX
    }

    /// Reads tasks until enough wait to be announced.
    async fn read_more(&mut self) {
        let Some(committed) = *self.committed.borrow_and_update() else { return };
        if self.next.is_none() {
            self.next = Some(begin_at(self.remembered, committed, self.first_task));
        }
        let now = Instant::now();
        if self.read_again.is_some_and(|at| now < at) {
            return;
        }
        self.read_again = None;
        while let Some(next) = self.next.filter(|next| *next <= committed && self.plan.unsent() < READ_TASKS_MAX) {
            match self.feed.tasks(next, committed, READ_TASKS_MAX).await {
                Ok(tasks) => self.take(&tasks, committed),
                Err(error) => {
                    let problem = error.to_string();
                    if self.feed_problem.as_ref() != Some(&problem) {
                        tracing::warn!(%error, "nothing new is announced to W3bstream");
                    }
                    (self.feed_problem, self.read_again) = (Some(problem), Some(now + FEED_PAUSE));
                    return;
                }
            }
        }
    }

    fn take(&mut self, tasks: &[CommittedTask], committed: TaskNumber) {
        self.feed_problem = None;
        let now = Instant::now();
        for task in tasks {
            if !self.feed.is_assigned(&task.announcement) && self.plan.take(*task, now) {
                metrics::ended(End::Displaced);
            }
        }
        // Nothing came: what is left of these is forgotten.
        self.next = Some(tasks.last().map_or(committed, |task| task.number).next());
    }

    async fn announce_due(&mut self) {
        for task in self.plan.due(Instant::now(), TOGETHER_MAX) {
            if self.feed.is_assigned(&task.announcement) {
                self.plan.remove(task.number);
                metrics::ended(End::Assigned);
                continue;
            }
            match self.announce(&task).await {
                Ok(()) => self.announce_problem = None,
                Err(error) => {
                    if self.announce_problem.is_none() {
                        tracing::warn!(%error, "tasks wait to be announced to W3bstream");
                    }
                    self.announce_problem = Some(error.to_string());
                    self.plan.hold(Instant::now());
                    return;
                }
            }
        }
    }

    async fn announce(&mut self, task: &CommittedTask) -> Result<(), PublishError> {
        let (told, answer) = oneshot::channel();
        let publish = Publish { bytes: task.announcement.to_bytes(), told };
        let stopped = || PublishError::Failed("the network has stopped".into());
        self.link.publish.send(publish).await.map_err(|_| stopped())?;
        let result = answer.await.unwrap_or_else(|_| Err(stopped()));
        metrics::announced(match &result {
            Ok(()) => "sent",
            Err(PublishError::Nobody) => "nobody",
            Err(PublishError::Busy) => "busy",
            Err(PublishError::Failed(_)) => "failed",
        });
        result?;
        self.announced += u64::from(self.plan.is_unsent(task.number));
        if let Some(end) = self.plan.sent(task.number, Instant::now()) {
            tracing::debug!(task = %task.announcement.task, ?end, "a task is not announced again");
            metrics::ended(end);
        }
        Ok(())
    }

    /// How far it is: each task before was announced.
    fn position(&self) -> Option<TaskNumber> {
        self.plan.first_unsent().or(self.next)
    }

    fn owes_note(&self) -> bool {
        self.position().is_some_and(|position| Some(position) != self.remembered)
    }

    fn remember(&mut self) {
        if let Some(position) = self.position().filter(|_| self.owes_note()) {
            self.feed.remember(position);
            (self.remembered, self.remembered_at) = (Some(position), Some(Instant::now()));
        }
    }

    fn show(&self) {
        let waiting = self.unread().saturating_add(self.plan.len() as u64);
        metrics::waiting(self.plan.len());
        let problem = self.feed_problem.clone().or_else(|| self.announce_problem.clone());
        let progress = Progress { announced: self.announced, waiting, problem };
        self.progress.send_if_modified(|known| std::mem::replace(known, progress.clone()) != progress);
    }
}
