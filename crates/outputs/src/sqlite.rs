//! SQLite, in the tables of either generation of readers: for one operator's own readers and for trying things out.
//!
//! Several processes on one machine may share a file; compare-and-set on the cursor row keeps them apart. A file on a
//! network file system is not safe: SQLite's locks do not hold there.

mod aside;
mod database;
mod ddl;
mod rows;
mod stored;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use lockstep_types::{ProjectId, TaskId, TaskNumber};

use self::database::Database;
use crate::aside::{Refusals, RefusedTask, SetAside};
use crate::layout::Layout;
use crate::output::{Adopted, Adoption, FinalTask, Output, OutputError, Owner, Place, Receipt};
use crate::stored::{Page, StrayMark, Strays};
use crate::tables::Ours;

/// Where the file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteOptions {
    /// The database file; made when missing. Its directory must exist.
    pub path: PathBuf,
    /// Which readers it is for.
    pub layout: Layout,
    /// How long to wait for another process's transaction.
    pub busy_timeout: Duration,
}

impl SqliteOptions {
    /// The usual limits.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), layout: Layout::default(), busy_timeout: Duration::from_secs(5) }
    }
}

/// A store in an SQLite file.
#[derive(Debug)]
pub struct SqliteOutput {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: SqliteOptions,
    ours: Ours,
    database: Mutex<Option<Database>>,
}

impl SqliteOutput {
    /// Opens the file at the first call.
    pub fn new(options: SqliteOptions, owner: Owner) -> Self {
        let ours = Ours { owner, layout: options.layout };
        Self { shared: Arc::new(Shared { options, ours, database: Mutex::new(None) }) }
    }

    /// Runs `work` on a thread that may wait for the disk. Where the caller goes away it runs to its end: whole or not
    /// at all, as a write that was late.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database, &Ours) -> Result<T, OutputError> + Send + 'static,
    ) -> Result<T, OutputError> {
        let shared = Arc::clone(&self.shared);
        let running = tokio::task::spawn_blocking(move || shared.with_database(work));
        running
            .await
            .unwrap_or_else(|_| Err(OutputError::Retryable("its work panicked, or the program is ending".to_owned())))
    }
}

impl Shared {
    fn with_database<T>(
        &self,
        work: impl FnOnce(&mut Database, &Ours) -> Result<T, OutputError>,
    ) -> Result<T, OutputError> {
        // A panic while it was held left the slot empty, which is a good state.
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let mut database = match slot.take() {
            Some(database) => database,
            None => Database::open(&self.options, &self.ours)?,
        };
        let result = work(&mut database, &self.ours);
        if !matches!(result, Err(OutputError::Retryable(_))) {
            *slot = Some(database);
        }
        result
    }
}

#[async_trait]
impl Output for SqliteOutput {
    fn layout(&self) -> Layout {
        self.shared.ours.layout
    }

    fn aside(&self) -> Option<&dyn SetAside> {
        Some(self)
    }

    async fn publish(&self, tasks: &[FinalTask], expected_last: Option<TaskNumber>) -> Result<Receipt, OutputError> {
        let tasks = tasks.to_vec();
        let receipt = self.run(move |database, ours| database.publish(ours, &tasks, expected_last)).await?;
        Ok(receipt.in_table("sqlite:tasks".to_owned()))
    }

    async fn skip(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        self.run(move |database, ours| database.move_over(ours, last, expected_last, true)).await
    }

    async fn pass(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        self.run(move |database, ours| database.move_over(ours, last, expected_last, false)).await
    }

    async fn fill(&self, tasks: &[FinalTask]) -> Result<(), OutputError> {
        let tasks = tasks.to_vec();
        self.run(move |database, ours| database.fill(ours, &tasks)).await
    }

    async fn first_gap(
        &self,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        self.run(move |database, ours| database.first_gap(ours, first, last)).await
    }

    async fn complete(&self, first: TaskNumber, last: TaskNumber) -> Result<(), OutputError> {
        self.run(move |database, ours| database.complete(ours, first, last)).await
    }

    async fn last(&self) -> Result<Option<TaskNumber>, OutputError> {
        self.run(|database, ours| {
            let cursor = database.cursor()?;
            cursor.check_owner(ours)?;
            Ok(cursor.last)
        })
        .await
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopted, OutputError> {
        let adoption = adoption.clone();
        self.run(move |database, ours| database.adopt(ours, &adoption)).await
    }

    async fn read(&self, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        let id = *id;
        self.run(move |database, ours| database.read(ours, &id)).await
    }

    async fn stored(&self, first: TaskNumber, max: usize, _places: &[Place]) -> Result<Page, OutputError> {
        self.run(move |database, ours| database.stored(ours, first, max)).await
    }

    async fn strays(&self, after: Option<&StrayMark>) -> Result<Strays, OutputError> {
        let after = after.cloned();
        self.run(move |database, ours| database.strays(ours, after.as_ref())).await
    }
}

#[async_trait]
impl SetAside for SqliteOutput {
    async fn refuse(&self, task: &RefusedTask, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        let task = task.clone();
        self.run(move |database, ours| database.refuse(ours, &task, expected_last)).await
    }

    async fn refused(&self, after: Option<TaskNumber>) -> Result<Refusals, OutputError> {
        self.run(move |database, ours| database.refused(ours, after)).await
    }

    async fn resume(&self, from: TaskNumber, tasks: &[FinalTask], to: &RefusedTask) -> Result<(), OutputError> {
        let (tasks, to) = (tasks.to_vec(), to.clone());
        self.run(move |database, ours| database.resume(ours, from, &tasks, &to)).await
    }

    async fn lift(&self, project_id: ProjectId, last: TaskNumber) -> Result<(), OutputError> {
        self.run(move |database, ours| database.lift(ours, project_id, last)).await
    }
}
