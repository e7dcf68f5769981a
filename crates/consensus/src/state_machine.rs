//! Applies committed entries: runs the ledger, stores its effects, and tells the observer. All of it reads and writes the
//! disk, so it is done where work may block.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use lockstep_ledger::{
    Applied, Command, Divergence, Horizon, Ledger, LedgerParts, Members, Target, Write, check_rules,
};
use lockstep_types::{DecodeError, Epoch, Genesis, GenesisError, NodeId};
use openraft::EntryPayload;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use parking_lot::Mutex;

use crate::raft_types::{LogId, Membership, Payload, StoredMembership, TypeConfig};
use crate::shelf::{KeptCopy, SnapshotDirectory};
use crate::snapshot::SnapshotMeta;
use crate::state_store::{ReadError, StateStore};

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotDirectory>;

/// Told of every applied entry, in order, on the node that applied it.
pub trait Observer: Send + Sync + 'static {
    /// The state was loaded from disk, at the start or because a snapshot took its place.
    fn loaded(&self, ledger: &Ledger);

    /// What followed from an entry is stored and can be read. Must be quick: the next entry waits.
    fn applied(&self, ledger: &Ledger, applied: &Applied);
}

/// Most entries that are applied in one go.
const APPLIED_TOGETHER_MAX: usize = 64;

/// See the module's documentation.
pub struct StateMachine {
    state: StateStore,
    /// Nobody else holds it while entries are applied, which openraft does one after another.
    machine: Arc<Mutex<Machine>>,
}

/// What applying changes.
struct Machine {
    ledger: Ledger,
    state: StateStore,
    observer: Arc<dyn Observer>,
    applied: Option<LogId>,
    membership: StoredMembership,
    constants: LedgerParts,
    /// Of a state that may have lost batches which its log forgets further on: horizons are taken at their word.
    trusts_horizons: bool,
    /// One of them was.
    has_trusted: bool,
}

fn io_error(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

/// A uniform configuration of raft; `None` for a joint one.
fn uniform(membership: &Membership) -> Option<Target> {
    let [voters] = &membership.get_joint_config()[..] else { return None };
    let observers = membership.nodes().map(|(id, _)| *id).filter(|id| !voters.contains(id));
    Some(Target { voters: voters.iter().copied().map(NodeId).collect(), observers: observers.map(NodeId).collect() })
}

/// The parts of a ledger that never change, from the genesis.
fn constants(genesis: &Genesis, epoch: Epoch, rules_known: u32) -> Result<LedgerParts, GenesisError> {
    Ok(LedgerParts {
        network: genesis.id()?,
        epoch,
        params: genesis.params.clone(),
        members: Members::genesis(genesis)?,
        head: None,
        groups: Vec::new(),
        progress: Default::default(),
        outputs: Default::default(),
        projects: Default::default(),
        rules: Default::default(),
        rules_states: Default::default(),
        chain: None,
        rules_known,
    })
}

fn load(state: &StateStore, constants: &LedgerParts) -> Result<Ledger, ReadError> {
    match state.epoch()? {
        Some(found) if found != constants.epoch => return Err(ReadError::Epoch { found, expected: constants.epoch }),
        _ => {}
    }
    Ok(Ledger::new(LedgerParts {
        head: state.head()?,
        members: state.members(&constants.network)?.unwrap_or_else(|| constants.members.clone()),
        groups: state.groups()?,
        progress: state.progress()?,
        outputs: state.output_states()?,
        projects: state.projects()?,
        rules: state.rules()?,
        rules_states: state.rules_states()?,
        chain: state.chain()?,
        ..constants.clone()
    }))
}

impl StateMachine {
    /// The state machine of a node in an epoch of its network, as it was stored, which knows rules of `apply` up to
    /// `rules_known`. Whatever applies a log comes by here.
    ///
    /// # Errors
    /// If the state cannot be read, or the log of this network may say what this program does not know how to do.
    pub fn open(
        genesis: &Genesis,
        (epoch, rules_known): (Epoch, u32),
        state: StateStore,
        observer: Arc<dyn Observer>,
    ) -> io::Result<Self> {
        check_rules(&genesis.params, lockstep_rules::HAS_ENGINE).map_err(io_error)?;
        let constants = constants(genesis, epoch, rules_known).map_err(io_error)?;
        let ledger = load(&state, &constants).map_err(io_error)?;
        let (applied, membership) = state.applied().map_err(io_error)?;
        observer.loaded(&ledger);
        let machine = Machine {
            ledger,
            state: state.clone(),
            observer,
            applied,
            membership,
            constants,
            trusts_horizons: false,
            has_trusted: false,
        };
        Ok(Self { state, machine: Arc::new(Mutex::new(machine)) })
    }

    /// For applying the log of a stopped node to what is left of its state.
    pub(crate) fn trusting_horizons(self) -> Self {
        self.machine.lock().trusts_horizons = true;
        self
    }

    /// Whether a horizon had to be taken at its word.
    pub(crate) fn has_trusted(&self) -> bool {
        self.machine.lock().has_trusted
    }

    /// Forgets batches that are missing, without an entry of the log. Blocks.
    pub(crate) fn forget_missing(&mut self, horizon: Horizon) -> io::Result<()> {
        let mut machine = self.machine.lock();
        let (Some(applied), forgotten) = (machine.applied, machine.ledger.forget_missing(horizon)) else {
            return Ok(());
        };
        self.state.write(&applied, None, &forgotten.writes).map_err(io_error)
    }

    /// Applies one entry. Blocks.
    pub(crate) fn apply_entry(
        &mut self,
        log_id: LogId,
        payload: EntryPayload<Payload, u64, openraft::EmptyNode>,
    ) -> io::Result<()> {
        self.machine.lock().apply_entry(log_id, payload)
    }

    /// Does something with the machine where it may block.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Machine) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let machine = self.machine.clone();
        self.state.blocking().run(move || work(&mut machine.lock())).await.map_err(io_error)?
    }
}

impl Machine {
    fn apply_command(&mut self, payload: Payload) -> io::Result<Applied> {
        match Command::decode(payload.0) {
            Ok(Command::Rules(found)) if found > self.ledger.rules_known() => {
                let known = self.ledger.rules_known();
                Err(io_error(DecodeError::Newer { what: "the network's rules", found, known }))
            }
            Ok(command) => {
                let horizon = if let Command::Horizon(horizon) = &command { Some(*horizon) } else { None };
                let mut applied = self.ledger.apply(&self.state, command).map_err(io_error)?;
                if let (Some(Divergence::Missing(_)), Some(horizon), true) =
                    (&applied.diverged, horizon, self.trusts_horizons)
                {
                    applied = self.ledger.forget_missing(horizon);
                    self.has_trusted = true;
                }
                // Nothing of the entry is stored: the node stops here, at every start, until its state is mended.
                applied.diverged.clone().map_or(Ok(applied), |divergence| Err(io_error(divergence)))
            }
            // An entry of a newer Lockstep: applying nothing would make this node differ from its peers.
            Err(error @ DecodeError::Newer { .. }) => Err(io_error(error)),
            Err(error) => {
                tracing::error!(%error, "a committed entry cannot be read; it has no effect on any node");
                Ok(Applied::default())
            }
        }
    }

    fn apply_entry(
        &mut self,
        log_id: LogId,
        payload: EntryPayload<Payload, u64, openraft::EmptyNode>,
    ) -> io::Result<()> {
        let _under_way = self.state.applying().begin();
        let (mut applied, mut membership) = (Applied::default(), None);
        match payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(payload) => applied = self.apply_command(payload)?,
            EntryPayload::Membership(new) => {
                if let Some(raft) = uniform(&new) {
                    applied = self.ledger.apply_raft_members(&raft);
                }
                self.membership = StoredMembership::new(Some(log_id), new);
                membership = Some(&self.membership);
            }
        }
        self.state.write(&log_id, membership, &applied.writes).map_err(io_error)?;
        self.applied = Some(log_id);
        self.observer.applied(&self.ledger, &applied);
        // Freed here, where it is known that nobody needs the batch's buffers any more.
        drop::<Vec<Write>>(std::mem::take(&mut applied.writes));
        Ok(())
    }

    fn apply_all(&mut self, entries: Vec<io::Result<EntryResponder<TypeConfig>>>) -> io::Result<()> {
        for next in entries {
            let (entry, responder) = next?;
            self.apply_entry(entry.log_id, entry.payload)?;
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    fn install(&mut self, snapshot: &SnapshotDirectory, meta: &SnapshotMeta) -> io::Result<()> {
        self.state.install(snapshot, meta).map_err(io_error)?;
        self.ledger = load(&self.state, &self.constants).map_err(io_error)?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.observer.loaded(&self.ledger);
        Ok(())
    }
}

fn snapshot_of(copy: &KeptCopy) -> Snapshot {
    Snapshot { meta: copy.meta.clone(), snapshot: copy.directory.clone() }
}

/// Builds a snapshot, beside the application of entries.
pub struct SnapshotBuilder {
    state: StateStore,
    is_needed: bool,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotDirectory;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let state = self.state.clone();
        let made = self.state.blocking().run(move || state.make_copy()).await.map_err(io_error)?;
        match (made, self.state.shelf().current()) {
            (Ok(_), Some(copy)) => Ok(snapshot_of(&copy)),
            (Ok(_), None) => Err(io::Error::other("the copy of the state is gone")),
            (Err(error), _) if self.is_needed => Err(io_error(error)),
            (Err(error), current) => {
                // openraft would stop the node. One snapshot less costs only space: the log is kept until one is made.
                tracing::error!(%error, "no snapshot of the state could be made; the log is not purged until one is");
                let nothing =
                    Snapshot { meta: SnapshotMeta::default(), snapshot: SnapshotDirectory::received("".into()) };
                Ok(current.map_or(nothing, |copy| snapshot_of(&copy)))
            }
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotDirectory;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let machine = self.machine.lock();
        Ok((machine.applied, machine.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        // Those that are there: a thread is asked once for all of them.
        let mut together = entries.ready_chunks(APPLIED_TOGETHER_MAX);
        while let Some(entries) = together.next().await {
            self.aside(|machine| machine.apply_all(entries)).await?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        Some(SnapshotBuilder { state: self.state.clone(), is_needed: force })
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { state: self.state.clone(), is_needed: true }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotDirectory) -> io::Result<()> {
        let meta = meta.clone();
        self.aside(move |machine| machine.install(&snapshot, &meta)).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.state.shelf().current().as_deref().map(snapshot_of))
    }
}
