//! The component: the swarm and the one who announces, joined.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::feed::TaskFeed;
use crate::network::{Network, PublishError};
use crate::options::{AnnounceError, Options};
use crate::teller::{Progress, Teller};

/// How announcing stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Peers of W3bstream's network that listen to announcements.
    pub peers: usize,
    /// Tasks that were announced since the start, each counted once.
    pub announced: u64,
    /// Tasks that wait to be announced, or to be announced again.
    pub waiting: u64,
    /// Why it does not get on; `None` when it does.
    pub problem: Option<String>,
}

/// A view on a running announcer.
#[derive(Debug, Clone)]
pub struct Handle {
    peers: watch::Receiver<usize>,
    progress: watch::Receiver<Progress>,
    listening: Vec<String>,
}

impl Handle {
    /// How it stands now.
    pub fn status(&self) -> Status {
        let (peers, progress) = (*self.peers.borrow(), self.progress.borrow().clone());
        // Before there is anything to announce nobody has noticed.
        let nobody = || (peers == 0).then(|| PublishError::Nobody.to_string());
        let problem = progress.problem.or_else(nobody);
        Status { peers, announced: progress.announced, waiting: progress.waiting, problem }
    }

    /// The multiaddresses that it listens on, without the peer id.
    pub fn listening(&self) -> &[String] {
        &self.listening
    }
}

/// The announcer before and while it runs.
pub struct Announcer<F> {
    network: Network,
    teller: Teller<F>,
}

impl<F: TaskFeed> Announcer<F> {
    /// Checks the options and opens the listening sockets. Nothing is dialed or announced before [`Announcer::run`].
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub async fn bind(options: Options, feed: F) -> Result<(Self, Handle), AnnounceError> {
        let (network, link, listening) = Network::bind(&options).await?;
        let peers = link.peers.clone();
        let (teller, progress) = Teller::new(&options, feed, link);
        Ok((Self { network, teller }, Handle { peers, progress, listening }))
    }

    /// This node's peer id on W3bstream's network.
    pub fn peer_id(&self) -> String {
        self.network.peer_id().to_string()
    }

    /// Announces until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        tokio::join!(self.network.run(stop.clone()), self.teller.run(stop));
    }
}
