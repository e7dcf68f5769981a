//! From the genesis to the member set in force, over the changes of it alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::batch::BatchHeader;
use crate::certificate::Certificate;
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
        })
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
