//! Batches through the checks, on all cores.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use lockstep_types::export::Origins;
use lockstep_types::proof::Boundary;
use lockstep_types::verify::{ChainVerifier, Checkpoint, Outline, VerifyError};
use lockstep_types::{Certificate, Epochs, ExportedBatch, Genesis, Height, Sequence};
use parking_lot::Mutex;

use crate::check::{ChainReport, CheckError, Part, Progress};

/// Batches without a gap, with the certificates of their heights.
#[derive(Debug, Default)]
pub struct Page {
    /// Batches, by height.
    pub batches: Vec<ExportedBatch>,
    /// Certificates, by height.
    pub certificates: Vec<Certificate>,
}

type Looked = Result<(Outline, Origins), VerifyError>;

/// Takes a history page by page.
pub struct ChainCheck {
    verifier: ChainVerifier,
    part: Part,
    first: Height,
    threads: usize,
    withheld: u64,
}

/// The members in force at `below`, over all certified changes before it.
///
/// # Errors
/// If a change does not hold.
pub fn way_from_genesis(
    genesis: &Genesis,
    epochs: &Epochs,
    boundaries: impl IntoIterator<Item = Boundary>,
    below: Height,
    part: Part,
) -> Result<Checkpoint, CheckError> {
    let first = Checkpoint::genesis(genesis).map_err(CheckError::unable)?;
    let mut members = first.with_epochs(epochs).map_err(CheckError::unable)?;
    for boundary in boundaries.into_iter().filter(|boundary| boundary.header.height < below) {
        members
            .follow(&boundary.header, &boundary.members, &(&boundary.certificate).into())
            .map_err(|e| CheckError::of(part, &e))?;
    }
    Ok(members)
}

impl ChainCheck {
    /// Of a history that begins with the genesis.
    ///
    /// # Errors
    /// If the genesis has a key that is none.
    pub fn from_genesis(genesis: &Genesis, rules_known: u32, epochs: &Epochs, part: Part) -> Result<Self, CheckError> {
        let verifier = ChainVerifier::from_genesis(genesis, rules_known).map_err(CheckError::unable)?;
        let verifier = verifier.with_epochs(epochs).map_err(CheckError::unable)?;
        Ok(Self::new(verifier, part, Height(1)))
    }

    /// Of a history whose beginning was forgotten.
    pub fn from_horizon(
        genesis: &Genesis,
        rules_known: u32,
        members: Checkpoint,
        (first, first_sequence): (Height, Sequence),
        part: Part,
    ) -> Self {
        let verifier = ChainVerifier::from_horizon(genesis, rules_known, members, first, first_sequence);
        Self::new(verifier, part, first)
    }

    fn new(verifier: ChainVerifier, part: Part, first: Height) -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        Self { verifier, part, first, threads, withheld: 0 }
    }

    /// What the checks know so far.
    pub fn verifier(&self) -> &ChainVerifier {
        &self.verifier
    }

    /// Takes the next page. `progress` advances by batches.
    ///
    /// # Errors
    /// The first thing that is wrong, in the order of the chain.
    pub fn take(&mut self, page: &Page, progress: &mut dyn Progress) -> Result<(), CheckError> {
        let mut certificates = page.certificates.iter().peekable();
        for looked in self.look(&page.batches) {
            self.advance(looked, &mut certificates).map_err(|e| CheckError::of(self.part, &e))?;
            progress.advance(1);
        }
        match certificates.next() {
            None => Ok(()),
            Some(stray) => {
                let reason = format!("there is a certificate for height {}, but no batch", stray.height);
                Err(CheckError::bad(self.part, reason))
            }
        }
    }

    /// What needs one batch only, on all cores.
    fn look(&self, batches: &[ExportedBatch]) -> Vec<Looked> {
        let look = |batch: &ExportedBatch| Ok((batch.outline()?, batch.origins()?));
        let next = AtomicUsize::new(0);
        let found: Mutex<Vec<(usize, Looked)>> = Mutex::new(Vec::with_capacity(batches.len()));
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(batch) = batches.get(at) else { return };
                let looked = look(batch);
                found.lock().push((at, looked));
            }
        };
        thread::scope(|scope| {
            for _ in 1..self.threads {
                scope.spawn(work);
            }
            work();
        });
        let mut found = found.into_inner();
        found.sort_by_key(|(at, _)| *at);
        found.into_iter().map(|(_, looked)| looked).collect()
    }

    fn advance<'a>(
        &mut self,
        looked: Looked,
        certificates: &mut std::iter::Peekable<impl Iterator<Item = &'a Certificate>>,
    ) -> Result<(), VerifyError> {
        let (outline, origins) = looked?;
        let known = self.verifier.known();
        self.verifier.advance(&outline)?;
        origins.check(&known)?;
        self.withheld += origins.withheld;
        let height = self.verifier.height();
        if let Some(certificate) = certificates.next_if(|certificate| certificate.height == height) {
            self.verifier.certificate(certificate)?;
        }
        Ok(())
    }

    /// What was found to be good.
    pub fn report(&self) -> ChainReport {
        let set = self.verifier.set();
        let voters = set.voters().count();
        ChainReport {
            first: self.first,
            head: self.verifier.height(),
            hash: self.verifier.hash(),
            final_height: self.verifier.final_height(),
            counts: self.verifier.counts(),
            withheld: self.withheld,
            changes: self.verifier.changes(),
            epochs: self.verifier.epochs().cloned().collect(),
            voters,
            observers: set.0.len() - voters,
        }
    }
}
