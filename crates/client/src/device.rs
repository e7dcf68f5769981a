//! A device: it makes its messages, and brings each to whichever node takes it, once.

use std::sync::Arc;
use std::time::Duration;

use lockstep_identity::{DeviceIdentity, SignedKey};
use lockstep_types::{Address, MessageId, ProjectId, SigningKey};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;

use crate::client::{Client, ClientOptions, Submitted};
use crate::conversation::{Conversation, first_value};
use crate::error::ClientError;
use crate::look_up::LookUp;
use crate::node::Request;
use crate::outcome::{Failure, Outcome, Setback};
use crate::prepared::{Prepared, Way};
use crate::receipt::Receipt;
use crate::rounds::Choice;
use crate::sending::{POOL_TIME_MAX, Sending, Step, Times};

/// How a device sends.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// A message is given up after this long.
    pub give_up_after: Duration,
    /// The retry window of the projects that it sends to, at most. Too small only costs look-ups; too large makes
    /// late retries into second messages.
    pub retry_window: Duration,
    /// Longest time that a message can wait in nodes' pools: what was sent and not answered is ordered by then, or never.
    pub pool_time: Duration,
    /// Limits of the connections.
    pub client: ClientOptions,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            give_up_after: Duration::from_secs(30),
            retry_window: Duration::from_secs(10),
            pool_time: POOL_TIME_MAX,
            client: ClientOptions::default(),
        }
    }
}

/// The nodes of a device, before it is known how it proves itself.
#[derive(Debug, Clone)]
pub struct DeviceBuilder {
    urls: Vec<String>,
    options: DeviceOptions,
}

impl DeviceBuilder {
    /// Options other than the defaults.
    pub fn options(self, options: DeviceOptions) -> Self {
        Self { options, ..self }
    }

    /// A device that signs its messages (`POST /message`).
    ///
    /// # Errors
    /// If a URL cannot be used, or none is given.
    pub fn signing(self, key: SigningKey) -> Result<Device, ClientError> {
        self.build(|_| Identity::Signing(key))
    }

    /// A device of the API of 2025 (`POST /v1/task`), for projects that want `keys` of the payload signed.
    ///
    /// # Errors
    /// As [`DeviceBuilder::signing`].
    pub fn signing_tasks(self, key: SigningKey, keys: Vec<SignedKey>) -> Result<Device, ClientError> {
        self.build(|_| Identity::Task(key, keys))
    }

    /// An ioID device: it gets a token for its DID from each node, and encrypts its messages.
    ///
    /// # Errors
    /// As [`DeviceBuilder::signing`].
    pub fn encrypting(self, identity: DeviceIdentity) -> Result<Device, ClientError> {
        self.build(|nodes| Identity::Encrypting(Box::new(Conversation::new(identity, nodes))))
    }

    fn build(self, identity: impl FnOnce(usize) -> Identity) -> Result<Device, ClientError> {
        let client = Client::with_options(self.urls, self.options.client.clone())?;
        let identity = identity(client.nodes());
        Ok(Device { client: Arc::new(client), identity, options: self.options, first: None })
    }
}

#[derive(Debug)]
enum Identity {
    Signing(SigningKey),
    Task(SigningKey, Vec<SignedKey>),
    Encrypting(Box<Conversation>),
}

/// A device. Cheap to share by reference; it needs a tokio runtime.
pub struct Device {
    pub(crate) client: Arc<Client>,
    identity: Identity,
    pub(crate) options: DeviceOptions,
    /// The node that each message is tried at first; `None` for the one that answered last.
    first: Option<usize>,
}

/// How far a message of an encrypting device is, as the node tells it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MessageStates {
    /// The message.
    #[serde(rename = "messageID")]
    pub message_id: String,
    /// What happened to it, oldest first.
    pub states: Vec<MessageState>,
}

/// One thing that happened to a message.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MessageState {
    /// The state's name.
    pub state: String,
    /// When, in RFC 3339.
    #[serde(default)]
    pub time: String,
    /// What the network says about it.
    #[serde(default)]
    pub comment: String,
    /// What came out.
    #[serde(default)]
    pub result: String,
}

impl Device {
    /// Begins with the nodes' addresses, each `http://host:port`.
    pub fn builder<T: Into<String>>(urls: impl IntoIterator<Item = T>) -> DeviceBuilder {
        DeviceBuilder { urls: urls.into_iter().map(Into::into).collect(), options: DeviceOptions::default() }
    }

    /// One of many signing devices that share connections. It begins with node `first`, modulo their number.
    pub(crate) fn sharing(client: Arc<Client>, key: SigningKey, first: usize, options: DeviceOptions) -> Self {
        Self { client, identity: Identity::Signing(key), options, first: Some(first) }
    }

    /// The device's address; an ioID device's is the end of its DID.
    pub fn address(&self) -> Address {
        match &self.identity {
            Identity::Signing(key) | Identity::Task(key, _) => key.address(),
            Identity::Encrypting(conversation) => conversation.identity.did().address(),
        }
    }

    /// Makes a message. To send equal data twice as two messages, something in it has to differ, such as a time or a
    /// counter, because nodes tell a retry by its content. Only `POST /v1/task` has a nonce for that, drawn here.
    ///
    /// # Errors
    /// If every node would refuse it.
    pub fn prepare(&self, project: ProjectId, version: &str, data: &str) -> Result<Prepared, ClientError> {
        match &self.identity {
            Identity::Signing(key) => Prepared::signed(key, project, version, data),
            Identity::Task(key, keys) => {
                // 0 is no nonce.
                let nonce = rand::random::<u64>().max(1);
                Prepared::task((key, keys), nonce, project, version, data.as_bytes())
            }
            Identity::Encrypting(talk) => Prepared::encrypted(&talk.identity.did(), project, version, data),
        }
    }

    /// Makes and sends a message.
    ///
    /// # Errors
    /// As [`Device::send`].
    pub async fn submit(&self, project: ProjectId, version: &str, data: &str) -> Result<Receipt, ClientError> {
        self.send(&self.prepare(project, version, data)?).await
    }

    /// Sends a message until a node orders it, refuses it, or the time is over. A node that does not answer, or has
    /// no time, is followed by the next one. What may have been ordered is sent again only inside the retry window;
    /// after that it is looked up first, and sent again only when it is not there.
    ///
    /// # Errors
    /// [`ClientError::Refused`]: correct the message. [`ClientError::Exhausted`]: [`ClientError::outcome`] tells
    /// whether it may have been ordered.
    pub async fn send(&self, prepared: &Prepared) -> Result<Receipt, ClientError> {
        let until = Instant::now() + self.options.give_up_after;
        self.deliver(prepared, &Mutex::new(Sending::default()), until).await
    }

    /// The same for a message that may have been sent before. What becomes known stands in `sending` also when the
    /// future is dropped.
    pub(crate) async fn deliver(
        &self,
        prepared: &Prepared,
        sending: &Mutex<Sending>,
        until: Instant,
    ) -> Result<Receipt, ClientError> {
        self.check(prepared)?;
        let mut rounds = self.client.rounds(self.first.unwrap_or_else(|| self.client.preferred()));
        let (mut attempts, mut last, mut refusal) = (0_u32, "nothing was tried".to_owned(), None);
        loop {
            let now = Instant::now();
            let step = sending.lock().step(now, self.times());
            let pause = match step {
                Step::Wait(at) => Some(at),
                Step::LookUp => match self.client.look_up(prepared, until).await {
                    LookUp::Found(receipt) => return Ok(Receipt { attempts, ..receipt }),
                    LookUp::Absent => {
                        sending.lock().is_absent();
                        if let Some(error) = refusal.take() {
                            return Err(error);
                        }
                        None
                    }
                    LookUp::Unclear(reason) => {
                        last = reason;
                        Some(Instant::now() + self.options.client.backoff_max)
                    }
                },
                Step::Send => match rounds.choose(now) {
                    Choice::Pause(at) => Some(at),
                    Choice::Try(place) => {
                        attempts += 1;
                        match self.attempt(place, prepared, sending, until).await {
                            Ok(receipt) => return Ok(Receipt { attempts, ..receipt }),
                            Err(Failure::Refused(error)) if sending.lock().outcome() == Outcome::NotTaken => {
                                return Err(error);
                            }
                            Err(Failure::Refused(error)) => {
                                // An earlier copy may have been ordered nevertheless.
                                last = error.to_string();
                                refusal = Some(error);
                                sending.lock().must_be_looked_up();
                            }
                            Err(Failure::Passing(setback)) => {
                                tracing::debug!(attempts, last = %setback.text, "trying the next node");
                                last = setback.text;
                                rounds.failed(place, Instant::now(), setback.retry_after, rand::random());
                            }
                        }
                        None
                    }
                },
            };
            let now = pause.unwrap_or_else(Instant::now);
            if now >= until {
                return Err(ClientError::Exhausted { attempts, last, outcome: sending.lock().outcome() });
            }
            if let Some(at) = pause {
                tokio::time::sleep_until(at).await;
            }
        }
    }

    fn times(&self) -> Times {
        Times { window: self.options.retry_window, pool: self.options.pool_time }
    }

    /// Looks up a message that must not be sent before that. `None` where it may be sent now, or where that is not
    /// known yet.
    pub(crate) async fn settle(&self, prepared: &Prepared, sending: &Mutex<Sending>) -> Option<Receipt> {
        let step = sending.lock().step(Instant::now(), self.times());
        if step != Step::LookUp {
            return None;
        }
        match self.client.look_up(prepared, Instant::now() + self.options.client.read_deadline).await {
            LookUp::Found(receipt) => return Some(receipt),
            LookUp::Absent => sending.lock().is_absent(),
            LookUp::Unclear(reason) => tracing::debug!(reason, "a message could not be looked up"),
        }
        None
    }

    /// An encrypted message can be sent by its own device only.
    fn check(&self, prepared: &Prepared) -> Result<(), ClientError> {
        let stranger = || ClientError::Setup("the message was made by a device of another kind or name".to_owned());
        match (&self.identity, prepared.way) {
            (Identity::Encrypting(talk), Way::Encrypted) => {
                let content_id = Prepared::content_of_encrypted(&talk.identity.did(), &prepared.body)?;
                if content_id == prepared.content_id { Ok(()) } else { Err(stranger()) }
            }
            (_, Way::Encrypted) => Err(stranger()),
            _ => Ok(()),
        }
    }

    /// One copy to one node.
    async fn attempt(
        &self,
        place: usize,
        prepared: &Prepared,
        sending: &Mutex<Sending>,
        until: Instant,
    ) -> Result<Receipt, Failure> {
        let before = sending.lock().begin(Instant::now());
        let result = self.post(place, prepared, until).await;
        if let Err(failure) = &result {
            let outcome = match failure {
                Failure::Refused(_) => Outcome::NotTaken,
                Failure::Passing(setback) => setback.outcome,
            };
            sending.lock().ended(before, Instant::now(), outcome);
        }
        let receipt = result?;
        self.client.prefer(place);
        Ok(Receipt { url: self.client.url(place).to_owned(), ..receipt })
    }

    async fn post(&self, place: usize, prepared: &Prepared, until: Instant) -> Result<Receipt, Failure> {
        #[derive(Deserialize)]
        struct TaskAnswer {
            #[serde(rename = "taskID")]
            task_id: lockstep_types::TaskId,
        }
        let path = match (&self.identity, prepared.way) {
            (Identity::Encrypting(talk), Way::Encrypted) => {
                return talk.submit(&self.client, place, prepared.text(), until).await.map(Receipt::message);
            }
            (_, Way::Task) => "/v1/task",
            _ => "/message",
        };
        let request = Request::post(path, prepared.body.clone()).once();
        let answer = self.client.attempt(place, &request, until).await?;
        let read = match prepared.way {
            Way::Task => serde_json::from_slice(&answer.body).map(|said: TaskAnswer| Receipt::task(said.task_id)),
            _ => serde_json::from_slice::<Submitted>(&answer.body).map(Receipt::from),
        };
        // Whoever said 200 may have been somebody else than a node.
        read.map_err(|error| {
            let text = format!("{} answered with something else than expected: {error}", self.client.url(place));
            Failure::Passing(Setback::new(Outcome::Unknown, text))
        })
    }

    /// How far a message is (`GET /message/{id}`): for encrypting devices.
    ///
    /// # Errors
    /// If the device does not encrypt, a node refuses, or none answers.
    pub async fn states(&self, id: MessageId) -> Result<MessageStates, ClientError> {
        let Identity::Encrypting(talk) = &self.identity else {
            return Err(ClientError::Setup("only encrypting devices ask for states".to_owned()));
        };
        let (first, nodes) = (self.client.preferred(), self.client.nodes());
        let until = Instant::now() + self.options.client.read_deadline;
        let mut last = String::new();
        for place in (0..nodes).map(|step| (first + step) % nodes) {
            match talk.get(&self.client, place, &format!("/message/{id}"), until).await {
                Ok(text) => match first_value(&text) {
                    Ok(states) => return Ok(states),
                    Err(error) => last = format!("{}: {error}", self.client.url(place)),
                },
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::Passing(setback)) => last = setback.text,
            }
        }
        let attempts = u32::try_from(nodes).unwrap_or(u32::MAX);
        Err(ClientError::Exhausted { attempts, last, outcome: Outcome::NotTaken })
    }
}
