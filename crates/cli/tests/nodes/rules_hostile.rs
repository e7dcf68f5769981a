//! Rules that cost as much as they may, beside a project that wants its messages ordered as always.
//!
//! The same devices send the same messages at the same pace all the time: to a project whose rules refuse them at no
//! cost, and, in turn with it, to one whose rules are hostile. So nothing but the rules makes a difference.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lockstep_identity::sign_body;
use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::history::History;
use lockstep_testkit::http::{Answer, request};
use lockstep_testkit::load::{Load, LoadOptions, device_key};
use lockstep_testkit::random::Random;
use lockstep_testkit::wait::eventually;
use lockstep_types::ProjectId;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::rules_examples::{params_with, rules_are_known, set_rules};
use crate::{SOON, binary};

/// The project of [`Load`], without rules: what is measured.
const VICTIM: u64 = 7;
/// Its devices, each with one message under way.
const DEVICES: usize = 64;
/// The least part of its rate that hostile rules leave to another project.
const RATIO_MIN: f64 = 0.95;

/// The project whose rules cost nothing.
const QUIET: u64 = 8;
/// Projects with hostile rules.
const MODULE: u64 = 9;
const SCHEMA: u64 = 10;
const EXPRESSION: u64 = 11;
/// Devices that send to them, each with one message under way at most.
const SENDERS: usize = 16;
/// From one message of such a device to its next: 200 a second, all together.
const SEND_EVERY: Duration = Duration::from_millis(80);

/// Time after a change that is not measured: what was under way belongs to neither phase, and fuel that a project has
/// saved up is no lasting rate.
const SETTLE: Duration = Duration::from_secs(1);
/// Time of a phase that is measured.
const PHASE: Duration = Duration::from_secs(3);
/// Phases of each kind in one attempt.
const ROUNDS: usize = 5;
/// Other programs on the machine take away from a rate and never add to it; so the best attempt counts.
const ATTEMPTS: usize = 3;

/// Nodes say this only when a message is in the order: the rest of the rules has been gone through by then.
const NEVER: &str = "[[validate.expect]]\nthat = \"time < 0\"\nreason = \"never\"\n";
/// 1,600 additions and comparisons: little less than a message's expressions may take.
const BURN: &str = "[[validate.expect]]\n\
                    that = \"message.numbers.all(a, message.numbers.all(b, a + b >= 0))\"\nreason = \"burnt\"\n";
const NUMBERS: u64 = 40;
/// Lengths of a message's text. Whatever a byte of it costs, some are about as long as they may be.
const TEXTS: [usize; 4] = [125, 500, 2_000, 8_000];
/// Patterns of the schema and repetitions within each: the first that the network takes are used.
const PATTERNS: [(usize, usize); 6] = [(32, 2_500), (32, 25), (32, 9), (16, 7), (4, 7), (1, 7)];

/// An endless loop, as WebAssembly text: `(module (memory (export "memory") 1)
/// (func (export "check") (result i32) (loop (br 0)) (i32.const 0)))`.
const LOOP: &[u8] = b"\0asm\x01\0\0\0\
    \x01\x05\x01\x60\0\x01\x7f\
    \x03\x02\x01\0\
    \x05\x03\x01\0\x01\
    \x07\x12\x02\x06memory\x02\0\x05check\0\0\
    \x0a\x0b\x01\x09\0\x03\x40\x0c\0\x0b\x41\0\x0b";

/// Writes a document and the file that it names; the document's path.
fn write(cluster: &Cluster, name: &str, document: &str, file: Option<(&str, &[u8])>) -> PathBuf {
    let directory = cluster.directory().join(name);
    std::fs::create_dir_all(&directory).unwrap();
    if let Some((name, content)) = file {
        std::fs::write(directory.join(name), content).unwrap();
    }
    let path = directory.join("rules.toml");
    std::fs::write(&path, format!("version = 1\n{document}")).unwrap();
    path
}

/// A schema of patterns that take a state for each repetition, of which any may be the next one: a text of the two
/// letters is never through with them. None of them matches, which is what the schema wants.
fn schema(patterns: usize, repetitions: usize) -> String {
    let patterns: Vec<String> = (0..patterns)
        .map(|n| format!("{{\"pattern\":\"a[ab]{{{}}}[^ab]\"}}", repetitions.saturating_sub(n).max(1)))
        .collect();
    format!("{{\"properties\":{{\"text\":{{\"not\":{{\"anyOf\":[{}]}}}}}}}}", patterns.join(","))
}

/// Sets the most expensive schema that the network takes; whether there is one.
async fn set_schema(cluster: &Cluster) -> bool {
    for (patterns, repetitions) in PATTERNS {
        let (document, schema) = (format!("[validate]\nschema = \"s.json\"\n{NEVER}"), schema(patterns, repetitions));
        let rules = write(cluster, "schema", &document, Some(("s.json", schema.as_bytes())));
        let is_set =
            eventually("the schema is set, or refused", SOON, async || match set_rules(cluster, SCHEMA, &rules) {
                Ok(()) => Ok(true),
                Err(error) if error.contains("cannot be used") => Ok(false),
                Err(error) => Err(error),
            })
            .await;
        if is_set {
            println!("the schema has {patterns} patterns of {repetitions} repetitions");
            return true;
        }
    }
    false
}

/// Sets the rules of all projects that have some.
async fn set_all(cluster: &Cluster) {
    let quiet = write(cluster, "quiet", NEVER, None);
    let module = "[code]\nmodule = \"loop.wasm\"\nfuel = 2000000\n";
    let module = write(cluster, "module", module, Some(("loop.wasm", LOOP)));
    let expression = write(cluster, "expression", &format!("{BURN}{NEVER}"), None);
    for (project, rules) in [(QUIET, quiet), (MODULE, module), (EXPRESSION, expression)] {
        eventually("the rules are set", SOON, async || set_rules(cluster, project, &rules)).await;
    }
    assert!(set_schema(cluster).await, "no schema with patterns is taken");
    for project in [QUIET, MODULE, SCHEMA, EXPRESSION] {
        rules_are_known(cluster, project).await;
    }
}

/// What the senders heard, by project, and how often.
type Heard = BTreeMap<(u64, String), usize>;

/// Devices that send to one project after the other, all the time. They end with the value.
struct Senders {
    project: Arc<AtomicU64>,
    heard: Arc<Mutex<Heard>>,
    _tasks: JoinSet<()>,
}

/// Members of a message but for its number, for each length of its text.
fn contents(random: &mut Random) -> Vec<String> {
    let numbers: Vec<String> = (0..NUMBERS).map(|number| number.to_string()).collect();
    let content = |length: usize| {
        let text: String = (0..length).map(|_| if random.below(2) == 0 { 'a' } else { 'b' }).collect();
        format!("\"numbers\":[{}],\"text\":\"{text}\"", numbers.join(","))
    };
    TEXTS.into_iter().map(content).collect()
}

/// The status, and the reason or else the code.
fn what_was_said(answer: &Answer) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let word = body["reason"].as_str().or(body["code"].as_str()).unwrap_or_default();
    format!("{} {word}", answer.status)
}

impl Senders {
    fn start(addresses: &[SocketAddr]) -> Self {
        let (project, heard) = (Arc::new(AtomicU64::new(QUIET)), Arc::new(Mutex::new(Heard::new())));
        let mut tasks = JoinSet::new();
        for sender in 0..SENDERS {
            let (project, heard) = (Arc::clone(&project), Arc::clone(&heard));
            let (key, address) = (device_key(8, sender), addresses[sender % addresses.len()]);
            let contents = contents(&mut Random::new(sender as u64));
            tasks.spawn(async move {
                let turn = SEND_EVERY.mul_f64(sender as f64 / SENDERS as f64);
                let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + turn, SEND_EVERY);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                for (number, content) in contents.iter().cycle().enumerate() {
                    ticks.tick().await;
                    let to = project.load(Ordering::Relaxed);
                    let body = sign_body(&key, ProjectId(to), "1", &format!("{{\"number\":{number},{content}}}"));
                    let said = match request(address, "POST", "/message", body.as_bytes()).await {
                        Ok(answer) => what_was_said(&answer),
                        Err(error) => format!("no answer: {}", error.kind()),
                    };
                    *heard.lock().unwrap().entry((to, said)).or_default() += 1;
                }
            });
        }
        Self { project, heard, _tasks: tasks }
    }

    fn send_to(&self, project: u64) {
        self.project.store(project, Ordering::Relaxed);
    }

    /// What was said about messages of a project.
    fn heard_of(&self, project: u64) -> BTreeMap<String, usize> {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter(|((of, _), _)| *of == project).map(|((_, said), count)| (said.clone(), *count)).collect()
    }

    fn answers(&self, project: u64) -> usize {
        self.heard_of(project).values().sum()
    }
}

/// What phases of one kind were like, together.
#[derive(Debug, Default)]
struct Phases {
    /// Messages of the victim.
    acknowledged: usize,
    /// Answers to the senders.
    answers: usize,
    seconds: f64,
}

impl Phases {
    fn rate(&self) -> f64 {
        self.acknowledged as f64 / self.seconds
    }

    fn answer_rate(&self) -> f64 {
        self.answers as f64 / self.seconds
    }
}

async fn measure(history: &History, senders: &Senders, project: u64, phases: &mut Phases) {
    senders.send_to(project);
    tokio::time::sleep(SETTLE).await;
    let (acknowledged, answers, begun) = (history.acknowledged(), senders.answers(project), Instant::now());
    tokio::time::sleep(PHASE).await;
    phases.acknowledged += history.acknowledged() - acknowledged;
    phases.answers += senders.answers(project) - answers;
    phases.seconds += begun.elapsed().as_secs_f64();
}

/// Quiet and hostile phases in turn.
async fn attempt(history: &History, senders: &Senders, hostile: u64) -> (Phases, Phases) {
    let (mut good, mut bad) = (Phases::default(), Phases::default());
    for round in 0..ROUNDS {
        // Each comes first as often as it can, so that what changes with time counts for both.
        let order = if round % 2 == 0 { [QUIET, hostile] } else { [hostile, QUIET] };
        for project in order {
            measure(history, senders, project, if project == QUIET { &mut good } else { &mut bad }).await;
        }
    }
    (good, bad)
}

/// What is wrong with the best of the attempts with one kind of hostile rules.
async fn complaint(history: &History, senders: &Senders, (what, hostile): (&str, u64)) -> Option<String> {
    let mut ratios = Vec::new();
    for _ in 0..ATTEMPTS {
        let (good, bad) = attempt(history, senders, hostile).await;
        let ratio = bad.rate() / good.rate();
        let (answers_good, answers_bad) = (good.answer_rate(), bad.answer_rate());
        println!(
            "{what}: {:.0}/s, quiet {:.0}/s, ratio {ratio:.3}; {answers_bad:.0} answers/s, quiet {answers_good:.0}/s",
            bad.rate(),
            good.rate()
        );
        // Else it was not the same number of messages that they were measured beside.
        if ratio >= RATIO_MIN && answers_bad >= answers_good / 2.0 {
            return None;
        }
        ratios.push(ratio);
    }
    Some(format!("{what} leaves {ratios:.3?} of its rate to another project"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_rules_leave_95_percent_of_its_rate_to_another_project() {
    let params = params_with(&[VICTIM, QUIET, MODULE, SCHEMA, EXPRESSION]);
    let cluster = Cluster::start(binary(), ClusterOptions::of(3).with_params(params)).await;
    set_all(&cluster).await;
    let history = Arc::new(History::new());
    let options = LoadOptions { clients: DEVICES, period: Duration::from_millis(1), ..LoadOptions::of(cluster.urls()) };
    let load = Load::start(&options, &history);
    let addresses: Vec<SocketAddr> = (0..cluster.len()).map(|node| cluster.node(node).address()).collect();
    let senders = Senders::start(&addresses);
    eventually("everything is under way", SOON, async || {
        let have = (history.acknowledged(), senders.answers(QUIET));
        if have.0 > 2_000 && have.1 > 200 { Ok(()) } else { Err(format!("{have:?}: {:?}", senders.heard_of(QUIET))) }
    })
    .await;

    let kinds = [("an endless module", MODULE), ("an expensive schema", SCHEMA), ("a long expression", EXPRESSION)];
    let mut complaints = Vec::new();
    for kind in kinds {
        complaints.extend(complaint(&history, &senders, kind).await);
        println!("{}: {:?}", kind.0, senders.heard_of(kind.1));
    }
    load.stop().await;
    assert!(complaints.is_empty(), "{complaints:#?}");

    // Their own messages are refused, or wait for fuel; nothing else becomes of them.
    assert!(senders.heard_of(QUIET).keys().eq(["422 never"]), "{:?}", senders.heard_of(QUIET));
    for (what, project) in kinds {
        let heard = senders.heard_of(project);
        let right = |said: &String| said.starts_with("422 ") || said == "429 rules_fuel";
        assert!(heard.keys().all(right), "{what}: {heard:?}");
    }
    let module = senders.heard_of(MODULE);
    assert!(module.contains_key("422 fuel") && module.contains_key("429 rules_fuel"), "{module:?}");
    cluster.assert_no_panics();
}
