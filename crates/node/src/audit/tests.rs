//! Walks over stores that lack something, or have too much.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_outputs::{
    AltDaMode, AltDaOptions, AltDaOutput, Damaged, FinalMessage, FinalTask, Layout, Output, OutputError, Owner, Page,
    Place, RefusedTask, SourceError, SqliteOptions, SqliteOutput, TaskSigner, TaskSource, UnsignedTask,
};
use lockstep_types::{
    Address, Epoch, MessageId, NetworkId, OutputName, ProjectId, Sequence, SigningKey, TaskId, TaskNumber, TimeMs,
    keccak256,
};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{AuditError, AuditProgress, FindingKind, Places, Walk, WalkParts};
use crate::config::OutputConfig;
use crate::store_calls::StoreCalls;

/// Nothing is recorded.
struct NoPlaces;

impl Places for NoPlaces {
    fn places(&self, _output: &OutputName, _first: TaskNumber, _max: usize) -> Result<Vec<Place>, String> {
        Ok(Vec::new())
    }
}

const OWNER: Owner = Owner { network: NetworkId([7; 32]), epoch: Epoch(0), first_task_number: TaskNumber(1) };

/// A chain of tasks of one message each, every third of project 8; those below are no longer kept.
struct Chain {
    kept_from: u64,
    newest: u64,
}

fn unsigned(number: u64) -> UnsignedTask {
    UnsignedTask {
        number: TaskNumber(number),
        id: TaskId(keccak256(&[&number.to_be_bytes()])),
        project_id: ProjectId(if number.is_multiple_of(3) { 8 } else { 7 }),
        project_version: "1".into(),
        device: Address([1; 20]),
        time_ms: TimeMs(1_790_000_000_000 + number),
        messages: vec![FinalMessage {
            sequence: Sequence(number),
            id: MessageId(keccak256(&[b"m", &number.to_be_bytes()])),
            data: Bytes::from(number.to_string()),
        }],
        ruled: None,
        origin: None,
    }
}

fn signer() -> TaskSigner {
    TaskSigner::new(SigningKey::from_bytes([5; 32]).unwrap())
}

fn tasks(numbers: impl IntoIterator<Item = u64>, layout: Layout) -> Vec<FinalTask> {
    numbers.into_iter().map(|number| signer().sign(unsigned(number), layout)).collect()
}

#[async_trait]
impl TaskSource for Chain {
    async fn tasks_after(
        &self,
        number: Option<TaskNumber>,
        _max_tasks: usize,
        _max_bytes: usize,
    ) -> Result<Vec<UnsignedTask>, SourceError> {
        let next = number.map_or(1, |number| number.0 + 1);
        if next < self.kept_from {
            return Err(SourceError::Forgotten(TaskNumber(self.kept_from - 1)));
        }
        // Few at a time, so that pages of both sides end in different places.
        Ok((next..=self.newest).take(7).map(unsigned).collect())
    }

    async fn parts_after(
        &self,
        number: Option<TaskNumber>,
        max_tasks: usize,
        max_bytes: usize,
        _part_bytes: usize,
    ) -> Result<Vec<UnsignedTask>, SourceError> {
        self.tasks_after(number, max_tasks, max_bytes).await
    }
}

struct Audited {
    output: Arc<dyn Output>,
    config: OutputConfig,
    _directory: tempfile::TempDir,
}

impl Audited {
    fn new(layout: Layout) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteOptions { layout, ..SqliteOptions::new(directory.path().join("tasks.sqlite")) };
        let config = "name = \"tasks\"\nscope = \"node\"\nkind = \"sqlite\"\npath = \"tasks.sqlite\"";
        let config = toml::from_str(config).unwrap();
        Self { output: Arc::new(SqliteOutput::new(options, OWNER)), config, _directory: directory }
    }

    /// Audits on a thread of its own, as the node does.
    async fn audit(&self, chain: Chain, from: u64, places: impl Places + 'static) -> (AuditProgress, Option<String>) {
        let progress = Mutex::new(AuditProgress::of(self.config.name.clone()));
        let calls = StoreCalls { runtime: Handle::current(), stop: CancellationToken::new() };
        let (output, config, signer) = (self.output.clone(), self.config.clone(), signer());
        let walking = tokio::task::spawn_blocking(move || {
            let newest = Some(TaskNumber(chain.newest));
            let parts = WalkParts {
                config: &config,
                output: &*output,
                source: &chain,
                signer: &signer,
                places: &places,
                calls,
                progress: &progress,
            };
            let result: Result<(), AuditError> = Walk::new(parts).run(TaskNumber(from), newest);
            (progress.into_inner(), result.err().map(|error| error.to_string()))
        });
        walking.await.unwrap()
    }
}

fn at(n: u64) -> TaskNumber {
    TaskNumber(n)
}

#[tokio::test]
async fn what_a_store_lacks_for_a_reason_is_told_apart_from_what_is_missing() {
    let mut audited = Audited::new(Layout::Apinode);
    let (output, of) =
        (audited.output.clone(), |numbers: std::ops::RangeInclusive<u64>| tasks(numbers, Layout::Apinode));
    output.publish(&of(1..=30), None).await.unwrap();
    output.skip(at(50), Some(at(30))).await.unwrap();
    let refused = RefusedTask { number: at(51), id: None, project_id: ProjectId(8), reason: "a test".into() };
    output.aside().unwrap().refuse(&refused, Some(at(50))).await.unwrap();
    // The caller vouches that 60 to 69 are for others, which is not so.
    output.publish(&[of(52..=59), of(70..=90)].concat(), Some(at(51))).await.unwrap();
    output.fill(&of(40..=41)).await.unwrap();
    let (found, error) = audited.audit(Chain { kept_from: 11, newest: 95 }, 1, NoPlaces).await;
    assert_eq!((error, found.range, found.not_kept, found.unpublished), (None, Some((at(1), at(90))), 10, 5));
    assert_eq!((found.skipped, found.refused, found.others, found.good), (18, 1, 0, 20 + 2 + 8 + 21));
    assert_eq!((found.findings.total(), found.findings.listed[0].tasks), (10, Some((at(60), at(69)))));
    assert_eq!(found.tasks_done, found.tasks_total());
    // With a filter, tasks of others are surplus where they are there, and nothing where they are not.
    audited.config.projects = Some([ProjectId(7)].into());
    let (found, _) = audited.audit(Chain { kept_from: 1, newest: 95 }, 58, NoPlaces).await;
    assert_eq!((found.findings.count(FindingKind::Surplus), found.findings.count(FindingKind::Missing)), (7, 6));
    assert_eq!((found.others, found.good), (4, 1 + 1 + 14));
}

#[tokio::test]
async fn what_waits_behind_a_halted_project_is_not_missing() {
    let audited = Audited::new(Layout::Sprout);
    let output = audited.output.clone();
    output.publish(&tasks(1..=8, Layout::Sprout), None).await.unwrap();
    let refused = RefusedTask { number: at(9), id: None, project_id: ProjectId(8), reason: "a test".into() };
    output.aside().unwrap().refuse(&refused, Some(at(8))).await.unwrap();
    output.publish(&tasks(10..=20, Layout::Sprout), Some(at(9))).await.unwrap();
    let (found, error) = audited.audit(Chain { kept_from: 1, newest: 20 }, 1, NoPlaces).await;
    // 9, 12, 15 and 18.
    assert_eq!((error, found.refused, found.good, found.findings.total()), (None, 4, 16, 0));
}

#[tokio::test]
async fn another_key_or_another_task_is_a_difference() {
    let audited = Audited::new(Layout::Apinode);
    let mut all = tasks(1..=20, Layout::Apinode);
    let other = TaskSigner::new(SigningKey::from_bytes([6; 32]).unwrap());
    all[4] = other.sign(unsigned(5), Layout::Apinode);
    all[9] = signer().sign(UnsignedTask { time_ms: TimeMs(1), ..unsigned(10) }, Layout::Apinode);
    audited.output.publish(&all, None).await.unwrap();
    let (found, error) = audited.audit(Chain { kept_from: 1, newest: 20 }, 1, NoPlaces).await;
    let said: Vec<String> = found.findings.listed.iter().map(ToString::to_string).collect();
    assert_eq!((error, said), (None, vec!["task 5: different: signature".into(), "task 10: different: time".into()]));
}

/// A store that gives what it is told.
struct Odd(Page);

#[async_trait]
impl Output for Odd {
    async fn publish(
        &self,
        _tasks: &[FinalTask],
        _expected_last: Option<TaskNumber>,
    ) -> Result<lockstep_outputs::Receipt, OutputError> {
        Err(OutputError::Retryable("no".into()))
    }
    async fn skip(&self, _last: TaskNumber, _expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        Ok(())
    }
    async fn fill(&self, _tasks: &[FinalTask]) -> Result<(), OutputError> {
        Ok(())
    }
    async fn first_gap(
        &self,
        _first: TaskNumber,
        _last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        Ok(None)
    }
    async fn last(&self) -> Result<Option<TaskNumber>, OutputError> {
        Ok(Some(at(20)))
    }
    async fn adopt(&self, _adoption: &lockstep_outputs::Adoption) -> Result<lockstep_outputs::Adopted, OutputError> {
        Err(OutputError::Retryable("no".into()))
    }
    async fn read(&self, _id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        Ok(None)
    }
    async fn stored(&self, first: TaskNumber, _max: usize, _places: &[Place]) -> Result<Page, OutputError> {
        match first.0 {
            1 => Ok(self.0.clone()),
            2..=15 => Ok(Page::default()),
            _ => Err(OutputError::Foreign("a message of nobody".into())),
        }
    }
}

#[tokio::test]
async fn disorder_and_damage_are_counted_and_what_cannot_be_read_ends_the_audit() {
    let mut page: Page = tasks([1, 2, 3, 5, 4, 9], Layout::Apinode).into();
    page.damaged.push(Damaged { first: at(6), last: at(8), reason: "broken".into() });
    let mut audited = Audited::new(Layout::Apinode);
    audited.output = Arc::new(Odd(page));
    let (found, error) = audited.audit(Chain { kept_from: 1, newest: 12 }, 1, NoPlaces).await;
    let said: Vec<String> = found.findings.listed.iter().map(ToString::to_string).collect();
    let expected = [
        "task 4: out of order: it comes behind a task with a greater number",
        "tasks 6 to 8: damaged: broken",
        "task 4: missing",
        "tasks 10 to 12: missing",
    ];
    assert_eq!((error, found.good), (None, 5));
    assert_eq!(said, expected);
    let (found, error) = audited.audit(Chain { kept_from: 1, newest: 20 }, 16, NoPlaces).await;
    assert!(error.unwrap().contains("a message of nobody"));
    assert_eq!(found.findings.count(FindingKind::Damaged), 1);
}

/// Places that are no longer there.
struct Recorded;

impl Places for Recorded {
    fn places(&self, _output: &OutputName, first: TaskNumber, _max: usize) -> Result<Vec<Place>, String> {
        let place = Place {
            first: at(1),
            last: at(5),
            locator: "altda:0x00".into(),
            commitment: vec![0; 33],
            height: None,
            stage: lockstep_outputs::Stage::Final,
        };
        Ok((first <= at(5)).then_some(place).into_iter().collect())
    }
}

#[tokio::test]
async fn a_store_that_keeps_no_cursor_is_compared_where_receipts_are_known() {
    let mut audited = Audited::new(Layout::Apinode);
    // Nothing listens there.
    let options = AltDaOptions::new("http://127.0.0.1:1".parse().unwrap(), AltDaMode::Keccak);
    audited.output = Arc::new(AltDaOutput::new(options, OWNER).unwrap());
    let (_, error) = audited.audit(Chain { kept_from: 1, newest: 9 }, 1, NoPlaces).await;
    assert!(error.unwrap().contains("no receipts are known"));
    let (found, error) = audited.audit(Chain { kept_from: 1, newest: 9 }, 1, Recorded).await;
    assert_eq!((found.range, found.unpublished), (Some((at(1), at(5))), 4));
    assert!(error.is_some());
}
