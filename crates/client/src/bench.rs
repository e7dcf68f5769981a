//! A closed loop: each client submits its next message when the last one is answered.
//!
//! Messages are signed beforehand, so that what is measured is the nodes and not this program. Only signatures are
//! kept (65 bytes each); texts are made again from the message's number.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use lockstep_identity::signed_body;
use lockstep_types::{ProjectId, Signature, SigningKey, w3bstream};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::error::ClientError;
use crate::fleet::device_key;
use crate::histogram::Histogram;
use crate::raw::{RawConnection, write_request};
use crate::url::Endpoint;

/// Devices that sign.
const DEVICES: usize = 64;
/// Seed of their keys.
const SEED: u64 = 0x6c6f_636b;
/// Messages per second that are signed for beforehand; a faster network makes the rest be signed on the way.
const EXPECTED_PER_SECOND: u64 = 20_000;
/// Most concurrent clients.
const CONCURRENCY_MAX: usize = 8_192;
/// An answer that takes longer counts as an error.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause of a client after an error.
const ERROR_PAUSE: Duration = Duration::from_millis(20);
const ERROR_SAMPLES_MAX: usize = 10;

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BenchOptions {
    /// Nodes; connections are spread over them.
    pub urls: Vec<String>,
    /// Clients, each with one connection and one message under way.
    pub concurrency: usize,
    /// Time that counts.
    pub seconds: u64,
    /// Time before it that does not.
    pub warmup_seconds: u64,
    /// Bytes of `data`; at least 30 are needed to make each message unique.
    pub payload_bytes: usize,
    /// The messages' project.
    pub project: ProjectId,
    /// Its version.
    pub version: String,
    /// Most messages that are signed beforehand.
    pub presigned_max: u64,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            urls: vec!["http://127.0.0.1:9000".to_owned()],
            concurrency: 64,
            seconds: 10,
            warmup_seconds: 2,
            payload_bytes: 256,
            project: ProjectId(1),
            version: "1".to_owned(),
            presigned_max: 1_000_000,
        }
    }
}

/// What one node did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UrlReport {
    /// Messages that it acknowledged.
    pub acknowledged: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// Messages answered with 200 within the time that counts.
    pub acknowledged: u64,
    /// That time.
    pub seconds: f64,
    /// Their quotient.
    pub per_second: f64,
    /// Half of the acknowledged messages took at most this long.
    pub p50_ms: f64,
    /// 99 % of them did.
    pub p99_ms: f64,
    /// All of them did.
    pub max_ms: f64,
    /// Requests that failed within the time that counts, whatever the reason.
    pub errors: u64,
    /// Some reasons, also from before that time.
    pub error_samples: Vec<String>,
    /// Clients.
    pub concurrency: usize,
    /// Bytes of `data`.
    pub payload_bytes: usize,
    /// By node.
    pub per_url: BTreeMap<String, UrlReport>,
    /// Messages that were signed beforehand.
    pub presigned: u64,
    /// Messages that had to be signed while time ran: where this is not 0, the figures are too low.
    pub signed_while_running: u64,
}

/// Measures.
pub fn run(options: BenchOptions) -> BoxFuture<'static, Result<BenchReport, ClientError>> {
    // Boxed, so that this crate compiles it, and not each program that awaits it.
    Box::pin(measure(options))
}

async fn measure(options: BenchOptions) -> Result<BenchReport, ClientError> {
    let endpoints = Endpoint::parse_all(&options.urls)?;
    if options.concurrency == 0 || options.concurrency > CONCURRENCY_MAX || options.seconds == 0 {
        let limits = format!("a benchmark has 1 to {CONCURRENCY_MAX} clients and takes at least 1 second");
        return Err(ClientError::Setup(limits));
    }
    let (concurrency, payload_bytes) = (options.concurrency, options.payload_bytes);
    let window = Duration::from_secs(options.seconds);
    let warmup = Duration::from_secs(options.warmup_seconds);
    let signing = tokio::task::spawn_blocking(move || Messages::sign(&options));
    let messages = Arc::new(signing.await.map_err(|e| ClientError::Setup(e.to_string()))??);
    let from = Instant::now() + warmup;
    let until = from + window;
    let mut clients = JoinSet::new();
    for index in 0..concurrency {
        let endpoint = endpoints[index % endpoints.len()].clone();
        clients.spawn(LoadClient::new(endpoint, Arc::clone(&messages), from, until).run());
    }
    let mut latencies = Histogram::new();
    let mut per_url: BTreeMap<String, UrlReport> = BTreeMap::new();
    let mut error_samples = Vec::new();
    while let Some(ended) = clients.join_next().await {
        let client = ended.map_err(|e| ClientError::Setup(format!("a client failed: {e}")))?;
        latencies.merge(&client.latencies);
        let url = per_url.entry(client.endpoint.url).or_default();
        url.acknowledged += client.latencies.total();
        url.errors += client.errors;
        error_samples.extend(client.error_samples);
    }
    error_samples.sort_unstable();
    error_samples.dedup();
    error_samples.truncate(ERROR_SAMPLES_MAX);
    let seconds = window.as_secs_f64();
    let presigned = messages.signatures.len() as u64;
    Ok(BenchReport {
        acknowledged: latencies.total(),
        seconds,
        per_second: latencies.total() as f64 / seconds,
        p50_ms: latencies.percentile_ms(50),
        p99_ms: latencies.percentile_ms(99),
        max_ms: latencies.max_ms(),
        errors: per_url.values().map(|url| url.errors).sum(),
        error_samples,
        concurrency,
        payload_bytes,
        per_url,
        presigned,
        signed_while_running: messages.next.load(Ordering::Relaxed).saturating_sub(presigned),
    })
}

/// The messages of one run, by number.
struct Messages {
    keys: Vec<SigningKey>,
    /// Makes the payloads of this run differ from those of any other.
    run: u64,
    project: ProjectId,
    version: String,
    payload_bytes: usize,
    signatures: Vec<Signature>,
    next: AtomicU64,
}

impl Messages {
    /// Signs on all cores; blocks.
    fn sign(options: &BenchOptions) -> Result<Self, ClientError> {
        let keys: Result<Vec<_>, _> = (0..DEVICES).map(|device| device_key(SEED, device)).collect();
        let mut messages = Self {
            keys: keys?,
            run: rand::random(),
            project: options.project,
            version: options.version.clone(),
            payload_bytes: options.payload_bytes,
            signatures: Vec::new(),
            next: AtomicU64::new(0),
        };
        let seconds = options.seconds.saturating_add(options.warmup_seconds);
        let count = EXPECTED_PER_SECOND.saturating_mul(seconds).min(options.presigned_max);
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let share = count.div_ceil(threads);
        let signatures = std::thread::scope(|scope| {
            let messages = &messages;
            let part = |t: u64| (t * share).min(count)..((t + 1) * share).min(count);
            let sign = |t| scope.spawn(move || part(t).map(|n| messages.signature(n)).collect::<Vec<_>>());
            let parts: Vec<_> = (0..threads).map(sign).collect();
            parts.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Result<Vec<_>, _>>()
        });
        let failed = |_| ClientError::Setup("a signing thread failed".to_owned());
        messages.signatures = signatures.map_err(failed)?.concat();
        Ok(messages)
    }

    fn data(&self, number: u64) -> String {
        let unique = format!("{:016x}-{number:012}-", self.run);
        format!("{unique:x<width$}", width = self.payload_bytes)
    }

    fn signature(&self, number: u64) -> Signature {
        let key = &self.keys[(number % DEVICES as u64) as usize];
        key.sign(&w3bstream::message_digest(self.project, &self.version, &self.data(number)))
    }

    /// The body of the next message.
    fn next_body(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let presigned = usize::try_from(number).ok().and_then(|at| self.signatures.get(at));
        let signature = presigned.copied().unwrap_or_else(|| self.signature(number));
        signed_body(self.project, &self.version, &self.data(number), &signature)
    }
}

/// One of the concurrent clients, and what it saw.
struct LoadClient {
    endpoint: Endpoint,
    messages: Arc<Messages>,
    from: Instant,
    until: Instant,
    latencies: Histogram,
    errors: u64,
    error_samples: Vec<String>,
}

impl LoadClient {
    fn new(endpoint: Endpoint, messages: Arc<Messages>, from: Instant, until: Instant) -> Self {
        let latencies = Histogram::new();
        Self { endpoint, messages, from, until, latencies, errors: 0, error_samples: Vec::new() }
    }

    async fn run(mut self) -> Self {
        let mut connection = None;
        let mut request = Vec::with_capacity(1024);
        while Instant::now() < self.until {
            write_request(&mut request, &self.endpoint, &self.messages.next_body());
            let sent = Instant::now();
            let exchange = exchange(&self.endpoint, &mut connection, &request);
            let result = tokio::time::timeout(ANSWER_TIMEOUT, exchange).await;
            let answered = Instant::now();
            let counts = (self.from..self.until).contains(&answered);
            let error = match result {
                Ok(Ok(())) => {
                    if counts {
                        self.latencies.record(answered - sent);
                    }
                    continue;
                }
                Ok(Err(error)) => error,
                Err(_) => {
                    connection = None;
                    "no answer in time".to_owned()
                }
            };
            self.errors += u64::from(counts);
            if self.error_samples.len() < ERROR_SAMPLES_MAX {
                self.error_samples.push(error);
            }
            tokio::time::sleep(ERROR_PAUSE).await;
        }
        self
    }
}

/// Sends one request on `connection`, opened where there is none; it is `None` again after it broke.
async fn exchange(endpoint: &Endpoint, connection: &mut Option<RawConnection>, request: &[u8]) -> Result<(), String> {
    let mut open = match connection.take() {
        Some(open) => open,
        None => RawConnection::open(endpoint).await.map_err(|e| format!("cannot connect: {e}"))?,
    };
    let answer = open.exchange(request).await.map_err(|e| format!("the connection broke: {e}"))?;
    let result = match answer.status {
        200 => Ok(()),
        status => Err(format!("status {status}: {}", String::from_utf8_lossy(answer.body))),
    };
    if answer.reusable {
        *connection = Some(open);
    }
    result
}

#[cfg(test)]
mod tests {
    use lockstep_identity::apinode;

    use super::*;

    #[test]
    fn messages_differ_are_signed_and_have_the_size_asked_for() {
        let options = BenchOptions { presigned_max: 10, payload_bytes: 100, ..BenchOptions::default() };
        let messages = Messages::sign(&options).unwrap();
        assert_eq!(messages.signatures.len(), 10);
        let mut ids = std::collections::HashSet::new();
        for number in 0..20_u64 {
            let request = apinode::parse(messages.next_body().as_bytes()).unwrap();
            assert_eq!(request.data.len(), 100);
            let verified = request.authenticate().unwrap();
            assert_eq!(verified.message().device, messages.keys[number as usize % DEVICES].address());
            ids.insert(verified.content_id());
        }
        assert_eq!(ids.len(), 20);
    }
}
