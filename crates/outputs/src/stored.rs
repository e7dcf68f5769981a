//! What a store holds, as audits read it: page by page, each task whole, and told apart from what is no task of ours.

use crate::layout::Layout;
use crate::output::{FinalTask, OutputError};
use crate::tables::{self, MessageRow, TaskRow};
use lockstep_types::{TaskId, TaskNumber};

/// Most payload bytes of a page; one task, or one blob, may exceed it.
pub const PAGE_BYTES_MAX: u64 = 8 << 20;
/// Most strays that one answer names; it counts them all.
pub const STRAYS_NAMED_MAX: usize = 64;
/// Rows that one call to [`crate::Output::strays`] looks at.
pub(crate) const STRAY_ROWS_MAX: usize = 32_768;

/// A part of what a store holds, by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Tasks that are there whole.
    pub tasks: Vec<FinalTask>,
    /// What stands in the place of tasks and is none.
    pub damaged: Vec<Damaged>,
}

impl Page {
    /// The last number that it says something about.
    pub fn last(&self) -> Option<TaskNumber> {
        let damaged = self.damaged.iter().map(|damaged| damaged.last);
        self.tasks.iter().map(|task| task.number).chain(damaged).max()
    }
}

impl From<Vec<FinalTask>> for Page {
    fn from(tasks: Vec<FinalTask>) -> Self {
        Self { tasks, damaged: Vec::new() }
    }
}

/// Numbers at which the store has something that no Lockstep has written, or lacks what leads to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The first number.
    pub first: TaskNumber,
    /// The last number.
    pub last: TaskNumber,
    /// What is wrong. Never a payload.
    pub reason: String,
}

impl Damaged {
    /// At one number.
    pub fn at(number: TaskNumber, reason: impl Into<String>) -> Self {
        Self { first: number, last: number, reason: reason.into() }
    }
}

/// How far a search for strays is: for the store to understand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrayMark(pub(crate) String);

/// What was found that belongs to no task of ours, in a part of the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Strays {
    /// What was looked at: rows, or objects.
    pub looked_at: u64,
    /// How many there are.
    pub count: u64,
    /// The first [`STRAYS_NAMED_MAX`] of them: what and where. Never a payload.
    pub named: Vec<String>,
    /// Where to go on; `None` at the end.
    pub next: Option<StrayMark>,
}

impl Strays {
    pub(crate) fn add(&mut self, what: String) {
        self.count += 1;
        if self.named.len() < STRAYS_NAMED_MAX {
            self.named.push(what);
        }
    }
}

/// A row of `tasks` as it was found: anything may be missing but its number.
#[derive(Debug)]
pub(crate) struct FoundTask {
    pub number: i64,
    /// As [`Layout::task_column`].
    pub id: Option<Vec<u8>>,
    pub project_id: Option<i64>,
    pub time_ms: Option<i64>,
    pub message_ids: Option<String>,
    pub signature: Option<Vec<u8>>,
    /// It is not marked as deleted, nor as changed since it was made.
    pub as_made: bool,
}

/// A row of `messages` as it was found.
#[derive(Debug)]
pub(crate) struct FoundMessage {
    pub row: MessageRow,
    pub project_id: Option<i64>,
    pub time_ms: Option<i64>,
    /// See [`FoundTask::as_made`].
    pub as_made: bool,
}

/// Milliseconds out of microseconds; `None` where that would lose something.
pub(crate) fn whole_ms(micros: i128) -> Option<i64> {
    (micros % 1_000 == 0).then(|| i64::try_from(micros / 1_000).ok()).flatten()
}

fn task_id(layout: Layout, column: &[u8]) -> Option<TaskId> {
    let id = match layout {
        Layout::Apinode => TaskId::try_from(column).ok()?,
        Layout::Sprout => std::str::from_utf8(column).ok()?.parse().ok()?,
    };
    (layout.task_column(&id) == column).then_some(id)
}

/// The number of a row: what is below the first one is none, and was not asked for.
fn number_of(id: i64) -> TaskNumber {
    TaskNumber(u64::try_from(id).unwrap_or_default())
}

/// Puts a task together from its rows, and holds every column against what we write. `messages` are by ascending id;
/// `Err`: a row of another form.
pub(crate) fn put_together(
    layout: Layout,
    task: FoundTask,
    messages: Vec<Result<FoundMessage, &'static str>>,
) -> Result<FinalTask, Damaged> {
    let number = number_of(task.number);
    assemble(layout, task, messages).map_err(|reason| Damaged::at(number, reason))
}

fn assemble(
    layout: Layout,
    task: FoundTask,
    messages: Vec<Result<FoundMessage, &'static str>>,
) -> Result<FinalTask, String> {
    let id = task.id.as_deref().and_then(|column| task_id(layout, column));
    let id = id.ok_or_else(|| format!("its {} is none", layout.marker()))?;
    let project_id = task.project_id.ok_or("its project_id is none")?;
    let time_ms = task.time_ms.ok_or("its created_at is none")?;
    let signature = task.signature.ok_or("its signature is none")?;
    if !task.as_made {
        return Err("its row in tasks is marked as deleted or changed".into());
    }
    let mut rows = Vec::with_capacity(messages.len());
    for message in messages {
        let FoundMessage { row, project_id: project, time_ms: time, as_made } = message?;
        let wrong = |what: &str| Err(format!("message row {}: {what}", row.sequence));
        if !as_made {
            return wrong("it is marked as deleted or changed");
        }
        if project != Some(project_id) || time != Some(time_ms) {
            return wrong("its project_id or created_at is not the task's");
        }
        rows.push(row);
    }
    let first = rows.first().map(|row| (row.project_version.clone(), row.device.clone()));
    if let Some((version, device)) = first
        && let Some(row) = rows.iter().find(|row| row.project_version != version || row.device != device)
    {
        return Err(format!("message row {}: its project_version or device is not the first one's", row.sequence));
    }
    let raw: Vec<_> = rows.iter().map(|row| (row.name.clone(), row.device.clone())).collect();
    let message_ids = task.message_ids.ok_or("its message_ids are none")?;
    let row = TaskRow { number: task.number, project_id, time_ms, message_ids, signature: signature.clone() };
    let found = tables::assemble(layout, &id, row, rows).map_err(|error| match error {
        OutputError::Foreign(reason) => reason,
        other => other.to_string(),
    })?;
    // What reads back as the same in another spelling is not the same for readers.
    let spelled = raw.iter().zip(&found.messages).all(|((name, device), message)| {
        *name == layout.message_column(&message.id) && *device == layout.device_column(&found.device)
    });
    if !spelled || signature != layout.signature_column(&found.signature) {
        return Err("an id, device or signature is spelled in another way".into());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lockstep_types::{Address, MessageId, ProjectId, Sequence, Signature, TimeMs};

    use super::*;
    use crate::output::FinalMessage;

    type Rows = (FoundTask, Vec<Result<FoundMessage, &'static str>>);

    fn task(layout: Layout) -> FinalTask {
        let id = if layout == Layout::Apinode { MessageId::ZERO } else { MessageId([4; 32]) };
        let message = |n: u64| FinalMessage { sequence: Sequence(n), id, data: Bytes::from_static(b"a") };
        FinalTask {
            number: TaskNumber(5),
            id: TaskId([0xab; 32]),
            project_id: ProjectId(7),
            project_version: "v1".to_owned(),
            device: Address([0xcd; 20]),
            time_ms: TimeMs(1_700_000_000_123),
            messages: vec![message(10), message(12)],
            signature: Signature([0xef; 65]),
            origin: None,
        }
    }

    fn rows(task: &FinalTask, layout: Layout) -> Rows {
        let message = |message: &FinalMessage| {
            Ok(FoundMessage {
                row: MessageRow {
                    sequence: tables::id_column(message.sequence.0),
                    name: layout.message_column(&message.id),
                    project_version: task.project_version.clone(),
                    device: layout.device_column(&task.device),
                    data: message.data.to_vec(),
                },
                project_id: Some(7),
                time_ms: Some(1_700_000_000_123),
                as_made: true,
            })
        };
        let found = FoundTask {
            number: 5,
            id: Some(layout.task_column(&task.id)),
            project_id: Some(7),
            time_ms: Some(1_700_000_000_123),
            message_ids: Some(layout.message_ids(task)),
            signature: Some(layout.signature_column(&task.signature)),
            as_made: true,
        };
        (found, task.messages.iter().map(message).collect())
    }

    #[test]
    fn every_column_counts() {
        type Change = fn(&mut Rows);
        let changes: [Change; 14] = [
            |rows| rows.0.id = None,
            |rows| rows.0.id.as_mut().unwrap().push(b'0'),
            |rows| rows.0.project_id = Some(8),
            |rows| rows.0.time_ms = Some(1),
            |rows| rows.0.message_ids = Some("[10]".into()),
            |rows| rows.0.signature = None,
            |rows| rows.0.as_made = false,
            |rows| drop(rows.1.pop()),
            |rows| rows.1.clear(),
            |rows| rows.1[1] = Err("of another form"),
            |rows| rows.1[1].as_mut().unwrap().project_id = Some(8),
            |rows| rows.1[1].as_mut().unwrap().row.project_version = "v2".into(),
            |rows| rows.1[1].as_mut().unwrap().as_made = false,
            |rows| rows.1[1].as_mut().unwrap().row.device.clear(),
        ];
        for layout in [Layout::Apinode, Layout::Sprout] {
            let whole = task(layout);
            let (found, messages) = rows(&whole, layout);
            assert_eq!(put_together(layout, found, messages), Ok(whole.clone()));
            for (n, change) in changes.iter().enumerate() {
                let mut changed = rows(&whole, layout);
                change(&mut changed);
                let damaged = put_together(layout, changed.0, changed.1).unwrap_err();
                assert_eq!((damaged.first, damaged.last), (whole.number, whole.number), "change {n}");
            }
        }
    }

    #[test]
    fn another_spelling_is_another_row() {
        let upper =
            |column: &[u8]| column.to_ascii_uppercase().iter().map(|b| if *b == b'X' { b'x' } else { *b }).collect();
        let whole = task(Layout::Sprout);
        let (mut found, messages) = rows(&whole, Layout::Sprout);
        found.id = Some(upper(&found.id.unwrap()));
        assert!(put_together(Layout::Sprout, found, messages).is_err());
        let (mut found, messages) = rows(&whole, Layout::Sprout);
        found.signature = Some(upper(&found.signature.unwrap()));
        assert!(put_together(Layout::Sprout, found, messages).unwrap_err().reason.contains("spelled"));
    }

    #[test]
    fn a_time_that_has_more_than_milliseconds_is_none_of_ours() {
        assert_eq!((whole_ms(5_000), whole_ms(5_001), whole_ms(i128::MAX)), (Some(5), None, None));
    }
}
