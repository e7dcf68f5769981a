//! Which path leads where.

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use lockstep_types::proto::reader_server::ReaderServer;
use lockstep_types::proto::sequencer_server::SequencerServer;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::caller::Callers;
use crate::options::Options;
use crate::ports::Ports;
use crate::{bulk, caller, feed, grpc, grpc_feed, message, metrics, reads, registry, sealed, task_v1};

/// Every path that is served.
pub(crate) mod path {
    pub(crate) const PAGE: &str = "/";
    pub(crate) const MESSAGE: &str = "/message";
    pub(crate) const MESSAGES: &str = "/messages";
    pub(crate) const TASK: &str = "/task";
    pub(crate) const DID_DOCUMENT: &str = "/didDoc";
    pub(crate) const ISSUE_TOKEN: &str = "/issue_vc";
    pub(crate) const MESSAGE_STATES: &str = "/message/{id}";
    pub(crate) const TASK_V1: &str = "/v1/task";
    pub(crate) const TASK_V1_STATES: &str = "/v1/task/{id}";
    pub(crate) const API_ORDERS: &str = "/api/orders";
    pub(crate) const API_PROJECTS: &str = "/api/projects";
    pub(crate) const API_PROJECT: &str = "/api/projects/{id}";
    pub(crate) const API_DEVICES: &str = "/api/projects/{id}/devices";
    pub(crate) const API_STATUS: &str = "/api/status";
    pub(crate) const API_MEMBERS: &str = "/api/members";
    pub(crate) const API_BATCHES: &str = "/api/batches";
    pub(crate) const API_BATCH: &str = "/api/batches/{height}";
    pub(crate) const API_MESSAGE: &str = "/api/messages/{id}";
    pub(crate) const API_TASKS: &str = "/api/tasks";
    pub(crate) const API_FEED: &str = "/api/feed";
    pub(crate) const API_TASK: &str = "/api/tasks/{id}";
    pub(crate) const API_PROOF: &str = "/api/proofs/{id}";
    pub(crate) const API_BOUNDARIES: &str = "/api/boundaries";
    pub(crate) const API_EXPORT: &str = "/api/export";
    pub(crate) const OPENAPI: &str = "/api/openapi.json";
    pub(crate) const METRICS: &str = "/metrics";
    pub(crate) const LIVE: &str = "/livez";
    pub(crate) const READY: &str = "/readyz";
    pub(crate) const GRPC: &str = "/lockstep.v1.Sequencer/{method}";
    pub(crate) const GRPC_READER: &str = "/lockstep.v1.Reader/{method}";
    pub(crate) const ALL: [&str; 30] = [
        OPENAPI,
        API_TASKS,
        API_FEED,
        GRPC_READER,
        DID_DOCUMENT,
        ISSUE_TOKEN,
        MESSAGE_STATES,
        TASK_V1,
        TASK_V1_STATES,
        API_ORDERS,
        API_PROJECTS,
        API_PROJECT,
        API_DEVICES,
        MESSAGE,
        MESSAGES,
        TASK,
        GRPC,
        API_STATUS,
        API_MEMBERS,
        API_BATCHES,
        API_BATCH,
        API_MESSAGE,
        API_TASK,
        API_PROOF,
        API_BOUNDARIES,
        API_EXPORT,
        METRICS,
        LIVE,
        READY,
        PAGE,
    ];
}

/// What every handler shares.
pub(crate) struct App {
    pub(crate) ports: Ports,
    pub(crate) options: Options,
    pub(crate) admission: Admission,
    pub(crate) callers: Callers,
    pub(crate) metrics: metrics::Text,
    /// Cancelled when the server stops.
    pub(crate) stop: CancellationToken,
}

impl App {
    pub(crate) fn new(options: Options, ports: Ports, stop: CancellationToken) -> Self {
        let (admission, callers) = (Admission::new(&options), Callers::new(&options));
        Self { ports, admission, callers, options, stop, metrics: metrics::Text::default() }
    }
}

pub(crate) fn router(app: Arc<App>) -> Router {
    // tonic's own `Routes` brings a fallback of its own, which cannot be merged with the one for unknown paths.
    let sequencer = SequencerServer::new(grpc::Service::new(Arc::clone(&app)))
        .max_decoding_message_size(app.options.body_bytes_max);
    let readers = ReaderServer::new(grpc_feed::Service::new(Arc::clone(&app)));
    let grpc = Router::new()
        .route_service(path::GRPC, sequencer)
        .route_service(path::GRPC_READER, readers)
        .layer(from_fn_with_state(Arc::clone(&app), grpc::read_request));
    Router::new()
        .route(path::MESSAGE, post(message::submit))
        .route(path::MESSAGES, post(bulk::submit))
        .route(path::TASK, get(message::task))
        .route(path::DID_DOCUMENT, get(sealed::did_document))
        .route(path::ISSUE_TOKEN, post(sealed::issue_token))
        .route(path::MESSAGE_STATES, get(sealed::message))
        .route(path::TASK_V1, post(task_v1::submit))
        .route(path::TASK_V1_STATES, get(task_v1::task))
        .route(path::API_ORDERS, post(registry::order))
        .route(path::API_PROJECTS, get(registry::projects))
        .route(path::API_PROJECT, get(registry::project))
        .route(path::API_DEVICES, get(registry::devices))
        .route(path::API_STATUS, get(reads::status))
        .route(path::API_MEMBERS, get(reads::members))
        .route(path::API_BATCHES, get(reads::batches))
        .route(path::API_BATCH, get(reads::batch))
        .route(path::API_MESSAGE, get(reads::message))
        .route(path::API_TASKS, get(feed::tasks))
        .route(path::API_FEED, get(feed::events))
        .route(path::API_TASK, get(reads::task))
        .route(path::API_PROOF, get(reads::proof))
        .route(path::API_BOUNDARIES, get(reads::boundaries))
        .route(path::API_EXPORT, get(reads::export))
        .route(path::OPENAPI, get(reads::openapi))
        .route(path::METRICS, get(reads::metrics))
        .route(path::LIVE, get(reads::livez))
        .route(path::READY, get(reads::readyz))
        .route(path::PAGE, get(reads::page))
        .merge(grpc)
        .fallback(reads::unknown_path)
        .method_not_allowed_fallback(reads::wrong_method)
        .layer(from_fn_with_state(Arc::clone(&app), caller::limit))
        .layer(from_fn(metrics::count))
        .with_state(app)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_in_the_openapi_document_and_no_other() {
        let document: serde_json::Value = serde_json::from_str(crate::reads::OPENAPI_DOCUMENT).unwrap();
        let mut documented: Vec<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let is_grpc = |path: &&str| [path::GRPC, path::GRPC_READER].contains(path);
        let mut served: Vec<&str> = path::ALL.into_iter().filter(|path| !is_grpc(path)).collect();
        documented.sort_unstable();
        served.sort_unstable();
        assert_eq!(documented, served);
    }
}
