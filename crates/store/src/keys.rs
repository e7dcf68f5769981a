//! Every key on disk: a prefix byte, then big-endian numbers or hashes. Changing one is a change of the stored format.

use lockstep_types::{
    Address, ContentId, Hash32, Height, MessageId, OutputName, ProjectId, Sequence, TaskId, TaskNumber,
};

fn numbered(prefix: u8, number: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(9);
    key.push(prefix);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

fn named(prefix: u8, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + name.len());
    key.push(prefix);
    key.extend_from_slice(name);
    key
}

/// The key just behind all keys with `prefix`.
pub fn end_of(prefix: u8) -> Vec<u8> {
    vec![prefix + 1]
}

/// Keys of [`crate::Table::Log`].
pub mod log {
    use super::numbered;

    /// Prefix of log entries.
    pub const ENTRY: u8 = b'l';
    /// The vote.
    pub const VOTE: &[u8] = b"v";
    /// The last position known to be committed.
    pub const COMMITTED: &[u8] = b"c";
    /// The newest header that this node signed.
    pub const SIGNED: &[u8] = b"s";
    /// Up to which index each member acknowledged committed entries.
    pub const MARKS: &[u8] = b"m";
    /// The last position that was purged.
    pub const PURGED: &[u8] = b"p";

    /// A log entry.
    pub fn entry(index: u64) -> Vec<u8> {
        numbered(ENTRY, index)
    }
}

/// Prefix of batch records, in [`crate::Table::Chain`].
pub const BATCH: u8 = b'b';
/// Prefix of heights by first sequence, in [`crate::Table::Chain`].
pub const SEQUENCE: u8 = b's';
/// Prefix of heights by first task number, in [`crate::Table::Chain`].
pub const TASK_NUMBER: u8 = b't';
/// Prefix of certificates by height, in [`crate::Table::Chain`].
pub const CERTIFICATE: u8 = b'c';
/// Prefix of batch records after which the member set changes, in [`crate::Table::Chain`]. They are never removed.
pub const BOUNDARY: u8 = b'x';
/// Prefix of the certificates of those batches, in [`crate::Table::Chain`]. They are never removed.
pub const BOUNDARY_CERTIFICATE: u8 = b'y';
/// Prefix of newest occurrences by content, in [`crate::Table::Index`].
pub const OCCURRENCE: u8 = b'o';
/// Prefix of sequences by message id, in [`crate::Table::Index`].
pub const MESSAGE_PLACE: u8 = b'm';
/// Prefix of task numbers by task id, in [`crate::Table::Index`].
pub const TASK_PLACE: u8 = b'k';
/// Prefix of task numbers by sequence, in [`crate::Table::Index`].
pub const PACKED: u8 = b'q';
/// Prefix of open groups, in [`crate::Table::Open`].
pub const GROUP: u8 = b'g';
/// Prefix of messages in open groups by sequence, in [`crate::Table::Open`].
pub const WAITING: u8 = b's';
/// Prefix of outputs' progress, in [`crate::Table::Index`].
pub const PROGRESS: u8 = b'u';
/// Prefix of tasks that outputs never got, in [`crate::Table::Index`].
pub const GAP: u8 = b'w';
/// Prefix of where outputs have tasks, in [`crate::Table::Index`].
pub const PLACE: u8 = b'f';
/// Prefix of the states of outputs that do not run, in [`crate::Table::Index`].
pub const OUTPUT_STATE: u8 = b'j';
/// Prefix of projects, in [`crate::Table::Index`].
pub const PROJECT: u8 = b'p';
/// Prefix of devices, in [`crate::Table::Index`].
pub const DEVICE: u8 = b'd';
/// Prefix of who lets a device submit to a project, in [`crate::Table::Index`].
pub const GRANT: u8 = b'r';
/// Prefix of used nonces, in [`crate::Table::Index`].
pub const NONCE: u8 = b'z';
/// Prefix of the highest nonces of devices in projects, in [`crate::Table::Index`].
pub const HIGHEST_NONCE: u8 = b'b';
/// Prefix of sequences by another name of a task, in [`crate::Table::Index`].
pub const TASK_ALIAS: u8 = b'v';
/// Prefix of bundles of rules by their hash, in [`crate::Table::Index`].
pub const RULES: u8 = b'x';
/// Prefix of what rules took and refused, by project, in [`crate::Table::Index`].
pub const RULES_STATE: u8 = b'y';
/// Prefix of devices' last messages that rules took, in [`crate::Table::Index`].
pub const LAST: u8 = b'l';
/// Prefix of words with which rules marked messages, in [`crate::Table::Index`].
pub const FLAGS: u8 = b't';
/// How far a chain was read, in [`crate::Table::Index`].
pub const CHAIN: &[u8] = b"c";
/// The members, in [`crate::Table::Index`].
pub const MEMBERS: &[u8] = b"e";
/// The network's epoch, in [`crate::Table::Index`]; missing in the first one.
pub const EPOCH: &[u8] = b"i";
/// The ledger's head, in [`crate::Table::Index`].
pub const HEAD: &[u8] = b"h";
/// The applied log position, in [`crate::Table::Index`].
pub const APPLIED: &[u8] = b"a";
/// The applied membership, in [`crate::Table::Index`].
pub const MEMBERSHIP: &[u8] = b"n";

/// A batch record, in [`crate::Table::Chain`].
pub fn batch(height: Height) -> Vec<u8> {
    numbered(BATCH, height.0)
}

/// The certificate of a height, in [`crate::Table::Chain`].
pub fn certificate(height: Height) -> Vec<u8> {
    numbered(CERTIFICATE, height.0)
}

/// The record of a batch after which the member set changes, in [`crate::Table::Chain`].
pub fn boundary(height: Height) -> Vec<u8> {
    numbered(BOUNDARY, height.0)
}

/// The certificate of such a batch, in [`crate::Table::Chain`].
pub fn boundary_certificate(height: Height) -> Vec<u8> {
    numbered(BOUNDARY_CERTIFICATE, height.0)
}

/// Tasks that an output never got, by the first of them, in [`crate::Table::Index`].
pub fn gap(output: &OutputName, first: TaskNumber) -> Vec<u8> {
    [named(GAP, output.as_str().as_bytes()), vec![0], first.0.to_be_bytes().to_vec()].concat()
}

/// Where an output has the run of tasks that begins with `first`, in [`crate::Table::Index`]. Names of outputs contain no
/// zero byte.
pub fn place(output: &OutputName, first: TaskNumber) -> Vec<u8> {
    [named(PLACE, output.as_str().as_bytes()), vec![0], first.0.to_be_bytes().to_vec()].concat()
}

/// Height of the batch whose first message has this sequence, in [`crate::Table::Chain`].
pub fn first_sequence(sequence: Sequence) -> Vec<u8> {
    numbered(SEQUENCE, sequence.0)
}

/// Height of the batch whose first task has this number, in [`crate::Table::Chain`].
pub fn first_task(number: TaskNumber) -> Vec<u8> {
    numbered(TASK_NUMBER, number.0)
}

/// The newest occurrence of a content, in [`crate::Table::Index`].
pub fn occurrence(id: &ContentId) -> Vec<u8> {
    named(OCCURRENCE, &id.0)
}

/// Sequence of a message whose id does not follow from its content's occurrence, in [`crate::Table::Index`].
pub fn message_place(id: &MessageId) -> Vec<u8> {
    named(MESSAGE_PLACE, &id.0)
}

/// Number of a task, in [`crate::Table::Index`].
pub fn task_place(id: &TaskId) -> Vec<u8> {
    named(TASK_PLACE, &id.0)
}

/// Task number of a message that was packed in a later batch, in [`crate::Table::Index`].
pub fn packed(sequence: Sequence) -> Vec<u8> {
    numbered(PACKED, sequence.0)
}

/// A message in an open group, in [`crate::Table::Open`].
pub fn waiting(sequence: Sequence) -> Vec<u8> {
    numbered(WAITING, sequence.0)
}

/// A project, in [`crate::Table::Index`].
pub fn project(id: ProjectId) -> Vec<u8> {
    numbered(PROJECT, id.0)
}

/// A device, in [`crate::Table::Index`].
pub fn device(device: &Address) -> Vec<u8> {
    named(DEVICE, &device.0)
}

/// Who lets a device submit to a project, in [`crate::Table::Index`].
pub fn grant(project: ProjectId, device: &Address) -> Vec<u8> {
    [&numbered(GRANT, project.0)[..], &device.0].concat()
}

/// A used nonce of a device in a project, in [`crate::Table::Index`].
pub fn nonce(project: ProjectId, device: &Address, nonce: u64) -> Vec<u8> {
    [&numbered(NONCE, project.0)[..], &device.0, &nonce.to_be_bytes()].concat()
}

/// The highest nonce of a device in a project, in [`crate::Table::Index`].
pub fn highest_nonce(project: ProjectId, device: &Address) -> Vec<u8> {
    [&numbered(HIGHEST_NONCE, project.0)[..], &device.0].concat()
}

/// Sequence of the message whose task has another name, in [`crate::Table::Index`].
pub fn task_alias(alias: &TaskId) -> Vec<u8> {
    named(TASK_ALIAS, &alias.0)
}

/// A bundle of rules, in [`crate::Table::Index`].
pub fn rules(hash: &Hash32) -> Vec<u8> {
    named(RULES, hash)
}

/// What a project's rules took and refused, in [`crate::Table::Index`].
pub fn rules_state(project: ProjectId) -> Vec<u8> {
    numbered(RULES_STATE, project.0)
}

/// The last message of a device that a project's rules took, in [`crate::Table::Index`].
pub fn last(project: ProjectId, device: &Address) -> Vec<u8> {
    [&numbered(LAST, project.0)[..], &device.0].concat()
}

/// Words with which rules marked a message, in [`crate::Table::Index`].
pub fn flags(sequence: Sequence) -> Vec<u8> {
    numbered(FLAGS, sequence.0)
}

/// An open group, in [`crate::Table::Open`].
pub fn group(encoded_key: &[u8]) -> Vec<u8> {
    named(GROUP, encoded_key)
}

/// Progress of an output, in [`crate::Table::Index`].
pub fn progress(output: &OutputName) -> Vec<u8> {
    named(PROGRESS, output.as_str().as_bytes())
}

/// The state of an output that does not run, in [`crate::Table::Index`].
pub fn output_state(output: &OutputName) -> Vec<u8> {
    named(OUTPUT_STATE, output.as_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_stored_data_has() {
        let number = [0, 0, 0, 0, 0, 0, 1, 2];
        let with = |prefix: u8, rest: &[u8]| [&[prefix], rest].concat();
        assert_eq!(log::entry(258), with(b'l', &number));
        assert_eq!(batch(Height(258)), with(b'b', &number));
        assert_eq!(first_sequence(Sequence(258)), with(b's', &number));
        assert_eq!(first_task(TaskNumber(258)), with(b't', &number));
        assert_eq!(packed(Sequence(258)), with(b'q', &number));
        assert_eq!(occurrence(&ContentId([9; 32])), with(b'o', &[9; 32]));
        assert_eq!(message_place(&MessageId([9; 32])), with(b'm', &[9; 32]));
        assert_eq!(task_place(&TaskId([9; 32])), with(b'k', &[9; 32]));
        assert_eq!(project(ProjectId(258)), with(b'p', &number));
        assert_eq!(device(&Address([9; 20])), with(b'd', &[9; 20]));
        assert_eq!(grant(ProjectId(258), &Address([9; 20])), with(b'r', &[&number[..], &[9; 20]].concat()));
        assert_eq!(
            nonce(ProjectId(258), &Address([9; 20]), 258),
            with(b'z', &[&number[..], &[9; 20], &number].concat())
        );
        assert_eq!(highest_nonce(ProjectId(258), &Address([9; 20])), with(b'b', &[&number[..], &[9; 20]].concat()));
        assert_eq!(task_alias(&TaskId([9; 32])), with(b'v', &[9; 32]));
        assert_eq!(group(b"xy"), b"gxy");
        assert_eq!(progress(&"pg".parse().unwrap()), b"upg");
        assert_eq!(output_state(&"pg".parse().unwrap()), b"jpg");
        assert_eq!(certificate(Height(258)), with(b'c', &number));
        assert_eq!(boundary(Height(258)), with(b'x', &number));
        assert_eq!(boundary_certificate(Height(258)), with(b'y', &number));
        assert_eq!(gap(&"pg".parse().unwrap(), TaskNumber(258)), [&b"wpg\0"[..], &number].concat());
        assert_eq!(
            [
                HEAD,
                APPLIED,
                MEMBERSHIP,
                MEMBERS,
                EPOCH,
                CHAIN,
                log::VOTE,
                log::COMMITTED,
                log::PURGED,
                log::SIGNED,
                log::MARKS
            ]
            .concat(),
            b"haneicvcpsm"
        );
        assert_eq!(end_of(BATCH), b"c");
    }
}
