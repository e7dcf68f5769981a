//! `lockstep outputs`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use lockstep_node::Home;
use lockstep_node::admin::{AdminAnswer, AdminRequest, administer};
use lockstep_node::backup::BackupLocation;
use lockstep_node::output_desk::REMOVED;
use lockstep_node::refill::RefillProgress;
use lockstep_types::OutputName;

use crate::args::{OfOutput, OutputsCommand};
use crate::shown::Shown;
use crate::{output_add, output_audit, output_watch};
#[cfg(feature = "postgres")]
use crate::{output_reader, output_w3bstream};

/// How often a running refill is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

pub async fn run(command: OutputsCommand) -> anyhow::Result<()> {
    match command {
        OutputsCommand::Adopt { home, name, accept_ahead } => adopt(home, name, accept_ahead).await,
        OutputsCommand::Refill { home, name, from } => refill(home, name, from).await,
        OutputsCommand::Audit(options) => output_audit::run(options).await,
        OutputsCommand::Add(options) => output_add::run(*options).await,
        OutputsCommand::Status { home, name: Some(name), watch: true } => {
            output_watch::run(&Home::at(home), &name).await
        }
        OutputsCommand::Status { home, name, .. } => status(home, name).await,
        OutputsCommand::Retry(OfOutput { home, name: output }) => {
            done(home, AdminRequest::Retry { output }, "what was refused is tried again").await
        }
        OutputsCommand::Pause(OfOutput { home, name: output }) => {
            done(home, AdminRequest::Pause { output }, "paused, until `lockstep outputs resume`").await
        }
        OutputsCommand::Resume(OfOutput { home, name: output }) => {
            done(home, AdminRequest::Resume { output }, "it goes on").await
        }
        OutputsCommand::Remove(OfOutput { home, name: output }) => {
            let what =
                "removed from the network, until `lockstep outputs resume`; take it out of config.toml at all nodes";
            done(home, AdminRequest::Remove { output }, what).await
        }
        #[cfg(feature = "postgres")]
        OutputsCommand::W3bstream { of, role } => output_w3bstream::run(&Home::at(of.home), &of.name, &role),
        #[cfg(feature = "postgres")]
        OutputsCommand::Reader(options) => output_reader::run(options).await,
    }
}

async fn done(home: PathBuf, request: AdminRequest, what: &str) -> anyhow::Result<()> {
    match administer(&Home::at(home), &request).await? {
        AdminAnswer::Done => println!("{what}"),
        _ => bail!("the node gave another answer than asked for: it has another version"),
    }
    Ok(())
}

async fn status(home: PathBuf, only: Option<OutputName>) -> anyhow::Result<()> {
    let AdminAnswer::Outputs(outputs) = administer(&Home::at(home), &AdminRequest::Outputs).await? else {
        bail!("the node gave another answer than asked for: it has another version");
    };
    if outputs.is_empty() {
        println!("this node feeds no output: `[[output]]` in its config.toml names them");
    }
    if let Some(name) = only.as_ref().filter(|name| outputs.iter().all(|output| output.name != **name)) {
        bail!("neither this node nor the network knows an output {name}: see config.toml");
    }
    for output in outputs.into_iter().filter(|output| only.as_ref().is_none_or(|name| output.name == *name)) {
        let last = output.last_published.map_or_else(|| "none".to_owned(), |last| last.to_string());
        let scope = serde_json::to_value(output.scope)?;
        let scope = scope.as_str().unwrap_or_default();
        match output.state.as_str() {
            REMOVED => println!("{} (of the {scope}): {REMOVED}", output.name),
            state => println!("{} (of the {scope}): {state}, last task {last}, lag {}", output.name, output.lag),
        }
        if let Some(error) = output.error {
            println!("  {error}");
        }
        for (task, reason) in &output.refused {
            println!("  refused task {task}: {reason}");
        }
        let more = output.refused_count.saturating_sub(output.refused.len() as u64);
        if more > 0 {
            println!("  and {more} more");
        }
    }
    Ok(())
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
