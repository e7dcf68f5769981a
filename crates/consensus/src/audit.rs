//! Reading all that a stopped node has stored, record by record. Nothing is changed.

use lockstep_ledger::{
    ChainCursor, Command, Device, Grant, GroupRecord, Head, HighestNonce, Members, Occurrence, OutputState, Project,
    Waiting,
};
use lockstep_store::home::StoreHome;
use lockstep_store::{Direction, Kind, Pair, RocksStorage, Scan, Storage, StoreError, Table, keys};
use lockstep_types::{Batch, Certificate, DecodeError, NetworkId, OutputName, Place, proto};
use openraft::EntryPayload;
use prost::Message as _;

use crate::convert::{decode_entry, decode_stored_membership};
use crate::pledges::{Signed, decode_marks};
use crate::raft_types::Payload;
use crate::state_store::{StateStore, number};

/// Records that one read holds.
const READ_ITEMS_MAX: usize = 4096;
/// Bytes after which it ends.
const READ_BYTES_MAX: usize = 8 << 20;

/// Something stored is not as it was written.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The disk or RocksDB says so.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record is not what belongs there.
    #[error("{what}: {reason}")]
    Record {
        /// Which record.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// Entries of the log are missing.
    #[error("log entry {expected} is missing; after {after} comes {found}")]
    Gap {
        /// The entry that should be there.
        expected: u64,
        /// What stands before the gap.
        after: String,
        /// What stands behind it.
        found: u64,
    },
    /// Something was written by a newer program: this one cannot judge it.
    #[error("{0}")]
    Newer(DecodeError),
}

/// What a log has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFacts {
    /// Entries.
    pub entries: u64,
    /// Index of the first one.
    pub first: Option<u64>,
    /// Index of the last one, or of the last that was purged.
    pub last: Option<u64>,
    /// Index up to which entries were purged.
    pub purged: Option<u64>,
    /// Commands that no node can read; they have no effect on any.
    pub unreadable: u64,
    /// The newest header that the node signed.
    pub signed: Option<Signed>,
    /// Records of kinds that this program does not know.
    pub unknown: u64,
}

fn wrong(what: impl Into<String>, reason: impl std::fmt::Display) -> AuditError {
    AuditError::Record { what: what.into(), reason: reason.to_string() }
}

/// A record that does not decode: of a newer program, or damaged.
fn undecoded(what: impl Into<String>) -> impl FnOnce(DecodeError) -> AuditError {
    let what = what.into();
    move |error| match error {
        error @ DecodeError::Newer { .. } => AuditError::Newer(error),
        error => wrong(what, error),
    }
}

/// Gives every record of a table to `look`, in the order of keys.
fn each(
    storage: &dyn Storage,
    table: Table,
    mut look: impl FnMut(&[u8], bytes::Bytes) -> Result<(), AuditError>,
    read: &mut dyn FnMut(u64),
) -> Result<(), AuditError> {
    let mut start = Vec::new();
    loop {
        let pairs = storage.scan(Scan {
            table,
            start: start.clone(),
            end: vec![u8::MAX; 8],
            direction: Direction::Up,
            items_max: READ_ITEMS_MAX,
            bytes_max: READ_BYTES_MAX,
        })?;
        let Some((last, _)) = pairs.last() else { return Ok(()) };
        start = [last, &[0][..]].concat();
        let mut bytes = 0;
        for (key, value) in pairs {
            bytes += (key.len() + value.len()) as u64;
            look(&key, value)?;
        }
        read(bytes);
    }
}

#[derive(Default)]
struct LogAudit {
    facts: LogFacts,
    term: u64,
}

impl LogAudit {
    fn look(&mut self, key: &[u8], value: bytes::Bytes) -> Result<(), AuditError> {
        let log_id = |what: &str| {
            let decoded = proto::LogId::decode(&value[..]);
            decoded.map_err(|e| wrong(what, e))
        };
        match key {
            [keys::log::ENTRY, ..] => self.entry(key, value)?,
            keys::log::VOTE => {
                proto::Vote::decode(&value[..]).map_err(|e| wrong("the vote", e))?;
            }
            keys::log::COMMITTED => {
                log_id("the committed position")?;
            }
            // It comes behind the entries.
            keys::log::PURGED => self.facts.purged = Some(log_id("the purge position")?.index),
            keys::log::SIGNED => {
                let signed = Signed::decode(&value).map_err(|e| wrong("the newest signed header", e))?;
                self.facts.signed = Some(signed);
            }
            keys::log::MARKS => {
                decode_marks(&value).map_err(|e| wrong("the marks of the members", e))?;
            }
            _ => self.facts.unknown += 1,
        }
        Ok(())
    }

    fn entry(&mut self, key: &[u8], value: bytes::Bytes) -> Result<(), AuditError> {
        let index = number(&key[1..]).map_err(|e| wrong("the key of a log entry", e))?;
        let what = || format!("log entry {index}");
        let entry = decode_entry(value).map_err(undecoded(what()))?;
        let (term, named) = (*entry.log_id.leader_id, entry.log_id.index);
        if named != index {
            return Err(wrong(what(), format!("it says that it is entry {named}")));
        }
        if let Some(last) = self.facts.last.filter(|last| last.checked_add(1) != Some(index)) {
            return Err(AuditError::Gap {
                expected: last.saturating_add(1),
                after: format!("entry {last}"),
                found: index,
            });
        }
        if term < self.term {
            return Err(wrong(what(), format!("its term {term} is before that of the entry before it, {}", self.term)));
        }
        if let EntryPayload::Normal(Payload(command)) = entry.payload {
            match Command::decode(command) {
                Ok(_) => {}
                Err(error @ DecodeError::Newer { .. }) => return Err(AuditError::Newer(error)),
                Err(_) => self.facts.unreadable += 1,
            }
        }
        self.term = term;
        self.facts.first = self.facts.first.or(Some(index));
        self.facts.last = Some(index);
        self.facts.entries += 1;
        Ok(())
    }

    fn finish(mut self) -> Result<LogFacts, AuditError> {
        let facts = &mut self.facts;
        let gap = |expected, after: &str, found| AuditError::Gap { expected, after: after.to_owned(), found };
        match (facts.purged, facts.first) {
            (Some(purged), Some(first)) if first > purged.saturating_add(1) => {
                return Err(gap(purged.saturating_add(1), "what was purged", first));
            }
            (None, Some(first)) if first > 1 => return Err(gap(1, "the beginning", first)),
            _ => {}
        }
        facts.last = facts.last.max(facts.purged);
        Ok(self.facts)
    }
}

/// Reads a log: every entry, without a gap and in terms that do not fall, and what the node has bound itself to.
/// `read` is told of bytes read.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_log(home: &StoreHome, read: &mut dyn FnMut(u64)) -> Result<LogFacts, AuditError> {
    let storage = RocksStorage::open_to_read(&home.log_path(), Kind::Log)?;
    let mut audit = LogAudit::default();
    each(&storage, Table::Log, |key, value| audit.look(key, value), read)?;
    audit.finish()
}

/// The same for records that are at hand, in the order of their keys.
pub(crate) fn check_log_records(records: Vec<(&[u8], bytes::Bytes)>) -> Result<LogFacts, AuditError> {
    let mut audit = LogAudit::default();
    for (key, value) in records {
        audit.look(key, value)?;
    }
    audit.finish()
}

/// What a state has besides its batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateFacts {
    /// Records that were read.
    pub records: u64,
    /// Records of kinds that this program does not know.
    pub unknown: u64,
}

pub(crate) fn chain_record(key: &[u8], value: bytes::Bytes) -> Result<bool, DecodeError> {
    match key.first() {
        // These are read with the chain.
        Some(&keys::BATCH) => {}
        Some(&keys::SEQUENCE | &keys::TASK_NUMBER) => {
            number(&value)?;
        }
        Some(&keys::CERTIFICATE | &keys::BOUNDARY_CERTIFICATE) => drop(Certificate::decode(value)?),
        Some(&keys::BOUNDARY) => drop(Batch::decode(value)?),
        _ => return Ok(false),
    }
    Ok(true)
}

fn output_name(name: &[u8]) -> Result<(), DecodeError> {
    let malformed = |e: &dyn std::fmt::Display| DecodeError::malformed("output name", e);
    let name = std::str::from_utf8(name).map_err(|e| malformed(&e))?;
    name.parse::<OutputName>().map(drop).map_err(|e| malformed(&e))
}

pub(crate) fn open_record(key: &[u8], value: bytes::Bytes) -> Result<bool, DecodeError> {
    match key.first() {
        Some(&keys::GROUP) => drop(GroupRecord::decode(value)?),
        Some(&keys::WAITING) => drop(Waiting::decode(&value)?),
        _ => return Ok(false),
    }
    Ok(true)
}

pub(crate) fn index_record(key: &[u8], value: bytes::Bytes, network: &NetworkId) -> Result<bool, DecodeError> {
    let malformed = |e: &dyn std::fmt::Display| DecodeError::malformed("record", e);
    match key {
        [keys::OCCURRENCE, ..] => {
            Occurrence::decode(&value)?;
        }
        [keys::MESSAGE_PLACE | keys::TASK_PLACE | keys::PACKED | keys::GAP | keys::NONCE, ..] => {
            number(&value)?;
        }
        [keys::PROGRESS, name @ ..] => {
            output_name(name)?;
            number(&value)?;
        }
        [keys::OUTPUT_STATE, name @ ..] => {
            output_name(name)?;
            OutputState::decode(&value)?;
        }
        [keys::PLACE, ..] => drop(Place::decode(value)?),
        [keys::PROJECT, ..] => drop(Project::decode(value)?),
        [keys::DEVICE, ..] => drop(Device::decode(value)?),
        [keys::GRANT, ..] => drop(Grant::decode(&value)?),
        [keys::HIGHEST_NONCE, ..] => drop(HighestNonce::decode(&value)?),
        [keys::TASK_ALIAS, ..] => drop(number(&value)?),
        keys::CHAIN => drop(ChainCursor::decode(value)?),
        keys::MEMBERS => drop(Members::decode(value, network)?),
        keys::HEAD => {
            Head::decode(value)?;
        }
        keys::APPLIED => {
            proto::LogId::decode(value).map_err(|e| malformed(&e))?;
        }
        keys::EPOCH => {
            number(&value)?;
        }
        keys::MEMBERSHIP => drop(decode_stored_membership(value)?),
        _ => return Ok(false),
    }
    Ok(true)
}

/// Reads every record of a state but its batches. `read` is told of bytes read.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_state(
    state: &StateStore,
    network: &NetworkId,
    read: &mut dyn FnMut(u64),
) -> Result<StateFacts, AuditError> {
    let storage = state.storage();
    let mut facts = StateFacts::default();
    for table in [Table::Chain, Table::Index, Table::Open] {
        let look = |key: &[u8], value: bytes::Bytes| {
            let known = match table {
                Table::Chain => chain_record(key, value),
                Table::Open => open_record(key, value),
                _ => index_record(key, value, network),
            };
            let known = known.map_err(|error| undecoded(format!("record {}", printable(key)))(error))?;
            facts.records += 1;
            facts.unknown += u64::from(!known);
            Ok(())
        };
        each(&*storage, table, look, read)?;
    }
    Ok(facts)
}

/// A key for people: its prefix as a letter, the rest in hex.
fn printable(key: &[u8]) -> String {
    let (prefix, rest) = key.split_first().map_or((b'?', &key[..0]), |(prefix, rest)| (*prefix, rest));
    rest.iter().fold(char::from(prefix).to_string(), |text, byte| format!("{text}{byte:02x}"))
}

/// All records of log and state as they are, for comparing two stores byte by byte.
///
/// # Errors
/// If they cannot be read.
pub fn every_record(home: &StoreHome) -> Result<Vec<(Table, Pair)>, AuditError> {
    let mut all = Vec::new();
    let log = RocksStorage::open_to_read(&home.log_path(), Kind::Log)?;
    let state = RocksStorage::open_to_read(&home.state_path()?, Kind::State)?;
    let state_tables = [Table::Chain, Table::Index, Table::Open].map(|table| (&state, table));
    for (storage, table) in [(&log, Table::Log)].into_iter().chain(state_tables) {
        let keep = |key: &[u8], value: bytes::Bytes| {
            all.push((table, (bytes::Bytes::copy_from_slice(key), value)));
            Ok(())
        };
        each(storage, table, keep, &mut |_| {})?;
    }
    Ok(all)
}
