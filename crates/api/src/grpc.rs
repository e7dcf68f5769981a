//! The gRPC door: the same port, the same limits, gRPC's words for the answers.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use lockstep_identity::{DeviceRequest, RequestError};
use lockstep_types::ProjectId;
use lockstep_types::proto::sequencer_server::Sequencer;
use lockstep_types::proto::{SubmitRequest, SubmitResponse};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::ports::SubmitError;
use crate::problem::{Problem, retry_after_seconds};
use crate::routes::App;

/// Serves `lockstep.v1.Sequencer`.
pub(crate) struct Service {
    app: Arc<App>,
}

impl Service {
    pub(crate) fn new(app: Arc<App>) -> Self {
        Self { app }
    }
}

#[tonic::async_trait]
impl Sequencer for Service {
    async fn submit(&self, request: tonic::Request<SubmitRequest>) -> Result<tonic::Response<SubmitResponse>, Status> {
        let r = request.into_inner();
        let request = DeviceRequest::new(ProjectId(r.project_id), r.project_version, r.data, &r.signature)
            .and_then(|request| request.check_limits(self.app.options.message_bytes_max).map(|()| request))
            .map_err(|e: RequestError| Status::invalid_argument(e.to_string()))?;
        let accepted = self.app.ports.submit.submit(request).await.map_err(status_of)?;
        Ok(tonic::Response::new(SubmitResponse {
            message_id: accepted.message_id.0.to_vec().into(),
            task_id: accepted.task_id.map(|id| id.0.to_vec().into()).unwrap_or_default(),
            sequence: accepted.sequence.0,
            height: accepted.height.0,
            duplicate: accepted.duplicate,
        }))
    }
}

fn status_of(error: SubmitError) -> Status {
    let text = error.to_string();
    let (code, retry_after_ms) = match error {
        SubmitError::Unauthenticated(_) => (Code::Unauthenticated, None),
        SubmitError::Forbidden(_) => (Code::PermissionDenied, None),
        SubmitError::Invalid(_) | SubmitError::TooLarge { .. } => (Code::InvalidArgument, None),
        SubmitError::Busy { retry_after_ms } => (Code::ResourceExhausted, Some(retry_after_ms)),
        SubmitError::Unavailable { retry_after_ms, .. } => (Code::Unavailable, Some(retry_after_ms)),
        SubmitError::Stopping | SubmitError::Halted(_) => (Code::Unavailable, None),
    };
    let mut status = Status::new(code, text);
    if let Some(ms) = retry_after_ms {
        status.metadata_mut().insert("retry-after", MetadataValue::from(retry_after_seconds(ms)));
    }
    if let SubmitError::Unavailable { content_id, .. } = error
        && let Ok(value) = MetadataValue::try_from(content_id.to_string())
    {
        status.metadata_mut().insert("content-id", value);
    }
    status
}

/// Takes a place and reads the request whole before tonic sees it, so that both doors have the same limits.
pub(crate) async fn read_request(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let _place = match app.admission.submit() {
        Ok(place) => place,
        Err(problem) => return refuse(&problem),
    };
    let (parts, body) = request.into_parts();
    let held = match app.admission.read_body(&app.options, body).await {
        Ok(held) => held,
        Err(problem) => return refuse(&problem),
    };
    next.run(Request::from_parts(parts, Body::from(held.bytes.clone()))).await
}

fn refuse(problem: &Problem) -> Response {
    let code = match problem.status() {
        StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        StatusCode::REQUEST_TIMEOUT => Code::DeadlineExceeded,
        _ => Code::InvalidArgument,
    };
    Status::new(code, problem.text()).into_http::<Body>().into_response()
}
