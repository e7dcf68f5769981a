//! The gRPC door: the same port, the same limits, gRPC's words for the answers.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use lockstep_identity::{DeviceRequest, RequestError};
use lockstep_types::proto::sequencer_server::Sequencer;
use lockstep_types::proto::{SubmitRefusal, SubmitRequest, SubmitResponse};
use lockstep_types::{ContentId, ProjectId};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status, Streaming};

use crate::ports::{Accepted, SubmitError};
use crate::problem::{Problem, retry_after_seconds};
use crate::routes::App;
use crate::stream;

/// The one call whose request is not read whole.
const SUBMIT_STREAM: &str = "/lockstep.v1.Sequencer/SubmitStream";
/// Metadata of refusals: seconds, milliseconds, and what a message of unknown outcome will be known by.
const RETRY_AFTER: &str = "retry-after";
const RETRY_AFTER_MS: &str = "retry-after-ms";
const CONTENT_ID: &str = "content-id";

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
        let request = request_of(request.into_inner(), self.app.options.message_bytes_max)?;
        let accepted = self.app.ports.submit.submit(request).await.map_err(status_of)?;
        Ok(tonic::Response::new(response_of(accepted)))
    }

    type SubmitStreamStream = stream::Results;

    async fn submit_stream(
        &self,
        request: tonic::Request<Streaming<SubmitRequest>>,
    ) -> Result<tonic::Response<stream::Results>, Status> {
        stream::serve(Arc::clone(&self.app), request).map(tonic::Response::new)
    }
}

/// The request that a message of the protocol stands for.
pub(crate) fn request_of(r: SubmitRequest, message_bytes_max: u64) -> Result<DeviceRequest, Status> {
    let key = (!r.idempotency_key.is_empty()).then_some(r.idempotency_key);
    DeviceRequest::new(ProjectId(r.project_id), r.project_version, r.data, &r.signature)
        .and_then(|request| request.with_idempotency_key(key.as_deref().map(str::as_bytes)))
        .and_then(|request| request.check_limits(message_bytes_max).map(|()| request))
        .map_err(|e: RequestError| Status::invalid_argument(e.to_string()))
}

pub(crate) fn response_of(accepted: Accepted) -> SubmitResponse {
    SubmitResponse {
        message_id: accepted.message_id.0.to_vec().into(),
        task_id: accepted.task_id.map(|id| id.0.to_vec().into()).unwrap_or_default(),
        sequence: accepted.sequence.0,
        height: accepted.height.0,
        duplicate: accepted.duplicate,
    }
}

pub(crate) fn status_of(error: SubmitError) -> Status {
    let text = error.to_string();
    let (code, retry_after_ms) = match error {
        SubmitError::Unauthenticated(_) => (Code::Unauthenticated, None),
        SubmitError::Forbidden(_) => (Code::PermissionDenied, None),
        SubmitError::NonceUsed(_) => (Code::AlreadyExists, None),
        SubmitError::Invalid(_) | SubmitError::TooLarge { .. } => (Code::InvalidArgument, None),
        SubmitError::Rules { .. } => (Code::FailedPrecondition, None),
        SubmitError::Busy { retry_after_ms }
        | SubmitError::RulesFuel { retry_after_ms }
        | SubmitError::TooFast { retry_after_ms, .. } => (Code::ResourceExhausted, Some(retry_after_ms)),
        SubmitError::Unavailable { retry_after_ms, .. } => (Code::Unavailable, Some(retry_after_ms)),
        SubmitError::Stopping | SubmitError::Halted(_) => (Code::Unavailable, None),
    };
    let mut status = Status::new(code, text);
    set_retry_after(&mut status, retry_after_ms);
    if let SubmitError::Unavailable { content_id, .. } = error
        && let Ok(value) = MetadataValue::try_from(content_id.to_string())
    {
        status.metadata_mut().insert(CONTENT_ID, value);
    }
    status
}

fn set_retry_after(status: &mut Status, ms: Option<u64>) {
    if let Some(ms) = ms {
        status.metadata_mut().insert(RETRY_AFTER, MetadataValue::from(retry_after_seconds(ms)));
        status.metadata_mut().insert(RETRY_AFTER_MS, MetadataValue::from(ms));
    }
}

/// Takes a place and reads the request whole before tonic sees it, so that both doors have the same limits. A stream's
/// messages come one by one, and each takes a place then.
pub(crate) async fn read_request(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if request.uri().path() == SUBMIT_STREAM {
        return next.run(request).await;
    }
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

pub(crate) fn refuse(problem: &Problem) -> Response {
    status_of_problem(problem).into_http::<Body>().into_response()
}

pub(crate) fn status_of_problem(problem: &Problem) -> Status {
    let code = match problem.status() {
        StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        StatusCode::REQUEST_TIMEOUT => Code::DeadlineExceeded,
        _ => Code::InvalidArgument,
    };
    let mut status = Status::new(code, problem.text());
    set_retry_after(&mut status, problem.retry_after_ms());
    status
}

/// What a status says, as a message of a stream says it.
pub(crate) fn refusal_of(status: &Status) -> SubmitRefusal {
    let word = |name| status.metadata().get(name).and_then(|value| value.to_str().ok());
    let content_id = word(CONTENT_ID).and_then(|text| text.parse::<ContentId>().ok());
    SubmitRefusal {
        code: status.code() as u32,
        message: status.message().to_owned(),
        retry_after_ms: word(RETRY_AFTER_MS).and_then(|text| text.parse().ok()).unwrap_or(0),
        content_id: content_id.map(|id| id.0.to_vec().into()).unwrap_or_default(),
    }
}
