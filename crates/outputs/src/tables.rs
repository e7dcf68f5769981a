//! What the tables of W3bstream's generations can hold, and when a write to them is let in. The decisions that the SQL
//! stores share; no input or output here.

use bytes::Bytes;
use lockstep_types::{Epoch, NetworkId, ProjectId, Sequence, TaskId, TaskNumber, TimeMs};

use crate::aside::RefusedTask;
use crate::layout::Layout;
use crate::output::{Adopted, Adoption, FinalMessage, FinalTask, OutputError, Owner, Receipt};

/// End of the year 9999: what every store's time stamps can hold.
const TIME_MS_MAX: u64 = 253_402_300_799_999;
/// Ids are signed 64-bit numbers in the tables.
const ID_MAX: u64 = i64::MAX as u64;

/// Whose a store has to be, and for which readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ours {
    pub owner: Owner,
    pub layout: Layout,
}

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

/// A project that a refused task halts, and the number from which on its tasks wait.
pub(crate) type Halt = (ProjectId, TaskNumber);

impl Cursor {
    /// Refuses a store that is not `owner`'s.
    pub(crate) fn check_owner(&self, ours: &Ours) -> Result<(), OutputError> {
        let (owner, foreign) = (&ours.owner, |reason: String| Err(OutputError::Foreign(reason)));
        if self.layout != ours.layout.name() {
            return Err(other_layout(&self.layout, ours.layout));
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
    pub(crate) fn adopt(&self, ours: &Ours, adoption: &Adoption) -> Result<Adopted, OutputError> {
        let owner = &ours.owner;
        if self.epoch >= epoch_column(owner.epoch) {
            self.check_owner(ours)?;
        } else {
            // All but the epoch has to be right.
            Self { epoch: epoch_column(owner.epoch), ..self.clone() }.check_owner(ours)?;
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
        ours: &Ours,
        tasks: &[FinalTask],
        expected_last: Option<TaskNumber>,
    ) -> Result<Admission, OutputError> {
        self.check_owner(ours)?;
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
        ours: &Ours,
        last: TaskNumber,
        expected_last: Option<TaskNumber>,
    ) -> Result<bool, OutputError> {
        self.check_owner(ours)?;
        if self.last >= Some(last) {
            return Ok(false);
        }
        if self.last == expected_last { Ok(true) } else { Err(OutputError::Moved { actual_last: self.last }) }
    }
}

impl Cursor {
    /// Which of `tasks` (checked by [`check_fill`]) are to be inserted below the cursor, given the rows `(number, task
    /// id)` found between the first and the last of them, ascending, and the projects that halt.
    pub(crate) fn may_fill<'a>(
        &self,
        ours: &Ours,
        tasks: &'a [FinalTask],
        found: &[(i64, Vec<u8>)],
        halts: &[Halt],
    ) -> Result<Vec<&'a FinalTask>, OutputError> {
        self.check_owner(ours)?;
        if tasks.last().map(|task| task.number) > self.last {
            return Err(OutputError::Moved { actual_last: self.last });
        }
        let absent = absent(tasks, found, ours.layout)?;
        let halted = |task: &&&FinalTask| halts.iter().any(|(p, from)| *p == task.project_id && *from <= task.number);
        if let Some(task) = absent.iter().find(halted) {
            let reason = format!("project {} is halted by a refused task: retry that first", task.project_id);
            return Err(OutputError::Refused { task: task.number, reason });
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

/// Checks that `tasks` come behind `expected_last` in ascending order, and that the tables can hold them, before
/// anything is sent. Returns the receipt that they will have.
pub(crate) fn check_tasks(
    tasks: &[FinalTask],
    owner: &Owner,
    expected_last: Option<TaskNumber>,
) -> Result<Receipt, OutputError> {
    let mut least = owner.next(expected_last);
    for task in tasks {
        let refused = |reason: &str| OutputError::Refused { task: task.number, reason: reason.to_owned() };
        if task.number < least {
            return Err(refused(&format!("task {least} or a later one was expected here")));
        }
        check_task(task).map_err(refused)?;
        least = task.number.next();
    }
    receipt(tasks).ok_or(OutputError::Refused { task: least, reason: "no task was given".to_owned() })
}

/// Checks that `tasks` are the owner's in ascending order, and that the tables can hold them.
pub(crate) fn check_fill(tasks: &[FinalTask], owner: &Owner) -> Result<Receipt, OutputError> {
    check_tasks(tasks, owner, None)
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

/// What is stored in the place of a task is not that task: somebody else wrote.
pub(crate) fn other_task(number: TaskNumber) -> OutputError {
    OutputError::Foreign(format!("another task has the number {number}"))
}

/// Rows that no Lockstep has written.
pub(crate) fn damaged(what: &str) -> OutputError {
    OutputError::Foreign(format!("its rows were changed: {what}"))
}

/// The tables are of other readers.
pub(crate) fn other_layout(found: &str, wanted: Layout) -> OutputError {
    OutputError::Foreign(format!(
        "its tables have the layout {found:?}, this output needs {:?}; give it a schema or file of its own",
        wanted.name()
    ))
}

/// Which of `tasks` have no row among `found`, `(number, task id)` by ascending number.
fn absent<'a>(
    tasks: &'a [FinalTask],
    found: &[(i64, Vec<u8>)],
    layout: Layout,
) -> Result<Vec<&'a FinalTask>, OutputError> {
    let (mut rows, mut absent) = (found.iter().peekable(), Vec::new());
    for task in tasks {
        let number = id_column(task.number.0);
        while rows.next_if(|(found, _)| *found < number).is_some() {}
        match rows.next_if(|(found, _)| *found == number) {
            Some((_, id)) if *id == layout.task_column(&task.id) => {}
            Some(_) => return Err(other_task(task.number)),
            None => absent.push(task),
        }
    }
    Ok(absent)
}

/// Compares the rows `(number, task id)` found between the first and the last number of `tasks`, ascending, with `tasks`.
/// Some that are missing were passed by, by whoever moved the cursor: it is for the caller to go on from there.
pub(crate) fn compare(
    tasks: &[FinalTask],
    found: &[(i64, Vec<u8>)],
    layout: Layout,
    actual_last: Option<TaskNumber>,
) -> Result<(), OutputError> {
    if absent(tasks, found, layout)?.is_empty() { Ok(()) } else { Err(OutputError::Moved { actual_last }) }
}

/// A row of refused tasks.
pub(crate) fn refused_row(
    (number, project): (i64, i64),
    id: Option<Vec<u8>>,
    reason: String,
) -> Result<RefusedTask, OutputError> {
    let id = id.map(|id| TaskId::try_from(&id[..]).map_err(|_| damaged("the id of a refused task"))).transpose()?;
    let (number, project_id) = (TaskNumber(id_from_column(number)?), ProjectId(id_from_column(project)?));
    Ok(RefusedTask { number, id, project_id, reason })
}

/// Checks a call to resume a project: its tasks lie between both numbers, and the tables can hold them.
pub(crate) fn check_resume(
    from: TaskNumber,
    tasks: &[FinalTask],
    to: &RefusedTask,
    ours: &Ours,
) -> Result<(), OutputError> {
    if let Some(task) = tasks.iter().find(|t| t.number < from || t.number >= to.number || t.project_id != to.project_id)
    {
        let reason = "it is not one of those that wait".to_owned();
        return Err(OutputError::Refused { task: task.number, reason });
    }
    if tasks.is_empty() { Ok(()) } else { check_tasks(tasks, &ours.owner, None).map(drop) }
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

/// A row of `messages` as it was read: texts are their bytes.
#[derive(Debug)]
pub(crate) struct MessageRow {
    pub sequence: i64,
    pub name: Vec<u8>,
    pub project_version: String,
    pub device: Vec<u8>,
    pub data: Vec<u8>,
}

/// Puts a task together from its rows; `messages` are by ascending id.
pub(crate) fn assemble(
    layout: Layout,
    id: &TaskId,
    task: TaskRow,
    messages: Vec<MessageRow>,
) -> Result<FinalTask, OutputError> {
    let first = messages.first().ok_or_else(|| damaged("a task without messages"))?;
    let device = layout.device(&first.device).ok_or_else(|| damaged("the device"))?;
    let project_version = first.project_version.clone();
    let message = |row: MessageRow| {
        let id = layout.message_id(&row.name).ok_or_else(|| damaged("message_id"))?;
        Ok(FinalMessage { sequence: Sequence(id_from_column(row.sequence)?), id, data: Bytes::from(row.data) })
    };
    let messages = messages.into_iter().map(message).collect::<Result<Vec<_>, OutputError>>()?;
    if !layout.names_messages(&task.message_ids, &messages) {
        return Err(damaged("message_ids do not name the task's messages"));
    }
    Ok(FinalTask {
        number: TaskNumber(id_from_column(task.number)?),
        id: *id,
        project_id: ProjectId(id_from_column(task.project_id)?),
        project_version,
        device,
        time_ms: TimeMs(u64::try_from(task.time_ms).map_err(|_| damaged("created_at"))?),
        messages,
        signature: layout.signature(&task.signature).ok_or_else(|| damaged("signature"))?,
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
    use lockstep_types::{Address, MessageId, Signature};

    use super::*;

    const OURS: Ours = Ours { owner: OWNER, layout: Layout::Apinode };
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
                FinalMessage { sequence: Sequence(number * 2), id: MessageId([4; 32]), data: Bytes::from_static(b"a") },
                FinalMessage { sequence: Sequence(number * 2 + 1), id: MessageId([5; 32]), data: Bytes::new() },
            ],
            signature: Signature([3; 65]),
            origin: None,
        }
    }

    fn cursor(last: Option<u64>) -> Cursor {
        Cursor { layout: "apinode".to_owned(), network: vec![1; 32], epoch: 0, last: last.map(TaskNumber) }
    }

    #[test]
    fn tasks_that_do_not_follow_are_refused_before_anything_is_written() {
        assert!(check_tasks(&[task(5), task(6)], &OWNER, None).is_ok());
        assert!(check_tasks(&[task(6)], &OWNER, Some(TaskNumber(5))).is_ok());
        // Numbers between are for other stores: the caller vouches for that.
        assert!(check_tasks(&[task(7), task(9)], &OWNER, Some(TaskNumber(5))).is_ok());
        for (tasks, last) in [
            (vec![task(4)], None),
            (vec![task(6), task(5)], None),
            (vec![task(5)], Some(TaskNumber(5))),
            (vec![], Some(TaskNumber(5))),
        ] {
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
        assert_eq!(cursor(None).admit(&OURS, &tasks, None), Ok(Admission::Append));
        assert_eq!(cursor(Some(6)).admit(&OURS, &tasks, None), Ok(Admission::Compare));
        assert_eq!(cursor(Some(9)).admit(&OURS, &tasks, None), Ok(Admission::Compare));
        let moved = OutputError::Moved { actual_last: Some(TaskNumber(5)) };
        assert_eq!(cursor(Some(5)).admit(&OURS, &tasks, None), Err(moved));
        let moved = OutputError::Moved { actual_last: None };
        assert_eq!(cursor(None).admit(&OURS, &[task(6)], Some(TaskNumber(5))), Err(moved));
    }

    #[test]
    fn only_what_is_absent_below_the_cursor_is_filled_in() {
        let tasks = [task(5), task(6), task(7)];
        assert!(check_fill(&tasks, &OWNER).is_ok() && check_fill(&tasks[1..], &OWNER).is_ok());
        for bad in [&[task(4), task(5)][..], &[task(7), task(5)], &[]] {
            assert!(matches!(check_fill(bad, &OWNER), Err(OutputError::Refused { .. })));
        }
        let row = |number: u64, id: u64| (id_column(number), task(id).id.0.to_vec());
        let absent = cursor(Some(9)).may_fill(&OURS, &tasks, &[row(6, 6)], &[]).unwrap();
        assert_eq!(absent.iter().map(|task| task.number.0).collect::<Vec<_>>(), [5, 7]);
        assert_eq!(cursor(Some(9)).may_fill(&OURS, &tasks, &[row(5, 5), row(6, 6), row(7, 7)], &[]), Ok(vec![]));
        assert!(matches!(cursor(Some(9)).may_fill(&OURS, &tasks, &[row(6, 8)], &[]), Err(OutputError::Foreign(_))));
        for last in [None, Some(6)] {
            let moved = OutputError::Moved { actual_last: last.map(TaskNumber) };
            assert_eq!(cursor(last).may_fill(&OURS, &tasks, &[], &[]), Err(moved));
        }
    }

    #[test]
    fn another_network_epoch_or_layout_is_foreign() {
        let mut others = [cursor(None), cursor(None), cursor(None)];
        others[0].network = vec![9; 32];
        others[1].epoch = 1;
        others[2].layout = "sprout".to_owned();
        for other in others {
            assert!(matches!(other.admit(&OURS, &[task(5)], None), Err(OutputError::Foreign(_))));
        }
    }

    #[test]
    fn tasks_of_a_halted_project_are_not_filled_in_behind_its_halt() {
        let ours = Ours { layout: Layout::Sprout, ..OURS };
        let cursor = Cursor { layout: "sprout".to_owned(), ..cursor(Some(9)) };
        let fill = |halt: u64| cursor.may_fill(&ours, &[task(5)], &[], &[(ProjectId(7), TaskNumber(halt))]).map(drop);
        assert_eq!(fill(6), Ok(()));
        assert!(matches!(fill(5), Err(OutputError::Refused { task: TaskNumber(5), .. })));
    }

    #[test]
    fn what_was_passed_by_is_told_from_what_is_another_task() {
        let (tasks, last) = ([task(5), task(6)], Some(TaskNumber(9)));
        let rows = |ids: &[u64]| ids.iter().map(|id| (5, task(*id).id.0.to_vec())).collect::<Vec<_>>();
        let result = compare(&tasks, &rows(&[5]), Layout::Apinode, last);
        assert_eq!(result, Err(OutputError::Moved { actual_last: last }));
        assert!(matches!(compare(&tasks, &rows(&[6]), Layout::Apinode, last), Err(OutputError::Foreign(_))));
    }

    fn rows_of(task: &FinalTask, layout: Layout) -> (TaskRow, Vec<MessageRow>) {
        let text = |text: String| text.into_bytes();
        let sprout = layout == Layout::Sprout;
        let row = |m: &FinalMessage| MessageRow {
            sequence: id_column(m.sequence.0),
            name: if sprout { text(m.id.to_string()) } else { Vec::new() },
            project_version: task.project_version.clone(),
            device: if sprout { text(format!("did:io:{}", task.device)) } else { task.device.0.to_vec() },
            data: m.data.to_vec(),
        };
        let task_row = TaskRow {
            number: 5,
            project_id: 7,
            time_ms: id_column(task.time_ms.0),
            message_ids: layout.message_ids(task),
            signature: if sprout { text(task.signature.to_string()) } else { task.signature.0.to_vec() },
        };
        (task_row, task.messages.iter().map(row).collect())
    }

    #[test]
    fn a_task_is_put_together_only_from_the_rows_it_was_written_as() {
        let mut whole = task(5);
        assert_eq!(Layout::Apinode.message_ids(&whole), "[10,11]");
        let names = format!("[\"0x{}\",\"0x{}\"]", "04".repeat(32), "05".repeat(32));
        assert_eq!(Layout::Sprout.message_ids(&whole), names);
        for layout in [Layout::Sprout, Layout::Apinode] {
            if layout == Layout::Apinode {
                // Its tables do not hold them.
                whole.messages.iter_mut().for_each(|message| message.id = MessageId::ZERO);
            }
            let (row, messages) = rows_of(&whole, layout);
            assert_eq!(assemble(layout, &whole.id, row, messages), Ok(whole.clone()));
            let (row, mut messages) = rows_of(&whole, layout);
            messages.remove(0);
            assert!(matches!(assemble(layout, &whole.id, row, messages), Err(OutputError::Foreign(_))));
        }
    }
}
