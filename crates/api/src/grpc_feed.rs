//! The gRPC door for readers.

use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt as _};
use lockstep_types::proto::reader_server::Reader;
use lockstep_types::proto::{BatchesRequest, ExportPage, FeedMessage, FeedTask, TasksRequest};
use lockstep_types::{Height, ProjectId, TaskNumber};
use tonic::{Code, Status};

use crate::connection::Busy;
use crate::feed::{FEED_PAGE, FeedItem, TaskFeed};
use crate::grpc::status_of_problem;
use crate::ports::{ReadError, TasksQuery};
use crate::problem::Problem;
use crate::routes::App;
use crate::viewer::Viewer;
use crate::views::{TaskView, from_base64};

/// Serves `lockstep.v1.Reader`.
pub(crate) struct Service {
    app: Arc<App>,
}

impl Service {
    pub(crate) fn new(app: Arc<App>) -> Self {
        Self { app }
    }
}

fn viewer_of<T>(request: &tonic::Request<T>) -> Viewer {
    Viewer::of(&request.metadata().clone().into_headers())
}

fn status_of_read(error: ReadError) -> Status {
    let code = match error {
        ReadError::Pruned { .. } => Code::OutOfRange,
        ReadError::NotFinal { .. } | ReadError::Unavailable { .. } => Code::Unavailable,
        ReadError::Failed(_) => Code::Internal,
    };
    Status::new(code, error.to_string())
}

fn refused(problem: &Problem) -> Status {
    match problem.status() {
        axum::http::StatusCode::GONE => Status::out_of_range(problem.text()),
        status if status.is_server_error() => Status::unavailable(problem.text()),
        _ => status_of_problem(problem),
    }
}

fn task_to_proto(task: TaskView) -> FeedTask {
    let bytes = |data: &Option<String>| data.as_deref().and_then(from_base64).map(Into::into);
    let messages = task.messages.iter().map(|message| FeedMessage {
        sequence: message.sequence.0,
        id: message.id.0.to_vec().into(),
        data: bytes(&message.data),
    });
    let (payload, window) = (bytes(&task.ruled.payload), task.ruled.window);
    let signature = task.signature.as_deref().and_then(|text| hex::decode(text.trim_start_matches("0x")).ok());
    FeedTask {
        number: task.number.0,
        id: task.id.0.to_vec().into(),
        project_id: task.project_id.0,
        device: task.device.unwrap_or_default().0.to_vec().into(),
        time_ms: task.time_ms.0,
        height: task.height.0,
        messages: messages.collect(),
        signature: signature.unwrap_or_default().into(),
        project_version: task.project_version,
        group: task.ruled.group.unwrap_or_default(),
        window,
        payload,
    }
}

#[tonic::async_trait]
impl Reader for Service {
    type TasksStream = BoxStream<'static, Result<FeedTask, Status>>;
    type BatchesStream = BoxStream<'static, Result<ExportPage, Status>>;

    async fn tasks(&self, request: tonic::Request<TasksRequest>) -> Result<tonic::Response<Self::TasksStream>, Status> {
        let (viewer, busy) = (viewer_of(&request), request.extensions().get::<Busy>().cloned());
        let TasksRequest { project_id, after, from_height } = request.into_inner();
        let query = TasksQuery {
            project: (project_id > 0).then_some(ProjectId(project_id)),
            after: (after > 0).then_some(TaskNumber(after)),
            from_height: (from_height > 0).then_some(Height(from_height)),
            limit: FEED_PAGE,
            viewer,
        };
        let feed = TaskFeed::open(Arc::clone(&self.app), busy, query).await.map_err(|p| refused(&p))?;
        let tasks = feed.into_stream().map(|item| match item {
            Ok(FeedItem::Task(task)) => Ok(task_to_proto(*task)),
            Ok(FeedItem::Cursor(number)) => Ok(FeedTask { number: number.0, ..FeedTask::default() }),
            Err(error) => Err(status_of_read(error)),
        });
        Ok(tonic::Response::new(tasks.boxed()))
    }

    async fn batches(
        &self,
        request: tonic::Request<BatchesRequest>,
    ) -> Result<tonic::Response<Self::BatchesStream>, Status> {
        let (viewer, busy) = (viewer_of(&request), request.extensions().get::<Busy>().cloned());
        let from = Height(request.into_inner().from_height);
        let pages = crate::feed::batches(Arc::clone(&self.app), busy, viewer, from).await.map_err(|p| refused(&p))?;
        let pages = pages.map(|page| page.map(|page| page.to_proto()).map_err(status_of_read));
        Ok(tonic::Response::new(pages.boxed()))
    }
}
