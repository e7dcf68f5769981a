//! `lockstep outputs audit`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use lockstep_node::Home;
use lockstep_node::admin::{AdminAnswer, AdminRequest, administer};
use lockstep_node::audit::{AuditProgress, FindingKind};
use lockstep_node::check::Progress as _;
use lockstep_types::{OutputName, TaskNumber};

use crate::start::stop_signal;
use crate::verify::NotGood;
use crate::verify::progress::Shown;

/// How often a running audit is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Compare every task that an output's store holds with the certified chain. Exit code 0: all is as it should be; 1:
/// something is not; 2: it could not be compared.
///
/// The running node does it, beside its other work: also where the output is paused, or another node feeds it. It
/// compares what was final, and in the store, when it began. Ctrl-C ends it.
#[derive(Debug, ClapArgs)]
pub struct OutputAudit {
    /// The node's directory; it has to run.
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
    home: PathBuf,
    /// Name of the output in config.toml.
    name: OutputName,
    /// Begin with this task instead of the first one.
    #[arg(long, value_name = "NUMBER")]
    from: Option<u64>,
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(options: OutputAudit) -> anyhow::Result<()> {
    let (home, output) = (Home::at(options.home), options.name);
    let from = options.from.map(TaskNumber);
    ask(&home, AdminRequest::Audit { output: output.clone(), from }).await?;
    let stop = stop_signal()?;
    let (mut shown, mut part) = (Shown::default(), Part::default());
    let progress = loop {
        let AdminAnswer::Audit(Some(progress)) =
            ask(&home, AdminRequest::AuditProgress { output: output.clone() }).await?
        else {
            return Err(NotGood::unable("the node was restarted meanwhile: begin again").into());
        };
        part.show(&mut shown, &progress);
        if progress.ended {
            break progress;
        }
        tokio::select! {
            () = stop.cancelled() => {
                ask(&home, AdminRequest::StopAudit { output: output.clone() }).await?;
                return Err(NotGood::unable("it was told to stop").into());
            }
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    };
    drop(shown);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&progress)?);
    } else {
        print(&progress);
    }
    verdict(&progress).map_err(Into::into)
}

async fn ask(home: &Home, request: AdminRequest) -> Result<AdminAnswer, NotGood> {
    administer(home, &request).await.map_err(NotGood::unable)
}

/// What is shown at the moment.
#[derive(Default)]
struct Part {
    total: u64,
    tasks: u64,
    rows: u64,
}

impl Part {
    fn show(&mut self, shown: &mut Shown, progress: &AuditProgress) {
        let total = progress.tasks_total();
        if total > 0 && self.total == 0 {
            shown.begin("tasks", total);
            self.total = total;
        }
        shown.advance(progress.tasks_done - self.tasks);
        self.tasks = progress.tasks_done;
        if progress.rows_done > 0 && self.rows == 0 {
            shown.begin("rows and objects", 0);
        }
        shown.advance(progress.rows_done - self.rows);
        self.rows = progress.rows_done;
    }
}

fn print(progress: &AuditProgress) {
    for finding in &progress.findings.listed {
        println!("{finding}");
    }
    let listed: u64 = progress.findings.listed.iter().map(|f| f.tasks.map_or(1, |(a, b)| b.0 + 1 - a.0)).sum();
    let more = progress.findings.total().saturating_sub(listed);
    if more > 0 {
        println!("and {more} more");
    }
    match progress.range {
        Some((first, last)) => println!(
            "tasks {first} to {last} of output {}: {} of {} are as they should be",
            progress.output,
            progress.good,
            progress.tasks_total()
        ),
        None => println!("output {} has no final task yet", progress.output),
    }
    let counted = [
        (progress.not_kept, "cannot be compared: this node no longer keeps them"),
        (
            progress.skipped,
            "were skipped, because they were forgotten before the store got them: `lockstep outputs refill`",
        ),
        (progress.refused, "were refused by the store, or wait behind one: `lockstep outputs status`"),
        (progress.others, "are of projects that it does not take"),
        (progress.unpublished, "are not published yet, and were not looked at"),
    ];
    for (count, what) in counted.into_iter().filter(|(count, _)| *count > 0) {
        println!("{count} {what}");
    }
}

/// What was found of each kind, in words.
fn summary(progress: &AuditProgress) -> String {
    let counted = FindingKind::ALL.into_iter().map(|kind| (progress.findings.count(kind), kind.words()));
    let counted: Vec<_> = counted.filter(|(n, _)| *n > 0).map(|(n, words)| format!("{n} {words}")).collect();
    counted.join(", ")
}

fn verdict(progress: &AuditProgress) -> Result<(), NotGood> {
    let (name, findings) = (&progress.output, progress.findings.total());
    match &progress.error {
        Some(error) if findings == 0 => Err(NotGood::unable(error)),
        Some(error) => {
            Err(NotGood::wrong(format!("output {name}: {}; and it ended early: {error}", summary(progress))))
        }
        None if findings > 0 => Err(NotGood::wrong(format!("output {name}: {}", summary(progress)))),
        None => Ok(()),
    }
}
