//! The device API of W3bstream's sprout generation: `GET /didDoc`, `POST /issue_vc`, and `/message` with a token.
//!
//! Statuses are the reference's. Device firmware takes nothing but 200 for an answer, wants `Content-Length`, and
//! follows no redirect.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::Response;
use lockstep_identity::envelope::ENVELOPE_BYTES_MAX;
use lockstep_identity::sprout::{parse_token_request, token_of};
use lockstep_types::MessageId;
use serde::Serialize;

use crate::ports::{ProverState, ProverStates, Read, ReadError, SealedError};
use crate::problem::Problem;
use crate::routes::App;
use crate::time::rfc3339;
use crate::viewer::Viewer;
use crate::views::{MessageView, TaskView};

/// What came out of the request's head: a token, if it shows one.
pub(crate) fn token(head: &Parts) -> Option<String> {
    let header = head.headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap_or("?"));
    let parameter = parameter(&head.uri);
    token_of(header, parameter.as_deref()).map(str::to_owned)
}

/// The query parameter `authorization`.
fn parameter(uri: &Uri) -> Option<String> {
    let pairs = form_urlencoded::parse(uri.query()?.as_bytes());
    pairs.into_iter().find(|(name, _)| name == "authorization").map(|(_, value)| value.into_owned())
}

pub(crate) fn answer(kind: &'static str, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// `GET /didDoc`.
pub(crate) async fn did_document(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let _place = app.admission.read()?;
    let document = app.ports.sealed.did_document().ok_or_else(|| Problem::of_sealed(SealedError::NoSecret))?;
    Ok(answer("application/json", document.to_string()))
}

/// `POST /issue_vc`.
pub(crate) async fn issue_token(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let _place = app.admission.submit()?;
    let device = {
        let body = app.admission.read_body(&app.options, request.into_body()).await?;
        parse_token_request(&body.bytes)?
    };
    let envelope = app.ports.sealed.issue_token(device).await.map_err(|error| match error {
        SealedError::Denied(text) => Problem::new(StatusCode::FORBIDDEN, "unknown_device", text),
        other => Problem::of_sealed(other),
    })?;
    Ok(answer("application/json", envelope))
}

/// `POST /message` with a token.
pub(crate) async fn submit(app: &App, token: &str, envelope: Bytes) -> Result<Response, Problem> {
    if envelope.len() > ENVELOPE_BYTES_MAX {
        return Err(Problem::too_large(ENVELOPE_BYTES_MAX));
    }
    let sealed = app.ports.sealed.submit(token, envelope).await.map_err(Problem::of_sealed)?;
    Ok(answer("application/octet-stream", sealed))
}

/// What the reference says of a message.
#[derive(Debug, Serialize)]
pub struct MessageStates {
    #[serde(rename = "messageID")]
    message_id: String,
    states: Vec<ProverState>,
}

impl MessageStates {
    /// The states of a message by the name that was asked for, and of its task; none of a message that is not known.
    pub fn of(message_id: String, message: Option<&MessageView>, task: Option<&TaskView>) -> Self {
        let state = |state: &str, time| ProverState {
            state: state.to_owned(),
            time: rfc3339(time),
            comment: String::new(),
            result: String::new(),
        };
        let received = message.and_then(|message| message.time_ms).map(|time| state("received", time));
        let packed = task.into_iter().flat_map(|task| {
            let later = task.chain.iter().map(|on| state(&on.state, on.time_ms));
            std::iter::once(state("packed", task.time_ms)).chain(later)
        });
        Self { message_id, states: received.into_iter().chain(packed).collect() }
    }

    /// The same with what the coordinator says of the message's task. Where it says nothing, nothing is added.
    pub async fn with_provers(mut self, prover: Option<&dyn ProverStates>, task: Option<&TaskView>) -> Self {
        if let (Some(prover), Some(task)) = (prover, task) {
            self.states.extend(prover.states(task.project_id, task.number).await);
        }
        self
    }
}

/// A message and its task, by a text that may be its name.
///
/// # Errors
/// If this node cannot tell.
pub async fn find_message(read: &dyn Read, id: &str) -> Result<Option<(MessageView, Option<TaskView>)>, ReadError> {
    // As the reference: what is no id names no message.
    let Ok(id) = id.parse::<MessageId>() else { return Ok(None) };
    let Some(message) = read.message(id, Viewer::default()).await? else { return Ok(None) };
    let task = match message.task_id {
        Some(task) => read.task(task, Viewer::default()).await?,
        None => None,
    };
    Ok(Some((message, task)))
}

/// `GET /message/{id}`, with a token or without.
pub(crate) async fn message(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let _place = app.admission.read()?;
    let Path(id) = id.map_err(|e| Problem::invalid(e.body_text()))?;
    let (head, _) = request.into_parts();
    if let Some(token) = token(&head) {
        let sealed = app.ports.sealed.states(&token, &id).await.map_err(Problem::of_sealed)?;
        return Ok(answer("application/octet-stream", sealed));
    }
    let (message, task) = find_message(&*app.ports.read, &id).await?.unzip();
    let task = task.flatten();
    let states = MessageStates::of(id, message.as_ref(), task.as_ref());
    let states = states.with_provers(app.ports.prover.as_deref(), task.as_ref()).await;
    Ok(answer("application/json", serde_json::to_string(&states).unwrap_or_default()))
}
