//! What Lockstep's nodes, clients and readers agree on: identifiers, messages, batches, tasks, the genesis
//! of a network, and how each is encoded, hashed and signed.
//!
//! Two encodings live here and must not be confused. What is *hashed or signed* has the fixed layout of
//! docs/formats.md (big endian, fixed width, domain-prefixed keccak256). What is *stored or sent* is the
//! protobuf of `proto/`, generated into [`proto`].

pub mod batch;
pub mod blob;
pub mod certificate;
pub mod conflict;
pub mod elements;
pub mod epoch;
pub mod export;
pub mod genesis;
pub mod go_json;
pub mod hash;
pub mod ids;
pub mod members;
pub mod merkle;
pub mod message;
pub mod place;
pub mod proof;
pub mod registry;
pub mod signature;
pub mod task;
pub mod task_v1;
pub mod verify;
pub mod w3bstream;

#[allow(missing_docs, clippy::unwrap_used, clippy::large_enum_variant)]
/// Code generated from `proto/lockstep/v1`.
pub mod proto {
    tonic::include_proto!("lockstep.v1");
}

pub use batch::{Batch, BatchHeader, OrderedMessage};
pub use blob::{Blob, BlobError, VerifiedBlob};
pub use certificate::Certificate;
pub use epoch::{EpochMember, EpochReason, EpochRecord, Epochs};
pub use export::{ExportPage, ExportedBatch};
pub use genesis::{ChainSource, Genesis, GenesisError, Member, NetworkParams, ProjectSettings, Retention};
pub use hash::{Hash32, keccak256};
pub use ids::{
    Address, BatchHash, ContentId, Digest, Epoch, Height, Incarnation, MessageId, NetworkId, NodeId, OutputName,
    ProjectId, Sequence, TaskId, TaskNumber, TimeMs,
};
pub use members::{Approval, Change, MemberRole, MemberSet, Proposal, SetMember};
pub use message::{Api, DecodeError, Evidence, Message, TaskEvidence, VerifiedMessage};
pub use place::{Place, Stage};
pub use proof::{Proof, ProofError, Proven, verify_proof, verify_proof_in};
pub use registry::{ChainEvent, ChainUpdate, DeviceEntry, DevicePolicy, Order, OrderKind, RulesOrder, SignedOrder};
pub use signature::{PublicKey, Signature, SignatureError, SigningKey};
pub use task::{Ruled, Task};
