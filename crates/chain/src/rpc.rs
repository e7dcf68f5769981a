//! JSON-RPC 2.0 over HTTP: one question, one bounded answer.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::endpoint::{Endpoint, EndpointError, read_body, send, shortened};
use crate::error::ChainError;

/// For one question, up to the last byte of its answer.
pub const RPC_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of an answer, except one with logs: a block names all its transactions.
pub const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Bytes of an answer with logs. What a block's gas can pay for stays below.
pub const LOGS_BYTES_MAX: usize = 32 << 20;

/// Codes that providers use for "too many requests".
const RATE_CODES: [i64; 2] = [429, -32029];
/// Words that do the same where the code says something else.
const RATE_WORDS: [&str; 5] = ["too many requests", "rate limit", "per second", "daily request", "capacity"];

/// An endpoint of a chain. Its URL may hold credentials and is never shown.
pub struct Rpc {
    endpoint: Endpoint,
    client: Client,
    /// Sent with every question.
    token: Option<String>,
    next_id: AtomicU64,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

impl Rpc {
    /// An endpoint with the timeout [`RPC_TIMEOUT`]. Connects on the first question.
    pub fn new(endpoint: Endpoint) -> Result<Self, EndpointError> {
        Self::with_timeout(endpoint, RPC_TIMEOUT)
    }

    /// An endpoint with another timeout for each question.
    pub fn with_timeout(endpoint: Endpoint, timeout: Duration) -> Result<Self, EndpointError> {
        let client = endpoint.client(timeout)?;
        Ok(Self { endpoint, client, token: None, next_id: AtomicU64::new(1) })
    }

    /// With a token that the endpoint asks for (`Authorization: Bearer`).
    pub fn with_token(self, token: String) -> Self {
        Self { token: Some(token), ..self }
    }

    /// Where the questions go; shows no more of it than may be seen.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Asks once. An answer of more than `bytes_max` bytes is an error before it is held in memory.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: Value,
        bytes_max: usize,
    ) -> Result<T, ChainError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let question = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string();
        let request = self.client.post(self.endpoint.url().clone()).header(CONTENT_TYPE, "application/json");
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let transfer = |error| ChainError::from_transfer(error, bytes_max);
        let response = send(request.body(question)).await.map_err(transfer)?;
        let status = response.status();
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            return Err(ChainError::Busy { code: status.as_u16().into() });
        }
        let body = read_body(response, bytes_max).await.map_err(transfer)?;
        let answer = serde_json::from_slice::<Answer<'_>>(&body);
        if !status.is_success() {
            // Some nodes say 400 and then what they mean.
            return Err(match answer {
                Ok(Answer { error: Some(fault), .. }) => self.fault(fault),
                _ => ChainError::Refused { status: status.as_u16() },
            });
        }
        let malformed = |_| ChainError::Malformed { method };
        match answer.map_err(malformed)? {
            Answer { error: Some(fault), .. } => Err(self.fault(fault)),
            Answer { result, .. } => serde_json::from_str(result.map_or("null", RawValue::get)).map_err(malformed),
        }
    }

    fn fault(&self, fault: Fault) -> ChainError {
        let Fault { code, message } = fault;
        let lower = message.to_ascii_lowercase();
        if RATE_CODES.contains(&code) || RATE_WORDS.iter().any(|words| lower.contains(words)) {
            return ChainError::Busy { code };
        }
        // Providers repeat the key of a URL in what they complain about.
        let message =
            if self.endpoint.is_repeated_in(&message) { "(withheld)".to_owned() } else { shortened(&message) };
        ChainError::Rpc { code, message }
    }
}

impl fmt::Debug for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rpc").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
