//! The CPU pool that checks signatures, away from the threads that wait for sockets. One thread takes up many
//! requests at a time and hands them to the pool under one lock.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use lockstep_api::SubmitError;
use lockstep_consensus::StateStore;
use lockstep_identity::{DeviceRequest, RequestError, SproutRequest, TaskRequest};
use lockstep_ledger::{Aged, Head, History as _, Members, Occurrence, Outcome, Projects, Rejection, rules_input};
use lockstep_types::genesis::RETRY_WINDOW_FOR_EVER_MS;
use lockstep_types::{
    Address, Api, ContentId, DevicePolicy, Hash32, Height, Message, NodeId, SigningKey, VerifiedMessage,
};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::bulk::{Asked, Bulk, Proved};
use crate::bundle::Received;
use crate::endings::{EndReason, Endings, Then};
use crate::error::NodeError;
use crate::evidence::{EvidenceQueue, Named};
use crate::ingress::refused;
use crate::limits::{VERIFY_JOBS_MAX, VERIFY_TOGETHER_MAX};
use crate::mempool::{Mempool, Waiter};
use crate::metrics;
use crate::priority::{VERIFICATION, give_way};
use crate::rates::Rates;

/// What a request hears from verification; its place comes later, by the waiter.
pub(crate) type Verdict = Result<(ContentId, oneshot::Receiver<Outcome>), SubmitError>;

/// Who submitted something, and waits for the verdict on it.
pub(crate) struct Asker {
    verdict: oneshot::Sender<Verdict>,
    /// When the request came in: from then on the message ages.
    came_in: Instant,
}

impl Asker {
    /// One whose request came in at that time, and what it waits for.
    pub fn new(came_in: Instant) -> (Self, oneshot::Receiver<Verdict>) {
        let (verdict, waits) = oneshot::channel();
        (Self { verdict, came_in }, waits)
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.came_in.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Told whether all messages of a bundle were good.
pub(crate) type BundleDone = Box<dyn FnOnce(bool) + Send>;

/// What a device submits, by the API that it came by.
pub(crate) enum Submission {
    /// `POST /message`, signed or not.
    Device(DeviceRequest),
    /// Out of an envelope with this hash, of a device that showed its token.
    Opened { request: SproutRequest, device: Address, envelope: Hash32 },
    /// `POST /v1/task`.
    Task(TaskRequest),
}

pub(crate) enum Job {
    /// A device's request.
    Request { request: Submission, asker: Asker },
    /// Work that costs CPU and is nobody else's business.
    Aside(Box<dyn FnOnce() + Send>),
    /// Part of the work on requests that came together.
    Bulk(Arc<Bulk>),
    /// Messages of a member.
    Bundle {
        messages: Vec<Received>,
        /// When it came in: its messages go on ageing from then on.
        came_in: Instant,
        /// Leave contents aside that are ordered already: right for gossip, which is a hint. Not for what was sent to
        /// this node because it leads: the sender waits for an answer, which comes with the next place in the log.
        skip_ordered: bool,
        done: BundleDone,
    },
    /// Ordered messages that a voter has not checked yet; told the first whose evidence does not hold.
    Evidence {
        messages: Arc<[Named]>,
        range: Range<usize>,
        /// Whose word counts.
        members: Arc<[Address]>,
        done: oneshot::Sender<Option<usize>>,
    },
}

/// The threads end when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Verifier(Kind);

#[derive(Clone)]
enum Kind {
    Threads {
        jobs: Sender<Job>,
        threads: usize,
    },
    /// Every job is done before `submit` returns.
    Inline(Arc<Worker>),
}

/// No thread is free, and too many jobs wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overloaded;

#[derive(Clone)]
struct Worker {
    node: NodeId,
    jobs: Receiver<Job>,
    mempool: Mempool,
    state: StateStore,
    node_key: Arc<SigningKey>,
    members: watch::Receiver<Arc<Members>>,
    evidence: Arc<EvidenceQueue>,
    projects: watch::Receiver<Projects>,
    rates: Arc<Rates>,
    head: watch::Receiver<Option<Head>>,
}

/// What the threads work with.
pub(crate) struct VerifierParts {
    pub node: NodeId,
    pub mempool: Mempool,
    pub state: StateStore,
    pub node_key: SigningKey,
    /// Whose word counts.
    pub members: watch::Receiver<Arc<Members>>,
    /// Told of all evidence that was checked.
    pub evidence: Arc<EvidenceQueue>,
    pub projects: watch::Receiver<Projects>,
    /// How fast devices and projects may be.
    pub rates: Arc<Rates>,
    /// Says which rules of projects hold.
    pub head: watch::Receiver<Option<Head>>,
    /// Told of jobs that panicked.
    pub endings: Endings,
}

impl Verifier {
    /// Starts the threads; they end when the last clone of the verifier is gone.
    pub fn spawn(threads: usize, parts: VerifierParts) -> Result<(Self, Vec<JoinHandle<()>>), NodeError> {
        let (jobs, receiver) = bounded(VERIFY_JOBS_MAX);
        let endings = parts.endings.clone();
        let worker = Worker::new(parts, receiver);
        let mut handles = Vec::with_capacity(threads);
        for n in 0..threads {
            let (worker, endings) = (worker.clone(), endings.clone());
            let thread = std::thread::Builder::new().name(format!("verify-{n}")).spawn(move || {
                give_way(VERIFICATION);
                do_all(&worker.jobs, |job| worker.take(job), &endings);
            });
            handles.push(thread.map_err(|e| NodeError::Config(format!("cannot start a verification thread: {e}")))?);
        }
        Ok((Self(Kind::Threads { jobs, threads }), handles))
    }

    /// A verifier without threads: for simulation, where nothing may run beside it.
    pub fn inline(parts: VerifierParts) -> Self {
        Self(Kind::Inline(Arc::new(Worker::new(parts, crossbeam_channel::never()))))
    }

    fn threads(&self) -> usize {
        match &self.0 {
            Kind::Threads { threads, .. } => *threads,
            Kind::Inline(_) => 1,
        }
    }

    /// Has requests checked that came together, by as many threads as are of use, and given to the pool in their order.
    pub fn submit_together(&self, requests: Vec<Asked>) -> Result<(), Overloaded> {
        let bulk = Arc::new(Bulk::new(requests));
        if bulk.pieces() == 0 {
            return Ok(());
        }
        // The first job does all of it, if need be.
        self.submit(Job::Bulk(Arc::clone(&bulk)))?;
        for _ in 1..bulk.pieces().min(self.threads()) {
            let _ = self.submit(Job::Bulk(Arc::clone(&bulk)));
        }
        Ok(())
    }

    /// Does `work` on a verification thread; the receiver gets what comes of it.
    pub fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, Overloaded> {
        let (done, result) = oneshot::channel();
        let work = move || {
            // Whoever gave up meanwhile is not worth the work.
            if !done.is_closed() {
                let _ = done.send(work());
            }
        };
        self.submit(Job::Aside(Box::new(work)))?;
        Ok(result)
    }

    pub fn submit(&self, job: Job) -> Result<(), Overloaded> {
        match &self.0 {
            Kind::Threads { jobs, .. } => jobs.try_send(job).map_err(|e| match e {
                TrySendError::Full(_) | TrySendError::Disconnected(_) => Overloaded,
            }),
            Kind::Inline(worker) => {
                worker.take(job);
                Ok(())
            }
        }
    }
}

/// What a repeat is told by, beside the time at which it came in.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// This node's clock.
    now_ms: u64,
    /// The oldest height that is kept.
    kept: Height,
}

impl Known {
    /// Whether what has such an age is in the window of what was ordered before. `apply` may find that it is also where
    /// this says no: it adds [`lockstep_types::genesis::RETRY_MARGIN_MS`]. What is forgotten is no first one, whether or
    /// not it is on the disk still.
    fn is_plain_retry(&self, before: &Occurrence, age_ms: u64, window_ms: u64) -> bool {
        let came_in_ms = self.now_ms.saturating_sub(age_ms);
        before.height >= self.kept && came_in_ms.saturating_sub(before.time_ms.0) < window_ms
    }
}

/// Does jobs until there can be no more. One that panics leaves whoever waits for it without an answer; the thread goes
/// on, or a few such messages would take all of them.
fn do_all(jobs: &Receiver<Job>, take: impl Fn(Job), endings: &Endings) {
    while let Ok(first) = jobs.recv() {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| take(first))) {
            endings.note("the check of a message", &EndReason::panic(&*payload), Then::NextMayBegin);
        }
    }
}

/// The time within which the same content is a retry, as `apply` has it; 0 where the project is unknown.
fn retry_window(projects: &Projects, message: &Message) -> u64 {
    match (message.api, projects.settings(message.project_id)) {
        (_, None) => 0,
        (Api::TaskV1, Some(_)) => RETRY_WINDOW_FOR_EVER_MS,
        (_, Some(settings)) => settings.retry_window_ms,
    }
}

impl Worker {
    fn new(parts: VerifierParts, jobs: Receiver<Job>) -> Self {
        let VerifierParts { node, mempool, state, node_key, members, evidence, projects, rates, head, .. } = parts;
        let node_key = Arc::new(node_key);
        Self { node, jobs, mempool, state, node_key, members, evidence, projects, rates, head }
    }

    /// Does a job, and with a request others that wait.
    fn take(&self, first: Job) {
        let mut requests = Vec::with_capacity(VERIFY_TOGETHER_MAX);
        let (mut next, mut longer) = (Some(first), None);
        while let Some(job) = next.take() {
            match job {
                Job::Request { request, asker } => requests.extend(self.authenticate(request, asker)),
                job => longer = Some(job),
            }
            if requests.len() < VERIFY_TOGETHER_MAX && longer.is_none() {
                next = self.jobs.try_recv().ok();
            }
        }
        // Those who are authenticated do not wait for a whole bundle.
        self.take_requests(requests);
        match longer {
            Some(Job::Aside(work)) => work(),
            Some(Job::Bulk(bulk)) => {
                let proved = bulk.work(|(request, asker)| self.authenticate(Submission::Device(request), asker));
                self.take_requests(proved.unwrap_or_default());
            }
            Some(Job::Bundle { messages, came_in, skip_ordered, done }) => {
                done(self.take_bundle(messages, came_in, skip_ordered));
            }
            Some(Job::Evidence { messages, mut range, members, done }) => {
                let holds = |(_, id, message): &Named| message.evidence_holds(id, |a| members.contains(a));
                // Whoever asked is gone when the node stops.
                let _ = done.send(range.find(|index| !holds(&messages[*index])));
            }
            Some(Job::Request { .. }) | None => {}
        }
    }

    fn authenticate(&self, request: Submission, asker: Asker) -> Option<Proved> {
        // Whoever gave up meanwhile is not worth a signature check.
        if asker.verdict.is_closed() {
            return None;
        }
        let proved = self.prove(request).and_then(|message| {
            self.check_device(message.message())?;
            self.rates.take(message.message())?;
            self.check_rules(message.message())?;
            Ok(message)
        });
        match proved {
            Ok(message) => Some((Arc::new(message.taken_in_by(self.node)), asker)),
            Err(error) => {
                let _ = asker.verdict.send(Err(error));
                None
            }
        }
    }

    fn prove(&self, request: Submission) -> Result<VerifiedMessage, SubmitError> {
        let unauthenticated = |error: RequestError| SubmitError::Unauthenticated(error.to_string());
        match request {
            Submission::Device(request) if request.signature.is_some() => {
                request.authenticate().map_err(unauthenticated)
            }
            Submission::Device(request) => Ok(request.vouch(&self.node_key)),
            Submission::Opened { request, device, envelope } => Ok(request.vouch(device, envelope, &self.node_key)),
            Submission::Task(request) => self.prove_task(request),
        }
    }

    /// A signature without its recovery id leads to two devices; the one that the project takes is meant.
    fn prove_task(&self, request: TaskRequest) -> Result<VerifiedMessage, SubmitError> {
        let unauthenticated = |error: RequestError| SubmitError::Unauthenticated(error.to_string());
        let project = request.project_id;
        let (policy, chain, keys) = {
            let projects = self.projects.borrow();
            let settings = projects.settings(project);
            let settings = settings.ok_or_else(|| SubmitError::Forbidden(Rejection::UnknownProject.to_string()))?;
            (settings.policy(), projects.params().chain.is_some(), settings.signed_keys.clone())
        };
        let candidates = request.candidates(&keys).map_err(unauthenticated)?;
        let meant = match (policy, &candidates[..]) {
            (_, [only]) => Some(*only),
            (DevicePolicy::Any, _) => {
                let text = "this project takes any key, so the signature must have its recovery id: 65 bytes";
                return Err(SubmitError::Unauthenticated(text.into()));
            }
            _ => {
                let of: Vec<_> = candidates.iter().map(|candidate| (project, candidate.device)).collect();
                let standings = self.state.standings(&of).map_err(|e| SubmitError::Halted(e.to_string()))?;
                let allowed = candidates.iter().zip(standings).find(|(_, standing)| standing.allows(policy, chain));
                allowed.map(|(candidate, _)| *candidate)
            }
        };
        let meant = meant.ok_or_else(|| SubmitError::Unauthenticated(Rejection::Device.to_string()))?;
        request.into_message(meant, &keys).map_err(unauthenticated)
    }

    /// Whether the device may submit to the project, as far as this node knows; `apply` decides.
    fn check_device(&self, message: &Message) -> Result<(), SubmitError> {
        let (policy, chain) = {
            let projects = self.projects.borrow();
            let Some(settings) = projects.settings(message.project_id) else { return Ok(()) };
            (settings.policy(), projects.params().chain.is_some())
        };
        if message.api == Api::Unsigned || policy == DevicePolicy::Any {
            return Ok(());
        }
        let standings = self.state.standings(&[(message.project_id, message.device)]);
        match standings.as_deref() {
            Ok([standing]) if !standing.allows(policy, chain) => {
                Err(SubmitError::Forbidden(Rejection::Device.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// What the project's rules say without the device's last message, as far as this node knows; `apply` decides.
    fn check_rules(&self, message: &Message) -> Result<(), SubmitError> {
        let (rules, fuel_per_second) = {
            let projects = self.projects.borrow();
            if !projects.have_rules() {
                return Ok(());
            }
            let head = self.head.borrow().as_ref().map_or(Height(0), |head| head.height);
            (projects.rules_at(message.project_id, head.next()).cloned(), projects.params().rules_fuel_per_second())
        };
        let Some(rules) = rules else { return Ok(()) };
        self.rates.check_fuel(message.project_id, fuel_per_second)?;
        let now = self.mempool.now();
        let (said, spent) = rules.glance(&rules_input(message, now, None));
        self.rates.spend_fuel(message.project_id, spent);
        said.map_err(|refusal| {
            metrics::refused_at_door(message.project_id, &refusal);
            refused(&refusal)
        })
    }

    fn take_requests(&self, requests: Vec<Proved>) {
        if requests.is_empty() {
            return;
        }
        let ids: Vec<ContentId> = requests.iter().map(|(message, _)| message.content_id()).collect();
        let before = self.occurrences(&ids);
        self.remember(requests.iter().map(|(message, _)| &**message));
        let known = self.known();
        let mut fresh: Vec<(Aged, Waiter)> = Vec::with_capacity(requests.len());
        for ((message, asker), before) in requests.into_iter().zip(before) {
            let (id, age_ms) = (message.content_id(), asker.age_ms());
            let (waiter, outcome) = oneshot::channel();
            // Whoever gave up meanwhile was told that the message was not taken: so it is not.
            if asker.verdict.send(Ok((id, outcome))).is_err() {
                continue;
            }
            let window_ms = retry_window(&self.projects.borrow(), message.message());
            match before.filter(|before| known.is_plain_retry(before, age_ms, window_ms)) {
                // A retry that is plainly inside its window needs no place in the log.
                Some(before) => {
                    let message_id = before.message_id(&id);
                    let (sequence, height) = (before.sequence, before.height);
                    let _ = waiter.send(Outcome::Duplicate { message_id, sequence, height });
                }
                None => fresh.push((Aged { message, age_ms }, waiter)),
            }
        }
        if !fresh.is_empty() {
            self.mempool.insert_own(fresh);
        }
    }

    fn known(&self) -> Known {
        let kept = self.head.borrow().as_ref().map_or(Height(0), |head| head.horizon.height);
        Known { now_ms: self.mempool.clock().latest().0, kept }
    }

    /// So that the evidence is not checked again when the batch is certified.
    fn remember<'a>(&self, checked: impl Iterator<Item = &'a VerifiedMessage>) {
        self.evidence.add_known(checked.map(|message| (message.content_id(), message.message().evidence.clone())));
    }

    /// Earlier occurrences; none where the store cannot be read, since `apply` decides anyway.
    fn occurrences(&self, ids: &[ContentId]) -> Vec<Option<Occurrence>> {
        self.state.occurrences(ids).unwrap_or_else(|error| {
            tracing::error!(%error, "the state cannot be read");
            vec![None; ids.len()]
        })
    }

    /// Says whether all messages of a bundle are good.
    fn take_bundle(&self, messages: Vec<Received>, came_in: Instant, skip_ordered: bool) -> bool {
        let named = messages.into_iter().map(|(message, age_ms)| (message.content_id(), message, age_ms));
        let mut named: Vec<(ContentId, Message, u64)> = named.collect();
        self.mempool.retain_unknown(&mut named, |(id, ..)| *id);
        let before = if skip_ordered {
            self.occurrences(&named.iter().map(|(id, ..)| *id).collect::<Vec<_>>())
        } else {
            vec![None; named.len()]
        };
        let known = self.known();
        let (members, projects) = (self.members.borrow().clone(), self.projects.borrow().clone());
        let (mut verified, mut good) = (Vec::with_capacity(named.len()), true);
        for ((id, message, age_ms), before) in named.into_iter().zip(before) {
            let window_ms = retry_window(&projects, &message);
            if before.is_some_and(|before| known.is_plain_retry(&before, age_ms, window_ms)) {
                continue;
            }
            match message.verify_named(id, |address| members.set().has(address)) {
                Ok(message) => verified.push(Aged { message: Arc::new(message), age_ms }),
                Err(_) => good = false,
            }
        }
        self.remember(verified.iter().map(|aged| &*aged.message));
        // Checking took its time, and so did waiting for it.
        let waited_ms = u64::try_from(came_in.elapsed().as_millis()).unwrap_or(u64::MAX);
        verified.iter_mut().for_each(|aged| aged.age_ms = aged.age_ms.saturating_add(waited_ms));
        if !verified.is_empty() && !self.mempool.insert_foreign(verified) {
            tracing::debug!("the pool is full; messages of a bundle were left out");
        }
        good
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::{Sequence, TimeMs};

    use super::*;

    #[test]
    fn a_repeat_of_what_is_forgotten_is_new_whether_or_not_the_disk_has_it_still() {
        let before =
            Occurrence { count: 1, since: Height(0), sequence: Sequence(9), height: Height(5), time_ms: TimeMs(1_000) };
        // The oldest height that is kept; this node's clock; the repeat's age; its window; whether it is a repeat.
        for (kept, now_ms, age_ms, window_ms, is_retry) in [
            (0, 1_000, 0, 1, true),
            (5, 1_999, 0, 1_000, true),
            (5, 2_000, 0, 1_000, false),
            (5, 2_000, 1, 1_000, true),
            (6, 1_000, 0, 1_000, false),
            (5, u64::MAX - 1, 0, RETRY_WINDOW_FOR_EVER_MS, true),
            (6, u64::MAX - 1, 0, RETRY_WINDOW_FOR_EVER_MS, false),
            (5, 1_000, 0, 0, false),
        ] {
            let known = Known { now_ms, kept: Height(kept) };
            assert_eq!(
                known.is_plain_retry(&before, age_ms, window_ms),
                is_retry,
                "{kept} {now_ms} {age_ms} {window_ms}"
            );
        }
    }

    #[test]
    fn a_job_that_panics_is_told_and_its_thread_does_the_next_one() {
        let (endings, (jobs, receiver)) = (Endings::default(), bounded(2));
        jobs.send(Job::Aside(Box::new(|| panic!("on purpose")))).unwrap();
        let (done, next) = std::sync::mpsc::channel();
        jobs.send(Job::Aside(Box::new(move || done.send(()).unwrap()))).unwrap();
        drop(jobs);
        let take = |job| match job {
            Job::Aside(work) => work(),
            _ => unreachable!("no other job was sent"),
        };
        do_all(&receiver, take, &endings);
        next.try_recv().unwrap();
        let told = endings.complaints();
        assert!(told.len() == 1 && told[0].contains("it panicked: on purpose"), "{told:?}");
    }
}
