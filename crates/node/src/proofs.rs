//! What a reader needs who does not trust this node: proofs of single messages, and the history in pages.

use lockstep_api::views::BoundariesView;
use lockstep_api::{ReadError, Viewer};
use lockstep_consensus::{Blocking, NotDone, ReadError as StateError, StateStore};
use lockstep_ledger::Projects;
use lockstep_types::proof::{Boundary, PROOF_BOUNDARIES_MAX, PROOF_HEADERS_MAX};
use lockstep_types::{
    Batch, BatchHeader, Certificate, Epochs, ExportPage, ExportedBatch, Genesis, Height, MemberSet, MessageId, Proof,
    Sequence,
};
use tokio::sync::Semaphore;

use crate::limits::{EXPORT_BATCHES_MAX, LARGE_READS_MAX, NOT_FINAL_RETRY_MS, READ_BYTES_MAX, SHORT_READS_MAX};
use crate::reader::failed;

/// What a history hangs on.
#[derive(Debug, Clone)]
pub(crate) struct History {
    /// The network.
    pub genesis: Genesis,
    /// Its epochs after the first.
    pub epochs: Epochs,
}

static LARGE_READS: Semaphore = Semaphore::const_new(LARGE_READS_MAX);
static SHORT_READS: Semaphore = Semaphore::const_new(SHORT_READS_MAX);

/// Runs a read of single records where it holds up nobody when the disk takes its time; only so many at a time.
pub(crate) async fn short<T: Send + 'static>(
    blocking: Blocking,
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NotDone> {
    // As for large ones, below.
    let place = match blocking {
        Blocking::Threads => Some(SHORT_READS.acquire().await.expect("it is never closed")),
        Blocking::Inline => None,
    };
    let in_place = move || {
        let _place = place;
        read()
    };
    blocking.run(in_place).await
}

/// The same, for what a reader asked.
pub(crate) async fn look<T: Send + 'static>(
    state: &StateStore,
    read: impl FnOnce(&StateStore) -> Result<T, StateError> + Send + 'static,
) -> Result<T, ReadError> {
    let (blocking, state) = (state.blocking(), state.clone());
    let done = short(blocking, move || read(&state)).await;
    done.map_err(|e| ReadError::Failed(format!("the read did not end: {e}")))?.map_err(failed)
}

/// Runs a read that may take long where it holds up nobody; only so many at a time.
pub(crate) async fn aside<T: Send + 'static>(
    blocking: Blocking,
    read: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ReadError> {
    let ended = |e: &dyn std::fmt::Display| ReadError::Failed(format!("the read did not end: {e}"));
    // The places are the process', of which a simulation shares nothing that changes.
    let place = match blocking {
        Blocking::Threads => Some(LARGE_READS.acquire().await.map_err(|e| ended(&e))?),
        Blocking::Inline => None,
    };
    // The place is given back when the read has ended, also where nobody waits for it any more.
    let in_place = move || {
        let _place = place;
        read()
    };
    blocking.run(in_place).await.map_err(|e| ended(&e))?
}

/// The proof of a message; `pending` says that it waits for its place on this node.
pub(crate) async fn proof(
    state: StateStore,
    history: History,
    id: MessageId,
    pending: bool,
) -> Result<Option<Proof>, ReadError> {
    aside(state.blocking(), move || match find_proof(&state, &history, id)? {
        None if pending => Err(ReadError::NotFinal { retry_after_ms: NOT_FINAL_RETRY_MS }),
        found => Ok(found),
    })
    .await
}

fn find_proof(state: &StateStore, history: &History, id: MessageId) -> Result<Option<Proof>, ReadError> {
    let Some(sequence) = state.sequence_of(&id).map_err(failed)? else { return Ok(None) };
    let Some(batch) = state.batch_of_message(sequence).map_err(failed)? else {
        let horizon = state.head().map_err(failed)?.map(|head| head.horizon).unwrap_or_default();
        let pruned = sequence < horizon.sequence;
        return if pruned { Err(ReadError::Pruned { first: horizon.height }) } else { Ok(None) };
    };
    let Some(certificate) = state.certificate_from(batch.header.height).map_err(failed)? else {
        return Err(ReadError::NotFinal { retry_after_ms: NOT_FINAL_RETRY_MS });
    };
    let headers = headers_between(state, &batch, &certificate)?;
    let way = way_to(state, history, headers.last().unwrap_or(&batch.header))?;
    Ok(Proof::new(&batch, sequence, headers, &certificate, way))
}

/// Headers after a batch, up to the certified one.
pub(crate) fn headers_between(
    state: &StateStore,
    batch: &Batch,
    certificate: &Certificate,
) -> Result<Vec<BatchHeader>, ReadError> {
    let (mut next, last) = (batch.header.height.next(), certificate.height);
    if last.0.saturating_sub(next.0) >= PROOF_HEADERS_MAX as u64 {
        let reason = format!("the first certificate above this message is {} batches away", last.0 - next.0);
        return Err(ReadError::Unavailable { reason, retry_after_ms: NOT_FINAL_RETRY_MS });
    }
    let mut headers = Vec::new();
    while next <= last {
        let missing = usize::try_from(last.0 - next.0 + 1).unwrap_or(usize::MAX);
        let page = state.batches(next, missing, READ_BYTES_MAX).map_err(failed)?;
        let Some(newest) = page.last() else {
            return Err(ReadError::Failed(format!("batch {next} is missing in the state")));
        };
        next = newest.header.height.next();
        headers.extend(page.into_iter().map(|batch| batch.header));
    }
    Ok(headers)
}

pub(crate) fn boundary_of((batch, certificate): (Batch, Option<Certificate>)) -> Option<Boundary> {
    Some(Boundary { header: batch.header, members: batch.next_set?, certificate: (&certificate?).into() })
}

/// The members who certify a height, and how they followed from the genesis.
pub(crate) fn way_to(
    state: &StateStore,
    history: &History,
    certified: &BatchHeader,
) -> Result<(MemberSet, Vec<Boundary>), ReadError> {
    let all = state.boundaries(Height(0), PROOF_BOUNDARIES_MAX).map_err(failed)?;
    let below = all.into_iter().filter(|(batch, _)| batch.header.height < certified.height);
    let boundaries: Vec<Boundary> = below.filter_map(boundary_of).collect();
    let wrong = |e: lockstep_types::GenesisError| ReadError::Failed(e.to_string());
    let mut sets = vec![history.genesis.first_set().map_err(wrong)?];
    for record in history.epochs.records() {
        sets.push(record.set().map_err(wrong)?);
    }
    sets.extend(boundaries.iter().map(|boundary| boundary.members.clone()));
    let members = sets.into_iter().find(|set| set.hash() == certified.members);
    let unknown = || ReadError::Failed(format!("the members at height {} are not known", certified.height));
    Ok((members.ok_or_else(unknown)?, boundaries))
}

/// Certified changes of the members.
pub(crate) async fn boundaries(state: StateStore, from: Height, limit: usize) -> Result<BoundariesView, ReadError> {
    aside(state.blocking(), move || {
        let found = state.boundaries(from, limit).map_err(failed)?;
        Ok(BoundariesView { boundaries: found.into_iter().filter_map(boundary_of).collect() })
    })
    .await
}

/// A page of the history.
pub(crate) async fn export(state: StateStore, history: History, page: PageQuery) -> Result<ExportPage, ReadError> {
    aside(state.blocking(), move || make_page(&state, &history, &page)).await
}

/// Which part of the history, and who wants it.
#[derive(Debug, Clone)]
pub(crate) struct PageQuery {
    /// 0: from the oldest batch that is kept.
    pub from: Height,
    /// Leave out what has no certificate at or above it.
    pub only_final: bool,
    pub projects: Projects,
    pub viewer: Viewer,
}

fn make_page(state: &StateStore, history: &History, page: &PageQuery) -> Result<ExportPage, ReadError> {
    let (genesis, from) = (&history.genesis, page.from);
    let head = state.head().map_err(failed)?;
    let horizon = head.as_ref().map(|head| head.horizon).unwrap_or_default();
    let (oldest_height, oldest_sequence) = (horizon.height.max(Height(1)), horizon.sequence.max(Sequence(1)));
    let from = if from == Height(0) { oldest_height } else { from };
    if from < oldest_height {
        return Err(ReadError::Pruned { first: oldest_height });
    }
    let final_height = head.as_ref().map_or(Height(0), |head| head.final_height);
    let most = if page.only_final { (final_height.0 + 1).saturating_sub(from.0) } else { u64::MAX };
    let most = usize::try_from(most).map_or(EXPORT_BATCHES_MAX, |most| most.min(EXPORT_BATCHES_MAX));
    let batches = state.batches(from, most, READ_BYTES_MAX).map_err(failed)?;
    let last = batches.last().map(|batch| batch.header.height);
    let shown = |project| page.projects.may_read(project, page.viewer.token.as_ref());
    Ok(ExportPage {
        network: genesis.id().map_err(|e| ReadError::Failed(e.to_string()))?,
        epoch: history.epochs.current(),
        oldest_height,
        oldest_sequence,
        head: head.as_ref().map_or(Height(0), |head| head.height),
        final_height,
        certificates: last.map_or(Ok(Vec::new()), |last| certificates(state, from, last)).map_err(failed)?,
        batches: batches.into_iter().map(|batch| ExportedBatch::without(batch, shown)).collect(),
    })
}

/// Certificates of a range of heights.
pub(crate) fn certificates(state: &StateStore, from: Height, last: Height) -> Result<Vec<Certificate>, StateError> {
    let (mut found, mut next) = (Vec::new(), from);
    while let Some(certificate) = state.certificate_from(next)?.filter(|c| c.height <= last) {
        next = certificate.height.next();
        found.push(certificate);
    }
    Ok(found)
}
