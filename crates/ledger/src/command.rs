//! The payload of a log entry.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_types::place::PLACES_MAX;
use lockstep_types::{
    Address, Approval, Certificate, ChainUpdate, DecodeError, Height, Message, NodeId, OutputName, Place, ProjectId,
    Sequence, Signature, SignedOrder, TaskNumber, TimeMs, VerifiedMessage, proto,
};
use prost::Message as _;

use crate::groups::GroupKey;
use crate::outputs::OutputState;

/// Version of the encoding.
pub const COMMAND_VERSION: u32 = 1;

/// What a log entry asks of `apply`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Order these messages, close these groups.
    Batch(ProposedBatch),
    /// The newest batches are final.
    Certificate(Certificate),
    /// A voter approves a change of membership.
    Approval {
        /// The leader's clock.
        time_ms: TimeMs,
        /// The approval.
        approval: Box<Approval>,
    },
    /// Batches below this height are forgotten.
    Horizon(Height),
    /// Other rules of `apply` hold from the next entry on.
    Rules(u32),
    /// A project's owner orders something.
    Order {
        /// The leader's clock.
        time_ms: TimeMs,
        /// The order.
        order: Box<SignedOrder>,
    },
    /// Blocks of the chain were read.
    Chain {
        /// The leader's clock.
        time_ms: TimeMs,
        /// What is in them.
        update: Box<ChainUpdate>,
        /// Of voters that have read the same.
        signatures: BTreeMap<NodeId, Signature>,
    },
    /// An operator holds an output of the network up, removes it, or lets it go on.
    Output {
        /// The output.
        output: OutputName,
        /// How it is to be from now on.
        state: OutputState,
    },
    /// An output has everything up to this task.
    OutputProgress {
        /// The output.
        output: OutputName,
        /// Number of the last task in it.
        task_number: TaskNumber,
        /// Where tasks are, by ascending number, at most [`PLACES_MAX`].
        places: Vec<Place>,
    },
}

/// A leader's proposal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProposedBatch {
    /// The leader's clock.
    pub time_ms: TimeMs,
    /// Messages in the order of their arrival in the leader's pool.
    pub messages: Vec<Message>,
    /// Groups that have become too old.
    pub closings: Vec<GroupClosing>,
}

/// Asks to close a group, if it is still the one that began with `first_sequence`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupClosing {
    /// Which group.
    pub key: GroupKey,
    /// Sequence of its first message.
    pub first_sequence: Sequence,
}

/// Encodes a proposal straight from the pool's messages; each payload is copied once, into the entry.
pub fn encode_batch(time_ms: TimeMs, messages: &[Arc<VerifiedMessage>], closings: &[GroupClosing]) -> Bytes {
    encode(proto::command::Kind::Batch(proto::ProposedBatch {
        time_ms: time_ms.0,
        messages: messages.iter().map(|m| m.message().to_proto()).collect(),
        closings: closings
            .iter()
            .map(|c| proto::GroupClose {
                project_id: c.key.project_id.0,
                project_version: c.key.project_version.clone(),
                device: Bytes::copy_from_slice(&c.key.device.0),
                first_sequence: c.first_sequence.0,
            })
            .collect(),
    }))
}

fn encode(kind: proto::command::Kind) -> Bytes {
    proto::Command { version: COMMAND_VERSION, kind: Some(kind) }.encode_to_vec().into()
}

impl Command {
    /// Encodes a progress report.
    ///
    /// # Errors
    /// If it breaks a limit.
    pub fn progress(report: proto::OutputProgress) -> Result<Bytes, DecodeError> {
        decode_progress(report.clone())?;
        Ok(encode(proto::command::Kind::OutputProgress(report)))
    }

    /// Encodes how an output of the network is to be.
    pub fn encode_output(output: &OutputName, state: OutputState) -> Bytes {
        encode(proto::command::Kind::OutputChange(Self::output_to_proto(output, state)))
    }

    /// How an output of the network is to be, for a member that leads.
    pub fn output_to_proto(output: &OutputName, state: OutputState) -> proto::OutputChange {
        proto::OutputChange { output: output.as_str().to_owned(), state: state.number().into() }
    }

    /// Reads how an output of the network is to be.
    pub fn output_from_proto(change: &proto::OutputChange) -> Result<(OutputName, OutputState), DecodeError> {
        let output = change.output.parse().map_err(|_| DecodeError::malformed("log entry", "bad output name"))?;
        Ok((output, OutputState::from_number(change.state)?))
    }

    /// Encodes a certificate.
    pub fn encode_certificate(certificate: &Certificate) -> Bytes {
        encode(proto::command::Kind::Certificate(certificate.to_proto()))
    }

    /// Encodes an approval.
    pub fn encode_approval(time_ms: TimeMs, approval: &Approval) -> Bytes {
        let approval = Some(approval.to_proto());
        encode(proto::command::Kind::Approval(proto::TimedApproval { time_ms: time_ms.0, approval }))
    }

    /// Encodes a horizon.
    pub fn encode_horizon(oldest: Height) -> Bytes {
        encode(proto::command::Kind::Horizon(proto::Horizon { oldest_height: oldest.0 }))
    }

    /// Encodes a change of rules.
    pub fn encode_rules(version: u32) -> Bytes {
        encode(proto::command::Kind::Rules(proto::Rules { version }))
    }

    /// Encodes an order.
    pub fn encode_order(time_ms: TimeMs, order: &SignedOrder) -> Bytes {
        let order = Some(order.to_proto());
        encode(proto::command::Kind::Order(proto::TimedOrder { time_ms: time_ms.0, order }))
    }

    /// Encodes an update from a chain.
    pub fn encode_chain(time_ms: TimeMs, update: &ChainUpdate, signatures: &BTreeMap<NodeId, Signature>) -> Bytes {
        let signature = |(node, signature): (&NodeId, &Signature)| proto::VoterSignature {
            node: node.0,
            signature: Bytes::copy_from_slice(&signature.0),
        };
        encode(proto::command::Kind::Chain(proto::TimedChainUpdate {
            time_ms: time_ms.0,
            update: Some(update.to_proto()),
            signatures: signatures.iter().map(signature).collect(),
        }))
    }

    /// Reads an entry's payload; messages share `bytes`' buffer.
    ///
    /// # Errors
    /// [`DecodeError::Newer`] if this program is too old to apply it: the node must stop. Any other error is the
    /// same on every node, and the entry has no effect.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let bad = |reason: &str| DecodeError::malformed("log entry", reason);
        let command = proto::Command::decode(bytes).map_err(|e| bad(&e.to_string()))?;
        if command.version > COMMAND_VERSION {
            return Err(DecodeError::Newer { what: "log entry", found: command.version, known: COMMAND_VERSION });
        }
        let newer = DecodeError::Newer { what: "log entry", found: COMMAND_VERSION + 1, known: COMMAND_VERSION };
        // A kind that this program does not know: applying nothing would make this node differ from its peers.
        match command.kind.ok_or(newer)? {
            proto::command::Kind::Batch(batch) => {
                let messages = batch.messages.into_iter().map(Message::from_proto).collect::<Result<_, _>>()?;
                let closings = batch.closings.into_iter().map(decode_closing).collect::<Result<_, _>>()?;
                Ok(Self::Batch(ProposedBatch { time_ms: TimeMs(batch.time_ms), messages, closings }))
            }
            proto::command::Kind::Certificate(certificate) => {
                Ok(Self::Certificate(Certificate::from_proto(certificate)?))
            }
            proto::command::Kind::Approval(timed) => {
                let approval = Approval::from_proto(timed.approval.ok_or_else(|| bad("the approval is missing"))?)?;
                Ok(Self::Approval { time_ms: TimeMs(timed.time_ms), approval: Box::new(approval) })
            }
            proto::command::Kind::Horizon(horizon) => Ok(Self::Horizon(Height(horizon.oldest_height))),
            proto::command::Kind::Rules(rules) => Ok(Self::Rules(rules.version)),
            proto::command::Kind::Order(timed) => {
                let order = SignedOrder::from_proto(timed.order.ok_or_else(|| bad("the order is missing"))?)?;
                Ok(Self::Order { time_ms: TimeMs(timed.time_ms), order: Box::new(order) })
            }
            proto::command::Kind::Chain(timed) => {
                let update = ChainUpdate::from_proto(timed.update.ok_or_else(|| bad("the update is missing"))?)?;
                let signature = |s: proto::VoterSignature| {
                    let signature = Signature::try_from(&s.signature[..]).map_err(|_| bad("a signature"))?;
                    Ok((NodeId(s.node), signature))
                };
                let signatures = timed.signatures.into_iter().map(signature).collect::<Result<_, DecodeError>>()?;
                Ok(Self::Chain { time_ms: TimeMs(timed.time_ms), update: Box::new(update), signatures })
            }
            proto::command::Kind::OutputProgress(progress) => decode_progress(progress),
            proto::command::Kind::OutputChange(change) => {
                let (output, state) = Self::output_from_proto(&change)?;
                Ok(Self::Output { output, state })
            }
        }
    }
}

fn decode_progress(progress: proto::OutputProgress) -> Result<Command, DecodeError> {
    let bad = |reason: &str| DecodeError::malformed("log entry", reason);
    if progress.places.len() > PLACES_MAX {
        return Err(bad("too many places"));
    }
    Ok(Command::OutputProgress {
        output: progress.output.parse().map_err(|_| bad("bad output name"))?,
        task_number: TaskNumber(progress.task_number),
        places: progress.places.into_iter().map(Place::from_proto).collect::<Result<_, _>>()?,
    })
}

fn decode_closing(closing: proto::GroupClose) -> Result<GroupClosing, DecodeError> {
    Ok(GroupClosing {
        key: GroupKey {
            project_id: ProjectId(closing.project_id),
            project_version: closing.project_version,
            device: Address::try_from(&closing.device[..]).map_err(|e| DecodeError::malformed("log entry", e))?,
            name: String::new(),
            window: None,
        },
        first_sequence: Sequence(closing.first_sequence),
    })
}
