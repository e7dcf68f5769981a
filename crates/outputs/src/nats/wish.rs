//! What is to be written, and what of it depends on where the stream ends.

use lockstep_types::{TaskId, TaskNumber};

use super::Tip;
use super::append::Message;
use super::mark::{Kind, Mark, Range};
use super::session::Session;
use crate::blobs::Piece;
use crate::layout::Layout;
use crate::output::{Adoption, FinalTask, OutputError, Owner};
use crate::tables::{self, Admission, Ours};

/// A task's blob.
#[derive(Debug, Clone)]
pub(super) struct TaskBlob {
    pub project: u64,
    pub piece: Piece,
}

/// A call that writes.
pub(super) enum Wish<'a> {
    /// Tasks behind the last one.
    Publish { tasks: &'a [FinalTask], blobs: &'a [TaskBlob], expected_last: Option<TaskNumber> },
    /// Tasks below it.
    Fill { tasks: &'a [FinalTask], blobs: &'a [TaskBlob], range: Range },
    /// No task, but another last one.
    Move { last: TaskNumber, expected_last: Option<TaskNumber>, kind: fn(Range) -> Kind },
    /// Nothing is missing there any more.
    Complete(Range),
    /// Another epoch.
    Adopt(&'a Adoption),
}

/// What tasks and notes are written as.
pub(super) struct Scribe<'a> {
    pub session: &'a Session,
    pub owner: Owner,
}

impl Scribe<'_> {
    pub fn ours(&self) -> Ours {
        Ours { owner: self.owner, layout: Layout::Apinode }
    }

    pub fn note(&self, last: Option<TaskNumber>, kind: Kind) -> Message {
        let subject = self.session.subject_of(&kind, None);
        Message { subject, mark: Mark::new(&self.owner, last, kind), payload: Vec::new().into() }
    }

    /// What to append where the stream ends at `tip`; nothing where the wish has come true already.
    ///
    /// # Errors
    /// Why it must not be.
    pub async fn messages(&self, wish: &Wish<'_>, tip: &Tip) -> Result<Vec<Message>, OutputError> {
        let (cursor, ours) = (tip.mark.cursor(&self.owner)?, self.ours());
        match wish {
            Wish::Publish { tasks, blobs, expected_last } => match cursor.admit(&ours, tasks, *expected_last)? {
                Admission::Compare => Ok(Vec::new()),
                Admission::Append => {
                    Ok(blobs.iter().map(|blob| self.task(blob, Some(blob.piece.first), Kind::Task)).collect())
                }
            },
            Wish::Fill { tasks, blobs, range } => {
                cursor.check_owner(&ours)?;
                let present = self.session.present(*range, tip.sequence).await?;
                let column =
                    |(number, (id, _)): (&TaskNumber, &(TaskId, u64))| (tables::id_column(number.0), id.0.to_vec());
                let found: Vec<_> = present.iter().map(column).collect();
                let absent = cursor.may_fill(&ours, tasks, &found, &[])?;
                let (Some(first), Some(last)) = (absent.first(), absent.last()) else { return Ok(Vec::new()) };
                let mut messages = vec![self.note(tip.mark.last, Kind::Filling((first.number, last.number)))];
                let absent = blobs.iter().filter(|blob| !present.contains_key(&blob.piece.first));
                messages.extend(absent.map(|blob| self.task(blob, tip.mark.last, Kind::Filled)));
                Ok(messages)
            }
            Wish::Move { last, expected_last, kind } => {
                let may = cursor.may_skip(&ours, *last, *expected_last)?;
                let range = (self.owner.next(*expected_last), *last);
                Ok(may.then(|| self.note(Some(*last), kind(range))).into_iter().collect())
            }
            Wish::Complete(range) => {
                cursor.check_owner(&ours)?;
                Ok(vec![self.note(tip.mark.last, Kind::Complete(*range))])
            }
            Wish::Adopt(adoption) => {
                let adopted = cursor.adopt(&ours, adoption)?;
                let is_new = adopted.from != self.owner.epoch;
                Ok(is_new.then(|| self.note(tip.mark.last, Kind::Epoch)).into_iter().collect())
            }
        }
    }

    fn task(&self, blob: &TaskBlob, last: Option<TaskNumber>, kind: fn(TaskNumber, TaskId) -> Kind) -> Message {
        let kind = kind(blob.piece.first, blob.piece.tasks[0].1);
        let subject = self.session.subject_of(&kind, Some(blob.project));
        Message { subject, mark: Mark::new(&self.owner, last, kind), payload: blob.piece.bytes.clone() }
    }
}
