//! Barriers: what a node must have behind it before it says of a message that it was never ordered.
//!
//! A barrier is an entry without an effect. Once it is committed, whatever was appended before it is committed too or
//! never will be; once it is applied here, this node's state knows. To ask the leader how far it has committed would not
//! be enough: a message may lie in its log, appended and not committed, while its own disk holds it up.
//!
//! All who wait while one is under way share the next: one that was proposed before somebody asked is none for him. So
//! a node has one under way at a time, with a rest in between, however many ask.

use std::sync::Arc;

use lockstep_consensus::{Consensus, Role, runtime};
use lockstep_network::{Channel, Handle};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::control::ask_for_barrier;
use crate::limits::{BARRIER_REST, BARRIER_TIMEOUT, BARRIER_WAITERS_MAX};

/// There was no barrier: nothing is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoBarrier {
    /// Too many wait.
    #[error("too many look-ups wait for a confirmation at the moment")]
    TooMany,
    /// It was not committed, or not applied here, in time.
    #[error("no majority of voters has confirmed in time what this node knows")]
    TooLate,
    /// This node was asked as the leader.
    #[error("this node does not lead")]
    NotLeader,
    /// Nobody knows who leads.
    #[error("no leader is known")]
    NoLeader,
    /// It was not proposed, or that is not known.
    #[error("the leader has not confirmed what this node knows: {0}")]
    Failed(String),
}

/// Which round counts for whom.
#[derive(Debug, Default)]
struct Rounds {
    /// Number of the newest round that has begun.
    begun: u64,
    is_running: bool,
    is_wanted: bool,
}

impl Rounds {
    /// Somebody asks. Tells the first round that begins from now on, and whether the caller has to run it.
    fn ask(&mut self) -> (u64, bool) {
        if self.is_running {
            self.is_wanted = true;
            return (self.begun + 1, false);
        }
        self.is_running = true;
        self.begun += 1;
        (self.begun, true)
    }

    /// The newest round has ended. Tells the next one, if somebody asked meanwhile: it begins now.
    fn ended(&mut self) -> Option<u64> {
        self.is_running = std::mem::take(&mut self.is_wanted);
        self.is_running.then(|| {
            self.begun += 1;
            self.begun
        })
    }
}

/// How a round ended: with the index of the barrier's entry.
#[derive(Debug, Clone)]
struct Ended {
    round: u64,
    result: Result<u64, NoBarrier>,
}

struct Inner {
    consensus: Consensus,
    network: Handle,
    rounds: Mutex<Rounds>,
    ended: watch::Sender<Ended>,
    places: Semaphore,
}

/// See the module's documentation. Clones share it.
#[derive(Clone)]
pub(crate) struct Barriers(Arc<Inner>);

impl Barriers {
    pub fn new(consensus: Consensus, network: Handle) -> Self {
        Self(Arc::new(Inner {
            consensus,
            network,
            rounds: Mutex::default(),
            ended: watch::Sender::new(Ended { round: 0, result: Err(NoBarrier::NoLeader) }),
            places: Semaphore::new(BARRIER_WAITERS_MAX),
        }))
    }

    /// Waits until a barrier that was proposed after this call is applied here.
    pub async fn pass(&self) -> Result<(), NoBarrier> {
        let _place = self.0.places.try_acquire().map_err(|_| NoBarrier::TooMany)?;
        let passing = async {
            let index = self.next().await?;
            self.0.consensus.applied(index).await;
            Ok(())
        };
        timeout(BARRIER_TIMEOUT, passing).await.unwrap_or(Err(NoBarrier::TooLate))
    }

    /// A barrier for another member: its entry's index, once it is committed.
    pub async fn of_leader(&self) -> Result<u64, NoBarrier> {
        // A member that is wrong about who leads is told so, and not sent on and on.
        if self.0.consensus.status().borrow().role != Role::Leader {
            return Err(NoBarrier::NotLeader);
        }
        let _place = self.0.places.try_acquire().map_err(|_| NoBarrier::TooMany)?;
        timeout(BARRIER_TIMEOUT, self.next()).await.unwrap_or(Err(NoBarrier::TooLate))
    }

    async fn next(&self) -> Result<u64, NoBarrier> {
        let mut ended = self.0.ended.subscribe();
        let (round, is_ours) = self.0.rounds.lock().ask();
        if is_ours {
            // On its own: who asked may go away, and the others go on waiting.
            runtime::spawn(self.clone().run(round));
        }
        let ended = ended.wait_for(|ended| ended.round >= round).await.map_err(|_| NoBarrier::TooLate)?;
        ended.result.clone()
    }

    async fn run(self, mut round: u64) {
        loop {
            let result = self.propose().await;
            self.0.ended.send_replace(Ended { round, result });
            sleep(BARRIER_REST).await;
            let next = self.0.rounds.lock().ended();
            match next {
                Some(next) => round = next,
                None => return,
            }
        }
    }

    /// Puts one barrier into the log, by way of the leader.
    async fn propose(&self) -> Result<u64, NoBarrier> {
        let inner = &self.0;
        let status = inner.consensus.status().borrow().clone();
        if status.role == Role::Leader {
            let written = timeout(BARRIER_TIMEOUT, inner.consensus.barrier()).await;
            return written.map_err(|_| NoBarrier::TooLate)?.map_err(|e| NoBarrier::Failed(e.to_string()));
        }
        let leader = status.leader.ok_or(NoBarrier::NoLeader)?;
        let mut client = inner.network.client(leader, Channel::Control);
        ask_for_barrier(&mut client, BARRIER_TIMEOUT).await.map_err(|e| NoBarrier::Failed(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_that_began_before_somebody_asked_is_none_for_him() {
        let mut rounds = Rounds::default();
        assert_eq!(rounds.ask(), (1, true));
        // These wait for the one after the first, together.
        assert_eq!((rounds.ask(), rounds.ask()), ((2, false), (2, false)));
        assert_eq!(rounds.ended(), Some(2));
        assert_eq!(rounds.ask(), (3, false));
        assert_eq!(rounds.ended(), Some(3));
        assert_eq!(rounds.ended(), None);
        // Nobody asked meanwhile, so whoever asks now begins.
        assert_eq!(rounds.ask(), (4, true));
    }
}
