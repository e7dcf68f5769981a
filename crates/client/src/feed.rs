//! Following final tasks: server-sent events of one node, and of the next one where that ends. Every node has the same
//! tasks under the same numbers, so nothing is left out or told twice.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Limited};
use hyper::StatusCode;
use hyper::header::HeaderValue;
use lockstep_types::{Height, ProjectId, TaskNumber};
use tokio::time::{Instant, sleep, timeout};

use crate::client::Client;
use crate::error::ClientError;
use crate::node::{Answer, Request, Streaming};
use crate::outcome::{Failure, Outcome, Setback, failure_of};

/// A node says something every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Longest event, in bytes.
const EVENT_BYTES_MAX: usize = 64 << 20;
/// Longest answer that is read of a node that refuses.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// Which tasks to follow.
#[derive(Debug, Clone, Default)]
pub struct Follow {
    /// Only this project's.
    pub project: Option<ProjectId>,
    /// Those after this number; `None`: from the oldest that is kept, or from `from_height`.
    pub after: Option<TaskNumber>,
    /// From the first task of this height on.
    pub from_height: Option<Height>,
    /// A reader token, for the payloads of a project that is not public.
    pub token: Option<String>,
}

/// A final task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// Its number: what to go on after.
    pub number: TaskNumber,
    /// JSON, as `GET /api/tasks/{id}` has it.
    pub json: String,
}

/// Final tasks, each once, in order, for ever. Nothing is lost when it is dropped between two calls.
pub struct TaskFeed<'a> {
    client: &'a Client,
    follow: Follow,
    place: usize,
    open: Option<Open>,
    pause: Duration,
}

struct Open {
    answer: Streaming,
    read: BytesMut,
}

/// One event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: Option<u64>,
    pub(crate) data: String,
}

impl Event {
    pub(crate) fn parse(text: &str) -> Self {
        let mut event = Self::default();
        for line in text.lines() {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "event" => value.clone_into(&mut event.name),
                "id" => event.id = value.parse().ok(),
                "data" => event.data.push_str(value),
                _ => {}
            }
        }
        event
    }
}

impl Client {
    /// Follows final tasks at whichever node answers.
    pub fn follow(&self, follow: Follow) -> TaskFeed<'_> {
        TaskFeed { client: self, follow, place: self.preferred() % self.nodes(), open: None, pause: Duration::ZERO }
    }
}

impl TaskFeed<'_> {
    /// The next task. Waits for it, over all troubles of nodes and of the way to them.
    ///
    /// # Errors
    /// If a node refuses: a wrong question, or tasks that are forgotten. Asking again gives the same.
    pub async fn next(&mut self) -> Result<Followed, ClientError> {
        loop {
            let text = match self.event().await {
                Ok(text) => text,
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::Passing(setback)) => {
                    self.go_on_elsewhere(&setback).await;
                    continue;
                }
            };
            self.pause = Duration::ZERO;
            let event = Event::parse(&text);
            // What was told before does not come again, whatever a node says.
            let is_news = |id: &u64| self.follow.after.is_none_or(|after| *id > after.0);
            match (event.name.as_str(), event.id.filter(is_news)) {
                ("task", Some(id)) => {
                    (self.follow.after, self.follow.from_height) = (Some(TaskNumber(id)), None);
                    return Ok(Followed { number: TaskNumber(id), json: event.data });
                }
                ("cursor", Some(id)) if id > 0 => {
                    (self.follow.after, self.follow.from_height) = (Some(TaskNumber(id)), None);
                }
                ("error", _) => {
                    let (url, body) = (self.client.url(self.place).to_owned(), Bytes::from(event.data));
                    self.open = None;
                    let answer = Answer { status: status_in(&body), retry_after: None, body };
                    match failure_of(&url, &answer) {
                        Failure::Refused(error) => return Err(error),
                        Failure::Passing(setback) => self.go_on_elsewhere(&setback).await,
                    }
                }
                _ => {}
            }
        }
    }

    async fn go_on_elsewhere(&mut self, setback: &Setback) {
        tracing::debug!(reason = setback.text, "the feed goes on at another node");
        self.open = None;
        self.place = (self.place + 1) % self.client.nodes();
        if self.place == 0 {
            let (first, most) = self.client.backoff();
            self.pause = (self.pause * 2).clamp(first, most);
            sleep(self.pause).await;
        }
    }

    /// The text of the next event.
    async fn event(&mut self) -> Result<String, Failure> {
        let url = self.client.url(self.place).to_owned();
        let broken = |text: &str| Failure::Passing(Setback::new(Outcome::NotTaken, format!("{url}: {text}")));
        if self.open.is_none() {
            self.open = Some(self.connect().await?);
        }
        let Some(open) = &mut self.open else { return Err(broken("no connection")) };
        loop {
            if let Some(end) = open.read.windows(2).position(|two| two == b"\n\n") {
                let event = open.read.split_to(end + 2);
                return String::from_utf8(event[..end].to_vec()).map_err(|_| broken("an event is not text"));
            }
            if open.read.len() > EVENT_BYTES_MAX {
                return Err(broken("an event is too long"));
            }
            match timeout(SILENCE_MAX, open.answer.body.frame()).await {
                Ok(Some(Ok(frame))) => open.read.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
                Ok(Some(Err(error))) => return Err(broken(&error.to_string())),
                Ok(None) => return Err(broken("the feed ended")),
                Err(_) => return Err(broken("nothing came for too long")),
            }
        }
    }

    async fn connect(&self) -> Result<Open, Failure> {
        let mut path = "/api/feed?".to_owned();
        if let Some(project) = self.follow.project {
            path.push_str(&format!("project={project}&"));
        }
        match (self.follow.after, self.follow.from_height) {
            (Some(after), _) => path.push_str(&format!("after={after}")),
            (None, Some(height)) => path.push_str(&format!("from_height={height}")),
            (None, None) => {}
        }
        let mut request = Request::get(path);
        if let Some(token) = &self.follow.token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value = value.map_err(|_| ClientError::Setup("the reader token is no token".into()));
            if let Ok(value) = &mut value {
                value.set_sensitive(true);
            }
            request.authorization = Some(value.map_err(Failure::Refused)?);
        }
        let until = Instant::now() + self.client.attempt_timeout();
        let (url, node) = (self.client.url(self.place), self.client.node(self.place));
        let passing = |text: String| Failure::Passing(Setback::new(Outcome::NotTaken, format!("{url}: {text}")));
        let answer = node.open(&request, until).await.map_err(|e| passing(e.to_string()))?;
        if answer.status == StatusCode::OK {
            return Ok(Open { answer, read: BytesMut::new() });
        }
        let status = answer.status;
        let body = tokio::time::timeout_at(until, Limited::new(answer.body, REFUSAL_BYTES_MAX).collect()).await;
        let body = body.map_err(|e| passing(e.to_string()))?.map_err(|e| passing(e.to_string()))?.to_bytes();
        Err(failure_of(url, &Answer { status, retry_after: None, body }))
    }
}

/// The status that an event of an error names.
pub(crate) fn status_in(body: &[u8]) -> StatusCode {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let status = value["status"].as_u64().and_then(|status| u16::try_from(status).ok());
    status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_by_their_fields() {
        let event = Event::parse("event: task\nid: 12\ndata: {\"a\":1}");
        assert_eq!(event, Event { name: "task".into(), id: Some(12), data: "{\"a\":1}".into() });
        assert_eq!(Event::parse(": a comment\nid:x\ndata"), Event::default());
        assert_eq!(status_in(b"{\"status\":410}"), StatusCode::GONE);
        assert_eq!(status_in(b"nonsense"), StatusCode::SERVICE_UNAVAILABLE);
    }
}
