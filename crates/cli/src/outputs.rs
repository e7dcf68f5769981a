//! `lockstep outputs`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use lockstep_node::Home;
use lockstep_node::admin::{AdminAnswer, AdminRequest, administer};
use lockstep_node::backup::BackupLocation;
use lockstep_node::refill::RefillProgress;
use lockstep_types::OutputName;

use crate::args::OutputsCommand;
use crate::output_reader;
use crate::shown::Shown;

/// How often a running refill is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

pub async fn run(command: OutputsCommand) -> anyhow::Result<()> {
    match command {
        OutputsCommand::Adopt { home, name, accept_ahead } => adopt(home, name, accept_ahead).await,
        OutputsCommand::Refill { home, name, from } => refill(home, name, from).await,
        OutputsCommand::Reader(options) => output_reader::run(options).await,
    }
}

async fn adopt(home: PathBuf, output: OutputName, accept_ahead: bool) -> anyhow::Result<()> {
    match administer(&Home::at(home), &AdminRequest::Adopt { output, accept_ahead }).await? {
        AdminAnswer::Adopted(what) => println!("{what}"),
        _ => bail!("the node gave another answer than asked for: it has another version"),
    }
    Ok(())
}

async fn refill(home: PathBuf, output: OutputName, from: BackupLocation) -> anyhow::Result<()> {
    // The node has another working directory.
    let (home, from) = (Home::at(home), from.absolute().context("this directory is gone")?);
    administer(&home, &AdminRequest::Refill { output, from }).await?;
    let mut shown = Shown::default();
    loop {
        let AdminAnswer::Refill(Some(progress)) = administer(&home, &AdminRequest::RefillProgress).await? else {
            bail!("the node was restarted meanwhile: begin the refill again; what was filled in stays");
        };
        shown.say(&line(&progress));
        if progress.ended {
            shown.end();
            return tell(&progress);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn line(progress: &RefillProgress) -> String {
    let tasks = format!("{} of {} tasks", progress.tasks_done, progress.tasks_missing);
    match &progress.fetching {
        Some(fetch) => {
            format!("{tasks}; fetching {}: {} of {} bytes", fetch.backup, fetch.bytes_done, fetch.bytes_total)
        }
        None => tasks,
    }
}

fn tell(progress: &RefillProgress) -> anyhow::Result<()> {
    match &progress.error {
        Some(error) => {
            bail!("{} of {} missing tasks were filled in: {error}", progress.tasks_done, progress.tasks_missing)
        }
        None if progress.tasks_missing == 0 => println!("nothing is missing in output {}", progress.output),
        None => println!("{} missing tasks were filled in; output {} has no gap", progress.tasks_done, progress.output),
    }
    Ok(())
}
