//! What a log has behind an entry that cannot be applied: what is left out where a node goes on without it.

use std::io;
use std::sync::Arc;

use lockstep_ledger::Command;
use lockstep_store::home::StoreHome;
use lockstep_store::{Kind, LogWriter, RocksStorage, Storage};
use lockstep_types::Message;
use openraft::EntryPayload;

use crate::epoch::EpochError;
use crate::log_store::LogStore;

/// How much is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Index of the first entry that is.
    pub first: u64,
    /// Index of the last one that can be read.
    pub last: u64,
    /// Messages that were proposed in them. Some may be repeats, or have been rejected.
    pub messages: u64,
    /// Orders of projects' owners.
    pub orders: u64,
    /// Approvals of changes of membership.
    pub approvals: u64,
}

/// Something that somebody may have been told is safe.
#[derive(Debug, Clone, Copy)]
pub enum Item<'a> {
    /// A message.
    Message(&'a Message),
    /// An order of this project's owner, with its number.
    Order(lockstep_types::ProjectId, u64),
    /// An approval of this voter.
    Approval(lockstep_types::NodeId),
}

/// Reads the log of a stopped node from an entry on, and gives each item with its entry's index to `list`, in order.
///
/// # Errors
/// If the log cannot be opened, or `list` fails. It ends before an entry that cannot be read.
pub fn left_out(
    home: &StoreHome,
    first: u64,
    list: &mut dyn FnMut(u64, Item<'_>) -> io::Result<()>,
) -> Result<LeftOut, EpochError> {
    let storage: Arc<dyn Storage> = Arc::new(RocksStorage::open(&home.log_path(), Kind::Log)?);
    let log = LogStore::open(storage.clone(), Arc::new(LogWriter::inline(storage)))?;
    let mut found = LeftOut { first, last: first, ..LeftOut::default() };
    let mut next = first;
    while let Ok(entries) = log.read(next, u64::MAX) {
        let Some(last) = entries.last() else { break };
        next = last.log_id.index + 1;
        found.last = last.log_id.index;
        for entry in entries {
            let EntryPayload::Normal(payload) = entry.payload else { continue };
            let Ok(command) = Command::decode(payload.0) else { continue };
            found.count(entry.log_id.index, &command, list)?;
        }
    }
    Ok(found)
}

impl LeftOut {
    fn count(
        &mut self,
        index: u64,
        command: &Command,
        list: &mut dyn FnMut(u64, Item<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        match command {
            Command::Batch(batch) => {
                self.messages += batch.messages.len() as u64;
                batch.messages.iter().try_for_each(|message| list(index, Item::Message(message)))
            }
            Command::Order { order, .. } => {
                self.orders += 1;
                list(index, Item::Order(order.order.project, order.order.number))
            }
            Command::Approval { approval, .. } => {
                self.approvals += 1;
                list(index, Item::Approval(approval.node))
            }
            // They follow from what is there, or come again by themselves.
            _ => Ok(()),
        }
    }
}
