//! Simulated devices: each with its own key, each submitting its readings one after the other, at a steady rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use lockstep_types::{Address, MessageId, ProjectId, Sequence, SigningKey, keccak256};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::device::{Device, DeviceOptions};
use crate::error::ClientError;

const KEY_DOMAIN: &[u8] = b"lockstep/fleet/v1";
/// Most devices of one fleet: each is a task.
pub const DEVICES_MAX: usize = 100_000;
/// A device gives up a reading after this long.
const SUBMIT_DEADLINE: Duration = Duration::from_secs(60);

/// What a device was told, for whoever checks that it stays true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// The device.
    pub device: Address,
    /// The message's name.
    pub message_id: MessageId,
    /// Its position.
    pub sequence: Sequence,
    /// Whether the node said that it had this position before.
    pub duplicate: bool,
    /// The payload as it was submitted.
    pub data: String,
}

/// Takes note of acknowledgements, called by many tasks at once.
pub type History = Arc<dyn Fn(Acknowledgement) + Send + Sync>;

/// A fleet of devices.
#[derive(Clone)]
pub struct Fleet {
    /// Nodes; device `i` begins with node `i` modulo their number.
    pub urls: Vec<String>,
    /// How many devices.
    pub devices: usize,
    /// Messages per second of all devices together.
    pub rate: f64,
    /// Their project.
    pub project: ProjectId,
    /// Its version.
    pub version: String,
    /// The devices' keys follow from it.
    pub seed: u64,
    /// Is told of every acknowledgement.
    pub history: Option<History>,
}

/// What a fleet did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FleetStats {
    /// Readings that devices submitted.
    pub submitted: u64,
    /// Readings with a position.
    pub acknowledged: u64,
    /// Acknowledgements of which the node said that it had the message before.
    pub duplicates: u64,
    /// Requests beyond the first for a reading.
    pub retries: u64,
    /// Readings that a node refused for good.
    pub refused: u64,
    /// Readings given up: their outcome is unknown.
    pub unknown: u64,
    /// Some of the errors.
    pub error_samples: Vec<String>,
    /// How long it ran.
    pub seconds: f64,
}

/// Errors kept as samples.
const ERROR_SAMPLES_MAX: usize = 10;

#[derive(Default)]
struct Counters {
    submitted: AtomicU64,
    acknowledged: AtomicU64,
    duplicates: AtomicU64,
    retries: AtomicU64,
    refused: AtomicU64,
    unknown: AtomicU64,
    error_samples: parking_lot::Mutex<Vec<String>>,
}

impl Counters {
    fn sample(&self, error: &ClientError) {
        let mut samples = self.error_samples.lock();
        if samples.len() < ERROR_SAMPLES_MAX {
            samples.push(error.to_string());
        }
    }
}

/// The key of a fleet's device.
pub fn device_key(seed: u64, device: usize) -> Result<SigningKey, ClientError> {
    let secret = keccak256(&[KEY_DOMAIN, &seed.to_be_bytes(), &(device as u64).to_be_bytes()]);
    SigningKey::from_bytes(secret).map_err(|e| ClientError::Setup(e.to_string()))
}

impl Fleet {
    /// Runs until `token` is cancelled. A reading that is under way then is finished first, for a bounded time.
    pub fn run(self, token: CancellationToken) -> BoxFuture<'static, Result<FleetStats, ClientError>> {
        // Boxed, so that this crate compiles it, and not each program that awaits it.
        Box::pin(self.run_until(token))
    }

    async fn run_until(self, token: CancellationToken) -> Result<FleetStats, ClientError> {
        if self.devices == 0 || self.devices > DEVICES_MAX || !self.rate.is_finite() || self.rate <= 0.0 {
            return Err(ClientError::Setup(format!("a fleet has 1 to {DEVICES_MAX} devices and a rate above 0")));
        }
        let client = Arc::new(Client::new(self.urls.clone())?);
        let counters = Arc::new(Counters::default());
        let started = Instant::now();
        let mut running = JoinSet::new();
        for index in 0..self.devices {
            let key = device_key(self.seed, index)?;
            let options = DeviceOptions { give_up_after: SUBMIT_DEADLINE, ..DeviceOptions::default() };
            let member = Member {
                index,
                device: Device::sharing(Arc::clone(&client), key, index, options),
                counters: Arc::clone(&counters),
                fleet: self.clone(),
            };
            running.spawn(member.run(started, token.clone()));
        }
        while let Some(ended) = running.join_next().await {
            ended.map_err(|e| ClientError::Setup(format!("a device failed: {e}")))?;
        }
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(FleetStats {
            submitted: read(&counters.submitted),
            acknowledged: read(&counters.acknowledged),
            duplicates: read(&counters.duplicates),
            retries: read(&counters.retries),
            refused: read(&counters.refused),
            unknown: read(&counters.unknown),
            error_samples: counters.error_samples.lock().clone(),
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}

struct Member {
    index: usize,
    device: Device,
    counters: Arc<Counters>,
    fleet: Fleet,
}

impl Member {
    async fn run(self, started: Instant, token: CancellationToken) {
        let period = Duration::from_secs_f64((self.fleet.devices as f64 / self.fleet.rate).clamp(1e-6, 86_400.0));
        // Devices take turns within the period, so that the fleet as a whole has a steady rate.
        let turn = period.mul_f64(self.index as f64 / self.fleet.devices as f64);
        let mut ticks = tokio::time::interval_at(started + turn, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Distinguishes the readings of one run from those of another with the same seed.
        let run: u64 = rand::random();
        for reading in 1_u64.. {
            tokio::select! {
                biased;
                () = token.cancelled() => return,
                _ = ticks.tick() => {}
            }
            self.submit(self.telemetry(run, reading)).await;
        }
    }

    fn telemetry(&self, run: u64, reading: u64) -> String {
        let celsius = 20.0 + 5.0 * (reading as f64 / 10.0 + self.index as f64).sin();
        format!("{{\"run\":\"{run:016x}\",\"reading\":{reading},\"celsius\":{celsius:.2}}}")
    }

    async fn submit(&self, data: String) {
        let counters = &self.counters;
        let add = |counter: &AtomicU64, n: u64| counter.fetch_add(n, Ordering::Relaxed);
        add(&counters.submitted, 1);
        match self.device.submit(self.fleet.project, &self.fleet.version, &data).await {
            Ok(receipt) => {
                let duplicate = receipt.duplicate.unwrap_or_default();
                add(&counters.acknowledged, 1);
                add(&counters.duplicates, u64::from(duplicate));
                add(&counters.retries, u64::from(receipt.attempts.saturating_sub(1)));
                // `POST /message` tells both.
                let (Some(message_id), Some(sequence)) = (receipt.message_id, receipt.sequence) else { return };
                if let Some(history) = &self.fleet.history {
                    let device = self.device.address();
                    history(Acknowledgement { device, message_id, sequence, duplicate, data });
                }
            }
            Err(error) => {
                let refused = matches!(error, ClientError::Refused { .. } | ClientError::Message(_));
                add(if refused { &counters.refused } else { &counters.unknown }, 1);
                counters.sample(&error);
            }
        }
    }
}
