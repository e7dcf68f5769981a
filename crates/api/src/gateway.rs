//! The door for gateways: bundles of messages that came in by another way than HTTP, within the same limits.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use axum::http::StatusCode;
use bytes::Bytes;
use lockstep_identity::{DeviceRequest, parse_bundle};
use lockstep_types::{Address, ProjectId};
use parking_lot::Mutex;
use serde::Serialize;

use crate::bulk::{Entry, submit_together};
use crate::ports::Sender;
use crate::problem::Problem;
use crate::rate::Buckets;
use crate::routes::App;

/// A gateway, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayRights {
    /// The address of its key.
    pub address: Address,
    /// The projects that it may submit to; `None`: all.
    pub projects: Option<BTreeSet<ProjectId>>,
}

/// Takes bundles. The limit on requests of one address counts each gateway as one, and each of its messages.
pub struct Bundles {
    app: Arc<App>,
    rates: Mutex<Buckets<Address>>,
    started: Instant,
}

impl Bundles {
    pub(crate) fn new(app: Arc<App>) -> Self {
        let rates = Mutex::new(Buckets::new(app.options.address_rate, app.options.addresses_max));
        Self { app, rates, started: Instant::now() }
    }

    /// Submits the messages of a bundle, which is what `POST /message` or `POST /messages` takes, together. The answer
    /// is JSON: as `POST /messages` answers, or one refusal where the bundle is refused as a whole. It ends by itself
    /// within a bounded time; dropping the future only stops the waiting.
    pub async fn submit(&self, gateway: &GatewayRights, bundle: Bytes) -> Bytes {
        match self.entries(gateway, &bundle).await {
            Ok(entries) => json(&entries),
            Err(problem) => json(&problem.into_refusal()),
        }
    }

    async fn entries(&self, gateway: &GatewayRights, bundle: &[u8]) -> Result<Vec<Entry>, Problem> {
        let (app, bytes_max) = (&self.app, self.app.options.bulk_bytes_max());
        if bundle.len() > bytes_max {
            return Err(Problem::too_large(bytes_max));
        }
        let _held = app.admission.hold(&app.options, bundle.len())?;
        let parsed = parse_bundle(bundle, app.options.bulk_messages_max())?;
        let _places = app.admission.submit_more(parsed.len())?;
        Ok(submit_together(app, parsed, |_, request| self.check(gateway, request)).await)
    }

    fn check(&self, gateway: &GatewayRights, request: DeviceRequest) -> Result<DeviceRequest, Problem> {
        request.check_limits(self.app.options.message_bytes_max)?;
        if gateway.projects.as_ref().is_some_and(|projects| !projects.contains(&request.project_id)) {
            let error = format!("this gateway may not submit to project {}", request.project_id);
            return Err(Problem::new(StatusCode::FORBIDDEN, "gateway_project", error));
        }
        let taken = self.rates.lock().take(gateway.address, self.started.elapsed());
        taken.map_err(|e| Problem::too_fast(Sender::Gateway, e.retry_after_ms))?;
        Ok(request)
    }
}

/// What the API answers with always has a JSON form.
fn json(answer: &impl Serialize) -> Bytes {
    serde_json::to_vec(answer).unwrap_or_default().into()
}
