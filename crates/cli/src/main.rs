//! `lockstep`: one binary for operators, devices and tests.

mod args;
mod bench;
mod device;
mod init;
mod start;
mod status;
mod testnet;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Args, Command};

/// Memory of a node stays flat under load with it; glibc's allocator keeps what many threads freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code when an operator has to change something before another try can succeed.
const CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One sentence; the causes are part of it.
            eprintln!("lockstep: {error:#}");
            let configuration = error
                .downcast_ref::<lockstep_node::NodeError>()
                .is_some_and(lockstep_node::NodeError::is_configuration);
            ExitCode::from(if configuration { CONFIGURATION } else { 1 })
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    start::log_to_stderr(&args.log, args.log_json);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        match args.command {
            Command::Init(init) => init::run(&init),
            Command::Start(options) => start::run(&options).await,
            Command::Status(options) => status::run(&options).await,
            Command::Submit(options) => device::submit(&options).await,
            Command::Sign(options) => device::sign(&options),
            Command::Bench(options) => bench::run(options).await,
            Command::Testnet(options) => testnet::run(options).await,
        }
    });
    // Blocking work that nobody waits for any more must not hold up the end of the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    done
}
