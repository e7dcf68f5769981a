//! A gateway's side: one connection to a node, and a stream for each bundle. Needs no running network.

use std::time::Duration;

use bytes::Bytes;
use libp2p::PeerId;
use libp2p_stream::{Control, OpenStreamError};
use lockstep_types::SigningKey;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::ask::{Ask, AskError, LAST_WORD, closed};
use crate::frame::{self, FrameError};
use crate::gateway::GatewayRefusal;
use crate::hello::GATEWAY_PROTOCOL;
use crate::limits::{GATEWAY_ANSWER_BYTES_MAX, GATEWAY_REQUEST_BYTES_MAX};

/// Why a bundle has no answer. Where it may have been taken, sending it again is safe: what was ordered has its position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// There is no connection, or the node does not take bundles.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The node has not looked at it.
    #[error("the node refused the bundle: {0}")]
    Refused(GatewayRefusal),
    /// The node gives a reason that this version does not know.
    #[error("the node refused the bundle: {0}")]
    Other(String),
    /// The connection ended; connect again.
    #[error("the connection to the node ended ({0}): connect again, or go to another node")]
    Closed(String),
    /// No answer in time.
    #[error("the node did not answer within {} s: send the bundle again, or go to another node", .0.as_secs())]
    Timeout(Duration),
}

/// A connection to a node that admits this gateway. It ends with the value; where the node ends it, bundles fail with
/// [`GatewayError::Closed`], and the gateway connects again.
pub struct Gateway {
    control: Control,
    peer: PeerId,
    address: String,
    driver: JoinHandle<()>,
    /// Why the connection ended, once it has.
    ended: watch::Receiver<Option<String>>,
}

impl Gateway {
    /// Connects to the node at `address`, a multiaddress with or without `/p2p/<peer id>`; with a peer id the node's key
    /// is checked. `key` is what the node knows the gateway by. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// If there is no connection in `timeout`.
    pub async fn connect(key: &SigningKey, address: &str, timeout: Duration) -> Result<Self, AskError> {
        let asking = Ask { address: address.to_owned() };
        let connected = tokio::time::timeout(timeout, asking.connect(key)).await;
        let late = |_| AskError::Timeout { address: address.to_owned(), timeout };
        let (mut swarm, peer) = connected.map_err(late)??;
        let control = swarm.behaviour().streams.new_control();
        let (ending, ended) = watch::channel(None);
        let driver = tokio::spawn(async move {
            let reason = closed(&mut swarm).await;
            ending.send_replace(Some(reason));
        });
        Ok(Self { control, peer, address: asking.address, driver, ended })
    }

    /// Sends the bytes of a body of `POST /message` or `POST /messages` and returns the answer: JSON, an array with an
    /// entry for each message in its place, or an object with `error` and `code` where the whole bundle was refused.
    ///
    /// # Errors
    /// If there is no answer in `timeout`.
    pub async fn submit(&self, bundle: Bytes, timeout: Duration) -> Result<Bytes, GatewayError> {
        if bundle.len() as u64 > GATEWAY_REQUEST_BYTES_MAX {
            return Err(GatewayError::Refused(GatewayRefusal::TooLarge));
        }
        let answer = self.talk_while_connected(bundle);
        tokio::time::timeout(timeout, answer).await.unwrap_or(Err(GatewayError::Timeout(timeout)))
    }

    /// Where nobody drives the connection any more, opening a stream would wait for ever.
    async fn talk_while_connected(&self, bundle: Bytes) -> Result<Bytes, GatewayError> {
        let mut talk = std::pin::pin!(self.talk(bundle));
        let mut ended = self.ended.clone();
        let closed = tokio::select! {
            biased;
            reason = ended.wait_for(Option::is_some) => {
                GatewayError::Closed(reason.ok().and_then(|reason| reason.clone()).unwrap_or_default())
            }
            result = &mut talk => return result,
        };
        tokio::time::timeout(LAST_WORD, talk).await.unwrap_or(Err(closed))
    }

    async fn talk(&self, bundle: Bytes) -> Result<Bytes, GatewayError> {
        let opened = self.control.clone().open_stream(self.peer, GATEWAY_PROTOCOL).await;
        let mut stream = opened.map_err(|error| match error {
            OpenStreamError::UnsupportedProtocol(_) => AskError::NotServed(self.address.clone()).into(),
            other => GatewayError::Closed(other.to_string()),
        })?;
        frame::exchange(&mut stream, &[bundle], GATEWAY_ANSWER_BYTES_MAX).await.map_err(|error| match error {
            FrameError::Refused(text) => match GatewayRefusal::read(&text) {
                Some(refusal) => GatewayError::Refused(refusal),
                None => GatewayError::Other(text),
            },
            other => GatewayError::Closed(other.to_string()),
        })
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
