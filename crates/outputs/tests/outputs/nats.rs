//! NATS JetStream: clusters of three real servers, with a relay before them that breaks connections where a test says so.

mod faults;
mod relay;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::stream::StorageType;
use async_nats::jetstream::{self, stream};
use async_trait::async_trait;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use lockstep_outputs::{FinalTask, NatsOptions, NatsOutput, Output, OutputError, Owner, Page, Stage};
use lockstep_testkit::nats::Nats;
use lockstep_types::TaskNumber;
use lockstep_types::blob::Blob;

use self::relay::Relay;
use crate::blobs::{Faulty, blob_tasks};
use crate::conformance::Store;
use crate::support::{FIRST, eventually, number, owner};

/// One cluster for all tests of the process that leave it as it is. It ends with the process.
fn cluster() -> &'static Nats {
    static CLUSTER: OnceLock<Nats> = OnceLock::new();
    CLUSTER.get_or_init(Nats::start)
}

/// A message of a stream, as a plain consumer gets it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub subject: String,
    pub kind: String,
    /// Of a task.
    pub number: Option<u64>,
    pub payload: bytes::Bytes,
}

impl Seen {
    fn is_task(&self) -> bool {
        matches!(self.kind.as_str(), "task" | "filled")
    }

    fn blob(&self) -> Blob {
        Blob::decode(self.payload.clone()).unwrap()
    }
}

/// A stream of its own, three times in a cluster.
pub struct Stream {
    urls: String,
    relay: Relay,
    pub options: NatsOptions,
}

impl Stream {
    async fn new() -> Self {
        Self::of(cluster()).await
    }

    async fn of(nats: &Nats) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("S{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let relay = Relay::start(nats.port(0)).await;
        // Nothing depends on the window, so it is as short as the server takes.
        let options = NatsOptions {
            stream: name.clone(),
            subject: format!("lockstep.{}", name.to_lowercase()),
            timeout: Duration::from_secs(3),
            duplicate_window: Duration::from_millis(100),
            ..NatsOptions::new(relay.url())
        };
        Self { urls: nats.urls(), relay, options }
    }

    /// An adapter that knows all servers and no relay.
    pub fn open_direct(&self) -> Arc<NatsOutput> {
        let options = NatsOptions { servers: self.urls.clone(), ..self.options.clone() };
        Arc::new(NatsOutput::new(&options, owner()).unwrap())
    }

    pub async fn context(&self) -> jetstream::Context {
        let servers: Vec<async_nats::ServerAddr> = self.urls.split(',').map(|url| url.parse().unwrap()).collect();
        jetstream::new(async_nats::connect(servers).await.unwrap())
    }

    /// Changes its settings, as an operator does. Servers that agree on another leader among them leave requests unanswered.
    pub async fn reconfigure(&self, change: impl Fn(&mut jetstream::stream::Config)) {
        let context = self.context().await;
        eventually("the stream is as it is wanted", || async {
            let mut config = context.get_stream(&self.options.stream).await.ok()?.cached_info().config.clone();
            change(&mut config);
            context.update_stream(config).await.ok()
        })
        .await;
    }

    /// Its messages with a subject, by an ordered consumer, in order.
    pub async fn messages(&self, subject: &str) -> Vec<Seen> {
        let context = self.context().await;
        // Servers that have just come back answer late.
        eventually("the stream is read", || self.try_messages(&context, subject)).await
    }

    async fn try_messages(&self, context: &jetstream::Context, subject: &str) -> Option<Vec<Seen>> {
        let stream = match context.get_stream(&self.options.stream).await {
            Ok(stream) => stream,
            Err(error) if error.to_string().contains("not found") => return Some(Vec::new()),
            Err(_) => return None,
        };
        let config = pull::OrderedConfig {
            deliver_policy: DeliverPolicy::All,
            filter_subject: format!("{}.{subject}", self.options.subject),
            ..Default::default()
        };
        let mut consumer = stream.create_consumer(config).await.ok()?;
        let pending = consumer.info().await.ok()?.num_pending;
        // A consumer reads at a server of its own, which may not have heard of all messages yet.
        let counts = stream.info_with_subjects(format!("{}.{subject}", self.options.subject)).await.ok()?;
        let there: Vec<_> = counts.collect().await;
        let there: usize = there.into_iter().map(|count| count.map_or(0, |(_, count)| count)).sum();
        if pending != there as u64 {
            return None;
        }
        let messages = consumer.messages().await.ok()?.take(usize::try_from(pending).unwrap());
        let seen = messages.map(|message| {
            let message = message.ok()?;
            let text = |name: &str| message.headers.as_ref().and_then(|h| h.get(name)).map(|v| v.as_str().to_owned());
            Some(Seen {
                subject: message.subject.to_string(),
                kind: text("Lockstep-Kind").unwrap_or_default(),
                number: text("Lockstep-Task").and_then(|number| number.parse().ok()),
                payload: message.payload.clone(),
            })
        });
        let seen: Vec<Option<Seen>> = tokio::time::timeout(Duration::from_secs(10), seen.collect()).await.ok()?;
        seen.into_iter().collect()
    }

    /// Numbers of the tasks in it, as they follow each other.
    pub async fn numbers(&self) -> Vec<u64> {
        self.messages(">").await.iter().filter_map(|seen| seen.number).collect()
    }
}

#[async_trait]
impl Store for Stream {
    fn open(&self, owner: Owner) -> Arc<dyn Output> {
        Arc::new(NatsOutput::new(&self.options, owner).unwrap())
    }

    fn tasks(&self) -> fn(RangeInclusive<u64>) -> Vec<FinalTask> {
        blob_tasks
    }

    /// The note of the owner, and each task with its messages as a consumer finds them.
    async fn rows(&self) -> Vec<String> {
        let mut rows = Vec::new();
        for seen in self.messages(">").await {
            if seen.kind == "owner" {
                rows.push("owner".to_owned());
            } else if seen.is_task() {
                for task in seen.blob().tasks {
                    assert_eq!(seen.number, Some(task.number.0));
                    assert_eq!(seen.subject, format!("{}.{}", self.options.subject, task.project_id));
                    rows.push(format!("task {} {}", task.number, task.id));
                    rows.extend(task.messages.iter().map(|m| format!("message {} {:?}", m.sequence, m.message.data)));
                }
            }
        }
        rows
    }

    async fn break_down_at(&self, task: u64, writing: BoxFuture<'static, Result<(), OutputError>>) -> OutputError {
        self.relay.cut_at(format!("Lockstep-Task: {task}\r\n"));
        let error = writing.await.unwrap_err();
        assert!(self.relay.set_down(false), "nothing was cut: {error}");
        // The clients come back by themselves; until then calls fail.
        let reader = self.open(owner());
        eventually("the relay is used again", || async { reader.last().await.ok() }).await;
        error
    }

    async fn read_as_w3bstream(&self, task: &FinalTask, project_id: i64) -> Vec<Vec<u8>> {
        let found =
            self.messages(&project_id.to_string()).await.into_iter().find(|seen| seen.number == Some(task.number.0));
        let blobs = found.map(|seen| seen.blob().tasks).unwrap_or_default();
        blobs.iter().flat_map(|task| &task.messages).map(|message| message.message.data.to_vec()).collect()
    }

    async fn write_as_another(&self) {
        let context = self.context().await;
        let config = stream::Config {
            name: self.options.stream.clone(),
            subjects: vec![format!("{}.>", self.options.subject)],
            storage: StorageType::File,
            num_replicas: 3,
            ..Default::default()
        };
        context.create_stream(config).await.unwrap();
        let subject = format!("{}.7", self.options.subject);
        context.publish(subject, "not Lockstep's".into()).await.unwrap().await.unwrap();
    }
}

#[async_trait]
impl Faulty for Stream {
    fn set_down(&self, down: bool) {
        self.relay.set_down(down);
    }

    fn set_slow(&self, time: Option<Duration>) {
        self.relay.set_slow(time);
    }

    async fn set_refusing(&self, _task: Option<u64>) {
        unimplemented!("servers refuse nothing but by size")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_passes_the_suite() {
    crate::conformance_suite!(Stream::new().await;
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
        a_large_call_is_whole,
        tables_that_another_program_fills_are_not_adopted,
        what_is_for_others_is_passed_over_and_no_gap,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_cluster_gets_everything_in_order() {
    crate::conformance_suite!(@in blobs; Stream::new().await;
        a_slow_store_gets_everything_in_order,
        what_is_too_large_or_of_unknown_origin_is_refused,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_breaks_down_half_way_leaves_whole_tasks_in_order_and_is_done_again() {
    let store = Stream::new().await;
    let output = store.open(owner());
    output.publish(&blob_tasks(FIRST..=9), None).await.unwrap();
    let writer = Arc::clone(&output);
    let writing = async move { writer.publish(&blob_tasks(10..=300), number(9)).await.map(drop) };
    store.break_down_at(150, Box::pin(writing)).await;
    // What was under way before the break is there, or will be.
    let last = output.last().await.unwrap().unwrap().0;
    assert!((9..=149).contains(&last), "{last}");
    eventually("all of it", || async {
        let last = output.last().await.ok()?;
        let next = owner().next(last).0;
        output.publish(&blob_tasks(next..=300), last).await.ok()
    })
    .await;
    assert_eq!(store.numbers().await, (FIRST..=300).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_tasks_beyond_the_servers_window_are_not_there_twice() {
    let store = Stream::new().await;
    let output = store.open(owner());
    let receipt = output.publish(&blob_tasks(FIRST..=40), None).await.unwrap();
    let place = &receipt.places[..];
    assert!(matches!(place, [place] if place.stage == Stage::Final && place.locator.ends_with(":2-37")), "{place:?}");
    let context = store.context().await;
    // The server has forgotten the ids once it takes one of them a second time: in a stream beside it, which is as old.
    let beside = stream::Config {
        name: format!("{}-beside", store.options.stream),
        subjects: vec![format!("beside.{}", store.options.stream)],
        duplicate_window: store.options.duplicate_window,
        num_replicas: 3,
        ..Default::default()
    };
    let subject = beside.subjects[0].clone();
    context.create_stream(beside).await.unwrap();
    let again = || async {
        let message = jetstream::message::PublishMessage::build().message_id("same").payload("".into());
        context.send_publish(subject.clone(), message).await.unwrap().await.unwrap()
    };
    assert!(!again().await.duplicate);
    eventually("the window is over", || async { (!again().await.duplicate).then_some(()) }).await;
    // By who remembers where the stream ended, by who does not, and by who is late.
    assert_eq!(output.publish(&blob_tasks(FIRST..=40), None).await, Ok(receipt.clone()));
    assert_eq!(store.open(owner()).publish(&blob_tasks(FIRST..=40), None).await, Ok(receipt));
    let moved = OutputError::Moved { actual_last: number(40) };
    assert_eq!(store.open(owner()).publish(&blob_tasks(30..=50), number(29)).await, Err(moved));
    assert_eq!(store.numbers().await, (FIRST..=40).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_larger_than_the_server_takes_is_refused_and_those_before_it_go() {
    let store = Stream::new().await;
    let output = store.open(owner());
    let mut tasks = blob_tasks(FIRST..=FIRST + 2);
    let mut origin = lockstep_outputs::Origin::clone(tasks[1].origin.as_ref().unwrap());
    // NATS takes a mebibyte if it is not told otherwise.
    origin.messages[0].message.data = vec![b'x'; 1 << 20].into();
    tasks[1].origin = Some(Arc::new(origin));
    for _ in 0..2 {
        let refused = output.publish(&tasks, None).await;
        let named = matches!(&refused, Err(OutputError::Refused { task: TaskNumber(n), reason })
            if *n == FIRST + 1 && reason.contains("max_payload"));
        assert!(named, "{refused:?}");
    }
    output.publish(&tasks[..1], None).await.unwrap();
    // And where the stream is the narrower one.
    store.reconfigure(|config| config.max_message_size = 1200).await;
    for output in [Arc::clone(&output), store.open(owner())] {
        let refused = output.publish(&blob_tasks(FIRST + 1..=FIRST + 9), number(FIRST)).await;
        assert!(matches!(&refused, Err(OutputError::Refused { task, .. }) if task.0 == FIRST + 1), "{refused:?}");
    }
    assert_eq!(store.numbers().await, [FIRST]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_a_project_gets_its_tasks_in_order_and_each_is_a_whole_blob() {
    let store = Stream::new().await;
    let output = store.open(owner());
    let mixed = |numbers: RangeInclusive<u64>| {
        let mut tasks = blob_tasks(numbers);
        for task in tasks.iter_mut().filter(|task| task.number.0.is_multiple_of(3)) {
            task.project_id = lockstep_types::ProjectId(8);
        }
        tasks
    };
    output.publish(&mixed(FIRST..=30), None).await.unwrap();
    output.skip(TaskNumber(40), number(30)).await.unwrap();
    output.publish(&mixed(41..=60), number(40)).await.unwrap();
    output.fill(&mixed(31..=40)).await.unwrap();
    let turn: Vec<u64> = (FIRST..=30).chain(41..=60).chain(31..=40).collect();
    assert_eq!(store.numbers().await, turn);
    for (project, is_its) in [(7, false), (8, true)] {
        let seen = store.messages(&project.to_string()).await;
        let expected: Vec<u64> = turn.iter().copied().filter(|n| n.is_multiple_of(3) == is_its).collect();
        assert_eq!(seen.iter().filter_map(|seen| seen.number).collect::<Vec<_>>(), expected);
        for seen in seen {
            let tasks = seen.blob().tasks;
            assert_eq!(tasks.iter().map(|task| Some(task.number.0)).collect::<Vec<_>>(), [seen.number]);
        }
    }
    // By number, what was filled in has its place.
    let all = mixed(FIRST..=60);
    for (first, max, expected) in [
        (FIRST, 100, &all[..]),
        (FIRST, 30, &all[..30]),
        (35, 10, &all[30..40]),
        (60, 9, &all[55..]),
        (61, 9, &all[..0]),
    ] {
        assert_eq!(
            output.stored(TaskNumber(first), max, &[]).await.unwrap(),
            Page::from(expected.to_vec()),
            "{first} {max}"
        );
    }
    // Something else in the stream is told, with where it is.
    let context = store.context().await;
    context.publish(format!("{}.7", store.options.subject), "x".into()).await.unwrap().await.unwrap();
    let told = output.stored(TaskNumber(FIRST), 100, &[]).await;
    assert!(matches!(&told, Err(OutputError::Foreign(reason)) if reason.contains("message")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_an_operator_take_what_is_old_and_nothing_else() {
    let store = Stream::new().await;
    let output = store.open(owner());
    output.publish(&blob_tasks(FIRST..=20), None).await.unwrap();
    let context = store.context().await;
    store.reconfigure(|config| config.max_messages = 8).await;
    let restarted = store.open(owner());
    assert_eq!(restarted.last().await, Ok(number(20)));
    restarted.publish(&blob_tasks(21..=25), number(20)).await.unwrap();
    assert_eq!(store.numbers().await, (18..=25).collect::<Vec<_>>());
    assert_eq!(restarted.stored(TaskNumber(FIRST), 3, &[]).await.unwrap(), Page::from(blob_tasks(18..=20)));
    assert_eq!(restarted.read(&blob_tasks(19..=19)[0].id).await.unwrap(), blob_tasks(19..=19).pop());
    assert_eq!(restarted.read(&blob_tasks(17..=17)[0].id).await.unwrap(), None);
    // Once nothing is left nobody knows what was published: that is said, and nothing begins anew.
    store.reconfigure(|config| config.max_age = Duration::from_millis(100)).await;
    eventually("all is too old", || async {
        let info = context.get_stream(&store.options.stream).await.ok()?;
        (info.cached_info().state.messages == 0).then_some(())
    })
    .await;
    let gone = store.open(owner()).last().await;
    assert!(matches!(&gone, Err(OutputError::Foreign(reason)) if reason.contains("gone")), "{gone:?}");
}

/// A server alone that encrypts, and lets one user do what docs/operations.md says that the node needs.
fn strict_server(directory: &std::path::Path) -> Nats {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (cert, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.key_pair.serialize_pem()).unwrap();
    let api = ["STREAM.INFO", "STREAM.MSG.GET", "STREAM.CREATE"].map(|call| format!("$JS.API.{call}.LOCKSTEP"));
    let publish = [&["lockstep.>".to_owned()], &api[..]].concat();
    let permissions = format!("{{ publish: {publish:?}, subscribe: [\"_INBOX.>\"] }}");
    let user = format!("{{ user: \"lock@step\", password: \"top:secret\", permissions: {permissions} }}");
    let settings =
        format!("tls {{ cert_file: {cert:?}, key_file: {key:?} }}\nauthorization {{ users: [{user}], timeout: 5 }}");
    Nats::start_with(1, &settings, "")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_over_tls_with_the_documented_permissions_is_enough_and_never_told() {
    let directory = tempfile::tempdir().unwrap();
    let nats = strict_server(directory.path());
    let open = |login: &str, ca_file: Option<&str>| {
        let options = NatsOptions {
            replicas: 1,
            ca_file: ca_file.map(|file| directory.path().join(file)),
            ..NatsOptions::new(format!("tls://{login}127.0.0.1:{}", nats.port(0)))
        };
        NatsOutput::new(&options, owner()).unwrap()
    };
    let (login, ca) = ("lock%40step:top%3Asecret@", Some("cert.pem"));
    let output = open(login, ca);
    output.publish(&blob_tasks(FIRST..=9), None).await.unwrap();
    output.skip(TaskNumber(12), number(9)).await.unwrap();
    output.fill(&blob_tasks(11..=11)).await.unwrap();
    let restarted = open(login, ca);
    assert_eq!(restarted.last().await, Ok(number(12)));
    assert_eq!(
        restarted.first_gap(TaskNumber(FIRST), TaskNumber(12)).await,
        Ok(Some((TaskNumber(10), TaskNumber(10))))
    );
    let stored = restarted.stored(TaskNumber(FIRST), 99, &[]).await.unwrap();
    assert_eq!(stored, Page::from([blob_tasks(FIRST..=9), blob_tasks(11..=11)].concat()));
    for (login, ca) in [("", ca), ("lock%40step:topsecret@", ca), ("topsecret@", ca), (login, None)] {
        let refused = open(login, ca).last().await.unwrap_err();
        assert!(matches!(refused, OutputError::Retryable(_)) && !refused.to_string().contains("secret"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_copies_than_servers_are_refused_with_the_settings_name() {
    let nats = Nats::start_with(1, "", "");
    let refused = NatsOutput::new(&NatsOptions::new(nats.urls()), owner()).unwrap().last().await;
    assert!(matches!(&refused, Err(OutputError::Retryable(reason)) if reason.contains("replicas")), "{refused:?}");
}
