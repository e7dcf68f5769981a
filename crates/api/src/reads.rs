//! Reads: `/api`, probes, metrics and the status page.

use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use lockstep_types::{Height, MessageId, Proof, Sequence, TaskId};
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;

use crate::admission::Turn;
use crate::ports::ReadError;
use crate::problem::Problem;
use crate::routes::App;
use crate::viewer::Viewer;
use crate::views::{BatchView, BoundariesView, MembersView, MessageView, StatusView, TaskView};

/// Batches in a list when the reader does not say how many.
const BATCHES_DEFAULT: usize = 20;
/// Most batches in a list.
const BATCHES_MAX: usize = 100;

/// The page may load nothing from anywhere and talk to nobody but this node.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                           connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'";

pub(crate) const JSON: &str = "application/json";

/// A place for one read, taken when the node has applied the `min_sequence` that the reader asked for.
pub(crate) struct Reading {
    _place: OwnedSemaphorePermit,
}

#[derive(Debug, Deserialize)]
struct MinSequence {
    min_sequence: Option<u64>,
}

impl FromRequestParts<Arc<App>> for Reading {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let place = app.admission.read()?;
        let query = Query::<MinSequence>::try_from_uri(&parts.uri).map_err(|e| Problem::invalid(e.body_text()))?;
        if let Some(sequence) = query.min_sequence.filter(|sequence| *sequence > 0) {
            let applied = app.ports.read.wait_for_sequence(Sequence(sequence), app.options.min_sequence_wait()).await;
            if !applied {
                let error = format!("this node has not applied sequence {sequence} yet");
                return Err(Problem::unavailable("behind", error));
            }
        }
        Ok(Self { _place: place })
    }
}

/// An answer that may have megabytes: it is written beside the threads that serve connections, and counts until it is
/// taken.
pub(crate) async fn large(
    app: &App,
    turn: Turn,
    content_type: &'static str,
    write: impl FnOnce() -> serde_json::Result<Vec<u8>> + Send + 'static,
) -> Result<Response, Problem> {
    let failed = |e: &dyn std::fmt::Display| ReadError::Failed(format!("the answer was not written: {e}"));
    // The turn ends with the writing, also where nobody waits for it any more.
    let in_turn = move || {
        let _turn = turn;
        write()
    };
    let bytes = tokio::task::spawn_blocking(in_turn).await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
    let body = app.admission.answer(&app.options, bytes)?;
    Ok(([(header::CONTENT_TYPE, content_type)], body).into_response())
}

fn parse_id<T: FromStr<Err: ToString>>(text: Result<Path<String>, PathRejection>) -> Result<T, Problem> {
    let Path(text) = text.map_err(|e| Problem::invalid(e.body_text()))?;
    text.parse().map_err(|e: T::Err| Problem::invalid(e.to_string()))
}

pub(crate) async fn status(State(app): State<Arc<App>>, _reading: Reading) -> Json<StatusView> {
    Json(app.ports.read.status().await)
}

pub(crate) async fn members(State(app): State<Arc<App>>, _reading: Reading) -> Json<MembersView> {
    Json(app.ports.read.members())
}

#[derive(Debug, Deserialize)]
pub(crate) struct BatchRange {
    from: Option<u64>,
    limit: Option<usize>,
}

/// Without `from`: the newest ones.
pub(crate) async fn batches(
    State(app): State<Arc<App>>,
    _reading: Reading,
    range: Result<Query<BatchRange>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(range) = range.map_err(|e| Problem::invalid(e.body_text()))?;
    let limit = range.limit.unwrap_or(BATCHES_DEFAULT).clamp(1, BATCHES_MAX);
    let from = match range.from {
        Some(from) => from.max(1),
        None => (app.ports.read.status().await.head.height.0 + 1).saturating_sub(limit as u64).max(1),
    };
    let turn = app.admission.large().await?;
    let page = app.ports.read.batches(Height(from), limit).await?;
    large(&app, turn, JSON, move || serde_json::to_vec(&page)).await
}

pub(crate) async fn batch(
    State(app): State<Arc<App>>,
    _reading: Reading,
    height: Result<Path<String>, PathRejection>,
) -> Result<Json<BatchView>, Problem> {
    let height = Height(parse_id(height)?);
    app.ports.read.batch(height).await?.map(Json).ok_or_else(|| Problem::not_found("the batch"))
}

#[derive(Debug, Deserialize)]
pub(crate) struct Confirmation {
    #[serde(default)]
    confirmed: u8,
}

/// With `confirmed=1` a message that is not found was not ordered before the request came in.
pub(crate) async fn message(
    State(app): State<Arc<App>>,
    _reading: Reading,
    viewer: Viewer,
    id: Result<Path<String>, PathRejection>,
    confirmation: Result<Query<Confirmation>, QueryRejection>,
) -> Result<Json<MessageView>, Problem> {
    let id: MessageId = parse_id(id)?;
    let Query(Confirmation { confirmed }) = confirmation.map_err(|e| Problem::invalid(e.body_text()))?;
    if confirmed > 1 {
        return Err(Problem::invalid("confirmed is 0 or 1"));
    }
    if confirmed == 1 {
        app.ports.read.confirm().await?;
    }
    app.ports.read.message(id, viewer).await?.map(Json).ok_or_else(|| Problem::not_found("the message"))
}

pub(crate) async fn task(
    State(app): State<Arc<App>>,
    _reading: Reading,
    viewer: Viewer,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<TaskView>, Problem> {
    let id: TaskId = parse_id(id)?;
    app.ports.read.task(id, viewer).await?.map(Json).ok_or_else(|| Problem::not_found("the task"))
}

pub(crate) async fn proof(
    State(app): State<Arc<App>>,
    _reading: Reading,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Proof>, Problem> {
    let id: MessageId = parse_id(id)?;
    app.ports.read.proof(id).await?.map(Json).ok_or_else(|| Problem::not_found("the message"))
}

pub(crate) async fn boundaries(
    State(app): State<Arc<App>>,
    _reading: Reading,
    range: Result<Query<BatchRange>, QueryRejection>,
) -> Result<Json<BoundariesView>, Problem> {
    let Query(range) = range.map_err(|e| Problem::invalid(e.body_text()))?;
    let limit = range.limit.unwrap_or(BATCHES_MAX).clamp(1, BATCHES_MAX);
    Ok(Json(app.ports.read.boundaries(Height(range.from.unwrap_or(0)), limit).await?))
}

/// Protobuf, because it is read whole by programs: see `proto/lockstep/v1/export.proto`.
pub(crate) async fn export(
    State(app): State<Arc<App>>,
    _reading: Reading,
    viewer: Viewer,
    range: Result<Query<BatchRange>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(range) = range.map_err(|e| Problem::invalid(e.body_text()))?;
    let turn = app.admission.large().await?;
    let page = app.ports.read.export(Height(range.from.unwrap_or(0)), viewer).await?;
    large(&app, turn, "application/x-protobuf", move || Ok(page.encode())).await
}

/// The HTTP interface, for programs that make clients of it. Tests hold the handlers' answers against it.
pub(crate) const OPENAPI_DOCUMENT: &str = include_str!("openapi.json");

pub(crate) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, JSON)], OPENAPI_DOCUMENT)
}

pub(crate) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let text = match app.metrics.kept() {
        Some(text) => text,
        None => app.metrics.keep(app.ports.read.metrics().await),
    };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// The process answers. Says nothing about its part in the network: a node that catches up must not be restarted.
pub(crate) async fn livez() -> &'static str {
    "ok\n"
}

pub(crate) async fn readyz(State(app): State<Arc<App>>) -> Result<&'static str, Problem> {
    app.ports.read.ready().map(|()| "ready\n").map_err(|reason| Problem::unavailable("not_ready", reason))
}

pub(crate) async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, include_str!("page.html"))
}

pub(crate) async fn unknown_path() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "unknown_path", "there is nothing at this path")
}

pub(crate) async fn wrong_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", "this path does not take this method")
}
