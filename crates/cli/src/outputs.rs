//! `lockstep outputs`.

use anyhow::bail;
use lockstep_node::Home;
use lockstep_node::admin::{AdminAnswer, AdminRequest, administer};

use crate::args::OutputsCommand;

pub async fn run(command: OutputsCommand) -> anyhow::Result<()> {
    let OutputsCommand::Adopt { home, name, accept_ahead } = command;
    match administer(&Home::at(home), &AdminRequest::Adopt { output: name, accept_ahead }).await? {
        AdminAnswer::Adopted(what) => println!("{what}"),
        _ => bail!("the node gave another answer than asked for: it has another version"),
    }
    Ok(())
}
