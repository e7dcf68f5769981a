//! Beginning an epoch: what a stopped node's store must become so that one new voter goes on from its state, with a log
//! of its own, and nobody of the old epoch has a say. Offline; nothing here runs while raft does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use lockstep_ledger::{Applied, Head, Horizon, Ledger, Members};
use lockstep_store::home::StoreHome;
use lockstep_store::{Durability, Kind, LogWriter, RocksStorage, Storage, StoreError, Table, WriteBatch, keys};
use lockstep_types::{
    Batch, Epoch, EpochMember, EpochReason, EpochRecord, Epochs, Genesis, GenesisError, Height, Member, NodeId, TimeMs,
};
use prost::Message as _;

use crate::convert::{log_id_to, vote_to};
use crate::log_store::LogStore;
use crate::raft_types::{LeaderId, LogId, Membership, StoredMembership, Vote};
use crate::state_machine::{Observer, StateMachine};
use crate::state_store::{ReadError, StateStore};

/// Term of the position that stands for everything before an epoch.
const FOUNDING_TERM: u64 = 1;
/// Batches, and bytes of them, that are read together.
const READ_BATCHES_MAX: usize = 1_024;
/// See [`READ_BATCHES_MAX`].
const READ_BYTES_MAX: usize = 8 << 20;

/// An epoch could not begin. Nothing was changed but the store that was to become the epoch's.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    /// The store could not be opened or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The genesis, or the record of the epoch, is wrong.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// The log could not be read or applied.
    #[error("the log cannot be applied: {0}")]
    Log(#[from] io::Error),
    /// One entry of the log cannot be applied to the state, which goes up to the one before it.
    #[error("entry {index} of the log cannot be applied: {reason}")]
    Entry {
        /// The entry.
        index: u64,
        /// Why.
        reason: String,
    },
}

/// Up to where a stopped node's state and log go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The head of the state.
    pub head: Head,
    /// Index of the newest entry in the state.
    pub applied: u64,
    /// Index of the newest entry that the log was known to have committed; the real one may be above.
    pub committed: u64,
    /// Index of the last entry of the log.
    pub last: u64,
    /// Why entries behind `applied` could not be read, where there are any.
    pub damage: Option<String>,
    /// Why the entry behind `applied` could not be applied, where it was to be stopped before that one.
    pub stopped: Option<String>,
    /// Batches below this one are missing although they should be there: they were forgotten now. `None` where none is.
    pub missing_below: Option<Height>,
}

struct Silent;

impl Observer for Silent {
    fn loaded(&self, _ledger: &Ledger) {}
    fn applied(&self, _ledger: &Ledger, _applied: &Applied) {}
}

fn head_of(state: &StateStore, genesis: &Genesis) -> Result<Head, ReadError> {
    Ok(state.head()?.unwrap_or_else(|| Head::genesis(genesis.params.first_task_number)))
}

/// Members of a state that may be empty.
///
/// # Errors
/// If it cannot be read.
pub fn members_of(state: &StateStore, genesis: &Genesis) -> Result<Members, EpochError> {
    Ok(match state.members(&genesis.id()?)? {
        Some(members) => members,
        None => Members::genesis(genesis)?,
    })
}

/// Applies everything that is in the log of a stopped node, also what is not known to be committed: any of it may have
/// been acknowledged. Where an entry cannot be read it stops there and says so.
///
/// The state may have lost batches that its log forgets further on. A horizon is then taken at its word: the next
/// certificate is over all that followed from it, and shows where it was wrong.
///
/// # Errors
/// If the state, or the log as a whole, cannot be read, or an entry cannot be applied other than `stop_before`.
pub fn apply_whole_log(
    home: &StoreHome,
    state: &StateStore,
    genesis: &Genesis,
    (epoch, rules_known): (Epoch, u32),
    stop_before: Option<u64>,
) -> Result<Standing, EpochError> {
    let storage: Arc<dyn Storage> = Arc::new(RocksStorage::open(&home.log_path(), Kind::Log)?);
    let log = LogStore::open(storage.clone(), Arc::new(LogWriter::inline(storage)))?;
    let (last, committed) = (log.last_index().unwrap_or(0), log.committed_index());
    let mut applied = state.applied()?.0.map(|id| id.index);
    if log.purged_index() > applied {
        let reason = "the state ends before the log begins; nothing can be applied to it";
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason).into());
    }
    let mut machine =
        StateMachine::open(genesis, (epoch, rules_known), state.clone(), Arc::new(Silent))?.trusting_horizons();
    let (mut damage, mut stopped) = (None, None);
    while damage.is_none() && stopped.is_none() {
        let next = applied.map_or(0, |index| index + 1);
        let entries = match log.read(next, u64::MAX) {
            Ok(entries) if entries.is_empty() => break,
            Ok(entries) => entries,
            Err(error) => {
                damage = Some(format!("entry {next} of the log: {error}"));
                break;
            }
        };
        for entry in entries {
            let index = entry.log_id.index;
            if index != applied.map_or(0, |index| index + 1) {
                damage = Some(format!("entry {} of the log is missing", applied.map_or(0, |index| index + 1)));
                break;
            }
            match machine.apply_entry(entry.log_id, entry.payload) {
                Ok(()) => applied = Some(index),
                Err(error) if stop_before == Some(index) => {
                    stopped = Some(error.to_string());
                    break;
                }
                Err(error) => return Err(EpochError::Entry { index, reason: error.to_string() }),
            }
        }
    }
    let mut missing_below = None;
    if (stopped.is_some() || machine.has_trusted())
        && let Some(horizon) = first_whole(state, genesis)?
    {
        machine.forget_missing(horizon)?;
        missing_below = Some(horizon.height);
    }
    state.flush()?;
    let (head, applied) = (head_of(state, genesis)?, applied.unwrap_or(0));
    Ok(Standing { head, applied, committed, last, damage, stopped, missing_below })
}

/// The horizon above which no batch is missing, where the state's own is not. Reads the whole chain.
fn first_whole(state: &StateStore, genesis: &Genesis) -> Result<Option<Horizon>, ReadError> {
    let head = head_of(state, genesis)?;
    let (mut next, mut found) = (head.horizon.height.max(Height(1)), None);
    loop {
        let batches = state.batches(next, READ_BATCHES_MAX, READ_BYTES_MAX)?;
        if batches.is_empty() {
            break;
        }
        for Batch { header, .. } in batches {
            if header.height != next {
                let (sequence, task_number) = (header.first_sequence, header.first_task_number);
                found = Some(Horizon { height: header.height, sequence, task_number });
            }
            next = header.height.next();
        }
    }
    if next > head.height {
        return Ok(found);
    }
    // Not even the newest is there.
    let (sequence, task_number) = (head.next_sequence, head.next_task_number);
    Ok(Some(Horizon { height: head.height.next(), sequence, task_number }))
}

/// The epoch that would begin with `first` as its only voter, from a state as it is.
///
/// # Errors
/// If the state cannot be read, or the record would not follow the earlier ones.
pub fn next_epoch(
    state: &StateStore,
    genesis: &Genesis,
    epochs: &Epochs,
    first: Member,
    reason: EpochReason,
    now: TimeMs,
) -> Result<EpochRecord, EpochError> {
    let head = head_of(state, genesis)?;
    let used = epochs.records().iter().flat_map(|record| &record.members).map(|member| member.node).max();
    let (node, _) = members_of(state, genesis)?.found(first.clone(), used.unwrap_or_default(), head.height);
    Ok(EpochRecord {
        epoch: epochs.current().next(),
        parent_height: head.height,
        parent_hash: head.hash,
        next_sequence: head.next_sequence,
        next_task_number: head.next_task_number,
        members: vec![EpochMember::new(node, first)],
        reason,
        possible_loss: String::new(),
        time_ms: now,
    })
}

/// Makes the store in `home`, whose state goes up to the record's parent and whose log is empty, the one that the
/// epoch begins with. openraft then starts as after a snapshot: nothing is to be initialized, and a newcomer is sent a
/// copy of the state, because the log begins behind it.
///
/// # Errors
/// If the disk fails; then the store is of no use.
pub fn begin_epoch(
    home: &StoreHome,
    state: &StateStore,
    genesis: &Genesis,
    record: &EpochRecord,
) -> Result<(), EpochError> {
    let [first] = &record.members[..] else {
        return Err(GenesisError::Invalid("an epoch begins with one voter".into()).into());
    };
    let below = NodeId(first.node.0.saturating_sub(1));
    let (node, members) = members_of(state, genesis)?.found(first.member(), below, record.parent_height);
    let head = head_of(state, genesis)?;
    if (node, head.height, head.hash) != (first.node, record.parent_height, record.parent_hash) {
        return Err(GenesisError::Invalid("the state is not the one that the epoch follows".into()).into());
    }
    // Nobody is left who could certify the end of the old epoch: the record of the new one vouches for it.
    let head = Head { final_height: head.height, ..head };
    let index = state.applied()?.0.map_or(0, |id| id.index).max(1);
    let applied = LogId::new_term_index(FOUNDING_TERM, index);
    let nodes = BTreeMap::from([(node.0, openraft::EmptyNode {})]);
    let membership = Membership::new(vec![BTreeSet::from([node.0])], nodes)
        .map_err(|e| GenesisError::Invalid(format!("the voter of the epoch: {e}")))?;
    let membership = StoredMembership::new(Some(applied), membership);
    state.begin_epoch(record.epoch, (&head, &members), (&applied, &membership))?;
    begin_log(&home.log_path(), node, &applied)
}

/// A log that begins behind `applied`, with a vote for its term.
fn begin_log(path: &Path, node: NodeId, applied: &LogId) -> Result<(), EpochError> {
    let storage = RocksStorage::open(path, Kind::Log)?;
    let vote = Vote { leader_id: LeaderId { term: FOUNDING_TERM, voted_for: node.0 }, committed: true };
    let mut batch = WriteBatch::default();
    batch.put(Table::Log, keys::log::VOTE.to_vec(), vote_to(&vote).encode_to_vec());
    batch.put(Table::Log, keys::log::PURGED.to_vec(), log_id_to(applied).encode_to_vec());
    storage.write(batch, Durability::Synced)?;
    Ok(())
}
