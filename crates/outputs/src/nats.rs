//! Tasks as messages of a NATS JetStream stream: one message a task, under a subject of its project.
//!
//! Every message says in its headers what the store's last task is once it is there, so the stream's last message is the
//! cursor. Every message also says which sequence has to be the stream's last one before it: that is the compare-and-set,
//! over the whole stream, and the server checks it however late or often a message comes. The message id, by which servers
//! drop copies for a while, is for readers; nothing depends on it. Whatever an answer says or none comes, what is in the
//! stream decides: it is read and compared. docs/formats.md, "NATS JetStream", has all headers.

mod append;
mod mark;
mod options;
mod session;
mod walk;
mod wish;

use std::time::Duration;

use async_nats::Client;
use async_trait::async_trait;
use lockstep_types::{TaskId, TaskNumber};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

pub use self::options::{NAME_BYTES_MAX, NatsOptions, NatsOptionsError};

use self::append::Broken;
use self::mark::{Kind, Mark, Range};
use self::options::Target;
use self::session::{Session, call_timeout, connect};
use self::walk::places;
use self::wish::{Scribe, TaskBlob, Wish};
use crate::blobs::singles_aside;
use crate::layout::Layout;
use crate::output::{Adopted, Adoption, FinalTask, Output, OutputError, Owner, Place, Receipt};
use crate::stored::Page;
use crate::tables::{self, Ours};

/// So few that each task is a part, and so a blob that checks itself, alone.
const PART_BYTES: usize = 1;
/// How often a write looks where the stream is when others write at the same time.
const ATTEMPTS_MAX: u32 = 10;
/// Rest before the second look, doubled for each further one: a message that was in the server's hands comes to be there.
const REST: Duration = Duration::from_millis(2);

/// Where the stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tip {
    sequence: u64,
    mark: Mark,
}

/// A stream of tasks.
pub struct NatsOutput {
    target: Target,
    owner: Owner,
    /// The connection, and the stream once it was found fit.
    open: Mutex<(Option<Client>, Option<Session>)>,
    /// Held by whoever writes, so that this value's own calls do not get in each other's way. Where the stream ended
    /// after the last write, if that is known.
    writing: Mutex<Option<Tip>>,
}

impl NatsOutput {
    /// Sets the client up; it connects at the first call.
    ///
    /// # Errors
    /// What is wrong with the options.
    pub fn new(options: &NatsOptions, owner: Owner) -> Result<Self, NatsOptionsError> {
        Ok(Self { target: options.check()?, owner, open: Mutex::default(), writing: Mutex::default() })
    }

    fn ours(&self) -> Ours {
        Ours { owner: self.owner, layout: Layout::Apinode }
    }

    /// The stream, opened if need be.
    async fn session(&self) -> Result<Session, OutputError> {
        let mut open = self.open.lock().await;
        let (client, session) = &mut *open;
        if let Some(session) = session {
            return Ok(session.clone());
        }
        let client = match client {
            Some(client) => client.clone(),
            None => client.insert(connect(&self.target).await?).clone(),
        };
        let found = Session::open(client, &self.target).await?;
        Ok(session.insert(found).clone())
    }

    /// Where the stream ends now. A new stream is said to be the owner's.
    async fn tip(&self, session: &Session) -> Result<Tip, OutputError> {
        for _ in 0..ATTEMPTS_MAX {
            let last = match session.last().await {
                // It may have been removed: the next call looks for it again.
                Err(error @ OutputError::Retryable(_)) => {
                    self.open.lock().await.1 = None;
                    return Err(error);
                }
                last => last?,
            };
            if let Some(entry) = last {
                return Ok(Tip { sequence: entry.sequence, mark: entry.mark });
            }
            let before = session.info().await?.state.last_sequence;
            if before > 0 {
                let reason = format!(
                    "all messages of the stream {} are gone, and with them what was published last; give it another stream",
                    session.name
                );
                return Err(OutputError::Foreign(reason));
            }
            let note = Scribe { session, owner: self.owner }.note(None, Kind::Owner);
            match session.append(0, &[note]).await {
                Ok(()) | Err(Broken::Elsewhere) => {}
                Err(Broken::Refused(_, reason) | Broken::Unknown(reason)) => {
                    return Err(OutputError::Retryable(reason));
                }
            }
        }
        Err(OutputError::Retryable(format!("the stream {} does not show what was put in", session.name)))
    }

    /// As [`NatsOutput::tip`], of this owner's stream.
    async fn own_tip(&self, session: &Session) -> Result<Tip, OutputError> {
        let tip = self.tip(session).await?;
        tip.mark.cursor(&self.owner)?.check_owner(&self.ours())?;
        Ok(tip)
    }

    /// Appends what makes a wish come true, until the stream ends where it was believed to. Returns where it ended
    /// before, and how many messages there are now.
    async fn write(
        &self,
        session: &Session,
        wish: Wish<'_>,
        writing: &mut Option<Tip>,
    ) -> Result<(Tip, usize), OutputError> {
        let scribe = Scribe { session, owner: self.owner };
        // Where it ended after the last write will do where the caller believes so too: the server says whether it is so.
        let mut known = match wish {
            Wish::Publish { expected_last, .. } => writing.filter(|tip| tip.mark.last == expected_last),
            _ => None,
        };
        let mut unknown = None;
        for attempt in 0..ATTEMPTS_MAX {
            if attempt > 1 {
                sleep(REST * (1 << (attempt - 2))).await;
            }
            let tip = match known.take() {
                Some(tip) => tip,
                None => self.tip(session).await?,
            };
            let messages = scribe.messages(&wish, &tip).await?;
            let Some(last) = messages.last().map(|message| message.mark) else { return Ok((tip, 0)) };
            // What may still be on its way is not begun again by the same call.
            if let Some(reason) = unknown {
                return Err(OutputError::Retryable(reason));
            }
            *writing = None;
            let appending = timeout(call_timeout(&self.target), session.append(tip.sequence, &messages));
            match appending.await.unwrap_or_else(|_| Err(Broken::Unknown("it took too long".to_owned()))) {
                Ok(()) => {
                    *writing = Some(Tip { sequence: tip.sequence + messages.len() as u64, mark: last });
                    return Ok((tip, messages.len()));
                }
                Err(Broken::Elsewhere) => {}
                Err(Broken::Unknown(reason)) => unknown = Some(reason),
                Err(Broken::Refused(index, reason)) => {
                    return Err(match messages[index].mark.kind {
                        Kind::Task(task, _) | Kind::Filled(task, _) => OutputError::Refused { task, reason },
                        _ => OutputError::Retryable(reason),
                    });
                }
            }
        }
        let reason = "others write into it all the time, or its last message was deleted";
        Err(OutputError::Retryable(format!("the stream {} cannot be written to: {reason}", session.name)))
    }

    /// As [`NatsOutput::write`], of what needs nothing else.
    async fn write_note(&self, wish: Wish<'_>) -> Result<Tip, OutputError> {
        let session = self.session().await?;
        let mut writing = self.writing.lock().await;
        self.write(&session, wish, &mut writing).await.map(|(tip, _)| tip)
    }

    /// Each task as a blob.
    async fn blobs(&self, session: &Session, tasks: &[FinalTask]) -> Result<Vec<TaskBlob>, OutputError> {
        let (bytes_max, whose) = session.payload_bytes_max();
        let pieces = singles_aside(tasks, bytes_max).await.map_err(|error| match error {
            OutputError::Refused { task, reason } => {
                OutputError::Refused { task, reason: format!("{reason} ({whose} is the limit)") }
            }
            error => error,
        })?;
        let projects = tasks.iter().map(|task| task.project_id.0);
        Ok(projects.zip(pieces).map(|(project, piece)| TaskBlob { project, piece }).collect())
    }

    /// Where these tasks are, if they are what the stream has under their numbers.
    async fn compare(
        &self,
        session: &Session,
        tasks: &[FinalTask],
        range: &Receipt,
        tip: &Tip,
    ) -> Result<Vec<Place>, OutputError> {
        let present = session.present((range.first, range.last), tip.sequence).await?;
        let mut found = Vec::with_capacity(tasks.len());
        for task in tasks {
            match present.get(&task.number) {
                Some((id, sequence)) if *id == task.id => found.push((task.number, *sequence)),
                Some(_) => return Err(tables::other_task(task.number)),
                // Passed by, by whoever moved the cursor.
                None => return Err(OutputError::Moved { actual_last: tip.mark.last }),
            }
        }
        Ok(places(&session.name, found))
    }
}

#[async_trait]
impl Output for NatsOutput {
    async fn publish(&self, tasks: &[FinalTask], expected_last: Option<TaskNumber>) -> Result<Receipt, OutputError> {
        let mut receipt = tables::check_tasks(tasks, &self.owner, expected_last)?;
        let session = self.session().await?;
        let blobs = self.blobs(&session, tasks).await?;
        let mut writing = self.writing.lock().await;
        let wish = Wish::Publish { tasks, blobs: &blobs, expected_last };
        let (tip, written) = self.write(&session, wish, &mut writing).await?;
        drop(writing);
        receipt.places = if written == 0 {
            self.compare(&session, tasks, &receipt, &tip).await?
        } else {
            places(&session.name, tasks.iter().map(|task| task.number).zip(tip.sequence + 1..))
        };
        Ok(receipt)
    }

    async fn skip(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        self.write_note(Wish::Move { last, expected_last, kind: Kind::Skipped }).await.map(drop)
    }

    async fn pass(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        self.write_note(Wish::Move { last, expected_last, kind: Kind::Passed }).await.map(drop)
    }

    async fn fill(&self, tasks: &[FinalTask]) -> Result<(), OutputError> {
        let range = tables::check_fill(tasks, &self.owner)?;
        let session = self.session().await?;
        let blobs = self.blobs(&session, tasks).await?;
        let mut writing = self.writing.lock().await;
        let wish = Wish::Fill { tasks, blobs: &blobs, range: (range.first, range.last) };
        self.write(&session, wish, &mut writing).await.map(drop)
    }

    async fn first_gap(&self, first: TaskNumber, last: TaskNumber) -> Result<Option<Range>, OutputError> {
        let session = self.session().await?;
        let tip = self.own_tip(&session).await?;
        Ok(session.notes_until(tip.sequence).await?.first_gap(first, last))
    }

    async fn complete(&self, first: TaskNumber, last: TaskNumber) -> Result<(), OutputError> {
        if self.first_gap(first, last).await?.is_none() {
            return Ok(());
        }
        self.write_note(Wish::Complete((first, last))).await.map(drop)
    }

    async fn last(&self) -> Result<Option<TaskNumber>, OutputError> {
        let session = self.session().await?;
        Ok(self.own_tip(&session).await?.mark.last)
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopted, OutputError> {
        let tip = self.write_note(Wish::Adopt(adoption)).await?;
        tip.mark.cursor(&self.owner)?.adopt(&self.ours(), adoption)
    }

    /// Reads the stream backwards: costs a request for each message behind the task.
    async fn read(&self, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        let session = self.session().await?;
        let tip = self.tip(&session).await?;
        session.search(id, tip.sequence).await
    }

    /// Costs a request for each task and each note, and a few to find the first one.
    async fn stored(&self, first: TaskNumber, max: usize, _places: &[Place]) -> Result<Page, OutputError> {
        if max == 0 {
            return Ok(Page::default());
        }
        let session = self.session().await?;
        let tip = self.own_tip(&session).await?;
        session.tasks_from(first, max, tip.sequence).await
    }

    fn part_bytes(&self) -> Option<usize> {
        Some(PART_BYTES)
    }
}

/// Headers of a message in a stream, one to a line, for the fuzz targets. True where they say whose it is.
#[doc(hidden)]
pub fn fuzz(text: &str) -> bool {
    let mut headers = async_nats::HeaderMap::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let (name, value) = (name.parse::<async_nats::HeaderName>(), value.trim().parse::<async_nats::HeaderValue>());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.insert(name, value);
        }
    }
    mark::Mark::parse(&headers, "a message").is_ok_and(|read| {
        assert!(mark::Mark::parse(&read.headers(), "a message").is_ok_and(|again| again == read));
        true
    })
}

/// The headers of a message that fills a task in, for the seeds of [`fuzz`].
#[doc(hidden)]
pub fn fuzz_seed() -> String {
    use lockstep_types::{Epoch, NetworkId, TaskId, TaskNumber};
    let kind = mark::Kind::Filled(TaskNumber(7), TaskId([7; 32]));
    let (network, last) = (NetworkId([1; 32]), Some(TaskNumber(9)));
    let mark = mark::Mark { network, epoch: Epoch(0), first_task: TaskNumber(1), last, kind };
    let lines = mark.headers().iter().map(|(name, values)| format!("{name}: {}\n", values[0])).collect::<Vec<_>>();
    lines.concat()
}
