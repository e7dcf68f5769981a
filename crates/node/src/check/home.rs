//! Checking the home of a stopped node: every file of its stores, every record, and the history they hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lockstep_consensus::audit::{self, AuditError, LogFacts, StateFacts};
use lockstep_consensus::{ReadError, StateStore};
use lockstep_ledger::{GroupKey, Head, Members, OpenGroup};
use lockstep_store::home::StoreHome;
use lockstep_store::lock::{Held, hold};
use lockstep_store::records::{RecordError, TornTail, check_records};
use lockstep_store::{Kind, RocksStorage, StoreError};
use lockstep_types::verify::{Checkpoint, PackKey};
use lockstep_types::{Address, Epochs, ExportedBatch, Genesis, Height, Member, MessageId, NetworkId, Sequence};

use crate::Home;
use crate::check::chain::{ChainCheck, Page, way_from_genesis};
use crate::check::{ChainReport, CheckError, Part, Progress};
use crate::limits::{EXPORT_BATCHES_MAX, READ_BYTES_MAX};

/// Changes of the members that one read brings.
const BOUNDARIES_TOGETHER: usize = 256;

/// A home in which everything is as it was written.
#[derive(Debug)]
pub struct HomeReport {
    /// The network.
    pub genesis: Genesis,
    /// Its id.
    pub network: NetworkId,
    /// What the log has.
    pub log: LogFacts,
    /// What the state has besides batches.
    pub state: StateFacts,
    /// Index of the newest log entry that the state knows.
    pub applied: Option<u64>,
    /// The history.
    pub chain: ChainReport,
    /// An incomplete record at the end of the write-ahead log, as a power loss leaves it.
    pub torn: Option<TornTail>,
}

/// What the steps of a check share.
struct HomeCheck<'a> {
    genesis: Genesis,
    network: NetworkId,
    epochs: Epochs,
    store: StoreHome,
    rules_known: u32,
    progress: &'a mut dyn Progress,
}

/// Checks the home of a stopped node by rules of `apply` up to `rules_known`. Nothing is written.
///
/// # Errors
/// What is damaged or wrong, or why it cannot be told.
pub fn check_home(home: &Path, rules_known: u32, progress: &mut dyn Progress) -> Result<HomeReport, CheckError> {
    let mut check = HomeCheck::open(home, rules_known, progress)?;
    let log_path = check.store.log_path();
    if !log_path.join("CURRENT").exists() {
        return Err(CheckError::bad(Part::Log, format!("there is no log at {}", log_path.display())));
    }
    let _log = held(&log_path)?;
    let torn = check.files(&log_path, Kind::Log)?;
    check.progress.begin("log records", directory_bytes(&log_path));
    let log = {
        let progress = &mut *check.progress;
        audit::check_log(&check.store, &mut |bytes| progress.advance(bytes)).map_err(|e| audited(Part::Log, e))?
    };

    let state_path = check.store.state_path().map_err(|e| CheckError::bad(Part::Home, e))?;
    if !state_path.join("CURRENT").exists() {
        let reason = "there is no state: start the node, which makes it from the log, stop it, and check again";
        return Err(CheckError::unable(reason));
    }
    let _state = held(&state_path)?;
    check.files(&state_path, Kind::State)?;
    let state = StateStore::open_to_read(&check.store).map_err(|e| CheckError::bad(Part::State, e))?;
    check.progress.begin("state records", directory_bytes(&state_path));
    let facts = {
        let (network, progress) = (check.network, &mut *check.progress);
        audit::check_state(&state, &network, &mut |bytes| progress.advance(bytes))
            .map_err(|e| audited(Part::State, e))?
    };
    let applied = state.applied_index().map_err(damaged)?;
    if applied > log.last {
        let reason = format!(
            "the log ends at entry {}, but the state has applied entry {}: the end of the log was lost",
            log.last.unwrap_or(0),
            applied.unwrap_or(0)
        );
        return Err(CheckError::bad(Part::Log, reason));
    }
    let chain = check.history(&state, &log)?;
    Ok(HomeReport { genesis: check.genesis, network: check.network, log, state: facts, applied, chain, torn })
}

fn held(store: &Path) -> Result<Held, CheckError> {
    hold(store).map_err(CheckError::unable)
}

fn damaged(error: ReadError) -> CheckError {
    CheckError::bad(Part::State, error)
}

fn audited(part: Part, error: AuditError) -> CheckError {
    match error {
        error @ AuditError::Newer(_) => CheckError::unable(error),
        error => CheckError::bad(part, error),
    }
}

fn directory_bytes(path: &Path) -> u64 {
    let sizes = fs::read_dir(path).into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok());
    sizes.map(|metadata| metadata.len()).sum()
}

impl<'a> HomeCheck<'a> {
    fn open(home: &Path, rules_known: u32, progress: &'a mut dyn Progress) -> Result<Self, CheckError> {
        let file = home.join("genesis.json");
        let text = fs::read_to_string(&file).map_err(|e| CheckError::unable(format!("{}: {e}", file.display())))?;
        let named = |e: &dyn std::fmt::Display| CheckError::bad(Part::Home, format!("{}: {e}", file.display()));
        let genesis = Genesis::parse(&text).map_err(|e| named(&e))?;
        let network = genesis.id().map_err(|e| named(&e))?;
        let epochs = Home::at(home).epochs(&genesis).map_err(|e| CheckError::bad(Part::Home, e))?;
        let store = StoreHome::open(&home.join("store")).map_err(|e| CheckError::bad(Part::Home, e))?;
        match store.network().map_err(|e| CheckError::bad(Part::Home, e))? {
            None => return Err(CheckError::unable("no node was started in this home yet: there is nothing to check")),
            Some(bound) if bound != network => {
                let reason = format!("the store belongs to network {bound}, the genesis file to network {network}");
                return Err(CheckError::bad(Part::Home, reason));
            }
            Some(_) => {}
        }
        let check = Self { genesis, network, epochs, store, rules_known, progress };
        check.incarnation(&home.join("member.json"))?;
        Ok(check)
    }

    /// The store is the one that the member joined with.
    fn incarnation(&self, file: &Path) -> Result<(), CheckError> {
        let named = |e: &dyn std::fmt::Display| CheckError::bad(Part::Home, format!("{}: {e}", file.display()));
        let text = match fs::read_to_string(file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            text => text.map_err(|e| named(&e))?,
        };
        let member: Member = serde_json::from_str(&text).map_err(|e| named(&e))?;
        if member.incarnation == self.store.incarnation() {
            return Ok(());
        }
        Err(CheckError::bad(Part::Home, "the store has another incarnation than the one in member.json"))
    }

    /// Every byte of a store's files against the checksums over it.
    fn files(&mut self, path: &Path, kind: Kind) -> Result<Option<TornTail>, CheckError> {
        let (part, what) = match kind {
            Kind::Log => (Part::Log, "files of the log"),
            Kind::State => (Part::State, "files of the state"),
        };
        let bytes = directory_bytes(path);
        self.progress.begin(what, bytes);
        let tails = check_records(path).map_err(|e| match e {
            RecordError::Read { .. } => CheckError::unable(e),
            RecordError::Damaged { .. } => CheckError::bad(part, e),
        })?;
        if let Some(torn) = tails.manifest {
            return Err(CheckError::unable(format!(
                "{} ends with an incomplete record of {} bytes: the node was killed while it wrote there, or the file is damaged. Start the node, stop it, and check again",
                torn.file.display(),
                torn.bytes
            )));
        }
        RocksStorage::verify_blocks(path, kind).map_err(|e: StoreError| CheckError::bad(part, e))?;
        self.progress.advance(bytes);
        Ok(tails.wal)
    }

    fn history(&mut self, state: &StateStore, log: &LogFacts) -> Result<ChainReport, CheckError> {
        let epoch = state.epoch().map_err(damaged)?.unwrap_or_default();
        if epoch != self.epochs.current() {
            let reason = format!("the state is of epoch {epoch}, the home of epoch {}", self.epochs.current());
            return Err(CheckError::bad(Part::Home, reason));
        }
        let head =
            state.head().map_err(damaged)?.unwrap_or_else(|| Head::genesis(self.genesis.params.first_task_number));
        if head.rules_version > self.rules_known {
            let reason =
                format!("the network has rules {}, this program knows {}", head.rules_version, self.rules_known);
            return Err(CheckError::unable(reason));
        }
        let start = (head.horizon.height.max(Height(1)), head.horizon.sequence.max(Sequence(1)));
        let members = self.members(state, start.0)?;
        let mut check = if start.0 == Height(1) {
            ChainCheck::from_genesis(&self.genesis, self.rules_known, &self.epochs, Part::State)?
        } else {
            ChainCheck::from_horizon(&self.genesis, self.rules_known, members, start, Part::State)
        };
        self.progress.begin("batches", (head.height.0 + 1).saturating_sub(start.0.0));
        let mut next = start.0;
        while next <= head.height {
            let page = read_page(state, next)?;
            let Some(last) = page.batches.last() else {
                return Err(CheckError::bad(Part::State, format!("batch {next} is missing")));
            };
            next = last.header.height.next();
            check_pledge(&page, log)?;
            check.take(&page, &mut *self.progress)?;
        }
        self.compare(state, &head, &check)?;
        Ok(check.report())
    }

    fn members(&self, state: &StateStore, below: Height) -> Result<Checkpoint, CheckError> {
        let mut all = Vec::new();
        let mut next = Height(0);
        loop {
            let page = state.boundaries(next, BOUNDARIES_TOGETHER).map_err(damaged)?;
            let Some((last, _)) = page.last() else { break };
            next = last.header.height.next();
            // One without a certificate may have been the last of its epoch; where it is needed it will be missed.
            all.extend(page.into_iter().filter_map(crate::proofs::boundary_of));
        }
        way_from_genesis(&self.genesis, &self.epochs, all, below, Part::State)
    }

    /// What the state says of itself is what follows from its batches.
    fn compare(&self, state: &StateStore, head: &Head, check: &ChainCheck) -> Result<(), CheckError> {
        let verifier = check.verifier();
        let differs = |what: &str| CheckError::bad(Part::State, format!("the head's {what} is not that of the chain"));
        let first_task_kept = head.horizon.height.0 <= 1 || verifier.first_task() == Some(head.horizon.task_number);
        let newest = verifier.header();
        // What an epoch follows is final by its record, with or without a certificate.
        let vouched = self.epochs.records().last().map_or(Height(0), |record| record.parent_height);
        for (good, what) in [
            (head.height == verifier.height(), "height"),
            (head.hash == verifier.hash(), "hash"),
            (head.next_sequence == verifier.next_sequence(), "next sequence"),
            (head.next_task_number == verifier.next_task(), "next task number"),
            (head.final_height == verifier.final_height().max(vouched), "final height"),
            (newest.is_none_or(|header| header.time_ms == head.time_ms), "time"),
            (newest.is_none_or(|header| header.rules_version <= head.rules_version), "rules"),
            (first_task_kept, "oldest task"),
        ] {
            if !good {
                return Err(differs(what));
            }
        }
        let genesis = || Members::genesis(&self.genesis).map_err(CheckError::unable);
        let members = state.members(&self.network).map_err(damaged)?.map_or_else(genesis, Ok)?;
        if members.set() != verifier.set() || members.boundary() != verifier.boundary() {
            return Err(CheckError::bad(Part::State, "the members are not those that follow from the chain"));
        }
        let groups = state.open_groups().map_err(damaged)?;
        let waiting =
            verifier.open_groups().flat_map(|(key, messages)| messages.iter().map(move |known| (key, *known)));
        if !follow_from(&groups, waiting) {
            return Err(CheckError::bad(Part::State, "the open groups are not those that follow from the chain"));
        }
        Ok(())
    }
}

/// Whether the groups hold the messages that wait by the chain, each once. The chain knows devices, and not which messages
/// a project's rules put together: they may be of several.
fn follow_from<'a>(
    groups: &[(GroupKey, OpenGroup)],
    waiting: impl Iterator<Item = (&'a PackKey, (Sequence, MessageId))>,
) -> bool {
    let mut waiting: BTreeMap<Sequence, (&PackKey, MessageId)> =
        waiting.map(|(key, (sequence, id))| (sequence, (key, id))).collect();
    let mut waits = |key: &GroupKey, group: &OpenGroup, (sequence, id): &(Sequence, MessageId)| {
        let of_several = group.ruled.is_some() && key.device == Address::ZERO;
        waiting.remove(sequence).is_some_and(|(known, known_id)| {
            (known_id, known.project_id, &known.project_version) == (*id, key.project_id, &key.project_version)
                && (of_several || known.device == key.device)
        })
    };
    let mut follows = |(key, group): &(GroupKey, OpenGroup)| {
        group.messages.is_sorted() && group.messages.iter().all(|message| waits(key, group, message))
    };
    groups.iter().all(&mut follows) && waiting.is_empty()
}

fn read_page(state: &StateStore, from: Height) -> Result<Page, CheckError> {
    let batches = state.batches(from, EXPORT_BATCHES_MAX, READ_BYTES_MAX).map_err(damaged)?;
    let certificates = match batches.last() {
        Some(last) => crate::proofs::certificates(state, from, last.header.height).map_err(damaged)?,
        None => Vec::new(),
    };
    Ok(Page { batches: batches.into_iter().map(ExportedBatch::from).collect(), certificates })
}

/// What the node signed is what its state has.
fn check_pledge(page: &Page, log: &LogFacts) -> Result<(), CheckError> {
    let Some(signed) = &log.signed else { return Ok(()) };
    let same = |batch: &&ExportedBatch| batch.header.height == signed.height && batch.header.epoch == signed.epoch;
    let Some(own) = page.batches.iter().find(same).map(|batch| batch.header.hash()) else { return Ok(()) };
    if own == signed.hash {
        return Ok(());
    }
    let reason = format!("this node signed batch {} at height {}, but its state has {own}", signed.hash, signed.height);
    Err(CheckError::bad(Part::State, reason))
}
