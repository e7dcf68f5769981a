//! Applies committed entries: runs the ledger, stores its effects, and tells the observer.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use lockstep_ledger::{Applied, Command, Ledger, LedgerParts, Members, RULES_NEWEST, Target, Write};
use lockstep_types::{DecodeError, Genesis, GenesisError, NodeId};
use openraft::EntryPayload;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};

use crate::raft_types::{LogId, Membership, Payload, StoredMembership, TypeConfig};
use crate::state_store::{ReadError, SnapshotDirectory, StateStore};

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotDirectory>;
type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// Told of every applied entry, in order, on the node that applied it.
pub trait Observer: Send + Sync + 'static {
    /// The state was loaded from disk, at the start or because a snapshot took its place.
    fn loaded(&self, ledger: &Ledger);

    /// What followed from an entry is stored and can be read. Must be quick: the next entry waits.
    fn applied(&self, ledger: &Ledger, applied: &Applied);
}

/// See the module's documentation.
pub struct StateMachine {
    ledger: Ledger,
    state: StateStore,
    observer: Arc<dyn Observer>,
    applied: Option<LogId>,
    membership: StoredMembership,
    constants: LedgerParts,
    snapshot: Option<Snapshot>,
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
fn constants(genesis: &Genesis) -> Result<LedgerParts, GenesisError> {
    Ok(LedgerParts {
        network: genesis.id()?,
        epoch: lockstep_types::Epoch(0),
        params: genesis.params.clone(),
        members: Members::genesis(genesis)?,
        head: None,
        groups: Vec::new(),
        progress: Default::default(),
    })
}

fn load(state: &StateStore, constants: &LedgerParts) -> Result<Ledger, ReadError> {
    Ok(Ledger::new(LedgerParts {
        head: state.head()?,
        members: state.members(&constants.network)?.unwrap_or_else(|| constants.members.clone()),
        groups: state.groups()?,
        progress: state.progress()?,
        ..constants.clone()
    }))
}

impl StateMachine {
    /// The state machine of a node, as it was stored.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn open(genesis: &Genesis, state: StateStore, observer: Arc<dyn Observer>) -> io::Result<Self> {
        let constants = constants(genesis).map_err(io_error)?;
        let ledger = load(&state, &constants).map_err(io_error)?;
        let (applied, membership) = state.applied().map_err(io_error)?;
        observer.loaded(&ledger);
        Ok(Self { ledger, state, observer, applied, membership, constants, snapshot: None })
    }

    fn apply_command(&mut self, payload: Payload) -> io::Result<Applied> {
        match Command::decode(payload.0) {
            Ok(Command::Rules(found)) if found > RULES_NEWEST => {
                Err(io_error(DecodeError::Newer { what: "the network's rules", found, known: RULES_NEWEST }))
            }
            Ok(command) => {
                let applied = self.ledger.apply(&self.state, command).map_err(io_error)?;
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

    fn snapshot_meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }
}

fn name_of(meta: &SnapshotMeta) -> String {
    meta.last_log_id.map_or("empty".into(), |id| format!("{}-{}", *id.leader_id, id.index))
}

/// Builds a snapshot that was cut when the builder was made.
pub struct SnapshotBuilder(Option<io::Result<Snapshot>>);

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotDirectory;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        self.0.take().unwrap_or_else(|| Err(io::Error::other("a builder makes one snapshot")))
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotDirectory;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.apply_entry(entry.log_id, entry.payload)?;
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let meta = self.snapshot_meta();
        let cut = self.state.checkpoint(&name_of(&meta)).map_err(io_error);
        let cut = cut.map(|snapshot| Snapshot { meta, snapshot });
        if let Ok(snapshot) = &cut {
            self.snapshot = Some(Snapshot { meta: snapshot.meta.clone(), snapshot: snapshot.snapshot.clone() });
        }
        SnapshotBuilder(Some(cut))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotDirectory) -> io::Result<()> {
        self.state.install(&snapshot, &name_of(meta)).map_err(io_error)?;
        self.ledger = load(&self.state, &self.constants).map_err(io_error)?;
        (self.applied, self.membership) = (meta.last_log_id, meta.last_membership.clone());
        let kept = self.state.checkpoint(&name_of(meta)).map_err(io_error)?;
        self.snapshot = Some(Snapshot { meta: meta.clone(), snapshot: kept });
        self.observer.loaded(&self.ledger);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let copy = |s: &Snapshot| Snapshot { meta: s.meta.clone(), snapshot: s.snapshot.clone() };
        Ok(self.snapshot.as_ref().map(copy))
    }
}
