//! One gRPC stream of messages: as many under way as are allowed, each answered when it is ready. While that many are
//! under way, or while the client does not read its answers, nothing more is read, and HTTP/2 holds the client back.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, FuturesUnordered, StreamExt as _};
use lockstep_types::proto::submit_result::Result as Outcome;
use lockstep_types::proto::{SubmitRequest, SubmitResult};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::{Status, Streaming};

use crate::caller::Caller;
use crate::connection::{Busy, Running};
use crate::grpc::{refusal_of, request_of, response_of, status_of, status_of_problem};
use crate::routes::App;

/// Answers that wait to be written to one client.
const ANSWERS_MAX: usize = 32;

/// What a client gets.
pub(crate) type Results = BoxStream<'static, Result<SubmitResult, Status>>;

/// A stream that is served; all of it is given back when it ends.
pub(crate) struct SubmitStream {
    app: Arc<App>,
    caller: Option<Caller>,
    results: mpsc::Sender<Result<SubmitResult, Status>>,
    _place: OwnedSemaphorePermit,
    /// So that the connection does not count as idle.
    _running: Option<Running>,
}

/// Serves a stream until the client ends it, it is idle for too long, or the node stops.
pub(crate) fn serve(app: Arc<App>, request: tonic::Request<Streaming<SubmitRequest>>) -> Result<Results, Status> {
    let place = app.admission.stream().map_err(|problem| status_of_problem(&problem))?;
    let (results, mut receiver) = mpsc::channel(ANSWERS_MAX);
    let stream = SubmitStream {
        caller: request.extensions().get::<Caller>().copied(),
        _running: request.extensions().get::<Busy>().map(Busy::hold),
        app,
        results,
        _place: place,
    };
    tokio::spawn(stream.run(request.into_inner()));
    Ok(futures::stream::poll_fn(move |cx| receiver.poll_recv(cx)).boxed())
}

impl SubmitStream {
    async fn run(self, mut requests: Streaming<SubmitRequest>) {
        let (idle, in_flight_max) = (self.app.options.idle_timeout(), self.app.options.stream_in_flight_max);
        let mut under_way = FuturesUnordered::new();
        let (mut is_open, mut end) = (true, None);
        while is_open || !under_way.is_empty() {
            tokio::select! {
                biased;
                Some(result) = under_way.next() => {
                    if !self.send(Ok(result), idle).await {
                        return;
                    }
                }
                request = requests.message(), if is_open && under_way.len() < in_flight_max => match request {
                    Ok(Some(request)) => under_way.push(self.answer(request)),
                    Ok(None) => is_open = false,
                    Err(status) => (is_open, end) = (false, Some(status)),
                },
                () = self.app.stop.cancelled(), if is_open => {
                    (is_open, end) = (false, Some(Status::unavailable("this node is shutting down, try another one")));
                }
                () = tokio::time::sleep(idle), if under_way.is_empty() => {
                    (is_open, end) = (false, Some(Status::deadline_exceeded("nothing came for too long")));
                }
                () = self.results.closed() => return,
            }
        }
        if let Some(status) = end {
            self.send(Err(status), idle).await;
        }
    }

    /// False when the client does not take it, or is gone.
    async fn send(&self, result: Result<SubmitResult, Status>, patience: Duration) -> bool {
        matches!(tokio::time::timeout(patience, self.results.send(result)).await, Ok(Ok(())))
    }

    async fn answer(&self, request: SubmitRequest) -> SubmitResult {
        let client_ref = request.client_ref;
        let result = match self.submit(request).await {
            Ok(accepted) => Outcome::Accepted(accepted),
            Err(status) => Outcome::Refused(refusal_of(&status)),
        };
        SubmitResult { client_ref, result: Some(result) }
    }

    async fn submit(&self, request: SubmitRequest) -> Result<lockstep_types::proto::SubmitResponse, Status> {
        let app = &*self.app;
        self.caller.map_or(Ok(()), |caller| app.callers.take(caller)).map_err(|p| status_of_problem(&p))?;
        let _place = app.admission.submit().map_err(|p| status_of_problem(&p))?;
        let _bytes = app.admission.hold(&app.options, request.data.len()).map_err(|p| status_of_problem(&p))?;
        let request = request_of(request, app.options.message_bytes_max)?;
        app.ports.submit.submit(request).await.map(response_of).map_err(status_of)
    }
}
