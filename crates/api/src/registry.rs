//! Projects and devices: what their owners order, and what there is.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use lockstep_types::{Address, ProjectId};
use serde::Deserialize;

use crate::ports::OrderProblem;
use crate::problem::Problem;
use crate::reads::Reading;
use crate::routes::App;
use crate::views::{DevicesView, ProjectView, ProjectsView};

/// Devices in a list when the reader does not say how many, and at most.
const DEVICES_MAX: usize = 1_000;

/// `POST /api/orders`: the order as protobuf, signed by the project's owner. Answered when it is carried out.
pub(crate) async fn order(State(app): State<Arc<App>>, request: Request) -> Result<Json<serde_json::Value>, Problem> {
    let _place = app.admission.submit()?;
    let body = app.admission.read_body(&app.options, request.into_body()).await?;
    match app.ports.registry.order(body.bytes.clone()).await {
        Ok(()) => Ok(Json(serde_json::json!({ "done": true }))),
        Err(OrderProblem::Malformed(text)) => Err(Problem::invalid(text)),
        Err(OrderProblem::Refused(text)) => Err(Problem::new(StatusCode::CONFLICT, "refused", text)),
        Err(OrderProblem::Unavailable(text)) => Err(Problem::unavailable("outcome_unknown", text)),
    }
}

pub(crate) async fn projects(State(app): State<Arc<App>>, _reading: Reading) -> Json<ProjectsView> {
    Json(app.ports.registry.projects())
}

fn project_id(id: Result<Path<u64>, PathRejection>) -> Result<ProjectId, Problem> {
    let Path(id) = id.map_err(|e| Problem::invalid(e.body_text()))?;
    Ok(ProjectId(id))
}

pub(crate) async fn project(
    State(app): State<Arc<App>>,
    _reading: Reading,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<ProjectView>, Problem> {
    app.ports.registry.project(project_id(id)?).await.map(Json).ok_or_else(|| Problem::not_found("the project"))
}

#[derive(Debug, Deserialize)]
pub(crate) struct DeviceRange {
    from: Option<Address>,
    limit: Option<usize>,
}

pub(crate) async fn devices(
    State(app): State<Arc<App>>,
    _reading: Reading,
    id: Result<Path<u64>, PathRejection>,
    range: Result<Query<DeviceRange>, QueryRejection>,
) -> Result<Json<DevicesView>, Problem> {
    let Query(range) = range.map_err(|e| Problem::invalid(e.body_text()))?;
    let limit = range.limit.unwrap_or(DEVICES_MAX).clamp(1, DEVICES_MAX);
    let devices = app.ports.registry.devices(project_id(id)?, range.from.unwrap_or_default(), limit).await?;
    Ok(Json(devices))
}
