//! What the tables of W3bstream's apinode generation can hold, and when a write to them is let in. The decisions that
//! the SQL stores share; no input or output here.

use bytes::Bytes;
use lockstep_types::{Address, Epoch, NetworkId, ProjectId, Sequence, Signature, TaskId, TaskNumber, TimeMs};

use crate::output::{Adopted, Adoption, FinalMessage, FinalTask, OutputError, Owner, Receipt};

/// Name of the layout in the cursor row. A store keeps the layout that it was made with: the generations of readers use
/// the same table names with different columns.
pub const LAYOUT: &str = "apinode";

/// End of the year 9999: what every store's time stamps can hold.
const TIME_MS_MAX: u64 = 253_402_300_799_999;
/// Ids are signed 64-bit numbers in the tables.
const ID_MAX: u64 = i64::MAX as u64;

/// The cursor row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub layout: String,
    pub network: Vec<u8>,
    pub epoch: i64,
    pub last: Option<TaskNumber>,
}

/// What to do with a call to publish, given the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The tasks follow what is there: write them.
    Append,
    /// The tasks' numbers are all there: compare ids, write nothing.
    Compare,
}

impl Cursor {
    /// Refuses a store that is not `owner`'s.
    pub(crate) fn check_owner(&self, owner: &Owner) -> Result<(), OutputError> {
        let foreign = |reason: String| Err(OutputError::Foreign(reason));
        if self.layout != LAYOUT {
            return foreign(format!("its tables have the layout {:?}, this output needs {LAYOUT:?}", self.layout));
        }
        if self.network != owner.network.0 {
            let theirs = hex::encode(&self.network);
            return foreign(format!("it holds tasks of network 0x{theirs}, this is {}", owner.network));
        }
        if self.epoch != epoch_column(owner.epoch) {
            let hint =
                if self.epoch < epoch_column(owner.epoch) { "; `lockstep outputs adopt` takes it over" } else { "" };
            return foreign(format!("it holds tasks of epoch {}, this is epoch {}{hint}", self.epoch, owner.epoch));
        }
        Ok(())
    }

    /// Whether and from what the store is to be taken over into `owner`'s epoch.
    pub(crate) fn adopt(&self, owner: &Owner, adoption: &Adoption) -> Result<Adopted, OutputError> {
        if self.epoch >= epoch_column(owner.epoch) {
            self.check_owner(owner)?;
        } else {
            // All but the epoch has to be right.
            Self { epoch: epoch_column(owner.epoch), ..self.clone() }.check_owner(owner)?;
        }
        let from = Epoch(u64::try_from(self.epoch).map_err(|_| damaged("the epoch"))?);
        let later = adoption.first_tasks.iter().filter(|(epoch, _)| *epoch > from && *epoch <= owner.epoch);
        let first = later.map(|(_, first)| *first).min();
        let foreign = self.last.zip(first).filter(|(last, first)| last >= first).map(|(last, first)| (first, last));
        match foreign {
            Some((first, last)) if !adoption.accept_ahead => Err(OutputError::Ahead { last, first }),
            foreign => Ok(Adopted { from, last: self.last, foreign }),
        }
    }

    /// Compare and set: whether `tasks` (checked by [`check_tasks`]) may be written after `expected_last`.
    pub(crate) fn admit(
        &self,
        owner: &Owner,
        tasks: &[FinalTask],
        expected_last: Option<TaskNumber>,
    ) -> Result<Admission, OutputError> {
        self.check_owner(owner)?;
        if self.last == expected_last {
            return Ok(Admission::Append);
        }
        match tasks.last() {
            Some(task) if self.last >= Some(task.number) => Ok(Admission::Compare),
            _ => Err(OutputError::Moved { actual_last: self.last }),
        }
    }
}

impl Cursor {
    /// Whether the cursor is to be moved from `expected_last` to `last`; false where it is there already.
    pub(crate) fn may_skip(
        &self,
        owner: &Owner,
        last: TaskNumber,
        expected_last: Option<TaskNumber>,
    ) -> Result<bool, OutputError> {
        self.check_owner(owner)?;
        if self.last >= Some(last) {
            return Ok(false);
        }
        if self.last == expected_last { Ok(true) } else { Err(OutputError::Moved { actual_last: self.last }) }
    }
}

impl Cursor {
    /// Which of `tasks` (checked by [`check_fill`]) are to be inserted below the cursor, given the rows `(number, task
    /// id)` found between the first and the last of them, ascending.
    pub(crate) fn may_fill<'a>(
        &self,
        owner: &Owner,
        tasks: &'a [FinalTask],
        found: &[(i64, Vec<u8>)],
    ) -> Result<Vec<&'a FinalTask>, OutputError> {
        self.check_owner(owner)?;
        if tasks.last().map(|task| task.number) > self.last {
            return Err(OutputError::Moved { actual_last: self.last });
        }
        let (mut rows, mut absent) = (found.iter().peekable(), Vec::new());
        for task in tasks {
            match rows.next_if(|(number, _)| *number == id_column(task.number.0)) {
                Some((_, id)) if id[..] == task.id.0 => {}
                Some(_) => return Err(other_task(task.number)),
                None => absent.push(task),
            }
        }
        Ok(absent)
    }
}

/// An epoch as it stands in the cursor row.
pub(crate) fn epoch_column(epoch: Epoch) -> i64 {
    i64::try_from(epoch.0).unwrap_or(i64::MAX)
}

/// An id that [`check_tasks`] or the database has bounded, as a column.
pub(crate) fn id_column(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

/// An id from a column. The tables are ours from 1 up; a negative number in them is damage.
pub(crate) fn id_from_column(id: i64) -> Result<u64, OutputError> {
    u64::try_from(id).map_err(|_| damaged("a negative id"))
}

/// The receipt for `tasks`.
pub(crate) fn receipt(tasks: &[FinalTask]) -> Option<Receipt> {
    let (first, last) = (tasks.first()?, tasks.last()?);
    Some(Receipt { first: first.number, last: last.number, last_id: last.id, places: Vec::new() })
}

/// Checks that `tasks` follow `expected_last` and each other, and that the tables can hold them, before anything is
/// sent. Returns the receipt that they will have.
pub(crate) fn check_tasks(
    tasks: &[FinalTask],
    owner: &Owner,
    expected_last: Option<TaskNumber>,
) -> Result<Receipt, OutputError> {
    let mut expected = owner.next(expected_last);
    for task in tasks {
        let refused = |reason: &str| OutputError::Refused { task: task.number, reason: reason.to_owned() };
        if task.number != expected {
            return Err(refused(&format!("task {expected} was expected here")));
        }
        check_task(task).map_err(refused)?;
        expected = expected.next();
    }
    receipt(tasks).ok_or(OutputError::Refused { task: expected, reason: "no task was given".to_owned() })
}

/// Checks that `tasks` follow each other, are the owner's, and that the tables can hold them.
pub(crate) fn check_fill(tasks: &[FinalTask], owner: &Owner) -> Result<Receipt, OutputError> {
    let first = tasks.first().map(|task| task.number).filter(|first| *first > owner.first_task_number);
    check_tasks(tasks, owner, first.map(|first| TaskNumber(first.0 - 1)))
}

fn check_task(task: &FinalTask) -> Result<(), &'static str> {
    if task.messages.is_empty() {
        return Err("it has no message");
    }
    if !task.messages.is_sorted_by(|a, b| a.sequence < b.sequence) {
        return Err("its messages are not in ascending order");
    }
    let last_sequence = task.messages.last().map_or(0, |m| m.sequence.0);
    if task.number.0 >= ID_MAX || last_sequence > ID_MAX || task.project_id.0 > ID_MAX {
        return Err("a number is above 2^63 - 1");
    }
    if task.project_version.contains('\0') {
        return Err("the project version contains the character NUL");
    }
    if task.time_ms.0 > TIME_MS_MAX {
        return Err("its time is after the year 9999");
    }
    Ok(())
}

/// `message_ids` of a task: a JSON array of integers.
pub(crate) fn message_ids(task: &FinalTask) -> String {
    let mut out = String::with_capacity(2 + 8 * task.messages.len());
    for (i, message) in task.messages.iter().enumerate() {
        out.push(if i == 0 { '[' } else { ',' });
        out.push_str(&message.sequence.to_string());
    }
    out.push(']');
    out
}

/// What is stored in the place of a task is not that task: somebody else wrote.
pub(crate) fn other_task(number: TaskNumber) -> OutputError {
    OutputError::Foreign(format!("another task has the number {number}"))
}

/// Rows that no Lockstep has written.
pub(crate) fn damaged(what: &str) -> OutputError {
    OutputError::Foreign(format!("its rows were changed: {what}"))
}

/// Compares the rows `(number, task id)` found between the first and the last number of `tasks`, ascending, with `tasks`.
pub(crate) fn compare(tasks: &[FinalTask], found: &[(i64, Vec<u8>)]) -> Result<(), OutputError> {
    let mut rows = found.iter();
    for task in tasks {
        match rows.next() {
            Some((number, id)) if *number == id_column(task.number.0) && id[..] == task.id.0 => {}
            _ => return Err(other_task(task.number)),
        }
    }
    Ok(())
}

/// A row of `tasks` as it was read.
#[derive(Debug)]
pub(crate) struct TaskRow {
    pub number: i64,
    pub project_id: i64,
    pub time_ms: i64,
    pub message_ids: String,
    pub signature: Vec<u8>,
}

/// A row of `messages` as it was read.
#[derive(Debug)]
pub(crate) struct MessageRow {
    pub sequence: i64,
    pub project_version: String,
    pub device: Vec<u8>,
    pub data: Vec<u8>,
}

/// Puts a task together from its rows; `messages` are by ascending id.
pub(crate) fn assemble(id: &TaskId, task: TaskRow, messages: Vec<MessageRow>) -> Result<FinalTask, OutputError> {
    let listed: Vec<i64> = serde_json::from_str(&task.message_ids).map_err(|_| damaged("message_ids"))?;
    if !listed.iter().eq(messages.iter().map(|m| &m.sequence)) {
        return Err(damaged("message_ids do not name the task's messages"));
    }
    let first = messages.first().ok_or_else(|| damaged("a task without messages"))?;
    let device = Address::try_from(&first.device[..]).map_err(|_| damaged("device_id"))?;
    let project_version = first.project_version.clone();
    let message = |row: MessageRow| {
        Ok(FinalMessage { sequence: Sequence(id_from_column(row.sequence)?), data: Bytes::from(row.data) })
    };
    Ok(FinalTask {
        number: TaskNumber(id_from_column(task.number)?),
        id: *id,
        project_id: ProjectId(id_from_column(task.project_id)?),
        project_version,
        device,
        time_ms: TimeMs(u64::try_from(task.time_ms).map_err(|_| damaged("created_at"))?),
        messages: messages.into_iter().map(message).collect::<Result<_, OutputError>>()?,
        signature: Signature::try_from(&task.signature[..]).map_err(|_| damaged("signature"))?,
        origin: None,
    })
}

/// The refusal to adopt tables that already hold what Lockstep's ids would run into.
pub(crate) fn occupied() -> OutputError {
    OutputError::Foreign(
        "its tables already hold messages, or tasks with numbers that this network will use, that Lockstep did not \
         write; give it an empty schema or file"
            .to_owned(),
    )
}

/// The network id as it stands in the cursor row.
pub(crate) fn network_column(network: &NetworkId) -> &[u8] {
    &network.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner { network: NetworkId([1; 32]), epoch: Epoch(0), first_task_number: TaskNumber(5) };

    fn task(number: u64) -> FinalTask {
        FinalTask {
            number: TaskNumber(number),
            id: TaskId([number as u8; 32]),
            project_id: ProjectId(7),
            project_version: "v1".to_owned(),
            device: Address([2; 20]),
            time_ms: TimeMs(1_700_000_000_123),
            messages: vec![
                FinalMessage { sequence: Sequence(number * 2), data: Bytes::from_static(b"a") },
                FinalMessage { sequence: Sequence(number * 2 + 1), data: Bytes::new() },
            ],
            signature: Signature([3; 65]),
            origin: None,
        }
    }

    fn cursor(last: Option<u64>) -> Cursor {
        Cursor { layout: LAYOUT.to_owned(), network: vec![1; 32], epoch: 0, last: last.map(TaskNumber) }
    }

    #[test]
    fn tasks_that_do_not_follow_are_refused_before_anything_is_written() {
        assert!(check_tasks(&[task(5), task(6)], &OWNER, None).is_ok());
        assert!(check_tasks(&[task(6)], &OWNER, Some(TaskNumber(5))).is_ok());
        for (tasks, last) in [(vec![task(4)], None), (vec![task(5), task(7)], None), (vec![], Some(TaskNumber(5)))] {
            assert!(matches!(check_tasks(&tasks, &OWNER, last), Err(OutputError::Refused { .. })));
        }
    }

    #[test]
    fn what_the_columns_cannot_hold_is_refused_by_number() {
        type Change = fn(&mut FinalTask);
        let changes: [Change; 6] = [
            |t| t.messages.clear(),
            |t| t.messages.reverse(),
            |t| t.project_id = ProjectId(1 << 63),
            |t| t.messages[1].sequence = Sequence(u64::MAX),
            |t| t.project_version = "a\0b".to_owned(),
            |t| t.time_ms = TimeMs(u64::MAX),
        ];
        for change in changes {
            let mut bad = task(6);
            change(&mut bad);
            let result = check_tasks(&[task(5), bad], &OWNER, None);
            assert!(matches!(result, Err(OutputError::Refused { task: TaskNumber(6), .. })), "{result:?}");
        }
    }

    #[test]
    fn a_write_is_let_in_only_where_the_store_is_what_the_writer_believes() {
        let tasks = [task(5), task(6)];
        assert_eq!(cursor(None).admit(&OWNER, &tasks, None), Ok(Admission::Append));
        assert_eq!(cursor(Some(6)).admit(&OWNER, &tasks, None), Ok(Admission::Compare));
        assert_eq!(cursor(Some(9)).admit(&OWNER, &tasks, None), Ok(Admission::Compare));
        let moved = OutputError::Moved { actual_last: Some(TaskNumber(5)) };
        assert_eq!(cursor(Some(5)).admit(&OWNER, &tasks, None), Err(moved));
        let moved = OutputError::Moved { actual_last: None };
        assert_eq!(cursor(None).admit(&OWNER, &[task(6)], Some(TaskNumber(5))), Err(moved));
    }

    #[test]
    fn only_what_is_absent_below_the_cursor_is_filled_in() {
        let tasks = [task(5), task(6), task(7)];
        assert!(check_fill(&tasks, &OWNER).is_ok() && check_fill(&tasks[1..], &OWNER).is_ok());
        for bad in [&[task(4), task(5)][..], &[task(5), task(7)], &[]] {
            assert!(matches!(check_fill(bad, &OWNER), Err(OutputError::Refused { .. })));
        }
        let row = |number: u64, id: u64| (id_column(number), task(id).id.0.to_vec());
        let absent = cursor(Some(9)).may_fill(&OWNER, &tasks, &[row(6, 6)]).unwrap();
        assert_eq!(absent.iter().map(|task| task.number.0).collect::<Vec<_>>(), [5, 7]);
        assert_eq!(cursor(Some(9)).may_fill(&OWNER, &tasks, &[row(5, 5), row(6, 6), row(7, 7)]), Ok(vec![]));
        assert!(matches!(cursor(Some(9)).may_fill(&OWNER, &tasks, &[row(6, 8)]), Err(OutputError::Foreign(_))));
        for last in [None, Some(6)] {
            let moved = OutputError::Moved { actual_last: last.map(TaskNumber) };
            assert_eq!(cursor(last).may_fill(&OWNER, &tasks, &[]), Err(moved));
        }
    }

    #[test]
    fn another_network_epoch_or_layout_is_foreign() {
        let mut others = [cursor(None), cursor(None), cursor(None)];
        others[0].network = vec![9; 32];
        others[1].epoch = 1;
        others[2].layout = "sprout".to_owned();
        for other in others {
            assert!(matches!(other.admit(&OWNER, &[task(5)], None), Err(OutputError::Foreign(_))));
        }
    }

    #[test]
    fn a_task_is_put_together_only_from_the_rows_it_was_written_as() {
        let whole = task(5);
        let rows = |skip: usize| -> Vec<MessageRow> {
            let row = |m: &FinalMessage| MessageRow {
                sequence: id_column(m.sequence.0),
                project_version: whole.project_version.clone(),
                device: whole.device.0.to_vec(),
                data: m.data.to_vec(),
            };
            whole.messages.iter().skip(skip).map(row).collect()
        };
        let task_row = || TaskRow {
            number: 5,
            project_id: 7,
            time_ms: id_column(whole.time_ms.0),
            message_ids: message_ids(&whole),
            signature: whole.signature.0.to_vec(),
        };
        assert_eq!(message_ids(&whole), "[10,11]");
        assert_eq!(assemble(&whole.id, task_row(), rows(0)), Ok(whole.clone()));
        assert!(matches!(assemble(&whole.id, task_row(), rows(1)), Err(OutputError::Foreign(_))));
    }
}
