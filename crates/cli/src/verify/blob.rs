//! A blob, as it lies in a store.

use bytes::Bytes;
use lockstep_types::blob::Blob;
use lockstep_types::{Address, BlobError, Epochs, Genesis, VerifiedBlob};

use super::{NotGood, bad, unable};

/// Checks a blob's bytes.
pub fn check(
    bytes: Bytes,
    task_key: Option<&Address>,
    (genesis, epochs): (&Genesis, &Epochs),
) -> Result<VerifiedBlob, NotGood> {
    let checked = Blob::decode(bytes).map_err(BlobError::from);
    checked.and_then(|blob| blob.verify(genesis, epochs, task_key)).map_err(|error| match error {
        error if error.cannot_judge() => unable(error),
        error => {
            bad("the blob", error, "Take it from another store, or fill the store again (`lockstep outputs refill`).")
        }
    })
}

/// Says what it proves.
pub fn print(genesis: &Genesis, proven: &VerifiedBlob) {
    let between = proven.last.0 - proven.first.0 + 1 - proven.tasks;
    let without = if between > 0 { format!(" without {between} of projects that are left out") } else { String::new() };
    println!("GOOD: tasks {} to {}{without} are of network {}", proven.first, proven.last, genesis.network);
    println!(
        "tasks     {} of the {} that batch {} closed, time {} ms",
        proven.tasks, proven.of, proven.height, proven.time_ms
    );
    println!("messages  {}, with their evidence", proven.messages);
    println!(
        "certified at height {} by {} of {} voters, {} changes of the members after genesis",
        proven.certified, proven.signers, proven.voters, proven.changes
    );
    match &proven.task_signer {
        Some(signer) => println!("signer    {signer} signed the tasks"),
        None => println!("signer    several keys signed the tasks; compare them with --task-key"),
    }
    if proven.sequences_unproven > 0 {
        println!(
            "note      of {} messages the order within their task is proven, but not their sequence",
            proven.sequences_unproven
        );
    }
}
