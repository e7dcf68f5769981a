//! What really is in the stores that tasks are published to, read without the program's own code.

use std::path::Path;

use anyhow::{Context as _, ensure};
use lockstep_types::{Address, ProjectId, Sequence, Signature, TaskId, TaskNumber, w3bstream};
use rusqlite::{Connection, OpenFlags};
use tokio_postgres::NoTls;

/// A row of `tasks`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRow {
    /// Column `id`.
    pub number: TaskNumber,
    /// Column `task_id`.
    pub id: TaskId,
    /// Column `project_id`.
    pub project_id: ProjectId,
    /// Column `message_ids`.
    pub sequences: Vec<Sequence>,
    /// Column `signature`.
    pub signature: Signature,
}

/// A row of `messages`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageRow {
    /// Column `id`.
    pub sequence: Sequence,
    /// Column `task_id`.
    pub task_id: TaskId,
    /// Column `device_id`.
    pub device: Address,
    /// Column `project_id`.
    pub project_id: ProjectId,
    /// Column `project_version`.
    pub project_version: String,
    /// Column `data`.
    pub data: Vec<u8>,
}

/// All that is in a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutputRows {
    /// What to call it in a failure.
    pub name: String,
    /// Its tasks by ascending number.
    pub tasks: Vec<TaskRow>,
    /// Its messages by ascending sequence.
    pub messages: Vec<MessageRow>,
}

impl OutputRows {
    /// The address whose key signed a task as it stands in the rows.
    ///
    /// # Errors
    /// When the rows do not belong together, or nothing can be recovered.
    pub fn signer_of(&self, task: &TaskRow) -> anyhow::Result<Address> {
        let messages: Vec<&MessageRow> = task
            .sequences
            .iter()
            .map(|sequence| {
                let at = self.messages.binary_search_by_key(sequence, |row| row.sequence);
                at.map(|at| &self.messages[at]).ok().with_context(|| format!("message {sequence} is missing"))
            })
            .collect::<anyhow::Result<_>>()?;
        let first = messages.first().context("a task without messages")?;
        let payloads = messages.iter().map(|row| &row.data[..]);
        let (project, version) = (task.project_id, &first.project_version);
        let digest = w3bstream::task_digest(&task.id, project, version, &first.device, payloads);
        Ok(lockstep_types::signature::recover_address(&digest, &task.signature)?)
    }
}

fn number(column: i64) -> anyhow::Result<u64> {
    u64::try_from(column).context("a negative number")
}

fn task_row(id: i64, task_id: &[u8], project: i64, messages: &str, signature: &[u8]) -> anyhow::Result<TaskRow> {
    let sequences: Vec<u64> = serde_json::from_str(messages).context("message_ids")?;
    Ok(TaskRow {
        number: TaskNumber(number(id)?),
        id: TaskId::try_from(task_id)?,
        project_id: ProjectId(number(project)?),
        sequences: sequences.into_iter().map(Sequence).collect(),
        signature: Signature::try_from(signature)?,
    })
}

fn message_row(
    (id, project): (i64, i64),
    (task, device): (&[u8], &[u8]),
    project_version: String,
    data: Vec<u8>,
) -> anyhow::Result<MessageRow> {
    Ok(MessageRow {
        sequence: Sequence(number(id)?),
        task_id: TaskId::try_from(task)?,
        device: Address::try_from(device)?,
        project_id: ProjectId(number(project)?),
        project_version,
        data,
    })
}

const TASKS: &str =
    r#"SELECT "id", "task_id", "project_id", CAST("message_ids" AS text), "signature" FROM "tasks" ORDER BY "id""#;
const MESSAGES: &str =
    r#"SELECT "id", "project_id", "task_id", "device_id", "project_version", "data" FROM "messages" ORDER BY "id""#;

/// Reads a SQLite file, as it is while somebody writes to it.
///
/// # Errors
/// When it cannot be read, or its rows are not of the form that they should be.
pub fn read_sqlite(path: &Path, name: &str) -> anyhow::Result<OutputRows> {
    let mut connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    // One view on both tables.
    let transaction = connection.transaction()?;
    let mut rows = OutputRows { name: name.to_owned(), ..OutputRows::default() };
    let mut statement = transaction.prepare(TASKS)?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let (task, messages, signature): (Vec<u8>, String, Vec<u8>) = (row.get(1)?, row.get(3)?, row.get(4)?);
        rows.tasks.push(task_row(row.get(0)?, &task, row.get(2)?, &messages, &signature)?);
    }
    let mut statement = transaction.prepare(MESSAGES)?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let (task, device): (Vec<u8>, Vec<u8>) = (row.get(2)?, row.get(3)?);
        let numbers = (row.get(0)?, row.get(1)?);
        rows.messages.push(message_row(numbers, (&task, &device), row.get(4)?, row.get(5)?)?);
    }
    Ok(rows)
}

/// How many tasks a SQLite file has.
///
/// # Errors
/// When it cannot be read.
pub fn count_sqlite(path: &Path) -> anyhow::Result<u64> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    number(connection.query_row(r#"SELECT count(*) FROM "tasks""#, [], |row| row.get(0))?)
}

async fn connect(dsn: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
    // Ends with the client.
    tokio::spawn(connection);
    Ok(client)
}

/// Reads the tables in the schema `public` of a PostgreSQL server.
///
/// # Errors
/// When they cannot be read, or their rows are not of the form that they should be.
pub async fn read_postgres(dsn: &str, name: &str) -> anyhow::Result<OutputRows> {
    let mut client = connect(dsn).await?;
    let transaction = client.build_transaction().isolation_level(tokio_postgres::IsolationLevel::RepeatableRead);
    let transaction = transaction.read_only(true).start().await?;
    let mut rows = OutputRows { name: name.to_owned(), ..OutputRows::default() };
    for row in transaction.query(TASKS, &[]).await? {
        rows.tasks.push(task_row(row.get(0), row.get(1), row.get(2), row.get(3), row.get(4))?);
    }
    for row in transaction.query(MESSAGES, &[]).await? {
        let numbers = (row.get(0), row.get(1));
        rows.messages.push(message_row(numbers, (row.get(2), row.get(3)), row.get(4), row.get(5))?);
    }
    Ok(rows)
}

/// How many tasks a PostgreSQL server has in the schema `public`.
///
/// # Errors
/// When they cannot be read.
pub async fn count_postgres(dsn: &str) -> anyhow::Result<u64> {
    let client = connect(dsn).await?;
    let exists = client.query_one("SELECT to_regclass('public.tasks') IS NOT NULL", &[]).await?;
    ensure!(exists.get::<_, bool>(0), "there is no table `tasks` yet");
    number(client.query_one(r#"SELECT count(*) FROM "tasks""#, &[]).await?.get(0))
}
