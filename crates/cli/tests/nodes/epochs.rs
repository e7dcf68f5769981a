//! Backups, restores, and going on after what cannot be mended.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::history::{Acknowledgement, History};
use lockstep_testkit::http::{get, local, post_message};
use lockstep_testkit::load::{Load, LoadOptions};
use lockstep_testkit::operator::Operator;
use lockstep_testkit::outputs::count_sqlite;
use lockstep_testkit::ports::free_port;
use lockstep_testkit::process::{Limits, NodeProcess, run, run_limited, text_of};
use lockstep_testkit::wait::eventually;
use serde_json::Value;

use crate::snapshots::{keep_logs_short, wait_purged};
use crate::start_errors::refuses_to_start;
use crate::steps::more_messages;
use crate::{SOON, binary};

/// Longest run of a command that copies or applies much.
const COMMAND: Duration = Duration::from_secs(60);
/// Messages between two backups.
const MESSAGES: usize = 1_500;
/// A backup to which nothing was added copies no more than this: the list of files, and what points to it.
pub const NOTHING_NEW_BYTES: u64 = 256 << 10;

fn command(arguments: &[&str], environment: &[(String, String)]) -> Output {
    let mut command = Command::new(binary());
    command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
    run_limited(&mut command, Limits::default(), COMMAND)
}

pub fn works(arguments: &[&str]) -> String {
    works_with(arguments, &[])
}

/// With variables of the environment.
pub fn works_with(arguments: &[&str], environment: &[(String, String)]) -> String {
    let output = command(arguments, environment);
    assert!(output.status.success(), "{arguments:?}: {}", text_of(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn fails(arguments: &[&str], reason: &str) -> String {
    fails_with(arguments, &[], reason)
}

/// With variables of the environment.
pub fn fails_with(arguments: &[&str], environment: &[(String, String)], reason: &str) -> String {
    let output = command(arguments, environment);
    let text = text_of(&output);
    assert!(!output.status.success(), "{arguments:?} should fail: {text}");
    assert!(text.contains(reason), "{arguments:?} should say {reason:?}: {text}");
    text
}

pub fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A node with a home of its own, outside of a cluster.
struct Node {
    process: NodeProcess,
    http: u16,
    p2p: u16,
}

impl Node {
    fn new(directory: &Path, name: &str) -> Self {
        let process = NodeProcess::new(binary(), &directory.join(name), &directory.join(format!("{name}.log")));
        Self { process, http: free_port(), p2p: free_port() }
    }

    fn home(&self) -> String {
        text(self.process.home())
    }

    fn p2p(&self) -> String {
        format!("/ip4/127.0.0.1/tcp/{}", self.p2p)
    }

    fn like(&self, name: &str) -> Vec<String> {
        let (http, listen) = (format!("http://127.0.0.1:{}", self.http), format!("127.0.0.1:{}", self.http));
        let pairs = [
            ("--name", name.to_owned()),
            ("--p2p-address", self.p2p()),
            ("--p2p-listen", self.p2p()),
            ("--http-url", http),
            ("--http-listen", listen),
        ];
        pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    async fn ready(&mut self) {
        eventually("the node is ready", SOON, async || {
            assert!(self.process.is_running(), "it ended:\n{}", self.process.log_tail());
            let answer = lockstep_testkit::http::request(local(self.http), "GET", "/readyz", b"").await;
            match answer {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(answer.text()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    async fn status(&self) -> Value {
        get(local(self.http), "/api/status").await.json()
    }

    async fn output_error(&self, wanted: impl Fn(&str) -> bool) -> String {
        eventually("the output says so", SOON, async || {
            let status = self.status().await;
            let error = status["outputs"][0]["error"].as_str().unwrap_or_default().to_owned();
            if wanted(&error) { Ok(error) } else { Err(status["outputs"].to_string()) }
        })
        .await
    }
}

async fn submit(http: u16, data: &str) -> Value {
    let body = format!(r#"{{"projectID":7,"projectVersion":"0.1","data":"{data}"}}"#);
    let answer = post_message(local(http), body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// Every promise of a network that stands up to a height, at a node.
async fn has_all(http: u16, history: &History, height: u64) -> usize {
    let records = history.records();
    let promises: Vec<&Acknowledgement> = records.iter().filter_map(|record| record.acknowledgement()).collect();
    let promised = promises.into_iter().filter(|promise| promise.height.0 <= height);
    let mut count = 0;
    for promise in promised {
        let found = get(local(http), &format!("/api/messages/{}", promise.message_id)).await;
        assert_eq!(found.status, 200, "{promise:?}: {}", found.text());
        assert_eq!(found.json()["sequence"], promise.sequence.0, "{promise:?}");
        count += 1;
    }
    count
}

/// Bytes of the state and bytes that were copied, as `backup` tells them, and the backup's height.
pub fn back_up(home: &str, to: &str) -> (u64, u64, u64) {
    let said = works(&["backup", "--home", home, "--to", to]);
    let numbers: Vec<u64> = said
        .rsplit(": height")
        .next()
        .unwrap()
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect();
    (numbers[1], numbers[2], numbers[0])
}

pub fn all_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.path().is_dir() { found.extend(all_files(&entry.path())) } else { found.push(entry.path()) }
    }
    found
}

/// Wants no key of any node in a directory, neither as text nor as bytes.
pub fn has_no_secrets(cluster: &Cluster, directory: &Path) {
    let mut secrets = Vec::new();
    for index in 0..cluster.len() {
        for name in ["node.key", "task.key"] {
            let key = fs::read_to_string(cluster.node(index).process.home().join(name)).unwrap();
            let key = key.trim();
            let bytes = (0..32).map(|at| u8::from_str_radix(&key[2 * at..2 * at + 2], 16).unwrap()).collect::<Vec<_>>();
            secrets.extend([key.as_bytes().to_vec(), bytes]);
        }
    }
    for file in all_files(directory) {
        let content = fs::read(&file).unwrap();
        for secret in &secrets {
            assert!(!content.windows(secret.len()).any(|window| window == secret), "a key is in {}", file.display());
        }
    }
}

pub fn flip_a_bit(file: &Path) {
    let mut content = fs::read(file).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(file, content).unwrap();
}

/// A new node out of a backup, with a copy of a file that an earlier epoch published to.
fn restored(directory: &Path, name: &str, backups: &str, height: Option<u64>, task_key: &Path, output: &Path) -> Node {
    let node = Node::new(directory, name);
    let (home, task_key) = (node.home(), text(task_key));
    let mut arguments = vec!["restore", "--from", backups, "--home", &home, "--task-key-file", &task_key];
    let (like, height) = (node.like(name), height.map(|height| height.to_string()));
    arguments.extend(like.iter().map(String::as_str));
    if let Some(height) = &height {
        arguments.extend(["--height", height]);
    }
    let said = works(&arguments);
    println!("{said}");
    for word in ["epoch 1", "lost?", "join", "outputs adopt"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    fails(&arguments, "something here already");
    for suffix in ["", "-wal"] {
        let (from, to) = (text(output) + suffix, home.clone() + "/tasks.sqlite" + suffix);
        if Path::new(&from).exists() {
            fs::copy(from, to).unwrap();
        }
    }
    node
}

/// A second node asks to join, is admitted and promoted, and has what the first one has.
async fn joined(directory: &Path, first: &Node) -> Node {
    let mut second = Node::new(directory, "second");
    let (here, there) = (Operator::of(binary(), first.process.home()), Operator::of(binary(), second.process.home()));
    there.ask_to_join(&first.p2p(), second.like("second")).await.unwrap();
    second.process.start();
    let request = eventually("it asks", SOON, async || {
        let list = here.list().await?;
        list.requests.first().map(|request| request.id.clone()).ok_or_else(|| format!("{list:?}"))
    })
    .await;
    here.approve(&request).await.unwrap();
    let node = eventually("it is a member", SOON, async || {
        let list = here.list().await?;
        let found = list.present("second").filter(|_| list.pending.is_none()).map(|member| member.id);
        found.ok_or_else(|| format!("{list:?}"))
    })
    .await;
    second.ready().await;
    eventually("it is promoted", SOON, async || {
        let list = here.list().await?;
        if list.present("second").is_some_and(|member| member.role == "voter") && list.pending.is_none() {
            return Ok(());
        }
        here.promote(node).await.map(|_| ()).and(Err("under way".into()))
    })
    .await;
    second
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_made_under_load_is_restored_into_a_new_network_that_goes_on() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    let directory = tempfile::tempdir().unwrap();
    let (to, home) = (text(&directory.path().join("backups")), text(cluster.node(0).process.home()));
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, MESSAGES).await;
    let (total, copied, first_height) = back_up(&home, &to);
    assert_eq!(total, copied);
    load.stop().await;
    cluster.wait_head_equal(SOON).await;
    let (total, copied, height) = back_up(&home, &to);
    println!("second backup: {copied} of {total} bytes, height {height} after {first_height}");
    assert!(height > first_height && copied < total / 2, "{copied} of {total} bytes were copied again");
    let (_, copied, again) = back_up(&home, &to);
    assert!(again == height && copied <= NOTHING_NEW_BYTES, "{copied} bytes were copied although nothing is new");
    has_no_secrets(&cluster, Path::new(&to));
    assert_eq!(works(&["backup", "--list", &to]).lines().count(), 2);
    println!("{}", works(&["backup", "--check", &to]));
    let largest = all_files(Path::new(&to)).into_iter().max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap();
    flip_a_bit(&largest);
    fails(&["backup", "--check", &to], "its content is not what was written");
    fails(&["restore", "--from", &to, "--home", &text(&directory.path().join("no"))], "it is damaged");
    flip_a_bit(&largest);

    let (task_key, output) = (cluster.node(0).process.home().join("task.key"), cluster.sqlite(0));
    let head = cluster.wait_head_equal(SOON).await;
    eventually("all tasks are published", SOON, async || match count_sqlite(&output).map_err(|e| e.to_string())? {
        tasks if tasks == head.sequence.0 => Ok(()),
        tasks => Err(format!("{tasks} of {}", head.sequence)),
    })
    .await;
    for index in 0..cluster.len() {
        cluster.kill(index);
    }

    // From the newest backup: nothing is lost, and the output can be taken over.
    let mut whole = restored(directory.path(), "whole", &to, None, &task_key, &output);
    whole.process.start();
    whole.ready().await;
    let status = whole.status().await;
    assert_eq!((&status["epoch"], &status["head"]["sequence"]), (&1.into(), &head.sequence.0.into()), "{status}");
    assert_eq!(has_all(whole.http, &history, u64::MAX).await, history.acknowledged());
    println!("{}", whole.output_error(|error| error.contains("epoch 0")).await);
    println!("{}", works(&["outputs", "adopt", "--home", &whole.home(), "tasks"]));
    let answer = submit(whole.http, "after the restore").await;
    assert_eq!((&answer["sequence"], &answer["height"]), (&(head.sequence.0 + 1).into(), &(height + 1).into()));
    let second = joined(directory.path(), &whole).await;
    let answer = submit(second.http, "by the second node").await;
    assert_eq!(answer["sequence"], head.sequence.0 + 2);
    assert_eq!(has_all(second.http, &history, u64::MAX).await, history.acknowledged());
    let (one, two) = (whole.status().await, second.status().await);
    assert_eq!((&one["head"]["hash"], &one["epoch"]), (&two["head"]["hash"], &two["epoch"]));
    eventually("the output goes on", SOON + SOON, async || {
        match count_sqlite(&whole.process.home().join("tasks.sqlite")).map_err(|e| e.to_string())? {
            tasks if tasks == head.sequence.0 + 2 => Ok(()),
            tasks => Err(format!("{tasks} tasks: {}", whole.status().await["outputs"])),
        }
    })
    .await;

    // From an older one: what came after is lost, and the output that has it is refused until told.
    let mut older = restored(directory.path(), "older", &to, Some(first_height), &task_key, &output);
    older.process.start();
    older.ready().await;
    let status = older.status().await;
    assert_eq!(status["head"]["height"], first_height, "{status}");
    assert!(has_all(older.http, &history, first_height).await < history.acknowledged());
    let home = older.home();
    let adopt = ["outputs", "adopt", "--home", &home, "tasks"];
    let refused = fails(&adopt, "of what was lost");
    assert!(refused.contains(&format!("last task is {}", head.sequence)), "{refused}");
    assert_eq!(count_sqlite(&older.process.home().join("tasks.sqlite")).unwrap(), head.sequence.0);
    println!("{}", works(&[&adopt[..], &["--accept-ahead"]].concat()));
    submit(older.http, "in another history").await;
    older.output_error(str::is_empty).await;
    assert_eq!(count_sqlite(&older.process.home().join("tasks.sqlite")).unwrap(), head.sequence.0);
    for node in [whole, second, older] {
        node.process.assert_no_panic();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_majority_is_lost_goes_on_alone_when_it_is_told_to() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, 500).await;
    load.stop().await;
    let head = cluster.wait_head_equal(SOON).await;
    let home = text(cluster.node(0).process.home());
    fails(&["recover", "--unsafe", "--home", &home], "its node runs");
    // Without an orderly end the newest of it is in the log only.
    for index in 0..cluster.len() {
        cluster.kill(index);
    }
    cluster.start_node(1);
    eventually("the other answers", SOON, async || cluster.status(1).await.map(drop)).await;
    fails(&["recover", "--unsafe", "--home", &home], "start this node instead");
    cluster.kill(1);
    fails(&["recover", "--home", &home], "new epoch");
    for index in [1, 2] {
        fs::rename(cluster.node(index).process.home(), cluster.directory().join(format!("lost-{index}"))).unwrap();
    }
    let said = works(&["recover", "--unsafe", "--home", &home]);
    println!("{said}");
    assert!(said.contains(&format!("parent   height {}, {}", head.height, head.hash)), "{said}");
    assert!(cluster.node(0).process.home().join("store.epoch-0").is_dir());

    let (http, p2p) = (cluster.node(0).http_port, cluster.node(0).p2p_port);
    let log = cluster.directory().join("alone.log");
    let mut alone = Node { process: NodeProcess::new(binary(), cluster.node(0).process.home(), &log), http, p2p };
    alone.process.start();
    alone.ready().await;
    assert_eq!(has_all(http, &history, u64::MAX).await, history.acknowledged());
    let answer = submit(http, "alone").await;
    assert_eq!((&answer["sequence"], &answer["height"]), (&(head.sequence.0 + 1).into(), &(head.height.0 + 1).into()));
    eventually("it certifies by itself", SOON, async || {
        let status = alone.status().await;
        if status["head"]["final_height"] == head.height.0 + 1 { Ok(()) } else { Err(status["head"].to_string()) }
    })
    .await;

    // A node of the old epoch that turns up again has no say.
    fs::rename(cluster.directory().join("lost-1"), cluster.node(1).process.home()).unwrap();
    cluster.start_node(1);
    let second = joined(cluster.directory(), &alone).await;
    assert_eq!(has_all(second.http, &history, u64::MAX).await, history.acknowledged());
    let old = cluster.status(1).await.unwrap();
    assert_eq!((old.epoch.0, old.head.sequence <= head.sequence), (0, true));

    // And once more, by the same node.
    drop(second);
    alone.process.kill();
    println!("{}", works(&["recover", "--unsafe", "--even-so", "--home", &home]));
    alone.process.start();
    alone.ready().await;
    assert_eq!(alone.status().await["epoch"], 2);
    assert_eq!(submit(http, "alone again").await["sequence"], head.sequence.0 + 2);
    assert_eq!(has_all(http, &history, u64::MAX).await, history.acknowledged());
    alone.process.assert_no_panic();
    cluster.assert_no_panics();
}

/// Stops a node in order, so that its state is in files, and spoils one of them.
async fn spoil(cluster: &mut Cluster, index: usize, what: &str) {
    cluster.terminate(index);
    let status = cluster.node_mut(index).process.ended(SOON + SOON).await;
    assert!(status.success(), "{status}");
    let store = cluster.node(index).process.home().join("store");
    let directory = match fs::read_to_string(store.join("STATE")) {
        Ok(name) if what == "state" => store.join(name.trim()),
        _ => store.join(what),
    };
    let is_list = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("MANIFEST-");
    flip_a_bit(&all_files(&directory).into_iter().find(is_list).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_state_is_made_anew_and_a_damaged_log_is_not() {
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(3));
    keep_logs_short(cluster.node(1).process.home());
    keep_logs_short(cluster.node(2).process.home());
    cluster.start_all().await;
    let history = Arc::new(History::new());
    let load = Load::start(&LoadOptions::of(cluster.urls()), &history);
    more_messages(&history, 500).await;
    for index in [1, 2] {
        wait_purged(&cluster, index, 100).await;
    }
    let rebuild = |cluster: &Cluster, index: usize| {
        let home = text(cluster.node(index).process.home());
        let said = works(&["rebuild", "--home", &home]);
        println!("{said}");
        assert!(said.contains("was put aside"), "{said}");
        said
    };

    // From the log, which still begins at the beginning.
    let home = cluster.node(0).process.home().to_owned();
    fails(&["rebuild", "--home", &text(&home)], "its node runs");
    spoil(&mut cluster, 0, "state").await;
    refuses_to_start(&home, Limits::default(), &["lockstep rebuild"]);
    assert!(rebuild(&cluster, 0).contains("from the log"));
    cluster.start_node(0);
    cluster.wait_ready(0, SOON).await;

    // From another member, before raft starts.
    spoil(&mut cluster, 1, "state").await;
    assert!(rebuild(&cluster, 1).contains("another member"));
    cluster.start_node(1);
    cluster.wait_ready(1, SOON).await;
    assert!(cluster.node(1).process.log().contains("the state was made anew from a member's copy"));
    load.stop().await;
    cluster.wait_head_equal(SOON).await;
    for index in [0, 1] {
        let aside = fs::read_dir(cluster.node(index).process.home().join("store")).unwrap().flatten();
        assert_eq!(aside.filter(|entry| entry.file_name().to_string_lossy().starts_with("damaged-state-")).count(), 1);
        assert_eq!(has_all(cluster.node(index).http_port, &history, u64::MAX).await, history.acknowledged());
    }

    let home = cluster.node(2).process.home().to_owned();
    spoil(&mut cluster, 2, "log").await;
    refuses_to_start(&home, Limits::default(), &["join again under a new node id"]);
    let said = fails(&["rebuild", "--home", &text(&home)], "join again under a new id");
    assert!(said.contains("lockstep init --join") && said.contains("Nothing was changed"), "{said}");
    cluster.assert_no_panics();
}

#[test]
fn what_is_no_backup_is_refused_with_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let (from, home) = (text(directory.path()), text(&directory.path().join("home")));
    fails(&["restore", "--from", &from, "--home", &home], "no backup");
    fails(&["backup", "--home", &home, "--to", &from], "no node runs");
    fs::write(directory.path().join("backup-0-7.json"), "{\"version\": 99}").unwrap();
    fails(&["restore", "--from", &from, "--home", &home], "upgrade it");
    fails(&["backup", "--list", &from], "upgrade it");
    assert!(run(binary(), ["recover", "--help"]).contains("--unsafe"));
}
