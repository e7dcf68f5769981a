//! What goes from batch to batch.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::batch::{Batch, BatchHeader};
use crate::certificate::Certificate;
use crate::epoch::{EpochRecord, Epochs};
use crate::genesis::{Genesis, GenesisError};
use crate::ids::{Address, BatchHash, Height, MessageId, Sequence, TaskNumber};
use crate::members::MemberSet;
use crate::task::GROUP_MESSAGES_MAX;
use crate::verify::checkpoint::{Checkpoint, check_certificate};
use crate::verify::error::{Fault, VerifyError};
use crate::verify::identity::{IdCheck, Identities};
use crate::verify::outline::{Outline, PackKey};
use crate::verify::packing::Packing;

/// What was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Batches.
    pub batches: u64,
    /// Messages.
    pub messages: u64,
    /// Tasks.
    pub tasks: u64,
    /// Certificates.
    pub certificates: u64,
    /// Messages whose id could not be derived, because its content may have been ordered before what is kept, or is
    /// withheld.
    pub ids_unchecked: u64,
    /// Tasks whose id could not be derived, because they reach back to messages that were forgotten.
    pub tasks_unchecked: u64,
}

/// The newest batch that was checked.
#[derive(Debug, Clone)]
struct Tip {
    header: BatchHeader,
    hash: BatchHash,
    next_sequence: Sequence,
    next_task: TaskNumber,
    /// The set whose voters certify it.
    certifiers: MemberSet,
}

/// Checks a chain of batches, and which of them are final. After an error it is of no more use.
#[derive(Debug)]
pub struct ChainVerifier {
    members: Checkpoint,
    rules_known: u32,
    first_task: TaskNumber,
    open_groups_max: u64,
    /// Height that the history at hand begins with.
    start: Height,
    first_task_taken: Option<TaskNumber>,
    /// Its first message.
    first_kept: Sequence,
    tip: Option<Tip>,
    final_height: Height,
    /// The newest change of the members, while it is not certified.
    boundary: Option<Height>,
    packing: Packing,
    identities: Identities,
    counts: Counts,
}

impl ChainVerifier {
    /// For a history that is whole. `rules_known` are the newest rules of `apply` that the caller knows.
    pub fn from_genesis(genesis: &Genesis, rules_known: u32) -> Result<Self, GenesisError> {
        Ok(Self::new(genesis, rules_known, Checkpoint::genesis(genesis)?, Height(1), Sequence(1)))
    }

    /// For a history that begins with the batch at `start`, whose first message is `first_kept`. `members` has
    /// followed all changes below it. That batch's own parent is not known: it counts once a certificate at or above
    /// it has made it final.
    pub fn from_horizon(
        genesis: &Genesis,
        rules_known: u32,
        members: Checkpoint,
        start: Height,
        first_kept: Sequence,
    ) -> Self {
        Self::new(genesis, rules_known, members, start, first_kept)
    }

    fn new(genesis: &Genesis, rules_known: u32, members: Checkpoint, start: Height, first_kept: Sequence) -> Self {
        Self {
            members,
            rules_known,
            first_task: genesis.params.first_task_number,
            open_groups_max: genesis.params.open_groups_max,
            start,
            first_task_taken: None,
            tip: None,
            final_height: Height(0),
            boundary: None,
            first_kept,
            packing: Packing::new(if start.0 <= 1 { Sequence(0) } else { first_kept }),
            identities: Identities::new(start),
            counts: Counts::default(),
        }
    }

    /// With epochs after the first, which nothing but these records vouches for: see [`ChainVerifier::epochs`].
    pub fn with_epochs(mut self, epochs: &Epochs) -> Result<Self, GenesisError> {
        self.members = self.members.with_epochs(epochs)?;
        Ok(self)
    }

    /// The epochs that began in what was checked so far: where each did, and why, is trusted from its record only.
    pub fn epochs(&self) -> impl Iterator<Item = &EpochRecord> {
        self.members.begun()
    }

    /// Addresses whose word counts in the next batch: of all who are or were members.
    pub fn known(&self) -> Arc<BTreeSet<Address>> {
        self.members.known.clone()
    }

    /// Takes the next batch, evidence not included.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn batch(&mut self, batch: &Batch) -> Result<(), VerifyError> {
        self.advance(&Outline::of(batch)?)
    }

    /// Takes the next batch by its outline.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn advance(&mut self, outline: &Outline) -> Result<(), VerifyError> {
        let header = &outline.header;
        self.check_place(header)?;
        if self.members.enter(header)? {
            // The old members can certify nothing any more.
            self.boundary = None;
        }
        self.members.check_header(header)?;
        self.check_rules(header)?;
        self.take_messages(outline)?;
        self.take_tasks(outline)?;
        let certifiers = self.members.set.clone();
        if let Some(set) = &outline.next_set {
            if let Some(before) = self.boundary {
                return Err(Fault::BoundaryNotCertified(before).at(header.height));
            }
            self.boundary = Some(header.height);
            self.members.change(header.height, set.clone(), header.next_members);
        }
        self.tip = Some(Tip {
            hash: outline.hash,
            // Outlines do not overflow.
            next_sequence: Sequence(header.first_sequence.0 + header.message_count),
            next_task: TaskNumber(header.first_task_number.0 + header.task_count),
            header: header.clone(),
            certifiers,
        });
        self.first_task_taken = self.first_task_taken.or(Some(header.first_task_number));
        self.counts.batches += 1;
        Ok(())
    }

    fn check_place(&self, header: &BatchHeader) -> Result<(), VerifyError> {
        let at = |fault: Fault| Err(fault.at(header.height));
        let expected = self.tip.as_ref().map_or(self.start, |tip| Height(tip.header.height.0.saturating_add(1)));
        if header.height != expected {
            return at(Fault::Height(expected));
        }
        let (parent, time, sequence, task) = match &self.tip {
            Some(tip) => (tip.hash, tip.header.time_ms, tip.next_sequence, tip.next_task),
            None if self.start.0 <= 1 => (BatchHash::ZERO, header.time_ms, self.first_kept, self.first_task),
            None => (header.parent, header.time_ms, self.first_kept, header.first_task_number),
        };
        if header.parent != parent {
            return at(Fault::Parent { found: header.parent, expected: parent });
        }
        if header.time_ms < time {
            return at(Fault::Time { found: header.time_ms, parent: time });
        }
        if header.first_sequence != sequence {
            return at(Fault::FirstSequence { found: header.first_sequence, expected: sequence });
        }
        if header.first_task_number != task {
            return at(Fault::FirstTask { found: header.first_task_number, expected: task });
        }
        Ok(())
    }

    fn check_rules(&self, header: &BatchHeader) -> Result<(), VerifyError> {
        let (found, known) = (header.rules_version, self.rules_known);
        let before = self.tip.as_ref().map_or(1, |tip| tip.header.rules_version);
        if found < before {
            return Err(Fault::RulesFell { found, before }.at(header.height));
        }
        if found > known {
            return Err(Fault::RulesUnknown { found, known }.at(header.height));
        }
        Ok(())
    }

    fn take_messages(&mut self, outline: &Outline) -> Result<(), VerifyError> {
        let header = &outline.header;
        for (sequence, message) in (header.first_sequence.0..).map(Sequence).zip(&outline.messages) {
            let id = message.id;
            let checked = message.content.map_or(IdCheck::Unknown, |content| self.identities.check(&content, &id));
            match checked {
                IdCheck::Good => {}
                IdCheck::Unknown => self.counts.ids_unchecked += 1,
                IdCheck::Wrong => return Err(Fault::MessageId { sequence, id }.at(header.height)),
            }
            self.packing.add(&message.key, sequence, id);
        }
        self.counts.messages += header.message_count;
        Ok(())
    }

    fn take_tasks(&mut self, outline: &Outline) -> Result<(), VerifyError> {
        let height = outline.header.height;
        for task in &outline.tasks {
            match self.packing.close(&self.members.network, task) {
                Ok(true) => {}
                Ok(false) => self.counts.tasks_unchecked += 1,
                Err(fault) => return Err(Fault::Task { number: task.number, fault }.at(height)),
            }
        }
        // What is in one group of a project's rules waits under the keys of all its devices.
        let (found, allowed) = (self.packing.open(), self.open_groups_max.saturating_mul(GROUP_MESSAGES_MAX));
        if found as u64 > allowed {
            return Err(Fault::OpenGroups { found, allowed }.at(height));
        }
        self.counts.tasks += outline.header.task_count;
        Ok(())
    }

    /// Takes the certificate of the batch that was taken last.
    ///
    /// # Errors
    /// If it is of another batch, not by a majority of the set in force there, or past a change of the members that
    /// was not certified.
    pub fn certificate(&mut self, certificate: &Certificate) -> Result<(), VerifyError> {
        let Some(tip) = &self.tip else {
            return Err(Fault::CertificateHeight(certificate.height).at(Height(0)));
        };
        let height = tip.header.height;
        if let Some(boundary) = self.boundary.filter(|boundary| height > *boundary) {
            return Err(Fault::BoundaryNotCertified(boundary).at(height));
        }
        check_certificate(certificate, &tip.header, &tip.certifiers)?;
        self.final_height = height;
        self.boundary = None;
        self.counts.certificates += 1;
        Ok(())
    }

    /// Height of the newest batch taken; 0 before the first.
    pub fn height(&self) -> Height {
        self.tip.as_ref().map_or(Height(0), |tip| tip.header.height)
    }

    /// Its hash; zeros before the first.
    pub fn hash(&self) -> BatchHash {
        self.tip.as_ref().map_or(BatchHash::ZERO, |tip| tip.hash)
    }

    /// Its header.
    pub fn header(&self) -> Option<&BatchHeader> {
        self.tip.as_ref().map(|tip| &tip.header)
    }

    /// Sequence of the next message.
    pub fn next_sequence(&self) -> Sequence {
        self.tip.as_ref().map_or(self.first_kept, |tip| tip.next_sequence)
    }

    /// Number of the next task.
    pub fn next_task(&self) -> TaskNumber {
        self.tip.as_ref().map_or(self.first_task, |tip| tip.next_task)
    }

    /// Height of the newest certificate taken: that batch and all before it are final. 0 before the first.
    pub fn final_height(&self) -> Height {
        self.final_height
    }

    /// The newest change of the members, while it is not certified.
    pub fn boundary(&self) -> Option<Height> {
        self.boundary
    }

    /// First task number of the first batch taken.
    pub fn first_task(&self) -> Option<TaskNumber> {
        self.first_task_taken
    }

    /// How often the members changed since genesis.
    pub fn changes(&self) -> u64 {
        self.members.changes
    }

    /// The set that holds after the newest batch.
    pub fn set(&self) -> &MemberSet {
        &self.members.set
    }

    /// What was checked so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Groups whose messages are in no task yet.
    pub fn open_groups(&self) -> impl Iterator<Item = (&PackKey, &VecDeque<(Sequence, MessageId)>)> {
        self.packing.groups()
    }
}
