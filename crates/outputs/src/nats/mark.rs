//! What a message of the stream says in its headers. docs/formats.md, "NATS JetStream".

use async_nats::HeaderMap;
use lockstep_types::{Epoch, NetworkId, TaskId, TaskNumber};

use crate::layout::Layout;
use crate::output::{OutputError, Owner};
use crate::tables::{self, Cursor};

/// Version of all of them.
const MARK_VERSION: u64 = 1;

const VERSION: &str = "Lockstep-Version";
const NETWORK: &str = "Lockstep-Network";
const EPOCH: &str = "Lockstep-Epoch";
const FIRST_TASK: &str = "Lockstep-First-Task";
const LAST_TASK: &str = "Lockstep-Last-Task";
const KIND: &str = "Lockstep-Kind";
const TASK: &str = "Lockstep-Task";
const FROM: &str = "Lockstep-From";
const TO: &str = "Lockstep-To";
/// The server's own: it drops a message whose id it has seen within the stream's window.
const ID: &str = "Nats-Msg-Id";

/// Bytes that the headers of a message have at most, with names of streams and subjects as long as they may be.
pub(super) const HEADERS_BYTES_MAX: usize = 1024;

/// First and last number.
pub(super) type Range = (TaskNumber, TaskNumber);

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The first message of all: whose stream it is.
    Owner,
    /// What follows is of the mark's epoch.
    Epoch,
    /// A task, behind the one before.
    Task(TaskNumber, TaskId),
    /// A task that was skipped and found again.
    Filled(TaskNumber, TaskId),
    /// These tasks never come, or are filled in later.
    Skipped(Range),
    /// These tasks are not for this store.
    Passed(Range),
    /// Tasks between these two are filled in by the messages right behind this one.
    Filling(Range),
    /// What of these tasks is for this store was filled in.
    Complete(Range),
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Epoch => "epoch",
            Self::Task(..) => "task",
            Self::Filled(..) => "filled",
            Self::Skipped(_) => "skipped",
            Self::Passed(_) => "passed",
            Self::Filling(_) => "filling",
            Self::Complete(_) => "complete",
        }
    }
}

/// What a message says: enough of it in each one that the last one alone is the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub network: NetworkId,
    pub epoch: Epoch,
    pub first_task: TaskNumber,
    /// Number of the last task once this message is there; what is filled in does not move it.
    pub last: Option<TaskNumber>,
    pub kind: Kind,
}

impl Mark {
    /// Of this owner.
    pub fn new(owner: &Owner, last: Option<TaskNumber>, kind: Kind) -> Self {
        Self { network: owner.network, epoch: owner.epoch, first_task: owner.first_task_number, last, kind }
    }

    /// As headers.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(VERSION, MARK_VERSION.to_string());
        headers.insert(NETWORK, self.network.to_string());
        headers.insert(EPOCH, self.epoch.to_string());
        headers.insert(FIRST_TASK, self.first_task.to_string());
        headers.insert(KIND, self.kind.name());
        if let Some(last) = self.last {
            headers.insert(LAST_TASK, last.to_string());
        }
        match self.kind {
            Kind::Owner | Kind::Epoch => {}
            Kind::Task(number, id) | Kind::Filled(number, id) => {
                headers.insert(TASK, number.to_string());
                headers.insert(ID, id.to_string());
            }
            Kind::Skipped((from, to))
            | Kind::Passed((from, to))
            | Kind::Filling((from, to))
            | Kind::Complete((from, to)) => {
                headers.insert(FROM, from.to_string());
                headers.insert(TO, to.to_string());
            }
        }
        headers
    }

    /// Out of the headers of the message that `at` names.
    pub fn parse(headers: &HeaderMap, at: &str) -> Result<Self, OutputError> {
        let foreign = |reason: &str| OutputError::Foreign(format!("{at} {reason}"));
        let text = |name: &str| headers.get(name).map(|value| value.as_str());
        let number = |name: &str| text(name).and_then(|text| text.parse::<u64>().ok());
        let version = number(VERSION).ok_or_else(|| foreign("was not written by Lockstep"))?;
        if version > MARK_VERSION {
            return Err(foreign(&format!("has version {version}, this program knows {MARK_VERSION}; upgrade it")));
        }
        let read = || {
            let range = || Some((TaskNumber(number(FROM)?), TaskNumber(number(TO)?)));
            let task = || Some((TaskNumber(number(TASK)?), text(ID)?.parse().ok()?));
            let kind = match text(KIND)? {
                "owner" => Kind::Owner,
                "epoch" => Kind::Epoch,
                "task" => task().map(|(number, id)| Kind::Task(number, id))?,
                "filled" => task().map(|(number, id)| Kind::Filled(number, id))?,
                "skipped" => Kind::Skipped(range()?),
                "passed" => Kind::Passed(range()?),
                "filling" => Kind::Filling(range()?),
                "complete" => Kind::Complete(range()?),
                _ => return None,
            };
            let last = match text(LAST_TASK) {
                None => None,
                Some(_) => Some(TaskNumber(number(LAST_TASK)?)),
            };
            Some(Self {
                network: text(NETWORK)?.parse().ok()?,
                epoch: Epoch(number(EPOCH)?),
                first_task: TaskNumber(number(FIRST_TASK)?),
                last,
                kind,
            })
        };
        read().ok_or_else(|| foreign("has headers that were changed"))
    }

    /// As the cursor that all stores share. Blobs are for readers of both generations; their tasks are signed as the
    /// newer one wants it.
    pub fn cursor(&self, owner: &Owner) -> Result<Cursor, OutputError> {
        if self.network == owner.network && self.first_task != owner.first_task_number {
            let ours = owner.first_task_number;
            return Err(OutputError::Foreign(format!(
                "its first task is {}, this network's is {ours}",
                self.first_task
            )));
        }
        Ok(Cursor {
            layout: Layout::Apinode.name().to_owned(),
            network: self.network.0.to_vec(),
            epoch: tables::epoch_column(self.epoch),
            last: self.last,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that headers have on the wire.
    fn wire_bytes(headers: &HeaderMap) -> usize {
        let lines = headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
        // `NATS/1.0`, a line for each, and an empty one.
        12 + lines.map(|(name, value)| name.to_string().len() + value.as_str().len() + 4).sum::<usize>()
    }

    fn owner() -> Owner {
        Owner { network: NetworkId([1; 32]), epoch: Epoch(3), first_task_number: TaskNumber(5) }
    }

    fn kinds() -> [Kind; 8] {
        let (range, number, id) = ((TaskNumber(u64::MAX), TaskNumber(u64::MAX)), TaskNumber(u64::MAX), TaskId([2; 32]));
        [
            Kind::Owner,
            Kind::Epoch,
            Kind::Task(number, id),
            Kind::Filled(number, id),
            Kind::Skipped(range),
            Kind::Passed(range),
            Kind::Filling(range),
            Kind::Complete(range),
        ]
    }

    #[test]
    fn marks_read_back_and_are_as_documented() {
        let task = Kind::Task(TaskNumber(7), TaskId([2; 32]));
        let headers = Mark::new(&owner(), Some(TaskNumber(7)), task).headers();
        let mut lines: Vec<String> =
            headers.iter().map(|(name, values)| format!("{name}: {}", values[0].as_str())).collect();
        lines.sort_unstable();
        let (network, id) = ("01".repeat(32), "02".repeat(32));
        let expected = [
            "Lockstep-Epoch: 3".to_owned(),
            "Lockstep-First-Task: 5".to_owned(),
            "Lockstep-Kind: task".to_owned(),
            "Lockstep-Last-Task: 7".to_owned(),
            format!("Lockstep-Network: 0x{network}"),
            "Lockstep-Task: 7".to_owned(),
            "Lockstep-Version: 1".to_owned(),
            format!("Nats-Msg-Id: 0x{id}"),
        ];
        assert_eq!(lines, expected);
        for kind in kinds() {
            for last in [None, Some(TaskNumber(9))] {
                let mark = Mark::new(&owner(), last, kind);
                assert_eq!(Mark::parse(&mark.headers(), "it"), Ok(mark));
            }
        }
    }

    #[test]
    fn what_is_not_ours_newer_or_changed_is_refused() {
        let refused = |change: &dyn Fn(&mut HeaderMap)| {
            let mut headers = Mark::new(&owner(), None, kinds()[2]).headers();
            change(&mut headers);
            match Mark::parse(&headers, "message 3") {
                Err(OutputError::Foreign(reason)) => reason,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused(&|headers| *headers = HeaderMap::new()), "message 3 was not written by Lockstep");
        assert!(refused(&|headers| headers.insert(VERSION, "2")).contains("upgrade"));
        for (name, value) in [(KIND, "other"), (TASK, "-1"), (ID, "0x12"), (NETWORK, ""), (EPOCH, ""), (LAST_TASK, "x")]
        {
            assert!(refused(&|headers| headers.insert(name, value)).contains("changed"), "{name}");
        }
    }

    #[test]
    fn headers_have_the_room_that_is_kept_for_them() {
        for kind in kinds() {
            let wide = Owner { epoch: Epoch(u64::MAX), first_task_number: TaskNumber(u64::MAX), ..owner() };
            let mut headers = Mark::new(&wide, Some(TaskNumber(u64::MAX)), kind).headers();
            headers.insert("Nats-Expected-Last-Sequence", u64::MAX.to_string());
            headers.insert("Nats-Expected-Stream", "s".repeat(super::super::options::NAME_BYTES_MAX));
            assert!(wire_bytes(&headers) <= HEADERS_BYTES_MAX, "{}", wire_bytes(&headers));
        }
    }
}
