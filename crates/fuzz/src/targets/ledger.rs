//! Commands of the log, which every node applies: whatever a leader proposes, `apply` does the same everywhere and never
//! panics.

use bytes::Bytes;
use lockstep_ledger::{
    ChainCursor, Command, Device, Grant, GroupRecord, Head, Members, Occurrence, OpenGroup, Project, RULES_NEWEST,
    Waiting,
};
use lockstep_types::{MessageId, Sequence};
use prost::bytes::Buf as _;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

use crate::target::Target;
use crate::world::{GENESIS, PAST, View, World, records};

pub(super) const TARGETS: &[Target] = &[
    // From the log, whose entries a leader made.
    Target::new("command", || PAST.commands.iter().map(|command| command.to_vec()).collect(), read_command)
        .with_factor(512),
    Target::new("apply", apply_seeds, apply).with_factor(2_048),
    Target::new("state", records, read_record).with_factor(512),
];

/// Most commands of one input.
const COMMANDS_MAX: usize = 24;

fn read_command(bytes: &[u8]) -> bool {
    let Ok(command) = Command::decode(Bytes::copy_from_slice(bytes)) else { return false };
    let written = match &command {
        Command::Certificate(certificate) => Command::encode_certificate(certificate),
        Command::Approval { time_ms, approval } => Command::encode_approval(*time_ms, approval),
        Command::Horizon(horizon) => Command::encode_horizon(horizon),
        Command::Rules(version) => Command::encode_rules(*version),
        Command::Order { time_ms, order } => Command::encode_order(*time_ms, order),
        Command::Chain { time_ms, update, signatures } => Command::encode_chain(*time_ms, update, signatures),
        Command::Output { output, state } => Command::encode_output(output, *state),
        Command::Batch(_) | Command::OutputProgress { .. } => return true,
    };
    assert_eq!(Command::decode(written).as_ref(), Ok(&command));
    true
}

/// Commands one after the other, as a repeated field: so they are changed like any other message.
fn list(commands: &[Bytes]) -> Vec<u8> {
    let mut out = Vec::new();
    for command in commands {
        encode_key(1, WireType::LengthDelimited, &mut out);
        encode_varint(command.len() as u64, &mut out);
        out.extend_from_slice(command);
    }
    out
}

fn apply_seeds() -> Vec<Vec<u8>> {
    let all = &PAST.commands;
    let tails = (1..all.len()).map(|from| list(&all[from..]));
    tails.chain(all.iter().map(|command| list(std::slice::from_ref(command)))).chain([list(all)]).collect()
}

/// The first command says where to begin: in an empty network, or behind the past.
fn apply(bytes: &[u8]) -> bool {
    let (mut rest, mut commands) = (bytes, Vec::new());
    while rest.has_remaining() && commands.len() < COMMANDS_MAX {
        let Ok((_, WireType::LengthDelimited)) = decode_key(&mut rest) else { break };
        let Some(length) = decode_varint(&mut rest).ok().and_then(|length| usize::try_from(length).ok()) else { break };
        let Some((command, after)) = rest.split_at_checked(length) else { break };
        rest = after;
        commands.extend(Command::decode(Bytes::copy_from_slice(command)));
    }
    let is_first = bytes.len().is_multiple_of(2);
    let begin = || World::of(if is_first { View::default() } else { PAST.view.clone() });
    let (mut one, mut other) = (begin(), begin());
    let restart = commands.len() / 2;
    let mut changed = false;
    for (i, command) in commands.into_iter().enumerate() {
        // Of rules that it does not know a node makes nothing: it stops.
        if matches!(command, Command::Rules(version) if version > RULES_NEWEST) {
            continue;
        }
        if i == restart {
            other = World::of(other.view);
        }
        let (a, b) = (one.apply(command.clone()), other.apply(command));
        assert_eq!(a.writes, b.writes, "every node stores the same");
        assert_eq!((a.outcomes, a.diverged, a.refused), (b.outcomes, b.diverged, b.refused));
        assert_eq!(one.ledger.head(), other.ledger.head());
        changed |= !a.writes.is_empty();
    }
    assert!(one.view == other.view);
    changed
}

/// A record of a group, read with the messages that it says it has, written, and read again.
fn read_group(record: Bytes) -> bool {
    let Ok(read) = GroupRecord::decode(record.clone()) else { return false };
    let (first, count) = (read.first_sequence(), read.messages().min(8));
    let message = |at: u64| {
        let (id, order) = (MessageId([7; 32]), i64::from(at == 3) * 5);
        (Sequence(first.0.saturating_add(at)), Waiting { first, id, order })
    };
    let waiting: Vec<_> = (0..count).map(message).collect();
    let Ok(groups) = OpenGroup::decode_all([record], waiting.clone()) else { return false };
    groups.iter().all(|(key, group)| {
        let again: Vec<_> = group.waiting_from(Sequence(0)).collect();
        // Only rules sort.
        let orders = group.ruled.is_some() || again.iter().all(|(_, message)| message.order == 0);
        assert!(orders && again.len() == waiting.len(), "every message is written again");
        OpenGroup::decode_all([group.encode(key).into()], again).as_ref() == Ok(&groups)
    })
}

fn read_record(bytes: &[u8]) -> bool {
    let Some((kind, record)) = bytes.split_first() else { return false };
    let record = Bytes::copy_from_slice(record);
    let network = GENESIS.id().expect("the genesis is valid");
    let same = |again: Vec<u8>, decode: &dyn Fn(Bytes) -> bool| decode(again.into());
    // Each kind, read, written, and read again.
    match kind {
        0 => Occurrence::decode(&record)
            .is_ok_and(|read| Occurrence::decode(&read.encode()).is_ok_and(|again| again == read)),
        3 => read_group(record),
        4 => Device::decode(record)
            .is_ok_and(|read| same(read.encode(), &|bytes| Device::decode(bytes).as_ref() == Ok(&read))),
        5 => Project::decode(record)
            .is_ok_and(|read| same(read.encode(), &|bytes| Project::decode(bytes).as_ref() == Ok(&read))),
        7 => Members::decode(record, &network)
            .is_ok_and(|read| same(read.encode(), &|bytes| Members::decode(bytes, &network).as_ref() == Ok(&read))),
        8 => Head::decode(record)
            .is_ok_and(|read| same(read.encode(), &|bytes| Head::decode(bytes).as_ref() == Ok(&read))),
        9 => ChainCursor::decode(record)
            .is_ok_and(|read| same(read.encode(), &|bytes| ChainCursor::decode(bytes).as_ref() == Ok(&read))),
        10 => Grant::decode(&record)
            .is_ok_and(|read| read.encode().is_none_or(|again| Grant::decode(&[again]) == Ok(read))),
        // Batches, certificates and places have targets of their own.
        _ => [0, 1, 2].contains(kind) || lockstep_consensus::fuzz::state_record(bytes, record),
    }
}
