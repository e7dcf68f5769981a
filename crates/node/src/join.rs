//! A newcomer's side of joining: it asks, and waits until it is admitted.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use lockstep_network::{AskError, ask};
use lockstep_types::members::{member_from_proto, member_to_proto};
use lockstep_types::{Epochs, Genesis, Member, NodeId, SigningKey, proto};
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use crate::error::NodeError;
use crate::home::{Admitted, Home, Waiting};
use crate::operator::{ASK_INTERVAL, JOIN_VERSION};

/// Time for an answer to a join request.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// A line in the log is repeated after as many questions.
const REMIND_EVERY: u32 = 30;

/// What a member says to a newcomer.
#[derive(Debug, Clone)]
pub struct JoinAnswer {
    /// The network.
    pub genesis: Genesis,
    /// Its epochs after the first.
    pub epochs: Epochs,
    /// Its members.
    pub members: Vec<(NodeId, Member)>,
    /// The newcomer's id, once it is admitted.
    pub node: Option<NodeId>,
}

/// Why a newcomer was not answered, or turned away.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Nobody answered: look at the address and try again.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The member says why not.
    #[error("the network does not take this node: {0}")]
    Refused(String),
    /// The answer makes no sense: another program, or another version.
    #[error("the answer cannot be read: {0}")]
    Malformed(String),
}

/// Asks the member at `address` to be admitted; asking again tells how the request stands.
///
/// # Errors
/// With a sentence for the operator.
pub async fn ask_to_join(key: &SigningKey, address: &str, member: &Member) -> Result<JoinAnswer, JoinError> {
    read_join_answer(ask(key, address, join_request(member), ASK_TIMEOUT).await?)
}

/// What a newcomer asks.
pub(crate) fn join_request(member: &Member) -> Bytes {
    let request = proto::JoinRequest { version: JOIN_VERSION, member: Some(member_to_proto(member)) };
    request.encode_to_vec().into()
}

/// What it hears.
pub(crate) fn read_join_answer(answer: Bytes) -> Result<JoinAnswer, JoinError> {
    let malformed = |e: &dyn std::fmt::Display| JoinError::Malformed(e.to_string());
    let answer = proto::JoinResponse::decode(answer).map_err(|e| malformed(&e))?;
    if !answer.refused.is_empty() {
        return Err(JoinError::Refused(answer.refused));
    }
    let present = answer.members.into_iter().filter(|known| known.role != 3);
    let read = |known: proto::KnownMember| {
        let member = member_from_proto(known.record.ok_or_else(|| malformed(&"a member is missing"))?);
        Ok((NodeId(known.node), member.map_err(|e| malformed(&e))?))
    };
    let genesis = Genesis::parse(&answer.genesis).map_err(|e| malformed(&e))?;
    let epochs = match &answer.epochs[..] {
        "" => Epochs::default(),
        text => Epochs::parse(text, &genesis).map_err(|e| malformed(&e))?,
    };
    if epochs.current().0 != answer.epoch {
        return Err(malformed(&"it is of another epoch than its list of epochs"));
    }
    Ok(JoinAnswer {
        genesis,
        epochs,
        members: present.map(read).collect::<Result<_, JoinError>>()?,
        node: (answer.node > 0).then_some(NodeId(answer.node)),
    })
}

/// Lets the newcomer in `home` ask again and again until it is admitted, and writes that down; a member's home is ready
/// at once. False when `stop` came first.
///
/// # Errors
/// If the network turns the newcomer away, or the home cannot be read or written.
pub fn wait_for_admission<'a>(home: &'a Home, stop: &'a CancellationToken) -> BoxFuture<'a, Result<bool, NodeError>> {
    // Boxed, so that this crate compiles it, and not each program that awaits it.
    Box::pin(async move {
        match home.waiting()? {
            Some(waiting) => wait(home, waiting, stop).await,
            None => Ok(true),
        }
    })
}

async fn wait(home: &Home, waiting: Waiting, stop: &CancellationToken) -> Result<bool, NodeError> {
    let network = waiting.genesis.id()?;
    let mut addresses = waiting.join.bootstrap.clone();
    let mut asked = 0;
    loop {
        for address in addresses.clone() {
            let answer = tokio::select! {
                () = stop.cancelled() => return Ok(false),
                answer = ask_to_join(&waiting.key, &address, &waiting.member) => answer,
            };
            match answer {
                Ok(answer) if answer.genesis.id()? != network => {
                    tracing::warn!(address, "another network answers at this address");
                }
                Ok(JoinAnswer { node: Some(node), members, epochs, .. }) => {
                    tracing::info!(%node, "this node was admitted");
                    if !epochs.is_empty() {
                        home.install_epochs(&epochs)?;
                    }
                    home.install_admission(&Admitted { node, members })?;
                    return Ok(true);
                }
                Ok(answer) => {
                    // Every operator sees the request at a node of its own.
                    for (_, member) in answer.members {
                        if !addresses.contains(&member.p2p) && addresses.len() < lockstep_ledger::MEMBERS_MAX {
                            addresses.push(member.p2p);
                        }
                    }
                }
                Err(error @ JoinError::Refused(_)) => return Err(NodeError::Config(error.to_string())),
                Err(error) => tracing::debug!(address, %error, "no answer"),
            }
        }
        if asked % REMIND_EVERY == 0 {
            tracing::info!(
                name = waiting.member.name,
                address = %waiting.key.address(),
                "waiting to be admitted: a majority of operators has to run `lockstep members approve`"
            );
        }
        asked += 1;
        tokio::select! {
            () = stop.cancelled() => return Ok(false),
            () = tokio::time::sleep(ASK_INTERVAL) => {}
        }
    }
}
