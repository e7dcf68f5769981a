//! PostgreSQL, in the tables of the apinode generation.
//!
//! A call to publish is one statement (or one transaction of several, where it is large) that moves the cursor row by
//! compare-and-set and inserts the rows: rows of two writers never mix, and a late writer changes nothing. There is one
//! connection, made when it is first needed and again after any error.

mod columns;
mod options;
mod schema;
mod session;

use async_trait::async_trait;
use lockstep_types::{TaskId, TaskNumber};
use tokio::sync::{Mutex, MutexGuard};
use tokio_postgres::Config;

pub use self::options::{PostgresOptions, PostgresOptionsError, PostgresTimeouts};
use self::session::Session;
use crate::apinode::{self, Admission};
use crate::output::{Adopted, Adoption, FinalTask, Output, OutputError, Owner, Receipt};

/// Most messages of one statement.
pub const MESSAGES_PER_STATEMENT_MAX: usize = 16_384;
/// Most payload bytes of one statement (one task may exceed it): far below PostgreSQL's 1 GiB per message and value.
pub const BYTES_PER_STATEMENT_MAX: usize = 16 << 20;
/// How often a call to fill in writes, until all is there.
const FILL_ATTEMPTS_MAX: usize = 3;

/// A store in PostgreSQL.
pub struct PostgresOutput {
    options: PostgresOptions,
    config: Config,
    owner: Owner,
    /// The guard is held across awaits on purpose: it is the queue for the one connection.
    session: Mutex<Option<Session>>,
}

impl PostgresOutput {
    /// Checks `options`. Connects at the first call.
    pub fn new(options: PostgresOptions, owner: Owner) -> Result<Self, PostgresOptionsError> {
        let config = options.config()?;
        Ok(Self { options, config, owner, session: Mutex::new(None) })
    }

    /// Takes the session out, so that an error or a dropped future leaves no half-used one behind.
    async fn session(&self, slot: &mut MutexGuard<'_, Option<Session>>) -> Result<Session, OutputError> {
        match slot.take().filter(|session| !session.is_closed()) {
            Some(session) => Ok(session),
            None => Session::open(&self.config, &self.options, &self.owner).await,
        }
    }

    /// What is there instead of what the writer believed: the same tasks, or others.
    async fn resolve(
        &self,
        session: &Session,
        tasks: &[FinalTask],
        expected_last: Option<TaskNumber>,
        receipt: Receipt,
    ) -> Result<Receipt, OutputError> {
        match session.cursor().await?.admit(&self.owner, tasks, expected_last)? {
            Admission::Compare => {
                apinode::compare(tasks, &session.ids(receipt.first, receipt.last).await?)?;
                Ok(receipt)
            }
            Admission::Append => Err(unsteady()),
        }
    }
}

impl std::fmt::Debug for PostgresOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresOutput").field("options", &self.options).field("owner", &self.owner).finish()
    }
}

/// Cuts a call into statements. Never within a task.
fn chunks<'a>(tasks: &'a [&'a FinalTask]) -> Vec<&'a [&'a FinalTask]> {
    let (mut out, mut start, mut messages, mut bytes) = (Vec::new(), 0, 0, 0);
    for (i, task) in tasks.iter().enumerate() {
        let task_bytes: usize = task.messages.iter().map(|m| m.data.len()).sum();
        let full =
            messages + task.messages.len() > MESSAGES_PER_STATEMENT_MAX || bytes + task_bytes > BYTES_PER_STATEMENT_MAX;
        if full && i > start {
            out.push(&tasks[start..i]);
            (start, messages, bytes) = (i, 0, 0);
        }
        messages += task.messages.len();
        bytes += task_bytes;
    }
    out.push(&tasks[start..]);
    out
}

/// What cannot be unless somebody else works on the same rows at this moment.
fn unsteady() -> OutputError {
    OutputError::Retryable("its cursor moved back and forth".to_owned())
}

#[async_trait]
impl Output for PostgresOutput {
    async fn publish(&self, tasks: &[FinalTask], expected_last: Option<TaskNumber>) -> Result<Receipt, OutputError> {
        let receipt = apinode::check_tasks(tasks, &self.owner, expected_last)?;
        let mut slot = self.session.lock().await;
        let session = self.session(&mut slot).await?;
        let references: Vec<&FinalTask> = tasks.iter().collect();
        let result = match session.append(&self.owner, &chunks(&references), expected_last).await? {
            true => Ok(receipt),
            false => self.resolve(&session, tasks, expected_last, receipt).await,
        };
        *slot = Some(session);
        result.map(|receipt| receipt.in_table(format!("postgres:{}", self.options.schema)))
    }

    async fn skip(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        let mut slot = self.session.lock().await;
        let session = self.session(&mut slot).await?;
        if !session.skip(&self.owner, last, expected_last).await? {
            // Already there is fine; elsewhere is an error, as is a store that is not ours.
            session.cursor().await?.may_skip(&self.owner, last, expected_last)?;
        }
        *slot = Some(session);
        Ok(())
    }

    async fn fill(&self, tasks: &[FinalTask]) -> Result<(), OutputError> {
        let range = apinode::check_fill(tasks, &self.owner)?;
        let mut slot = self.session.lock().await;
        let session = self.session(&mut slot).await?;
        for attempt in 0.. {
            let found = session.ids(range.first, range.last).await?;
            let absent = session.cursor().await?.may_fill(&self.owner, tasks, &found)?;
            if absent.is_empty() {
                break;
            }
            // Where another one filled in the same at the same time, what it left out is looked at once more.
            if attempt == FILL_ATTEMPTS_MAX {
                return Err(unsteady());
            }
            for chunk in chunks(&absent) {
                session.fill(&self.owner, chunk).await?;
            }
        }
        *slot = Some(session);
        Ok(())
    }

    async fn first_gap(
        &self,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        let mut slot = self.session.lock().await;
        let session = self.session(&mut slot).await?;
        session.cursor().await?.check_owner(&self.owner)?;
        let gap = session.first_gap(first, last).await?;
        *slot = Some(session);
        Ok(gap)
    }

    async fn last(&self) -> Result<Option<TaskNumber>, OutputError> {
        let mut slot = self.session.lock().await;
        let session = self.session(&mut slot).await?;
        let cursor = session.cursor().await?;
        *slot = Some(session);
        cursor.check_owner(&self.owner)?;
        Ok(cursor.last)
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopted, OutputError> {
        let mut slot = self.session.lock().await;
        let session = self.session(&mut slot).await?;
        let cursor = session.cursor().await?;
        let adopted = cursor.adopt(&self.owner, adoption)?;
        if adopted.from != self.owner.epoch && !session.adopt(&self.owner, &adopted).await? {
            return Err(OutputError::Retryable("somebody published to it meanwhile".to_owned()));
        }
        *slot = Some(session);
        Ok(adopted)
    }

    async fn read(&self, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        let mut slot = self.session.lock().await;
        let session = self.session(&mut slot).await?;
        let task = session.read(id).await?;
        *slot = Some(session);
        Ok(task)
    }
}
