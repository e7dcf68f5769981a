//! Backups in a bucket, and outputs that get back from a backup what the network has forgotten.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_testkit::bucket::{Bucket, Fault, SECRET_KEY};
use lockstep_testkit::cluster::{Cluster, ClusterOptions, change_config, open_params};
use lockstep_testkit::history::History;
use lockstep_testkit::http::{get, local, post_message};
use lockstep_testkit::load::{Load, LoadOptions};
use lockstep_testkit::outputs::{OutputRows, count_sqlite, read_sqlite};
use lockstep_testkit::random::Random;
use lockstep_testkit::wait::eventually;
use lockstep_types::{Blob, Epochs, NetworkParams, ProjectSettings, Retention};
use serde_json::Value;

use crate::epochs::{
    NOTHING_NEW_BYTES, all_files, back_up, fails, fails_with, flip_a_bit, has_no_secrets, text, works, works_with,
};
use crate::steps::more_messages;
use crate::{SOON, binary};

/// Bytes at which the network forgets what an output lacks: the least that a genesis may say.
const HARD_BYTES: u64 = 64 << 20;
/// Size of a message.
const MESSAGE_BYTES: usize = 60 << 10;
/// Messages before the backup: they stay below the limit.
const BEFORE: u64 = 960;
/// Messages after it: with them the network is above the limit.
const AFTER: u64 = 320;
/// Clients at a time.
const CLIENTS: usize = 8;
/// Longest pause of a publisher whose store is away, and some.
const BACK_AGAIN: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_in_a_bucket_is_incremental_is_checked_and_restored() {
    let server = Bucket::start();
    let (environment, to) = (server.environment(), server.url("networks/test"));
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(1));
    cluster.node_mut(0).process.set_environment(environment.clone());
    cluster.start_all().await;
    let directory = tempfile::tempdir().unwrap();
    let (home, stored) = (text(cluster.node(0).process.home()), server.directory("networks/test"));
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, 500).await;
    let (total, copied, first_height) = back_up(&home, &to);
    assert_eq!(total, copied);
    more_messages(&history, 300).await;
    load.stop().await;
    let head = cluster.wait_head_equal(SOON).await;
    let (total, copied, height) = back_up(&home, &to);
    println!("second backup: {copied} of {total} bytes");
    assert!(height > first_height && copied < total, "{copied} of {total} bytes");
    let (_, copied, again) = back_up(&home, &to);
    assert!(again == height && copied <= NOTHING_NEW_BYTES, "{copied} bytes were copied although nothing is new");
    has_no_secrets(&cluster, &stored);

    let list = works_with(&["backup", "--list", &to], &environment);
    assert_eq!(list.lines().count(), 2, "{list}");
    println!("{}", works_with(&["backup", "--check", &to], &environment));
    let of_backup = |file: &std::path::PathBuf| file.parent().is_some_and(|parent| parent.ends_with("files"));
    let files = all_files(&stored).into_iter().filter(of_backup);
    let largest = files.max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap();
    flip_a_bit(&largest);
    fails_with(&["backup", "--check", &to], &environment, "its content is not what was written");
    let nowhere = text(&directory.path().join("no"));
    fails_with(&["restore", "--from", &to, "--home", &nowhere], &environment, "it is damaged");
    assert!(!Path::new(&nowhere).exists());
    flip_a_bit(&largest);
    let mut wrong = environment.clone();
    wrong.retain(|(name, _)| name != "AWS_SECRET_ACCESS_KEY");
    wrong.push(("AWS_SECRET_ACCESS_KEY".into(), "another".into()));
    fails_with(&["backup", "--list", &to], &wrong, "AWS_SECRET_ACCESS_KEY");
    fails(&["backup", "--list", "s3://key:secret@bucket/a"], "never from here");

    let restored = text(&directory.path().join("restored"));
    let said = works_with(&["restore", "--from", &to, "--home", &restored], &environment);
    println!("{said}");
    assert!(said.contains(&format!("height {}, sequence {}, {}", head.height, head.sequence, head.hash)), "{said}");
    cluster.terminate(0);
    cluster.node_mut(0).process.ended(SOON).await;
    assert!(!cluster.node(0).process.log().contains(SECRET_KEY), "the node has logged a key");
    cluster.assert_no_panics();
}

/// Text that no compression makes smaller.
fn noise(random: &mut Random, bytes: usize) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    (0..bytes).map(|_| char::from(LETTERS[random.below(LETTERS.len())])).collect()
}

/// Submits messages of several clients at a time.
async fn submit(http: u16, count: u64, bytes: usize, seed: u64) {
    let next = Arc::new(AtomicU64::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let next = next.clone();
        let mut random = Random::new(seed * 1_000 + client as u64);
        clients.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let data = noise(&mut random, bytes);
                let body = format!(r#"{{"projectID":7,"projectVersion":"0.1","data":"{data}"}}"#);
                let answer = post_message(local(http), body.as_bytes()).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
}

async fn status(http: u16) -> Value {
    get(local(http), "/api/status").await.json()
}

/// First and last number of the output's gaps.
async fn gaps(http: u16) -> Vec<(u64, u64)> {
    let output = status(http).await["outputs"][0].clone();
    let gaps = output["gaps"].as_array().cloned().unwrap_or_default();
    gaps.iter().map(|gap| (gap["first"].as_u64().unwrap(), gap["last"].as_u64().unwrap())).collect()
}

async fn wait_gaps(what: &str, http: u16, wanted: impl Fn(&[(u64, u64)]) -> bool) -> Vec<(u64, u64)> {
    eventually(what, BACK_AGAIN, async || {
        let found = gaps(http).await;
        if wanted(&found) { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await
}

/// Wants every task once, whole, and signed.
fn has_everything(cluster: &Cluster, rows: &OutputRows, tasks: u64) {
    let numbers: Vec<u64> = rows.tasks.iter().map(|task| task.number.0).collect();
    assert_eq!(numbers, (1..=tasks).collect::<Vec<_>>());
    assert_eq!(rows.messages.len() as u64, 2 * tasks);
    for task in &rows.tasks {
        assert_eq!(rows.signer_of(task).unwrap(), cluster.task_signer(), "task {}", task.number);
    }
}

/// Wants every task once, in a blob that checks itself: by a link, or where it was filled in.
fn blobs_have_everything(cluster: &Cluster, store: &Path, tasks: u64) {
    let entries = |under: &str| {
        let files = all_files(&store.join(under)).into_iter().filter(|file| !text(file).contains("/."));
        files.map(|file| serde_json::from_slice::<Value>(&fs::read(file).unwrap()).unwrap()).collect::<Vec<_>>()
    };
    let (genesis, signer, mut numbers) = (cluster.genesis(), cluster.task_signer(), Vec::new());
    let links = entries("index").into_iter().filter(|link| link["kind"] == "tasks");
    let filled = entries("filled");
    assert!(!filled.is_empty());
    for entry in links.chain(filled) {
        let bytes = fs::read(store.join(entry["blob"].as_str().unwrap())).unwrap();
        let blob = Blob::decode(bytes.into()).unwrap();
        blob.verify(&genesis, &Epochs::default(), Some(&signer)).unwrap();
        let only = entry["number"].as_u64();
        let wanted =
            blob.tasks.iter().map(|task| task.number.0).filter(|number| only.is_none_or(|only| only == *number));
        numbers.extend(wanted);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=tasks).collect::<Vec<_>>());
}

/// A backup of another network that says that it is of this one.
async fn forged_backup(cluster: &Cluster, backups: &Path) -> String {
    let other = Cluster::start(binary(), ClusterOptions::of(1)).await;
    submit(other.node(0).http_port, 60, 100, 9).await;
    eventually("all of it is certified", SOON, async || {
        let head = status(other.node(0).http_port).await["head"].clone();
        if head["final_height"] == head["height"] { Ok(()) } else { Err(head.to_string()) }
    })
    .await;
    let to = text(&cluster.directory().join("forged"));
    back_up(&text(other.node(0).process.home()), &to);
    let manifest_in = |directory: &Path| {
        let is_manifest = |file: &std::path::PathBuf| file.extension().is_some_and(|extension| extension == "json");
        all_files(directory).into_iter().find(is_manifest).unwrap()
    };
    let read = |path: &Path| serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap();
    let (real, path) = (read(&manifest_in(backups)), manifest_in(Path::new(&to)));
    let mut forged = read(&path);
    for member in ["network", "genesis", "next_task_number"] {
        forged[member] = real[member].clone();
    }
    fs::write(&path, forged.to_string()).unwrap();
    to
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_gets_back_from_a_backup_what_was_forgotten_while_it_was_away() {
    let server = Bucket::start();
    let (environment, bucket) = (server.environment(), server.url("net"));
    let params = NetworkParams {
        retention: Retention { hard_bytes: HARD_BYTES, ..Retention::default() },
        // Tasks that reach back to earlier batches.
        default_project: ProjectSettings { group_messages_max: 2, ..ProjectSettings::open() },
        ..open_params()
    };
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(1).with_params(params));
    let (http, home) = (cluster.node(0).http_port, cluster.node(0).process.home().to_owned());
    let (place, away) = (home.join("out"), home.join("away"));
    change_config(&home, |text| {
        let text = text.replace("tasks.sqlite", "out/tasks.sqlite").replace("scope = \"node\"", "scope = \"network\"");
        let (url, file) = (server.url("blobs-out"), "credentials_file = \"s3.credentials\"");
        format!(
            "{text}\n[[output]]\nname = \"blobs\"\nscope = \"network\"\nkind = \"object\"\nurl = \"{url}\"\n{file}\n"
        )
    });
    let credentials: Vec<String> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    fs::write(home.join("s3.credentials"), credentials.join("\n")).unwrap();
    fs::create_dir(&place).unwrap();
    cluster.node_mut(0).process.set_environment(environment);
    cluster.start_all().await;
    submit(http, 20, 100, 1).await;
    eventually("the output has the first tasks", SOON, async || {
        match count_sqlite(&place.join("tasks.sqlite")).map_err(|e| e.to_string())? {
            10 => Ok(()),
            tasks => Err(format!("{tasks} tasks")),
        }
    })
    .await;

    // The outputs are lost from sight, and the network fills up.
    server.faults().set(Fault::LosesPuts(vec!["blobs-out/".into()]));
    cluster.terminate(0);
    cluster.node_mut(0).process.ended(SOON).await;
    fs::rename(&place, &away).unwrap();
    cluster.start_node(0);
    cluster.wait_ready(0, SOON).await;
    submit(http, BEFORE, MESSAGE_BYTES, 2).await;
    let backups = text(&cluster.directory().join("backups"));
    println!("backup: {:?}", back_up(&text(&home), &backups));
    println!("backup in a bucket: {:?}", back_up(&text(&home), &bucket));
    assert_eq!(gaps(http).await, [], "nothing was to be forgotten yet");
    submit(http, AFTER, MESSAGE_BYTES, 3).await;
    println!("second backups: {:?}, {:?}", back_up(&text(&home), &backups), back_up(&text(&home), &bucket));
    let said = wait_gaps("the log says that tasks were forgotten", http, |gaps| !gaps.is_empty()).await;
    // Progress is noted once a second, so the log may know of less than the store has.
    assert!(said[0].0 <= 11, "{said:?}");

    // What is forgotten is on the disk until the next look, and would be published from there.
    eventually("what was forgotten is gone from the disk", BACK_AGAIN, async || {
        let log = cluster.node(0).process.log();
        if log.contains("was removed from this node's store") { Ok(()) } else { Err("not yet".into()) }
    })
    .await;

    // They are back, and go on behind the gap.
    server.faults().set(Fault::None);
    cluster.terminate(0);
    cluster.node_mut(0).process.ended(SOON).await;
    fs::rename(&away, &place).unwrap();
    cluster.start_node(0);
    cluster.wait_ready(0, SOON).await;
    let tasks = (20 + BEFORE + AFTER) / 2;
    eventually("it has all that is left", BACK_AGAIN, async || {
        let outputs = status(http).await["outputs"].as_array().cloned().unwrap();
        let fed = |output: &Value| output["lag"] == 0 && output["error"].is_null();
        if outputs.iter().all(fed) { Ok(()) } else { Err(format!("{outputs:?}")) }
    })
    .await;
    let count = || count_sqlite(&place.join("tasks.sqlite")).unwrap();
    let is_missing = |gaps: &[(u64, u64)]| gaps.len() == 1 && tasks - count() == gaps[0].1 - gaps[0].0 + 1;
    let gap = wait_gaps("the gap is known from the store", http, is_missing).await[0];
    println!("gap {gap:?} of {tasks} tasks, {} are there", count());
    assert_eq!(gap.0, 11);

    // Out of nothing, out of a directory, and a second time.
    let (home, nothing) = (text(&home), text(&cluster.directory().join("nothing")));
    fs::create_dir(&nothing).unwrap();
    fails(&["outputs", "refill", "--home", &home, "tasks", "--from", &nothing], "no usable backup");
    fails(&["outputs", "refill", "--home", &home, "other", "--from", &backups], "no output other");
    let forged = forged_backup(&cluster, Path::new(&backups)).await;
    fails(&["outputs", "refill", "--home", &home, "tasks", "--from", &forged], "it is not of this network's history");
    assert_eq!(gaps(http).await, [gap]);
    let refill = |from: &str| works(&["outputs", "refill", "--home", &home, "tasks", "--from", from]);
    let said = refill(&backups);
    println!("{said}");
    assert!(said.contains(&format!("{} missing tasks were filled in", gap.1 - gap.0 + 1)), "{said}");
    let rows = || read_sqlite(&place.join("tasks.sqlite"), "tasks").unwrap();
    has_everything(&cluster, &rows(), tasks);
    wait_gaps("no gap is shown", http, <[_]>::is_empty).await;
    let said = works(&["outputs", "refill", "--home", &home, "blobs", "--from", &backups]);
    println!("{said}");
    assert!(said.contains("missing tasks were filled in"), "{said}");
    blobs_have_everything(&cluster, &server.directory("blobs-out"), tasks);
    assert!(refill(&backups).contains("nothing is missing"));
    submit(http, 2, 100, 4).await;
    eventually(
        "publishing goes on",
        SOON,
        async || if count() == tasks + 1 { Ok(()) } else { Err(count().to_string()) },
    )
    .await;

    // As after a refill that a crash cut short: some tasks are there and some are not. Now out of the bucket.
    let after_crash = rusqlite::Connection::open(place.join("tasks.sqlite")).unwrap();
    let (from, to) = (gap.0 + 3, gap.1 - 2);
    let cut = format!(
        "DELETE FROM messages WHERE task_id IN (SELECT task_id FROM tasks WHERE id BETWEEN {from} AND {to}); \
         DELETE FROM tasks WHERE id BETWEEN {from} AND {to}"
    );
    after_crash.execute_batch(&cut).unwrap();
    drop(after_crash);
    cluster.kill(0);
    cluster.start_node(0);
    cluster.wait_ready(0, SOON).await;
    wait_gaps("what is missing is known after a restart", http, |gaps| gaps == [(from, to)]).await;
    println!("{}", refill(&bucket));
    has_everything(&cluster, &rows(), tasks + 1);
    assert!(!Path::new(&home).join("store/snapshots/refill").exists(), "the borrowed state is still there");

    cluster.kill(0);
    cluster.start_node(0);
    cluster.wait_ready(0, SOON).await;
    wait_gaps("no gap is shown after a restart", http, <[_]>::is_empty).await;
    assert!(!cluster.node(0).process.log().contains(SECRET_KEY), "the node has logged a key");
    cluster.assert_no_panics();
}
