//! SQLite, in the tables of the apinode generation: for one operator's own readers and for trying things out.
//!
//! Several processes on one machine may share a file; compare-and-set on the cursor row keeps them apart. A file on a
//! network file system is not safe: SQLite's locks do not hold there.

mod database;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use lockstep_types::{TaskId, TaskNumber};

use self::database::Database;
use crate::output::{Adopted, Adoption, FinalTask, Output, OutputError, Owner, Receipt};

/// Where the file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteOptions {
    /// The database file; made when missing. Its directory must exist.
    pub path: PathBuf,
    /// How long to wait for another process's transaction.
    pub busy_timeout: Duration,
}

impl SqliteOptions {
    /// The usual limits.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), busy_timeout: Duration::from_secs(5) }
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
    owner: Owner,
    database: Mutex<Option<Database>>,
}

impl SqliteOutput {
    /// Opens the file at the first call.
    pub fn new(options: SqliteOptions, owner: Owner) -> Self {
        Self { shared: Arc::new(Shared { options, owner, database: Mutex::new(None) }) }
    }

    /// Runs `work` on a thread that may wait for the disk. Where the caller goes away it runs to its end: whole or not
    /// at all, as a write that was late.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database, &Owner) -> Result<T, OutputError> + Send + 'static,
    ) -> Result<T, OutputError> {
        let shared = Arc::clone(&self.shared);
        let running = tokio::task::spawn_blocking(move || shared.with_database(work));
        running.await.unwrap_or_else(|_| Err(OutputError::Retryable("the program is ending".to_owned())))
    }
}

impl Shared {
    fn with_database<T>(
        &self,
        work: impl FnOnce(&mut Database, &Owner) -> Result<T, OutputError>,
    ) -> Result<T, OutputError> {
        // A panic while it was held left the slot empty, which is a good state.
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let mut database = match slot.take() {
            Some(database) => database,
            None => Database::open(&self.options, &self.owner)?,
        };
        let result = work(&mut database, &self.owner);
        if !matches!(result, Err(OutputError::Retryable(_))) {
            *slot = Some(database);
        }
        result
    }
}

#[async_trait]
impl Output for SqliteOutput {
    async fn publish(&self, tasks: &[FinalTask], expected_last: Option<TaskNumber>) -> Result<Receipt, OutputError> {
        let tasks = tasks.to_vec();
        let receipt = self.run(move |database, owner| database.publish(owner, &tasks, expected_last)).await?;
        Ok(receipt.in_table("sqlite:tasks".to_owned()))
    }

    async fn skip(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        self.run(move |database, owner| database.skip(owner, last, expected_last)).await
    }

    async fn fill(&self, tasks: &[FinalTask]) -> Result<(), OutputError> {
        let tasks = tasks.to_vec();
        self.run(move |database, owner| database.fill(owner, &tasks)).await
    }

    async fn first_gap(
        &self,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        self.run(move |database, owner| database.first_gap(owner, first, last)).await
    }

    async fn last(&self) -> Result<Option<TaskNumber>, OutputError> {
        self.run(|database, owner| {
            let cursor = database.cursor()?;
            cursor.check_owner(owner)?;
            Ok(cursor.last)
        })
        .await
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopted, OutputError> {
        let adoption = adoption.clone();
        self.run(move |database, owner| database.adopt(owner, &adoption)).await
    }

    async fn read(&self, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        let id = *id;
        self.run(move |database, _| database.read(&id)).await
    }
}
