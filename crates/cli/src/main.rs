//! `lockstep`: one binary for operators, devices and tests.

mod args;
mod backup;
mod bench;
mod device;
mod init;
mod keys;
mod members;
mod output_add;
mod output_audit;
#[cfg(feature = "postgres")]
mod output_reader;
#[cfg(feature = "postgres")]
mod output_w3bstream;
mod output_watch;
mod outputs;
mod recover;
mod registry;
mod rules;
mod shown;
mod start;
mod status;
mod tail;
mod testnet;
mod verify;

use std::io::Write as _;

use clap::Parser as _;

use crate::args::{Args, Command};

/// Memory of a node stays flat under load with it; glibc's allocator keeps what many threads freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code when an operator has to change something before another try can succeed.
const CONFIGURATION: i32 = 2;

/// Keeps memory near what is in use. Huge pages would be filled by a few small objects each, and glibc would keep an
/// arena for every thread that RocksDB or SQLite ever allocated on.
fn keep_memory_small() {
    /// Arenas of glibc's allocator, which C and C++ libraries use.
    const ARENAS: libc::c_int = 2;
    // SAFETY: both calls set a number in the process; a refusal leaves things as they are.
    #[allow(unsafe_code)]
    unsafe {
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
        #[cfg(target_env = "gnu")]
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// Ends the program quietly when whoever reads its output has seen enough, as in `lockstep members list | head -1`.
fn end_with_the_reader() {
    /// As a shell says that a program was ended by a closed pipe.
    const CLOSED_PIPE: i32 = 141;
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if text.starts_with("failed printing to") && text.contains("Broken pipe") {
            std::process::exit(CLOSED_PIPE);
        }
        report(panic);
    }));
}

fn main() {
    keep_memory_small();
    end_with_the_reader();
    let args = Args::parse();
    let code = match run(args) {
        Ok(()) => 0,
        Err(error) => {
            // One sentence; the causes are part of it.
            eprintln!("lockstep: {error:#}");
            exit_code(&error)
        }
    };
    // Whatever must reach the disk has been written and synced by now. Leaving without running the destructors of
    // static objects keeps RocksDB's from going before its last threads have ended.
    let _ = std::io::stdout().flush();
    // SAFETY: ends the process; nothing of it runs any more.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(code)
    }
}

fn exit_code(error: &anyhow::Error) -> i32 {
    if let Some(verdict) = error.downcast_ref::<verify::NotGood>() {
        return verdict.code;
    }
    let node = error.downcast_ref::<lockstep_node::NodeError>();
    if node.is_some_and(lockstep_node::NodeError::is_configuration) { CONFIGURATION } else { 1 }
}

fn run(args: Args) -> anyhow::Result<()> {
    start::log_to_stderr(&args.log, args.log_json);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        match args.command {
            Command::Init(init) => init::run(&init).await,
            Command::Start(options) => start::run(&options).await,
            Command::Status(options) => status::run(&options).await,
            Command::Members(options) => members::run(options.command).await,
            Command::Projects(command) => registry::projects(command).await,
            Command::Devices(command) => registry::devices(command).await,
            Command::Keys(command) => keys::run(command),
            Command::Backup(options) => backup::run(options).await,
            Command::Restore(options) => backup::restore(options).await,
            Command::Recover(options) => recover::recover(options).await,
            Command::Rebuild(options) => recover::rebuild(&options).await,
            Command::Outputs(options) => outputs::run(options.command).await,
            Command::Submit(options) => device::submit(&options).await,
            Command::Sign(options) => device::sign(&options),
            Command::Tail(options) => tail::run(options).await,
            Command::Verify(options) => verify::run(&options).await,
            Command::Bench(options) => bench::run(options).await,
            Command::Testnet(options) => testnet::run(options).await,
        }
    });
    // Blocking work that nobody waits for any more must not hold up the end of the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    done
}
