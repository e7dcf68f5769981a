//! The publisher: leader changes, failures, and silence when nothing happens.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lockstep_outputs::publisher::State;
use lockstep_outputs::{
    Adopted, Adoption, FinalTask, Layout, Options, Output, OutputError, Page, Place, Receipt, Refusals, RefusedTask,
    SetAside, Slot, SqliteOptions, SqliteOutput, Status,
};
use lockstep_types::signature::recover_address;
use lockstep_types::{MessageId, ProjectId, SigningKey, TaskId, TaskNumber};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

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

    async fn stored(&self, first: TaskNumber, max: usize, _places: &[Place]) -> Result<Page, OutputError> {
        let tasks = self.tasks.lock().unwrap();
        Ok(tasks.iter().filter(|task| task.number >= first).take(max).cloned().collect::<Vec<_>>().into())
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
    assert_eq!(recover_address(&task.digest(Layout::Apinode), &task.signature), Ok(address));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_broke_off_is_followed_by_one_with_the_same_view() {
    let (feed, store, mut slot) = (Feed::new(), Arc::new(Fake::default()), Slot::default());
    let handle = slot.handle(owner(), feed.newest.subscribe());
    let options = || Options {
        name: "test".parse().unwrap(),
        owner: owner(),
        output: store.clone(),
        source: feed.clone(),
        sink: feed.clone(),
        signer: signer(),
        newest: feed.newest.subscribe(),
        active: watch::channel(true).1,
        paused: watch::channel(false).1,
        projects: None,
        recorded: None,
    };
    let caught_up = async |last| {
        let is_so = |status: &Status| status.state == State::CaughtUp && status.last_published == number(last);
        eventually("all tasks", || async { Some(handle.status()).filter(is_so) }).await
    };
    feed.finalize(FIRST + 20);
    let first = tokio::spawn(slot.publisher(options()).run(CancellationToken::new()));
    caught_up(FIRST + 20).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    slot.broke_off("it panicked");
    let status = handle.status();
    assert_eq!((status.state, status.last_published), (State::Retrying, number(FIRST + 20)));
    assert!(status.last_error.is_some_and(|error| error.contains("it panicked")));
    feed.finalize(FIRST + 30);
    let token = CancellationToken::new();
    let second = tokio::spawn(slot.publisher(options()).run(token.clone()));
    assert_eq!(caught_up(FIRST + 30).await.last_error, None);
    token.cancel();
    second.await.unwrap();
    assert_eq!(store.numbers(), (FIRST..=FIRST + 30).collect::<Vec<_>>());
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
async fn where_tasks_are_is_told_until_it_is_noted_and_found_out_anew_by_the_next_publisher() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tasks.db");
    let open = || Arc::new(SqliteOutput::new(SqliteOptions::new(&path), owner()));
    let feed = Feed::new();
    let told = || {
        let places = feed.places.lock().unwrap();
        (places.first().map(|place| place.first.0), places.last().map(|place| place.last.0))
    };
    feed.deaf.store(true, Ordering::SeqCst);
    feed.finalize(3_000);
    let node = Node::start(&feed, open(), true, None);
    node.wait_for("all tasks", |s| s.state == State::CaughtUp).await;
    node.stop().await;
    assert_eq!(told(), (None, None));
    // The next one was not there when they were published.
    feed.finalize(3_010);
    let node = Node::start(&feed, open(), true, None);
    node.wait_for("all tasks", |s| s.state == State::CaughtUp && s.last_published == number(3_010)).await;
    feed.deaf.store(false, Ordering::SeqCst);
    eventually("everything is told", async || (told() == (Some(FIRST), Some(3_010))).then_some(())).await;
    node.stop().await;
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
        let mut expected = signer().sign(unsigned(n), Layout::Apinode);
        expected.messages.iter_mut().for_each(|message| message.id = MessageId::ZERO);
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
async fn who_is_paused_publishes_nothing_and_goes_on_afterwards() {
    let (feed, store) = (Feed::new(), Arc::new(Fake::default()));
    let node = Node::start(&feed, store.clone(), true, None);
    feed.finalize(50);
    node.wait_for("the first tasks", |s| s.last_published == number(50)).await;
    node.paused.send_replace(true);
    node.wait_for("it is paused", |s| s.state == State::Paused).await;
    let calls = store.calls.lock().unwrap().len();
    feed.finalize(500);
    // Paused is paused, whoever leads.
    node.active.send_replace(false);
    node.active.send_replace(true);
    assert_eq!((node.handle.status().lag, node.handle.retry()), (450, false));
    assert_eq!(store.calls.lock().unwrap().len(), calls);
    node.paused.send_replace(false);
    node.wait_for("all tasks", |s| s.last_published == number(500)).await;
    node.stop().await;
    assert_eq!(store.numbers(), (FIRST..=500).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_other_projects_are_passed_over_and_no_gap() {
    for layout in [Layout::Apinode, Layout::Sprout] {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteOptions { layout, ..SqliteOptions::new(directory.path().join("tasks.db")) };
        let store = Arc::new(SqliteOutput::new(options, owner()));
        let feed = Feed::new();
        feed.mix();
        let wanted = Some([ProjectId(8)].into());
        let node = Node::start_with(&feed, store.clone(), true, |options| options.projects = wanted);
        feed.finalize(3_001);
        node.wait_for("the end", |s| s.last_published == number(3_001)).await;
        feed.finalize(3_004);
        node.wait_for("the end", |s| s.last_published == number(3_004)).await;
        node.stop().await;
        assert_eq!(store.first_gap(TaskNumber(FIRST), TaskNumber(3_004)).await, Ok(None));
        for n in (FIRST..=3_004).step_by(7) {
            assert_eq!(store.read(&unsigned(n).id).await.unwrap().is_some(), n % 3 == 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_leaves_a_task_out_is_not_believed() {
    let (feed, store) = (Feed::new(), Arc::new(Fake::default()));
    feed.lose(20);
    feed.finalize(50);
    let node = Node::start(&feed, store.clone(), true, None);
    let status = node.wait_for("the failure is visible", |s| s.last_error.is_some()).await;
    assert_eq!((status.state, status.last_error.unwrap().contains("task 20")), (State::Retrying, true));
    feed.lose(0);
    node.wait_for("all tasks", |s| s.last_published == number(50)).await;
    node.stop().await;
    assert_eq!(store.numbers(), (FIRST..=50).collect::<Vec<_>>());
}

/// A store of the layout sprout that refuses some tasks until it is told otherwise.
struct Choosy {
    store: SqliteOutput,
    refuses: Mutex<Vec<u64>>,
}

impl Choosy {
    fn check(&self, tasks: &[FinalTask]) -> Result<(), OutputError> {
        let refuses = self.refuses.lock().unwrap();
        match tasks.iter().find(|task| refuses.contains(&task.number.0)) {
            Some(task) => Err(OutputError::Refused { task: task.number, reason: "a test".to_owned() }),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Output for Choosy {
    fn layout(&self) -> Layout {
        self.store.layout()
    }

    fn aside(&self) -> Option<&dyn SetAside> {
        Some(self)
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopted, OutputError> {
        self.store.adopt(adoption).await
    }

    async fn fill(&self, tasks: &[FinalTask]) -> Result<(), OutputError> {
        self.check(tasks)?;
        self.store.fill(tasks).await
    }

    async fn first_gap(
        &self,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        self.store.first_gap(first, last).await
    }

    async fn skip(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        self.store.skip(last, expected_last).await
    }

    async fn publish(&self, tasks: &[FinalTask], expected: Option<TaskNumber>) -> Result<Receipt, OutputError> {
        self.check(tasks)?;
        self.store.publish(tasks, expected).await
    }

    async fn last(&self) -> Result<Option<TaskNumber>, OutputError> {
        self.store.last().await
    }

    async fn read(&self, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        self.store.read(id).await
    }

    async fn stored(&self, first: TaskNumber, max: usize, places: &[Place]) -> Result<Page, OutputError> {
        self.store.stored(first, max, places).await
    }
}

#[async_trait]
impl SetAside for Choosy {
    async fn refuse(&self, task: &RefusedTask, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        self.store.refuse(task, expected_last).await
    }

    async fn refused(&self, after: Option<TaskNumber>) -> Result<Refusals, OutputError> {
        self.store.refused(after).await
    }

    async fn resume(&self, from: TaskNumber, tasks: &[FinalTask], to: &RefusedTask) -> Result<(), OutputError> {
        self.check(tasks)?;
        self.store.resume(from, tasks, to).await
    }

    async fn lift(&self, project_id: ProjectId, last: TaskNumber) -> Result<(), OutputError> {
        self.store.lift(project_id, last).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_task_halts_its_project_only_and_what_waited_follows_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tasks.db");
    let options = SqliteOptions { layout: Layout::Sprout, ..SqliteOptions::new(&path) };
    let refuses = Mutex::new(vec![20, 1_000, 2_500]);
    let store = Arc::new(Choosy { store: SqliteOutput::new(options, owner()), refuses });
    let feed = Feed::new();
    feed.mix();
    feed.finalize(4_000);
    let node = Node::start(&feed, store.clone(), true, None);
    let status = node.wait_for("the others go on", |s| s.last_published == number(4_000)).await;
    // Of project 7 each; 2,500 waits behind 20, and is not refused before it is its turn.
    assert_eq!((status.refused_count, status.refused[0].0), (1, TaskNumber(20)));
    let connection = rusqlite::Connection::open(&path).unwrap();
    let ids = |project: u64| -> Vec<i64> {
        let sql = "SELECT id FROM tasks WHERE project_id = ?1 ORDER BY created_at, id";
        let mut statement = connection.prepare(sql).unwrap();
        statement.query_map([project as i64], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let of = |project: u64, end: u64| (FIRST..end).filter(move |n| (n % 3 == 0) == (project == 8)).map(|n| n as i64);
    assert!(ids(8).into_iter().eq(of(8, 4_001)) && ids(7).into_iter().eq(of(7, 20)));
    // Behind what is fine now comes what is not: it halts there, with its own reason.
    store.refuses.lock().unwrap().remove(0);
    assert!(node.handle.retry());
    let at = |task: u64| move |s: &Status| s.refused.iter().map(|r| r.0.0).eq([task]);
    node.wait_for("it halts at the next one", at(1_000)).await;
    assert!(ids(7).into_iter().eq(of(7, 1_000)));
    // Broken off half-way, it is taken up by whoever publishes next.
    store.refuses.lock().unwrap().clear();
    node.active.send_replace(false);
    node.wait_for("it stands by", |s| s.state == State::Standby).await;
    let (sign, all) = (signer(), (1_000..1_500).map(|n| feed.task(n)));
    let waiting: Vec<FinalTask> =
        all.filter(|task| task.project_id.0 == 7).map(|task| sign.sign(task, Layout::Sprout)).collect();
    let to = RefusedTask { number: TaskNumber(1_500), id: None, project_id: ProjectId(7), reason: "half".into() };
    store.resume(TaskNumber(1_000), &waiting, &to).await.unwrap();
    feed.finalize(4_100);
    node.active.send_replace(true);
    node.wait_for("nothing waits", |s| s.refused_count == 0 && s.last_published == number(4_100)).await;
    node.stop().await;
    assert!(ids(7).into_iter().eq(of(7, 4_101)) && ids(8).into_iter().eq(of(8, 4_101)));
    let key = SigningKey::from_bytes([0x11; 32]).unwrap().address();
    for n in (FIRST..=4_100).step_by(41) {
        let task = store.read(&unsigned(n).id).await.unwrap().unwrap();
        assert_eq!(recover_address(&task.digest(Layout::Sprout), &task.signature), Ok(key));
    }
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
