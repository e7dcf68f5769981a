//! From the genesis to the member set in force, over the changes of it alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::batch::BatchHeader;
use crate::certificate::Certificate;
use crate::epoch::{EpochRecord, Epochs};
use crate::genesis::{Genesis, GenesisError};
use crate::hash::Hash32;
use crate::ids::{Address, Epoch, Height, NetworkId};
use crate::members::MemberSet;
use crate::verify::error::{Fault, VerifyError};
use crate::verify::outline::is_next_set;

/// The member set that certifies what comes after a height, and how it followed from the genesis: each change was
/// certified by a majority of the voters before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub(crate) network: NetworkId,
    pub(crate) epoch: Epoch,
    /// Height of the last change; 0 at genesis.
    pub(crate) height: Height,
    pub(crate) set: MemberSet,
    pub(crate) set_hash: Hash32,
    /// Addresses of all who are or were members.
    pub(crate) known: Arc<BTreeSet<Address>>,
    pub(crate) changes: u64,
    /// Epochs after the first that the caller trusts, and how many of them have begun.
    epochs: Vec<(EpochRecord, MemberSet)>,
    begun: usize,
}

impl Checkpoint {
    /// The beginning: the members of the genesis, all voters.
    pub fn genesis(genesis: &Genesis) -> Result<Self, GenesisError> {
        let set = genesis.first_set()?;
        Ok(Self {
            network: genesis.id()?,
            epoch: Epoch(0),
            height: Height(0),
            set_hash: set.hash(),
            known: Arc::new(set.0.iter().map(|member| member.address).collect()),
            set,
            changes: 0,
            epochs: Vec::new(),
            begun: 0,
        })
    }

    /// With epochs after the first. Nothing but these records vouches for where an epoch begins and with whom.
    pub fn with_epochs(mut self, epochs: &Epochs) -> Result<Self, GenesisError> {
        let known = Arc::make_mut(&mut self.known);
        for record in epochs.records() {
            let set = record.set()?;
            known.extend(set.0.iter().map(|member| member.address));
            self.epochs.push((record.clone(), set));
        }
        Ok(self)
    }

    /// The epochs that have begun so far, beside the first.
    pub fn begun(&self) -> impl Iterator<Item = &EpochRecord> {
        self.epochs[..self.begun].iter().map(|(record, _)| record)
    }

    /// Begins the epochs that the batch with this header is in. Whether there were any.
    pub(crate) fn enter(&mut self, header: &BatchHeader) -> Result<bool, VerifyError> {
        let before = self.begun;
        while let Some((record, set)) = self.epochs.get(self.begun) {
            if header.height <= record.parent_height {
                break;
            }
            if header.epoch < record.epoch {
                // What the old epoch's members ordered beyond the parent is not part of this history.
                return Err(Fault::Epoch { found: header.epoch, expected: record.epoch }.at(header.height));
            }
            if header.height == record.parent_height.next() && header.parent != record.parent_hash {
                let (found, expected) = (header.parent, record.parent_hash);
                return Err(Fault::Parent { found, expected }.at(header.height));
            }
            let (epoch, height, set) = (record.epoch, record.parent_height, set.clone());
            let set_hash = set.hash();
            self.epoch = epoch;
            self.change(height, set, set_hash);
            self.begun += 1;
        }
        Ok(self.begun > before)
    }

    /// The set in force.
    pub fn set(&self) -> &MemberSet {
        &self.set
    }

    /// Follows one change of the members: the header of the batch that made it, the new set, and that batch's
    /// certificate, by the set before.
    pub fn follow(
        &mut self,
        header: &BatchHeader,
        next_set: &MemberSet,
        certificate: &Certificate,
    ) -> Result<(), VerifyError> {
        self.enter(header)?;
        self.check_header(header)?;
        let at = |fault: Fault| Err(fault.at(header.height));
        if header.height <= self.height {
            return at(Fault::Height(Height(self.height.0.saturating_add(1))));
        }
        if !header.is_boundary() {
            return at(Fault::NoBoundary);
        }
        if !is_next_set(header, Some(next_set)) {
            return at(Fault::NextSet);
        }
        check_certificate(certificate, header, &self.set)?;
        self.change(header.height, next_set.clone(), header.next_members);
        Ok(())
    }

    /// What every batch under this set has.
    pub(crate) fn check_header(&self, header: &BatchHeader) -> Result<(), VerifyError> {
        let at = |fault: Fault| Err(fault.at(header.height));
        if header.network != self.network {
            return at(Fault::Network(header.network));
        }
        if header.epoch != self.epoch {
            return at(Fault::Epoch { found: header.epoch, expected: self.epoch });
        }
        if header.members != self.set_hash {
            return at(Fault::Members { found: header.members, expected: self.set_hash });
        }
        Ok(())
    }

    pub(crate) fn change(&mut self, height: Height, set: MemberSet, set_hash: Hash32) {
        let known = Arc::make_mut(&mut self.known);
        known.extend(set.0.iter().map(|member| member.address));
        (self.height, self.set, self.set_hash) = (height, set, set_hash);
        self.changes += 1;
    }
}

/// Checks that `certificate` is of this batch, by a majority of `set`.
pub(crate) fn check_certificate(
    certificate: &Certificate,
    header: &BatchHeader,
    set: &MemberSet,
) -> Result<(), VerifyError> {
    let at = |fault: Fault| fault.at(header.height);
    if certificate.height != header.height {
        return Err(at(Fault::CertificateHeight(certificate.height)));
    }
    let expected = header.hash();
    if certificate.hash != expected {
        return Err(at(Fault::CertificateHash { found: certificate.hash, expected }));
    }
    certificate.verify(set).map_err(|error| at(Fault::Certificate(error)))
}
