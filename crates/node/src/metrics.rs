//! Names of the node's metrics. Never labelled by message or device.

use std::collections::BTreeSet;

use lockstep_consensus::{LogFigures, SnapshotProgress};
use lockstep_ledger::RulesState;
use lockstep_rules::Refusal;
use lockstep_types::ProjectId;
use metrics::{counter, gauge, histogram};
use parking_lot::Mutex;

const ORDERED: &str = "lockstep_messages_ordered_total";
const DUPLICATE: &str = "lockstep_messages_duplicate_total";
const REJECTED: &str = "lockstep_messages_rejected_total";
const BATCHES: &str = "lockstep_batches_total";
const TASKS: &str = "lockstep_tasks_total";
const POOL: &str = "lockstep_pool_messages";
const HEAD: &str = "lockstep_head_height";
const SEQUENCE: &str = "lockstep_head_sequence";
const LEADER: &str = "lockstep_is_leader";
const TERM: &str = "lockstep_raft_term";
const OUTPUT_LAG: &str = "lockstep_output_lag_batches";
const OUTPUT_GAPS: &str = "lockstep_output_missing_tasks";
const OUTPUT_REFUSED: &str = "lockstep_output_refused_tasks";
const PROPOSAL_SECONDS: &str = "lockstep_proposal_seconds";
const PROPOSAL_MESSAGES: &str = "lockstep_proposal_messages";
const LOG_BYTES: &str = "lockstep_log_bytes";
const LOG_ENTRIES: &str = "lockstep_log_entries";
const LOG_PURGED: &str = "lockstep_log_purged_index";
const LOG_SNAPSHOT: &str = "lockstep_log_snapshot_index";
const TRANSFER_BYTES: &str = "lockstep_state_transfer_bytes";
const TRANSFER_TOTAL: &str = "lockstep_state_transfer_total_bytes";
const CHAIN_BLOCK: &str = "lockstep_chain_block";
const CHAIN_BEHIND: &str = "lockstep_chain_behind_blocks";
const BUNDLES: &str = "lockstep_bundles_total";
const FINAL: &str = "lockstep_final_height";
const CERTIFY_SECONDS: &str = "lockstep_certify_seconds";
const PARTS_ENDED: &str = "lockstep_parts_ended_total";
const DISAGREEMENTS: &str = "lockstep_certificate_disagreements_total";

const PROJECT_TAKEN: &str = "lockstep_project_messages_taken_total";
const PROJECT_FLAGGED: &str = "lockstep_project_messages_flagged_total";
const PROJECT_LATE: &str = "lockstep_project_messages_late_total";
const PROJECT_REFUSED: &str = "lockstep_project_messages_refused_total";
const PROJECT_TASKS: &str = "lockstep_project_tasks_total";
const PROJECT_WITHOUT_ROOM: &str = "lockstep_project_messages_without_room_total";
const PROJECT_AT_DOOR: &str = "lockstep_project_messages_refused_at_door_total";

/// Projects that have metrics of their own; of others with rules the figures are found in the API.
const PROJECTS_MEASURED_MAX: usize = 1_000;
static MEASURED: Mutex<BTreeSet<ProjectId>> = Mutex::new(BTreeSet::new());

fn label(project: ProjectId) -> Option<String> {
    let mut measured = MEASURED.lock();
    let is_measured = measured.len() < PROJECTS_MEASURED_MAX || measured.contains(&project);
    is_measured.then(|| {
        measured.insert(project);
        project.to_string()
    })
}

/// What a project's rules took and refused in the log: the same on every node.
pub(crate) fn project(project: ProjectId, state: &RulesState) {
    let Some(label) = label(project) else { return };
    counter!(PROJECT_TAKEN, "project" => label.clone()).absolute(state.taken);
    counter!(PROJECT_FLAGGED, "project" => label.clone()).absolute(state.flagged);
    counter!(PROJECT_LATE, "project" => label.clone()).absolute(state.late);
    counter!(PROJECT_TASKS, "project" => label.clone()).absolute(state.tasks);
    for (reason, count) in &state.refused {
        counter!(PROJECT_REFUSED, "project" => label.clone(), "reason" => reason.clone()).absolute(*count);
    }
}

/// A project's rules refused a message before it was in the log.
pub(crate) fn refused_at_door(project: ProjectId, refusal: &Refusal) {
    let Some(label) = label(project) else { return };
    let reason = format!("{}:{}", refusal.stage, refusal.reason);
    counter!(PROJECT_AT_DOOR, "project" => label, "reason" => reason).increment(1);
}

/// This node's pool had no room for messages of a project, whose senders hear 429.
pub(crate) fn without_room(project: ProjectId, messages: u64) {
    let Some(label) = label(project) else { return };
    counter!(PROJECT_WITHOUT_ROOM, "project" => label).increment(messages);
}

pub(crate) fn applied(ordered: u64, duplicate: u64, rejected: u64, batches: u64, tasks: u64) {
    counter!(ORDERED).increment(ordered);
    counter!(DUPLICATE).increment(duplicate);
    counter!(REJECTED).increment(rejected);
    counter!(BATCHES).increment(batches);
    counter!(TASKS).increment(tasks);
}

pub(crate) fn proposed(messages: usize, seconds: f64) {
    histogram!(PROPOSAL_MESSAGES).record(messages as f64);
    histogram!(PROPOSAL_SECONDS).record(seconds);
}

pub(crate) fn bundle(way: &'static str) {
    counter!(BUNDLES, "way" => way).increment(1);
}

pub(crate) fn certified(seconds: f64) {
    histogram!(CERTIFY_SECONDS).record(seconds);
}

pub(crate) fn disagreement() {
    counter!(DISAGREEMENTS).increment(1);
}

/// A part of the node ended that the node can do without for a while.
pub(crate) fn part_ended(part: &str) {
    counter!(PARTS_ENDED, "part" => part.to_owned()).increment(1);
}

/// How far the chain was followed; how many confirmed blocks are missing is not known everywhere.
pub(crate) fn chain(block: u64, behind: Option<u64>) {
    gauge!(CHAIN_BLOCK).set(block as f64);
    if let Some(behind) = behind {
        gauge!(CHAIN_BEHIND).set(behind as f64);
    }
}

pub(crate) fn final_height(height: u64) {
    gauge!(FINAL).set(height as f64);
}

pub(crate) fn snapshot(pool: usize, height: u64, sequence: u64, is_leader: bool, term: u64) {
    gauge!(POOL).set(pool as f64);
    gauge!(HEAD).set(height as f64);
    gauge!(SEQUENCE).set(sequence as f64);
    gauge!(LEADER).set(f64::from(u8::from(is_leader)));
    gauge!(TERM).set(term as f64);
}

pub(crate) fn output_refused(output: &str, tasks: u64) {
    gauge!(OUTPUT_REFUSED, "output" => output.to_owned()).set(tasks as f64);
}

pub(crate) fn output_gaps(output: &str, tasks: u64) {
    gauge!(OUTPUT_GAPS, "output" => output.to_owned()).set(tasks as f64);
}

pub(crate) fn log(figures: &LogFigures) {
    gauge!(LOG_BYTES).set(figures.bytes as f64);
    gauge!(LOG_ENTRIES).set(figures.entries as f64);
    gauge!(LOG_PURGED).set(figures.purged as f64);
    gauge!(LOG_SNAPSHOT).set(figures.snapshot as f64);
}

/// How far a copy of the state is that this node fetches; zeros where it does not.
pub(crate) fn state_transfer(progress: Option<&SnapshotProgress>) {
    let (done, total) = progress.map_or((0, 0), |progress| (progress.bytes_done, progress.bytes_total));
    gauge!(TRANSFER_BYTES).set(done as f64);
    gauge!(TRANSFER_TOTAL).set(total as f64);
}

pub(crate) fn output_lag(output: &str, lag: u64) {
    gauge!(OUTPUT_LAG, "output" => output.to_owned()).set(lag as f64);
}
