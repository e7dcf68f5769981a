//! The worked examples of docs/projects.md on real nodes: from devices that sign, over the rules that an owner sets, to
//! the rows that W3bstream's readers find in PostgreSQL.

use std::path::{Path, PathBuf};
use std::process::Command;

use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::http::{get, post_message};
use lockstep_testkit::load::device_key;
use lockstep_testkit::outputs::{MessageRow, TaskRow, read_postgres};
use lockstep_testkit::postgres::Postgres;
use lockstep_testkit::wait::eventually;
use lockstep_types::{Address, NetworkParams, ProjectId, ProjectSettings, Sequence, SigningKey};
use serde_json::{Value, json};

use crate::{SOON, binary};

const WEATHER: u64 = 7;
const MOBILITY: u64 = 8;
const ENERGY: u64 = 9;
/// How long complete groups wait here for what comes late.
const HOLD_MS: u64 = 500;
/// The devices' keys follow from it, and from these numbers.
const SEED: u64 = 5;
const BROCKEN: usize = 0;
const ZUGSPITZE: usize = 1;
/// A second device of the station on the Brocken.
const BROCKEN_SPARE: usize = 2;
const VEHICLES: [usize; 2] = [10, 11];
const METER: usize = 20;

fn owner(project: u64) -> SigningKey {
    SigningKey::from_bytes([u8::try_from(project).unwrap(); 32]).unwrap()
}

/// Parameters of a network with these projects, each with an owner of its own, and with payloads that anybody may read.
pub fn params_with(projects: &[u64]) -> NetworkParams {
    NetworkParams {
        public_payloads: true,
        projects: projects.iter().map(|id| (ProjectId(*id), ProjectSettings::open())).collect(),
        owners: projects.iter().map(|id| (ProjectId(*id), owner(*id).address())).collect(),
        ..NetworkParams::default()
    }
}

/// What an owner does on the command line; else what the program says to it.
pub fn set_rules(cluster: &Cluster, project: u64, rules: &Path) -> Result<(), String> {
    let key = cluster.directory().join(format!("owner-{project}.key"));
    std::fs::write(&key, hex::encode(owner(project).secret_bytes())).unwrap();
    let (url, project) = (cluster.node(1).url(), project.to_string());
    let mut command = Command::new(binary());
    command.args(["projects", "set", "--url", &url, "--project", &project, "--key-file"]).arg(key);
    let out = command.arg("--rules").arg(rules).output().unwrap();
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
}

/// Waits until a project has its rules on every node.
pub async fn rules_are_known(cluster: &Cluster, project: u64) {
    let path = format!("/api/projects/{project}");
    for node in 0..cluster.len() {
        eventually("the rules hold on every node", SOON, async || {
            let known = get(cluster.node(node).address(), &path).await.json();
            match known["rules"].as_array().and_then(|rules| rules.last()) {
                Some(last) if last["holds"] == true && !last["hash"].is_null() => Ok(()),
                _ => Err(known.to_string()),
            }
        })
        .await;
    }
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples")
}

/// A copy of an example, whose groups wait no longer than a test does. Its document.
fn copy_of(directory: &Path, name: &str, hold_ms: Option<u64>) -> PathBuf {
    let copy = directory.join(name);
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(examples().join(name)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let rules = copy.join("rules.toml");
    if let Some(hold_ms) = hold_ms {
        let (text, written) = (std::fs::read_to_string(&rules).unwrap(), format!("hold_ms = {hold_ms}\n"));
        assert!(text.contains(&written), "{text}");
        std::fs::write(&rules, text.replace(&written, &format!("hold_ms = {HOLD_MS}\n"))).unwrap();
    }
    rules
}

/// Compiles a module as its first lines say. `scripts/deps.sh test` sees to it that there is a compiler for it.
fn compile(source: &Path, module: &Path) {
    let libraries = |rustc: &str| {
        let print = ["--print", "target-libdir", "--target", "wasm32-unknown-unknown"];
        let printed = Command::new(rustc).args(print).output().ok()?;
        Some(PathBuf::from(String::from_utf8(printed.stdout).ok()?.trim()))
    };
    let has = |rustc: &&str| libraries(rustc).is_some_and(|directory| directory.exists());
    let rustc =
        ["rustc", "/usr/bin/rustc"].into_iter().find(has).expect("no rustc for wasm32; run scripts/deps.sh test");
    let flags = "--edition 2021 --target wasm32-unknown-unknown --crate-type cdylib -C opt-level=s -C panic=abort \
                 -C link-arg=-zstack-size=16384";
    let status = Command::new(rustc).args(flags.split_whitespace()).arg("-o").arg(module).arg(source).status().unwrap();
    assert!(status.success());
}

/// A task as a reader finds it: its row, and those of its messages in the task's order.
struct Found {
    task: TaskRow,
    messages: Vec<MessageRow>,
}

impl Found {
    /// Wants one row of these data instead of the messages, of no device: the group is of several.
    fn assert_reduced_to(&self, data: &str) {
        let text = |row: &MessageRow| String::from_utf8_lossy(&row.data).into_owned();
        let rows: Vec<_> = self.messages.iter().map(|row| (row.device, text(row))).collect();
        assert_eq!(rows, [(Address::ZERO, data.to_owned())], "{:?}", self.task);
    }
}

/// A project of the network under test.
struct Project<'a> {
    id: u64,
    cluster: &'a Cluster,
    dsn: &'a str,
}

impl Project<'_> {
    /// A device sends a message to a node.
    async fn send(&self, node: usize, device: usize, data: &Value) -> (u16, Value) {
        let key = device_key(SEED, device);
        let body = lockstep_identity::sign_body(&key, ProjectId(self.id), "1", &data.to_string());
        let answer = post_message(self.cluster.node(node).address(), body.as_bytes()).await;
        (answer.status, answer.json())
    }

    /// The same, for one that is taken: its place.
    async fn taken(&self, node: usize, device: usize, data: &Value) -> Sequence {
        let (status, said) = self.send(node, device, data).await;
        assert_eq!(status, 200, "{data}: {said}");
        Sequence(said["sequence"].as_u64().unwrap())
    }

    /// The same, for one that the rules refuse.
    async fn refused(&self, node: usize, device: usize, data: &Value, reason: &str) {
        let (status, said) = self.send(node, device, data).await;
        assert_eq!((status, &said["code"], &said["reason"]), (422, &json!("rules"), &json!(reason)), "{data}: {said}");
    }

    /// Waits until PostgreSQL has so many tasks of the project. Each names its messages, and bears the operators'
    /// signature over them, as a reader checks it.
    async fn tasks(&self, count: usize) -> Vec<Found> {
        let is_ours = |task: &&TaskRow| task.project_id == ProjectId(self.id);
        let rows = eventually("the tasks are in PostgreSQL", SOON, async || {
            let rows = read_postgres(self.dsn, "postgres").await.map_err(|e| e.to_string())?;
            let found = rows.tasks.iter().filter(is_ours).count();
            if found == count { Ok(rows) } else { Err(format!("{found} of {count} of project {}: {rows:?}", self.id)) }
        })
        .await;
        let mut tasks = Vec::new();
        for task in rows.tasks.iter().filter(is_ours) {
            let mut messages: Vec<MessageRow> =
                rows.messages.iter().filter(|row| row.task_id == task.id).cloned().collect();
            messages.sort_by_key(|row| task.sequences.iter().position(|sequence| *sequence == row.sequence));
            let sequences: Vec<Sequence> = messages.iter().map(|row| row.sequence).collect();
            assert_eq!(sequences, task.sequences, "{messages:?}");
            assert_eq!(rows.signer_of(task).unwrap(), self.cluster.task_signer(), "{task:?} {messages:?}");
            tasks.push(Found { task: task.clone(), messages });
        }
        tasks
    }

    /// Waits until every node says that the rules took and flagged so many messages.
    async fn figures(&self, taken: u64, flagged: u64) {
        for node in 0..self.cluster.len() {
            let path = format!("/api/projects/{}", self.id);
            eventually("every node has the same figures", SOON, async || {
                let figures = get(self.cluster.node(node).address(), &path).await.json()["figures"].clone();
                let right = figures["taken"] == taken && figures["flagged"] == flagged;
                if right { Ok(()) } else { Err(figures.to_string()) }
            })
            .await;
        }
    }
}

/// Stations have a task for each hour, with the mean.
async fn weather(project: &Project<'_>) {
    let reading = |station: &str, ts: u64, celsius: f64| json!({"station": station, "ts": ts, "celsius": celsius});
    project.taken(0, BROCKEN, &reading("brocken", 3_600_000, 4.0)).await;
    project.taken(1, BROCKEN, &reading("brocken", 3_900_000, 6.0)).await;
    project.taken(2, ZUGSPITZE, &reading("zugspitze", 3_700_000, -11.5)).await;
    project.refused(0, BROCKEN, &reading("brocken", 4_000_000, 99.0), "out_of_range").await;
    // 14 degrees in five minutes are flagged.
    project.taken(1, BROCKEN, &reading("brocken", 4_200_000, 20.0)).await;
    // Another hour begins for this station, and for no other.
    project.taken(2, BROCKEN, &reading("brocken", 7_300_000, 7.0)).await;
    let tasks = project.tasks(1).await;
    tasks[0].assert_reduced_to(r#"{"celsius":10.0,"coldest":4.0,"readings":3,"station":"brocken","warmest":20.0}"#);
    let path = format!("/api/tasks/{}", tasks[0].task.id);
    for node in 0..project.cluster.len() {
        eventually("every node shows the task", SOON, async || {
            let answer = get(project.cluster.node(node).address(), &path).await;
            let view = answer.json();
            let right = answer.status == 200 && view["group"] == "brocken" && view["window"] == 1;
            if right && !view["payload"].is_null() { Ok(()) } else { Err(view.to_string()) }
        })
        .await;
    }

    project.taken(0, ZUGSPITZE, &reading("zugspitze", 7_200_000, -10.0)).await;
    let tasks = project.tasks(2).await;
    tasks[1]
        .assert_reduced_to(r#"{"celsius":-11.5,"coldest":-11.5,"readings":1,"station":"zugspitze","warmest":-11.5}"#);

    // Too late for the first hour's task: flagged, and a task of its own.
    project.taken(1, BROCKEN_SPARE, &reading("brocken", 5_000_000, 12.0)).await;
    let tasks = project.tasks(3).await;
    tasks[2].assert_reduced_to(r#"{"celsius":12.0,"coldest":12.0,"readings":1,"station":"brocken","warmest":12.0}"#);
    project.figures(7, 2).await;
}

/// A trip is one task, and a module sees to it that no vehicle jumps.
async fn mobility(project: &Project<'_>) {
    let text = std::fs::read_to_string(examples().join("mobility/messages.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let refusals = [None, None, Some("too_fast"), None, Some("no_such_place"), None];
    assert_eq!(lines.len(), refusals.len());
    let mut trip = Vec::new();
    for (n, (line, refusal)) in lines.iter().zip(refusals).enumerate() {
        let (device, data) = (VEHICLES[usize::from(line["device"] != lines[0]["device"])], &line["data"]);
        match refusal {
            Some(reason) => project.refused(n % 3, device, data, reason).await,
            None => trip.push((project.taken(n % 3, device, data).await, data.to_string().into_bytes())),
        }
    }
    let tasks = project.tasks(1).await;
    let rows: Vec<_> = tasks[0].messages.iter().map(|row| (row.sequence, row.data.clone())).collect();
    assert_eq!(rows, trip);
    project.figures(4, 0).await;
}

/// A meter has a task for each quarter of an hour, in the order of its own time.
async fn energy(project: &Project<'_>) {
    let reading = |counter: u64, ts: u64, wh: u64| json!({"counter": counter, "ts": ts, "wh": wh});
    let first = reading(1, 900_000, 1_000);
    // Between these two the meter's clock is set back.
    let (second, third) = (reading(2, 1_020_000, 1_010), reading(3, 960_000, 1_020));
    let sequences = [
        project.taken(0, METER, &first).await,
        project.taken(1, METER, &second).await,
        project.taken(2, METER, &third).await,
    ];
    project.refused(0, METER, &reading(5, 1_080_000, 1_030), "counter_gap").await;
    project.taken(1, METER, &reading(4, 1_800_000, 1_030)).await;
    let tasks = project.tasks(1).await;
    // Readers go by ascending places; so the messages share out theirs anew.
    assert_eq!(tasks[0].task.sequences, sequences);
    let device = device_key(SEED, METER).address();
    let rows: Vec<_> = tasks[0].messages.iter().map(|row| (row.device, row.data.clone())).collect();
    assert_eq!(rows, [first, third, second].map(|data| (device, data.to_string().into_bytes())));

    let late = project.taken(2, METER, &reading(5, 1_700_000, 1_040)).await;
    let tasks = project.tasks(2).await;
    assert_eq!(tasks[1].task.sequences, [late]);
    project.figures(5, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_three_examples_run_from_device_to_postgresql_row() {
    let postgres = Postgres::start();
    let dsn = postgres.dsn();
    let params = params_with(&[WEATHER, MOBILITY, ENERGY]);
    let cluster = Cluster::start(binary(), ClusterOptions::of(3).with_params(params).with_postgres(dsn.clone())).await;
    let directory = cluster.directory();
    let documents = [
        (WEATHER, copy_of(directory, "weather", Some(30_000))),
        (MOBILITY, copy_of(directory, "mobility", None)),
        (ENERGY, copy_of(directory, "energy", Some(5_000))),
    ];
    let trip = directory.join("mobility");
    compile(&trip.join("distance.rs"), &trip.join("distance.wasm"));
    for (project, rules) in documents {
        eventually("the rules are set", SOON, async || set_rules(&cluster, project, &rules)).await;
        rules_are_known(&cluster, project).await;
    }
    let project = |id: u64| Project { id, cluster: &cluster, dsn: &dsn };
    weather(&project(WEATHER)).await;
    mobility(&project(MOBILITY)).await;
    energy(&project(ENERGY)).await;
    cluster.assert_no_panics();
}
