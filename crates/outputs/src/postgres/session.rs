//! One connection with its prepared statements. Any error ends it: the server then rolls back what was open.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockstep_types::{ProjectId, TaskId, TaskNumber};
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Statement};

use super::columns::Columns;
use super::options::PostgresOptions;
use super::schema::{self, SetupError};
use super::statements::Statements;
use super::tls::Connector;
use crate::layout::Layout;
use crate::output::{Adopted, FinalTask, OutputError};
use crate::tables::{self, Cursor, Halt, MessageRow, Ours, TaskRow};

/// How much later than the server's own limit we stop to wait for a statement.
const GRACE: Duration = Duration::from_secs(5);

/// Why a call with rows failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// The server says that a value does not fit, but not which.
    Value(String),
    /// As for any call.
    Output(OutputError),
}

impl From<OutputError> for CallError {
    fn from(error: OutputError) -> Self {
        Self::Output(error)
    }
}

impl From<CallError> for OutputError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Value(reason) => Self::Retryable(reason),
            CallError::Output(error) => error,
        }
    }
}

/// Where a cursor goes without a task being published.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// Over tasks that are lost.
    Skip,
    /// Over tasks that are for others.
    Pass,
}

pub(super) struct Session {
    pub(super) client: Client,
    patience: Duration,
    pub(super) ours: Ours,
    pub(super) statements: Statements,
    /// Of the cursor row, when it was last looked at: other nodes change it.
    pub(super) refusals: i64,
}

impl Session {
    /// Connects, creates what is missing, and prepares.
    pub(super) async fn open(
        connector: &Connector,
        options: &PostgresOptions,
        ours: &Ours,
    ) -> Result<Self, OutputError> {
        let opening = async {
            let mut client = connector.connect().await?;
            client.batch_execute(&options.session_settings()).await?;
            schema::set_up(&mut client, options, ours).await?;
            let statements = Statements::prepare(&client, &options.schema, ours.layout).await?;
            let patience = options.timeouts.statement + GRACE;
            Ok(Self { client, patience, ours: *ours, statements, refusals: 0 })
        };
        let mut session = match timeout(options.timeouts.connect, opening).await {
            Ok(Ok(session)) => session,
            Ok(Err(SetupError::Store(error))) => return Err(error),
            Ok(Err(SetupError::Postgres(error))) => return Err(retryable(&error)),
            Err(_) => return Err(OutputError::Retryable("no connection within the time limit".to_owned())),
        };
        session.cursor().await?;
        Ok(session)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    pub(super) async fn cursor(&mut self) -> Result<Cursor, OutputError> {
        let row = self.wait(self.client.query_opt(&self.statements.cursor, &[])).await?;
        let row = row.ok_or_else(|| OutputError::Retryable("its cursor row is missing".to_owned()))?;
        let last = row.get::<_, Option<i64>>(3).map(tables::id_from_column).transpose()?;
        self.refusals = row.get(4);
        Ok(Cursor { layout: row.get(0), network: row.get(1), epoch: row.get(2), last: last.map(TaskNumber) })
    }

    /// Moves the cursor without a task. `false`: it is elsewhere.
    pub(super) async fn step(
        &self,
        step: Step,
        last: TaskNumber,
        expected_last: Option<TaskNumber>,
    ) -> Result<bool, OutputError> {
        let owner = &self.ours.owner;
        let network = tables::network_column(&owner.network);
        let (epoch, to) = (tables::epoch_column(owner.epoch), tables::id_column(last.0));
        let expected = expected_last.map(|last| tables::id_column(last.0));
        let first = tables::id_column(owner.next(expected_last).0);
        let mut values: Vec<&(dyn ToSql + Sync)> = vec![&network, &epoch, &expected, &self.refusals, &to];
        let statement = match step {
            Step::Skip => {
                values.push(&first);
                &self.statements.skip
            }
            Step::Pass => &self.statements.pass,
        };
        Ok(self.wait(self.client.execute(statement, &values)).await? == 1)
    }

    /// Moves the cursor from the epoch that it was found in to the owner's. `false`: it is elsewhere by now.
    pub(super) async fn adopt(&self, found: &Adopted) -> Result<bool, OutputError> {
        let network = tables::network_column(&self.ours.owner.network);
        let (from, to) = (tables::epoch_column(found.from), tables::epoch_column(self.ours.owner.epoch));
        let last = found.last.map(|last| tables::id_column(last.0));
        Ok(self.wait(self.client.execute(&self.statements.adopt, &[&network, &from, &to, &last])).await? == 1)
    }

    /// Writes `chunks` after `expected_last`, all or nothing. `false`: the cursor is elsewhere, nothing was written.
    pub(super) async fn append(
        &self,
        chunks: &[&[&FinalTask]],
        expected_last: Option<TaskNumber>,
    ) -> Result<bool, CallError> {
        if let [chunk] = chunks {
            return self.append_chunk(chunk, expected_last).await;
        }
        self.wait(self.client.batch_execute("BEGIN")).await?;
        let mut last = expected_last;
        for chunk in chunks {
            if !self.append_chunk(chunk, last).await? {
                self.wait(self.client.batch_execute("ROLLBACK")).await?;
                return Ok(false);
            }
            last = chunk.last().map(|task| task.number).or(last);
        }
        self.wait(self.client.batch_execute("COMMIT")).await?;
        Ok(true)
    }

    async fn append_chunk(&self, tasks: &[&FinalTask], expected: Option<TaskNumber>) -> Result<bool, CallError> {
        let Some(last) = tasks.last() else { return Ok(true) };
        let columns = Columns::of(tasks, self.ours.layout);
        let network = tables::network_column(&self.ours.owner.network);
        let epoch = tables::epoch_column(self.ours.owner.epoch);
        let expected = expected.map(|number| tables::id_column(number.0));
        let (last_number, last_id) = (tables::id_column(last.number.0), &last.id.0[..]);
        let mut values: Vec<&(dyn ToSql + Sync)> =
            vec![&network, &epoch, &expected, &self.refusals, &last_number, &last_id];
        values.extend(columns.values());
        Ok(self.call(self.client.query_opt(&self.statements.append, &values)).await?.is_some())
    }

    /// Inserts those of `tasks` that are not there, where the cursor is the owner's and at or past the last of them.
    pub(super) async fn fill(&self, tasks: &[&FinalTask]) -> Result<(), CallError> {
        let Some(last) = tasks.last() else { return Ok(()) };
        let columns = Columns::of(tasks, self.ours.layout);
        let network = tables::network_column(&self.ours.owner.network);
        let (epoch, last) = (tables::epoch_column(self.ours.owner.epoch), tables::id_column(last.number.0));
        let mut values: Vec<&(dyn ToSql + Sync)> = vec![&network, &epoch, &last];
        values.extend(columns.values());
        self.call(self.client.execute(&self.statements.fill, &values)).await.map(drop)
    }

    /// Projects that halt; none where the layout lets them go on.
    pub(super) async fn halts(&self) -> Result<Vec<Halt>, OutputError> {
        if !self.ours.layout.halts() {
            return Ok(Vec::new());
        }
        let rows = self.wait(self.client.query(&self.statements.halts, &[])).await?;
        let halt = |row: &tokio_postgres::Row| {
            let (project, from) = (tables::id_from_column(row.get(0))?, tables::id_from_column(row.get(1))?);
            Ok((ProjectId(project), TaskNumber(from)))
        };
        rows.iter().map(halt).collect()
    }

    /// See [`crate::Output::first_gap`].
    pub(super) async fn first_gap(
        &self,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        let mut next = first;
        while let Some((from, to)) = self.next_skipped(next, last).await? {
            let (from, to) = (from.max(next), to.min(last));
            if let Some(gap) = self.first_absent(from, to).await? {
                return Ok(Some(gap));
            }
            next = to.next();
        }
        Ok(None)
    }

    /// The first run of numbers that were skipped, of those that touch a range.
    async fn next_skipped(
        &self,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        if first > last {
            return Ok(None);
        }
        let (first, last) = (tables::id_column(first.0), tables::id_column(last.0));
        let row = self.wait(self.client.query_opt(&self.statements.next_skipped, &[&first, &last])).await?;
        let Some(row) = row else { return Ok(None) };
        let (from, to) = (tables::id_from_column(row.get(0))?, tables::id_from_column(row.get(1))?);
        Ok(Some((TaskNumber(from), TaskNumber(to))))
    }

    /// The first run of numbers without a task.
    async fn first_absent(
        &self,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        let (mut start, mut next) = (first, self.ask(&self.statements.next_id, first, last).await?);
        if next == Some(first) {
            start = match self.ask(&self.statements.end_of_run, first, last).await? {
                Some(end) if end < last => end.next(),
                _ => return Ok(None),
            };
            next = self.ask(&self.statements.next_id, start, last).await?;
        }
        Ok(Some((start, next.map_or(last, |next| TaskNumber(next.0 - 1)))))
    }

    /// See [`crate::Output::complete`].
    pub(super) async fn complete(&self, first: TaskNumber, last: TaskNumber) -> Result<(), OutputError> {
        let (first, last) = (tables::id_column(first.0), tables::id_column(last.0));
        self.wait(self.client.execute(&self.statements.complete, &[&first, &last])).await.map(drop)
    }

    /// Asks for one number about a range.
    async fn ask(
        &self,
        statement: &Statement,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<TaskNumber>, OutputError> {
        let (first, last) = (tables::id_column(first.0), tables::id_column(last.0));
        let row = self.wait(self.client.query_opt(statement, &[&first, &last])).await?;
        let found = row.and_then(|row| row.get::<_, Option<i64>>(0));
        Ok(found.map(tables::id_from_column).transpose()?.map(TaskNumber))
    }

    /// Numbers and ids of the tasks that are there between `first` and `last`.
    pub(super) async fn ids(&self, first: TaskNumber, last: TaskNumber) -> Result<Vec<(i64, Vec<u8>)>, OutputError> {
        let (first, last) = (tables::id_column(first.0), tables::id_column(last.0));
        let rows = self.wait(self.client.query(&self.statements.ids, &[&first, &last])).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get::<_, Option<Vec<u8>>>(1).unwrap_or_default())).collect())
    }

    pub(super) async fn read(&self, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        let layout = self.ours.layout;
        let Some(row) = self.find(&self.statements.task, id).await?.into_iter().next() else {
            return Ok(None);
        };
        let at: SystemTime = row.try_get(2).map_err(|_| tables::damaged("created_at"))?;
        let since = at.duration_since(UNIX_EPOCH).map_err(|_| tables::damaged("created_at"))?;
        let task = TaskRow {
            number: row.get(0),
            project_id: row.try_get(1).map_err(|_| tables::damaged("project_id"))?,
            time_ms: i64::try_from(since.as_millis()).map_err(|_| tables::damaged("created_at"))?,
            message_ids: row.get(3),
            signature: row.try_get(4).map_err(|_| tables::damaged("signature"))?,
        };
        let rows = self.find(&self.statements.messages, id).await?;
        let message = |row: tokio_postgres::Row| {
            Ok(MessageRow {
                sequence: row.try_get(0)?,
                name: row.try_get(1)?,
                project_version: row.try_get(2)?,
                device: row.try_get(3)?,
                data: row.try_get(4)?,
            })
        };
        let messages = rows.into_iter().map(message).collect::<Result<_, Error>>();
        tables::assemble(layout, id, task, messages.map_err(|_| tables::damaged("a NULL in messages"))?).map(Some)
    }

    /// Rows of a task by its id.
    async fn find(&self, statement: &Statement, id: &TaskId) -> Result<Vec<tokio_postgres::Row>, OutputError> {
        let text = id.to_string();
        let column: &(dyn ToSql + Sync) = match self.ours.layout {
            Layout::Apinode => &id.as_bytes(),
            Layout::Sprout => &text,
        };
        self.wait(self.client.query(statement, &[column])).await
    }

    /// As [`Session::wait`], and tells values that do not fit from what may pass.
    pub(super) async fn call<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, CallError> {
        let patient = async {
            let answer = answer.await;
            Ok(answer.map_err(|error| match refused_value(&error) {
                Some(reason) => CallError::Value(reason),
                None => CallError::Output(classify(&error)),
            }))
        };
        self.wait(patient).await?
    }

    /// Waits a little longer than the server should take: it may be gone without a word.
    pub(super) async fn wait<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, OutputError> {
        match timeout(self.patience, answer).await {
            Ok(answer) => answer.map_err(|error| classify(&error)),
            Err(_) => Err(OutputError::Retryable("no answer within the time limit".to_owned())),
        }
    }
}

/// What the server says of a value that it can never take: a data exception, or a limit of its own. Its sentence only.
fn refused_value(error: &Error) -> Option<String> {
    let code = error.as_db_error()?.code().code();
    (code.starts_with("22") || code.starts_with("54")).then(|| describe(error))
}

/// Integrity errors mean rows that the cursor does not know of; all others may pass, some with an operator's help.
fn classify(error: &Error) -> OutputError {
    match error.as_db_error() {
        Some(database) if database.code().code().starts_with("23") => {
            let constraint = database.constraint().unwrap_or("unknown");
            OutputError::Foreign(format!("rows that Lockstep did not write are in the way (constraint {constraint})"))
        }
        _ => retryable(error),
    }
}

fn retryable(error: &Error) -> OutputError {
    OutputError::Retryable(describe(error))
}

/// Whether the user of the connection may not do this.
pub(super) fn is_denied(error: &Error) -> bool {
    error.as_db_error().is_some_and(|database| database.code().code() == "42501")
}

/// The server's sentence without its details, which quote rows, and so payloads.
pub(super) fn describe(error: &Error) -> String {
    if let Some(database) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", database.message(), database.code().code());
    }
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
