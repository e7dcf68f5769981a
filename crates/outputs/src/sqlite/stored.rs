//! Reading tasks by number for audits.

use lockstep_types::TaskNumber;
use rusqlite::types::ValueRef;
use rusqlite::{Row, Transaction, params};

use super::database::{Database, classify, cursor};
use crate::layout::Layout;
use crate::output::OutputError;
use crate::stored::{
    FoundMessage, FoundTask, PAGE_BYTES_MAX, Page, STRAY_ROWS_MAX, STRAYS_NAMED_MAX, StrayMark, Strays, put_together,
};
use crate::tables::{self, MessageRow, Ours};

const TASKS: &str = r#"
SELECT "id", "{marker}", "project_id", {ms}, "message_ids", "signature", {as_made} FROM "tasks"
WHERE "id" >= ?1 ORDER BY "id" LIMIT ?2"#;
const MESSAGES: &str = r#"
SELECT "id", {name}, "project_version", {device}, "data", "project_id", {ms}, {as_made} FROM "messages"
WHERE "{marker}" = ?1 ORDER BY "id""#;
const MS: &str = r#"CAST(round(unixepoch("created_at", 'subsec') * 1000) AS integer)"#;
const AS_MADE: &str = r#"("deleted_at" IS NULL AND "updated_at" IS "created_at")"#;
const STRAY_MESSAGES: &str = r#"
SELECT "id", EXISTS (SELECT 1 FROM "tasks" WHERE "tasks"."{marker}" = "messages"."{marker}") FROM "messages"
WHERE "id" > ?1 ORDER BY "id" LIMIT ?2"#;
const STRAY_TASKS: &str = r#"
SELECT "id" FROM "tasks" WHERE "id" > (SELECT coalesce("last_task", ?1) FROM "lockstep_cursor") ORDER BY "id" LIMIT ?2"#;

fn text(sql: &str, layout: Layout) -> String {
    let [name, device] = match layout {
        Layout::Apinode => ["x''", r#""device_id""#],
        Layout::Sprout => [r#""message_id""#, r#""client_id""#],
    };
    sql.replace("{marker}", layout.marker())
        .replace("{ms}", MS)
        .replace("{as_made}", AS_MADE)
        .replace("{name}", name)
        .replace("{device}", device)
}

/// A column of bytes: a blob, or a text where the layout has texts. SQLite lets anything stand anywhere.
fn bytes_at(row: &Row<'_>, index: usize, layout: Layout) -> rusqlite::Result<Option<Vec<u8>>> {
    Ok(match (row.get_ref(index)?, layout) {
        (ValueRef::Blob(bytes), Layout::Apinode) | (ValueRef::Text(bytes), Layout::Sprout) => Some(bytes.to_vec()),
        _ => None,
    })
}

fn found_task(row: &Row<'_>, layout: Layout) -> rusqlite::Result<FoundTask> {
    Ok(FoundTask {
        number: row.get(0)?,
        id: bytes_at(row, 1, layout)?,
        project_id: row.get(2).unwrap_or_default(),
        time_ms: row.get(3).unwrap_or_default(),
        message_ids: row.get(4).unwrap_or_default(),
        signature: bytes_at(row, 5, layout)?,
        as_made: row.get(6)?,
    })
}

fn found_message(row: &Row<'_>, layout: Layout) -> rusqlite::Result<Result<FoundMessage, &'static str>> {
    // A layout without names says so with an empty blob.
    let (name, device) = (bytes_at(row, 1, layout)?, bytes_at(row, 3, layout)?);
    let (Ok(project_version), ValueRef::Blob(data), Some(name), Some(device)) =
        (row.get(2), row.get_ref(4)?, name, device)
    else {
        return Ok(Err("a value of another type in messages"));
    };
    let found = MessageRow { sequence: row.get(0)?, name, project_version, device, data: data.to_vec() };
    let (project_id, time_ms) = (row.get(5).unwrap_or_default(), row.get(6).unwrap_or_default());
    Ok(Ok(FoundMessage { row: found, project_id, time_ms, as_made: row.get(7)? }))
}

fn messages(
    transaction: &Transaction<'_>,
    layout: Layout,
    id: &[u8],
) -> rusqlite::Result<Vec<Result<FoundMessage, &'static str>>> {
    let mut statement = transaction.prepare_cached(&text(MESSAGES, layout))?;
    let read = |row: &Row<'_>| found_message(row, layout);
    match (layout, std::str::from_utf8(id)) {
        (Layout::Sprout, Ok(id)) => statement.query_map([id], read)?.collect(),
        _ => statement.query_map([id], read)?.collect(),
    }
}

impl Database {
    /// See [`crate::Output::stored`].
    pub(super) fn stored(&mut self, ours: &Ours, first: TaskNumber, max: usize) -> Result<Page, OutputError> {
        let transaction = self.connection.transaction().map_err(classify)?;
        cursor(&transaction)?.check_owner(ours)?;
        let range = [tables::id_column(first.0), i64::try_from(max).unwrap_or(i64::MAX)];
        let mut statement = transaction.prepare_cached(&text(TASKS, ours.layout)).map_err(classify)?;
        let rows = statement.query_map(range, |row| found_task(row, ours.layout)).map_err(classify)?;
        let (mut page, mut bytes) = (Page::default(), 0);
        for task in rows {
            if bytes >= PAGE_BYTES_MAX {
                break;
            }
            let task = task.map_err(classify)?;
            let found = task.id.as_ref().map(|id| messages(&transaction, ours.layout, id));
            let found = found.transpose().map_err(classify)?.unwrap_or_default();
            bytes += found.iter().flatten().map(|message| message.row.data.len() as u64).sum::<u64>();
            match put_together(ours.layout, task, found) {
                Ok(task) => page.tasks.push(task),
                Err(damaged) => page.damaged.push(damaged),
            }
        }
        Ok(page)
    }

    /// See [`crate::Output::strays`]. The first part also has tasks that nobody knows of.
    pub(super) fn strays(&mut self, ours: &Ours, after: Option<&StrayMark>) -> Result<Strays, OutputError> {
        let mut strays = Strays::default();
        let transaction = self.connection.transaction().map_err(classify)?;
        if after.is_none() {
            let before = tables::id_column(ours.owner.first_task_number.0) - 1;
            let named_max = i64::try_from(STRAYS_NAMED_MAX).unwrap_or(i64::MAX);
            let mut statement = transaction.prepare_cached(STRAY_TASKS).map_err(classify)?;
            let rows = statement.query_map(params![before, named_max], |row| row.get::<_, i64>(0));
            for id in rows.map_err(classify)? {
                strays.add(format!("row {} of tasks is behind the last task", id.map_err(classify)?));
            }
        }
        let after = after.map_or(Ok(i64::MIN), |mark| mark.0.parse());
        let after = after.map_err(|_| OutputError::Retryable("a mark of another store".to_owned()))?;
        let max = i64::try_from(STRAY_ROWS_MAX).unwrap_or(i64::MAX);
        let mut statement = transaction.prepare_cached(&text(STRAY_MESSAGES, ours.layout)).map_err(classify)?;
        let rows = statement.query_map([after, max], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, bool>(1)?)));
        let mut last = None;
        for row in rows.map_err(classify)? {
            let (id, has_task) = row.map_err(classify)?;
            if !has_task {
                strays.add(format!("row {id} of messages is of no task"));
            }
            (strays.looked_at, last) = (strays.looked_at + 1, Some(id));
        }
        let is_full = strays.looked_at >= STRAY_ROWS_MAX as u64;
        strays.next = last.filter(|_| is_full).map(|last| StrayMark(last.to_string()));
        Ok(strays)
    }
}
