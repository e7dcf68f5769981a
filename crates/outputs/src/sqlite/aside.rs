//! Refused tasks in SQLite. Transactions are immediate, so each sees the halts as they are.

use lockstep_types::{ProjectId, TaskNumber};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::database::{Database, classify, cursor, insert, move_cursor};
use crate::aside::{REFUSED_PER_ANSWER_MAX, Refusals, RefusedTask};
use crate::output::{FinalTask, OutputError};
use crate::tables::{self, Halt, Ours};

const REFUSE: &str = r#"
INSERT INTO "lockstep_refused" ("task", "task_id", "project_id", "reason") VALUES (?1, ?2, ?3, ?4)"#;
const COUNT: &str = r#"SELECT count(*) FROM "lockstep_refused""#;
const REFUSED: &str = r#"
SELECT "task", "project_id", "task_id", "reason" FROM "lockstep_refused"
WHERE ?1 IS NULL OR "task" > ?1 ORDER BY "task", "project_id" LIMIT ?2"#;
const HALTS: &str = r#"SELECT "project_id", "task" FROM "lockstep_refused""#;
const RESUME: &str = r#"
UPDATE "lockstep_refused" SET "task" = ?3, "task_id" = ?4, "reason" = ?5 WHERE "project_id" = ?1 AND "task" = ?2"#;
const LIFT: &str = r#"DELETE FROM "lockstep_refused" WHERE "project_id" = ?1 AND "task" = ?2"#;
const FORGET: &str = r#"DELETE FROM "lockstep_refused" WHERE "task" = ?1"#;

/// Projects that halt; none where the layout lets them go on.
pub(super) fn halts(connection: &Connection, ours: &Ours) -> Result<Vec<Halt>, OutputError> {
    if !ours.layout.halts() {
        return Ok(Vec::new());
    }
    let mut statement = connection.prepare_cached(HALTS).map_err(classify)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(classify)?;
    let halt = |row: rusqlite::Result<(i64, i64)>| {
        let (project, from) = row.map_err(classify)?;
        Ok((ProjectId(tables::id_from_column(project)?), TaskNumber(tables::id_from_column(from)?)))
    };
    rows.map(halt).collect()
}

/// Tasks that are in the store now are not refused any more. Where projects halt, a row is not of that task alone.
pub(super) fn forget(transaction: &Transaction<'_>, ours: &Ours, tasks: &[&FinalTask]) -> rusqlite::Result<()> {
    if ours.layout.halts() {
        return Ok(());
    }
    let mut statement = transaction.prepare_cached(FORGET)?;
    for task in tasks {
        statement.execute([tables::id_column(task.number.0)])?;
    }
    Ok(())
}

impl Database {
    pub(super) fn refuse(
        &mut self,
        ours: &Ours,
        task: &RefusedTask,
        expected_last: Option<TaskNumber>,
    ) -> Result<(), OutputError> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(classify)?;
        if !cursor(&transaction)?.may_skip(ours, task.number, expected_last)? {
            return Ok(());
        }
        if !halts(&transaction, ours)?.iter().any(|(project, _)| *project == task.project_id) {
            let (number, project) = (tables::id_column(task.number.0), tables::id_column(task.project_id.0));
            let id = task.id.as_ref().map(|id| &id.0[..]);
            transaction.execute(REFUSE, params![number, id, project, task.reason_column()]).map_err(classify)?;
        }
        move_cursor(&transaction, task.number, None).map_err(classify)?;
        transaction.commit().map_err(classify)
    }

    pub(super) fn refused(&mut self, ours: &Ours, after: Option<TaskNumber>) -> Result<Refusals, OutputError> {
        let transaction = self.connection.transaction().map_err(classify)?;
        cursor(&transaction)?.check_owner(ours)?;
        let count: i64 = transaction.query_row(COUNT, [], |row| row.get(0)).map_err(classify)?;
        let mut statement = transaction.prepare_cached(REFUSED).map_err(classify)?;
        let after = after.map(|number| tables::id_column(number.0));
        let limit = i64::try_from(REFUSED_PER_ANSWER_MAX).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![after, limit], |row| {
            Ok(((row.get(0)?, row.get(1)?), row.get::<_, Option<Vec<u8>>>(2)?, row.get::<_, String>(3)?))
        });
        let task = |row: rusqlite::Result<_>| {
            let (numbers, id, reason) = row.map_err(classify)?;
            tables::refused_row(numbers, id, reason)
        };
        let tasks = rows.map_err(classify)?.map(task).collect::<Result<_, OutputError>>()?;
        Ok(Refusals { count: u64::try_from(count).unwrap_or(0), tasks })
    }

    pub(super) fn resume(
        &mut self,
        ours: &Ours,
        from: TaskNumber,
        tasks: &[FinalTask],
        to: &RefusedTask,
    ) -> Result<(), OutputError> {
        tables::check_resume(from, tasks, to, ours)?;
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(classify)?;
        let cursor = cursor(&transaction)?;
        cursor.check_owner(ours)?;
        let [project, from, number] = [to.project_id.0, from.0, to.number.0].map(tables::id_column);
        let id = to.id.as_ref().map(|id| &id.0[..]);
        let values = params![project, from, number, id, to.reason_column()];
        let reached = cursor.last.is_some_and(|last| last.next() >= to.number);
        if !reached || transaction.execute(RESUME, values).map_err(classify)? == 0 {
            return Err(OutputError::Moved { actual_last: cursor.last });
        }
        insert(&transaction, ours, tasks)?;
        transaction.commit().map_err(classify)
    }

    pub(super) fn lift(&mut self, ours: &Ours, project_id: ProjectId, last: TaskNumber) -> Result<(), OutputError> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(classify)?;
        let cursor = cursor(&transaction)?;
        cursor.check_owner(ours)?;
        let halt = [project_id.0, last.next().0].map(tables::id_column);
        if cursor.last != Some(last) || transaction.execute(LIFT, halt).map_err(classify)? == 0 {
            return Err(OutputError::Moved { actual_last: cursor.last });
        }
        transaction.commit().map_err(classify)
    }

    /// The first numbers that were skipped, of those that touch a range.
    pub(super) fn next_skipped(
        &self,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        const NEXT: &str = r#"
SELECT "first", "last" FROM "lockstep_gaps" WHERE "last" >= ?1 AND "first" <= ?2 ORDER BY "first", "last" LIMIT 1"#;
        if first > last {
            return Ok(None);
        }
        let mut statement = self.connection.prepare_cached(NEXT).map_err(classify)?;
        let range = [first, last].map(|number| tables::id_column(number.0));
        let row = statement.query_row(range, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
        let Some((from, to)) = row.optional().map_err(classify)? else { return Ok(None) };
        Ok(Some((TaskNumber(tables::id_from_column(from)?), TaskNumber(tables::id_from_column(to)?))))
    }

    pub(super) fn complete(&mut self, ours: &Ours, first: TaskNumber, last: TaskNumber) -> Result<(), OutputError> {
        const CUT: &str = r#"
DELETE FROM "lockstep_gaps" WHERE "last" >= ?1 AND "first" <= ?2 RETURNING "first", "last""#;
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(classify)?;
        cursor(&transaction)?.check_owner(ours)?;
        let (first, last) = (tables::id_column(first.0), tables::id_column(last.0));
        let mut statement = transaction.prepare_cached(CUT).map_err(classify)?;
        let rows = statement.query_map([first, last], |row| Ok((row.get(0)?, row.get(1)?))).map_err(classify)?;
        let cut = rows.collect::<rusqlite::Result<Vec<(i64, i64)>>>().map_err(classify)?;
        drop(statement);
        for (from, to) in cut {
            for (from, to) in [(from, to.min(first - 1)), (from.max(last.saturating_add(1)), to)] {
                if from <= to {
                    note_gap(&transaction, from, to).map_err(classify)?;
                }
            }
        }
        transaction.commit().map_err(classify)
    }
}

/// Remembers numbers that were skipped.
pub(super) fn note_gap(transaction: &Transaction<'_>, first: i64, last: i64) -> rusqlite::Result<usize> {
    const NOTE: &str = r#"INSERT INTO "lockstep_gaps" ("first", "last") VALUES (?1, ?2)"#;
    transaction.prepare_cached(NOTE)?.execute([first, last])
}
