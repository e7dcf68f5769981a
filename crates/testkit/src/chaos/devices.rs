//! Devices of every API, which submit until they are told to stop. What they asked and were told is written down.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lockstep_client::{ClientError, ClientOptions, Device, DeviceOptions, Outcome};
use lockstep_identity::{Curve, DeviceIdentity, PartySecret, apinode, sign_body};
use lockstep_types::proto::SubmitRequest;
use lockstep_types::proto::sequencer_client::SequencerClient;
use lockstep_types::{ContentId, Height, MessageId, NodeId, ProjectId, Sequence, SigningKey, keccak256};
use parking_lot::Mutex;
use rand::SeedableRng as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::http;
use crate::load::device_key;
use crate::order::Told;
use crate::sim::Record;

/// The project of all but those of [`Api::Task`]. It takes any device that signs or is registered.
pub const PROJECT: ProjectId = ProjectId(7);
/// The project of those, which takes registered devices only.
pub const TASK_PROJECT: ProjectId = ProjectId(8);
const VERSION: &str = "0.1";
/// Messages in one request of a device that sends many at once.
const BULK: usize = 25;
/// The next node is asked when one has not answered for this long.
const ATTEMPT: Duration = Duration::from_millis(2_500);
/// The hand-made requests are sent again for this long: with the time in nodes' pools it is below the retry window.
const SENT_AGAIN_FOR: Duration = Duration::from_millis(2_500);
/// The client library gives a message up after this long; it looks up what it may not send again.
const GIVE_UP_AFTER: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(50);

/// A way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Api {
    /// `POST /messages`, signed.
    Bulk,
    /// `POST /message`, signed.
    Signed,
    /// `POST /message`, not signed, with an idempotency key.
    Unsigned,
    /// gRPC.
    Grpc,
    /// `POST /v1/task`.
    Task,
    /// `POST /message`, encrypted, with a token.
    Encrypted,
}

/// All of them: how many clients, and which part of the messages in a thousand.
const SHARES: [(Api, usize, u32); 6] = [
    (Api::Bulk, 12, 640),
    (Api::Signed, 24, 140),
    (Api::Unsigned, 8, 60),
    (Api::Grpc, 8, 60),
    (Api::Task, 8, 60),
    (Api::Encrypted, 8, 40),
];

impl Api {
    /// What to call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bulk => "POST /messages",
            Self::Signed => "POST /message",
            Self::Unsigned => "POST /message, unsigned",
            Self::Grpc => "gRPC",
            Self::Task => "POST /v1/task",
            Self::Encrypted => "POST /message, encrypted",
        }
    }
}

/// The ioID devices, with keys that follow from the seed.
pub fn identities(seed: u64) -> Vec<DeviceIdentity> {
    let count = SHARES.iter().find(|share| share.0 == Api::Encrypted).map_or(0, |share| share.1);
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    (0..count).map(|_| DeviceIdentity::new(PartySecret::generate(Curve::Secp256k1, &mut random))).collect()
}

/// The keys of the devices that have to be registered beside [`identities`].
pub fn task_keys(seed: u64) -> Vec<SigningKey> {
    let count = SHARES.iter().find(|share| share.0 == Api::Task).map_or(0, |share| share.1);
    (0..count).map(|index| key_of(seed, Api::Task, index)).collect()
}

fn key_of(seed: u64, api: Api, index: usize) -> SigningKey {
    device_key(seed, (api as usize) << 16 | index)
}

/// How many messages were acknowledged, by API.
#[derive(Debug, Default)]
pub struct Counts {
    acknowledged: [AtomicU64; SHARES.len()],
    /// One refusal of each API, in words.
    refusals: Mutex<BTreeMap<Api, String>>,
}

impl Counts {
    fn add(&self, api: Api) {
        self.acknowledged[api as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn refused(&self, api: Api, why: &str) {
        self.refusals.lock().entry(api).or_insert_with(|| why.to_owned());
    }

    /// The first refusal of each API, in words.
    pub fn refusals(&self) -> BTreeMap<&'static str, String> {
        self.refusals.lock().iter().map(|(api, why)| (api.name(), why.clone())).collect()
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.acknowledged.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// By the API's name.
    pub fn by_api(&self) -> BTreeMap<&'static str, u64> {
        SHARES
            .iter()
            .map(|share| (share.0.name(), self.acknowledged[share.0 as usize].load(Ordering::Relaxed)))
            .collect()
    }
}

/// Devices at work.
pub struct Devices {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    tasks: JoinSet<()>,
}

/// What all devices know.
#[derive(Clone)]
struct Shared {
    nodes: Arc<Vec<SocketAddr>>,
    record: Record,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    seed: u64,
}

impl Devices {
    /// Starts them: together they submit `per_second` messages, when all is well.
    ///
    /// # Panics
    /// When a node's address is not one.
    pub fn start(nodes: Vec<SocketAddr>, record: &Record, seed: u64, per_second: u32) -> Self {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let shared = Shared {
            nodes: Arc::new(nodes),
            record: record.clone(),
            counts: Arc::clone(&counts),
            stop: Arc::clone(&stop),
            seed,
        };
        let mut tasks = JoinSet::new();
        let mut identities = identities(seed).into_iter();
        for (api, clients, share) in SHARES {
            let each = f64::from(per_second) * f64::from(share) / 1_000.0 / clients as f64;
            let messages = if api == Api::Bulk { BULK as f64 } else { 1.0 };
            let period = Duration::from_secs_f64(messages / each);
            for index in 0..clients {
                let client =
                    Client { api, index, shared: shared.clone(), way: shared.way(api, index, &mut identities) };
                // Clients take turns within the period.
                let first = Instant::now() + period.mul_f64(index as f64 / clients as f64);
                tasks.spawn(client.run(first, period));
            }
        }
        Self { stop, counts, tasks }
    }

    /// How many messages were acknowledged so far.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Lets every device finish what it has under way.
    ///
    /// # Panics
    /// When a device has panicked.
    pub async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a device does not panic");
        }
    }
}

impl Shared {
    fn way(&self, api: Api, index: usize, identities: &mut impl Iterator<Item = DeviceIdentity>) -> Way {
        let urls: Vec<String> = self.nodes.iter().map(|node| format!("http://{node}")).collect();
        let client = ClientOptions { attempt_timeout: ATTEMPT, ..ClientOptions::default() };
        let options = DeviceOptions { give_up_after: GIVE_UP_AFTER, client, ..DeviceOptions::default() };
        let key = key_of(self.seed, api, index);
        let builder = || Device::builder(urls.clone()).options(options.clone());
        match api {
            Api::Bulk => Way::Bulk(key),
            Api::Unsigned => Way::Unsigned,
            Api::Grpc => {
                let channel = |url: &String| {
                    let endpoint = Endpoint::from_shared(url.clone()).expect("a url of this machine");
                    SequencerClient::new(endpoint.connect_timeout(ATTEMPT).timeout(ATTEMPT).connect_lazy())
                };
                Way::Grpc(key, urls.iter().map(channel).collect())
            }
            Api::Signed => Way::Library(builder().signing(key).expect("a device")),
            Api::Task => Way::Library(builder().signing_tasks(key, vec![]).expect("a device")),
            Api::Encrypted => {
                let identity = identities.next().expect("an identity for each");
                Way::Library(builder().encrypting(identity).expect("a device"))
            }
        }
    }
}

enum Way {
    Library(Device),
    Bulk(SigningKey),
    Unsigned,
    Grpc(SigningKey, Vec<SequencerClient<Channel>>),
}

struct Client {
    api: Api,
    index: usize,
    shared: Shared,
    way: Way,
}

impl Client {
    async fn run(mut self, first: Instant, period: Duration) {
        let mut ticks = tokio::time::interval_at(first, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0_u64.. {
            ticks.tick().await;
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            self.submit(number).await;
        }
    }

    fn text(&self, number: u64) -> String {
        // As long as a reading of a device with a few sensors.
        let (api, device) = (self.api as usize, self.index);
        format!(
            "{{\"api\":{api},\"device\":{device},\"reading\":{number},\"temperature\":21.5,\"humidity\":48,\"battery\":97}}"
        )
    }

    async fn submit(&mut self, number: u64) {
        match &mut self.way {
            Way::Library(_) => self.by_library(number).await,
            Way::Bulk(key) => {
                let key = key.clone();
                self.by_bulk(&key, number).await;
            }
            Way::Unsigned => self.unsigned(number).await,
            Way::Grpc(..) => self.by_grpc(number).await,
        }
    }

    fn invoke(&self, content: ContentId) -> usize {
        self.shared.record.invoke(content, NodeId(0))
    }

    fn answer(&self, call: usize, told: Told) {
        if matches!(told, Told::Ordered { .. } | Told::Taken { .. }) {
            self.shared.counts.add(self.api);
        }
        self.shared.record.answer(call, told);
    }

    async fn by_library(&self, number: u64) {
        let Way::Library(device) = &self.way else { return };
        let project = if self.api == Api::Task { TASK_PROJECT } else { PROJECT };
        let prepared = device.prepare(project, VERSION, &self.text(number)).expect("a good message");
        let call = self.invoke(prepared.content_id());
        let told = match device.send(&prepared).await {
            Ok(receipt) => match (receipt.message_id, receipt.sequence, receipt.height) {
                (Some(message_id), Some(sequence), Some(height)) => Told::Ordered { sequence, height, message_id },
                (message_id, ..) => Told::Taken { message_id },
            },
            Err(error @ ClientError::Exhausted { .. }) if error.outcome() == Outcome::Unknown => Told::Unknown,
            Err(error @ (ClientError::Exhausted { .. } | ClientError::Refused { .. })) => {
                self.shared.counts.refused(self.api, &error.to_string());
                Told::Refused
            }
            Err(_) => Told::Unknown,
        };
        self.answer(call, told);
    }

    /// The node that an attempt goes to: each client begins with another one.
    fn node(&self, number: u64, attempt: usize) -> SocketAddr {
        let nodes = &self.shared.nodes;
        // It stays with a node for some time.
        nodes[(self.index + usize::try_from(number / 64).unwrap_or_default() + attempt) % nodes.len()]
    }

    async fn by_bulk(&self, key: &SigningKey, number: u64) {
        let number = number * BULK as u64;
        let bodies: Vec<String> =
            (0..BULK as u64).map(|n| sign_body(key, PROJECT, VERSION, &self.text(number + n))).collect();
        let content = |body: &String| {
            let request = apinode::parse(body.as_bytes()).expect("a good message");
            request.authenticate().expect("a signature").content_id()
        };
        let calls: Vec<usize> = bodies.iter().map(|body| self.invoke(content(body))).collect();
        let mut told: Vec<Option<Told>> = vec![None; BULK];
        let body = format!("[{}]", bodies.join(","));
        let until = Instant::now() + SENT_AGAIN_FOR;
        for attempt in 0.. {
            let request = http::request(self.node(number, attempt), "POST", "/messages", body.as_bytes());
            if let Ok(Ok(answer)) = timeout(ATTEMPT, request).await {
                let entries = serde_json::from_slice(&answer.body).ok();
                if let Some(Value::Array(entries)) = entries.filter(|_| answer.status == 200) {
                    for ((told, entry), call) in told.iter_mut().zip(&entries).zip(&calls) {
                        if told.is_none()
                            && let Some(place) = place_in(entry)
                        {
                            self.answer(*call, place.clone());
                            *told = Some(place);
                        }
                    }
                }
            }
            if told.iter().all(Option::is_some) || Instant::now() >= until {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        told.iter()
            .zip(calls)
            .filter(|(told, _)| told.is_none())
            .for_each(|(_, call)| self.answer(call, Told::Unknown));
    }

    async fn unsigned(&self, number: u64) {
        let body = json!({"projectID": PROJECT.0, "projectVersion": VERSION, "data": "open"}).to_string();
        let key = format!("{}-{number}", self.index);
        let request = apinode::parse(body.as_bytes()).expect("a good message");
        let request = request.with_idempotency_key(Some(key.as_bytes())).expect("a good key");
        // The content does not depend on who gives its word for it.
        let anybody = SigningKey::from_bytes(keccak256(&[b"anybody"])).expect("a hash is a key");
        let call = self.invoke(request.vouch(&anybody).content_id());
        let head = format!("POST /message HTTP/1.1\r\nhost: x\r\nconnection: close\r\nidempotency-key: {key}\r\n");
        let bytes = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        let until = Instant::now() + SENT_AGAIN_FOR;
        let mut told = Told::Unknown;
        for attempt in 0.. {
            let request = http::send(self.node(number, attempt), bytes.as_bytes());
            if let Ok(Ok(answer)) = timeout(ATTEMPT, request).await
                && answer.status == 200
                && let Some(place) = serde_json::from_slice(&answer.body).ok().as_ref().and_then(place_in)
            {
                told = place;
                break;
            }
            if Instant::now() >= until {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.answer(call, told);
    }

    async fn by_grpc(&mut self, number: u64) {
        let text = self.text(number);
        let nodes = self.shared.nodes.len();
        let Way::Grpc(key, channels) = &mut self.way else { return };
        let signed = apinode::parse(sign_body(key, PROJECT, VERSION, &text).as_bytes()).expect("a good message");
        let signature = signed.signature.map(|signature| signature.0.to_vec()).unwrap_or_default();
        let content = signed.authenticate().expect("a signature").content_id();
        let call = self.shared.record.invoke(content, NodeId(0));
        let request = SubmitRequest {
            project_id: PROJECT.0,
            project_version: VERSION.into(),
            data: text,
            signature: signature.into(),
            ..SubmitRequest::default()
        };
        let until = Instant::now() + SENT_AGAIN_FOR;
        let first = self.index + usize::try_from(number / 64).unwrap_or_default();
        let mut told = Told::Unknown;
        for attempt in 0.. {
            match timeout(ATTEMPT, channels[(first + attempt) % nodes].submit(request.clone())).await {
                Ok(Ok(answer)) => {
                    let answer = answer.into_inner();
                    if let Ok(message_id) = MessageId::try_from(&answer.message_id[..]) {
                        let (sequence, height) = (Sequence(answer.sequence), Height(answer.height));
                        told = Told::Ordered { sequence, height, message_id };
                        break;
                    }
                }
                Ok(Err(status)) if status.code() == Code::InvalidArgument => panic!("a good message: {status}"),
                _ => {}
            }
            if Instant::now() >= until {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.answer(call, told);
    }
}

/// The place in an answer to a message; `None` where it is a refusal.
fn place_in(entry: &Value) -> Option<Told> {
    let message_id = entry["messageID"].as_str()?.parse().ok()?;
    let (sequence, height) = (Sequence(entry["sequence"].as_u64()?), Height(entry["height"].as_u64()?));
    Some(Told::Ordered { sequence, height, message_id })
}
