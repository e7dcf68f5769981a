//! Runs simulations, and networks of real processes on which everything goes wrong, from the command line.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use lockstep_testkit::chaos;
use lockstep_testkit::sim::{Bug, Report, Scenario, run};

/// A simulation allocates much and briefly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// mimalloc's setting: milliseconds after which it gives memory back to the system, or -1 for never.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";

/// Tools for testing Lockstep.
#[derive(Parser)]
#[command(name = "lockstep-testkit")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a network in simulated time, with faults, once for each seed, and check what came of it.
    Sim(Sim),
    /// Let everything go wrong on a network of real processes under load, mend it, and check what came of it.
    Chaos(Chaos),
}

#[derive(Args)]
struct Chaos {
    /// For how long things go wrong, in minutes.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// How many nodes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(3..=15))]
    nodes: u8,
    /// What goes wrong follows from it; drawn if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Messages that devices submit in a second, together.
    #[arg(long, default_value_t = 1_200)]
    rate: u32,
    /// The program; the one beside this one if not given.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Run with nodes that do not sync, which the checker has to find; the run succeeds when it does.
    #[arg(long)]
    no_sync: bool,
    /// Keep the nodes' files and logs; they are kept in any case where a promise was broken.
    #[arg(long)]
    keep: bool,
    /// Write what came of it to this file, as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
}

#[derive(Args)]
struct Sim {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What to run: default, members, disks, snapshots, forgets, forgets-members, stalls, upgrade, upgrade-members, clocks,
    /// clocks-alone, outage, years, years-short, plain or calm.
    #[arg(long, default_value = "default")]
    scenario: Scenario,
    /// Put in a bug that the checker has to catch; the run succeeds when it does.
    #[arg(long)]
    bug: Option<Bug>,
    /// How many run at a time, each on a thread of its own; as many as there are cores if not given.
    #[arg(long, conflicts_with = "trace")]
    jobs: Option<NonZeroUsize>,
    /// Print every event when it happens.
    #[arg(long)]
    trace: bool,
    /// What the nodes log, as in RUST_LOG: `info,openraft=debug`.
    #[arg(long)]
    log: Option<String>,
}

/// Shows how far it is, where somebody looks.
struct Bar {
    begun: Instant,
    seeds: u64,
    shown: bool,
}

impl Bar {
    fn rate(&self, done: u64) -> f64 {
        done as f64 / self.begun.elapsed().as_secs_f64().max(0.001)
    }

    fn show(&self, done: u64) {
        const WIDTH: usize = 40;
        if self.shown {
            let full = usize::try_from(done * WIDTH as u64 / self.seeds.max(1)).unwrap_or(WIDTH);
            let bar = format!("{}{}", "#".repeat(full), "-".repeat(WIDTH - full));
            eprint!("\r[{bar}] {done}/{} seeds, {:.1} a second ", self.seeds, self.rate(done));
            let _ = std::io::stderr().flush();
        }
    }
}

fn show_failure(report: &Report, sim: &Sim) {
    println!("\nseed {} failed: {}", report.seed, report.violations);
    println!("the last events:");
    report.last_events.iter().for_each(|line| println!("  {line}"));
    let bug = sim.bug.map_or_else(String::new, |bug| format!(" --bug {bug}"));
    println!("again: lockstep-testkit sim --seed {} --scenario {}{bug} --trace", report.seed, sim.scenario.name);
}

/// Runs the seeds on several threads and hands the reports over in the order of the seeds, until `take` has enough. What
/// one seed does depends on nothing that another thread does.
fn run_all<T>(
    sim: &Sim,
    scenario: &Scenario,
    mut take: impl FnMut(u64, Report) -> ControlFlow<T>,
) -> Result<ControlFlow<T>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = if sim.trace { 1 } else { sim.jobs.map_or(cores, usize::from) };
    let (next, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let (reports, inbox) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (reports, next, enough) = (reports.clone(), &next, &enough);
            scope.spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    if place >= sim.seeds || reports.send((place, run(sim.seed + place, scenario, sim.trace))).is_err()
                    {
                        return;
                    }
                }
            });
        }
        drop(reports);
        let (mut early, mut wanted) = (BTreeMap::new(), 0);
        while let Ok((place, report)) = inbox.recv() {
            early.insert(place, report);
            while let Some(report) = early.remove(&wanted) {
                wanted += 1;
                let taken = report.map(|report| take(wanted, report));
                if !matches!(taken, Ok(ControlFlow::Continue(()))) {
                    enough.store(true, Ordering::Relaxed);
                    return taken;
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Begins anew with an allocator that keeps what it has: each seed wants as much memory as the one before gave back, and
/// the system clears every page of it, which is a tenth of the time. The allocator asks for settings before `main` runs.
/// Returns where that was done already, or cannot be.
fn keep_memory() {
    if std::env::var_os(PURGE_DELAY).is_none()
        && let Ok(program) = std::env::current_exe()
    {
        let arguments = std::env::args_os().skip(1);
        // It fails where the program was replaced meanwhile; then it is only slower.
        let _ = std::process::Command::new(program).args(arguments).env(PURGE_DELAY, "-1").exec();
    }
}

fn simulate(sim: &Sim) -> Result<ExitCode> {
    keep_memory();
    if let Some(filter) = &sim.log {
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).init();
    }
    let scenario = sim.bug.map_or_else(|| sim.scenario.clone(), Scenario::for_bug);
    let bar = Bar { begun: Instant::now(), seeds: sim.seeds, shown: std::io::stderr().is_terminal() };
    let (mut calls, mut acknowledged) = (0, 0);
    let ended = run_all(sim, &scenario, |done, report| {
        (calls, acknowledged) = (calls + report.calls.0, acknowledged + report.calls.1);
        if sim.seeds == 1 {
            let (seconds, events) = (report.simulated.as_secs_f64(), report.events);
            println!("seed {}: hash {:016x}, {events} events in {seconds:.1} s", report.seed, report.hash);
        }
        let fails = match sim.bug {
            Some(bug) => report.violations.show(bug.breaks()),
            None => report.violations.count > 0,
        };
        if fails {
            show_failure(&report, sim);
            if sim.bug.is_some() {
                println!("the bug was caught by seed {done} of {}", sim.seeds);
                return ControlFlow::Break(ExitCode::SUCCESS);
            }
            return ControlFlow::Break(ExitCode::FAILURE);
        }
        bar.show(done);
        ControlFlow::Continue(())
    })?;
    if let ControlFlow::Break(code) = ended {
        return Ok(code);
    }
    let (rate, name) = (bar.rate(sim.seeds), scenario.name);
    println!(
        "\n{} seeds of {name}, {rate:.1} a second: {acknowledged} of {calls} calls answered with a place",
        sim.seeds
    );
    match sim.bug {
        Some(bug) => {
            println!("the bug {bug} was not caught");
            Ok(ExitCode::FAILURE)
        }
        None => Ok(ExitCode::SUCCESS),
    }
}

fn play(chaos: Chaos) -> Result<ExitCode> {
    let binary = match chaos.binary {
        Some(binary) => binary,
        None => std::env::current_exe()?.with_file_name("lockstep"),
    };
    let seed = chaos.seed.unwrap_or_else(|| std::process::id().into());
    let options = chaos::Options {
        binary,
        length: Duration::try_from_secs_f64(chaos.minutes * 60.0)?,
        nodes: chaos.nodes.into(),
        seed,
        per_second: chaos.rate,
        no_sync: chaos.no_sync,
        keep: chaos.keep,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (report, violations) = runtime.block_on(chaos::play(options))?;
    let text = serde_json::to_string_pretty(&report)?;
    println!("{text}");
    if let Some(file) = chaos.report {
        std::fs::write(file, text)?;
    }
    let expected = chaos.no_sync == (violations.count > 0);
    Ok(if expected { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Sim(sim) => simulate(&sim),
        Command::Chaos(chaos) => play(chaos),
    }
}
