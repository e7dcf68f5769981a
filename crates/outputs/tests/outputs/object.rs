//! Object stores: a directory, and a server that speaks S3.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use lockstep_outputs::{FinalTask, ObjectOptions, ObjectOutput, Output, OutputError, Owner, Stage};
use lockstep_testkit::bucket::{Bucket, Fault};
use lockstep_types::blob::Blob;
use lockstep_types::{Digest, TaskNumber, keccak256};
use serde_json::Value;

use crate::blobs::{Faulty, PART, blob_tasks};
use crate::conformance::Store;
use crate::stored::{strays, walk, wrong};
use crate::support::{FIRST, number, owner};

/// A store of objects in a directory: of its own, or a server's.
struct Objects {
    directory: PathBuf,
    options: ObjectOptions,
    bucket: Option<Bucket>,
    _own: Option<tempfile::TempDir>,
}

impl Objects {
    fn local() -> Self {
        let own = tempfile::tempdir().unwrap();
        let directory = own.path().join("blobs-of-ours");
        let options = ObjectOptions { base: own.path().to_owned(), ..ObjectOptions::new("file:blobs-of-ours", "") };
        Self { directory, options, bucket: None, _own: Some(own) }
    }

    fn s3() -> Self {
        let bucket = Bucket::start();
        let credentials: Vec<String> =
            bucket.environment().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let options = ObjectOptions {
            timeout: Duration::from_secs(10),
            ..ObjectOptions::new(bucket.url("a/prefix"), credentials.join("\n"))
        };
        Self { directory: bucket.directory("a/prefix"), options, bucket: Some(bucket), _own: None }
    }

    fn fault(&self, fault: Fault) {
        self.bucket.as_ref().unwrap().faults().set(fault);
    }

    /// Files of a directory, with their content, by name.
    fn objects(&self, under: &str) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut directories = vec![self.directory.join(under)];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().map(Result::unwrap) {
                let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
                if path.is_dir() {
                    directories.push(path);
                } else if !name.starts_with('.') {
                    let name = path.strip_prefix(&self.directory).unwrap().to_str().unwrap().to_owned();
                    found.insert(name, std::fs::read(path).unwrap());
                }
            }
        }
        found
    }

    fn entries(&self, under: &str) -> Vec<Value> {
        self.objects(under).values().map(|bytes| serde_json::from_slice(bytes).unwrap()).collect()
    }

    fn blob(&self, entry: &Value) -> Blob {
        let bytes = std::fs::read(self.directory.join(entry["blob"].as_str().unwrap())).unwrap();
        assert_eq!(entry["hash"], Digest(keccak256(&[&bytes])).to_string());
        Blob::decode(bytes.into()).unwrap()
    }
}

#[async_trait]
impl Store for Objects {
    fn open(&self, owner: Owner) -> Arc<dyn Output> {
        Arc::new(ObjectOutput::new(&self.options, owner).unwrap())
    }

    fn tasks(&self) -> fn(RangeInclusive<u64>) -> Vec<FinalTask> {
        blob_tasks
    }

    /// The owner, and each task with its messages as a reader finds them who walks the chain.
    async fn rows(&self) -> Vec<String> {
        let mut rows: Vec<String> = self.objects("").keys().filter(|key| *key == "lockstep.json").cloned().collect();
        let filled = self.entries("filled");
        let linked = self.entries("index");
        let blobs = linked.iter().filter(|entry| entry["kind"] == "tasks").map(|entry| (entry, None));
        for (entry, only) in blobs.chain(filled.iter().map(|entry| (entry, entry["number"].as_u64()))) {
            for task in self.blob(entry).tasks.iter().filter(|task| only.is_none_or(|only| task.number.0 == only)) {
                rows.push(format!("task {} {}", task.number, task.id));
                rows.extend(task.messages.iter().map(|m| format!("message {} {:?}", m.sequence, m.message.data)));
            }
        }
        rows
    }

    async fn break_down_at(&self, task: u64, writing: BoxFuture<'static, Result<(), OutputError>>) -> OutputError {
        let part = FIRST + (task - FIRST) / PART * PART;
        self.fault(Fault::LosesPuts(vec![format!("index/{part:020}"), format!("filled/{task:020}")]));
        let error = writing.await.unwrap_err();
        self.fault(Fault::None);
        error
    }

    async fn read_as_w3bstream(&self, task: &FinalTask, project_id: i64) -> Vec<Vec<u8>> {
        let found = self.open(owner()).read(&task.id).await.unwrap();
        let found = found.filter(|task| i64::try_from(task.project_id.0).unwrap() == project_id);
        found.map(|task| task.messages.iter().map(|m| m.data.to_vec()).collect()).unwrap_or_default()
    }

    async fn write_as_another(&self) {
        std::fs::create_dir_all(self.directory.join("blobs")).unwrap();
        std::fs::write(self.directory.join("blobs/ours"), "not Lockstep's").unwrap();
    }
}

#[async_trait]
impl Faulty for Objects {
    fn set_down(&self, down: bool) {
        self.fault(if down { Fault::Down } else { Fault::None });
    }

    fn set_slow(&self, time: Option<Duration>) {
        self.fault(time.map_or(Fault::None, Fault::Slow));
    }

    async fn set_refusing(&self, task: Option<u64>) {
        let fault = match task {
            Some(task) => {
                // Blobs are the same everywhere, so another store knows the name of this one.
                let other = Self::local();
                let output = other.open(Owner { first_task_number: TaskNumber(task), ..owner() });
                output.publish(&blob_tasks(task..=task + PART - 1), None).await.unwrap();
                Fault::Refuses(other.objects("blobs").into_keys().next().unwrap())
            }
            None => Fault::None,
        };
        self.fault(fault);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_passes_the_suite() {
    // All but what needs a store that breaks down, and what is said of single rows: a part is written as a whole.
    crate::conformance_suite!(Objects::local();
        the_same_tasks_again_change_nothing_and_give_an_equal_receipt,
        a_restarted_adapter_goes_on_where_the_store_is,
        a_deposed_leaders_late_write_changes_nothing,
        what_never_comes_is_skipped_once_and_only_from_where_the_store_is,
        what_was_skipped_is_filled_in_once_and_the_cursor_stays,
        what_does_not_belong_below_the_cursor_is_not_filled_in,
        writers_at_the_same_time_write_each_task_once,
        another_networks_or_epochs_store_is_refused,
        a_store_of_an_earlier_epoch_is_taken_over_when_told_and_not_ahead_of_it,
        three_nodes_can_set_up_at_once,
        readers_get_payloads_in_signed_order,
        what_cannot_be_stored_is_refused_and_changes_nothing,
        a_large_call_is_whole,
        tables_that_another_program_fills_are_not_adopted,
        what_is_stored_is_walked_by_number_with_what_was_filled_in,
        what_is_for_others_is_passed_over_and_no_gap,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_s3_passes_the_suite() {
    crate::conformance_suite!(Objects::s3();
        the_same_tasks_again_change_nothing_and_give_an_equal_receipt,
        a_restarted_adapter_goes_on_where_the_store_is,
        a_deposed_leaders_late_write_changes_nothing,
        what_never_comes_is_skipped_once_and_only_from_where_the_store_is,
        what_was_skipped_is_filled_in_once_and_the_cursor_stays,
        what_does_not_belong_below_the_cursor_is_not_filled_in,
        filling_in_that_breaks_down_half_way_leaves_whole_tasks_and_is_done_again,
        writers_at_the_same_time_write_each_task_once,
        another_networks_or_epochs_store_is_refused,
        a_store_of_an_earlier_epoch_is_taken_over_when_told_and_not_ahead_of_it,
        three_nodes_can_set_up_at_once,
        readers_get_payloads_in_signed_order,
        what_cannot_be_stored_is_refused_and_changes_nothing,
        tables_that_another_program_fills_are_not_adopted,
        what_is_stored_is_walked_by_number_with_what_was_filled_in,
        what_is_for_others_is_passed_over_and_no_gap,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_slow_or_picky_gets_everything_that_it_takes() {
    crate::blob_suite!(Objects::s3());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_breaks_down_half_way_leaves_whole_parts_and_is_done_again() {
    let store = Objects::s3();
    let output = store.open(owner());
    output.publish(&blob_tasks(FIRST..=9), None).await.unwrap();
    let (writer, second) = (Arc::clone(&output), FIRST + PART);
    let writing = async move { writer.publish(&blob_tasks(10..=second + 5), number(9)).await.map(drop) };
    store.break_down_at(second, Box::pin(writing)).await;
    // What was written is a part; the caller is told how far it came when it asks.
    assert_eq!(output.last().await.unwrap(), number(second - 1));
    output.publish(&blob_tasks(second..=second + 5), number(second - 1)).await.unwrap();
    assert_eq!(store.rows().await.len() as u64, 1 + 3 * (PART + 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_walks_by_tasks_and_by_heights_and_finds_what_the_receipt_says() {
    let store = Objects::local();
    let output = store.open(owner());
    let receipt = output.publish(&blob_tasks(FIRST..=FIRST + 5 * PART - 1), None).await.unwrap();
    assert_eq!(receipt.places.len(), 5);
    let mut next = FIRST;
    for place in &receipt.places {
        let bytes = std::fs::read(store.directory.join(&place.locator)).unwrap();
        assert_eq!((place.first.0, place.last.0, place.stage), (next, next + PART - 1, Stage::Final));
        assert_eq!(place.commitment, keccak256(&[&bytes]));
        let link: Value = serde_json::from_slice(&store.objects("index")[&format!("index/{next:020}")]).unwrap();
        assert_eq!(
            (&link["blob"], &link["first"], &link["last"]),
            (&place.locator.as_str().into(), &next.into(), &place.last.0.into())
        );
        next += PART;
    }
    let heights: Vec<String> = store.objects("heights").into_keys().collect();
    let expected = [(1, 0), (1, 1), (2, 2), (2, 3), (3, 4)];
    let expected = expected.map(|(height, part)| format!("heights/{height:020}/{:020}", FIRST + part * PART));
    assert_eq!(heights, expected);
    let parts: Vec<_> = store.entries("heights").iter().map(|entry| entry["part"].as_u64().unwrap()).collect();
    assert_eq!(parts, [0, 1, 0, 1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_was_changed_in_the_store_is_noticed() {
    let store = Objects::local();
    let output = store.open(owner());
    let tasks = blob_tasks(FIRST..=FIRST + 3);
    output.publish(&tasks, None).await.unwrap();
    let (name, mut bytes) = store.objects("blobs").pop_first().unwrap();
    bytes[100] ^= 1;
    std::fs::write(store.directory.join(&name), bytes).unwrap();
    assert!(matches!(output.read(&tasks[0].id).await, Err(OutputError::Foreign(_))));
    let newer = Owner { first_task_number: TaskNumber(FIRST + 1), ..owner() };
    assert!(matches!(store.open(newer).last().await, Err(OutputError::Foreign(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_object_that_was_changed_is_named_with_its_tasks() {
    let local = Objects::local();
    let server = Objects::s3();
    for store in [local, server] {
        let output = store.open(owner());
        let (parts, path) = (12, |name: String| store.directory.join(name));
        let skipped = FIRST + parts * PART;
        let expected: Vec<FinalTask> =
            [FIRST..=skipped - 1, skipped + 4..=skipped + 9].into_iter().flat_map(blob_tasks).collect();
        output.publish(&blob_tasks(FIRST..=skipped - 1), None).await.unwrap();
        output.skip(TaskNumber(skipped + 3), number(skipped - 1)).await.unwrap();
        output.publish(&blob_tasks(skipped + 4..=skipped + 9), number(skipped + 3)).await.unwrap();
        output.fill(&blob_tasks(skipped..=skipped + 2)).await.unwrap();
        let expected = [expected, blob_tasks(skipped..=skipped + 2)].concat();
        let index = |part: u64| format!("index/{:020}", FIRST + part * PART);
        let entry = |name: &str| serde_json::from_slice::<Value>(&store.objects("")[name]).unwrap();
        let of_part = |part: u64| (FIRST + part * PART..FIRST + (part + 1) * PART).collect::<BTreeSet<u64>>();
        let mut touched = BTreeSet::new();
        let check = async |what: &str, touched: &BTreeSet<u64>| {
            for max in [50, 1_000] {
                let found = walk(&output, 0, max, &[]).await;
                assert_eq!(&wrong(&found, &expected), touched, "{what}, {max} at a time: {:?}", found.damaged);
            }
        };
        check("nothing", &touched).await;
        let blob = |part: u64| entry(&index(part))["blob"].as_str().unwrap().to_owned();
        let changed = blob(1);
        let mut bytes = std::fs::read(path(changed.clone())).unwrap();
        bytes[100] ^= 1;
        std::fs::write(path(changed), bytes).unwrap();
        touched.extend(of_part(1));
        check("a changed blob", &touched).await;
        std::fs::remove_file(path(blob(3))).unwrap();
        touched.extend(of_part(3));
        check("a blob that is gone", &touched).await;
        std::fs::remove_file(path(index(5))).unwrap();
        touched.extend(of_part(5));
        check("a link that is gone", &touched).await;
        std::fs::write(path(index(6)), "{}").unwrap();
        touched.extend(of_part(6));
        check("a link that cannot be read", &touched).await;
        let height = entry(&index(8))["height"].as_u64().unwrap();
        std::fs::remove_file(path(format!("heights/{height:020}/{:020}", FIRST + 8 * PART))).unwrap();
        touched.extend(of_part(8));
        check("an entry by height that is gone", &touched).await;
        let swapped = std::fs::read_to_string(path(index(10))).unwrap().replace(&blob(10), &blob(9));
        std::fs::write(path(index(10)), swapped).unwrap();
        touched.extend(of_part(10));
        check("a link to another blob", &touched).await;
        std::fs::remove_file(path(format!("filled/{skipped:020}"))).unwrap();
        touched.insert(skipped);
        check("a filled task that is gone", &touched).await;
        let (from, to) = (format!("filled/{:020}", skipped + 1), format!("filled/{:020}", skipped + 2));
        std::fs::copy(path(from), path(to)).unwrap();
        touched.insert(skipped + 2);
        check("an entry of another filled task", &touched).await;

        assert_eq!(strays(&output).await, Vec::<String>::new());
        for name in ["index/0-ours", "filled/99999999999999999999"] {
            std::fs::write(path(name.into()), "x").unwrap();
        }
        let named = strays(&output).await;
        assert_eq!(named, ["index/0-ours is of no task", "filled/99999999999999999999 is of no task"]);
    }
}
