//! The requests: the stream is found or made, and messages are read. All of them are answered by the stream's leader,
//! so that what was acknowledged is seen; other servers may be behind.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::context::{ContextBuilder, CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{
    Config, Info, RawMessageBuilder, RawMessageErrorKind, RetentionPolicy, StorageType, Stream,
};
use async_nats::jetstream::{Context, ErrorCode};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::timeout;

use super::append::IN_FLIGHT_MAX;
use super::mark::{HEADERS_BYTES_MAX, Kind, Mark};
use super::options::Target;
use crate::origin::tasks_of;
use crate::output::{FinalTask, OutputError};
use lockstep_types::blob::Blob;

/// Requests for messages that are under way at a time.
const REQUESTS_MAX: usize = 64;
/// Messages of one page of a walk.
pub(super) const PAGE_MESSAGES: u64 = 256;
/// How long answers are waited for, in turn, in parts of the longest wait.
const WAIT_PARTS: [u32; 4] = [8, 4, 2, 1];
/// For connecting to one of the servers, in answers' time limits.
const CONNECT_TIMEOUTS: u32 = 3;
/// Longest error text that is shown.
const REASON_CHARS_MAX: usize = 300;

/// A message of the stream.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub sequence: u64,
    pub mark: Mark,
    pub payload: Bytes,
}

/// An open stream.
#[derive(Clone)]
pub(super) struct Session {
    pub context: Context,
    stream: Stream,
    pub name: String,
    pub subject: String,
    /// Bytes that a message has at most, with its headers, as the stream says; `None`: as the server does.
    message_bytes_max: Option<usize>,
    timeout: Duration,
}

/// What went wrong, in one sentence.
pub(super) fn reason(error: &dyn std::fmt::Display) -> String {
    error.to_string().chars().take(REASON_CHARS_MAX).collect()
}

pub(super) fn retryable(error: &dyn std::fmt::Display) -> OutputError {
    OutputError::Retryable(reason(error))
}

/// Connects to one of the servers; the client changes to others by itself from then on.
pub(super) async fn connect(target: &Target) -> Result<Client, OutputError> {
    let connecting = target.connect.clone().connect(target.servers.as_slice());
    match timeout(target.timeout * CONNECT_TIMEOUTS, connecting).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => Err(OutputError::Retryable(format!("no connection to NATS: {}", reason(&error)))),
        Err(_) => Err(OutputError::Retryable("no connection to NATS in time".to_owned())),
    }
}

/// Asks again and longer where no answer comes: while a stream has no leader nobody answers, and who leads it then has
/// not heard the question.
async fn patiently<T, F: Future<Output = T>>(longest: Duration, mut ask: impl FnMut() -> F) -> Result<T, OutputError> {
    for part in WAIT_PARTS {
        if let Ok(answer) = timeout(longest / part, ask()).await {
            return Ok(answer);
        }
    }
    Err(OutputError::Retryable("no server of NATS answers for the stream".to_owned()))
}

impl Session {
    /// Finds the stream, or makes it.
    pub async fn open(client: Client, target: &Target) -> Result<Self, OutputError> {
        let context = ContextBuilder::new()
            .timeout(target.timeout)
            .ack_timeout(target.timeout)
            .max_ack_inflight(2 * IN_FLIGHT_MAX)
            .build(client);
        let stream = match patiently(target.timeout, || context.get_stream(&target.stream)).await? {
            Ok(stream) => stream,
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(e) if e.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    create(&context, target).await?
                }
                _ => return Err(retryable(&error)),
            },
        };
        let config = &stream.cached_info().config;
        check(config, &format!("{}.>", target.subject))?;
        let message_bytes_max = usize::try_from(config.max_message_size).ok().filter(|bytes| *bytes > 0);
        let (name, subject) = (target.stream.clone(), target.subject.clone());
        Ok(Self { context, stream, name, subject, message_bytes_max, timeout: target.timeout })
    }

    /// Bytes that the payload of a message has at most, and whose word that is.
    pub fn payload_bytes_max(&self) -> (usize, &'static str) {
        let server = self.context.client().max_payload();
        let (bytes, whose) = match self.message_bytes_max {
            Some(stream) if stream < server => (stream, "the stream's max_msg_size"),
            _ => (server, "the server's max_payload"),
        };
        (bytes.saturating_sub(HEADERS_BYTES_MAX), whose)
    }

    /// What people call a message.
    pub fn at(&self, sequence: u64) -> String {
        format!("message {sequence} of stream {}", self.name)
    }

    /// Subject of the notes about gaps and owners.
    pub fn notes(&self) -> String {
        format!("{}._lockstep", self.subject)
    }

    /// Subject of a message.
    pub fn subject_of(&self, kind: &Kind, project: Option<u64>) -> String {
        match (kind, project) {
            (Kind::Task(..) | Kind::Filled(..), Some(project)) => format!("{}.{project}", self.subject),
            // There may be many of them, and no walk needs them.
            (Kind::Passed(_), _) => format!("{}.passed", self.notes()),
            _ => self.notes(),
        }
    }

    /// How the stream stands.
    pub async fn info(&self) -> Result<Info, OutputError> {
        patiently(self.timeout, || self.stream.get_info()).await?.map_err(|e| retryable(&e))
    }

    /// The last message; `None` where there is none.
    pub async fn last(&self) -> Result<Option<Entry>, OutputError> {
        self.ask(|request| request.last_by_subject(">")).await
    }

    /// The first message from a sequence on.
    pub async fn next(&self, sequence: u64) -> Result<Option<Entry>, OutputError> {
        self.ask(|request| request.sequence(sequence.max(1)).next_by_subject(">")).await
    }

    /// The first note from a sequence on.
    pub async fn next_note(&self, sequence: u64) -> Result<Option<Entry>, OutputError> {
        self.ask(|request| request.sequence(sequence.max(1)).next_by_subject(self.notes())).await
    }

    async fn get(&self, sequence: u64) -> Result<Option<Entry>, OutputError> {
        self.ask(|request| request.sequence(sequence)).await
    }

    async fn ask(
        &self,
        question: impl Fn(RawMessageBuilder) -> RawMessageBuilder,
    ) -> Result<Option<Entry>, OutputError> {
        match patiently(self.timeout, || question(self.stream.raw_message_builder()).send()).await? {
            Ok(message) => {
                let mark = Mark::parse(&message.headers, &self.at(message.sequence))?;
                Ok(Some(Entry { sequence: message.sequence, mark, payload: message.payload }))
            }
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(retryable(&error)),
        }
    }

    /// Messages of a range of sequences, ascending, without those that limits have removed.
    pub async fn page(&self, from: u64, to: u64) -> Result<Vec<Entry>, OutputError> {
        let asking = stream::iter(from..=to).map(|sequence| self.get(sequence));
        let found: Vec<Option<Entry>> = asking.buffered(REQUESTS_MAX).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// The task in a message that has one.
    pub fn task(&self, entry: &Entry) -> Result<Option<FinalTask>, OutputError> {
        let (Kind::Task(number, id) | Kind::Filled(number, id)) = entry.mark.kind else { return Ok(None) };
        let foreign = |what: String| OutputError::Foreign(format!("{} {what}", self.at(entry.sequence)));
        let blob = Blob::decode(entry.payload.clone()).map_err(|e| foreign(format!("is no blob: {e}")))?;
        let mut tasks = tasks_of(blob);
        match (tasks.pop(), tasks.is_empty()) {
            (Some(task), true) if task.number == number && task.id == id => Ok(Some(task)),
            _ => Err(foreign("has another task than its headers say".to_owned())),
        }
    }
}

async fn create(context: &Context, target: &Target) -> Result<Stream, OutputError> {
    let config = Config {
        name: target.stream.clone(),
        subjects: vec![format!("{}.>", target.subject)],
        description: Some("Tasks of a Lockstep network".to_owned()),
        num_replicas: target.replicas,
        duplicate_window: target.duplicate_window,
        deny_delete: true,
        deny_purge: true,
        ..Config::default()
    };
    context.create_stream(config).await.map_err(|error| {
        let hint = match error.kind() {
            CreateStreamErrorKind::JetStream(_) if target.replicas > 1 => {
                format!("; `replicas` asks for {} servers", target.replicas)
            }
            _ => String::new(),
        };
        OutputError::Retryable(format!("the stream {} cannot be made: {}{hint}", target.stream, reason(&error)))
    })
}

/// Whether a stream keeps what is put in, and takes nothing else.
fn check(config: &Config, subjects: &str) -> Result<(), OutputError> {
    let wrong = if config.subjects != [subjects] {
        format!("it takes the subjects {:?}, and has to take {subjects:?} and nothing else", config.subjects)
    } else if config.retention != RetentionPolicy::Limits {
        "its retention has to be `limits`: with others what was read is gone".to_owned()
    } else if config.storage != StorageType::File {
        "its storage has to be `file`".to_owned()
    } else if config.no_ack || config.sealed {
        "it is sealed, or acknowledges nothing".to_owned()
    } else if config.mirror.is_some() || config.sources.as_ref().is_some_and(|sources| !sources.is_empty()) {
        "it mirrors another one".to_owned()
    } else if config.subject_transform.is_some() {
        "it changes subjects".to_owned()
    } else {
        return Ok(());
    };
    Err(OutputError::Foreign(format!("the stream {} is not fit: {wrong}", config.name)))
}

/// Longest wait for all of a call.
pub(super) fn call_timeout(target: &Target) -> Duration {
    target.timeout * 6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stream_that_keeps_everything_of_ours_and_nothing_else_is_fit() {
        let fit = Config { subjects: vec!["lockstep.>".to_owned()], ..Config::default() };
        let limited = Config { max_age: Duration::from_secs(9), max_messages: 7, max_bytes: 8, ..fit.clone() };
        for config in [fit.clone(), limited] {
            assert_eq!(check(&config, "lockstep.>"), Ok(()));
        }
        let unfit = [
            Config { subjects: vec![">".to_owned()], ..fit.clone() },
            Config { subjects: vec!["lockstep.>".to_owned(), "other".to_owned()], ..fit.clone() },
            Config { retention: RetentionPolicy::WorkQueue, ..fit.clone() },
            Config { storage: StorageType::Memory, ..fit.clone() },
            Config { sealed: true, ..fit.clone() },
            Config { no_ack: true, ..fit },
        ];
        for config in unfit {
            assert!(matches!(check(&config, "lockstep.>"), Err(OutputError::Foreign(_))), "{config:?}");
        }
    }
}
