//! `lockstep bench`.

use lockstep_client::BenchOptions;
use lockstep_types::ProjectId;

use crate::args::Bench;

pub async fn run(options: Bench) -> anyhow::Result<()> {
    eprintln!(
        "{} clients, {} s after {} s of warming up, on {}; signing messages first",
        options.concurrency,
        options.seconds,
        options.warmup,
        options.urls.join(" ")
    );
    let report = lockstep_client::bench::run(BenchOptions {
        urls: options.urls,
        concurrency: options.concurrency,
        seconds: options.seconds,
        warmup_seconds: options.warmup,
        payload_bytes: options.payload,
        project: ProjectId(options.project),
        ..BenchOptions::default()
    })
    .await?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
