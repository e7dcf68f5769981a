//! The payload of a log entry.

use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_types::genesis::AGE_MS_MAX;
use lockstep_types::place::PLACES_MAX;
use lockstep_types::{
    Approval, Certificate, ChainUpdate, DecodeError, Height, Message, NodeId, OutputName, Place, Sequence, Signature,
    SignedOrder, TaskNumber, TimeMs, elements, proto,
};
use prost::Message as _;

use crate::effects::Horizon;
use crate::outputs::OutputState;
use crate::pool::Aged;

/// Version of the encoding.
pub const COMMAND_VERSION: u32 = 1;
/// Where a proposal is in an entry, and its messages and their ages in it.
const BATCH: [u32; 1] = [2];
const BATCH_MESSAGES: u32 = 2;
const BATCH_AGES: u32 = 4;

/// What a log entry asks of `apply`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Order these messages. Groups whose time has come become tasks.
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
    /// What lies below this horizon is forgotten. Its numbers are those of the batch at its height.
    Horizon(Horizon),
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
    /// Where more is to be forgotten, open groups that begin before this message become tasks; 0: none.
    pub make_room_before: Sequence,
    /// Of each message: milliseconds since it came in at the node that took it in, at most [`AGE_MS_MAX`]. Empty: 0 of each.
    pub ages_ms: Vec<u64>,
}

/// Ages as they stand beside messages in a bundle or a proposal; none where all are 0.
pub fn encode_ages(messages: &[Aged]) -> Vec<u64> {
    if messages.iter().all(|message| message.age_ms == 0) {
        return Vec::new();
    }
    messages.iter().map(|message| message.age_ms.min(AGE_MS_MAX)).collect()
}

/// Checks ages that were read beside so many messages.
///
/// # Errors
/// If there are more or fewer, and not none, or one is above [`AGE_MS_MAX`].
pub fn decode_ages(what: &'static str, ages_ms: Vec<u64>, messages: usize) -> Result<Vec<u64>, DecodeError> {
    if !ages_ms.is_empty() && ages_ms.len() != messages {
        return Err(DecodeError::malformed(what, "not as many ages as messages"));
    }
    if ages_ms.iter().any(|age_ms| *age_ms > AGE_MS_MAX) {
        return Err(DecodeError::malformed(what, "a message is older than one may be"));
    }
    Ok(ages_ms)
}

/// Encodes a proposal straight from the pool's messages; each payload is copied once, into the entry.
pub fn encode_batch(time_ms: TimeMs, messages: &[Aged], make_room_before: Sequence) -> Bytes {
    encode(proto::command::Kind::Batch(proto::ProposedBatch {
        time_ms: time_ms.0,
        messages: messages.iter().map(|aged| aged.message.message().to_proto()).collect(),
        make_room_before: make_room_before.0,
        ages_ms: encode_ages(messages),
    }))
}

fn encode(kind: proto::command::Kind) -> Bytes {
    proto::Command { version: COMMAND_VERSION, kind: Some(kind) }.encode_to_vec().into()
}

impl Command {
    /// The payload of a log entry that asks for it.
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Batch(batch) => encode(proto::command::Kind::Batch(proto::ProposedBatch {
                time_ms: batch.time_ms.0,
                messages: batch.messages.iter().map(Message::to_proto).collect(),
                make_room_before: batch.make_room_before.0,
                ages_ms: batch.ages_ms.clone(),
            })),
            Self::Certificate(certificate) => Self::encode_certificate(certificate),
            Self::Approval { time_ms, approval } => Self::encode_approval(*time_ms, approval),
            Self::Horizon(horizon) => Self::encode_horizon(horizon),
            Self::Rules(version) => Self::encode_rules(*version),
            Self::Order { time_ms, order } => Self::encode_order(*time_ms, order),
            Self::Chain { time_ms, update, signatures } => Self::encode_chain(*time_ms, update, signatures),
            Self::Output { output, state } => Self::encode_output(output, *state),
            Self::OutputProgress { output, task_number, places } => {
                encode(proto::command::Kind::OutputProgress(proto::OutputProgress {
                    output: output.as_str().to_owned(),
                    task_number: task_number.0,
                    places: places.iter().map(Place::to_proto).collect(),
                }))
            }
        }
    }

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
    pub fn encode_horizon(horizon: &Horizon) -> Bytes {
        encode(proto::command::Kind::Horizon(proto::Horizon {
            oldest_height: horizon.height.0,
            oldest_sequence: horizon.sequence.0,
            oldest_task_number: horizon.task_number.0,
        }))
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
        elements::check_numbers("log entry", &bytes, &BATCH, BATCH_MESSAGES, BATCH_AGES)?;
        let command = proto::Command::decode(bytes).map_err(|e| bad(&e.to_string()))?;
        if command.version > COMMAND_VERSION {
            return Err(DecodeError::Newer { what: "log entry", found: command.version, known: COMMAND_VERSION });
        }
        let newer = DecodeError::Newer { what: "log entry", found: COMMAND_VERSION + 1, known: COMMAND_VERSION };
        // A kind that this program does not know: applying nothing would make this node differ from its peers.
        match command.kind.ok_or(newer)? {
            proto::command::Kind::Batch(batch) => {
                let ages_ms = decode_ages("log entry", batch.ages_ms, batch.messages.len())?;
                let messages = batch.messages.into_iter().map(Message::from_proto).collect::<Result<_, _>>()?;
                let (time_ms, make_room_before) = (TimeMs(batch.time_ms), Sequence(batch.make_room_before));
                Ok(Self::Batch(ProposedBatch { time_ms, messages, make_room_before, ages_ms }))
            }
            proto::command::Kind::Certificate(certificate) => {
                Ok(Self::Certificate(Certificate::from_proto(certificate)?))
            }
            proto::command::Kind::Approval(timed) => {
                let approval = Approval::from_proto(timed.approval.ok_or_else(|| bad("the approval is missing"))?)?;
                Ok(Self::Approval { time_ms: TimeMs(timed.time_ms), approval: Box::new(approval) })
            }
            proto::command::Kind::Horizon(horizon) => Ok(Self::Horizon(Horizon {
                height: Height(horizon.oldest_height),
                sequence: Sequence(horizon.oldest_sequence),
                task_number: TaskNumber(horizon.oldest_task_number),
            })),
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
