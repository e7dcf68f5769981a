//! What clients asked and what they were told, for [`crate::check`].

use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_client::Submitted;
use lockstep_types::{Address, Api, ContentId, Evidence, Height, Message, MessageId, ProjectId, Sequence, Signature};
use parking_lot::Mutex;

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Content {
    /// The device; `None` where the message was not signed.
    pub device: Option<Address>,
    /// The project.
    pub project_id: ProjectId,
    /// Its version.
    pub project_version: String,
    /// The payload.
    pub data: Vec<u8>,
}

impl Content {
    /// What a device has signed.
    pub fn signed(device: Address, project_id: ProjectId, project_version: &str, data: &[u8]) -> Self {
        let project_version = project_version.to_owned();
        Self { device: Some(device), project_id, project_version, data: data.to_vec() }
    }

    /// Its name: what the message id must be, where the same was not ordered before.
    pub fn id(&self) -> ContentId {
        let message = Message {
            api: if self.device.is_some() { Api::Apinode } else { Api::Unsigned },
            project_id: self.project_id,
            project_version: self.project_version.clone(),
            data: Bytes::copy_from_slice(&self.data),
            device: self.device.unwrap_or(Address::ZERO),
            nonce: Bytes::new(),
            via: lockstep_types::NodeId(0),
            // Not part of the name.
            evidence: Evidence::Device(Signature([0; 65])),
        };
        message.content_id()
    }
}

/// What a node promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledgement {
    /// URL of the node.
    pub node: String,
    /// The message's name.
    pub message_id: MessageId,
    /// Its place in the order.
    pub sequence: Sequence,
    /// Its batch.
    pub height: Height,
    /// Whether the node said that it had this position before.
    pub duplicate: bool,
    /// When the answer was there.
    pub at: Instant,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is under way.
    Open,
    /// It was answered with a position.
    Acknowledged(Acknowledgement),
    /// It was refused or given up; whether the message was ordered is not known.
    Failed(String),
}

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What was submitted.
    pub content: Content,
    /// When.
    pub invoked_at: Instant,
    /// What came of it.
    pub outcome: Outcome,
}

impl Record {
    /// Whether it was refused or given up.
    pub fn is_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }

    /// The promise, if there was one.
    pub fn acknowledgement(&self) -> Option<&Acknowledgement> {
        match &self.outcome {
            Outcome::Acknowledged(acknowledgement) => Some(acknowledgement),
            _ => None,
        }
    }
}

/// A call that is under way.
#[derive(Debug)]
#[must_use = "a call has an outcome"]
pub struct Call(usize);

/// All calls, by the time of their beginning. Written by many clients at once.
#[derive(Debug, Default)]
pub struct History {
    records: Mutex<Vec<Record>>,
}

impl History {
    /// An empty history.
    pub fn new() -> Self {
        Self::default()
    }

    /// A call begins.
    pub fn invoke(&self, content: Content) -> Call {
        let mut records = self.records.lock();
        // Under the lock, so that records are by ascending time.
        records.push(Record { content, invoked_at: Instant::now(), outcome: Outcome::Open });
        Call(records.len() - 1)
    }

    /// A call was answered with a position.
    pub fn acknowledge(&self, call: Call, submitted: &Submitted) {
        let acknowledgement = Acknowledgement {
            node: submitted.url.clone(),
            message_id: submitted.message_id,
            sequence: submitted.sequence,
            height: submitted.height,
            duplicate: submitted.duplicate,
            at: Instant::now(),
        };
        self.records.lock()[call.0].outcome = Outcome::Acknowledged(acknowledgement);
    }

    /// A call was refused or given up.
    pub fn fail(&self, call: Call, reason: String) {
        self.records.lock()[call.0].outcome = Outcome::Failed(reason);
    }

    /// Looks at all of it, while no client can write.
    pub fn look<T>(&self, at: impl FnOnce(&[Record]) -> T) -> T {
        at(&self.records.lock())
    }

    /// All of it.
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().clone()
    }

    /// How many calls were answered with a position.
    pub fn acknowledged(&self) -> usize {
        self.records.lock().iter().filter(|record| record.acknowledgement().is_some()).count()
    }

    /// Reasons of the calls that failed.
    pub fn failures(&self) -> Vec<String> {
        let reason = |record: &Record| match &record.outcome {
            Outcome::Failed(reason) => Some(reason.clone()),
            _ => None,
        };
        self.records.lock().iter().filter_map(reason).collect()
    }

    /// When the first of the calls that began after `instant` was answered with a position.
    pub fn first_answer_to_calls_after(&self, instant: Instant) -> Option<Instant> {
        let records = self.records.lock();
        let first = records.partition_point(|record| record.invoked_at <= instant);
        records[first..].iter().filter_map(|record| record.acknowledgement()).map(|answer| answer.at).min()
    }

    /// How long the calls took that were answered with a position after an instant, from the shortest to the longest.
    pub fn times_since(&self, instant: Instant) -> Vec<Duration> {
        let time = |record: &Record| {
            let at = record.acknowledgement()?.at;
            (at > instant).then(|| at - record.invoked_at)
        };
        let mut times: Vec<Duration> = self.records.lock().iter().filter_map(time).collect();
        times.sort();
        times
    }

    /// The longest time between two answers one after the other, from `from` to `to`.
    pub fn longest_silence(&self, from: Instant, to: Instant) -> Duration {
        let answered = |record: &Record| record.acknowledgement().map(|answer| answer.at);
        let mut times: Vec<Instant> = self.records.lock().iter().filter_map(answered).collect();
        times.retain(|at| (from..=to).contains(at));
        times.extend([from, to]);
        times.sort();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}
