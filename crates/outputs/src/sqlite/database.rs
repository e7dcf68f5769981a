//! The open file: its tables, and what is done with them. Everything here blocks.

use std::thread;
use std::time::{Duration, Instant};

use lockstep_types::{TaskId, TaskNumber};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params};

use super::SqliteOptions;
use crate::apinode::{self, Admission, Cursor, LAYOUT, MessageRow, TaskRow};
use crate::output::{Adopted, Adoption, FinalTask, OutputError, Owner, Receipt};

/// Room for every statement of this file.
const CACHED_STATEMENTS_MAX: usize = 16;
/// Page cache in KiB. Task ids are hashes, so inserts touch index pages all over the file.
const CACHE_KIB: i64 = 16 << 10;
/// Pages of 4 KiB in the write-ahead log before it is copied into the file: many calls change the same index pages, which
/// are then copied once.
const CHECKPOINT_PAGES: i64 = 16_384;
/// Between two tries to change the journal mode, for which SQLite does not wait by itself.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// The reference's tables and indexes, in the types that its own library gives them in SQLite.
const DDL: &str = r#"
CREATE TABLE IF NOT EXISTS "messages" ("id" integer PRIMARY KEY, "created_at" datetime, "updated_at" datetime,
  "deleted_at" datetime, "device_id" blob, "project_id" integer, "project_version" text, "task_id" blob, "data" blob);
CREATE INDEX IF NOT EXISTS "task_id" ON "messages" ("task_id");
CREATE INDEX IF NOT EXISTS "message_fetch" ON "messages" ("device_id", "project_id", "project_version");
CREATE INDEX IF NOT EXISTS "idx_messages_deleted_at" ON "messages" ("deleted_at");
CREATE TABLE IF NOT EXISTS "tasks" ("id" integer PRIMARY KEY, "created_at" datetime, "updated_at" datetime,
  "deleted_at" datetime, "task_id" blob, "project_id" integer, "message_ids" JSON NOT NULL, "signature" blob NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS "task_uniq" ON "tasks" ("task_id", "project_id");
CREATE INDEX IF NOT EXISTS "idx_tasks_deleted_at" ON "tasks" ("deleted_at");
CREATE TABLE IF NOT EXISTS "assigned_tasks" ("id" integer PRIMARY KEY, "created_at" datetime, "updated_at" datetime,
  "deleted_at" datetime, "task_id" blob, "project_id" integer, "prover" blob);
CREATE UNIQUE INDEX IF NOT EXISTS "assigned_task_uniq" ON "assigned_tasks" ("task_id", "project_id");
CREATE INDEX IF NOT EXISTS "idx_assigned_tasks_deleted_at" ON "assigned_tasks" ("deleted_at");
CREATE TABLE IF NOT EXISTS "settled_tasks" ("id" integer PRIMARY KEY, "created_at" datetime, "updated_at" datetime,
  "deleted_at" datetime, "task_id" blob, "project_id" integer, "tx" blob NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS "settled_task_uniq" ON "settled_tasks" ("task_id", "project_id");
CREATE INDEX IF NOT EXISTS "idx_settled_tasks_deleted_at" ON "settled_tasks" ("deleted_at");
CREATE TABLE IF NOT EXISTS "lockstep_cursor" ("only_row" integer PRIMARY KEY CHECK ("only_row" = 1),
  "layout" text NOT NULL, "network" blob NOT NULL, "epoch" integer NOT NULL,
  "last_task" integer, "last_task_id" blob);
CREATE VIEW IF NOT EXISTS "reader_messages" AS SELECT * FROM "messages" ORDER BY "id";
CREATE VIEW IF NOT EXISTS "reader_tasks" AS SELECT * FROM "tasks" ORDER BY "id";
"#;

const CURSOR: &str = r#"SELECT "layout", "network", "epoch", "last_task" FROM "lockstep_cursor""#;
const INSERT_MESSAGE: &str = r#"
INSERT INTO "messages" ("id", "created_at", "updated_at", "device_id", "project_id", "project_version", "task_id", "data")
VALUES (?1, ?2, ?2, ?3, ?4, ?5, ?6, ?7)"#;
const INSERT_TASK: &str = r#"
INSERT INTO "tasks" ("id", "created_at", "updated_at", "task_id", "project_id", "message_ids", "signature")
VALUES (?1, ?2, ?2, ?3, ?4, ?5, ?6)"#;
const MOVE_CURSOR: &str = r#"UPDATE "lockstep_cursor" SET "last_task" = ?1, "last_task_id" = ?2"#;
const MOVE_EPOCH: &str = r#"UPDATE "lockstep_cursor" SET "epoch" = ?1"#;
/// The form that the reference's library writes and reads, in UTC.
const TIME_TEXT: &str = "SELECT strftime('%Y-%m-%d %H:%M:%f+00:00', ?1 / 1000.0, 'unixepoch')";
const IDS: &str = r#"SELECT "id", "task_id" FROM "tasks" WHERE "id" BETWEEN ?1 AND ?2 ORDER BY "id""#;
const NEXT_ID: &str = r#"SELECT min("id") FROM "tasks" WHERE "id" BETWEEN ?1 AND ?2"#;
/// The last number of the run of tasks that begins with the first of a range.
const END_OF_RUN: &str = r#"
SELECT "id" FROM "tasks" WHERE "id" BETWEEN ?1 AND ?2
  AND NOT EXISTS (SELECT 1 FROM "tasks" AS "next" WHERE "next"."id" = "tasks"."id" + 1)
ORDER BY "id" LIMIT 1"#;
const TASK: &str = r#"
SELECT "id", "project_id", CAST(round(unixepoch("created_at", 'subsec') * 1000) AS integer), "message_ids", "signature"
FROM "tasks" WHERE "task_id" = ?1"#;
const MESSAGES: &str = r#"
SELECT "id", "project_version", "device_id", "data" FROM "messages" WHERE "task_id" = ?1 ORDER BY "id""#;

#[derive(Debug)]
pub(super) struct Database {
    connection: Connection,
}

impl Database {
    /// Opens the file and creates what is missing.
    pub(super) fn open(options: &SqliteOptions, owner: &Owner) -> Result<Self, OutputError> {
        let mut connection = Connection::open(&options.path).map_err(classify)?;
        connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS_MAX);
        connection.busy_timeout(options.busy_timeout).map_err(classify)?;
        use_write_ahead_log(&connection, options.busy_timeout)?;
        // A receipt promises that the rows survive a power loss.
        connection.pragma_update(None, "synchronous", "FULL").map_err(classify)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB).map_err(classify)?;
        connection
            .pragma_update_and_check(None, "wal_autocheckpoint", CHECKPOINT_PAGES, |_| Ok(()))
            .map_err(classify)?;

        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(classify)?;
        set_up(&transaction, owner)?;
        transaction.commit().map_err(classify)?;
        Ok(Self { connection })
    }

    pub(super) fn cursor(&self) -> Result<Cursor, OutputError> {
        cursor(&self.connection)
    }

    pub(super) fn publish(
        &mut self,
        owner: &Owner,
        tasks: &[FinalTask],
        expected_last: Option<TaskNumber>,
    ) -> Result<Receipt, OutputError> {
        let receipt = apinode::check_tasks(tasks, owner, expected_last)?;
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(classify)?;
        match cursor(&transaction)?.admit(owner, tasks, expected_last)? {
            Admission::Compare => apinode::compare(tasks, &ids(&transaction, &receipt).map_err(classify)?)?,
            Admission::Append => {
                insert(&transaction, tasks).map_err(classify)?;
                move_cursor(&transaction, receipt.last, Some(&receipt.last_id)).map_err(classify)?;
                transaction.commit().map_err(classify)?;
            }
        }
        Ok(receipt)
    }

    pub(super) fn skip(
        &mut self,
        owner: &Owner,
        last: TaskNumber,
        expected_last: Option<TaskNumber>,
    ) -> Result<(), OutputError> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(classify)?;
        if cursor(&transaction)?.may_skip(owner, last, expected_last)? {
            move_cursor(&transaction, last, None).map_err(classify)?;
            transaction.commit().map_err(classify)?;
        }
        Ok(())
    }

    pub(super) fn fill(&mut self, owner: &Owner, tasks: &[FinalTask]) -> Result<(), OutputError> {
        let range = apinode::check_fill(tasks, owner)?;
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(classify)?;
        let found = ids(&transaction, &range).map_err(classify)?;
        let absent = cursor(&transaction)?.may_fill(owner, tasks, &found)?;
        insert(&transaction, absent).map_err(classify)?;
        transaction.commit().map_err(classify)
    }

    pub(super) fn first_gap(
        &self,
        owner: &Owner,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        cursor(&self.connection)?.check_owner(owner)?;
        if first > last {
            return Ok(None);
        }
        let ask = |sql: &str, from: TaskNumber| -> Result<Option<TaskNumber>, OutputError> {
            let range = [from, last].map(|number| apinode::id_column(number.0));
            let mut statement = self.connection.prepare_cached(sql).map_err(classify)?;
            let found = statement.query_row(range, |row| row.get(0)).optional().map_err(classify)?.flatten();
            Ok(found.map(apinode::id_from_column).transpose()?.map(TaskNumber))
        };
        let (mut start, mut next) = (first, ask(NEXT_ID, first)?);
        if next == Some(first) {
            start = match ask(END_OF_RUN, first)? {
                Some(end) if end < last => end.next(),
                _ => return Ok(None),
            };
            next = ask(NEXT_ID, start)?;
        }
        Ok(Some((start, next.map_or(last, |next| TaskNumber(next.0 - 1)))))
    }

    pub(super) fn adopt(&mut self, owner: &Owner, adoption: &Adoption) -> Result<Adopted, OutputError> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(classify)?;
        let adopted = cursor(&transaction)?.adopt(owner, adoption)?;
        if adopted.from != owner.epoch {
            transaction.execute(MOVE_EPOCH, [apinode::epoch_column(owner.epoch)]).map_err(classify)?;
            transaction.commit().map_err(classify)?;
        }
        Ok(adopted)
    }

    pub(super) fn read(&mut self, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        let transaction = self.connection.transaction().map_err(classify)?;
        let rows = task_rows(&transaction, id).map_err(|error| match error {
            rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::IntegralValueOutOfRange(..) => {
                apinode::damaged("a value of another type")
            }
            other => classify(other),
        })?;
        rows.map(|(task, messages)| apinode::assemble(id, task, messages)).transpose()
    }
}

/// The mode is a property of the file. Changing it needs the file for oneself, and fails at once where it is not.
fn use_write_ahead_log(connection: &Connection, patience: Duration) -> Result<(), OutputError> {
    let deadline = Instant::now() + patience;
    loop {
        match connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0)) {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(mode) => return Err(OutputError::Retryable(format!("the file stays in journal mode {mode:?}"))),
            Err(error) if is_busy(&error) && Instant::now() < deadline => thread::sleep(BUSY_PAUSE),
            Err(error) => return Err(classify(error)),
        }
    }
}

fn set_up(transaction: &Transaction<'_>, owner: &Owner) -> Result<(), OutputError> {
    transaction.execute_batch(DDL).map_err(classify)?;
    let enter = r#"INSERT INTO "lockstep_cursor" VALUES (1, ?1, ?2, ?3, NULL, NULL) ON CONFLICT DO NOTHING"#;
    let network = apinode::network_column(&owner.network);
    let entered =
        transaction.execute(enter, params![LAYOUT, network, apinode::epoch_column(owner.epoch)]).map_err(classify)?;
    let occupied = r#"SELECT EXISTS (SELECT 1 FROM "messages") OR EXISTS (SELECT 1 FROM "tasks" WHERE "id" >= ?1)"#;
    let first = apinode::id_column(owner.first_task_number.0);
    if entered == 1 && transaction.query_row(occupied, [first], |row| row.get(0)).map_err(classify)? {
        return Err(apinode::occupied());
    }
    Ok(())
}

fn cursor(connection: &Connection) -> Result<Cursor, OutputError> {
    let mut statement = connection.prepare_cached(CURSOR).map_err(classify)?;
    let row = statement.query_row([], |row| {
        Ok((
            Cursor { layout: row.get(0)?, network: row.get(1)?, epoch: row.get(2)?, last: None },
            row.get::<_, Option<i64>>(3)?,
        ))
    });
    let (cursor, last) = row.map_err(classify)?;
    Ok(Cursor { last: last.map(apinode::id_from_column).transpose()?.map(TaskNumber), ..cursor })
}

fn move_cursor(transaction: &Transaction<'_>, last: TaskNumber, id: Option<&TaskId>) -> rusqlite::Result<usize> {
    let id = id.map(|id| &id.0[..]);
    transaction.prepare_cached(MOVE_CURSOR)?.execute(params![apinode::id_column(last.0), id])
}

fn insert<'a>(transaction: &Transaction<'_>, tasks: impl IntoIterator<Item = &'a FinalTask>) -> rusqlite::Result<()> {
    let mut insert_message = transaction.prepare_cached(INSERT_MESSAGE)?;
    let mut insert_task = transaction.prepare_cached(INSERT_TASK)?;
    let mut time_text = transaction.prepare_cached(TIME_TEXT)?;
    let (mut time, mut time_ms) = (String::new(), None);
    for task in tasks {
        // Tasks of one batch have one time.
        if time_ms != Some(task.time_ms) {
            time = time_text.query_row([apinode::id_column(task.time_ms.0)], |row| row.get(0))?;
            time_ms = Some(task.time_ms);
        }
        let project = apinode::id_column(task.project_id.0);
        for message in &task.messages {
            insert_message.execute(params![
                apinode::id_column(message.sequence.0),
                time,
                &task.device.0[..],
                project,
                task.project_version,
                &task.id.0[..],
                &message.data[..],
            ])?;
        }
        insert_task.execute(params![
            apinode::id_column(task.number.0),
            time,
            &task.id.0[..],
            project,
            apinode::message_ids(task),
            &task.signature.0[..],
        ])?;
    }
    Ok(())
}

fn ids(transaction: &Transaction<'_>, range: &Receipt) -> rusqlite::Result<Vec<(i64, Vec<u8>)>> {
    let mut statement = transaction.prepare_cached(IDS)?;
    let range = [apinode::id_column(range.first.0), apinode::id_column(range.last.0)];
    let rows =
        statement.query_map(range, |row| Ok((row.get(0)?, row.get::<_, Option<Vec<u8>>>(1)?.unwrap_or_default())))?;
    rows.collect()
}

fn task_rows(transaction: &Transaction<'_>, id: &TaskId) -> rusqlite::Result<Option<(TaskRow, Vec<MessageRow>)>> {
    let mut statement = transaction.prepare_cached(TASK)?;
    let task = statement.query_row([id.as_bytes()], |row| {
        Ok(TaskRow {
            number: row.get(0)?,
            project_id: row.get(1)?,
            time_ms: row.get(2)?,
            message_ids: row.get(3)?,
            signature: row.get(4)?,
        })
    });
    let Some(task) = task.optional()? else { return Ok(None) };
    let mut statement = transaction.prepare_cached(MESSAGES)?;
    let rows = statement.query_map([id.as_bytes()], |row| {
        Ok(MessageRow { sequence: row.get(0)?, project_version: row.get(1)?, device: row.get(2)?, data: row.get(3)? })
    })?;
    Ok(Some((task, rows.collect::<Result<_, _>>()?)))
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Rows in the way and a file of another kind need an operator; a lock, a full disk or a missing directory may pass.
fn classify(error: rusqlite::Error) -> OutputError {
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => {
            OutputError::Foreign(format!("rows that Lockstep did not write are in the way ({error})"))
        }
        Some(ErrorCode::NotADatabase) => OutputError::Foreign("the file is not an SQLite database".to_owned()),
        _ => OutputError::Retryable(error.to_string()),
    }
}
