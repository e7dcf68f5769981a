//! W3bstream's API of 2025: `POST /v1/task` and `GET /v1/task/{id}`.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use lockstep_identity::TaskRequest;
use lockstep_types::TaskId;
use serde::Serialize;

use crate::message::{TaskState, TaskStates};
use crate::ports::SubmitError;
use crate::problem::Problem;
use crate::routes::App;
use crate::viewer::Viewer;

/// The answer to `POST /v1/task`: the task by the name that its signature gives it, and where it stands.
#[derive(Debug, Serialize)]
pub(crate) struct Taken {
    #[serde(rename = "taskID")]
    task_id: TaskId,
    #[serde(rename = "messageID")]
    message_id: lockstep_types::MessageId,
    sequence: u64,
    height: u64,
    duplicate: bool,
}

/// `POST /v1/task`.
pub(crate) async fn submit(State(app): State<Arc<App>>, request: Request) -> Result<axum::Json<Taken>, Problem> {
    let _place = app.admission.submit()?;
    let request = {
        let body = app.admission.read_body(&app.options, request.into_body()).await?;
        TaskRequest::parse(&body.bytes)?
    };
    request.check_limits(app.options.message_bytes_max)?;
    match app.ports.submit.submit_task(request).await {
        Ok((task_id, accepted)) => Ok(axum::Json(Taken {
            task_id,
            message_id: accepted.message_id,
            sequence: accepted.sequence.0,
            height: accepted.height.0,
            duplicate: accepted.duplicate,
        })),
        Err(SubmitError::Unauthenticated(text)) => Err(Problem::new(StatusCode::UNAUTHORIZED, "bad_signature", text)),
        Err(error) => Err(Problem::of_submit(error, true)),
    }
}

/// `GET /v1/task/{id}`: by the name that `POST /v1/task` gave, or by the task's own id.
pub(crate) async fn task(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<axum::Json<TaskStates>, Problem> {
    let _place = app.admission.read()?;
    let Path(text) = id.map_err(|e| Problem::invalid(e.body_text()))?;
    let alias: TaskId = text.parse().map_err(|e: lockstep_types::ids::ParseIdError| Problem::invalid(e.to_string()))?;
    let own = app.ports.read.task_of_alias(alias).await?.unwrap_or(alias);
    let task = app.ports.read.task(own, Viewer::default()).await?.ok_or_else(|| Problem::not_found("the task"))?;
    Ok(axum::Json(TaskStates { project_id: task.project_id.0, task_id: text, states: TaskState::of(&task) }))
}
