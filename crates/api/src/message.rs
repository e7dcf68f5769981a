//! The device API of W3bstream's apinode generation: `POST /message` and `GET /task`.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use lockstep_identity::{DeviceRequest, RequestError, TaskQuery, apinode};
use serde::{Deserialize, Serialize};

use crate::ports::Accepted;
use crate::problem::Problem;
use crate::routes::App;
use crate::sealed;
use crate::time::rfc3339;
use crate::viewer::Viewer;
use crate::views::TaskView;

/// By which a sender tells equal unsigned messages apart.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// `POST /message`. With a token the body is encrypted; else a `signature` member tells whether it is signed. The content
/// type is not looked at: devices send any, or none.
pub(crate) async fn submit(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let _place = app.admission.submit()?;
    let (head, body) = request.into_parts();
    let request = {
        let body = app.admission.read_body(&app.options, body).await?;
        if let Some(token) = sealed::token(&head) {
            return sealed::submit(&app, &token, body.bytes.clone()).await;
        }
        apinode::parse(&body.bytes)?
    };
    let request = with_idempotency_key(request, &head.headers)?;
    request.check_limits(app.options.message_bytes_max)?;
    let signed = request.signature.is_some();
    match app.ports.submit.submit(request).await {
        Ok(accepted) => Ok(answer(&accepted)),
        Err(error) => Err(Problem::of_submit(error, signed)),
    }
}

/// The header counts for unsigned messages only. Of several it cannot be told which is meant.
fn with_idempotency_key(request: DeviceRequest, headers: &HeaderMap) -> Result<DeviceRequest, RequestError> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (keys.next(), keys.next()) {
        (None, _) => Ok(request),
        (Some(key), None) => request.with_idempotency_key(Some(key.as_bytes())),
        (Some(_), Some(_)) => request.with_idempotency_key(Some(b"")),
    }
}

/// Written by hand: this is the hot path, and its values need no escapes.
fn answer(accepted: &Accepted) -> Response {
    let mut text = String::with_capacity(256);
    // Writing to a String cannot fail.
    let _ = write!(text, "{{\"messageID\":\"{}\",\"taskID\":\"", accepted.message_id);
    if let Some(task) = accepted.task_id {
        let _ = write!(text, "{task}");
    }
    let (sequence, height, duplicate) = (accepted.sequence, accepted.height, accepted.duplicate);
    let _ = write!(text, "\",\"sequence\":{sequence},\"height\":{height},\"duplicate\":{duplicate}}}");
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct TaskParameters {
    #[serde(rename = "projectID", default)]
    project_id: String,
    #[serde(rename = "taskID", default)]
    task_id: String,
}

/// The reference's answer to a question for a task.
#[derive(Debug, Serialize)]
pub(crate) struct TaskStates {
    #[serde(rename = "projectID")]
    pub(crate) project_id: u64,
    #[serde(rename = "taskID")]
    pub(crate) task_id: String,
    pub(crate) states: Vec<TaskState>,
}

#[derive(Debug, Serialize)]
pub(crate) struct TaskState {
    state: String,
    time: String,
}

impl TaskState {
    /// What is known of a task: that it is packed, and what the chain says of it.
    pub(crate) fn of(task: &TaskView) -> Vec<Self> {
        let packed = Self { state: "packed".into(), time: rfc3339(task.time_ms) };
        let later = task.chain.iter().map(|on| Self { state: on.state.clone(), time: rfc3339(on.time_ms) });
        std::iter::once(packed).chain(later).collect()
    }
}

/// `GET /task`: the question is the JSON body, as in the reference, or query parameters where there is no body.
/// A task that is not known, or of another project, has no states.
pub(crate) async fn task(
    State(app): State<Arc<App>>,
    parameters: Result<Query<TaskParameters>, QueryRejection>,
    request: Request,
) -> Result<axum::Json<TaskStates>, Problem> {
    let _place = app.admission.read()?;
    let query = {
        let body = app.admission.read_body(&app.options, request.into_body()).await?;
        if body.bytes.is_empty() {
            let Query(parameters) = parameters.map_err(|e| Problem::invalid(e.body_text()))?;
            TaskQuery::from_parameters(&parameters.project_id, &parameters.task_id)?
        } else {
            TaskQuery::parse(&body.bytes)?
        }
    };
    let task =
        app.ports.read.task(query.task_id, Viewer::default()).await?.filter(|task| task.project_id == query.project_id);
    let mut states = task.as_ref().map(TaskState::of).unwrap_or_default();
    if let (Some(task), Some(prover)) = (&task, &app.ports.prover) {
        let told = prover.states(task.project_id, task.number).await;
        states.extend(told.into_iter().map(|told| TaskState { state: told.state, time: told.time }));
    }
    Ok(axum::Json(TaskStates { project_id: query.project_id.0, task_id: query.task_id_text, states }))
}
