//! The file in which a node keeps what became of tasks on the chain. It can be made again from the chain at any time.

use std::path::Path;

use lockstep_chain::TaskState;
use lockstep_types::{Hash32, ProjectId, TaskId, TimeMs};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::limits::TASK_STATES_MAX;

/// In the form of the file; another one is made anew.
const FORMAT: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE states (
        task BLOB NOT NULL, settled INTEGER NOT NULL, project INTEGER NOT NULL, time_ms INTEGER NOT NULL,
        UNIQUE (task, settled, project)
    );
    CREATE TABLE cursor (id INTEGER PRIMARY KEY CHECK (id = 0), source BLOB NOT NULL, last INTEGER, hash BLOB);
";

/// How far the chain was read.
pub(super) type Cursor = (u64, Hash32);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct TaskStore {
    connection: Connection,
}

fn stored(number: u64) -> i64 {
    // The chain's numbers of blocks, projects and milliseconds are far below.
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl TaskStore {
    /// Opens the file, or makes it: for this source, the hash of chain and contract.
    pub fn open(path: &Path, source: &Hash32) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        let mut store = Self { connection };
        store.make(source)?;
        Ok(store)
    }

    fn make(&mut self, source: &Hash32) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        let format: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if format != FORMAT {
            transaction.execute_batch("DROP TABLE IF EXISTS states; DROP TABLE IF EXISTS cursor;")?;
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "user_version", FORMAT)?;
        }
        let known: Option<Vec<u8>> =
            transaction.query_row("SELECT source FROM cursor", [], |row| row.get(0)).optional()?;
        if known.as_deref() != Some(&source[..]) {
            transaction.execute_batch("DELETE FROM states; DELETE FROM cursor;")?;
            transaction.execute("INSERT INTO cursor VALUES (0, ?1, NULL, NULL)", params![&source[..]])?;
        }
        transaction.commit()
    }

    /// Where the last reading ended; `None` before the first.
    pub fn cursor(&self) -> rusqlite::Result<Option<Cursor>> {
        let read = |row: &rusqlite::Row<'_>| {
            let (last, hash): (Option<i64>, Option<Vec<u8>>) = (row.get(0)?, row.get(1)?);
            let hash = hash.and_then(|hash| Hash32::try_from(&hash[..]).ok());
            Ok(last.and_then(|last| u64::try_from(last).ok()).zip(hash))
        };
        self.connection.query_row("SELECT last, hash FROM cursor", [], read)
    }

    /// Keeps what was read, all of it or nothing. Of the same state the first time counts.
    pub fn keep(&mut self, states: &[TaskState], cursor: Cursor, now: TimeMs) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        for state in states {
            let (settled, project, task) = match state {
                TaskState::Assigned { project, task, .. } => (false, project, task),
                TaskState::Settled { project, task, .. } => (true, project, task),
            };
            transaction.prepare_cached("INSERT OR IGNORE INTO states VALUES (?1, ?2, ?3, ?4)")?.execute(params![
                &task.0[..],
                settled,
                stored(project.0),
                stored(now.0)
            ])?;
        }
        let oldest = "DELETE FROM states WHERE rowid <= (SELECT max(rowid) FROM states) - ?1";
        transaction.execute(oldest, params![stored(TASK_STATES_MAX)])?;
        transaction.execute("UPDATE cursor SET last = ?1, hash = ?2", params![stored(cursor.0), &cursor.1[..]])?;
        transaction.commit()
    }

    /// Forgets everything: it is read from the chain again.
    pub fn clear(&mut self) -> rusqlite::Result<()> {
        self.connection.execute_batch("BEGIN; DELETE FROM states; UPDATE cursor SET last = NULL, hash = NULL; COMMIT;")
    }

    /// What became of a task, and when this node read it: `false` for assigned, then `true` for settled.
    pub fn states(&self, project: ProjectId, task: &TaskId) -> rusqlite::Result<Vec<(bool, TimeMs)>> {
        let query = "SELECT settled, time_ms FROM states WHERE task = ?1 AND project = ?2 ORDER BY settled";
        let mut statement = self.connection.prepare_cached(query)?;
        let read = |row: &rusqlite::Row<'_>| {
            let time: i64 = row.get(1)?;
            Ok((row.get(0)?, TimeMs(u64::try_from(time).unwrap_or_default())))
        };
        statement.query_map(params![&task.0[..], stored(project.0)], read)?.collect()
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::Address;

    use super::*;

    const PROJECT: ProjectId = ProjectId(7);
    const PROVER: Address = Address([9; 20]);

    fn assigned(task: TaskId) -> TaskState {
        TaskState::Assigned { project: PROJECT, task, prover: PROVER, deadline: 1 }
    }

    #[test]
    fn what_was_read_is_there_after_a_restart_and_belongs_to_its_source() {
        let dir = tempfile::tempdir().unwrap();
        let (path, task) = (dir.path().join("states.sqlite"), TaskId([5; 32]));
        let mut store = TaskStore::open(&path, &[1; 32]).unwrap();
        assert_eq!(store.cursor().unwrap(), None);
        store.keep(&[assigned(task)], (10, [1; 32]), TimeMs(100)).unwrap();
        let settled = TaskState::Settled { project: PROJECT, task, prover: PROVER };
        store.keep(&[assigned(task), settled], (20, [2; 32]), TimeMs(200)).unwrap();
        drop(store);

        let mut store = TaskStore::open(&path, &[1; 32]).unwrap();
        assert_eq!(store.cursor().unwrap(), Some((20, [2; 32])));
        assert_eq!(store.states(PROJECT, &task).unwrap(), [(false, TimeMs(100)), (true, TimeMs(200))]);
        assert_eq!(store.states(ProjectId(8), &task).unwrap(), []);
        store.clear().unwrap();
        assert_eq!((store.cursor().unwrap(), store.states(PROJECT, &task).unwrap()), (None, vec![]));
        store.keep(&[assigned(task)], (10, [1; 32]), TimeMs(100)).unwrap();
        drop(store);

        let store = TaskStore::open(&path, &[2; 32]).unwrap();
        assert_eq!((store.cursor().unwrap(), store.states(PROJECT, &task).unwrap()), (None, vec![]));
    }
}
