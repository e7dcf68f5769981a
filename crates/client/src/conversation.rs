//! Talking encrypted to nodes: their documents, their tokens, and messages both ways.
//!
//! Nodes may have different keys, so that each has its own document and token here. Both are kept until the node
//! refuses a message, which it does when its keys have changed; then they are fetched again, once.

use std::fmt;
use std::sync::Arc;

use hyper::header::HeaderValue;
use lockstep_identity::{DeviceIdentity, Document};
use lockstep_types::MessageId;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::client::Client;
use crate::error::ClientError;
use crate::node::{Answer, Request};
use crate::outcome::{Failure, Outcome, Setback};

/// A device that encrypts.
pub(crate) struct Conversation {
    pub(crate) identity: DeviceIdentity,
    /// By node.
    sessions: Vec<Mutex<Option<Arc<Session>>>>,
}

/// What a node gave out.
struct Session {
    server: Document,
    token: Zeroizing<String>,
}

impl fmt::Debug for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conversation({})", self.identity.did())
    }
}

#[derive(Deserialize)]
struct MessageAnswer {
    #[serde(rename = "messageID")]
    message_id: MessageId,
}

impl Conversation {
    pub(crate) fn new(identity: DeviceIdentity, nodes: usize) -> Self {
        Self { identity, sessions: (0..nodes).map(|_| Mutex::default()).collect() }
    }

    /// `POST /message` at one node.
    pub(crate) async fn submit(
        &self,
        client: &Client,
        place: usize,
        plaintext: &str,
        until: Instant,
    ) -> Result<MessageId, Failure> {
        let seal = |session: &Session| {
            let body = self.identity.encrypt_request(&session.server, plaintext, &mut rand::rng());
            let body = body.map_err(|error| Failure::Refused(error.into()))?;
            let mut request = Request::post("/message", body).once();
            request.content_type = "application/octet-stream";
            Ok(request)
        };
        let answer = self.ask(client, place, seal, until).await?;
        // From here on the message is ordered; an answer that cannot be read is as good as none.
        let unreadable =
            |error: String| Failure::Passing(Setback::new(Outcome::Unknown, format!("{}: {error}", client.url(place))));
        let opened = self.identity.decrypt_answer(&answer.body).map_err(|e| unreadable(e.to_string()))?;
        let said: MessageAnswer = first_value(&opened.plaintext).map_err(|e| unreadable(e.to_string()))?;
        Ok(said.message_id)
    }

    /// `GET` of a path at one node, and its answer decrypted.
    pub(crate) async fn get(
        &self,
        client: &Client,
        place: usize,
        path: &str,
        until: Instant,
    ) -> Result<Vec<u8>, Failure> {
        let answer = self.ask(client, place, |_| Ok(Request::get(path.to_owned())), until).await?;
        self.open(client, place, &answer)
    }

    fn open(&self, client: &Client, place: usize, answer: &Answer) -> Result<Vec<u8>, Failure> {
        let opened = self.identity.decrypt_answer(&answer.body);
        opened.map(|opened| opened.plaintext).map_err(|e| unusable(client, place, e.to_string()))
    }

    /// One request with a token; with a new one after a refusal, where the refused one was kept from earlier.
    async fn ask(
        &self,
        client: &Client,
        place: usize,
        request: impl Fn(&Session) -> Result<Request, Failure>,
        until: Instant,
    ) -> Result<Answer, Failure> {
        let kept = self.sessions[place].lock().clone();
        if let Some(session) = kept {
            match with_token(client, place, request(&session)?, &session, until).await {
                Err(Failure::Refused(ClientError::Refused { status: 400 | 401, .. })) => {
                    tracing::debug!(url = client.url(place), "refused with a kept document and token");
                }
                result => return result,
            }
        }
        let session = self.begin(client, place, until).await?;
        *self.sessions[place].lock() = Some(Arc::clone(&session));
        with_token(client, place, request(&session)?, &session, until).await
    }

    /// `GET /didDoc` and `POST /issue_vc`. Nothing of it orders a message.
    async fn begin(&self, client: &Client, place: usize, until: Instant) -> Result<Arc<Session>, Failure> {
        let not_taken = |failure| match failure {
            Failure::Passing(setback) => Failure::Passing(Setback { outcome: Outcome::NotTaken, ..setback }),
            // Not every node has the keys for this.
            Failure::Refused(error @ ClientError::Refused { status: 404 | 405, .. }) => {
                Failure::Passing(Setback::new(Outcome::NotTaken, error.to_string()))
            }
            refused @ Failure::Refused(_) => refused,
        };
        let document = client.attempt(place, &Request::get("/didDoc"), until).await.map_err(not_taken)?;
        let server = Document::parse(&document.body).map_err(|e| unusable(client, place, e.to_string()))?;
        let ask = format!("{{\"clientID\":\"{}\"}}", self.identity.did());
        let answer = client.attempt(place, &Request::post("/issue_vc", ask), until).await.map_err(not_taken)?;
        let token = Zeroizing::new(self.open(client, place, &answer)?);
        let token = String::from_utf8(token.to_vec()).map(Zeroizing::new);
        let token = token.map_err(|_| unusable(client, place, "the token is not text".to_owned()))?;
        Ok(Arc::new(Session { server, token }))
    }
}

async fn with_token(
    client: &Client,
    place: usize,
    mut request: Request,
    session: &Session,
    until: Instant,
) -> Result<Answer, Failure> {
    let header = Zeroizing::new(format!("Bearer {}", session.token.trim_matches(['\0', ' ', '\n', '\r'])));
    let header = HeaderValue::from_str(&header);
    let mut header = header.map_err(|_| unusable(client, place, "the token has strange characters".to_owned()))?;
    header.set_sensitive(true);
    request.authorization = Some(header);
    client.attempt(place, &request, until).await
}

/// Another node may do better.
fn unusable(client: &Client, place: usize, reason: String) -> Failure {
    Failure::Passing(Setback::new(Outcome::NotTaken, format!("{}: {reason}", client.url(place))))
}

/// Some senders do not end their texts properly, so that what follows the value is not looked at.
pub(crate) fn first_value<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, serde_json::Error> {
    use serde::de::Error as _;
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<T>();
    values.next().unwrap_or_else(|| Err(serde_json::Error::custom("it is empty")))
}
