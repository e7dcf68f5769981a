//! Every target for a bounded time, on the compiler that the project is built with: its true encodings are taken, and
//! mutations of them do no harm. `LOCKSTEP_FUZZ_MS` is the time for each, `LOCKSTEP_FUZZ_SEED` another beginning.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use lockstep_fuzz::{Counting, Random, Target, find, mutate::mutate, targets};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Longest input.
const BYTES_MAX: usize = 64 << 10;
/// Inputs that were taken and are mutated further.
const KEPT_MAX: usize = 512;

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn run(target: &Target) {
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty());
    for seed in &seeds {
        target.check(seed);
    }
    let time = Duration::from_millis(number("LOCKSTEP_FUZZ_MS", 700));
    let mut random = Random::new(number("LOCKSTEP_FUZZ_SEED", 1));
    let (mut kept, mut runs, started) = (seeds, 0_u64, Instant::now());
    while started.elapsed() < time {
        let (one, other) = (random.of(&kept).cloned().unwrap(), random.of(&kept).cloned().unwrap());
        let mut bytes = one;
        mutate(&mut bytes, &other, &mut random, BYTES_MAX);
        let outcome = std::panic::catch_unwind(|| target.check(&bytes));
        match outcome {
            Ok(true) if kept.len() < KEPT_MAX => kept.push(bytes),
            Ok(true) => {
                let place = random.below(kept.len());
                kept[place] = bytes;
            }
            Ok(false) => {}
            Err(_) => panic!("target {} on input {}", target.name, hex(&bytes)),
        }
        runs += 1;
    }
    println!("{}: {runs} inputs, {} kept, in {:?}", target.name, kept.len(), started.elapsed());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn no_target_breaks_on_mutations_of_true_encodings() {
    let wanted = std::env::var("LOCKSTEP_FUZZ_TARGET").ok();
    for target in targets().iter().filter(|target| wanted.as_ref().is_none_or(|name| name == target.name)) {
        run(target);
    }
}

#[test]
fn each_target_takes_what_is_true() {
    for target in targets() {
        let taken = (target.seeds)().iter().filter(|seed| target.check(seed)).count();
        println!("{}: {taken} of {} seeds taken", target.name, (target.seeds)().len());
        assert!(taken > 0, "{}", target.name);
    }
    assert!(find("apply").is_some() && find("nothing").is_none());
}

#[test]
fn names_are_those_of_directories_and_each_is_there_once() {
    let mut names: Vec<_> = targets().iter().map(|target| target.name).collect();
    assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')));
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}

/// An empty message takes two bytes and becomes hundreds: what is repeated is counted before it is read.
#[test]
fn a_few_bytes_never_ask_for_much_memory() {
    let nested = |path: &[u8], count: usize| {
        let (last, above) = path.split_last().unwrap();
        let mut bytes = [last << 3 | 2, 0].repeat(count);
        for field in above.iter().rev() {
            let mut outer = vec![field << 3 | 2];
            prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
            outer.extend(bytes);
            bytes = outer;
        }
        bytes
    };
    for (name, path) in [
        ("bundle", &[2][..]),
        ("bundle", &[2, 11, 2]),
        ("control", &[5, 2]),
        ("control", &[7, 1, 7, 1]),
        ("control", &[9, 3]),
        ("raft", &[1, 3]),
        ("raft", &[5, 6]),
        ("export", &[8]),
        ("export", &[8, 2]),
        ("order", &[1, 7, 1]),
    ] {
        assert!(!find(name).unwrap().check(&nested(path, 500_000)), "{name} {path:?}");
    }
}

/// Inputs on which something broke once.
#[test]
fn what_broke_once_holds() {
    for (name, input) in [
        // The place behind the last number of a task.
        ("http", &b"GET /api/tasks?after=18446744073709551615\n\n"[..]),
        ("http", b"GET /api/projects/18446744073709551615/devices\n\n"),
    ] {
        find(name).unwrap().check(input);
    }
}
