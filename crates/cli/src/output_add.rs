//! `lockstep outputs add`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args as ClapArgs, ValueEnum};
use lockstep_node::Home;
use lockstep_node::add_output::{AddedOutput, NewOutput, Setting, add_output};
use lockstep_node::admin::{AdminAnswer, AdminRequest, administer};
use lockstep_node::config::Scope;
use lockstep_node::output_desk::REMOVED;
use lockstep_types::{OutputName, ProjectId};

use crate::args::project_id;
use crate::output_watch;

/// Who feeds an output.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ScopeArg {
    /// One store for the network: the leader publishes. Enter it at all nodes.
    Network,
    /// A store of this operator's own: this node publishes.
    Node,
}

/// Enter a new output into config.toml, as a section behind what is there.
///
/// The store is tried first: it has to be reached, and be empty or of this network. Paths of files are relative to the
/// node's directory. A running node takes the output up when it is started again; it fills it from the oldest batch that
/// is kept. One that was removed from the network is added to it anew.
#[derive(Debug, ClapArgs)]
pub struct OutputAdd {
    /// The node's directory.
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
    home: PathBuf,
    /// Its name: the same on all nodes for an output of the network.
    name: OutputName,
    /// What it is: sqlite, postgres, object, altda, celestia.
    #[arg(long)]
    kind: String,
    /// Who feeds it.
    #[arg(long, default_value = "node")]
    scope: ScopeArg,
    /// Only the tasks of this project (may be given several times).
    #[arg(long, value_name = "ID", value_parser = project_id)]
    project: Vec<ProjectId>,
    /// Its settings.
    #[command(flatten)]
    settings: KindSettings,
    /// Do not try whether the store can be reached and is ours.
    #[arg(long)]
    no_check: bool,
    /// Show how it fills, until it has every final task. The node has to be started again meanwhile.
    #[arg(long)]
    wait: bool,
}

/// The settings of the kinds, by their names in config.toml.
#[derive(Debug, ClapArgs)]
struct KindSettings {
    /// sqlite: the file.
    #[arg(long, value_name = "FILE", help_heading = "Settings of the kinds")]
    path: Option<String>,
    /// sqlite, postgres: for which readers, apinode or sprout.
    #[arg(long, help_heading = "Settings of the kinds")]
    layout: Option<String>,
    /// postgres: file with the connection string.
    #[arg(long, value_name = "FILE", help_heading = "Settings of the kinds")]
    dsn_file: Option<String>,
    /// postgres: schema of the tables.
    #[arg(long, help_heading = "Settings of the kinds")]
    schema: Option<String>,
    /// object: s3://BUCKET/PREFIX, gs://…, az://… or file:DIRECTORY.
    #[arg(long, help_heading = "Settings of the kinds")]
    url: Option<String>,
    /// object, nats: file with the credentials.
    #[arg(long, value_name = "FILE", help_heading = "Settings of the kinds")]
    credentials_file: Option<String>,
    /// altda, celestia, nats: file with the URL.
    #[arg(long, value_name = "FILE", help_heading = "Settings of the kinds")]
    url_file: Option<String>,
    /// altda: keccak or generic.
    #[arg(long, help_heading = "Settings of the kinds")]
    mode: Option<String>,
    /// celestia: file with the node's token.
    #[arg(long, value_name = "FILE", help_heading = "Settings of the kinds")]
    token_file: Option<String>,
    /// celestia: 20 hex digits.
    #[arg(long, help_heading = "Settings of the kinds")]
    namespace: Option<String>,
    /// nats: name of the stream.
    #[arg(long, help_heading = "Settings of the kinds")]
    stream: Option<String>,
    /// nats: what the subjects begin with.
    #[arg(long, help_heading = "Settings of the kinds")]
    subject: Option<String>,
    /// nats: servers that keep the stream.
    #[arg(long, value_name = "COUNT", help_heading = "Settings of the kinds")]
    replicas: Option<u64>,
    /// nats: file with the certificates of your own authority.
    #[arg(long, value_name = "FILE", help_heading = "Settings of the kinds")]
    ca_file: Option<String>,
    /// celestia: price of gas in millionths of utia.
    #[arg(long, value_name = "PRICE", help_heading = "Settings of the kinds")]
    gas_price_microutia: Option<u64>,
}

impl KindSettings {
    fn given(self) -> Vec<(&'static str, Setting)> {
        let texts = [
            ("path", self.path),
            ("layout", self.layout),
            ("dsn_file", self.dsn_file),
            ("schema", self.schema),
            ("url", self.url),
            ("credentials_file", self.credentials_file),
            ("url_file", self.url_file),
            ("mode", self.mode),
            ("token_file", self.token_file),
            ("namespace", self.namespace),
            ("stream", self.stream),
            ("subject", self.subject),
            ("ca_file", self.ca_file),
        ];
        let numbers = [("gas_price_microutia", self.gas_price_microutia), ("replicas", self.replicas)];
        let texts = texts.into_iter().filter_map(|(key, value)| Some((key, Setting::Text(value?))));
        texts.chain(numbers.into_iter().filter_map(|(key, value)| Some((key, Setting::Number(value?))))).collect()
    }
}

pub async fn run(options: OutputAdd) -> anyhow::Result<()> {
    let home = Home::at(&options.home);
    let scope = match options.scope {
        ScopeArg::Network => Scope::Network,
        ScopeArg::Node => Scope::Node,
    };
    let (name, kind, projects) = (options.name.clone(), options.kind, options.project);
    let new = NewOutput { name, scope, kind, projects, settings: options.settings.given() };
    let added = add_output(&home, &new, !options.no_check).await?;
    tell(&options.home, &options.name, &added);
    if added.config.scope == Scope::Network {
        add_anew(&home, &options.name, added.runs).await?;
    }
    if options.wait { output_watch::run(&home, &options.name).await } else { Ok(()) }
}

/// Adds an output to the network anew that was removed from it. Only a node that runs knows of that.
async fn add_anew(home: &Home, name: &OutputName, runs: bool) -> anyhow::Result<()> {
    let path = home.path().display();
    let resume = format!("lockstep outputs resume --home {path} {name}");
    if !runs {
        println!("where the network had it before and removed it, add it anew once the node runs: {resume}");
        return Ok(());
    }
    let failed = || format!("whether the network has removed it is not known; if so, add it anew: {resume}");
    let AdminAnswer::Outputs(outputs) = administer(home, &AdminRequest::Outputs).await.with_context(failed)? else {
        bail!("the node gave another answer than asked for: it has another version");
    };
    if outputs.iter().any(|output| output.name == *name && output.state == REMOVED) {
        let failed = || format!("the network has removed it; add it anew: {resume}");
        administer(home, &AdminRequest::Resume { output: name.clone() }).await.with_context(failed)?;
        println!("the network had removed it: it is added anew");
    }
    Ok(())
}

fn tell(home: &Path, name: &OutputName, added: &AddedOutput) {
    let home = home.display();
    match added.found {
        Some(Some(last)) => {
            println!("output {name} was added; its store is of this network and has tasks up to {last}")
        }
        Some(None) => println!("output {name} was added; its store was tried and has no task"),
        None => println!("output {name} was added; its store was not tried"),
    }
    if added.config.scope == Scope::Network {
        println!("it is of the network: add it under the same name at all nodes, before it lags at one that may lead");
    }
    match added.runs {
        true => {
            println!("the running node takes it up when it is started again: stop it, and lockstep start --home {home}")
        }
        false => println!("the next start takes it up: lockstep start --home {home}"),
    }
    println!("how it fills: lockstep outputs status --home {home} {name} --watch");
}
