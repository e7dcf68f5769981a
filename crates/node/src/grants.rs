//! Rights of those who read an output.

use std::path::Path;

use lockstep_outputs::PostgresOptions;
pub use lockstep_outputs::{ReaderAccess, ReaderPassword};
use lockstep_types::OutputName;

use crate::config::{Config, OutputKind};
use crate::error::NodeError;
use crate::home::Home;
use crate::publish::read_dsn;

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
    let path = home.file("config.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| NodeError::Config(format!("{}: {e}", path.display())))?;
    let config = Config::parse(&text)?;
    let wrong = |reason: String| NodeError::Config(format!("output {name}: {reason}"));
    let output = config.outputs.iter().find(|output| output.name == *name);
    let output = output.ok_or_else(|| wrong("config.toml names none".into()))?;
    let OutputKind::Postgres { dsn_file: own, schema, layout } = &output.kind else {
        return Err(wrong("it is not in PostgreSQL, and only that has roles".into()));
    };
    let dsn = match dsn_file {
        Some(file) => std::fs::read_to_string(file).map_err(|e| wrong(format!("{}: {e}", file.display())))?,
        None => read_dsn(output, home, own)?,
    };
    let options = PostgresOptions { layout: *layout, ..PostgresOptions::in_schema(dsn.trim(), schema) };
    lockstep_outputs::set_up_reader(&options, role, password).await.map_err(|e| wrong(e.to_string()))
}
