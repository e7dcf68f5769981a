//! The worked examples of docs/projects.md: what each message becomes, and which tasks come out.

use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use lockstep_rules::{Bundle, Cause, Defaults, Input, Made, Outcome, Rehearsal, Rules};
use serde_json::Value;

fn directory(example: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples").join(example)
}

/// Compiles a module as its first lines say. `scripts/deps.sh test` sees to it that there is a compiler for it.
fn compile(source: &Path) -> Vec<u8> {
    let libraries = |rustc: &str| {
        let print = ["--print", "target-libdir", "--target", "wasm32-unknown-unknown"];
        let printed = Command::new(rustc).args(print).output().ok()?;
        Some(PathBuf::from(String::from_utf8(printed.stdout).ok()?.trim()))
    };
    let has = |rustc: &&str| libraries(rustc).is_some_and(|directory| directory.exists());
    let rustc =
        ["rustc", "/usr/bin/rustc"].into_iter().find(has).expect("no rustc for wasm32; run scripts/deps.sh test");
    let out = tempfile::tempdir().unwrap();
    let module = out.path().join("module.wasm");
    let flags = "--edition 2021 --target wasm32-unknown-unknown --crate-type cdylib -C opt-level=s -C panic=abort \
                 -C link-arg=-zstack-size=16384";
    let status =
        Command::new(rustc).args(flags.split_whitespace()).arg("-o").arg(&module).arg(source).status().unwrap();
    assert!(status.success());
    std::fs::read(module).unwrap()
}

fn rehearse(example: &str) -> (Vec<Outcome>, Vec<Made>) {
    let directory = directory(example);
    let document = std::fs::read_to_string(directory.join("rules.toml")).unwrap();
    let read = |name: &str| match name {
        "distance.wasm" => Ok(compile(&directory.join("distance.rs"))),
        name => std::fs::read(directory.join(name)),
    };
    let bundle = Bundle::collect(document, read).unwrap().unwrap();
    let rules = Rules::compile(&bundle).unwrap();
    let mut rehearsal = Rehearsal::new(&rules, Defaults { messages_max: 1, bytes_max: 1 << 20, age_max_ms: 5_000 });
    let messages = std::fs::read_to_string(directory.join("messages.jsonl")).unwrap();
    let mut outcomes = Vec::new();
    for (n, line) in (0..).zip(messages.lines()) {
        let line: Value = serde_json::from_str(line).unwrap();
        outcomes.push(rehearsal.take(Input {
            data: Bytes::from(line["data"].to_string()),
            device: line["device"].as_str().unwrap().parse().unwrap(),
            version: "1".into(),
            nonce: None,
            time_ms: line["time_ms"].as_u64().unwrap_or(n * 1_000),
            last: None,
        }));
    }
    (outcomes, rehearsal.finish())
}

fn words(outcomes: &[Outcome]) -> Vec<String> {
    let word = |outcome: &Outcome| match &outcome.result {
        Ok((sequence, accepted)) if accepted.flags.is_empty() => sequence.to_string(),
        Ok((sequence, accepted)) => format!("{sequence} {}", accepted.flags.join(" ")),
        Err(refusal) => refusal.reason.clone(),
    };
    outcomes.iter().map(word).collect()
}

fn sequences(made: &Made) -> Vec<u64> {
    made.packed.sequences.iter().map(|sequence| sequence.0).collect()
}

#[test]
fn weather_stations_have_an_hourly_mean() {
    let (outcomes, left) = rehearse("weather");
    let expected = ["1", "2", "3", "not_monotonic", "out_of_range", "schema", "4 jump", "test", "5"];
    assert_eq!(words(&outcomes), expected);
    // The last message begins another hour of its station; that of the other one is still open.
    let made: Vec<&Made> = outcomes.iter().flat_map(|outcome| &outcome.before).collect();
    assert!(made.is_empty());
    assert_eq!(left.len(), 3);
    let brocken = &left[0];
    assert_eq!(
        (brocken.together.name.as_str(), brocken.together.window, sequences(brocken)),
        ("brocken", Some(1), vec![1, 2, 4])
    );
    assert_eq!(
        brocken.packed.payload.as_deref(),
        Some(r#"{"celsius":10.0,"coldest":4.0,"readings":3,"station":"brocken","warmest":20.0}"#)
    );
}

#[test]
fn a_trip_is_one_task_and_nobody_jumps() {
    let (outcomes, left) = rehearse("mobility");
    assert_eq!(words(&outcomes), ["1", "2", "too_fast", "3", "no_such_place", "4"]);
    let task = outcomes[5].with.as_ref().unwrap();
    assert_eq!((task.together.name.as_str(), sequences(task), task.cause), ("t-1", vec![1, 2, 3, 4], Cause::Closed));
    assert!(left.is_empty());
}

#[test]
fn a_meter_has_a_task_for_each_quarter_of_an_hour() {
    let (outcomes, left) = rehearse("energy");
    assert_eq!(words(&outcomes), ["1", "2", "counter_gap", "counter_gap", "runs_backwards", "3", "4"]);
    let tasks: Vec<_> = left.iter().map(|made| (made.together.window, sequences(made), made.cause)).collect();
    assert_eq!(
        tasks,
        [(Some(1), vec![1, 2], Cause::End), (Some(2), vec![4], Cause::End), (Some(1), vec![3], Cause::End)]
    );
}
