//! The leader's side of bringing a member forward by a copy of the state: it offers the copy again and again, and the
//! member pulls it. No call is long, so nothing depends on how large the state is.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use lockstep_types::{DecodeError, NodeId, proto};
use openraft::errors::{NetworkError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::SnapshotResponse;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::convert::{vote_from, vote_to};
use crate::limits::{OFFER_INTERVAL, OFFER_INTERVAL_PROBLEM, OFFER_PAUSE, PROGRESS_INTERVAL};
use crate::raft_types::{TypeConfig, Vote};
use crate::shelf::{KeptCopy, SnapshotDirectory};
use crate::state_store::StateStore;
use crate::transport::Link;

pub(crate) type OfferError = StreamingError<TypeConfig>;
type Offered = Result<SnapshotResponse<TypeConfig>, OfferError>;

/// One copy, one member, one lead.
pub(crate) struct Offering {
    pub target: NodeId,
    pub state: StateStore,
    pub vote: Vote,
    pub directory: SnapshotDirectory,
}

fn again(reason: &str) -> OfferError {
    OfferError::Unreachable(Unreachable::from_string(reason))
}

impl Offering {
    /// Offers the copy until the member has installed it, its vote is greater, the copy gives way to a newer one, or
    /// `cancel` is ready.
    pub async fn run(
        self,
        link: &mut Link,
        cancel: impl Future<Output = ReplicationClosed>,
        option: &RPCOption,
    ) -> Offered {
        let mut cancel = std::pin::pin!(cancel);
        let offered = tokio::select! {
            offered = self.offer_until_installed(link, option) => offered,
            closed = &mut cancel => return Err(closed.into()),
        };
        if offered.is_err() {
            // openraft comes back at once with the newest copy. A member that is down need not be asked that often.
            tokio::select! {
                () = tokio::time::sleep(OFFER_PAUSE) => {}
                closed = &mut cancel => return Err(closed.into()),
            }
        }
        offered
    }

    async fn offer_until_installed(&self, link: &mut Link, option: &RPCOption) -> Offered {
        let Some(copy) = self.state.shelf().copy_of(&self.directory) else {
            return Err(again("this copy of the state has given way to a newer one"));
        };
        let request = self.request(&copy).await.map_err(|error| {
            tracing::error!(path = %self.directory.path().display(), %error, "a copy of the state cannot be read");
            again("the copy of the state cannot be read")
        })?;
        let mut log = ProgressLog::new(self.target, &copy);
        loop {
            let answer = self.ask(link, request.clone(), option).await?;
            self.state.shelf().answered(self.target, &copy, &answer);
            log.note(&answer);
            let missing = || OfferError::Network(NetworkError::new(&DecodeError::malformed("answer", "no vote")));
            let vote = answer.vote.as_ref().map(vote_from).ok_or_else(missing)?;
            if vote.leader_id.term > self.vote.leader_id.term {
                return Ok(SnapshotResponse { vote });
            }
            if answer.installed {
                return Ok(SnapshotResponse { vote: self.vote });
            }
            if self.state.shelf().copy_of(&self.directory).is_none() {
                return Err(again("this copy of the state has given way to a newer one"));
            }
            let has_problem = !answer.problem.is_empty();
            tokio::time::sleep(if has_problem { OFFER_INTERVAL_PROBLEM } else { OFFER_INTERVAL }).await;
        }
    }

    /// Makes the offer; the first time that reads the whole copy.
    async fn request(&self, copy: &Arc<KeptCopy>) -> io::Result<proto::SnapshotOffer> {
        let (state, copy, vote) = (self.state.clone(), copy.clone(), self.vote);
        let make = move || Ok(state.shelf().manifest(&copy)?.1.to_offer(&vote));
        self.state.blocking().run(make).await.map_err(io::Error::other)?
    }

    async fn ask(
        &self,
        link: &mut Link,
        offer: proto::SnapshotOffer,
        option: &RPCOption,
    ) -> Result<proto::SnapshotAnswer, OfferError> {
        match link.call(proto::raft_request::Kind::Offer(offer), option).await? {
            proto::raft_response::Kind::Offer(answer) => Ok(answer),
            _ => Err(NetworkError::new(&DecodeError::malformed("raft answer", "not to an offer")).into()),
        }
    }
}

/// Says in the leader's log how a transfer goes, now and then.
struct ProgressLog {
    target: NodeId,
    last_index: u64,
    said: Option<Instant>,
    problem: String,
}

impl ProgressLog {
    fn new(target: NodeId, copy: &KeptCopy) -> Self {
        let last_index = copy.meta.last_log_id.map_or(0, |id| id.index);
        Self { target, last_index, said: None, problem: String::new() }
    }

    fn is_due(&self, interval: Duration) -> bool {
        self.said.is_none_or(|said| said.elapsed() >= interval)
    }

    fn note(&mut self, answer: &proto::SnapshotAnswer) {
        let (node, index) = (self.target, self.last_index);
        if answer.installed {
            info!(%node, index, "a member has installed a copy of the state");
        } else if !answer.problem.is_empty() {
            if answer.problem != self.problem || self.is_due(12 * PROGRESS_INTERVAL) {
                warn!(%node, index, problem = answer.problem, "a member cannot fetch the copy of the state that it needs");
                (self.problem, self.said) = (answer.problem.clone(), Some(Instant::now()));
            }
        } else if self.is_due(PROGRESS_INTERVAL) {
            let (bytes, of) = (answer.bytes_done, answer.bytes_total);
            info!(%node, index, bytes, of, "a member fetches a copy of the state");
            self.said = Some(Instant::now());
        }
    }
}

/// What a member answers.
pub(crate) fn answer(vote: &Vote) -> proto::SnapshotAnswer {
    proto::SnapshotAnswer { vote: Some(vote_to(vote)), ..proto::SnapshotAnswer::default() }
}
