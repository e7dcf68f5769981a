//! `POST /messages`: many messages in one request, each with an answer of its own.

use std::sync::Arc;

use axum::extract::{Request, State};
use lockstep_identity::{DeviceRequest, RequestError, parse_bulk};
use lockstep_types::{Height, MessageId, Sequence};
use serde::Serialize;

use crate::caller::Caller;
use crate::ports::{Accepted, SubmitError};
use crate::problem::{Problem, Refusal};
use crate::routes::App;

/// What became of one message of the body. Read as `POST /message` answers, or as a refusal.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Entry {
    Accepted {
        #[serde(rename = "messageID")]
        message_id: MessageId,
        /// Empty while the message's group is open.
        #[serde(rename = "taskID")]
        task_id: String,
        sequence: Sequence,
        height: Height,
        duplicate: bool,
    },
    Refused(Refusal),
}

impl From<Accepted> for Entry {
    fn from(accepted: Accepted) -> Self {
        let Accepted { message_id, task_id, sequence, height, duplicate } = accepted;
        let task_id = task_id.map(|id| id.to_string()).unwrap_or_default();
        Self::Accepted { message_id, task_id, sequence, height, duplicate }
    }
}

/// 200 says only that the body could be read; the answers stand in the order of the messages. All that can be submitted
/// is submitted together.
pub(crate) async fn submit(State(app): State<Arc<App>>, request: Request) -> Result<axum::Json<Vec<Entry>>, Problem> {
    let _first_place = app.admission.submit()?;
    let caller = request.extensions().get::<Caller>().copied();
    let parsed = {
        let body = app.admission.read_body_of(&app.options, app.options.bulk_bytes_max(), request.into_body()).await?;
        parse_bulk(&body.bytes, app.options.bulk_messages_max())?
    };
    let _places = app.admission.submit_more(parsed.len().saturating_sub(1))?;
    let entries = submit_together(&app, parsed, |index, request| {
        // The request itself was counted as one.
        check(&app, caller.filter(|_| index > 0), request)
    });
    Ok(axum::Json(entries.await))
}

/// Submits together what can be read and passes `check`, which is told each message's place. An answer for each, in their
/// order.
pub(crate) async fn submit_together(
    app: &App,
    parsed: Vec<Result<DeviceRequest, RequestError>>,
    check: impl Fn(usize, DeviceRequest) -> Result<DeviceRequest, Problem>,
) -> Vec<Entry> {
    let mut outcomes = Vec::with_capacity(parsed.len());
    let mut together = Vec::with_capacity(parsed.len());
    for (index, request) in parsed.into_iter().enumerate() {
        match request.map_err(Problem::from).and_then(|request| check(index, request)) {
            Ok(request) => {
                outcomes.push(Ok(request.signature.is_some()));
                together.push(request);
            }
            Err(problem) => outcomes.push(Err(problem)),
        }
    }
    let mut results = app.ports.submit.submit_all(together).await.into_iter();
    let mut entries = Vec::with_capacity(outcomes.len());
    for outcome in outcomes {
        entries.push(match outcome {
            Ok(signed) => answer(results.next().unwrap_or(Err(SubmitError::Stopping)), signed),
            Err(problem) => Entry::Refused(problem.into_refusal()),
        });
    }
    entries
}

fn check(app: &App, caller: Option<Caller>, request: DeviceRequest) -> Result<DeviceRequest, Problem> {
    request.check_limits(app.options.message_bytes_max)?;
    caller.map_or(Ok(()), |caller| app.callers.take(caller))?;
    Ok(request)
}

fn answer(result: Result<Accepted, SubmitError>, signed: bool) -> Entry {
    match result {
        Ok(accepted) => accepted.into(),
        Err(error) => Entry::Refused(Problem::of_submit(error, signed).into_refusal()),
    }
}
