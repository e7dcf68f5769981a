//! PostgreSQL, in the tables of either generation of readers.
//!
//! A call to publish is one statement (or one transaction of several, where it is large) that moves the cursor row by
//! compare-and-set and inserts the rows: rows of two writers never mix, and a late writer changes nothing. There is one
//! connection, made when it is first needed and again after any error.

mod aside;
mod columns;
mod ddl;
mod options;
mod reader;
mod schema;
mod session;
mod statements;
mod stored;
mod tls;

use async_trait::async_trait;
use lockstep_types::{TaskId, TaskNumber};
use tokio::sync::{Mutex, MutexGuard};

pub use self::options::{PostgresOptions, PostgresOptionsError, PostgresTimeouts};
pub use self::reader::{ReaderAccess, ReaderError, ReaderPassword, set_up_reader};
use self::session::{CallError, Session, Step};
use self::tls::Connector;
use crate::aside::SetAside;
use crate::layout::Layout;
use crate::output::{Adopted, Adoption, FinalTask, Output, OutputError, Owner, Place, Receipt};
use crate::stored::{Page, StrayMark, Strays};
use crate::tables::{self, Admission, Ours};

/// Most messages of one statement.
pub const MESSAGES_PER_STATEMENT_MAX: usize = 16_384;
/// Most payload bytes of one statement (one task may exceed it): far below PostgreSQL's 1 GiB per message and value.
pub const BYTES_PER_STATEMENT_MAX: usize = 16 << 20;
/// How often a call to fill in writes, until all is there.
const FILL_ATTEMPTS_MAX: usize = 3;
/// How often a call is made again because projects began or ceased to halt meanwhile.
const REFUSALS_ATTEMPTS_MAX: usize = 8;

/// A store in PostgreSQL.
pub struct PostgresOutput {
    options: PostgresOptions,
    connector: Connector,
    ours: Ours,
    /// The guard is held across awaits on purpose: it is the queue for the one connection.
    session: Mutex<Option<Session>>,
}

impl PostgresOutput {
    /// Checks `options`. Connects at the first call.
    pub fn new(options: PostgresOptions, owner: Owner) -> Result<Self, PostgresOptionsError> {
        let connector = options.connector()?;
        let ours = Ours { owner, layout: options.layout };
        Ok(Self { options, connector, ours, session: Mutex::new(None) })
    }

    /// Makes a role for a reader of this output, and its tables and views where they are missing: see [`set_up_reader`].
    ///
    /// # Errors
    /// See [`ReaderError`].
    pub async fn set_up_reader(
        &self,
        role: &str,
        password: Option<&ReaderPassword>,
    ) -> Result<ReaderAccess, ReaderError> {
        self.last().await.map_err(|error| ReaderError::Server(error.to_string()))?;
        set_up_reader(&self.options, role, password).await
    }

    /// Takes the session out, so that an error or a dropped future leaves no half-used one behind.
    async fn session(&self, slot: &mut MutexGuard<'_, Option<Session>>) -> Result<Session, OutputError> {
        match slot.take().filter(|session| !session.is_closed()) {
            Some(session) => Ok(session),
            None => Session::open(&self.connector, &self.options, &self.ours).await,
        }
    }

    /// Writes `tasks` after `expected_last`, or finds them there.
    async fn append(
        &self,
        slot: &mut MutexGuard<'_, Option<Session>>,
        tasks: &[FinalTask],
        expected_last: Option<TaskNumber>,
        receipt: Receipt,
    ) -> Result<Receipt, CallError> {
        let mut session = self.session(slot).await?;
        let references: Vec<&FinalTask> = tasks.iter().collect();
        let chunks = chunks(&references);
        for _ in 0..REFUSALS_ATTEMPTS_MAX {
            if session.append(&chunks, expected_last).await? {
                **slot = Some(session);
                return Ok(receipt);
            }
            let before = session.refusals;
            let cursor = session.cursor().await?;
            match cursor.admit(&self.ours, tasks, expected_last) {
                Ok(Admission::Append) if session.refusals != before => {}
                Ok(Admission::Append) => break,
                Ok(Admission::Compare) => {
                    let found = session.ids(receipt.first, receipt.last).await?;
                    **slot = Some(session);
                    tables::compare(tasks, &found, self.ours.layout, cursor.last)?;
                    return Ok(receipt);
                }
                Err(error) => {
                    **slot = Some(session);
                    return Err(error.into());
                }
            }
        }
        Err(unsteady().into())
    }

    /// The server does not say which task has the value that does not fit: gives them to it one by one.
    async fn append_singly(
        &self,
        slot: &mut MutexGuard<'_, Option<Session>>,
        tasks: &[FinalTask],
        expected_last: Option<TaskNumber>,
    ) -> Result<(), OutputError> {
        let mut last = expected_last;
        for task in tasks {
            let single = std::slice::from_ref(task);
            let receipt = tables::check_tasks(single, &self.ours.owner, last)?;
            match self.append(slot, single, last, receipt).await {
                Ok(_) => last = Some(task.number),
                Err(CallError::Value(reason)) => return Err(OutputError::Refused { task: task.number, reason }),
                Err(CallError::Output(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Moves the cursor without a task.
    async fn step(&self, step: Step, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        let mut slot = self.session.lock().await;
        let mut session = self.session(&mut slot).await?;
        for _ in 0..REFUSALS_ATTEMPTS_MAX {
            if session.step(step, last, expected_last).await? {
                *slot = Some(session);
                return Ok(());
            }
            let before = session.refusals;
            // Already there is fine; elsewhere is an error, as is a store that is not ours.
            let may = session.cursor().await?.may_skip(&self.ours, last, expected_last);
            if may == Ok(true) && session.refusals != before {
                continue;
            }
            *slot = Some(session);
            return if may? { Err(unsteady()) } else { Ok(()) };
        }
        Err(unsteady())
    }
}

impl std::fmt::Debug for PostgresOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresOutput").field("options", &self.options).field("owner", &self.ours.owner).finish()
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
    fn layout(&self) -> Layout {
        self.ours.layout
    }

    fn aside(&self) -> Option<&dyn SetAside> {
        Some(self)
    }

    async fn publish(&self, tasks: &[FinalTask], expected_last: Option<TaskNumber>) -> Result<Receipt, OutputError> {
        let receipt = tables::check_tasks(tasks, &self.ours.owner, expected_last)?;
        let mut slot = self.session.lock().await;
        let receipt = match self.append(&mut slot, tasks, expected_last, receipt.clone()).await {
            Ok(receipt) => receipt,
            Err(CallError::Output(error)) => return Err(error),
            Err(CallError::Value(_)) => {
                self.append_singly(&mut slot, tasks, expected_last).await?;
                receipt
            }
        };
        Ok(receipt.in_table(format!("postgres:{}", self.options.schema)))
    }

    async fn skip(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        self.step(Step::Skip, last, expected_last).await
    }

    async fn pass(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        self.step(Step::Pass, last, expected_last).await
    }

    async fn fill(&self, tasks: &[FinalTask]) -> Result<(), OutputError> {
        let range = tables::check_fill(tasks, &self.ours.owner)?;
        let mut slot = self.session.lock().await;
        let mut session = self.session(&mut slot).await?;
        for attempt in 0.. {
            let (found, halts) = (session.ids(range.first, range.last).await?, session.halts().await?);
            let absent = session.cursor().await?.may_fill(&self.ours, tasks, &found, &halts)?;
            if absent.is_empty() {
                break;
            }
            // Where another one filled in the same at the same time, what it left out is looked at once more.
            if attempt == FILL_ATTEMPTS_MAX {
                return Err(unsteady());
            }
            for chunk in chunks(&absent) {
                session.fill(chunk).await.map_err(|error| match (error, chunk) {
                    (CallError::Value(reason), [task]) => OutputError::Refused { task: task.number, reason },
                    (error, _) => error.into(),
                })?;
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
        let mut session = self.session(&mut slot).await?;
        session.cursor().await?.check_owner(&self.ours)?;
        let gap = session.first_gap(first, last).await?;
        *slot = Some(session);
        Ok(gap)
    }

    async fn complete(&self, first: TaskNumber, last: TaskNumber) -> Result<(), OutputError> {
        let mut slot = self.session.lock().await;
        let mut session = self.session(&mut slot).await?;
        session.cursor().await?.check_owner(&self.ours)?;
        session.complete(first, last).await?;
        *slot = Some(session);
        Ok(())
    }

    async fn last(&self) -> Result<Option<TaskNumber>, OutputError> {
        let mut slot = self.session.lock().await;
        let mut session = self.session(&mut slot).await?;
        let cursor = session.cursor().await?;
        *slot = Some(session);
        cursor.check_owner(&self.ours)?;
        Ok(cursor.last)
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopted, OutputError> {
        let mut slot = self.session.lock().await;
        let mut session = self.session(&mut slot).await?;
        let adopted = session.cursor().await?.adopt(&self.ours, adoption)?;
        if adopted.from != self.ours.owner.epoch && !session.adopt(&adopted).await? {
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

    async fn stored(&self, first: TaskNumber, max: usize, _places: &[Place]) -> Result<Page, OutputError> {
        let mut slot = self.session.lock().await;
        let mut session = self.session(&mut slot).await?;
        session.cursor().await?.check_owner(&self.ours)?;
        let page = session.stored(first, max).await?;
        *slot = Some(session);
        Ok(page)
    }

    async fn strays(&self, after: Option<&StrayMark>) -> Result<Strays, OutputError> {
        let mut slot = self.session.lock().await;
        let session = self.session(&mut slot).await?;
        let strays = session.strays(after).await?;
        *slot = Some(session);
        Ok(strays)
    }
}
