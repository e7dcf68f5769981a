//! Alt-DA servers and Celestia: our own servers of the testkit, which see.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use lockstep_outputs::publisher::State as PublisherState;
use lockstep_outputs::{
    AltDaMode, AltDaOptions, AltDaOutput, CelestiaOptions, CelestiaOutput, FinalTask, Output, OutputError, Owner, Stage,
};
use lockstep_testkit::da::{KINDS, Kind, NAMESPACE, Server, TOKEN};
use lockstep_types::{Height, TaskNumber};

use crate::blobs::{Faulty, PART, blob_tasks};
use crate::conformance::Store;
use crate::stored::{walk, wrong};
use crate::support::{FIRST, Feed, number, owner};

#[async_trait]
impl Store for Server {
    fn open(&self, owner: Owner) -> Arc<dyn Output> {
        let endpoint = self.url.parse().unwrap();
        let mode = match self.kind {
            Kind::Keccak => AltDaMode::Keccak,
            Kind::Generic => AltDaMode::Generic,
            Kind::Celestia => {
                let mut options = CelestiaOptions::new(endpoint, NAMESPACE.parse().unwrap());
                options.token = Some(TOKEN.into());
                return Arc::new(CelestiaOutput::new(options, owner).unwrap());
            }
        };
        Arc::new(AltDaOutput::new(AltDaOptions::new(endpoint, mode), owner).unwrap())
    }

    fn tasks(&self) -> fn(RangeInclusive<u64>) -> Vec<FinalTask> {
        blob_tasks
    }

    async fn rows(&self) -> Vec<String> {
        let tasks = self.blobs().into_iter().flat_map(|blob| blob.tasks);
        tasks.map(|task| format!("task {} {}", task.number, task.id)).collect()
    }

    async fn break_down_at(&self, _task: u64, _writing: BoxFuture<'static, Result<(), OutputError>>) -> OutputError {
        unimplemented!("blobs appear as a whole")
    }

    async fn read_as_w3bstream(&self, _task: &FinalTask, _project_id: i64) -> Vec<Vec<u8>> {
        unimplemented!("there is nothing to look a task up by")
    }

    async fn write_as_another(&self) {
        unimplemented!("everybody may write")
    }
}

#[async_trait]
impl Faulty for Server {
    fn set_down(&self, down: bool) {
        self.held.lock().down = down;
    }

    fn set_slow(&self, time: Option<Duration>) {
        self.held.lock().slow = time;
    }

    async fn set_refusing(&self, task: Option<u64>) {
        self.held.lock().refuses = task;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_slow_or_picky_gets_everything_that_it_takes() {
    // Of the suite, what does not speak of a cursor or of looking tasks up: these stores have neither. Who publishes
    // late or twice puts identical bytes in once more, which the claims of this file are about.
    for kind in KINDS {
        println!("{kind:?}");
        crate::blob_suite!(Server::start(kind));
        crate::conformance_suite!(Server::start(kind);
            three_nodes_can_set_up_at_once,
            what_cannot_be_stored_is_refused_and_changes_nothing,
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_tasks_again_are_identical_bytes_whoever_publishes_them() {
    for kind in KINDS {
        let server = Server::start(kind);
        let tasks = blob_tasks(FIRST..=FIRST + PART + 3);
        let first = server.open(owner()).publish(&tasks, None).await.unwrap();
        let other = server.open(owner());
        let second = other.publish(&tasks, None).await.unwrap();
        {
            let held = server.held.lock();
            assert_eq!(held.puts[..2], held.puts[2..]);
            // The key is the hash: there is nothing new at the server, and nothing else to tell.
            assert_eq!(first == second, kind == Kind::Keccak);
            assert_eq!(held.blobs.len(), if kind == Kind::Keccak { 2 } else { 4 });
            let distinct: BTreeSet<&Bytes> = held.blobs.values().collect();
            assert_eq!(distinct.len(), 2);
        }
        for task in tasks {
            assert_eq!(other.read(&task.id).await.unwrap(), Some(task));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_publishes_next_goes_on_from_what_was_recorded() {
    for kind in KINDS {
        let server = Server::start(kind);
        let feed = Feed::new();
        feed.finalize(FIRST + PART - 1);
        let node = crate::blobs::publisher(&feed, server.open(owner()));
        node.wait_for("all tasks", |s| s.state == PublisherState::CaughtUp && s.last_published.is_some()).await;
        crate::support::eventually("it is recorded", || async {
            (feed.records().last() == Some(&TaskNumber(FIRST + PART - 1))).then_some(())
        })
        .await;
        node.stop().await;
        let before = server.held.lock().puts.len();
        feed.finalize(FIRST + 2 * PART - 1);
        // A new process, which knows nothing itself.
        let node = crate::blobs::publisher(&feed, server.open(owner()));
        node.wait_for("the rest", |s| s.last_published == number(FIRST + 2 * PART - 1)).await;
        node.stop().await;
        let rest: Vec<u64> =
            server.blobs()[before..].iter().flat_map(|blob| &blob.tasks).map(|task| task.number.0).collect();
        assert_eq!(rest, (FIRST + PART..FIRST + 2 * PART).collect::<Vec<_>>(), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_given_back_is_not_confirmed() {
    for kind in KINDS {
        let server = Server::start(kind);
        server.held.lock().forgetful = true;
        let refused = server.open(owner()).publish(&blob_tasks(FIRST..=FIRST), None).await;
        assert!(matches!(refused, Err(OutputError::Retryable(_))), "{kind:?}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commitments_are_taken_as_bytes_and_as_text() {
    for as_text in [false, true] {
        let server = Server::start(Kind::Generic);
        server.held.lock().as_text = as_text;
        let receipt = server.open(owner()).publish(&blob_tasks(FIRST..=FIRST), None).await.unwrap();
        let place = &receipt.places[0];
        assert_eq!(place.commitment, [&[1, 0xff][..], &1_u64.to_be_bytes()].concat());
        assert_eq!((place.locator.as_str(), place.stage), ("altda:0x01ff0000000000000001", Stage::Accepted));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_of_celestia_names_the_block_and_is_final_when_the_node_says_so() {
    let server = Server::start(Kind::Celestia);
    let output = server.open(owner());
    for (is_final, stage) in [(false, Stage::Included), (true, Stage::Final)] {
        server.held.lock().is_final = is_final;
        let receipt = output.publish(&blob_tasks(FIRST..=FIRST), None).await.unwrap();
        let place = &receipt.places[0];
        let height = place.height.unwrap();
        assert_eq!((height, place.stage), (Height(1 + u64::from(is_final)), stage));
        assert_eq!(place.locator, format!("celestia:{height}/{NAMESPACE}"));
    }
    // What there is at one time goes into one block.
    let receipt = output.publish(&blob_tasks(FIRST..=FIRST + 3 * PART - 1), None).await.unwrap();
    let heights: Vec<_> = receipt.places.iter().map(|place| place.height).collect();
    assert_eq!(heights, [Some(Height(3)); 3]);
    // Without the token nothing goes, and the operator reads why.
    let options = CelestiaOptions::new(server.url.parse().unwrap(), NAMESPACE.parse().unwrap());
    let refused = CelestiaOutput::new(options, owner()).unwrap().publish(&blob_tasks(FIRST..=FIRST), None).await;
    assert!(matches!(&refused, Err(OutputError::Retryable(reason)) if reason.contains("token")), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_receipts_tell_of_is_read_again_and_what_is_changed_is_named() {
    for kind in KINDS {
        let server = Server::start(kind);
        let (last, second) = (FIRST + 4 * PART - 1, FIRST + PART);
        let tasks = blob_tasks(FIRST..=last);
        let receipt = server.open(owner()).publish(&tasks, None).await.unwrap();
        // Once more, as after a change of the leader.
        let again = server.open(owner()).publish(&tasks[..PART as usize], None).await.unwrap();
        let places: Vec<_> = again.places.iter().chain(&receipt.places).cloned().collect();
        let output = server.open(owner());
        for (first, max) in [(0, 7), (FIRST + 5, 1_000), (last + 1, 7)] {
            let found = walk(&output, first, max, &places).await;
            let wanted: Vec<_> = tasks.iter().filter(|task| task.number.0 >= first).cloned().collect();
            assert!(found.tasks == wanted && found.damaged.is_empty(), "{kind:?} from {first}: {:?}", found.damaged);
        }
        assert_eq!(walk(&output, 0, 7, &[]).await, Default::default());
        let key = |part: usize| receipt.places[part].commitment.clone();
        {
            let mut held = server.held.lock();
            held.blobs.remove(&key(1));
            held.blobs.insert(key(2), Bytes::from_static(b"something else"));
        }
        let found = walk(&output, 0, 1_000, &places).await;
        assert_eq!(wrong(&found, &tasks), (second..second + 2 * PART).collect(), "{kind:?}: {:?}", found.damaged);
        server.held.lock().down = true;
        let down = output.stored(TaskNumber(FIRST), 7, &places).await;
        assert!(matches!(down, Err(OutputError::Retryable(_))), "{kind:?}: {down:?}");
    }
}
