//! Devices that submit as fast as they are told, go to the next node when one does not answer, and write down what
//! they were told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use lockstep_client::{Client, ClientError, ClientOptions, Submitted};
use lockstep_identity::sign_body;
use lockstep_types::{ProjectId, SigningKey, keccak256};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::history::{Content, History};

/// What the load is like.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Nodes; client `i` begins with node `i` modulo their number.
    pub urls: Vec<String>,
    /// How many clients, each a device of its own with one message under way at a time.
    pub clients: usize,
    /// Least time from one message of a client to its next.
    pub period: Duration,
    /// A client gives a message up after this time. It is well below the retry window, so that no retry becomes a
    /// new reading.
    pub deadline: Duration,
    /// A client goes to the next node when one has not answered for this long.
    pub attempt_timeout: Duration,
    /// Whether a client keeps its connection for its next message.
    pub keep_connections: bool,
    /// The devices' keys follow from it.
    pub seed: u64,
}

impl LoadOptions {
    /// 32 clients, at most 20 messages a second each.
    pub fn of(urls: Vec<String>) -> Self {
        Self {
            urls,
            clients: 32,
            period: Duration::from_millis(50),
            deadline: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(4),
            keep_connections: true,
            seed: 1,
        }
    }

    fn client(&self, urls: Vec<String>) -> Client {
        let mut limits = ClientOptions { attempt_timeout: self.attempt_timeout, ..ClientOptions::default() };
        if !self.keep_connections {
            limits.idle_connections_max = 0;
        }
        Client::with_options(urls, limits).expect("urls of this machine")
    }
}

/// Load that runs until it is told to stop.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    retries: Arc<AtomicUsize>,
    urls: watch::Sender<Vec<String>>,
    tasks: JoinSet<()>,
}

/// What became of the messages, in numbers. The history has each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadReport {
    /// Requests beyond the first of a message.
    pub retries: usize,
}

impl Load {
    /// Starts the clients.
    ///
    /// # Panics
    /// When the options make no sense.
    pub fn start(options: &LoadOptions, history: &Arc<History>) -> Self {
        let (stop, retries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let urls = watch::Sender::new(options.urls.clone());
        let mut tasks = JoinSet::new();
        for index in 0..options.clients {
            let device = Device {
                index,
                key: device_key(options.seed, index),
                client: options.client(options.urls.clone()),
                urls: urls.subscribe(),
                options: options.clone(),
                history: Arc::clone(history),
                stop: Arc::clone(&stop),
                retries: Arc::clone(&retries),
            };
            tasks.spawn(device.run());
        }
        Self { stop, retries, urls, tasks }
    }

    /// Tells the clients which nodes there are now; each goes by it from its next message on.
    pub fn set_urls(&self, urls: Vec<String>) {
        self.urls.send_replace(urls);
    }

    /// Lets every client finish the message that it has under way.
    ///
    /// # Panics
    /// When a client has panicked.
    pub async fn stop(mut self) -> LoadReport {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a client does not panic");
        }
        LoadReport { retries: self.retries.load(Ordering::Relaxed) }
    }
}

/// The key of the device with a number.
///
/// # Panics
/// Never in practice: one hash in 2^128 is no key.
pub fn device_key(seed: u64, device: usize) -> SigningKey {
    let secret = keccak256(&[b"lockstep/testkit/device", &seed.to_be_bytes(), &(device as u64).to_be_bytes()]);
    SigningKey::from_bytes(secret).expect("a hash is a key")
}

struct Device {
    index: usize,
    key: SigningKey,
    client: Client,
    urls: watch::Receiver<Vec<String>>,
    options: LoadOptions,
    history: Arc<History>,
    stop: Arc<AtomicBool>,
    retries: Arc<AtomicUsize>,
}

impl Device {
    async fn run(mut self) {
        // Clients take turns within the period.
        let turn = self.options.period.mul_f64(self.index as f64 / self.options.clients as f64);
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + turn, self.options.period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut first = Some(self.index);
        for number in 0_u64.. {
            ticks.tick().await;
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // An error is the end of the load, which the next look at `stop` tells.
            if self.urls.has_changed().unwrap_or(false) {
                let urls = self.urls.borrow_and_update().clone();
                self.client = self.options.client(urls);
                first = Some(self.index);
            }
            self.submit(number, first.take()).await;
        }
    }

    async fn submit(&self, number: u64, first: Option<usize>) {
        let data = format!("{{\"seed\":{},\"device\":{},\"reading\":{number}}}", self.options.seed, self.index);
        let body = sign_body(&self.key, ProjectId(7), "0.1", &data);
        let content = Content::signed(self.key.address(), ProjectId(7), "0.1", data.as_bytes());
        let call = self.history.invoke(content);
        let deadline = self.options.deadline;
        let answer: Result<Submitted, ClientError> = match first {
            Some(node) => self.client.submit_from(node, body, deadline).await,
            None => self.client.submit(body, deadline).await,
        };
        match answer {
            Ok(submitted) => {
                self.retries.fetch_add(submitted.attempts.saturating_sub(1) as usize, Ordering::Relaxed);
                self.history.acknowledge(call, &submitted);
            }
            Err(error) => self.history.fail(call, error.to_string()),
        }
    }
}
