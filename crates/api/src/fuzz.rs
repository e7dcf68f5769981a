//! What the fuzz targets call: the service behind a connection. Not for anybody else.

use std::sync::Arc;

use axum::Router;
use tokio_util::sync::CancellationToken;

use crate::options::Options;
use crate::ports::Ports;
use crate::routes::{self, App};

/// Every route over `ports`.
pub fn router(options: Options, ports: Ports) -> Router {
    routes::router(Arc::new(App::new(options, ports, CancellationToken::new())))
}
