//! How what `apply` asks to be stored becomes records.

use bytes::Bytes;
use lockstep_ledger::{OutputState, Write};
use lockstep_store::{Table, WriteBatch, keys};
use lockstep_types::{OutputName, TaskNumber};

/// Adds one change of the state to a batch.
pub(crate) fn put(batch: &mut WriteBatch, write: &Write) {
    let be = |n: u64| Bytes::copy_from_slice(&n.to_be_bytes());
    match write {
        Write::Occurrence(id, occurrence) => {
            batch.put(Table::Index, keys::occurrence(id), Bytes::copy_from_slice(&occurrence.encode()));
        }
        Write::MessagePlace(id, sequence) => batch.put(Table::Index, keys::message_place(id), be(sequence.0)),
        Write::TaskPlace(id, number) => batch.put(Table::Index, keys::task_place(id), be(number.0)),
        Write::Packed(sequence, number) => batch.put(Table::Index, keys::packed(*sequence), be(number.0)),
        Write::Group(key, Some(record)) => batch.put(Table::Open, keys::group(&key.encode()), record.clone()),
        Write::Group(key, None) => batch.delete(Table::Open, keys::group(&key.encode())),
        Write::Waiting(sequence, Some(waiting)) => {
            batch.put(Table::Open, keys::waiting(*sequence), Bytes::copy_from_slice(&waiting.encode()));
        }
        Write::Waiting(sequence, None) => batch.delete(Table::Open, keys::waiting(*sequence)),
        Write::Progress(output, number) => batch.put(Table::Index, keys::progress(output), be(number.0)),
        Write::Place(output, place) => {
            batch.put(Table::Index, keys::place(output, place.first), place.encode());
        }
        Write::Output(output, state) => put_output(batch, output, *state),
        Write::Gap(output, gap) => batch.put(Table::Index, keys::gap(output, gap.first), be(gap.last.0)),
        Write::Project(id, project) => batch.put(Table::Index, keys::project(*id), project.encode()),
        Write::Rules(hash, Some(bundle)) => batch.put(Table::Index, keys::rules(hash), bundle.clone()),
        Write::Rules(hash, None) => batch.delete(Table::Index, keys::rules(hash)),
        Write::RulesState(project, state) => {
            batch.put(Table::Index, keys::rules_state(*project), state.encode());
        }
        Write::Last(project, device, last) => {
            batch.put(Table::Index, keys::last(*project, device), last.encode());
        }
        Write::Flags(sequence, flags) => batch.put(Table::Index, keys::flags(*sequence), flags.join(" ").into_bytes()),
        Write::Device(address, device) => batch.put(Table::Index, keys::device(address), device.encode()),
        Write::Grant(project, device, grant) => match grant.encode() {
            Some(flags) => batch.put(Table::Index, keys::grant(*project, device), vec![flags]),
            None => batch.delete(Table::Index, keys::grant(*project, device)),
        },
        Write::Nonce((project, holder, nonce), by) => {
            batch.put(Table::Index, keys::nonce(*project, holder, *nonce), be(by.0));
        }
        Write::HighestNonce(project, device, highest) => {
            let record = Bytes::copy_from_slice(&highest.encode());
            batch.put(Table::Index, keys::highest_nonce(*project, device), record);
        }
        Write::TaskAlias(alias, sequence) => batch.put(Table::Index, keys::task_alias(alias), be(sequence.0)),
        Write::Chain(cursor) => batch.put(Table::Index, keys::CHAIN.to_vec(), cursor.encode()),
        Write::Members(members) => batch.put(Table::Index, keys::MEMBERS.to_vec(), members.encode()),
        Write::Certificate { certificate, boundary } => {
            let record = Bytes::from(certificate.encode());
            batch.put(Table::Chain, keys::certificate(certificate.height), record.clone());
            if *boundary {
                batch.put(Table::Chain, keys::boundary_certificate(certificate.height), record);
            }
        }
        Write::Batch(made) => {
            let header = &made.header;
            let record = Bytes::from(made.encode());
            if made.next_set.is_some() {
                batch.put(Table::Chain, keys::boundary(header.height), record.clone());
            }
            batch.put(Table::Chain, keys::batch(header.height), record);
            if !made.messages.is_empty() {
                batch.put(Table::Chain, keys::first_sequence(header.first_sequence), be(header.height.0));
            }
            if !made.tasks.is_empty() {
                batch.put(Table::Chain, keys::first_task(header.first_task_number), be(header.height.0));
            }
        }
        Write::Head(head) => batch.put(Table::Index, keys::HEAD.to_vec(), head.encode()),
    }
}

fn put_output(batch: &mut WriteBatch, output: &OutputName, state: OutputState) {
    let key = keys::output_state(output);
    match state {
        OutputState::Running => return batch.delete(Table::Index, key),
        OutputState::Paused | OutputState::Removed => batch.put(Table::Index, key, vec![state.number()]),
    }
    if state == OutputState::Removed {
        let (none, all) = (TaskNumber(0), TaskNumber(u64::MAX));
        batch.delete(Table::Index, keys::progress(output));
        batch.delete_range(Table::Index, keys::place(output, none), keys::place(output, all));
        batch.delete_range(Table::Index, keys::gap(output, none), keys::gap(output, all));
    }
}
