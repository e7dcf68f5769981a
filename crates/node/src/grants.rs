//! Rights of those who read an output.

use std::path::Path;

use lockstep_outputs::Layout;
use lockstep_outputs::PostgresOptions;
pub use lockstep_outputs::{ReaderAccess, ReaderPassword};
use lockstep_types::{OutputName, TaskNumber};

use crate::config::OutputKind;
use crate::error::NodeError;
use crate::home::Home;
use crate::open_store::postgres_options;

/// Makes a role for a reader of one of the outputs in a node's config.toml: see [`lockstep_outputs::set_up_reader`]. The
/// node need not run, but must have made its tables. `dsn_file`: another user's way to the same database, where the
/// node's own may not make roles.
///
/// # Errors
/// If there is no such output, it is not in PostgreSQL, or its server refuses.
pub async fn set_up_reader(
    home: &Home,
    name: &OutputName,
    role: &str,
    password: Option<&ReaderPassword>,
    dsn_file: Option<&Path>,
) -> Result<ReaderAccess, NodeError> {
    let wrong = |reason: String| NodeError::Config(format!("output {name}: {reason}"));
    let options = options_of(home, name, dsn_file)?;
    lockstep_outputs::set_up_reader(&options, role, password).await.map_err(|e| wrong(e.to_string()))
}

/// The way to an output in PostgreSQL that config.toml names.
fn options_of(home: &Home, name: &OutputName, dsn_file: Option<&Path>) -> Result<PostgresOptions, NodeError> {
    let wrong = |reason: String| NodeError::Config(format!("output {name}: {reason}"));
    let config = home.config()?;
    let output = config.outputs.iter().find(|output| output.name == *name);
    let output = output.ok_or_else(|| wrong("config.toml names none".into()))?;
    let OutputKind::Postgres { dsn_file: own, .. } = &output.kind else {
        return Err(wrong("it is not in PostgreSQL, and only that has roles".into()));
    };
    // Another one is the caller's: not in the home.
    let here = std::env::current_dir().map_err(|e| wrong(e.to_string()))?;
    let options = match dsn_file {
        Some(file) => postgres_options(&output.kind, home.path(), &here.join(file)),
        None => postgres_options(&output.kind, home.path(), own),
    };
    options.map_err(|error| wrong(error.to_string()))
}

/// What a reader of an output in PostgreSQL has to be told. No secret is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReaderSettings {
    /// Which readers the output is for.
    pub layout: Layout,
    /// Server, as the node reaches it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The database.
    pub database: String,
    /// Whether the node reaches it by TLS.
    pub tls: bool,
    /// The task key's public half: 65 bytes, hex.
    pub public_key: String,
    /// Number of the network's first task.
    pub first_task: TaskNumber,
}

/// What a reader of one of the outputs in a node's config.toml has to be told. The node need not run.
///
/// # Errors
/// If there is no such output, it is not in PostgreSQL, or the home cannot be read.
pub fn reader_settings(home: &Home, name: &OutputName) -> Result<ReaderSettings, NodeError> {
    let wrong = |reason: String| NodeError::Config(format!("output {name}: {reason}"));
    let options = options_of(home, name, None)?;
    let (host, port, database) = options.server().map_err(|e| wrong(e.to_string()))?;
    let tls = options.demands_tls().map_err(|e| wrong(e.to_string()))?;
    let key = home.task_public_key()?;
    Ok(ReaderSettings {
        layout: options.layout,
        host,
        port,
        database,
        tls,
        public_key: format!("0x{}", hex::encode(key.uncompressed())),
        first_task: home.genesis()?.params.first_task_number,
    })
}
