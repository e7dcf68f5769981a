//! `lockstep testnet up`: a network of real node processes on this machine.

mod figures;
mod layout;
mod process;

use std::time::Duration;

use lockstep_client::Fleet;
use lockstep_types::ProjectId;
use tokio_util::sync::CancellationToken;

use crate::args::{Testnet, TestnetCommand, Up};
use crate::start::stop_signal;
use crate::testnet::layout::Layout;
use crate::testnet::process::Processes;

/// Project of the simulated devices.
const FLEET_PROJECT: u64 = 7;
/// Time for the first leader.
const LEADER_TIMEOUT: Duration = Duration::from_secs(30);

pub async fn run(options: Testnet) -> anyhow::Result<()> {
    match options.command {
        TestnetCommand::Up(up) => run_up(up).await,
    }
}

async fn run_up(options: Up) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    let layout = Layout::prepare(&options)?;
    let mut processes = Processes::start(&layout)?;
    let result = run_network(&options, &layout, &mut processes, &stop).await;
    processes.stop().await;
    result
}

async fn run_network(
    options: &Up,
    layout: &Layout,
    processes: &mut Processes,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        leader = figures::wait_for_leader(layout, LEADER_TIMEOUT) => leader?,
        failed = processes.any_failed_at_start() => return Err(failed),
    }
    layout.write_list(&processes.pids())?;
    println!("ready");
    let until = options.seconds.map(Duration::from_secs);
    let fleet_stop = stop.child_token();
    let fleet = start_fleet(options, layout, &fleet_stop);
    tokio::select! {
        () = stop.cancelled() => {}
        () = sleep_for(until) => {}
        never = figures::show(layout) => match never {},
        () = processes.all_ended() => anyhow::bail!("all nodes have ended; their logs are in node-N/node.log"),
    }
    fleet_stop.cancel();
    if let Some(fleet) = fleet {
        let stats = fleet.await??;
        println!(
            "fleet: {} submitted, {} acknowledged, {} retries, {} refused, {} unknown",
            stats.submitted, stats.acknowledged, stats.retries, stats.refused, stats.unknown
        );
        for sample in stats.error_samples.iter().take(3) {
            println!("fleet: {sample}");
        }
    }
    Ok(())
}

async fn sleep_for(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

type RunningFleet = tokio::task::JoinHandle<Result<lockstep_client::FleetStats, lockstep_client::ClientError>>;

fn start_fleet(options: &Up, layout: &Layout, stop: &CancellationToken) -> Option<RunningFleet> {
    if options.devices == 0 {
        return None;
    }
    let fleet = Fleet {
        urls: layout.nodes.iter().map(|node| node.http.clone()).collect(),
        devices: options.devices,
        rate: options.rate,
        project: ProjectId(FLEET_PROJECT),
        version: "0.1".into(),
        // A fleet that is started again is made of the same devices; what they say is new.
        seed: 1,
        history: None,
    };
    Some(tokio::spawn(fleet.run(stop.clone())))
}
