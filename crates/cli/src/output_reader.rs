//! `lockstep outputs reader`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args as ClapArgs;
use lockstep_node::Home;
use lockstep_node::grants::{ReaderPassword, set_up_reader};
use lockstep_types::OutputName;
use zeroize::Zeroizing;

/// Make a role that may read an output in PostgreSQL, and make tables of its own beside it.
///
/// It sees the tasks in signed order, through views that it finds under the names of the tables. A second time changes
/// nothing, but the password where one is given. The node must have made its tables; it need not run.
#[derive(Debug, ClapArgs)]
pub struct OutputReader {
    /// The node's directory.
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
    home: PathBuf,
    /// Name of the output in config.toml.
    name: OutputName,
    /// The role: a-z, 0-9 and _.
    #[arg(long)]
    role: String,
    /// File with its password in one line. Without it the role's password stays as it is; a new role has none.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// File with the connection string of a user who may make roles, where the node's own may not.
    #[arg(long, value_name = "FILE")]
    dsn_file: Option<PathBuf>,
}

pub async fn run(options: OutputReader) -> anyhow::Result<()> {
    let password = options.password_file.map(|file| {
        let text = std::fs::read_to_string(&file).map(Zeroizing::new).with_context(|| file.display().to_string())?;
        ReaderPassword::new(text.trim_end_matches(['\r', '\n']))
            .with_context(|| format!("{} has to hold one line", file.display()))
    });
    let password = password.transpose()?;
    let (home, dsn_file) = (Home::at(options.home), options.dsn_file.as_deref());
    let access = set_up_reader(&home, &options.name, &options.role, password.as_ref(), dsn_file).await?;
    println!("role      {}", access.role);
    println!("database  {}", access.database);
    println!("reads     {} in schema {}", access.views.join(", "), access.reader_schema);
    println!("may make tables in schema {}, which comes first in its search_path", access.own_schema);
    Ok(())
}
