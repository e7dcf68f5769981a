//! Tasks with origins, and what every store of blobs must do beside the suite.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockstep_outputs::publisher::State;
use lockstep_outputs::{
    FinalTask, Origin, Output, OutputError, Part, ProgressSink, SourceError, TaskSource, UnsignedTask,
};
use lockstep_types::blob::{Anchor, BlobMessage};
use lockstep_types::certificate::sign_batch;
use lockstep_types::{
    Api, BatchHash, BatchHeader, Certificate, Digest, Epoch, Evidence, Height, MemberSet, Message, NodeId, ProjectId,
    Signature, SigningKey, TaskNumber, TimeMs, keccak256,
};

use crate::conformance::Store;
use crate::stored::walk;
use crate::support::{FIRST, Feed, Node, number, outage, owner, unsigned};

/// Tasks of one part in these tests; each batch has two parts.
pub const PART: u64 = 16;

/// A batch of the one history that the tests share. What it hangs on is for readers to check, not for adapters.
fn anchor(height: u64) -> Anchor {
    let key = SigningKey::from_bytes([1; 32]).unwrap();
    let members = MemberSet::default();
    let header = BatchHeader {
        rules_version: 1,
        network: owner().network,
        epoch: Epoch(0),
        height: Height(height),
        parent: BatchHash(keccak256(&[&height.to_be_bytes()])),
        time_ms: TimeMs(1_790_000_000_000 + height),
        first_sequence: lockstep_types::Sequence(height * 1_000),
        message_count: 1_000,
        messages_root: [4; 32],
        first_task_number: TaskNumber(FIRST + (height - 1) * 2 * PART),
        task_count: 2 * PART,
        tasks_root: [5; 32],
        members: members.hash(),
        next_members: members.hash(),
        effects: [6; 32],
    };
    let hash = header.hash();
    let certificate =
        Certificate { height: Height(height), hash, signatures: vec![(NodeId(1), sign_batch(&key, &hash))] };
    Anchor { header, headers: Vec::new(), certificate, members, boundaries: Vec::new() }
}

/// As [`unsigned`], with its origin.
pub fn unsigned_with_origin(number: u64) -> UnsignedTask {
    let place = number - FIRST;
    let (height, part) = (place / (2 * PART) + 1, u32::try_from(place / PART % 2).unwrap());
    let task = unsigned(number);
    let message = |m: &lockstep_outputs::FinalMessage| {
        let message = Message {
            api: Api::Apinode,
            project_id: task.project_id,
            project_version: task.project_version.clone(),
            data: m.data.clone(),
            device: task.device,
            nonce: Default::default(),
            evidence: Evidence::Device(Signature([7; 65])),
            via: NodeId(0),
        };
        BlobMessage::new(m.sequence, m.id, (1, Height(0)), &message)
    };
    let part = Arc::new(Part { anchor: anchor(height), part, parts: 2 });
    let messages = task.messages.iter().map(message).collect();
    let time_ms = part.anchor.header.time_ms;
    let origin = Origin { part, path: vec![Digest([9; 32]); 3], messages, ruled: None };
    UnsignedTask { time_ms, origin: Some(Arc::new(origin)), ..task }
}

/// Tasks with a signature that only looks like one.
pub fn blob_tasks(numbers: RangeInclusive<u64>) -> Vec<FinalTask> {
    let task = |number| {
        let UnsignedTask { number, id, project_id, project_version, device, time_ms, messages, origin, .. } =
            unsigned_with_origin(number);
        let signature = Signature([number.0 as u8; 65]);
        FinalTask { number, id, project_id, project_version, device, time_ms, messages, signature, origin }
    };
    numbers.map(task).collect()
}

/// A feed whose tasks have origins, in whole parts.
pub struct BlobFeed(pub Arc<Feed>);

#[async_trait]
impl TaskSource for BlobFeed {
    async fn tasks_after(
        &self,
        _number: Option<TaskNumber>,
        _max_tasks: usize,
        _max_bytes: usize,
    ) -> Result<Vec<UnsignedTask>, SourceError> {
        Err(SourceError::Unavailable("a store of blobs asks for parts".to_owned()))
    }

    async fn parts_after(
        &self,
        number: Option<TaskNumber>,
        max_tasks: usize,
        max_bytes: usize,
        _part_bytes: usize,
    ) -> Result<Vec<UnsignedTask>, SourceError> {
        let tasks = self.0.tasks_after(number, max_tasks, max_bytes).await?;
        let whole =
            |task: UnsignedTask| UnsignedTask { project_id: task.project_id, ..unsigned_with_origin(task.number.0) };
        Ok(tasks.into_iter().map(whole).collect())
    }
}

/// Ways to make a store misbehave.
#[async_trait]
pub trait Faulty: Store {
    /// Answers nothing but errors from now on, or works again.
    fn set_down(&self, down: bool);
    /// Lets every request wait.
    fn set_slow(&self, time: Option<Duration>);
    /// Refuses the blob of the part that begins with this task, or takes everything again.
    async fn set_refusing(&self, task: Option<u64>);
}

/// A publisher at work on a store.
pub fn publisher(feed: &Arc<Feed>, output: Arc<dyn Output>) -> Node {
    let source = Arc::new(BlobFeed(Arc::clone(feed)));
    let sink: Arc<dyn ProgressSink> = feed.clone();
    Node::start_from(feed, (source, sink), output, true, None)
}

pub async fn a_store_that_is_down_for_a_while_gets_everything_when_it_is_back(store: &dyn Faulty) {
    let feed = Feed::new();
    feed.finalize(FIRST + 4);
    let node = publisher(&feed, store.open(owner()));
    node.wait_for("the first tasks", |s| s.last_published == number(FIRST + 4)).await;
    store.set_down(true);
    feed.finalize(FIRST + 3 * PART);
    let status = node.wait_for("the failure is visible", |s| s.last_error.is_some()).await;
    assert_eq!((status.state, status.last_published), (State::Retrying, number(FIRST + 4)));
    outage().await;
    store.set_down(false);
    let status = node.wait_for("all tasks", |s| s.last_published == number(FIRST + 3 * PART)).await;
    assert_eq!(status.last_error, None);
    node.stop().await;
    let places = feed.places.lock().unwrap().clone();
    let mut next = FIRST;
    for place in &places {
        assert!(place.first.0 <= next && place.last.0 >= next, "{places:?}");
        next = place.last.0 + 1;
    }
    assert_eq!(next, FIRST + 3 * PART + 1);
}

pub async fn a_slow_store_gets_everything_in_order(store: &dyn Faulty) {
    store.set_slow(Some(Duration::from_millis(150)));
    let feed = Feed::new();
    let node = publisher(&feed, store.open(owner()));
    for last in [FIRST, FIRST + 5, FIRST + 2 * PART] {
        feed.finalize(last);
        node.wait_for("the task", |s| s.last_published == number(last)).await;
    }
    store.set_slow(None);
    node.stop().await;
}

pub async fn refused_data_stops_right_before_it_and_is_told(store: &dyn Faulty) {
    let output = store.open(owner());
    let second = FIRST + PART;
    store.set_refusing(Some(second)).await;
    let refused = output.publish(&blob_tasks(FIRST..=FIRST + 2 * PART), None).await;
    assert!(matches!(&refused, Err(OutputError::Refused { task, .. }) if *task == TaskNumber(second)), "{refused:?}");
    output.publish(&blob_tasks(FIRST..=second - 1), None).await.unwrap();
    store.set_refusing(None).await;
    output.publish(&blob_tasks(second..=second + 3), number(second - 1)).await.unwrap();
    for task in blob_tasks(FIRST..=second + 3) {
        assert_eq!(output.read(&task.id).await.unwrap(), Some(task));
    }
}

pub async fn what_is_too_large_or_of_unknown_origin_is_refused(store: &dyn Faulty) {
    let output = store.open(owner());
    let refused = output.publish(&crate::support::tasks(FIRST..=FIRST), None).await;
    assert!(matches!(refused, Err(OutputError::Refused { .. })), "{refused:?}");
    let mut tasks = blob_tasks(FIRST..=FIRST + PART);
    let large = tasks.last_mut().unwrap();
    let mut origin = Origin::clone(large.origin.as_ref().unwrap());
    origin.messages[0].message.data = vec![b'x'; lockstep_types::blob::BLOB_BYTES_MAX].into();
    large.origin = Some(Arc::new(origin));
    let number = large.number;
    let refused = output.publish(&tasks, None).await;
    assert!(matches!(refused, Err(OutputError::Refused { task, .. }) if task == number), "{refused:?}");
}

pub async fn tasks_of_other_projects_are_left_out(store: &dyn Faulty) {
    let feed = Feed::new();
    feed.mix();
    let start = |output| {
        Node::start_with(&feed, output, true, |options| {
            options.source = Arc::new(BlobFeed(Arc::clone(&feed)));
            options.projects = Some([ProjectId(8)].into());
        })
    };
    let node = start(store.open(owner()));
    let newest = FIRST + 4 * PART;
    for last in [newest - 1, newest] {
        feed.finalize(last);
        node.wait_for("the end", |s| s.last_published == number(last)).await;
    }
    let told = || async { (feed.records().last() == Some(&TaskNumber(newest))).then_some(()) };
    crate::support::eventually("it is recorded", told).await;
    node.stop().await;
    let places = feed.places.lock().unwrap().clone();
    let found = walk(&store.open(owner()), 0, 10, &places).await;
    assert_eq!(found.damaged, []);
    let numbers: Vec<u64> = found.tasks.iter().map(|task| task.number.0).collect();
    assert_eq!(numbers, (FIRST..=newest).filter(|n| n % 3 == 0).collect::<Vec<_>>());
    assert!(found.tasks.iter().all(|task| task.project_id == ProjectId(8)));
    // A part has one blob, though there are others' tasks in between.
    let blobs: BTreeSet<_> = places.iter().map(|place| (&place.locator, &place.commitment)).collect();
    assert!((4..=5).contains(&blobs.len()), "{places:?}");
}

/// Runs the claims of this file, each on a store that `$new` makes.
#[macro_export]
macro_rules! blob_suite {
    ($new:expr) => {
        $crate::conformance_suite!(@in blobs; $new;
            a_store_that_is_down_for_a_while_gets_everything_when_it_is_back,
            a_slow_store_gets_everything_in_order,
            refused_data_stops_right_before_it_and_is_told,
            what_is_too_large_or_of_unknown_origin_is_refused,
            tasks_of_other_projects_are_left_out,
        );
    };
}
