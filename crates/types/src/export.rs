//! A history on its way to whoever checks it: whole batches, or batches without the payloads that are not shown.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message as _;

use crate::batch::{Batch, BatchHeader, OrderedMessage};
use crate::certificate::Certificate;
use crate::elements::{self, Bound};
use crate::hash::{Hash32, keccak256};
use crate::ids::{Address, Epoch, Height, MessageId, NetworkId, ProjectId, Sequence};
use crate::members::MemberSet;
use crate::message::{DecodeError, Message, leaf_of_hash, message_leaf};
use crate::proto;
use crate::task::Task;
use crate::verify::{Fault, MessageOutline, Outline, PackKey, VerifyError};

/// Version of a page.
pub const EXPORT_VERSION: u32 = 1;

/// What is repeated in a page: batches, their messages, tasks and members, signed values, certificates, signatures.
const REPEATED: [&[u32]; 7] = [&[8], &[8, 2], &[8, 3], &[8, 4, 1], &[8, 2, 1, 2, 11, 2], &[9], &[9, 4]];
/// Outputs of tasks: a few letters each may be true.
const OUTPUTS: &[u32] = &[8, 3, 7, 5];
const OUTPUT_BYTES_MIN: usize = 3;
/// Each of those has at least this many bytes in a true page, counting what it is part of: an id, an address or a
/// signature. A page with more of them is refused before it is read, because they take hundreds in memory.
const ELEMENT_BYTES_MIN: usize = 16;

/// A message whose payload is not shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WithheldMessage {
    /// Its name.
    pub id: MessageId,
    /// Its project, version and device.
    pub key: PackKey,
    /// keccak256 of its payload.
    pub data_hash: Hash32,
}

/// A message of an [`ExportedBatch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportedMessage {
    /// With payload and evidence.
    Whole(OrderedMessage),
    /// Without.
    Withheld(WithheldMessage),
}

/// A batch, with or without payloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedBatch {
    /// What its hash commits to.
    pub header: BatchHeader,
    /// Messages, in order.
    pub messages: Vec<ExportedMessage>,
    /// Tasks that it closed.
    pub tasks: Vec<Task>,
    /// The set that holds after it, where that is another.
    pub next_set: Option<MemberSet>,
}

/// Where the messages of a batch came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origins {
    height: Height,
    /// Messages whose evidence is not shown.
    pub withheld: u64,
    /// Who gave its word for a message, and for which one first.
    words: BTreeMap<Address, (Sequence, MessageId)>,
}

impl Origins {
    /// Checks that only members gave their word. `known` are the addresses of all members up to this batch: see
    /// [`crate::verify::ChainVerifier::known`], which is asked before it takes the batch.
    pub fn check(&self, known: &BTreeSet<Address>) -> Result<(), VerifyError> {
        match self.words.iter().find(|(address, _)| !known.contains(address)) {
            Some((_, (sequence, id))) => Err(Fault::Evidence { sequence: *sequence, id: *id }.at(self.height)),
            None => Ok(()),
        }
    }
}

/// Batches from a height on, without a gap, with the certificates of their heights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportPage {
    /// The network.
    pub network: NetworkId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Oldest height that the node keeps.
    pub oldest_height: Height,
    /// First message of that batch.
    pub oldest_sequence: Sequence,
    /// The node's newest batch.
    pub head: Height,
    /// The newest one that is final there.
    pub final_height: Height,
    /// Batches.
    pub batches: Vec<ExportedBatch>,
    /// Certificates, by height.
    pub certificates: Vec<Certificate>,
}

impl From<Batch> for ExportedBatch {
    fn from(batch: Batch) -> Self {
        Self::without(batch, |_| true)
    }
}

fn key_of(message: &Message) -> PackKey {
    PackKey { project_id: message.project_id, project_version: message.project_version.clone(), device: message.device }
}

impl ExportedBatch {
    /// A batch without the payloads and evidence of projects that `shown` does not name.
    pub fn without(batch: Batch, shown: impl Fn(ProjectId) -> bool) -> Self {
        let export = |ordered: OrderedMessage| {
            let message = &ordered.message;
            if shown(message.project_id) {
                return ExportedMessage::Whole(ordered);
            }
            let data_hash = keccak256(&[&message.data]);
            ExportedMessage::Withheld(WithheldMessage { id: ordered.id, key: key_of(message), data_hash })
        };
        Self {
            header: batch.header,
            messages: batch.messages.into_iter().map(export).collect(),
            tasks: batch.tasks,
            next_set: batch.next_set,
        }
    }

    /// Checks what needs this batch only: see [`Outline::of`].
    pub fn outline(&self) -> Result<Outline, VerifyError> {
        Outline::check_counts(&self.header, self.messages.len(), self.tasks.len())?;
        let outline = |(sequence, message): (Sequence, &ExportedMessage)| match message {
            ExportedMessage::Whole(OrderedMessage { id, message }) => {
                let outline = MessageOutline { id: *id, content: Some(message.content_id()), key: key_of(message) };
                (message_leaf(sequence, id, message), outline)
            }
            ExportedMessage::Withheld(WithheldMessage { id, key, data_hash }) => {
                let outline = MessageOutline { id: *id, content: None, key: key.clone() };
                (leaf_of_hash(sequence, id, key.project_id, &key.device, data_hash), outline)
            }
        };
        let numbered = (self.header.first_sequence.0..).map(Sequence).zip(&self.messages);
        let (leaves, messages) = numbered.map(outline).unzip();
        Outline::of_parts(self.header.clone(), leaves, messages, self.tasks.clone(), self.next_set.clone())
    }

    /// Checks the signatures of the messages' evidence, where it is shown: nearly all the work of a check. Whether
    /// those who gave their word were members is left to [`Origins::check`].
    pub fn origins(&self) -> Result<Origins, VerifyError> {
        let mut origins = Origins { height: self.header.height, withheld: 0, words: BTreeMap::new() };
        for (place, message) in (0_u64..).zip(&self.messages) {
            let ExportedMessage::Whole(OrderedMessage { id, message }) = message else {
                origins.withheld += 1;
                continue;
            };
            let sequence = Sequence(self.header.first_sequence.0.saturating_add(place));
            if !message.evidence_holds(&message.content_id(), |_| true) {
                return Err(Fault::Evidence { sequence, id: *id }.at(self.header.height));
            }
            if let Some(node) = message.ingress() {
                origins.words.entry(node).or_insert((sequence, *id));
            }
        }
        Ok(origins)
    }

    fn to_proto(&self) -> proto::ExportedBatch {
        use proto::exported_message::Kind;
        let message = |message: &ExportedMessage| {
            let kind = match message {
                ExportedMessage::Whole(ordered) => Kind::Whole(ordered.to_proto()),
                ExportedMessage::Withheld(withheld) => Kind::Withheld(proto::WithheldMessage {
                    id: Bytes::copy_from_slice(&withheld.id.0),
                    project_id: withheld.key.project_id.0,
                    project_version: withheld.key.project_version.clone(),
                    device: Bytes::copy_from_slice(&withheld.key.device.0),
                    data_hash: Bytes::copy_from_slice(&withheld.data_hash),
                }),
            };
            proto::ExportedMessage { kind: Some(kind) }
        };
        proto::ExportedBatch {
            header: Some(self.header.to_proto()),
            messages: self.messages.iter().map(message).collect(),
            tasks: self.tasks.iter().map(Task::to_proto).collect(),
            next_set: self.next_set.as_ref().map(MemberSet::to_proto),
        }
    }

    fn from_proto(batch: proto::ExportedBatch) -> Result<Self, DecodeError> {
        use proto::exported_message::Kind;
        let bad = |reason: &str| DecodeError::malformed("exported batch", reason);
        let withheld = |m: proto::WithheldMessage| -> Result<WithheldMessage, DecodeError> {
            Ok(WithheldMessage {
                id: MessageId::try_from(&m.id[..]).map_err(|e| bad(&e.to_string()))?,
                key: PackKey {
                    project_id: ProjectId(m.project_id),
                    project_version: m.project_version,
                    device: Address::try_from(&m.device[..]).map_err(|e| bad(&e.to_string()))?,
                },
                data_hash: m.data_hash[..].try_into().map_err(|_| bad("a hash is not 32 bytes"))?,
            })
        };
        let message = |m: proto::ExportedMessage| match m.kind {
            Some(Kind::Whole(ordered)) => Ok(ExportedMessage::Whole(OrderedMessage::from_proto(ordered)?)),
            Some(Kind::Withheld(m)) => Ok(ExportedMessage::Withheld(withheld(m)?)),
            None => Err(bad("a message is missing")),
        };
        Ok(Self {
            header: BatchHeader::from_proto(batch.header.ok_or_else(|| bad("the header is missing"))?)?,
            messages: batch.messages.into_iter().map(message).collect::<Result<_, _>>()?,
            tasks: batch.tasks.into_iter().map(Task::from_proto).collect::<Result<_, _>>()?,
            next_set: batch.next_set.map(MemberSet::from_proto).transpose()?,
        })
    }
}

impl ExportPage {
    /// The page as it is sent.
    pub fn encode(&self) -> Vec<u8> {
        self.to_proto().encode_to_vec()
    }

    /// The same as a message of the protocol.
    pub fn to_proto(&self) -> proto::ExportPage {
        proto::ExportPage {
            version: EXPORT_VERSION,
            network: Bytes::copy_from_slice(&self.network.0),
            epoch: self.epoch.0,
            oldest_height: self.oldest_height.0,
            oldest_sequence: self.oldest_sequence.0,
            head_height: self.head.0,
            final_height: self.final_height.0,
            batches: self.batches.iter().map(ExportedBatch::to_proto).collect(),
            certificates: self.certificates.iter().map(Certificate::to_proto).collect(),
        }
    }

    /// Reads a page; payloads share `page`'s buffer.
    pub fn decode(page: Bytes) -> Result<Self, DecodeError> {
        let count_max = page.len() / ELEMENT_BYTES_MIN;
        let outputs = Bound { path: OUTPUTS, count_max: page.len() / OUTPUT_BYTES_MIN };
        elements::check("export", &page, &REPEATED.map(|path| Bound { path, count_max }))?;
        elements::check("export", &page, &[outputs])?;
        let page = proto::ExportPage::decode(page).map_err(|e| DecodeError::malformed("export", e))?;
        if page.version > EXPORT_VERSION {
            return Err(DecodeError::Newer { what: "export", found: page.version, known: EXPORT_VERSION });
        }
        Ok(Self {
            network: NetworkId::try_from(&page.network[..]).map_err(|e| DecodeError::malformed("export", e))?,
            epoch: Epoch(page.epoch),
            oldest_height: Height(page.oldest_height),
            oldest_sequence: Sequence(page.oldest_sequence),
            head: Height(page.head_height),
            final_height: Height(page.final_height),
            batches: page.batches.into_iter().map(ExportedBatch::from_proto).collect::<Result<_, _>>()?,
            certificates: page.certificates.into_iter().map(Certificate::from_proto).collect::<Result<_, _>>()?,
        })
    }
}
