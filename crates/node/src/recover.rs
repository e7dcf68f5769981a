//! Going on without a majority that is lost for good: a stopped node becomes the only voter of a new epoch.
//!
//! The new store is made beside the old one, whole and synced. Then a marker says that it is ready, and from there on
//! only files are renamed: an interrupted recovery is finished by the same command.

use std::fs;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use lockstep_consensus::StateStore;
use lockstep_consensus::epoch::{EpochError, Standing, apply_whole_log, begin_epoch, members_of, next_epoch};
use lockstep_consensus::left_out::{Item, LeftOut, left_out};
use lockstep_store::home::{StoreHome, replace_file, write_new_file};
use lockstep_types::{Epoch, EpochReason, EpochRecord, Epochs, Genesis, Incarnation, Member, NodeId};

use crate::clock::now_ms;
use crate::error::NodeError;
use crate::home::{Home, Opened, config_error, random_bytes};

const NEXT: &str = "store.next";
const READY: &str = "READY";

/// What a recovery would lead away from.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The network.
    pub genesis: Genesis,
    /// The epoch that would end.
    pub epoch: Epoch,
    /// This node.
    pub node: NodeId,
    /// The voters of that epoch, as this node knows them.
    pub voters: Vec<(NodeId, Member)>,
}

/// A recovery that was done.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// How the new epoch began.
    pub record: EpochRecord,
    /// Where the old store is.
    pub kept: PathBuf,
}

/// Whether a recovery has begun to rename things and was interrupted.
pub fn is_unfinished(home: &Home) -> bool {
    home.file(NEXT).join(READY).exists()
}

fn check_stopped(home: &Home) -> Result<(), NodeError> {
    if home.is_running() {
        return Err(config_error(home.path(), "its node runs; stop it first"));
    }
    Ok(())
}

/// Looks at what there is, of a stopped node.
///
/// # Errors
/// If it runs, or cannot be read.
pub fn plan(home: &Home) -> Result<Plan, NodeError> {
    check_stopped(home)?;
    let opened = home.open()?;
    let state = StateStore::open(&opened.store)?;
    let members = members_of(&state, &opened.genesis)?;
    let voter = |id: &NodeId| Some((*id, members.get(*id)?.member.clone()));
    let ids: Vec<NodeId> = members.set().voters().map(|voter| voter.node).collect();
    let voters = ids.iter().filter_map(voter).collect();
    Ok(Plan { epoch: opened.epoch(), genesis: opened.genesis, node: opened.node, voters })
}

/// Begins a new epoch in the place of the old one, with this node as its only voter, or finishes what was interrupted.
/// The old store is kept beside the new one. Where an entry of the log cannot be applied, it and what is behind it is left
/// out if `stop_before` names it; otherwise nothing is done, but to list what would be.
///
/// # Errors
/// If the node runs, or its store cannot be read. Then nothing has changed, or the same command finishes it.
pub fn recover(home: &Home, stop_before: Option<u64>) -> Result<Recovered, NodeError> {
    check_stopped(home)?;
    if !is_unfinished(home) {
        prepare(home, stop_before)?;
    }
    finish(home)
}

/// Writes down what is left out from an entry on, a line for each message, order and approval.
fn list_left_out(home: &Home, opened: &Opened, first: u64) -> Result<(LeftOut, PathBuf), NodeError> {
    let path = home.file(&format!("left-out.epoch-{}.entry-{first}.jsonl", opened.epoch()));
    let failed = |e: std::io::Error| config_error(&path, e);
    let mut file = BufWriter::new(fs::File::create(&path).map_err(failed)?);
    let found = left_out(&opened.store, first, &mut |entry, item| {
        let line = match item {
            Item::Message(message) => serde_json::json!({
                "entry": entry,
                "message": message.content_id(),
                "project": message.project_id,
                "device": message.device,
            }),
            Item::Order(project, order) => serde_json::json!({"entry": entry, "project": project, "order": order}),
            Item::Approval(node) => serde_json::json!({"entry": entry, "approval_of": node}),
        };
        writeln!(file, "{line}")
    })?;
    file.into_inner().map_err(std::io::IntoInnerError::into_error).and_then(|file| file.sync_all()).map_err(failed)?;
    Ok((found, path))
}

fn left_out_in_words((found, path): &(LeftOut, PathBuf)) -> String {
    let LeftOut { first, last, messages, orders, approvals } = found;
    format!(
        "{} entries, {first} to {last}, with {messages} messages, {orders} orders and {approvals} approvals; {} in the node's home lists them",
        last - first + 1,
        path.file_name().unwrap_or_default().display(),
    )
}

/// Applies the log, or says what would be lost without the part that cannot be.
fn apply_log(home: &Home, opened: &Opened, old: &StateStore, stop_before: Option<u64>) -> Result<Standing, NodeError> {
    let versions = (opened.epoch(), opened.config.upgrade.rules_known());
    let applied = apply_whole_log(&opened.store, old, &opened.genesis, versions, stop_before);
    let Err(EpochError::Entry { index, reason }) = applied else { return Ok(applied?) };
    let head = old.head()?.map_or(0, |head| head.next_sequence.0);
    let listed = left_out_in_words(&list_left_out(home, opened, index)?);
    Err(NodeError::Config(format!(
        "entry {index} of the log cannot be applied: {reason}. If another member is whole, join it anew instead; if this program is too old for the entry, upgrade it. To go on without that entry and all behind it, add `--stop-before {index}`. That would leave out {listed}. Their messages would have had places from sequence {head} on"
    )))
}

fn possible_loss(opened: &Opened, standing: &Standing) -> String {
    let head = &standing.head;
    let mut text = format!(
        "Node {} went on alone from height {} (sequence {}). What the other voters of epoch {} acknowledged and this node had not received when it stopped is lost. Its log ended with entry {}, of which those after entry {} were not known to be committed; they are part of this history now.",
        opened.node,
        head.height,
        head.last_sequence(),
        opened.epoch(),
        standing.last,
        standing.committed.min(standing.last),
    );
    if let Some(damage) = &standing.damage {
        text.push_str(&format!(" Its log was damaged, and what was behind is lost too: {damage}."));
    }
    if let Some(height) = standing.missing_below {
        text.push_str(&format!(" Batches below height {height} were missing and are forgotten now."));
    }
    text
}

fn prepare(home: &Home, stop_before: Option<u64>) -> Result<(), NodeError> {
    let opened = home.open()?;
    let next = home.file(NEXT);
    let failed = |e: std::io::Error| config_error(&next, e);
    if next.exists() {
        // Links and an empty log of a try that was interrupted before it was whole; nothing was taken away for it.
        tracing::info!(path = %next.display(), "removing what an interrupted recovery had begun");
        fs::remove_dir_all(&next).map_err(failed)?;
    }
    let incarnation = Incarnation(random_bytes()?);
    let old = StateStore::open(&opened.store)?;
    tracing::info!("applying the whole log");
    let standing = apply_log(home, &opened, &old, stop_before)?;
    let store = StoreHome::create(&next, incarnation)?;
    old.copy_to(&store.state_path()?)?;
    drop(old);
    store.bind(&opened.genesis.id()?)?;
    let member = Member { incarnation, ..home.member()? };
    let state = StateStore::open(&store)?;
    let mut record =
        next_epoch(&state, &opened.genesis, &opened.epochs, member.clone(), EpochReason::Recovery, now_ms())?;
    record.possible_loss = possible_loss(&opened, &standing);
    if let Some(reason) = &standing.stopped {
        let listed = left_out_in_words(&list_left_out(home, &opened, standing.applied + 1)?);
        record
            .possible_loss
            .push_str(&format!(" Its log could not be applied further ({reason}). Left out: {listed}."));
    }
    let epochs = opened.epochs.with(record.clone(), &opened.genesis)?;
    begin_epoch(&store, &state, &opened.genesis, &record)?;
    let member = serde_json::to_string_pretty(&member).map_err(|e| config_error(&next, e))? + "\n";
    for (name, text) in [("epoch.json", &epochs.to_text()?), ("member.json", &member), (READY, &String::new())] {
        write_new_file(&next.join(name), text, 0o644).map_err(failed)?;
    }
    Ok(())
}

fn rename(home: &Home, from: &Path, to: &Path) -> Result<(), NodeError> {
    fs::rename(from, to).map_err(|e| config_error(from, e))?;
    fs::File::open(home.path()).and_then(|directory| directory.sync_all()).map_err(|e| config_error(home.path(), e))
}

fn finish(home: &Home) -> Result<Recovered, NodeError> {
    let (next, store) = (home.file(NEXT), home.file("store"));
    let read = |name: &str| fs::read_to_string(next.join(name)).map_err(|e| config_error(&next.join(name), e));
    let genesis = home.genesis()?;
    let (epochs, member) = (Epochs::parse(&read("epoch.json")?, &genesis)?, read("member.json")?);
    let record = epochs.records().last().cloned().ok_or_else(|| config_error(&next, "it names no epoch"))?;
    let old = Epoch(record.epoch.0.saturating_sub(1));
    let (kept, old_member) = (home.file(&format!("store.epoch-{old}")), home.file(&format!("member.epoch-{old}.json")));
    if store.exists() {
        if kept.exists() {
            return Err(config_error(&kept, "is in the way; move it elsewhere and run this again"));
        }
        rename(home, &store, &kept)?;
    }
    home.install_epochs(&epochs)?;
    if !old_member.exists() {
        fs::copy(home.file("member.json"), &old_member).map_err(|e| config_error(&old_member, e))?;
    }
    replace_file(&home.file("member.json"), &member, 0o644).map_err(|e| config_error(&home.file("member.json"), e))?;
    // With the marker in it, so that until here, and no longer, a start is refused.
    rename(home, &next, &store)?;
    for name in [READY, "epoch.json", "member.json"] {
        let file = store.join(name);
        fs::remove_file(&file).map_err(|e| config_error(&file, e))?;
    }
    Ok(Recovered { record, kept })
}
