//! What a publisher does while it is the one to publish.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use lockstep_types::TaskNumber;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::backoff::Backoff;
use super::progress::Progress;
use super::{BYTES_PER_PUBLISH_MAX, Options, State, Status, TASKS_PER_PUBLISH_MAX};
use crate::aside::RefusedTask;
use crate::output::{FinalTask, OutputError, Place};
use crate::source::{SourceError, UnsignedTask};

/// How often a store or source that needs an operator is looked at again.
const RECHECK_INTERVAL: Duration = Duration::from_secs(10);
/// What the sink may take: it must not slow down publishing.
const RECORD_DEADLINE: Duration = Duration::from_millis(250);

/// Places that are collected for one record; with so many it is made at once.
const PLACES_PER_RECORD_MAX: usize = 256;
/// Places that wait for a record; with so many nothing is published until one is made.
const PLACES_WAITING_MAX: usize = 16 * PLACES_PER_RECORD_MAX;
/// Chunks of tasks whose places are found out anew after a change of publishers; the others' stay unknown.
const CHUNKS_FOUND_AGAIN_MAX: usize = 32;

/// Why publishing stopped for now.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum Problem {
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Tasks on their way to the store.
struct Chunk {
    tasks: Vec<FinalTask>,
    /// Up to which number nothing else is for this store.
    end: TaskNumber,
}

/// What became of a chunk.
struct Advance {
    /// Number of the store's last task.
    last: TaskNumber,
    /// Whether that is all of it.
    whole: bool,
    /// A task was set aside.
    refused: bool,
    /// A task that would have been, had the store a place for it.
    stuck: Option<OutputError>,
    /// Where the tasks are.
    places: Vec<Place>,
}

pub(super) struct Work {
    pub(super) options: Options,
    status: watch::Sender<Status>,
    progress: Progress,
    /// Where the tasks are that the sink was not told of yet.
    places: Vec<Place>,
    /// Whether another node may have published tasks without having told the sink where they are.
    find_places: bool,
    backoff: Backoff,
    /// Whether the last attempt also ended with the store elsewhere: two who publish must not chase each other.
    moved: bool,
    /// Changes when refused tasks are to be tried again.
    retry: watch::Receiver<u64>,
    /// They are to be, and were not yet.
    retry_due: bool,
}

impl Work {
    pub(super) fn new(options: Options, status: watch::Sender<Status>, retry: watch::Receiver<u64>) -> Self {
        let progress = Progress::new(options.recorded);
        let (places, backoff) = (Vec::new(), Backoff::default());
        Self { options, status, progress, places, find_places: true, backoff, moved: false, retry, retry_due: false }
    }

    /// Does nothing, and says so.
    pub(super) fn rest(&mut self, state: State) {
        self.set(|status| (status.state, status.last_error) = (state, None));
        self.backoff.reset();
        self.retry.mark_unchanged();
        self.retry_due = false;
        (self.places, self.find_places) = (Vec::new(), true);
        // Others report meanwhile, and the network may have removed the output and added it anew, knowing nothing of it.
        self.progress = Progress::new(None);
        self.options.recorded = None;
    }

    /// Publishes for ever. May be dropped at any await.
    pub(super) async fn run(&mut self) -> Infallible {
        loop {
            let Err(problem) = self.follow().await;
            let rest = self.judge(&problem);
            let mut retry = self.retry.clone();
            tokio::select! {
                () = sleep(rest) => {}
                Ok(()) = retry.changed() => {}
            }
        }
    }

    /// Asks the store where it is and goes on from there, until something fails.
    async fn follow(&mut self) -> Result<Infallible, Problem> {
        let mut last = self.start().await?;
        self.set(|status| status.last_published = last);
        // A retry that was broken off is taken up by whoever publishes.
        self.retry_due |= self.look_at_refused().await?;
        let mut prefetched = None;
        loop {
            if self.retry_due || self.retry.has_changed().unwrap_or(false) {
                self.retry.mark_unchanged();
                self.retry_due = true;
                self.retry_refused(last).await?;
                self.retry_due = false;
            }
            // Before, this node does not know them itself.
            if self.find_places && *self.options.newest.borrow() >= last {
                self.find_places_up_to(last).await?;
                self.find_places = false;
            }
            if !self.is_final_after(last) {
                self.wait_for_more(last).await;
                continue;
            }
            let chunk = match prefetched.take() {
                Some(chunk) => Some(chunk),
                None => match self.prepare(last).await {
                    Err(SourceError::Forgotten(until)) => {
                        last = self.skip(until, last).await?;
                        continue;
                    }
                    chunk => chunk?,
                },
            };
            let Some(chunk) = chunk else {
                let next = self.options.owner.next(last);
                return Err(SourceError::Unavailable(format!("task {next} is final, but not there")).into());
            };
            self.set(|status| {
                // An error stays visible until a call has succeeded.
                if status.last_error.is_none() {
                    status.state = State::Publishing;
                }
            });
            let (advance, ahead) = tokio::join!(self.publish(&chunk, last), self.prepare_ahead(chunk.end));
            let mut advance = advance?;
            last = Some(advance.last);
            self.keep_places(std::mem::take(&mut advance.places));
            self.note_published(last).await?;
            if advance.refused {
                self.look_at_refused().await?;
            }
            if let Some(stuck) = advance.stuck {
                return Err(stuck.into());
            }
            // A failed look ahead is repeated in its turn, and its error reported then.
            prefetched = ahead.ok().flatten().filter(|_| advance.whole);
        }
    }

    /// The last task in the store: as it says itself, or as was recorded where it keeps no cursor.
    async fn start(&self) -> Result<Option<TaskNumber>, OutputError> {
        let last = self.options.output.last().await?;
        if self.options.output.keeps_cursor() {
            return Ok(last);
        }
        let recorded = self.options.sink.recorded(&self.options.name).await;
        Ok(last.max(recorded).max(self.options.recorded))
    }

    /// Asks the store where tasks up to `last` are that another node published: what it has already gives the same
    /// receipt again.
    async fn find_places_up_to(&mut self, last: Option<TaskNumber>) -> Result<(), Problem> {
        if !self.options.sink.keeps_places() || !self.options.output.keeps_cursor() {
            return Ok(());
        }
        // What waits is of tasks in the same range. What is found as well must not be kept twice, and once more with each
        // attempt.
        let waiting = std::mem::take(&mut self.places);
        let looked = self.look_for_places(last).await;
        let found = self.places.last().map(|place| place.last);
        self.keep_places(waiting.into_iter().filter(|place| Some(place.first) > found).collect());
        looked
    }

    async fn look_for_places(&mut self, last: Option<TaskNumber>) -> Result<(), Problem> {
        let Options { output, sink, name, .. } = &self.options;
        let (output, mut from) = (Arc::clone(output), sink.recorded(name).await);
        for _ in 0..CHUNKS_FOUND_AGAIN_MAX {
            let Some(last) = last.filter(|last| from < Some(*last)) else { break };
            let mut chunk = match self.prepare(from).await {
                Ok(Some(chunk)) => chunk,
                Err(SourceError::Unavailable(reason)) => return Err(SourceError::Unavailable(reason).into()),
                // What is forgotten is nowhere, and what was skipped as such is not looked for.
                Ok(None) | Err(_) => break,
            };
            chunk.tasks.retain(|task| task.number <= last);
            if !chunk.tasks.is_empty() {
                match output.publish(&chunk.tasks, from).await {
                    Ok(receipt) => self.keep_places(receipt.places),
                    Err(OutputError::Retryable(reason)) => return Err(OutputError::Retryable(reason).into()),
                    // Where some were set aside there is no receipt for all of them.
                    Err(_) => break,
                }
            }
            from = Some(chunk.end.min(last));
        }
        Ok(())
    }

    /// Keeps where tasks are for the next record. Runs in one table are one place.
    fn keep_places(&mut self, places: Vec<Place>) {
        for place in places {
            match self.places.last_mut() {
                Some(before) => match before.joined(&place) {
                    Some(joined) => *before = joined,
                    None => self.places.push(place),
                },
                None => self.places.push(place),
            }
        }
    }

    /// Goes on behind tasks that the network has forgotten.
    async fn skip(&self, until: TaskNumber, last: Option<TaskNumber>) -> Result<Option<TaskNumber>, OutputError> {
        let (output, first) = (self.options.name.as_str(), self.options.owner.next(last));
        tracing::error!(output, %first, last = %until, "these tasks are forgotten and will not be published: the output has a gap");
        self.options.output.skip(until, last).await?;
        let gap = Some((first, until));
        self.set(|status| (status.last_published, status.newest_gap) = (Some(until), gap));
        Ok(Some(until))
    }

    /// Publishes `chunk`, up to a task that is refused, which is set aside.
    async fn publish(&self, chunk: &Chunk, last: Option<TaskNumber>) -> Result<Advance, OutputError> {
        let (output, tasks) = (&self.options.output, &chunk.tasks);
        let whole = Advance { last: chunk.end, whole: true, refused: false, stuck: None, places: Vec::new() };
        if tasks.is_empty() {
            output.pass(chunk.end, last).await?;
            return Ok(whole);
        }
        let (number, reason) = match output.publish(tasks, last).await {
            Ok(receipt) => return Ok(Advance { places: receipt.places, ..whole }),
            Err(OutputError::Refused { task, reason }) => (task, reason),
            Err(error) => return Err(error),
        };
        let fit = tasks.partition_point(|task| task.number < number);
        let refused = OutputError::Refused { task: number, reason: reason.clone() };
        let Some(task) = tasks.get(fit).filter(|task| task.number == number) else { return Err(refused) };
        let (mut before, mut places) = (last, Vec::new());
        if fit > 0 {
            let receipt = output.publish(&tasks[..fit], last).await?;
            (before, places) = (Some(receipt.last), receipt.places);
        }
        match (output.aside(), before) {
            (Some(aside), _) => {
                let name = self.options.name.as_str();
                tracing::error!(output = name, task = %number, %reason, "the store refuses this task: it is set aside");
                let refused = RefusedTask { number, id: Some(task.id), project_id: task.project_id, reason };
                aside.refuse(&refused, before).await?;
                Ok(Advance { last: number, whole: fit + 1 == tasks.len(), refused: true, stuck: None, places })
            }
            (None, Some(last)) if fit > 0 => {
                Ok(Advance { last, whole: false, refused: false, stuck: Some(refused), places })
            }
            (None, _) => Err(refused),
        }
    }

    /// Reads and signs what follows `last`.
    async fn prepare(&self, last: Option<TaskNumber>) -> Result<Option<Chunk>, SourceError> {
        let (source, max_tasks, max_bytes) = (&self.options.source, TASKS_PER_PUBLISH_MAX, BYTES_PER_PUBLISH_MAX);
        let mut tasks = match self.options.output.part_bytes() {
            Some(part_bytes) => source.parts_after(last, max_tasks, max_bytes, part_bytes).await?,
            None => source.tasks_after(last, max_tasks, max_bytes).await?,
        };
        // The store takes our word for it that nothing is missing.
        let mut expected = self.options.owner.next(last);
        for task in &tasks {
            if task.number != expected {
                return Err(SourceError::Unavailable(format!("task {expected} is missing")));
            }
            expected = expected.next();
        }
        let Some(mut end) = tasks.last().map(|task| task.number) else { return Ok(None) };
        let all = tasks.len();
        let ours = |project| self.options.projects.as_ref().is_none_or(|projects| projects.contains(&project));
        tasks.retain(|task| ours(task.project_id) && task.is_for(&self.options.name));
        if tasks.len() < all {
            // What is passed over at the end is so with the next chunk, unless there is nothing else.
            end = tasks.last().map_or(end, |task| task.number);
        }
        Ok(Some(Chunk { tasks: self.sign(tasks).await?, end }))
    }

    /// Signs tasks off the threads that others wait for.
    pub(super) async fn sign(&self, tasks: Vec<UnsignedTask>) -> Result<Vec<FinalTask>, SourceError> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let (signer, layout) = (self.options.signer.clone(), self.options.output.layout());
        let sign = move || tasks.into_iter().map(|task| signer.sign(task, layout)).collect::<Vec<_>>();
        if self.options.signer.is_inline() {
            return Ok(sign());
        }
        let signing = tokio::task::spawn_blocking(sign);
        signing.await.map_err(|_| SourceError::Unavailable("signing panicked, or the program is ending".to_owned()))
    }

    /// As [`Work::prepare`], but without asking the source for what is not final yet.
    async fn prepare_ahead(&self, last: TaskNumber) -> Result<Option<Chunk>, SourceError> {
        if self.is_final_after(Some(last)) { self.prepare(Some(last)).await } else { Ok(None) }
    }

    fn is_final_after(&self, last: Option<TaskNumber>) -> bool {
        *self.options.newest.borrow() > last
    }

    /// Everything is published: says so, once, and waits for more, or for a retry.
    async fn wait_for_more(&mut self, last: Option<TaskNumber>) {
        self.succeeded();
        self.set(|status| (status.state, status.last_error) = (State::CaughtUp, None));
        let (mut newest, mut retry) = (self.options.newest.clone(), self.retry.clone());
        loop {
            // Where tasks are comes with how far it is, or never.
            let due = self.progress.due(last, Instant::now()).filter(|_| !self.find_places);
            let record = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let more = async {
                // Where its owner is gone the node is ending, and with it this.
                let find = self.find_places;
                if newest.wait_for(|newest| *newest > last || (find && *newest == last)).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = more => return,
                Ok(()) = retry.changed() => return,
                () = record => self.record(last).await,
            }
        }
    }

    async fn note_published(&mut self, last: Option<TaskNumber>) -> Result<(), SourceError> {
        self.succeeded();
        self.set(|status| {
            (status.state, status.last_published, status.last_error) = (State::Publishing, last, None);
        });
        let now = Instant::now();
        let many = self.places.len() >= PLACES_PER_RECORD_MAX;
        if many || self.progress.due(last, now).is_some_and(|due| due <= now) {
            self.record(last).await;
        }
        if self.places.len() >= PLACES_WAITING_MAX {
            return Err(SourceError::Unavailable("no majority takes down where tasks are".to_owned()));
        }
        Ok(())
    }

    async fn record(&mut self, last: Option<TaskNumber>) {
        let Some(number) = last else { return };
        let record = self.options.sink.record(&self.options.name, number, &self.places);
        // Late or lost is fine: the next record says it again.
        if timeout(RECORD_DEADLINE, record).await == Ok(true) {
            self.places.clear();
            self.progress.record(last, Instant::now());
        } else {
            self.progress.failed(Instant::now());
        }
    }

    fn succeeded(&mut self) {
        self.backoff.reset();
        self.moved = false;
    }

    /// Makes a problem visible and says how long to rest.
    fn judge(&mut self, problem: &Problem) -> Duration {
        let jitter = self.options.signer.jitter();
        // A call that broke off, or somebody else who is gone by now, may have published and not told where.
        self.find_places |= matches!(problem, Problem::Output(_));
        let (state, rest) = match problem {
            // Somebody else published: no failure, unless it goes on without us ever getting anything done.
            Problem::Output(OutputError::Moved { .. }) if !self.moved => {
                self.moved = true;
                return Duration::ZERO;
            }
            Problem::Output(OutputError::Moved { .. } | OutputError::Retryable(_))
            | Problem::Source(SourceError::Unavailable(_) | SourceError::Forgotten(_)) => {
                (State::Retrying, self.backoff.next(jitter))
            }
            Problem::Output(OutputError::Refused { .. }) => (State::Blocked, self.backoff.next(jitter)),
            Problem::Output(OutputError::Foreign(_) | OutputError::Ahead { .. })
            | Problem::Source(SourceError::Gone(_)) => (State::Blocked, RECHECK_INTERVAL),
        };
        let text = problem.to_string();
        if self.status.borrow().last_error.as_ref() != Some(&text) {
            let output = self.options.name.as_str();
            match state {
                State::Blocked => tracing::error!(output, error = %text, "publishing is blocked"),
                _ => tracing::warn!(output, error = %text, "publishing is held up"),
            }
        }
        self.set(|status| (status.state, status.last_error) = (state, Some(text)));
        rest
    }

    /// Changes the status, waking watchers only for a difference.
    pub(super) fn set(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }
}
