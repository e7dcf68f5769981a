//! `lockstep verify`: a stopped node's home, a running node, or one proof or blob in a file.

mod blob;
pub mod progress;
mod remote;

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use lockstep_node::check::{ChainReport, CheckError, HomeReport, Part, check_home};
use lockstep_types::blob::is_blob;
use lockstep_types::proof::verify_proof_in;
use lockstep_types::{Epochs, Genesis, Proof, ProofError, Proven};

use crate::args::Verify;
use crate::verify::progress::Shown;

/// Something is damaged, or wrong.
const WRONG: i32 = 1;
/// It could not be checked.
const UNABLE: i32 = 2;

/// A check that did not end well, with the process' exit code.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct NotGood {
    pub code: i32,
    text: String,
}

impl NotGood {
    /// Something is wrong, in words.
    pub fn wrong(what: impl std::fmt::Display) -> Self {
        Self { code: WRONG, text: format!("NOT GOOD: {what}") }
    }

    /// It could not be checked.
    pub fn unable(reason: impl std::fmt::Display) -> Self {
        unable(reason)
    }
}

fn bad(part: &str, reason: impl std::fmt::Display, way_out: &str) -> NotGood {
    NotGood { code: WRONG, text: format!("NOT GOOD: {part}: {reason}\n{way_out}") }
}

fn unable(reason: impl std::fmt::Display) -> NotGood {
    NotGood { code: UNABLE, text: format!("cannot be checked: {reason}") }
}

impl From<CheckError> for NotGood {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Unable(reason) => unable(reason),
            CheckError::Bad { part, reason } => {
                let name = match part {
                    Part::Log => "the log",
                    Part::State => "the state",
                    Part::Home => "the home",
                    Part::Remote => "the node's history",
                };
                bad(name, reason, part.way_out())
            }
        }
    }
}

pub async fn run(options: &Verify) -> anyhow::Result<()> {
    if let Some(home) = &options.home {
        // Reading and checking hold up nothing else in this process.
        let report = tokio::task::block_in_place(|| check_home(home, options.rules_known, &mut Shown::default()))
            .map_err(NotGood::from)?;
        print_home(&report);
        return Ok(());
    }
    let genesis = read_genesis(options.genesis.as_deref())?;
    let epochs = read_epochs(options.epochs.as_deref(), &genesis)?;
    if let Some(url) = &options.url {
        let report = remote::check(url, &genesis, options.rules_known, &epochs, &mut Shown::default()).await?;
        print_chain(&genesis, &report)?;
        return Ok(());
    }
    let file = options.file.as_deref().or(options.proof.as_deref()).context("give FILE, --home or --url")?;
    let bytes = fs::read(file).map_err(|e| unable(format!("{}: {e}", file.display())))?;
    if is_blob(&bytes) {
        let proven = blob::check(bytes.into(), options.task_key.as_ref(), (&genesis, &epochs))?;
        blob::print(&genesis, &proven);
    } else {
        let proven = check_proof(&bytes, options.data.as_deref(), (&genesis, &epochs))?;
        print_proof(&genesis, &proven);
    }
    Ok(())
}

fn read_genesis(file: Option<&Path>) -> anyhow::Result<Genesis> {
    let file = file.context("give the network's genesis file with --genesis")?;
    let text = fs::read_to_string(file).map_err(|e| unable(format!("{}: {e}", file.display())))?;
    Ok(Genesis::parse(&text).map_err(|e| unable(format!("{}: {e}", file.display())))?)
}

fn read_epochs(file: Option<&Path>, genesis: &Genesis) -> anyhow::Result<Epochs> {
    let Some(file) = file else { return Ok(Epochs::default()) };
    let text = fs::read_to_string(file).map_err(|e| unable(format!("{}: {e}", file.display())))?;
    Ok(Epochs::parse(&text, genesis).map_err(|e| unable(format!("{}: {e}", file.display())))?)
}

fn check_proof(proof: &[u8], data: Option<&Path>, (genesis, epochs): (&Genesis, &Epochs)) -> Result<Proven, NotGood> {
    let read = |file: &Path| fs::read(file).map_err(|e| unable(format!("{}: {e}", file.display())));
    let data = data.map(read).transpose()?;
    let wrong =
        |e: &dyn std::fmt::Display| bad("the proof", e, "Ask another node for one (`GET /api/proofs/{message id}`).");
    let proof: Proof = serde_json::from_slice(proof).map_err(|e| wrong(&e))?;
    verify_proof_in(genesis, epochs, &proof, data.as_deref()).map_err(|e| match e {
        ProofError::Newer(_) | ProofError::Genesis(_) => unable(e),
        e => wrong(&e),
    })
}

fn print_home(report: &HomeReport) {
    let (log, chain) = (&report.log, &report.chain);
    println!("GOOD: everything in this home is as it was written, and the history holds");
    // A home's history has all that it needs.
    let _ = print_chain(&report.genesis, chain);
    let range = |first: Option<u64>, last: Option<u64>| match (first, last) {
        (Some(first), Some(last)) => format!("entries {first} to {last}"),
        _ => "no entries".into(),
    };
    let purged = log.purged.map(|purged| format!(", purged up to {purged}")).unwrap_or_default();
    println!("log       {}{purged}", range(log.first, log.last));
    match report.applied {
        Some(applied) => println!("state     applied up to entry {applied}, {} records", report.state.records),
        None => println!("state     empty"),
    }
    if let Some(torn) = &report.torn {
        println!(
            "note      {} ends with an incomplete record of {} bytes, as a power loss in the middle of a write leaves it",
            torn.file.display(),
            torn.bytes
        );
    }
    let notes = [
        (log.unreadable, "log entries cannot be read; they have no effect on any node"),
        (log.unknown + report.state.unknown, "records are of kinds that this program does not know"),
    ];
    for (count, what) in notes.iter().filter(|(count, _)| *count > 0) {
        println!("note      {count} {what}");
    }
}

fn print_chain(genesis: &Genesis, chain: &ChainReport) -> anyhow::Result<()> {
    let counts = &chain.counts;
    println!("network   {} {}", genesis.network, genesis.id()?);
    if chain.head.0 == 0 {
        println!("batches   none yet");
        return Ok(());
    }
    let beginning = if chain.first.0 <= 1 { "the genesis".into() } else { format!("height {}", chain.first) };
    println!("batches   {} from {beginning} to height {}, {}", counts.batches, chain.head, chain.hash);
    match chain.final_height.0 {
        0 => println!("final     nothing: no batch is certified"),
        _ => println!("final     up to height {}, by {} certificates", chain.final_height, counts.certificates),
    }
    println!("messages  {}", counts.messages);
    println!("tasks     {}", counts.tasks);
    println!(
        "members   {} voters, {} observers; changed {} times since genesis",
        chain.voters, chain.observers, chain.changes
    );
    for record in &chain.epochs {
        println!(
            "epoch     {} began after height {} by a {}: trusted from epoch.json, no certificate leads across",
            record.epoch, record.parent_height, record.reason
        );
    }
    let unchecked = [
        (chain.withheld, "messages: the node does not show their payloads, so their evidence could not be checked"),
        (
            counts.ids_unchecked - chain.withheld.min(counts.ids_unchecked),
            "message ids count from before what is kept, and were not derived again",
        ),
        (counts.tasks_unchecked, "task ids reach back before what is kept, and were not derived again"),
    ];
    for (count, what) in unchecked.iter().filter(|(count, _)| *count > 0) {
        println!("note      {count} {what}");
    }
    Ok(())
}

fn print_proof(genesis: &Genesis, proven: &Proven) {
    let message = &proven.message;
    println!("GOOD: the message stands at sequence {} of network {}", message.sequence, genesis.network);
    println!("message   {}", message.id);
    println!("project   {}", message.project_id);
    println!("device    {}", message.device);
    println!("batch     height {}, time {} ms", proven.height, proven.time_ms);
    println!(
        "certified at height {} by {} of {} voters, {} changes of the members after genesis",
        proven.certified, proven.signers, proven.voters, proven.changes
    );
    match proven.data_compared {
        true => println!("data      is the message's"),
        false => println!("data      not compared (--data FILE); its keccak256 is {}", message.data_hash),
    }
}
