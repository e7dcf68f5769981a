//! The publisher: leader changes, failures, and silence when nothing happens.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lockstep_outputs::publisher::State;
use lockstep_outputs::{Adopted, Adoption, FinalTask, Output, OutputError, Receipt, SqliteOptions, SqliteOutput};
use lockstep_types::signature::recover_address;
use lockstep_types::{SigningKey, TaskId, TaskNumber};

use crate::support::{FIRST, Feed, Node, eventually, number, owner, signer, unsigned};

/// A store in memory that fails as it is told.
#[derive(Default)]
struct Fake {
    tasks: Mutex<Vec<FinalTask>>,
    failures: Mutex<VecDeque<OutputError>>,
    refuses: Mutex<Option<TaskNumber>>,
    calls: Mutex<Vec<u64>>,
    skipped: Mutex<Option<TaskNumber>>,
}

impl Fake {
    fn numbers(&self) -> Vec<u64> {
        self.tasks.lock().unwrap().iter().map(|t| t.number.0).collect()
    }

    fn fail(&self) -> Result<(), OutputError> {
        self.failures.lock().unwrap().pop_front().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Output for Fake {
    async fn adopt(&self, _adoption: &Adoption) -> Result<Adopted, OutputError> {
        Err(OutputError::Retryable("not here".into()))
    }

    async fn fill(&self, _tasks: &[FinalTask]) -> Result<(), OutputError> {
        Err(OutputError::Retryable("not here".into()))
    }

    async fn first_gap(&self, _: TaskNumber, _: TaskNumber) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        Err(OutputError::Retryable("not here".into()))
    }

    async fn skip(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        assert_eq!(self.last().await?, expected_last);
        *self.skipped.lock().unwrap() = Some(last);
        Ok(())
    }

    async fn publish(&self, tasks: &[FinalTask], expected: Option<TaskNumber>) -> Result<Receipt, OutputError> {
        self.calls.lock().unwrap().push(tasks.len() as u64);
        self.fail()?;
        if let Some(task) = (*self.refuses.lock().unwrap()).filter(|n| tasks.iter().any(|t| t.number == *n)) {
            return Err(OutputError::Refused { task, reason: "a test".to_owned() });
        }
        let mut stored = self.tasks.lock().unwrap();
        let actual_last = stored.last().map(|t| t.number).max(*self.skipped.lock().unwrap());
        if actual_last != expected {
            return Err(OutputError::Moved { actual_last });
        }
        stored.extend_from_slice(tasks);
        let last = &tasks[tasks.len() - 1];
        Ok(Receipt { first: tasks[0].number, last: last.number, last_id: last.id, places: Vec::new() })
    }

    async fn last(&self) -> Result<Option<TaskNumber>, OutputError> {
        self.fail()?;
        Ok(self.tasks.lock().unwrap().last().map(|t| t.number).max(*self.skipped.lock().unwrap()))
    }

    async fn read(&self, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        Ok(self.tasks.lock().unwrap().iter().find(|t| t.id == *id).cloned())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_published_in_order_and_signed_with_the_task_key() {
    let (feed, store) = (Feed::new(), Arc::new(Fake::default()));
    feed.finalize(3_000);
    let node = Node::start(&feed, store.clone(), true, None);
    let status = node.wait_for("all tasks", |s| s.state == State::CaughtUp).await;
    assert_eq!((status.last_published, status.lag, status.last_error), (number(3_000), 0, None));
    node.stop().await;
    assert_eq!(store.numbers(), (FIRST..=3_000).collect::<Vec<_>>());
    assert!(store.calls.lock().unwrap().iter().all(|n| *n <= 1024));
    let task = store.read(&unsigned(1_000).id).await.unwrap().unwrap();
    let address = SigningKey::from_bytes([0x11; 32]).unwrap().address();
    assert_eq!(recover_address(&task.digest(), &task.signature), Ok(address));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_network_has_forgotten_is_skipped_and_shown_as_a_gap() {
    let (feed, store) = (Feed::new(), Arc::new(Fake::default()));
    feed.finalize(FIRST + 5);
    feed.forget(FIRST + 2);
    let node = Node::start(&feed, store.clone(), true, None);
    let status = node.wait_for("all tasks that are left", |s| s.state == State::CaughtUp).await;
    assert_eq!(status.newest_gap, Some((TaskNumber(FIRST), TaskNumber(FIRST + 2))));
    node.stop().await;
    assert_eq!(store.numbers(), (FIRST + 3..=FIRST + 5).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_change_and_overlap_publish_each_task_once_and_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tasks.db");
    let open = || Arc::new(SqliteOutput::new(SqliteOptions::new(&path), owner()));
    let feed = Feed::new();
    let nodes = [Node::start(&feed, open(), true, None), Node::start(&feed, open(), false, None)];
    let mut newest = FIRST;
    for round in 0..30_usize {
        newest += 1 + (round as u64 * 37) % 190;
        feed.finalize(newest);
        let (leader, other) = (&nodes[round % 2], &nodes[(round + 1) % 2]);
        leader.active.send_replace(true);
        // In every third round the old leader does not know yet that it is deposed.
        other.active.send_replace(round % 3 == 0);
        let reached = newest - (round as u64 * 11) % 60;
        leader.wait_for("the leader gets on", |s| s.last_published >= number(reached)).await;
    }
    nodes[1].active.send_replace(true);
    nodes[1].wait_for("all tasks", |s| s.last_published == number(newest)).await;
    for node in nodes {
        node.stop().await;
    }
    let connection = rusqlite::Connection::open(&path).unwrap();
    let mut statement = connection.prepare("SELECT id FROM tasks ORDER BY rowid").unwrap();
    let ids: Vec<i64> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert!(ids.iter().map(|id| *id as u64).eq(FIRST..=newest), "{ids:?}");
    let store = open();
    for n in FIRST..=newest {
        let expected = signer().sign(unsigned(n));
        assert_eq!(store.read(&expected.id).await.unwrap(), Some(expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_that_pass_are_retried_and_nothing_is_skipped() {
    let (feed, store) = (Feed::new(), Arc::new(Fake::default()));
    let away = || OutputError::Retryable("away".to_owned());
    store.failures.lock().unwrap().extend([away(), away(), OutputError::Moved { actual_last: number(9) }, away()]);
    feed.finalize(50);
    let node = Node::start(&feed, store.clone(), true, None);
    let status = node.wait_for("the failure is visible", |s| s.last_error.is_some()).await;
    assert_eq!((status.state, status.lag), (State::Retrying, 46));
    let status = node.wait_for("all tasks", |s| s.last_published == number(50)).await;
    assert_eq!(status.last_error, None);
    node.stop().await;
    assert_eq!(store.numbers(), (FIRST..=50).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_task_stops_publishing_right_before_it_and_is_shown() {
    let (feed, store) = (Feed::new(), Arc::new(Fake::default()));
    *store.refuses.lock().unwrap() = number(20);
    feed.finalize(50);
    let node = Node::start(&feed, store.clone(), true, None);
    let status = node.wait_for("the refusal is visible", |s| s.state == State::Blocked).await;
    assert_eq!((status.last_published, status.lag), (number(19), 31));
    assert!(status.last_error.unwrap().contains("task 20"));
    *store.refuses.lock().unwrap() = None;
    node.wait_for("all tasks", |s| s.state == State::CaughtUp && s.last_published == number(50)).await;
    node.stop().await;
    assert_eq!(store.numbers(), (FIRST..=50).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_store_blocks_publishing() {
    let (feed, store) = (Feed::new(), Arc::new(Fake::default()));
    store.failures.lock().unwrap().push_back(OutputError::Foreign("another network's".to_owned()));
    feed.finalize(50);
    let node = Node::start(&feed, store.clone(), true, None);
    node.wait_for("the reason is visible", |s| s.state == State::Blocked && s.last_error.is_some()).await;
    assert!(store.numbers().is_empty());
    // Another turn as the leader looks at once.
    node.active.send_replace(false);
    node.wait_for("it stands by", |s| s.state == State::Standby).await;
    node.active.send_replace(true);
    node.wait_for("all tasks", |s| s.last_published == number(50)).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_network_records_nothing() {
    let (feed, store) = (Feed::new(), Arc::new(Fake::default()));
    feed.finalize(50);
    let node = Node::start(&feed, store.clone(), true, None);
    eventually("the end is recorded", || async { (feed.records().last() == Some(&TaskNumber(50))).then_some(()) })
        .await;
    node.stop().await;
    let before = feed.records();
    let node = Node::start(&feed, store, true, before.last().copied());
    node.wait_for("all tasks", |s| s.state == State::CaughtUp).await;
    // Longer than the time between two records.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(feed.records(), before);
    for n in 51..=90 {
        feed.finalize(n);
        node.wait_for("the task", |s| s.last_published == number(n)).await;
    }
    eventually("the end is recorded", || async { (feed.records().last() == Some(&TaskNumber(90))).then_some(()) })
        .await;
    assert!(feed.records().len() <= before.len() + 4, "{:?}", feed.records());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_the_leader_publishes_nothing() {
    let (feed, store) = (Feed::new(), Arc::new(Fake::default()));
    let node = Node::start(&feed, store.clone(), true, None);
    feed.finalize(50);
    node.wait_for("the first tasks", |s| s.last_published == number(50)).await;
    node.active.send_replace(false);
    node.wait_for("it stands by", |s| s.state == State::Standby).await;
    let calls = store.calls.lock().unwrap().len();
    feed.finalize(500);
    let second = Node::start(&feed, store.clone(), true, None);
    second.wait_for("the new leader publishes", |s| s.last_published == number(500)).await;
    assert_eq!((node.handle.status().state, node.handle.status().lag), (State::Standby, 450));
    assert!(store.calls.lock().unwrap().len() > calls);
    node.stop().await;
    second.stop().await;
    assert_eq!(store.numbers(), (FIRST..=500).collect::<Vec<_>>());
}
