//! Bringing the messages of an outbox to the nodes.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::Submitted;
use crate::device::Device;
use crate::error::ClientError;
use crate::node::Request;
use crate::outbox::error::OutboxError;
use crate::outbox::log::{Log, Waiting};
use crate::outbox::refused::set_aside;
use crate::outbox::{BULK_BYTES_MAX, BULK_MESSAGES_MAX, Outbox, OutboxNumber};
use crate::outcome::{Failure, Outcome, is_worth_a_retry, outcome_of};
use crate::prepared::{Prepared, Way};
use crate::receipt::Receipt;
use crate::rounds::RETRY_AFTER_MAX;

/// Pause of [`Outbox::run`] after nothing could be sent.
const RUN_PAUSE: Duration = Duration::from_secs(5);

/// What became of the messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Messages that are ordered now.
    pub ordered: u64,
    /// Messages that nodes refused for good. They are in the file that ends in `.refused`.
    pub refused: u64,
}

type Entry = (u64, Prepared, Waiting);

/// One message's part of the answer to `POST /messages`.
#[derive(Deserialize)]
#[serde(untagged)]
enum BulkAnswer {
    Accepted(Submitted),
    Refused {
        error: String,
        code: String,
        status: u16,
        #[serde(rename = "retryAfterMs", default)]
        retry_after_ms: u64,
    },
}

impl Outbox {
    /// Sends what waits, in order, until nothing does. `told` hears of each message that was ordered. Where a node has
    /// `POST /messages`, many go in one request. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`ClientError::Exhausted`] when a message could not be brought to any node in the device's time, and
    /// [`ClientError::Refused`] when the device is not permitted (401, 403) or a node lacks its API (404, 405): that
    /// message and all behind it wait further. Any other refusal concerns one message, which is set aside. Errors of
    /// the disk end it too.
    pub async fn drain(
        &self,
        device: &Device,
        mut told: impl FnMut(OutboxNumber, &Receipt),
    ) -> Result<Drained, OutboxError> {
        let _one_at_a_time = self.draining.lock().await;
        let drained = self.drain_all(device, &mut told).await;
        if matches!(drained, Err(OutboxError::Client(_))) {
            self.on_disk(Log::withdraw).await?;
        }
        drained
    }

    async fn drain_all(
        &self,
        device: &Device,
        told: &mut impl FnMut(OutboxNumber, &Receipt),
    ) -> Result<Drained, OutboxError> {
        let mut drained = Drained::default();
        let (mut bulk, mut alone) = (true, false);
        loop {
            let count = if bulk && !alone { self.bulk_messages_max() } else { 1 };
            let mut first = self.on_disk(move |log| log.first(count, BULK_BYTES_MAX)).await?;
            if first.len() > 1 && self.settle(device, &first, &mut drained, told).await? {
                continue;
            }
            // What may have been sent before goes alone: it may have to wait until it can be looked up.
            let is_fit = |(_, prepared, waiting): &Entry| {
                prepared.way == Way::Signed && waiting.sending.lock().outcome() == Outcome::NotTaken
            };
            let fit = first.iter().take_while(|entry| is_fit(entry)).count();
            first.truncate(fit.max(1));
            if first.is_empty() {
                return Ok(drained);
            }
            let numbers: Vec<u64> = first.iter().map(|entry| entry.0).collect();
            self.on_disk(move |log| log.offer(&numbers)).await?;
            if first.len() > 1 {
                match self.send_together(device, &first, &mut drained, told).await? {
                    Together::All => {}
                    Together::Some => alone = true,
                    Together::NotHere => bulk = false,
                }
            } else {
                self.send_alone(device, &first[0], &mut drained, told).await?;
                alone = false;
            }
        }
    }

    /// Sends what waits and what arrives, until `token` is cancelled. Where nothing can be sent it tries again after a
    /// pause.
    ///
    /// # Errors
    /// Errors of the disk.
    pub async fn run(
        &self,
        device: &Device,
        token: CancellationToken,
        mut told: impl FnMut(OutboxNumber, &Receipt),
    ) -> Result<(), OutboxError> {
        loop {
            let drained = tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                drained = self.drain(device, &mut told) => drained,
            };
            let pause = async {
                match drained {
                    Ok(_) => self.arrived.notified().await,
                    Err(OutboxError::Client(error)) => {
                        tracing::warn!(%error, waiting = self.waiting(), "messages wait");
                        tokio::time::sleep(RUN_PAUSE).await;
                    }
                    Err(error) => return Err(error),
                }
                Ok(())
            };
            tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                ended = pause => ended?,
            }
        }
    }

    fn bulk_messages_max(&self) -> usize {
        self.log.lock().options().bulk_messages_max.clamp(1, BULK_MESSAGES_MAX)
    }

    /// Looks up what has to be, so that the rest can go together. Returns whether something was found.
    async fn settle(
        &self,
        device: &Device,
        entries: &[Entry],
        drained: &mut Drained,
        told: &mut impl FnMut(OutboxNumber, &Receipt),
    ) -> Result<bool, OutboxError> {
        let mut any = false;
        for (number, prepared, waiting) in entries {
            if let Some(receipt) = device.settle(prepared, &waiting.sending).await {
                self.done(vec![*number]).await?;
                drained.ordered += 1;
                told(OutboxNumber(*number), &receipt);
                any = true;
            } else if waiting.sending.lock().outcome() == Outcome::Unknown {
                // The ones behind it have to wait in any case.
                break;
            }
        }
        Ok(any)
    }

    async fn send_alone(
        &self,
        device: &Device,
        (number, prepared, waiting): &Entry,
        drained: &mut Drained,
        told: &mut impl FnMut(OutboxNumber, &Receipt),
    ) -> Result<(), OutboxError> {
        let until = Instant::now() + device.options.give_up_after;
        match device.deliver(prepared, &waiting.sending, until).await {
            Ok(receipt) => {
                self.done(vec![*number]).await?;
                drained.ordered += 1;
                told(OutboxNumber(*number), &receipt);
                Ok(())
            }
            Err(error) if concerns_one_message(&error) => {
                drained.refused += 1;
                self.refuse(*number, prepared, error.to_string()).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// One request to the node that answered last. Whatever goes wrong is left to [`Outbox::send_alone`], which goes
    /// from node to node.
    async fn send_together(
        &self,
        device: &Device,
        entries: &[Entry],
        drained: &mut Drained,
        told: &mut impl FnMut(OutboxNumber, &Receipt),
    ) -> Result<Together, OutboxError> {
        let bodies: Vec<&[u8]> = entries.iter().map(|entry| &entry.1.body[..]).collect();
        let request = Request::post("/messages", [&b"["[..], &bodies.join(&b","[..]), b"]"].concat()).once();
        let now = Instant::now();
        let place = device.client.preferred();
        let begun: Vec<_> = entries.iter().map(|(.., waiting)| waiting.sending.lock().begin(now)).collect();
        let answer = device.client.attempt(place, &request, now + device.options.give_up_after).await;
        let answers: Option<Vec<BulkAnswer>> = match &answer {
            Ok(answer) => serde_json::from_slice(&answer.body).ok(),
            Err(_) => None,
        };
        let Some(answers) = answers.filter(|answers| answers.len() == entries.len()) else {
            let (outcome, together) = match &answer {
                Err(Failure::Refused(_)) => (Outcome::NotTaken, Together::NotHere),
                Err(Failure::Passing(setback)) => (setback.outcome, Together::Some),
                Ok(_) => (Outcome::Unknown, Together::NotHere),
            };
            for ((.., waiting), before) in entries.iter().zip(begun) {
                waiting.sending.lock().ended(before, Instant::now(), outcome);
            }
            return Ok(together);
        };
        let (mut ordered, mut pause) = (Vec::new(), Duration::ZERO);
        let mut refused = Vec::new();
        for (((number, prepared, waiting), before), answer) in entries.iter().zip(begun).zip(answers) {
            match answer {
                BulkAnswer::Accepted(submitted) => {
                    let submitted = Submitted { url: device.client.url(place).to_owned(), attempts: 1, ..submitted };
                    ordered.push((*number, Receipt::from(submitted)));
                }
                BulkAnswer::Refused { error, code, status, retry_after_ms } => {
                    let http = hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::BAD_GATEWAY);
                    waiting.sending.lock().ended(before, Instant::now(), outcome_of(http, &code));
                    pause = pause.max(Duration::from_millis(retry_after_ms));
                    let url = device.client.url(place).to_owned();
                    let error = ClientError::Refused { url, status, code, error };
                    if !is_worth_a_retry(http) && concerns_one_message(&error) {
                        refused.push((*number, prepared, error.to_string()));
                    }
                }
            }
        }
        self.done(ordered.iter().map(|(number, _)| *number).collect()).await?;
        drained.ordered += ordered.len() as u64;
        drained.refused += refused.len() as u64;
        let all = ordered.len() + refused.len() == entries.len();
        ordered.iter().for_each(|(number, receipt)| told(OutboxNumber(*number), receipt));
        for (number, prepared, reason) in refused {
            self.refuse(number, prepared, reason).await?;
        }
        tokio::time::sleep(pause.min(RETRY_AFTER_MAX)).await;
        Ok(if all { Together::All } else { Together::Some })
    }

    async fn done(&self, numbers: Vec<u64>) -> Result<(), OutboxError> {
        self.on_disk(move |log| log.done(&numbers)).await
    }

    async fn refuse(&self, number: u64, prepared: &Prepared, reason: String) -> Result<(), OutboxError> {
        let prepared = prepared.clone();
        tracing::warn!(number, content_id = %prepared.content_id, %reason, "a message was refused and set aside");
        self.on_disk(move |log| {
            let (path, bytes_max) = (log.refused_path(), log.options().refused_bytes_max);
            set_aside(&path, bytes_max, (number, &prepared), &reason)?;
            log.done(&[number])
        })
        .await
    }

    /// Blocking work, which goes on to its end also when nobody waits for it.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Log) -> Result<T, OutboxError> + Send + 'static,
    ) -> Result<T, OutboxError> {
        let log = Arc::clone(&self.log);
        let ended = tokio::task::spawn_blocking(move || work(&mut log.lock())).await;
        ended.unwrap_or(Err(OutboxError::Broken))
    }
}

/// What became of a request with many messages.
enum Together {
    /// Every message is done.
    All,
    /// Some are not.
    Some,
    /// This node takes no such requests, or not this one.
    NotHere,
}

/// Whether other messages of the same device may fare better.
fn concerns_one_message(error: &ClientError) -> bool {
    match error {
        ClientError::Refused { status, .. } => !matches!(status, 401 | 403 | 404 | 405),
        ClientError::Message(_) | ClientError::Envelope(_) => true,
        _ => false,
    }
}
