//! A store of tasks that nodes publish to, and that is not always there.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockstep_outputs::{Adopted, Adoption, FinalTask, Output, OutputError, Owner, Page, Place, Receipt, Stage};
use lockstep_types::{Epoch, TaskId, TaskNumber};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::bugs::{Bug, Bugs};
use super::trace::Trace;
use crate::random::Random;

/// What was written at one time.
#[derive(Debug, Clone)]
pub struct Written {
    /// When.
    pub at: Instant,
    /// The task.
    pub task: FinalTask,
}

#[derive(Default)]
struct Rows {
    tasks: Vec<Written>,
    last: Option<TaskNumber>,
}

struct Inner {
    rows: Rows,
    random: Random,
    is_away: bool,
    delay_ms_max: u64,
    /// Of a thousand calls so many break off after the store has done what was asked.
    breaks_off_of_1000: u64,
}

/// A store. Clones are the same one.
#[derive(Clone)]
pub struct Table {
    inner: Arc<Mutex<Inner>>,
    name: &'static str,
    keeps_cursor: bool,
    trace: Trace,
    bugs: Bugs,
}

/// How long a call takes.
const DELAY_MS_MAX: u64 = 20;
/// … of a store that has trouble.
const DELAY_MS_MAX_SLOW: u64 = 1_500;

impl Table {
    /// An empty store; one that `keeps_cursor` takes each task once.
    pub fn new(name: &'static str, keeps_cursor: bool, seed: u64, (trace, bugs): (Trace, Bugs)) -> Self {
        let rows = Rows::default();
        let inner = Inner {
            rows,
            random: Random::new(seed),
            is_away: false,
            delay_ms_max: DELAY_MS_MAX,
            breaks_off_of_1000: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)), name, keeps_cursor, trace, bugs }
    }

    /// What it is called.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it takes each task once.
    pub fn has_cursor(&self) -> bool {
        self.keeps_cursor
    }

    /// Nobody reaches it.
    pub fn go_away(&self) {
        self.inner.lock().is_away = true;
    }

    /// It is slow, and calls break off.
    pub fn falter(&self) {
        let mut inner = self.inner.lock();
        (inner.delay_ms_max, inner.breaks_off_of_1000) = (DELAY_MS_MAX_SLOW, 300);
    }

    /// All is well.
    pub fn heal(&self) {
        let mut inner = self.inner.lock();
        (inner.is_away, inner.delay_ms_max, inner.breaks_off_of_1000) = (false, DELAY_MS_MAX, 0);
    }

    /// What it holds, in the order of writing.
    pub fn written(&self) -> Vec<Written> {
        self.inner.lock().rows.tasks.clone()
    }

    /// Number of its last task.
    pub fn last_task(&self) -> Option<TaskNumber> {
        self.inner.lock().rows.last
    }

    async fn reach(&self) -> Result<(), OutputError> {
        let delay = {
            let mut inner = self.inner.lock();
            let max = inner.delay_ms_max;
            Duration::from_millis(1 + inner.random.number() % max)
        };
        sleep(delay).await;
        if self.inner.lock().is_away { Err(OutputError::Retryable("nobody answers".into())) } else { Ok(()) }
    }

    fn append(&self, tasks: Vec<FinalTask>, expected_last: Option<TaskNumber>) -> Result<Receipt, OutputError> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let (first, last) = (tasks[0].number, tasks[tasks.len() - 1].number);
        let last_id = tasks[tasks.len() - 1].id;
        let locator = if self.keeps_cursor { self.name.to_owned() } else { format!("{}/{first}", self.name) };
        let places = vec![Place { first, last, locator, commitment: Vec::new(), height: None, stage: Stage::Final }];
        let receipt = Receipt { first, last, last_id, places };
        let rows = &mut inner.rows;
        if self.keeps_cursor && !self.bugs.has(Bug::CountTwice) {
            if rows.last >= Some(last) && expected_last < rows.last {
                // The same again.
                return Ok(receipt);
            }
            if rows.last != expected_last {
                return Err(OutputError::Moved { actual_last: rows.last });
            }
        }
        rows.last = rows.last.max(Some(last));
        for mut task in tasks {
            if self.bugs.has(Bug::SkipCursor) && task.number.0.is_multiple_of(50) {
                continue;
            }
            if self.bugs.has(Bug::ReuseId)
                && task.number.0.is_multiple_of(50)
                && let Some(before) = rows.tasks.last()
            {
                task.id = before.task.id;
            }
            rows.tasks.push(Written { at: Instant::now(), task });
        }
        self.trace.note([last.0, first.0, 30], self.name.as_bytes());
        Ok(receipt)
    }

    /// Writes without asking, as a bug would.
    pub(super) fn write_behind_its_back(&self, task: FinalTask) {
        let mut inner = self.inner.lock();
        inner.rows.last = inner.rows.last.max(Some(task.number));
        inner.rows.tasks.push(Written { at: Instant::now(), task });
    }
}

fn not_simulated() -> OutputError {
    OutputError::Retryable("this store does not do that".into())
}

#[async_trait]
impl Output for Table {
    async fn publish(&self, tasks: &[FinalTask], expected_last: Option<TaskNumber>) -> Result<Receipt, OutputError> {
        self.reach().await?;
        let (this, tasks) = (self.clone(), tasks.to_vec());
        // What has reached the store is done there, also where whoever asked is gone.
        let done = tokio::spawn(async move {
            let (delay, breaks_off) = {
                let mut inner = this.inner.lock();
                let (max, breaks) = (inner.delay_ms_max, inner.breaks_off_of_1000);
                (Duration::from_millis(inner.random.number() % max), inner.random.number() % 1_000 < breaks)
            };
            sleep(delay).await;
            let result = this.append(tasks, expected_last);
            if breaks_off { Err(OutputError::Retryable("the connection broke".into())) } else { result }
        });
        done.await.map_err(|e| OutputError::Retryable(e.to_string()))?
    }

    async fn skip(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        self.reach().await?;
        let rows = &mut self.inner.lock().rows;
        if rows.last >= Some(last) {
            return Ok(());
        }
        if rows.last != expected_last {
            return Err(OutputError::Moved { actual_last: rows.last });
        }
        rows.last = Some(last);
        Ok(())
    }

    async fn fill(&self, _tasks: &[FinalTask]) -> Result<(), OutputError> {
        Err(not_simulated())
    }

    async fn first_gap(
        &self,
        _first: TaskNumber,
        _last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        Ok(None)
    }

    async fn last(&self) -> Result<Option<TaskNumber>, OutputError> {
        self.reach().await?;
        Ok(self.last_task())
    }

    async fn adopt(&self, _adoption: &Adoption) -> Result<Adopted, OutputError> {
        Ok(Adopted { from: Epoch(0), last: self.last_task(), foreign: None })
    }

    async fn read(&self, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        let inner = self.inner.lock();
        Ok(inner.rows.tasks.iter().find(|written| written.task.id == *id).map(|written| written.task.clone()))
    }

    async fn stored(&self, _first: TaskNumber, _max: usize, _places: &[Place]) -> Result<Page, OutputError> {
        Err(not_simulated())
    }

    fn keeps_cursor(&self) -> bool {
        self.keeps_cursor
    }
}

/// Opens the store for a node.
pub(super) fn open(tables: &[Table], name: &str, _owner: Owner) -> Option<Arc<dyn Output>> {
    let table = tables.iter().find(|table| table.name == name)?;
    // A store without a cursor knows only what was published through one value: each node has its own view.
    Some(if table.keeps_cursor {
        Arc::new(table.clone())
    } else {
        Arc::new(View { table: table.clone(), last: Mutex::default() })
    })
}

/// One node's view of a store without a cursor.
struct View {
    table: Table,
    last: Mutex<Option<TaskNumber>>,
}

#[async_trait]
impl Output for View {
    async fn publish(&self, tasks: &[FinalTask], expected_last: Option<TaskNumber>) -> Result<Receipt, OutputError> {
        let receipt = self.table.publish(tasks, expected_last).await?;
        let mut last = self.last.lock();
        *last = (*last).max(Some(receipt.last));
        Ok(receipt)
    }

    async fn skip(&self, last: TaskNumber, _expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        *self.last.lock() = Some(last);
        Ok(())
    }

    async fn fill(&self, _tasks: &[FinalTask]) -> Result<(), OutputError> {
        Err(not_simulated())
    }

    async fn first_gap(
        &self,
        _first: TaskNumber,
        _last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        Ok(None)
    }

    async fn last(&self) -> Result<Option<TaskNumber>, OutputError> {
        self.table.reach().await?;
        Ok(*self.last.lock())
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopted, OutputError> {
        self.table.adopt(adoption).await
    }

    async fn read(&self, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        self.table.read(id).await
    }

    async fn stored(&self, first: TaskNumber, max: usize, places: &[Place]) -> Result<Page, OutputError> {
        self.table.stored(first, max, places).await
    }

    fn keeps_cursor(&self) -> bool {
        false
    }
}
