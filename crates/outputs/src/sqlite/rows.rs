//! Rows of tasks and messages, written and read in either layout.

use lockstep_types::{TaskId, w3bstream};
use rusqlite::{CachedStatement, OptionalExtension, Transaction, params};

use crate::layout::Layout;
use crate::output::{FinalMessage, FinalTask};
use crate::tables::{MessageRow, TaskRow, id_column};

const APINODE_MESSAGE: &str = r#"
INSERT INTO "messages" ("id", "created_at", "updated_at", "device_id", "project_id", "project_version", "task_id", "data")
VALUES (?1, ?2, ?2, ?3, ?4, ?5, ?6, ?7)"#;
const APINODE_TASK: &str = r#"
INSERT INTO "tasks" ("id", "created_at", "updated_at", "task_id", "project_id", "message_ids", "signature")
VALUES (?1, ?2, ?2, ?3, ?4, ?5, ?6)"#;
const SPROUT_MESSAGE: &str = r#"
INSERT INTO "messages" ("id", "created_at", "updated_at", "client_id", "project_id", "project_version", "internal_task_id",
  "data", "message_id")
VALUES (?1, ?2, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"#;
const SPROUT_TASK: &str = r#"
INSERT INTO "tasks" ("id", "created_at", "updated_at", "internal_task_id", "project_id", "message_ids", "signature")
VALUES (?1, ?2, ?2, ?3, ?4, ?5, ?6)"#;
/// The form that the reference's library writes and reads, in UTC.
const TIME_TEXT: &str = "SELECT strftime('%Y-%m-%d %H:%M:%f+00:00', ?1 / 1000.0, 'unixepoch')";

const TASK: &str = r#"
SELECT "id", "project_id", CAST(round(unixepoch("created_at", 'subsec') * 1000) AS integer), "message_ids",
  CAST("signature" AS blob) FROM "tasks" WHERE "#;
const APINODE_MESSAGES: &str = r#"
SELECT "id", x'', "project_version", "device_id", "data" FROM "messages" WHERE "task_id" = ?1 ORDER BY "id""#;
const SPROUT_MESSAGES: &str = r#"
SELECT "id", CAST("message_id" AS blob), "project_version", CAST("client_id" AS blob), "data"
FROM "messages" WHERE "internal_task_id" = CAST(?1 AS text) ORDER BY "id""#;

/// Inserts tasks with their messages.
pub(super) struct Writer<'a> {
    layout: Layout,
    message: CachedStatement<'a>,
    task: CachedStatement<'a>,
    time_text: CachedStatement<'a>,
    /// Tasks of one batch have one time.
    time: (Option<u64>, String),
}

impl<'a> Writer<'a> {
    pub(super) fn new(transaction: &'a Transaction<'_>, layout: Layout) -> rusqlite::Result<Self> {
        let (message, task) = match layout {
            Layout::Apinode => (APINODE_MESSAGE, APINODE_TASK),
            Layout::Sprout => (SPROUT_MESSAGE, SPROUT_TASK),
        };
        let (message, task) = (transaction.prepare_cached(message)?, transaction.prepare_cached(task)?);
        Ok(Self {
            layout,
            message,
            task,
            time_text: transaction.prepare_cached(TIME_TEXT)?,
            time: (None, String::new()),
        })
    }

    pub(super) fn insert(&mut self, task: &FinalTask) -> rusqlite::Result<()> {
        if self.time.0 != Some(task.time_ms.0) {
            let text = self.time_text.query_row([id_column(task.time_ms.0)], |row| row.get(0))?;
            self.time = (Some(task.time_ms.0), text);
        }
        match self.layout {
            Layout::Apinode => self.insert_apinode(task),
            Layout::Sprout => self.insert_sprout(task),
        }
    }

    fn insert_apinode(&mut self, task: &FinalTask) -> rusqlite::Result<()> {
        let (time, project) = (&self.time.1, id_column(task.project_id.0));
        for FinalMessage { sequence, data, .. } in &task.messages {
            let (device, id) = (&task.device.0[..], &task.id.0[..]);
            let sequence = id_column(sequence.0);
            self.message.execute(params![sequence, time, device, project, task.project_version, id, &data[..]])?;
        }
        let (number, id, signature) = (id_column(task.number.0), &task.id.0[..], &task.signature.0[..]);
        self.task.execute(params![number, time, id, project, self.layout.message_ids(task), signature])?;
        Ok(())
    }

    fn insert_sprout(&mut self, task: &FinalTask) -> rusqlite::Result<()> {
        let (time, project) = (&self.time.1, id_column(task.project_id.0));
        let (client, id) = (w3bstream::client_id(&task.device), task.id.to_string());
        for FinalMessage { sequence, id: name, data } in &task.messages {
            let (sequence, name) = (id_column(sequence.0), name.to_string());
            let version = &task.project_version;
            self.message.execute(params![sequence, time, client, project, version, id, &data[..], name])?;
        }
        let (number, signature) = (id_column(task.number.0), task.signature.to_string());
        self.task.execute(params![number, time, id, project, self.layout.message_ids(task), signature])?;
        Ok(())
    }
}

/// A task's rows, by its id.
pub(super) fn read(
    transaction: &Transaction<'_>,
    layout: Layout,
    id: &TaskId,
) -> rusqlite::Result<Option<(TaskRow, Vec<MessageRow>)>> {
    let (condition, messages) = match layout {
        Layout::Apinode => (r#""task_id" = ?1"#, APINODE_MESSAGES),
        Layout::Sprout => (r#""internal_task_id" = CAST(?1 AS text)"#, SPROUT_MESSAGES),
    };
    let id = layout.task_column(id);
    let mut statement = transaction.prepare_cached(&[TASK, condition].concat())?;
    let task = statement.query_row([&id], |row| {
        Ok(TaskRow {
            number: row.get(0)?,
            project_id: row.get(1)?,
            time_ms: row.get(2)?,
            message_ids: row.get(3)?,
            signature: row.get(4)?,
        })
    });
    let Some(task) = task.optional()? else { return Ok(None) };
    let mut statement = transaction.prepare_cached(messages)?;
    let rows = statement.query_map([&id], |row| {
        Ok(MessageRow {
            sequence: row.get(0)?,
            name: row.get(1)?,
            project_version: row.get(2)?,
            device: row.get(3)?,
            data: row.get(4)?,
        })
    })?;
    Ok(Some((task, rows.collect::<Result<_, _>>()?)))
}

/// Numbers and ids of tasks in a range.
pub(super) fn ids(
    transaction: &Transaction<'_>,
    layout: Layout,
    range: [i64; 2],
) -> rusqlite::Result<Vec<(i64, Vec<u8>)>> {
    let sql = format!(
        r#"SELECT "id", CAST("{}" AS blob) FROM "tasks" WHERE "id" BETWEEN ?1 AND ?2 ORDER BY "id""#,
        layout.marker()
    );
    let mut statement = transaction.prepare_cached(&sql)?;
    let rows =
        statement.query_map(range, |row| Ok((row.get(0)?, row.get::<_, Option<Vec<u8>>>(1)?.unwrap_or_default())))?;
    rows.collect()
}
