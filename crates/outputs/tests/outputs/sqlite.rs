//! SQLite: the suite, kills of a real process, and the rate.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::BoxFuture;
use lockstep_outputs::{FinalTask, Layout, Output, OutputError, Owner, SqliteOptions, SqliteOutput};
use rusqlite::{Connection, params_from_iter};

use crate::conformance::{Store, Tables};
use crate::support::{FIRST, eventually, owner, tasks};

struct File {
    directory: tempfile::TempDir,
    layout: Layout,
}

impl File {
    fn new(layout: Layout) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), layout }
    }

    fn open_as(&self, layout: Layout, owner: Owner) -> Arc<dyn Output> {
        let busy_timeout = Duration::from_millis(if self.layout == layout { 500 } else { 5_000 });
        let options = SqliteOptions { layout, busy_timeout, ..SqliteOptions::new(self.path()) };
        Arc::new(SqliteOutput::new(options, owner))
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("tasks.db")
    }

    fn connect(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }
}

fn open(path: &Path, owner: Owner) -> Arc<SqliteOutput> {
    Arc::new(SqliteOutput::new(SqliteOptions::new(path), owner))
}

#[async_trait]
impl Store for File {
    fn layout(&self) -> Option<Layout> {
        Some(self.layout)
    }

    fn open(&self, owner: Owner) -> Arc<dyn Output> {
        self.open_as(self.layout, owner)
    }

    async fn rows(&self) -> Vec<String> {
        let connection = self.connect();
        let mut out = Vec::new();
        for table in ["messages", "tasks", "lockstep_cursor", "lockstep_gaps", "lockstep_refused"] {
            let mut statement = connection.prepare(&format!("SELECT * FROM {table} ORDER BY 1")).unwrap();
            let columns = statement.column_count();
            let text = |row: &rusqlite::Row<'_>| {
                (0..columns).map(|i| row.get::<_, rusqlite::types::Value>(i)).collect::<Result<Vec<_>, _>>()
            };
            out.extend(statement.query_map([], text).unwrap().map(|values| format!("{table} {:?}", values.unwrap())));
        }
        out
    }

    async fn break_down_at(&self, task: u64, writing: BoxFuture<'static, Result<(), OutputError>>) -> OutputError {
        let trigger = format!(
            "CREATE TRIGGER breaks BEFORE INSERT ON tasks WHEN NEW.id = {task} BEGIN SELECT RAISE(ABORT, 'test'); END"
        );
        self.connect().execute_batch(&trigger).unwrap();
        let error = writing.await.unwrap_err();
        self.connect().execute_batch("DROP TRIGGER breaks").unwrap();
        error
    }

    async fn read_as_w3bstream(&self, task: &FinalTask, project_id: i64) -> Vec<Vec<u8>> {
        let connection = self.connect();
        let found = |row: &rusqlite::Row<'_>| row.get::<_, String>("message_ids");
        // The reader has no ORDER BY of its own: the views have it.
        let (found, column) = match self.layout {
            Layout::Apinode => {
                let sql = r#"SELECT * FROM "reader_tasks" WHERE (task_id = ?1 AND project_id = ?2)
                    AND "reader_tasks"."deleted_at" IS NULL ORDER BY "reader_tasks"."id" LIMIT 1"#;
                (connection.query_row(sql, (task.id.as_bytes(), project_id), found), "id")
            }
            Layout::Sprout => {
                let sql = r#"SELECT * FROM "reader_tasks" WHERE (id >= ?1 AND project_id = ?2)
                    AND "reader_tasks"."deleted_at" IS NULL ORDER BY "reader_tasks"."id" LIMIT 1"#;
                (connection.query_row(sql, (task.number.0 as i64, project_id), found), "message_id")
            }
        };
        let Ok(ids) = found else { return Vec::new() };
        let ids: Vec<serde_json::Value> = serde_json::from_str(&ids).unwrap();
        let places = vec!["?"; ids.len()].join(",");
        let sql = format!(
            r#"SELECT * FROM "reader_messages" WHERE {column} IN ({places}) AND "reader_messages"."deleted_at" IS NULL"#
        );
        let mut statement = connection.prepare(&sql).unwrap();
        let value = |id: &serde_json::Value| match id {
            serde_json::Value::String(text) => rusqlite::types::Value::Text(text.clone()),
            other => rusqlite::types::Value::Integer(other.as_i64().unwrap()),
        };
        let rows = statement.query_map(params_from_iter(ids.iter().rev().map(value)), |row| row.get("data")).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    async fn write_as_another(&self) {
        self.open(owner()).last().await.unwrap();
        let sql = "INSERT INTO messages (id, data) VALUES (1, 'x'); DELETE FROM lockstep_cursor";
        self.connect().execute_batch(sql).unwrap();
    }
}

#[async_trait]
impl Tables for File {
    fn open_other_layout(&self) -> Arc<dyn Output> {
        self.open_as(if self.layout == Layout::Apinode { Layout::Sprout } else { Layout::Apinode }, owner())
    }

    async fn hold(&self) -> Box<dyn std::any::Any + Send> {
        let connection = self.connect();
        connection.busy_timeout(Duration::from_secs(5)).unwrap();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        Box::new(connection)
    }

    async fn refuse_rows_of(&self, _task: u64) -> Option<()> {
        None
    }

    async fn forget_gaps(&self) {
        self.connect().execute_batch("DROP TABLE lockstep_gaps; DROP TABLE lockstep_refused").unwrap();
    }

    async fn alter(&self, sql: &str) {
        self.connect().execute_batch(sql).unwrap();
    }

    async fn accept_rows(&self) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_passes_the_conformance_suite() {
    crate::conformance_suite!(File::new(Layout::Apinode));
    crate::conformance_suite!(File::new(Layout::Sprout));
}

#[tokio::test]
async fn a_file_of_another_kind_needs_an_operator_and_a_missing_directory_may_come() {
    let file = File::new(Layout::Apinode);
    std::fs::write(file.path(), [b'x'; 4096]).unwrap();
    assert!(matches!(open(&file.path(), owner()).last().await, Err(OutputError::Foreign(_))));
    let output = open(&file.directory.path().join("later/tasks.db"), owner());
    assert!(matches!(output.last().await, Err(OutputError::Retryable(_))));
    std::fs::create_dir(file.directory.path().join("later")).unwrap();
    assert_eq!(output.last().await, Ok(None));
}

#[tokio::test]
async fn what_a_receipt_confirms_is_synced_in_write_ahead_mode() {
    let file = File::new(Layout::Apinode);
    open(&file.path(), owner()).last().await.unwrap();
    let mode: String = file.connect().query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
}

const CHILD: &str = "LOCKSTEP_TEST_CHILD_DATABASE";

/// The child of the test below: publishes until it is killed. Run by itself it does nothing.
#[tokio::test]
async fn child_publishes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let output = open(Path::new(&path), owner());
    let mut last = output.last().await.unwrap();
    loop {
        let next = owner().next(last).0;
        last = Some(output.publish(&tasks(next..=next + 31), last).await.unwrap().last);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_leaves_whole_calls_and_the_next_goes_on() {
    let file = File::new(Layout::Apinode);
    let output = open(&file.path(), owner());
    let mut reached = 0;
    for _ in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "sqlite::child_publishes_until_it_is_killed"]).env(CHILD, file.path());
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        eventually("the child publishes", || async {
            output.last().await.ok().flatten().filter(|last| last.0 > reached + 100)
        })
        .await;
        child.kill().unwrap();
        child.wait().unwrap();
        reached = output.last().await.unwrap().unwrap().0;
        let sql = "SELECT count(*), max(id), (SELECT count(*) FROM messages) FROM tasks";
        let row = file.connect().query_row(sql, [], |r| Ok([r.get::<_, i64>(0)?, r.get(1)?, r.get(2)?])).unwrap();
        let count = reached - FIRST + 1;
        assert_eq!((count % 32, row.map(|n| n as u64)), (0, [count, reached, 2 * count]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_publishes_at_a_rate_that_is_printed() {
    let file = File::new(Layout::Apinode);
    let output = open(&file.path(), owner());
    let mut batch = tasks(FIRST..=FIRST + 20_479);
    for (sequence, task) in (1..).zip(&mut batch) {
        task.messages.truncate(1);
        task.messages[0].sequence = lockstep_types::Sequence(sequence);
    }
    output.last().await.unwrap();
    let (began, mut last) = (Instant::now(), None);
    for chunk in batch.chunks(512) {
        last = Some(output.publish(chunk, last).await.unwrap().last);
    }
    println!("SQLite: {:.0} one-message tasks a second", batch.len() as f64 / began.elapsed().as_secs_f64());
}
