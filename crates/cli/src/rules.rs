//! `lockstep projects init` and `test`: rules of a project, written and tried out without a network.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use lockstep_rules::{Bundle, Cause, Defaults, HAS_ENGINE, Input, Made, Outcome, Rehearsal, Rules, RulesError};
use lockstep_types::{Address, ProjectSettings};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::args::RulesTest;

/// Longest line of the messages in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Between two messages whose times are not said.
const STEP_MS: u64 = 1_000;
/// What `init` writes.
const FIRST_DOCUMENT: &str = include_str!("rules/first.toml");

/// Rules are written, tried out and set by a program that knows them, so that nobody writes what cannot be tried.
fn check_engine(is_there: bool) -> Result<(), RulesError> {
    if is_there { Ok(()) } else { Err(RulesError::LeftOut) }
}

/// Writes a document to begin with.
pub fn init(file: &Path) -> anyhow::Result<()> {
    check_engine(HAS_ENGINE)?;
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(file)
        .with_context(|| format!("{}: rules are written into a new file only", file.display()))?;
    out.write_all(FIRST_DOCUMENT.as_bytes()).with_context(|| file.display().to_string())?;
    println!("{} is written; try it: lockstep projects test --rules {0} --input messages.jsonl", file.display());
    Ok(())
}

/// Reads a document with the files beside it.
pub fn read_bundle(file: &Path) -> anyhow::Result<Bundle> {
    check_engine(HAS_ENGINE)?;
    let document = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let directory = file.parent().map(Path::to_path_buf).unwrap_or_default();
    let read = |name: &str| {
        let path: PathBuf = directory.join(name);
        fs::read(&path).with_context(|| format!("{}, which {} names", path.display(), file.display()))
    };
    Bundle::collect(document, read).with_context(|| file.display().to_string())?
}

/// A line of the messages.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// The message's data: JSON as it is, or with `base64`, bytes.
    data: Box<RawValue>,
    #[serde(default)]
    base64: bool,
    #[serde(default)]
    device: Option<Address>,
    #[serde(default)]
    time_ms: Option<u64>,
    #[serde(default)]
    nonce: Option<u64>,
    #[serde(default)]
    version: Option<String>,
}

/// What is said of a message.
#[derive(Debug, Serialize)]
struct Said<'a> {
    line: usize,
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    flags: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    time_ms: Option<i64>,
    fuel: u64,
    stages: Vec<SaidStage<'a>>,
}

/// What is said of a stage.
#[derive(Debug, Serialize)]
struct SaidStage<'a> {
    stage: String,
    did: &'a str,
    fuel: u64,
}

/// What is said of a task.
#[derive(Debug, Serialize)]
struct SaidTask {
    task: usize,
    closed_by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<Address>,
    #[serde(skip_serializing_if = "String::is_empty")]
    group: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<i64>,
    messages: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outputs: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Value>,
}

/// Tries rules out on messages of a file.
pub fn test(arguments: &RulesTest) -> anyhow::Result<()> {
    let bundle = read_bundle(&arguments.rules)?;
    let rules = Rules::compile(&bundle).with_context(|| arguments.rules.display().to_string())?;
    let settings = ProjectSettings::default();
    let mut rehearsal = Rehearsal::new(
        &rules,
        Defaults {
            messages_max: settings.group_messages_max,
            bytes_max: settings.group_bytes_max,
            age_max_ms: settings.group_age_max_ms,
        },
    );
    let file = fs::File::open(&arguments.input).with_context(|| arguments.input.display().to_string())?;
    let outputs = rules.document().route.outputs.clone();
    let mut show = Show { json: arguments.json, outputs, tasks: 0, taken: 0, refused: 0 };
    let (mut now, mut reader, mut text, mut number) = (0, BufReader::new(file), String::new(), 0);
    loop {
        text.clear();
        number += 1;
        let place = || format!("{}:{number}", arguments.input.display());
        if reader.read_line(&mut text).with_context(place)? == 0 {
            break;
        }
        if text.len() > LINE_BYTES_MAX {
            bail!("{}: the line is longer than {LINE_BYTES_MAX} bytes", place());
        }
        if text.trim().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_str(&text).with_context(place)?;
        now = line.time_ms.unwrap_or(now + STEP_MS);
        let input = input(line, now).with_context(place)?;
        let outcome = rehearsal.take(input);
        show.message(number, &outcome)?;
    }
    for made in rehearsal.finish() {
        show.task(&made)?;
    }
    eprintln!("{} messages taken, {} not; {} tasks; rules {}", show.taken, show.refused, show.tasks, hex(&bundle));
    Ok(())
}

fn hex(bundle: &Bundle) -> String {
    format!("0x{}", hex::encode(bundle.hash()))
}

fn input(line: Line, now: u64) -> anyhow::Result<Input> {
    let data = if line.base64 {
        let text: String = serde_json::from_str(line.data.get()).context("data must be a text where base64 is true")?;
        STANDARD.decode(text).context("data is not base64")?.into()
    } else {
        // As it stands there.
        Bytes::from(line.data.get().to_owned())
    };
    Ok(Input {
        data,
        device: line.device.unwrap_or(Address::ZERO),
        version: line.version.unwrap_or_else(|| "1".into()),
        nonce: line.nonce,
        time_ms: now,
        last: None,
    })
}

struct Show {
    json: bool,
    /// Outputs that tasks are for; `None`: all.
    outputs: Option<Vec<String>>,
    tasks: usize,
    taken: usize,
    refused: usize,
}

impl Show {
    fn message(&mut self, line: usize, outcome: &Outcome) -> anyhow::Result<()> {
        for made in &outcome.before {
            self.task(made)?;
        }
        let fuel = outcome.fuel;
        let none = Said {
            line,
            result: "taken",
            sequence: None,
            stage: None,
            reason: None,
            detail: None,
            flags: &[],
            time_ms: None,
            fuel,
            stages: outcome
                .notes
                .iter()
                .map(|note| SaidStage { stage: note.stage.to_string(), did: &note.did, fuel: note.fuel })
                .collect(),
        };
        let said = match &outcome.result {
            Ok((sequence, accepted)) => {
                self.taken += 1;
                Said { sequence: Some(sequence.0), flags: &accepted.flags, time_ms: accepted.time_ms, ..none }
            }
            Err(refusal) => {
                self.refused += 1;
                Said {
                    result: if refusal.dropped { "dropped" } else { "refused" },
                    stage: Some(refusal.stage.to_string()),
                    reason: Some(&refusal.reason),
                    detail: Some(&refusal.detail),
                    ..none
                }
            }
        };
        if self.json {
            println!("{}", serde_json::to_string(&said)?);
        } else {
            let flags: String = said.flags.iter().map(|flag| format!(", {flag}")).collect();
            match (&outcome.result, said.sequence) {
                (Ok(_), Some(sequence)) => println!("line {line}: taken as {sequence}{flags} ({fuel} fuel)"),
                (Err(refusal), _) => {
                    println!("line {line}: {} by {}, {} ({fuel} fuel)", said.result, refusal.stage, refusal.reason);
                }
                _ => {}
            }
            for stage in &said.stages {
                println!("    {:<9} {} ({})", stage.stage, stage.did, stage.fuel);
            }
        }
        if let Some(made) = &outcome.with {
            self.task(made)?;
        }
        Ok(())
    }

    fn task(&mut self, made: &Made) -> anyhow::Result<()> {
        self.tasks += 1;
        let said = SaidTask {
            task: self.tasks,
            closed_by: match made.cause {
                Cause::Full => "count or bytes",
                Cause::Closed => "close",
                Cause::Window => "a later window",
                Cause::Age => "age",
                Cause::End => "the end of the messages",
            },
            device: Some(made.together.device).filter(|device| *device != Address::ZERO),
            group: made.together.name.clone(),
            window: made.together.window,
            outputs: self.outputs.clone(),
            messages: made.packed.sequences.iter().map(|sequence| sequence.0).collect(),
            payload: made.packed.payload.as_deref().map(serde_json::from_str).transpose()?,
        };
        if self.json {
            println!("{}", serde_json::to_string(&said)?);
            return Ok(());
        }
        let mut whose = said.device.map(|device| format!(" of {device}")).unwrap_or_default();
        if !said.group.is_empty() {
            whose += &format!(" of {:?}", said.group);
        }
        if let Some(window) = said.window {
            whose += &format!(", window {window}");
        }
        let outputs = said.outputs.map(|outputs| format!(", for {}", outputs.join(", "))).unwrap_or_default();
        println!("  task {}{whose}, closed by {}: messages {:?}{outputs}", said.task, said.closed_by, said.messages);
        if let Some(payload) = &made.packed.payload {
            println!("    {payload}");
        }
        Ok(())
    }
}
