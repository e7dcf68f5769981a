//! One connection with its prepared statements. Any error ends it: the server then rolls back what was open.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockstep_types::{TaskId, TaskNumber};
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Error, NoTls, Statement};

use super::columns::Columns;
use super::options::PostgresOptions;
use super::schema::{self, SetupError};
use crate::apinode::{self, Cursor, LAYOUT, MessageRow, TaskRow};
use crate::output::{Adopted, FinalTask, OutputError, Owner};

/// How much later than the server's own limit we stop to wait for a statement.
const GRACE: Duration = Duration::from_secs(5);

/// Cursor and rows in one statement: it either happens whole or not at all, and nothing stays open between the client's
/// words. A COPY could not be ended by a time limit while the server waits for a paused client's data.
const APPEND: &str = r#"
WITH moved AS (
  UPDATE {s}."lockstep_cursor" SET "last_task" = $4, "last_task_id" = $5
  WHERE "layout" = '{layout}' AND "network" = $1 AND "epoch" = $2 AND "last_task" IS NOT DISTINCT FROM $3
  RETURNING 1
), new_messages AS (
  INSERT INTO {s}."messages"
    ("id", "created_at", "updated_at", "device_id", "project_id", "project_version", "task_id", "data")
  SELECT id, at, at, device, project, version, task, data
  FROM unnest($6::bigint[], $7::timestamptz[], $8::bytea[], $9::bigint[], $10::text[], $11::bytea[], $12::bytea[])
    AS row (id, at, device, project, version, task, data)
  WHERE EXISTS (SELECT 1 FROM moved)
), new_tasks AS (
  INSERT INTO {s}."tasks" ("id", "created_at", "updated_at", "task_id", "project_id", "message_ids", "signature")
  SELECT id, at, at, task, project, messages::jsonb, signature
  FROM unnest($13::bigint[], $14::timestamptz[], $15::bytea[], $16::bigint[], $17::text[], $18::bytea[])
    AS row (id, at, task, project, messages, signature)
  WHERE EXISTS (SELECT 1 FROM moved)
)
SELECT 1 FROM moved"#;
/// As [`APPEND`], below the cursor. A task that is there already is left alone, with its messages.
const FILL: &str = r#"
WITH new_tasks AS (
  INSERT INTO {s}."tasks" ("id", "created_at", "updated_at", "task_id", "project_id", "message_ids", "signature")
  SELECT id, at, at, task, project, messages::jsonb, signature
  FROM unnest($11::bigint[], $12::timestamptz[], $13::bytea[], $14::bigint[], $15::text[], $16::bytea[])
    AS row (id, at, task, project, messages, signature)
  WHERE EXISTS (
    SELECT 1 FROM {s}."lockstep_cursor"
    WHERE "layout" = '{layout}' AND "network" = $1 AND "epoch" = $2 AND "last_task" >= $3
  )
  ON CONFLICT ("id") DO NOTHING
  RETURNING "task_id" AS filled
)
INSERT INTO {s}."messages"
  ("id", "created_at", "updated_at", "device_id", "project_id", "project_version", "task_id", "data")
SELECT id, at, at, device, project, version, task, data
FROM unnest($4::bigint[], $5::timestamptz[], $6::bytea[], $7::bigint[], $8::text[], $9::bytea[], $10::bytea[])
  AS row (id, at, device, project, version, task, data)
WHERE task IN (SELECT filled FROM new_tasks)"#;
const NEXT_ID: &str = r#"SELECT min("id") FROM {s}."tasks" WHERE "id" BETWEEN $1 AND $2"#;
/// The last number of the run of tasks that begins with the first of a range.
const END_OF_RUN: &str = r#"
SELECT "id" FROM {s}."tasks" AS run WHERE "id" BETWEEN $1 AND $2
  AND NOT EXISTS (SELECT 1 FROM {s}."tasks" AS next WHERE next."id" = run."id" + 1)
ORDER BY "id" LIMIT 1"#;
const CURSOR: &str = r#"SELECT "layout", "network", "epoch", "last_task" FROM {s}."lockstep_cursor""#;
const SKIP: &str = r#"
UPDATE {s}."lockstep_cursor" SET "last_task" = $4, "last_task_id" = NULL
WHERE "layout" = '{layout}' AND "network" = $1 AND "epoch" = $2 AND "last_task" IS NOT DISTINCT FROM $3"#;
const ADOPT: &str = r#"
UPDATE {s}."lockstep_cursor" SET "epoch" = $3
WHERE "layout" = '{layout}' AND "network" = $1 AND "epoch" = $2 AND "last_task" IS NOT DISTINCT FROM $4"#;
const IDS: &str = r#"SELECT "id", "task_id" FROM {s}."tasks" WHERE "id" BETWEEN $1 AND $2 ORDER BY "id""#;
const TASK: &str = r#"
SELECT "id", "project_id", "created_at", "message_ids"::text, "signature" FROM {s}."tasks" WHERE "task_id" = $1"#;
const MESSAGES: &str = r#"
SELECT "id", "project_version", "device_id", "data" FROM {s}."messages" WHERE "task_id" = $1 ORDER BY "id""#;

pub(super) struct Session {
    client: Client,
    patience: Duration,
    append: Statement,
    fill: Statement,
    next_id: Statement,
    end_of_run: Statement,
    cursor: Statement,
    skip: Statement,
    adopt: Statement,
    ids: Statement,
    task: Statement,
    messages: Statement,
}

impl Session {
    /// Connects, creates what is missing, and prepares.
    pub(super) async fn open(config: &Config, options: &PostgresOptions, owner: &Owner) -> Result<Self, OutputError> {
        let opening = async {
            let (mut client, connection) = config.connect(NoTls).await?;
            // Ends when the client is dropped. Its error is also the error of the call that met it.
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(error = %describe(&error), "connection to PostgreSQL ended");
                }
            });
            client.batch_execute(&options.session_settings()).await?;
            schema::set_up(&mut client, options, owner).await?;
            let text = |sql: &str| sql.replace("{s}", &format!("\"{}\"", options.schema)).replace("{layout}", LAYOUT);
            Ok(Self {
                patience: options.timeouts.statement + GRACE,
                append: client.prepare(&text(APPEND)).await?,
                fill: client.prepare(&text(FILL)).await?,
                next_id: client.prepare(&text(NEXT_ID)).await?,
                end_of_run: client.prepare(&text(END_OF_RUN)).await?,
                cursor: client.prepare(&text(CURSOR)).await?,
                skip: client.prepare(&text(SKIP)).await?,
                adopt: client.prepare(&text(ADOPT)).await?,
                ids: client.prepare(&text(IDS)).await?,
                task: client.prepare(&text(TASK)).await?,
                messages: client.prepare(&text(MESSAGES)).await?,
                client,
            })
        };
        match timeout(options.timeouts.connect, opening).await {
            Ok(Ok(session)) => Ok(session),
            Ok(Err(SetupError::Store(error))) => Err(error),
            Ok(Err(SetupError::Postgres(error))) => Err(retryable(&error)),
            Err(_) => Err(OutputError::Retryable("no connection within the time limit".to_owned())),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    pub(super) async fn cursor(&self) -> Result<Cursor, OutputError> {
        let row = self.wait(self.client.query_opt(&self.cursor, &[])).await?;
        let row = row.ok_or_else(|| OutputError::Retryable("its cursor row is missing".to_owned()))?;
        let last = row.get::<_, Option<i64>>(3).map(apinode::id_from_column).transpose()?;
        Ok(Cursor { layout: row.get(0), network: row.get(1), epoch: row.get(2), last: last.map(TaskNumber) })
    }

    /// Moves the cursor over tasks that never come. `false`: it is elsewhere.
    pub(super) async fn skip(
        &self,
        owner: &Owner,
        last: TaskNumber,
        expected_last: Option<TaskNumber>,
    ) -> Result<bool, OutputError> {
        let network = apinode::network_column(&owner.network);
        let (epoch, to) = (apinode::epoch_column(owner.epoch), apinode::id_column(last.0));
        let expected = expected_last.map(|last| apinode::id_column(last.0));
        Ok(self.wait(self.client.execute(&self.skip, &[&network, &epoch, &expected, &to])).await? == 1)
    }

    /// Moves the cursor from the epoch that it was found in to the owner's. `false`: it is elsewhere by now.
    pub(super) async fn adopt(&self, owner: &Owner, found: &Adopted) -> Result<bool, OutputError> {
        let network = apinode::network_column(&owner.network);
        let (from, to) = (apinode::epoch_column(found.from), apinode::epoch_column(owner.epoch));
        let last = found.last.map(|last| apinode::id_column(last.0));
        Ok(self.wait(self.client.execute(&self.adopt, &[&network, &from, &to, &last])).await? == 1)
    }

    /// Writes `chunks` after `expected_last`, all or nothing. `false`: the cursor is elsewhere, nothing was written.
    pub(super) async fn append(
        &self,
        owner: &Owner,
        chunks: &[&[&FinalTask]],
        expected_last: Option<TaskNumber>,
    ) -> Result<bool, OutputError> {
        if let [chunk] = chunks {
            return self.append_chunk(owner, chunk, expected_last).await;
        }
        self.wait(self.client.batch_execute("BEGIN")).await?;
        let mut last = expected_last;
        for chunk in chunks {
            if !self.append_chunk(owner, chunk, last).await? {
                self.wait(self.client.batch_execute("ROLLBACK")).await?;
                return Ok(false);
            }
            last = chunk.last().map(|task| task.number).or(last);
        }
        self.wait(self.client.batch_execute("COMMIT")).await?;
        Ok(true)
    }

    async fn append_chunk(
        &self,
        owner: &Owner,
        tasks: &[&FinalTask],
        expected: Option<TaskNumber>,
    ) -> Result<bool, OutputError> {
        let Some(last) = tasks.last() else { return Ok(true) };
        let columns = Columns::of(tasks);
        let network = apinode::network_column(&owner.network);
        let epoch = apinode::epoch_column(owner.epoch);
        let expected = expected.map(|number| apinode::id_column(number.0));
        let (last_number, last_id) = (apinode::id_column(last.number.0), &last.id.0[..]);
        let mut values: Vec<&(dyn ToSql + Sync)> = vec![&network, &epoch, &expected, &last_number, &last_id];
        values.extend(columns.values());
        Ok(self.wait(self.client.query_opt(&self.append, &values)).await?.is_some())
    }

    /// Inserts those of `tasks` that are not there, where the cursor is the owner's and at or past the last of them.
    pub(super) async fn fill(&self, owner: &Owner, tasks: &[&FinalTask]) -> Result<(), OutputError> {
        let Some(last) = tasks.last() else { return Ok(()) };
        let columns = Columns::of(tasks);
        let network = apinode::network_column(&owner.network);
        let (epoch, last) = (apinode::epoch_column(owner.epoch), apinode::id_column(last.number.0));
        let mut values: Vec<&(dyn ToSql + Sync)> = vec![&network, &epoch, &last];
        values.extend(columns.values());
        self.wait(self.client.execute(&self.fill, &values)).await.map(drop)
    }

    /// See [`crate::Output::first_gap`].
    pub(super) async fn first_gap(
        &self,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        if first > last {
            return Ok(None);
        }
        let (mut start, mut next) = (first, self.ask(&self.next_id, first, last).await?);
        if next == Some(first) {
            start = match self.ask(&self.end_of_run, first, last).await? {
                Some(end) if end < last => end.next(),
                _ => return Ok(None),
            };
            next = self.ask(&self.next_id, start, last).await?;
        }
        Ok(Some((start, next.map_or(last, |next| TaskNumber(next.0 - 1)))))
    }

    /// Asks for one number about a range.
    async fn ask(
        &self,
        statement: &Statement,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<TaskNumber>, OutputError> {
        let (first, last) = (apinode::id_column(first.0), apinode::id_column(last.0));
        let row = self.wait(self.client.query_opt(statement, &[&first, &last])).await?;
        let found = row.and_then(|row| row.get::<_, Option<i64>>(0));
        Ok(found.map(apinode::id_from_column).transpose()?.map(TaskNumber))
    }

    /// Numbers and ids of the tasks that are there between `first` and `last`.
    pub(super) async fn ids(&self, first: TaskNumber, last: TaskNumber) -> Result<Vec<(i64, Vec<u8>)>, OutputError> {
        let (first, last) = (apinode::id_column(first.0), apinode::id_column(last.0));
        let rows = self.wait(self.client.query(&self.ids, &[&first, &last])).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get::<_, Option<Vec<u8>>>(1).unwrap_or_default())).collect())
    }

    pub(super) async fn read(&self, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        let Some(row) = self.wait(self.client.query_opt(&self.task, &[&id.as_bytes()])).await? else {
            return Ok(None);
        };
        let at: SystemTime = row.try_get(2).map_err(|_| apinode::damaged("created_at"))?;
        let since = at.duration_since(UNIX_EPOCH).map_err(|_| apinode::damaged("created_at"))?;
        let task = TaskRow {
            number: row.get(0),
            project_id: row.try_get(1).map_err(|_| apinode::damaged("project_id"))?,
            time_ms: i64::try_from(since.as_millis()).map_err(|_| apinode::damaged("created_at"))?,
            message_ids: row.get(3),
            signature: row.get(4),
        };
        let rows = self.wait(self.client.query(&self.messages, &[&id.as_bytes()])).await?;
        let message = |row: tokio_postgres::Row| {
            Ok(MessageRow {
                sequence: row.try_get(0)?,
                project_version: row.try_get(1)?,
                device: row.try_get(2)?,
                data: row.try_get(3)?,
            })
        };
        let messages = rows.into_iter().map(message).collect::<Result<_, Error>>();
        apinode::assemble(id, task, messages.map_err(|_| apinode::damaged("a NULL in messages"))?).map(Some)
    }

    /// Waits a little longer than the server should take: it may be gone without a word.
    async fn wait<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, OutputError> {
        match timeout(self.patience, answer).await {
            Ok(answer) => answer.map_err(|error| classify(&error)),
            Err(_) => Err(OutputError::Retryable("no answer within the time limit".to_owned())),
        }
    }
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

/// The server's sentence without its details, which quote rows, and so payloads.
fn describe(error: &Error) -> String {
    if let Some(database) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", database.message(), database.code().code());
    }
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
