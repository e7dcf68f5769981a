//! The open file: its tables, and what is done with them. Everything here blocks.

use std::thread;
use std::time::{Duration, Instant};

use lockstep_types::{TaskId, TaskNumber};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params};

use super::ddl::ddl;
use super::rows::{self, Writer};
use super::{SqliteOptions, aside};
use crate::output::{Adopted, Adoption, FinalTask, OutputError, Receipt};
use crate::tables::{self, Admission, Cursor, Ours};

/// Room for every statement of this file.
const CACHED_STATEMENTS_MAX: usize = 32;
/// Page cache in KiB. Task ids are hashes, so inserts touch index pages all over the file.
const CACHE_KIB: i64 = 16 << 10;
/// Pages of 4 KiB in the write-ahead log before it is copied into the file: many calls change the same index pages, which
/// are then copied once.
const CHECKPOINT_PAGES: i64 = 16_384;
/// Between two tries to change the journal mode, for which SQLite does not wait by itself.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

const CURSOR: &str = r#"SELECT "layout", "network", "epoch", "last_task" FROM "lockstep_cursor""#;
const MOVE_CURSOR: &str = r#"UPDATE "lockstep_cursor" SET "last_task" = ?1, "last_task_id" = ?2"#;
const MOVE_EPOCH: &str = r#"UPDATE "lockstep_cursor" SET "epoch" = ?1"#;
const NEXT_ID: &str = r#"SELECT min("id") FROM "tasks" WHERE "id" BETWEEN ?1 AND ?2"#;
/// The last number of the run of tasks that begins with the first of a range.
const END_OF_RUN: &str = r#"
SELECT "id" FROM "tasks" WHERE "id" BETWEEN ?1 AND ?2
  AND NOT EXISTS (SELECT 1 FROM "tasks" AS "next" WHERE "next"."id" = "tasks"."id" + 1)
ORDER BY "id" LIMIT 1"#;

#[derive(Debug)]
pub(super) struct Database {
    pub(super) connection: Connection,
}

impl Database {
    /// Opens the file and creates what is missing.
    pub(super) fn open(options: &SqliteOptions, ours: &Ours) -> Result<Self, OutputError> {
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
        set_up(&transaction, ours)?;
        transaction.commit().map_err(classify)?;
        Ok(Self { connection })
    }

    pub(super) fn cursor(&self) -> Result<Cursor, OutputError> {
        cursor(&self.connection)
    }

    pub(super) fn publish(
        &mut self,
        ours: &Ours,
        tasks: &[FinalTask],
        expected_last: Option<TaskNumber>,
    ) -> Result<Receipt, OutputError> {
        let receipt = tables::check_tasks(tasks, &ours.owner, expected_last)?;
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(classify)?;
        let cursor = cursor(&transaction)?;
        match cursor.admit(ours, tasks, expected_last)? {
            Admission::Compare => {
                let found = ids(&transaction, ours, &receipt).map_err(classify)?;
                tables::compare(tasks, &found, ours.layout, cursor.last)?;
            }
            Admission::Append => {
                let halts = aside::halts(&transaction, ours)?;
                let goes_on = |task: &&FinalTask| !halts.iter().any(|(project, _)| *project == task.project_id);
                insert(&transaction, ours, tasks.iter().filter(goes_on))?;
                move_cursor(&transaction, receipt.last, Some(&receipt.last_id)).map_err(classify)?;
                transaction.commit().map_err(classify)?;
            }
        }
        Ok(receipt)
    }

    /// Moves the cursor over tasks that do not come; `skipped`: that should have.
    pub(super) fn move_over(
        &mut self,
        ours: &Ours,
        last: TaskNumber,
        expected_last: Option<TaskNumber>,
        skipped: bool,
    ) -> Result<(), OutputError> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(classify)?;
        if cursor(&transaction)?.may_skip(ours, last, expected_last)? {
            if skipped {
                let [first, last] = [ours.owner.next(expected_last), last].map(|n| tables::id_column(n.0));
                aside::note_gap(&transaction, first, last).map_err(classify)?;
            }
            move_cursor(&transaction, last, None).map_err(classify)?;
            transaction.commit().map_err(classify)?;
        }
        Ok(())
    }

    pub(super) fn fill(&mut self, ours: &Ours, tasks: &[FinalTask]) -> Result<(), OutputError> {
        let range = tables::check_fill(tasks, &ours.owner)?;
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(classify)?;
        let found = ids(&transaction, ours, &range).map_err(classify)?;
        let halts = aside::halts(&transaction, ours)?;
        let absent = cursor(&transaction)?.may_fill(ours, tasks, &found, &halts)?;
        insert(&transaction, ours, absent.iter().copied())?;
        aside::forget(&transaction, ours, &absent).map_err(classify)?;
        transaction.commit().map_err(classify)
    }

    pub(super) fn first_gap(
        &self,
        ours: &Ours,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        cursor(&self.connection)?.check_owner(ours)?;
        let mut next = first;
        while let Some((from, to)) = self.next_skipped(next, last)? {
            let (from, to) = (from.max(next), to.min(last));
            if let Some(gap) = self.first_absent(from, to)? {
                return Ok(Some(gap));
            }
            next = to.next();
        }
        Ok(None)
    }

    /// The first run of numbers without a task.
    fn first_absent(
        &self,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        let ask = |sql: &str, from: TaskNumber| -> Result<Option<TaskNumber>, OutputError> {
            let range = [from, last].map(|number| tables::id_column(number.0));
            let mut statement = self.connection.prepare_cached(sql).map_err(classify)?;
            let found = statement.query_row(range, |row| row.get(0)).optional().map_err(classify)?.flatten();
            Ok(found.map(tables::id_from_column).transpose()?.map(TaskNumber))
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

    pub(super) fn adopt(&mut self, ours: &Ours, adoption: &Adoption) -> Result<Adopted, OutputError> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(classify)?;
        let adopted = cursor(&transaction)?.adopt(ours, adoption)?;
        if adopted.from != ours.owner.epoch {
            transaction.execute(MOVE_EPOCH, [tables::epoch_column(ours.owner.epoch)]).map_err(classify)?;
            transaction.commit().map_err(classify)?;
        }
        Ok(adopted)
    }

    pub(super) fn read(&mut self, ours: &Ours, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        let transaction = self.connection.transaction().map_err(classify)?;
        let rows = rows::read(&transaction, ours.layout, id).map_err(|error| match error {
            rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::IntegralValueOutOfRange(..) => {
                tables::damaged("a value of another type")
            }
            other => classify(other),
        })?;
        rows.map(|(task, messages)| tables::assemble(ours.layout, id, task, messages)).transpose()
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

fn set_up(transaction: &Transaction<'_>, ours: &Ours) -> Result<(), OutputError> {
    let earlier = check_tables(transaction, ours)?;
    transaction.execute_batch(&ddl(ours.layout)).map_err(classify)?;
    let (owner, first) = (&ours.owner, tables::id_column(ours.owner.first_task_number.0));
    if earlier == Some(false) {
        // Until now any number without a task was a gap.
        let gap =
            r#"INSERT INTO "lockstep_gaps" SELECT ?1, "last_task" FROM "lockstep_cursor" WHERE "last_task" >= ?1"#;
        transaction.execute(gap, [first]).map_err(classify)?;
    }
    let enter = r#"INSERT INTO "lockstep_cursor" VALUES (1, ?1, ?2, ?3, NULL, NULL) ON CONFLICT DO NOTHING"#;
    let network = tables::network_column(&owner.network);
    let values = params![ours.layout.name(), network, tables::epoch_column(owner.epoch)];
    let entered = transaction.execute(enter, values).map_err(classify)?;
    let occupied = r#"SELECT EXISTS (SELECT 1 FROM "messages") OR EXISTS (SELECT 1 FROM "tasks" WHERE "id" >= ?1)"#;
    if entered == 1 && transaction.query_row(occupied, [first], |row| row.get(0)).map_err(classify)? {
        return Err(tables::occupied());
    }
    Ok(())
}

/// Refuses tables of other readers, before anything is made of them. `None`: there is no cursor yet; else whether what
/// was skipped is remembered.
fn check_tables(transaction: &Transaction<'_>, ours: &Ours) -> Result<Option<bool>, OutputError> {
    let has = |table: &str| -> Result<bool, OutputError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1)";
        transaction.query_row(sql, [table], |row| row.get(0)).map_err(classify)
    };
    let mut gaps = None;
    if has("lockstep_cursor")? {
        let layout = transaction.query_row(r#"SELECT "layout" FROM "lockstep_cursor""#, [], |row| row.get(0));
        let layout: Option<String> = layout.optional().map_err(classify)?;
        if let Some(layout) = layout.filter(|layout| layout != ours.layout.name()) {
            return Err(tables::other_layout(&layout, ours.layout));
        }
        gaps = Some(has("lockstep_gaps")?);
    }
    for table in ["tasks", "messages"] {
        let marked = "SELECT EXISTS (SELECT 1 FROM pragma_table_info(?1) WHERE name = ?2)";
        let marked = || transaction.query_row(marked, [table, ours.layout.marker()], |row| row.get::<_, bool>(0));
        if has(table)? && !marked().map_err(classify)? {
            let wanted = ours.layout.name();
            let reason = format!("its table {table:?} is not of the layout {wanted:?}; give it a file of its own");
            return Err(OutputError::Foreign(reason));
        }
    }
    Ok(gaps)
}

pub(super) fn cursor(connection: &Connection) -> Result<Cursor, OutputError> {
    let mut statement = connection.prepare_cached(CURSOR).map_err(classify)?;
    let row = statement.query_row([], |row| {
        Ok((
            Cursor { layout: row.get(0)?, network: row.get(1)?, epoch: row.get(2)?, last: None },
            row.get::<_, Option<i64>>(3)?,
        ))
    });
    let (cursor, last) = row.map_err(classify)?;
    Ok(Cursor { last: last.map(tables::id_from_column).transpose()?.map(TaskNumber), ..cursor })
}

pub(super) fn move_cursor(
    transaction: &Transaction<'_>,
    last: TaskNumber,
    id: Option<&TaskId>,
) -> rusqlite::Result<usize> {
    let id = id.map(|id| &id.0[..]);
    transaction.prepare_cached(MOVE_CURSOR)?.execute(params![tables::id_column(last.0), id])
}

/// Inserts tasks. One that SQLite can never take is named.
pub(super) fn insert<'a>(
    transaction: &Transaction<'_>,
    ours: &Ours,
    tasks: impl IntoIterator<Item = &'a FinalTask>,
) -> Result<(), OutputError> {
    let mut writer = Writer::new(transaction, ours.layout).map_err(classify)?;
    for task in tasks {
        writer.insert(task).map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::TooBig) => OutputError::Refused { task: task.number, reason: error.to_string() },
            _ => classify(error),
        })?;
    }
    Ok(())
}

fn ids(transaction: &Transaction<'_>, ours: &Ours, range: &Receipt) -> rusqlite::Result<Vec<(i64, Vec<u8>)>> {
    let range = [tables::id_column(range.first.0), tables::id_column(range.last.0)];
    rows::ids(transaction, ours.layout, range)
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Rows in the way and a file of another kind need an operator; a lock, a full disk or a missing directory may pass.
pub(super) fn classify(error: rusqlite::Error) -> OutputError {
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => {
            OutputError::Foreign(format!("rows that Lockstep did not write are in the way ({error})"))
        }
        Some(ErrorCode::NotADatabase) => OutputError::Foreign("the file is not an SQLite database".to_owned()),
        _ => OutputError::Retryable(error.to_string()),
    }
}
