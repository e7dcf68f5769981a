//! Feeds of what is final: pages of tasks, the same as server-sent events, and gRPC streams. A feed reads on only when
//! its reader has taken what came before, so a slow reader costs a place and no memory.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use futures::stream::{self, BoxStream, Stream, StreamExt as _};
use lockstep_types::message::PROJECT_ID_MAX;
use lockstep_types::{ExportPage, Height, ProjectId, TaskNumber};
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;

use crate::connection::{Busy, Running};
use crate::ports::{ReadError, TasksQuery};
use crate::problem::Problem;
use crate::reads::{JSON, large};
use crate::routes::App;
use crate::viewer::Viewer;
use crate::views::TaskView;

/// Tasks in a page when the reader does not say how many.
const TASKS_DEFAULT: usize = 100;
/// Most tasks in a page.
pub const TASKS_MAX: usize = 1_000;
/// Tasks that a feed reads at a time.
pub(crate) const FEED_PAGE: usize = 256;
/// A feed with nothing to say sends its cursor this often, so that both sides see that the other is there.
const CURSOR_INTERVAL: Duration = Duration::from_secs(15);
/// Header of a reader that comes back, by the standard of server-sent events.
const LAST_EVENT_ID: &str = "last-event-id";

#[derive(Debug, Deserialize)]
pub(crate) struct TaskRange {
    project: Option<u64>,
    after: Option<u64>,
    from_height: Option<u64>,
    limit: Option<usize>,
}

impl TaskRange {
    fn query(&self, viewer: Viewer, limit: usize) -> Result<TasksQuery, Problem> {
        let project = match self.project {
            None => None,
            Some(id) if (1..=PROJECT_ID_MAX).contains(&id) => Some(ProjectId(id)),
            Some(_) => return Err(Problem::invalid(format!("project must be a number from 1 to {PROJECT_ID_MAX}"))),
        };
        if self.after.is_some() && self.from_height.is_some() {
            return Err(Problem::invalid("say either after or from_height"));
        }
        let (after, from_height) = (self.after.map(TaskNumber), self.from_height.map(Height));
        Ok(TasksQuery { project, after, from_height, limit, viewer })
    }
}

/// `GET /api/tasks`: a page of final tasks.
pub(crate) async fn tasks(
    State(app): State<Arc<App>>,
    viewer: Viewer,
    range: Result<Query<TaskRange>, QueryRejection>,
) -> Result<Response, Problem> {
    let _place = app.admission.read()?;
    let Query(range) = range.map_err(|e| Problem::invalid(e.body_text()))?;
    let limit = range.limit.unwrap_or(TASKS_DEFAULT).clamp(1, TASKS_MAX);
    let query = range.query(viewer, limit)?;
    let turn = app.admission.large().await?;
    let page = app.ports.feed.tasks(query).await?;
    large(&app, turn, JSON, move || serde_json::to_vec(&page)).await
}

/// `GET /api/feed`: the same without an end, as server-sent events.
pub(crate) async fn events(
    State(app): State<Arc<App>>,
    viewer: Viewer,
    headers: HeaderMap,
    busy: Option<axum::Extension<Busy>>,
    range: Result<Query<TaskRange>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(mut range) = range.map_err(|e| Problem::invalid(e.body_text()))?;
    if let Some(last) = headers.get(LAST_EVENT_ID) {
        // Whoever comes back asks as at first, and says with this where it is.
        let last = last.to_str().ok().and_then(|text| text.parse().ok());
        let last = last.ok_or_else(|| Problem::invalid("Last-Event-ID must be the number of a task"))?;
        (range.after, range.from_height) = (Some(last), None);
    }
    let query = range.query(viewer, FEED_PAGE)?;
    let feed = TaskFeed::open(app, busy.map(|axum::Extension(busy)| busy), query).await?;
    let events = feed.into_stream().map(|item| Ok::<_, std::convert::Infallible>(event(item)));
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

fn event(item: Result<FeedItem, ReadError>) -> Bytes {
    let (name, id, data) = match item {
        Ok(FeedItem::Task(task)) => ("task", Some(task.number), serde_json::to_string(&task).unwrap_or_default()),
        Ok(FeedItem::Cursor(number)) => ("cursor", Some(number), format!("{{\"after\":{number}}}")),
        Err(error) => ("error", None, Problem::from(error).into_json()),
    };
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    Bytes::from(format!("event: {name}\n{id}data: {data}\n\n"))
}

/// What a reader of tasks gets.
pub(crate) enum FeedItem {
    Task(Box<TaskView>),
    /// There was nothing for this reader up to here.
    Cursor(TaskNumber),
}

/// A reader's place among the feeds; given back when it ends.
struct Place {
    _permit: OwnedSemaphorePermit,
    busy: Option<Busy>,
}

impl Place {
    fn take(app: &App, busy: Option<Busy>) -> Result<Self, Problem> {
        Ok(Self { _permit: app.admission.feed()?, busy })
    }

    /// The connection is not idle while something is made ready for its reader. One that does not take what is ready is
    /// idle, so that whoever only holds a place loses it.
    fn hold(&self) -> Option<Running> {
        self.busy.as_ref().map(Busy::hold)
    }
}

/// One reader of tasks.
pub(crate) struct TaskFeed {
    app: Arc<App>,
    query: TasksQuery,
    /// Read, but not taken by the reader yet.
    ready: std::vec::IntoIter<TaskView>,
    has_failed: bool,
    place: Place,
}

impl TaskFeed {
    /// Reads the first page, so that what cannot be served is refused at once.
    pub(crate) async fn open(app: Arc<App>, busy: Option<Busy>, query: TasksQuery) -> Result<Self, Problem> {
        let place = Place::take(&app, busy)?;
        let mut feed = Self { app, query, ready: Vec::new().into_iter(), has_failed: false, place };
        feed.read_page().await?;
        Ok(feed)
    }

    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<FeedItem, ReadError>> + Send {
        stream::unfold(self, |mut feed| async move { Some((feed.next().await?, feed)) })
    }

    /// Ends when the node stops, and after an error: the reader comes back with its cursor.
    async fn next(&mut self) -> Option<Result<FeedItem, ReadError>> {
        if self.has_failed {
            return None;
        }
        let (stop, _running) = (self.app.stop.clone(), self.place.hold());
        loop {
            if let Some(task) = self.ready.next() {
                return Some(Ok(FeedItem::Task(Box::new(task))));
            }
            let feed = Arc::clone(&self.app.ports.feed);
            let more = feed.wait_for_task(self.query.after);
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = more => {}
                () = tokio::time::sleep(CURSOR_INTERVAL) => {
                    return Some(Ok(FeedItem::Cursor(self.query.after.unwrap_or_default())));
                }
            }
            if let Err(error) = self.read_page().await {
                self.has_failed = true;
                return Some(Err(error));
            }
        }
    }

    async fn read_page(&mut self) -> Result<(), ReadError> {
        let page = self.app.ports.feed.tasks(self.query.clone()).await?;
        if page.next.is_some() {
            // From here on the cursor alone says where the reader is.
            (self.query.after, self.query.from_height) = (page.next, None);
        }
        self.ready = page.tasks.into_iter();
        Ok(())
    }
}

/// Final batches from a height on, for gRPC.
pub(crate) async fn batches(
    app: Arc<App>,
    busy: Option<Busy>,
    viewer: Viewer,
    from: Height,
) -> Result<BoxStream<'static, Result<ExportPage, ReadError>>, Problem> {
    let place = Place::take(&app, busy)?;
    let first = app.ports.feed.final_batches(from, viewer).await?;
    let next = first.batches.last().map_or(from, |batch| batch.header.height.next());
    let state = (app, place, next, (!first.batches.is_empty()).then_some(first), false);
    let pages = stream::unfold(state, move |(app, place, next, ready, has_failed)| async move {
        if has_failed {
            return None;
        }
        if let Some(page) = ready {
            return Some((Ok(page), (app, place, next, None, false)));
        }
        let (stop, feed, _running) = (app.stop.clone(), Arc::clone(&app.ports.feed), place.hold());
        tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            () = feed.wait_for_final(next) => {}
        }
        match feed.final_batches(next, viewer).await {
            Ok(page) => {
                let after = page.batches.last().map_or(next, |batch| batch.header.height.next());
                Some((Ok(page), (app, place, after, None, false)))
            }
            Err(error) => Some((Err(error), (app, place, next, None, true))),
        }
    });
    Ok(pages.boxed())
}
