//! A blob's bytes.

use bytes::{Buf as _, Bytes};
use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint, encoded_len_varint};

use super::{Anchor, Blob, BlobMessage, BlobTask};
use crate::batch::BatchHeader;
use crate::certificate::Certificate;
use crate::ids::{Address, Digest, Height, MessageId, NodeId, ProjectId, Sequence, TaskId, TaskNumber};
use crate::members::MemberSet;
use crate::message::{DecodeError, Message};
use crate::proof::{Boundary, PROOF_BOUNDARIES_MAX, PROOF_HEADERS_MAX};
use crate::proto;
use crate::signature::Signature;
use crate::task::Ruled;

/// What every blob begins with, so that it can be told from whatever else is in a store.
pub const BLOB_MAGIC: &[u8] = b"lockstep/blob\n";
/// Version of the encoding.
pub const BLOB_VERSION: u32 = 1;
/// Most bytes of a blob.
pub const BLOB_BYTES_MAX: usize = 16 << 20;
/// Most tasks, messages, siblings, members and signatures in a blob, together: they take more memory than bytes.
pub const BLOB_ELEMENTS_MAX: usize = 1 << 19;
/// Bytes of a blob's own numbers and lengths, and of its network, rounded up.
const FRAME_BYTES: usize = 160;

/// Whether these bytes are, or claim to be, a blob.
pub fn is_blob(bytes: &[u8]) -> bool {
    bytes.starts_with(BLOB_MAGIC)
}

fn bad(reason: impl ToString) -> DecodeError {
    DecodeError::malformed("blob", reason)
}

fn copy(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// Bytes of a field with a number below 16 that holds a message.
fn field_bytes(message: &impl prost::Message) -> usize {
    let len = message.encoded_len();
    1 + encoded_len_varint(len as u64) + len
}

fn boundary_to_proto(boundary: &Boundary) -> proto::BlobBoundary {
    proto::BlobBoundary {
        header: Some(boundary.header.to_proto()),
        members: Some(boundary.members.to_proto()),
        certificate: Some(Certificate::from(&boundary.certificate).to_proto()),
    }
}

fn boundary_from_proto(boundary: proto::BlobBoundary) -> Result<Boundary, DecodeError> {
    let missing = || bad("a change of the members is incomplete");
    let certificate = Certificate::from_proto(boundary.certificate.ok_or_else(missing)?)?;
    Ok(Boundary {
        header: BatchHeader::from_proto(boundary.header.ok_or_else(missing)?)?,
        members: MemberSet::from_proto(boundary.members.ok_or_else(missing)?)?,
        certificate: (&certificate).into(),
    })
}

impl Anchor {
    /// Bytes of a blob beside its tasks: at least as many as it has. For [`super::cut`].
    pub fn frame_bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|header| field_bytes(&header.to_proto())).sum();
        let boundaries: usize = self.boundaries.iter().map(|boundary| field_bytes(&boundary_to_proto(boundary))).sum();
        FRAME_BYTES
            + field_bytes(&self.header.to_proto())
            + field_bytes(&self.certificate.to_proto())
            + field_bytes(&self.members.to_proto())
            + headers
            + boundaries
    }
}

impl BlobMessage {
    fn to_proto(&self) -> proto::BlobMessage {
        proto::BlobMessage {
            sequence: self.sequence.0,
            id: copy(&self.id.0),
            count: self.count,
            since: self.since.0,
            message: Some(Message { via: NodeId(0), ..self.message.clone() }.to_proto()),
        }
    }

    fn from_proto(m: proto::BlobMessage) -> Result<Self, DecodeError> {
        Ok(Self {
            sequence: Sequence(m.sequence),
            id: MessageId::try_from(&m.id[..]).map_err(bad)?,
            count: m.count,
            since: Height(m.since),
            message: Message::from_proto(m.message.ok_or_else(|| bad("a message is missing"))?)?,
        })
    }
}

impl BlobTask {
    fn to_proto(&self) -> proto::BlobTask {
        proto::BlobTask {
            number: self.number.0,
            id: copy(&self.id.0),
            project_id: self.project_id.0,
            project_version: self.project_version.clone(),
            device: copy(&self.device.0),
            path: self.path.iter().map(|sibling| copy(&sibling.0)).collect(),
            signature: copy(&self.signature.0),
            messages: self.messages.iter().map(BlobMessage::to_proto).collect(),
            ruled: self.ruled.as_ref().map(|ruled| ruled.to_proto()),
        }
    }

    fn from_proto(t: proto::BlobTask) -> Result<Self, DecodeError> {
        let sibling = |bytes: &Bytes| Ok(Digest(bytes[..].try_into().map_err(|_| bad("a sibling is not 32 bytes"))?));
        Ok(Self {
            number: TaskNumber(t.number),
            id: TaskId::try_from(&t.id[..]).map_err(bad)?,
            project_id: ProjectId(t.project_id),
            project_version: t.project_version,
            device: Address::try_from(&t.device[..]).map_err(bad)?,
            path: t.path.iter().map(sibling).collect::<Result<_, DecodeError>>()?,
            signature: Signature::try_from(&t.signature[..]).map_err(|_| bad("a signature is not 65 bytes"))?,
            messages: t.messages.into_iter().map(BlobMessage::from_proto).collect::<Result<_, _>>()?,
            ruled: t.ruled.map(|ruled| Ruled::from_proto(ruled).map(Box::new)).transpose()?,
        })
    }

    /// Bytes that it takes in a blob.
    pub fn encoded_bytes(&self) -> usize {
        field_bytes(&self.to_proto())
    }
}

impl Blob {
    fn to_proto(&self) -> proto::Blob {
        let Anchor { header, headers, certificate, members, boundaries } = &self.anchor;
        proto::Blob {
            version: BLOB_VERSION,
            network: copy(&header.network.0),
            epoch: header.epoch.0,
            header: Some(header.to_proto()),
            headers: headers.iter().map(BatchHeader::to_proto).collect(),
            certificate: Some(certificate.to_proto()),
            members: Some(members.to_proto()),
            boundaries: boundaries.iter().map(boundary_to_proto).collect(),
            part: self.part,
            parts: self.parts,
            tasks: self.tasks.iter().map(BlobTask::to_proto).collect(),
        }
    }

    fn from_proto(blob: proto::Blob) -> Result<Self, DecodeError> {
        let missing = || bad("header, certificate or members are missing");
        let header = BatchHeader::from_proto(blob.header.ok_or_else(missing)?)?;
        if blob.network[..] != header.network.0 || blob.epoch != header.epoch.0 {
            return Err(bad("its network or epoch is not that of its header"));
        }
        let anchor = Anchor {
            headers: blob.headers.into_iter().map(BatchHeader::from_proto).collect::<Result<_, _>>()?,
            certificate: Certificate::from_proto(blob.certificate.ok_or_else(missing)?)?,
            members: MemberSet::from_proto(blob.members.ok_or_else(missing)?)?,
            boundaries: blob.boundaries.into_iter().map(boundary_from_proto).collect::<Result<_, _>>()?,
            header,
        };
        let tasks = blob.tasks.into_iter().map(BlobTask::from_proto).collect::<Result<_, _>>()?;
        Ok(Self { anchor, part: blob.part, parts: blob.parts, tasks })
    }

    /// The blob's bytes.
    pub fn encode(&self) -> Bytes {
        let blob = self.to_proto();
        let mut bytes = Vec::with_capacity(BLOB_MAGIC.len() + blob.encoded_len());
        bytes.extend_from_slice(BLOB_MAGIC);
        bytes.append(&mut blob.encode_to_vec());
        bytes.into()
    }

    /// Reads a blob; payloads share the buffer. Only its one canonical form is read. Nothing is checked yet: see
    /// [`Blob::verify`].
    ///
    /// # Errors
    /// If the bytes are none, are longer than any blob, or are of a newer program.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        if bytes.len() > BLOB_BYTES_MAX {
            return Err(bad(format!("it has {} bytes, at most {BLOB_BYTES_MAX} are read", bytes.len())));
        }
        let body = bytes.strip_prefix(BLOB_MAGIC).ok_or_else(|| bad("it does not begin as blobs do"))?;
        check_counts(body)?;
        let read = proto::Blob::decode(bytes.slice(BLOB_MAGIC.len()..)).map_err(bad)?;
        if read.version > BLOB_VERSION {
            return Err(DecodeError::Newer { what: "blob", found: read.version, known: BLOB_VERSION });
        }
        let blob = Self::from_proto(read)?;
        if blob.encode() != bytes {
            return Err(bad("it is not in the canonical form"));
        }
        Ok(blob)
    }
}

/// What is counted before anything is made of the bytes.
struct Counts {
    headers: usize,
    boundaries: usize,
    elements: usize,
}

/// Messages of the encoding that have others in them.
#[derive(Clone, Copy)]
enum Place {
    Blob,
    Boundary,
    Task,
    /// Certificate, member set or what rules made of a task: what is in it counts, and has nothing in it that would.
    Flat,
}

/// Counts what is repeated, so that a few bytes cannot ask for much memory.
fn check_counts(body: &[u8]) -> Result<(), DecodeError> {
    let mut counts = Counts { headers: 0, boundaries: 0, elements: 0 };
    count(body, Place::Blob, &mut counts)
}

fn count(mut body: &[u8], place: Place, counts: &mut Counts) -> Result<(), DecodeError> {
    while body.has_remaining() {
        let (field, wire) = decode_key(&mut body).map_err(bad)?;
        let inner = match wire {
            WireType::Varint => {
                decode_varint(&mut body).map_err(bad)?;
                continue;
            }
            WireType::LengthDelimited => {
                let len = decode_varint(&mut body).map_err(bad)?;
                let inner = usize::try_from(len).ok().and_then(|len| body.split_at_checked(len));
                let (inner, rest) = inner.ok_or_else(|| bad("a field is longer than what there is"))?;
                body = rest;
                inner
            }
            _ => return Err(bad("it has a field of a type that blobs do not have")),
        };
        counts.elements += 1;
        let within = match (place, field) {
            (Place::Blob, 5) => {
                counts.headers += 1;
                None
            }
            (Place::Blob, 8) => {
                counts.boundaries += 1;
                Some(Place::Boundary)
            }
            (Place::Blob, 6 | 7) | (Place::Boundary, 2 | 3) | (Place::Task, 9) => Some(Place::Flat),
            (Place::Blob, 11) => Some(Place::Task),
            _ => None,
        };
        let too_many = counts.headers > PROOF_HEADERS_MAX
            || counts.boundaries > PROOF_BOUNDARIES_MAX
            || counts.elements > BLOB_ELEMENTS_MAX;
        if too_many {
            return Err(bad("it has more parts than any blob"));
        }
        if let Some(within) = within {
            count(inner, within, counts)?;
        }
    }
    Ok(())
}
