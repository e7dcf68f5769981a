//! Alt-DA servers, as the OP Stack has them: `POST /put`, `GET /get/0x…`.
//!
//! A commitment begins with a byte that names its kind: 0 for keccak256 of what was put in, which makes the key, so the
//! same bytes again change nothing; 1 for whatever the server answers, its first byte naming the layer behind it.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_chain::{Endpoint, EndpointError, TransferError, read_body, send};
use lockstep_types::Hash32;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, header};

use crate::deposits::{Deposit, DepositError, Deposited, Deposits};
use crate::output::{COMMITMENT_BYTES_MAX, Owner, Stage};

/// First byte of a commitment that is a hash.
const KECCAK: u8 = 0;
/// First byte of a commitment that only the server understands.
const GENERIC: u8 = 1;
/// Longest commitment that is read: as text it takes twice the bytes, and two.
const ANSWER_BYTES_MAX: usize = 2 * COMMITMENT_BYTES_MAX + 2;
/// Most bytes of a commitment that its locator shows.
const SHOWN_BYTES_MAX: usize = 64;

/// Who makes the commitment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AltDaMode {
    /// The key is the hash.
    Keccak,
    /// The server.
    Generic,
}

/// Where the server is.
#[derive(Debug, Clone)]
pub struct AltDaOptions {
    /// Its URL; never shown whole.
    pub endpoint: Endpoint,
    /// Who makes the commitment.
    pub mode: AltDaMode,
    /// For one request, up to the last byte of its answer. Some servers answer once a block has the blob.
    pub timeout: Duration,
}

impl AltDaOptions {
    /// The usual limits.
    pub fn new(endpoint: Endpoint, mode: AltDaMode) -> Self {
        Self { endpoint, mode, timeout: Duration::from_secs(120) }
    }
}

/// A server.
pub struct AltDaServer {
    options: AltDaOptions,
    client: Client,
}

/// An output over an alt-DA server.
pub type AltDaOutput = Deposits<AltDaServer>;

impl AltDaOutput {
    /// Connects at the first call.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn new(options: AltDaOptions, owner: Owner) -> Result<Self, EndpointError> {
        let client = options.endpoint.client(options.timeout)?;
        Ok(Self::over(AltDaServer { options, client }, owner))
    }
}

fn transfer(error: TransferError) -> DepositError {
    DepositError::Retryable(error.to_string())
}

impl AltDaServer {
    fn url(&self, parts: &[&str]) -> Result<Url, DepositError> {
        let mut url = self.options.endpoint.url().clone();
        // URLs of the endpoint's schemes have paths.
        let mut segments =
            url.path_segments_mut().map_err(|()| DepositError::Retryable("its URL has no path".into()))?;
        segments.pop_if_empty().extend(parts);
        drop(segments);
        Ok(url)
    }

    async fn ask(&self, request: RequestBuilder) -> Result<Response, DepositError> {
        let response = send(request).await.map_err(transfer)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = format!("{} answers {}", self.options.endpoint, status.as_u16());
        Err(match status {
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
                DepositError::Refused(text)
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                DepositError::Retryable(format!("{text}; look at the credentials in its URL"))
            }
            StatusCode::NOT_FOUND => DepositError::Absent(text),
            _ => DepositError::Retryable(text),
        })
    }
}

/// Keccak256 of a blob as a commitment.
fn keccak_commitment(hash: &Hash32) -> Vec<u8> {
    [&[KECCAK][..], hash].concat()
}

/// Reads what a server answers: bytes, or the same as text.
fn commitment_of(answer: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(answer).ok().and_then(|text| text.trim().strip_prefix("0x"));
    let bytes = match text {
        Some(digits) => hex::decode(digits).ok()?,
        None => answer.to_vec(),
    };
    match *bytes.first()? {
        KECCAK if bytes.len() == 33 => Some(bytes),
        GENERIC if bytes.len() > 1 && bytes.len() <= COMMITMENT_BYTES_MAX => Some(bytes),
        _ => None,
    }
}

/// A server's answer to a put, for the fuzz targets. True where it is a commitment.
#[doc(hidden)]
pub fn fuzz(answer: &[u8]) -> bool {
    commitment_of(answer).is_some_and(|commitment| {
        let text = format!("0x{}", hex::encode(&commitment));
        assert_eq!(commitment_of(text.as_bytes()), Some(commitment));
        true
    })
}

fn shown(commitment: &[u8]) -> String {
    let digits = hex::encode(&commitment[..commitment.len().min(SHOWN_BYTES_MAX)]);
    let rest = if commitment.len() > SHOWN_BYTES_MAX { "..." } else { "" };
    format!("altda:0x{digits}{rest}")
}

#[async_trait]
impl Deposit for AltDaServer {
    const PART_BYTES: usize = 120 << 10;
    const BYTES_MAX: usize = 16 << 20;

    async fn put(&self, blob: &Bytes, hash: &Hash32) -> Result<Deposited, DepositError> {
        let key = format!("0x{}", hex::encode(keccak_commitment(hash)));
        let url = match self.options.mode {
            AltDaMode::Keccak => self.url(&["put", &key])?,
            AltDaMode::Generic => self.url(&["put"])?,
        };
        let request = self.client.post(url).header(header::CONTENT_TYPE, "application/octet-stream");
        let response = self.ask(request.body(blob.clone())).await?;
        let commitment = match self.options.mode {
            AltDaMode::Keccak => keccak_commitment(hash),
            AltDaMode::Generic => {
                let answer = read_body(response, ANSWER_BYTES_MAX).await.map_err(transfer)?;
                let commitment = commitment_of(&answer);
                commitment.ok_or_else(|| DepositError::Retryable("the answer to a put is no commitment".to_owned()))?
            }
        };
        // A hash that is not ours would be of something else.
        if commitment[0] == KECCAK && commitment[1..] != *hash {
            return Err(DepositError::Retryable("the server's commitment is of another blob".to_owned()));
        }
        Ok(Deposited { locator: shown(&commitment), commitment, height: None, stage: Stage::Accepted })
    }

    async fn get(&self, at: &Deposited) -> Result<Bytes, DepositError> {
        let url = self.url(&["get", &format!("0x{}", hex::encode(&at.commitment))])?;
        let response = match self.ask(self.client.get(url)).await {
            // Nothing was given that could be refused.
            Err(DepositError::Refused(reason)) => return Err(DepositError::Retryable(reason)),
            response => response?,
        };
        Ok(read_body(response, Self::BYTES_MAX).await.map_err(transfer)?.into())
    }

    fn hash(&self, at: &Deposited) -> Option<Hash32> {
        let (kind, hash) = at.commitment.split_first()?;
        (*kind == KECCAK).then(|| hash.try_into().ok()).flatten()
    }

    async fn stage(&self, _at: &Deposited) -> Result<Stage, DepositError> {
        Ok(Stage::Accepted)
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::keccak256;

    use super::*;

    #[test]
    fn commitments_are_read_as_bytes_and_as_text_and_nothing_else_is_one() {
        let keccak = keccak_commitment(&keccak256(&[b"blob"]));
        for commitment in [keccak.clone(), vec![1, 0xff, 7]] {
            assert_eq!(commitment_of(&commitment), Some(commitment.clone()));
            let text = format!("0x{}\n", hex::encode(&commitment));
            assert_eq!(commitment_of(text.as_bytes()), Some(commitment));
        }
        let long = [&[1][..], &[0; COMMITMENT_BYTES_MAX]].concat();
        for bad in [&b""[..], b"0x", b"0x0", b"\x01", &keccak[..32], &[2, 1], b"{\"error\":1}", &long] {
            assert_eq!(commitment_of(bad), None, "{bad:?}");
        }
        assert!(shown(&long).len() < 256);
    }
}
