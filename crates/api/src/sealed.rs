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

use crate::ports::{ProverState, ProverStates, Read, SealedError};
use crate::problem::Problem;
use crate::routes::App;
use crate::time::rfc3339;
use crate::views::MessageView;

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
    states: Vec<AnyState>,
}

/// What this node knows itself, or was told of the message's task.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum AnyState {
    Own(MessageState),
    Prover(ProverState),
}

#[derive(Debug, Serialize)]
struct MessageState {
    state: &'static str,
    time: String,
    comment: &'static str,
    result: &'static str,
}

impl MessageStates {
    /// The states of a message by the name that was asked for; none of a message that is not known.
    pub fn of(message_id: String, message: Option<&MessageView>) -> Self {
        let time = message.and_then(|message| message.time_ms);
        let state = |state, time| MessageState { state, time: rfc3339(time), comment: "", result: "" };
        let received = time.map(|time| state("received", time));
        let packed = message.and_then(|m| m.task_id).and(time).map(|time| state("packed", time));
        Self { message_id, states: received.into_iter().chain(packed).map(AnyState::Own).collect() }
    }

    /// The same with what the coordinator says of the message's task. Where it says nothing, or the task cannot be read,
    /// nothing is added.
    pub async fn with_provers(
        mut self,
        read: &dyn Read,
        prover: Option<&dyn ProverStates>,
        message: Option<&MessageView>,
    ) -> Self {
        let task = message.and_then(|message| message.task_id);
        if let (Some(prover), Some(task)) = (prover, task)
            && let Ok(Some(task)) = read.task(task).await
        {
            let told = prover.states(task.project_id, task.number).await;
            self.states.extend(told.into_iter().map(AnyState::Prover));
        }
        self
    }
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
    let message = match id.parse::<MessageId>() {
        Ok(id) => app.ports.read.message(id).await?,
        // As the reference: what is no id names no message.
        Err(_) => None,
    };
    let states = MessageStates::of(id, message.as_ref());
    let states = states.with_provers(app.ports.read.as_ref(), app.ports.prover.as_deref(), message.as_ref()).await;
    Ok(answer("application/json", serde_json::to_string(&states).unwrap_or_default()))
}
