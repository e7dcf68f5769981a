//! Refusals: one shape for every error body, `{"error": sentence, "code": machine_word}`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lockstep_identity::RequestError;
use lockstep_types::ContentId;
use serde::Serialize;

use crate::ports::{ReadError, SealedError, Sender, SubmitError};

/// When to come back where no better hint is at hand.
const RETRY_AFTER_DEFAULT_MS: u64 = 1_000;

/// An error among the answers to several messages.
#[derive(Debug, Serialize)]
pub(crate) struct Refusal {
    #[serde(flatten)]
    body: Body,
    /// The HTTP status that the message would have had by itself.
    status: u16,
    #[serde(rename = "retryAfterMs", skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

/// An error answer.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    body: Body,
    retry_after_ms: Option<u64>,
    closes: bool,
}

#[derive(Debug, Serialize)]
struct Body {
    error: String,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_id: Option<ContentId>,
    /// The word of a project's rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Box<str>>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, error: impl ToString) -> Self {
        let body = Body { error: error.to_string(), code, content_id: None, reason: None };
        Self { status, body, retry_after_ms: None, closes: false }
    }

    pub(crate) fn invalid(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", error)
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("{what} is not known to this node"))
    }

    pub(crate) fn too_large(bytes_max: usize) -> Self {
        let error = format!("the request's body must be at most {bytes_max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", error)
    }

    pub(crate) fn busy(error: &str) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", error).retry_after(RETRY_AFTER_DEFAULT_MS)
    }

    pub(crate) fn too_fast(sender: Sender, retry_after_ms: u64) -> Self {
        let error = SubmitError::TooFast { sender, retry_after_ms };
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_fast", error).retry_after(retry_after_ms)
    }

    pub(crate) fn unavailable(code: &'static str, error: impl ToString) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, error).retry_after(RETRY_AFTER_DEFAULT_MS)
    }

    pub(crate) fn retry_after(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// For answers that are given before the request was read whole: what follows on the connection is not a request.
    pub(crate) fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    /// The answer of `POST /message`. The reference knows only 400 for what it refuses in a request, so a missing
    /// or bad signature is 400 here, and not 401 or 403.
    pub(crate) fn of_submit(error: SubmitError, signed: bool) -> Self {
        let text = error.to_string();
        match error {
            SubmitError::Unauthenticated(_) => Self::new(StatusCode::BAD_REQUEST, "bad_signature", text),
            SubmitError::Forbidden(_) if !signed => Self::new(StatusCode::BAD_REQUEST, "forbidden", text),
            SubmitError::Forbidden(_) => Self::new(StatusCode::FORBIDDEN, "forbidden", text),
            SubmitError::NonceUsed(_) => Self::new(StatusCode::CONFLICT, "nonce_used", text),
            SubmitError::Invalid(_) => Self::invalid(text),
            SubmitError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text),
            SubmitError::Rules { reason, .. } => {
                let mut problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "rules", text);
                problem.body.reason = Some(reason.into());
                problem
            }
            SubmitError::RulesFuel { retry_after_ms } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "rules_fuel", text).retry_after(retry_after_ms)
            }
            SubmitError::Busy { retry_after_ms } => Self::busy(&text).retry_after(retry_after_ms),
            SubmitError::TooFast { sender, retry_after_ms } => Self::too_fast(sender, retry_after_ms),
            SubmitError::Unavailable { content_id, retry_after_ms } => {
                let mut problem = Self::unavailable("outcome_unknown", text).retry_after(retry_after_ms);
                problem.body.content_id = Some(content_id);
                problem
            }
            SubmitError::Stopping => Self::unavailable("stopping", text),
            SubmitError::Halted(_) => Self::unavailable("halted", text),
        }
    }

    /// The answers of the sprout generation: 401 also for a device that may not do this, 400 for what cannot be read.
    pub(crate) fn of_sealed(error: SealedError) -> Self {
        let text = error.to_string();
        match error {
            SealedError::NoSecret => Self::new(StatusCode::NOT_FOUND, "no_server_secret", text),
            SealedError::Token(_) => Self::new(StatusCode::UNAUTHORIZED, "bad_token", text),
            SealedError::Denied(_) => Self::new(StatusCode::UNAUTHORIZED, "forbidden", text),
            SealedError::Unreadable(_) => Self::new(StatusCode::BAD_REQUEST, "unreadable", text),
            SealedError::Submit(SubmitError::Forbidden(_)) => Self::new(StatusCode::UNAUTHORIZED, "forbidden", text),
            SealedError::Submit(error) => Self::of_submit(error, true),
            SealedError::Read(error) => error.into(),
            SealedError::Unavailable(_) => Self::unavailable("unavailable", text),
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn retry_after_ms(&self) -> Option<u64> {
        self.retry_after_ms
    }

    pub(crate) fn into_refusal(self) -> Refusal {
        Refusal { body: self.body, status: self.status.as_u16(), retry_after_ms: self.retry_after_ms }
    }

    /// As the data of an event.
    pub(crate) fn into_json(self) -> String {
        serde_json::to_string(&self.into_refusal()).unwrap_or_default()
    }

    pub(crate) fn text(&self) -> &str {
        &self.body.error
    }
}

/// `Retry-After` in whole seconds, rounded up, at least 1.
pub(crate) fn retry_after_seconds(ms: u64) -> u64 {
    ms.div_ceil(1000).max(1)
}

impl From<RequestError> for Problem {
    fn from(error: RequestError) -> Self {
        let status = match error {
            RequestError::DataTooLarge { .. } | RequestError::TooMany { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.code(), error)
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        let text = error.to_string();
        match error {
            ReadError::Pruned { .. } => Self::new(StatusCode::GONE, "pruned", text),
            ReadError::NotFinal { retry_after_ms } => Self::unavailable("not_final", text).retry_after(retry_after_ms),
            ReadError::Unavailable { retry_after_ms, .. } => {
                Self::unavailable("unavailable", text).retry_after(retry_after_ms)
            }
            ReadError::Failed(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "read_failed", text),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body)).into_response();
        let headers = response.headers_mut();
        if let Some(ms) = self.retry_after_ms {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_seconds(ms)));
        }
        if self.closes {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
