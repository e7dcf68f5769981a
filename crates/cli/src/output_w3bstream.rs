//! `lockstep outputs w3bstream`.

use lockstep_node::Home;
use lockstep_node::config::Layout;
use lockstep_node::grants::{ReaderSettings, reader_settings};
use lockstep_types::OutputName;

/// What the programs of W3bstream's generations read from their environment.
pub fn run(home: &Home, name: &OutputName, role: &str) -> anyhow::Result<()> {
    let wanted = reader_settings(home, name)?;
    let ReaderSettings { layout, host, port, database, tls, public_key, first_task } = wanted;
    let mode = if tls { "verify-full" } else { "disable" };
    let dsn = format!("postgres://{role}:PASSWORD@{host}:{port}/{database}?sslmode={mode}");
    println!("# tasks are signed with this key: datasourcePublicKey of the project file");
    println!("# datasourcePublicKey: {public_key}");
    println!("# PASSWORD is that of the role; `lockstep outputs reader {name} --role {role}` makes it");
    match layout {
        Layout::Sprout => {
            println!("# coordinator; its cursor goes on at the number of the next task, {first_task} in a new store");
            println!("DEFAULT_DATASOURCE_URI={dsn}");
            println!("# coordinator and prover");
            println!("DEFAULT_DATASOURCE_PUBLIC_KEY={public_key}");
        }
        Layout::Apinode => {
            println!("# prover; it is told of tasks where `[w3bstream]` in config.toml names this output");
            println!("DATASOURCE_DSN={dsn}");
        }
    }
    Ok(())
}
