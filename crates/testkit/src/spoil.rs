//! Homes that no healthy node makes: of a stopped node, with its keys and by the parts that it is made of, so that it is
//! seen what the tools make of them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use lockstep_consensus::{
    CompactionOptions, Connection, Consensus, Observer, Options, Role, StateStore, Transport, TransportError,
};
use lockstep_identity::{apinode, sign_body};
use lockstep_ledger::{Aged, Applied, Command, Head, Ledger, RULES_NEWEST, encode_batch};
use lockstep_node::Home;
use lockstep_store::{Durability, Kind, RocksStorage, Storage as _, Table, WriteBatch, keys};
use lockstep_types::certificate::sign_batch;
use lockstep_types::{BatchHash, Certificate, Height, NodeId, ProjectId, Sequence, TimeMs};
use tokio::time::timeout;

use crate::load::device_key;

/// Longest wait for a single voter to lead, and to stop.
const WAIT_MAX: Duration = Duration::from_secs(20);

struct Quiet;

impl Observer for Quiet {
    fn loaded(&self, _ledger: &Ledger) {}
    fn applied(&self, _ledger: &Ledger, _applied: &Applied) {}
}

struct Nobody;

impl Transport for Nobody {
    fn connect(&self, _target: NodeId) -> Box<dyn Connection> {
        Box::new(Self)
    }

    fn connect_bulk(&self, _target: NodeId) -> Box<dyn Connection> {
        Box::new(Self)
    }
}

#[async_trait]
impl Connection for Nobody {
    async fn call(&mut self, _request: Bytes, _timeout: Duration) -> Result<Bytes, TransportError> {
        Err(TransportError::Unreachable("nobody is there".into()))
    }
}

fn message(text: &str) -> Result<Aged> {
    let request = apinode::parse(sign_body(&device_key(77, 0), ProjectId(7), "0.1", text).as_bytes())?;
    Ok(Aged { message: Arc::new(request.authenticate()?), age_ms: 0 })
}

/// What [`contradict`] has put into a log.
#[derive(Debug, Clone, Copy)]
pub struct Contradiction {
    /// The newest batch that can be applied.
    pub height: Height,
    /// Messages behind the entry that cannot be.
    pub messages_behind: u64,
}

/// Ends the log of the only voter of a network with a batch, a certificate over another one at its height, and messages
/// behind that. The state is what it is then: the certificate cannot be applied.
///
/// # Errors
/// If its node runs, or it does not lead.
pub async fn contradict(home: &Path) -> Result<Contradiction> {
    let opened = Home::at(home).open()?;
    let (node, key, epoch) = (opened.node, opened.node_key.clone(), opened.epoch());
    let state = StateStore::open(&opened.store)?;
    let options = Options {
        node,
        genesis: opened.genesis,
        epoch,
        store: opened.store,
        election_timeout_ms: 400,
        heartbeat_ms: 100,
        compaction: CompactionOptions::default(),
        rules_known: RULES_NEWEST,
    };
    let consensus = Consensus::start(options, Arc::new(Nobody), state.clone(), Arc::new(Quiet)).await?;
    timeout(WAIT_MAX, consensus.status().wait_for(|status| status.role == Role::Leader)).await??;
    let time = TimeMs(state.head()?.context("a head")?.time_ms.0 + 1);
    consensus.propose(encode_batch(time, &[message("the last one that counts")?], Sequence(0))).await?;
    let head = state.head()?.context("a head")?;
    ensure!(head.height > head.final_height, "it is final already");
    let hash = BatchHash([0x5a; 32]);
    let signatures = vec![(node, sign_batch(&key, &hash))];
    let wrong = Command::encode_certificate(&Certificate { height: head.height, hash, signatures });
    let behind = [message("behind it")?, message("and behind it")?];
    let messages_behind = behind.len() as u64;
    let behind = encode_batch(time, &behind, Sequence(0));
    // Both are in the log before the first of them is applied, which ends it all.
    let ends = async { tokio::join!(biased; consensus.propose(wrong), consensus.propose(behind)) };
    let _ = timeout(WAIT_MAX, ends).await;
    timeout(WAIT_MAX, consensus.status().wait_for(|status| status.stopped.is_some())).await??;
    consensus.shutdown().await;
    Ok(Contradiction { height: head.height, messages_behind })
}

/// Takes batches away that the ledger has forgotten below `horizon`, but the state on the disk has not: as a disk that
/// goes by what the ledger says. Returns how many.
///
/// # Errors
/// If its node runs.
pub fn forget_early(home: &Path, horizon: Height) -> Result<u64> {
    let opened = Home::at(home).open()?;
    let store = RocksStorage::open(&opened.store.state_path()?, Kind::State)?;
    let head = store.get(Table::Index, keys::HEAD)?.map(Head::decode).transpose()?.context("a head")?;
    let (first, mut batch, mut taken) = (head.horizon.height.max(Height(1)), WriteBatch::default(), 0);
    for height in (first.0..horizon.0).map(Height) {
        if store.get(Table::Chain, &keys::batch(height))?.is_some() {
            batch.delete(Table::Chain, keys::batch(height));
            taken += 1;
        }
    }
    store.write(batch, Durability::Synced)?;
    Ok(taken)
}
