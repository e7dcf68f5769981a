//! Where messages enter: checks what needs no CPU, gives the rest to the verification threads, and waits for a place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use lockstep_api::{Accepted, Submit, SubmitError};
use lockstep_consensus::StateStore;
use lockstep_identity::{DeviceRequest, SproutRequest, TaskRequest};
use lockstep_ledger::{Outcome, Projects, Rejection};
use lockstep_rules::Refusal;
use lockstep_types::{Address, Hash32, Height, NodeId, ProjectId, Sequence, TaskId};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use crate::door_shares::{DoorShares, PlaceAtDoor};
use crate::metrics;
use crate::proofs;
use crate::rates::Rates;
use crate::verify::{Asker, Job, Submission, Verdict, Verifier};

/// When a full pool or an election is worth another try.
pub(crate) const RETRY_AFTER_MS: u64 = 1_000;

fn busy() -> SubmitError {
    SubmitError::Busy { retry_after_ms: RETRY_AFTER_MS }
}

/// That a project's rules do not take a message.
pub(crate) fn refused(refusal: &Refusal) -> SubmitError {
    SubmitError::Rules { reason: refusal.reason.clone(), text: refusal.to_string() }
}

/// The node's side of [`Submit`].
pub struct Ingress {
    verifier: Verifier,
    state: StateStore,
    projects: watch::Receiver<Projects>,
    rates: Arc<Rates>,
    shares: DoorShares,
    hold: Duration,
    stopping: AtomicBool,
    conflict: watch::Receiver<Option<(NodeId, Height)>>,
}

/// What ingress works with.
pub(crate) struct IngressParts {
    pub verifier: Verifier,
    pub state: StateStore,
    pub projects: watch::Receiver<Projects>,
    pub rates: Arc<Rates>,
    /// How long a message is held.
    pub hold: Duration,
    /// Who signed two batches at one height.
    pub conflict: watch::Receiver<Option<(NodeId, Height)>>,
}

impl Ingress {
    pub(crate) fn new(parts: IngressParts) -> Self {
        let IngressParts { verifier, state, projects, rates, hold, conflict } = parts;
        let shares = DoorShares::new(lockstep_api::Options::default().submits_max);
        Self { verifier, state, projects, rates, shares, hold, stopping: AtomicBool::new(false), conflict }
    }

    /// Why nothing is acknowledged any more, if a voter signed two batches at one height.
    pub(crate) fn conflict(&self) -> Option<String> {
        let conflict = self.conflict.borrow();
        let (node, height) = (*conflict)?;
        Some(format!("node {node} signed two batches at height {height}; it has to be removed from the members"))
    }

    /// From now on every new message is refused with [`SubmitError::Stopping`].
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether [`Ingress::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// What can be told without a signature check. `apply` checks all of it again, with the same rules.
    fn check(&self, request: &DeviceRequest) -> Result<(), SubmitError> {
        if request.signature.is_none() && !self.projects.borrow().params().allow_unsigned {
            return Err(SubmitError::Forbidden(Rejection::Unsigned.to_string()));
        }
        self.check_project(request.project_id, request.data.len())
    }

    /// The same for what every API has.
    fn check_project(&self, project: ProjectId, data_bytes: usize) -> Result<(), SubmitError> {
        if self.is_stopping() {
            return Err(SubmitError::Stopping);
        }
        if let Some(reason) = self.conflict() {
            return Err(SubmitError::Halted(reason));
        }
        let projects = self.projects.borrow();
        if projects.settings(project).is_none() {
            return Err(SubmitError::Forbidden(Rejection::UnknownProject.to_string()));
        }
        let max = projects.params().message_bytes_max;
        if data_bytes as u64 > max {
            return Err(SubmitError::TooLarge { max });
        }
        self.rates.check_project(project)
    }

    /// Waits for what verification says, and then for the message's place.
    async fn wait(&self, verdict: oneshot::Receiver<Verdict>, deadline: Instant) -> Result<Accepted, SubmitError> {
        // Dropped without a verdict only when the threads have ended, or the check panicked: the message was not taken.
        let verdict = timeout_at(deadline, verdict).await.map_err(|_| busy())?.map_err(|_| SubmitError::Stopping)?;
        let (content_id, outcome) = verdict?;
        match timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => self.accepted(outcome).await,
            // The pool had no room and dropped the waiter.
            Ok(Err(_)) => Err(busy()),
            Err(_) => Err(SubmitError::Unavailable { content_id, retry_after_ms: RETRY_AFTER_MS }),
        }
    }

    /// The task of a message that had its place before.
    async fn task_of(&self, sequence: Sequence) -> Option<TaskId> {
        let find = move |state: &StateStore| {
            let Some(batch) = state.batch_of_message(sequence)? else { return Ok(None) };
            state.task_of(&batch, sequence)
        };
        Some(proofs::look(&self.state, find).await.ok()??.id)
    }

    async fn accepted(&self, outcome: Outcome) -> Result<Accepted, SubmitError> {
        match outcome {
            Outcome::Ordered { message_id, sequence, height, task_id, via: _ } => {
                Ok(Accepted { message_id, task_id, sequence, height, duplicate: false })
            }
            Outcome::Duplicate { message_id, sequence, height } => {
                let task_id = self.task_of(sequence).await;
                Ok(Accepted { message_id, task_id, sequence, height, duplicate: true })
            }
            Outcome::Rejected(Rejection::TooLarge) => {
                Err(SubmitError::TooLarge { max: self.projects.borrow().params().message_bytes_max })
            }
            Outcome::Rejected(Rejection::Nonce) => Err(SubmitError::NonceUsed(Rejection::Nonce.to_string())),
            Outcome::Rejected(Rejection::Malformed) => Err(SubmitError::Invalid(Rejection::Malformed.to_string())),
            Outcome::Rejected(Rejection::Rules(refusal)) => Err(refused(&refusal)),
            Outcome::Rejected(Rejection::Fuel) => Err(SubmitError::RulesFuel { retry_after_ms: RETRY_AFTER_MS }),
            Outcome::Rejected(reason) => Err(SubmitError::Forbidden(reason.to_string())),
        }
    }
}

impl Ingress {
    /// Largest `data` of a message.
    pub fn message_bytes_max(&self) -> u64 {
        self.projects.borrow().params().message_bytes_max
    }

    /// Orders what was in an envelope with this hash, of a device that showed its token.
    pub(crate) async fn submit_opened(
        &self,
        request: SproutRequest,
        device: Address,
        envelope: Hash32,
    ) -> Result<Accepted, SubmitError> {
        let project = request.project_id;
        self.check_project(project, request.data.len())?;
        self.order(project, Submission::Opened { request, device, envelope }).await
    }

    /// A place at the door for a message of a project.
    fn enter(&self, project: ProjectId) -> Result<PlaceAtDoor, SubmitError> {
        self.shares.enter(project).ok_or_else(|| {
            metrics::without_room(project, 1);
            busy()
        })
    }

    async fn order(&self, project: ProjectId, request: Submission) -> Result<Accepted, SubmitError> {
        let came_in = Instant::now();
        let _place = self.enter(project)?;
        let (asker, verified) = Asker::new(came_in);
        self.verifier.submit(Job::Request { request, asker }).map_err(|_| busy())?;
        self.wait(verified, came_in + self.hold).await
    }
}

#[async_trait]
impl Submit for Ingress {
    async fn submit(&self, request: DeviceRequest) -> Result<Accepted, SubmitError> {
        self.check(&request)?;
        self.order(request.project_id, Submission::Device(request)).await
    }

    async fn submit_task(&self, request: TaskRequest) -> Result<(TaskId, Accepted), SubmitError> {
        self.check_project(request.project_id, request.payload.len())?;
        let accepted = self.order(request.project_id, Submission::Task(request)).await?;
        // By the message as it is ordered: a retry may have another signature, which names no task.
        let height = accepted.height;
        let batch = proofs::look(&self.state, move |state| state.batch(height)).await.ok().flatten();
        let ordered = batch.as_ref().and_then(|batch| batch.message_at(accepted.sequence));
        let alias = ordered.and_then(|ordered| ordered.message.task_alias());
        // It was applied here, or its waiter would not have heard of it.
        let alias = alias.or(accepted.task_id).unwrap_or(TaskId(accepted.message_id.0));
        Ok((alias, accepted))
    }

    async fn submit_all(&self, requests: Vec<DeviceRequest>) -> Vec<Result<Accepted, SubmitError>> {
        let came_in = Instant::now();
        let (mut together, mut verdicts) = (Vec::with_capacity(requests.len()), Vec::with_capacity(requests.len()));
        for request in requests {
            let place = self.check(&request).and_then(|()| self.enter(request.project_id));
            verdicts.push(place.map(|place| {
                let (asker, verified) = Asker::new(came_in);
                together.push((request, asker));
                (place, verified)
            }));
        }
        let taken = self.verifier.submit_together(together);
        join_all(verdicts.into_iter().map(|verdict| async {
            let (_place, verdict) = verdict?;
            taken.map_err(|_| busy())?;
            self.wait(verdict, came_in + self.hold).await
        }))
        .await
    }
}
