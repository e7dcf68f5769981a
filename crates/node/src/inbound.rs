//! What comes from other members: bundles for the leader, gossip, raft's own messages, and requests for the state.

use bytes::Bytes;
use lockstep_consensus::Consensus;
use lockstep_network::{GossipInbox, GossipMessage, Service};
use lockstep_types::NodeId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bundle::{self, Taken};
use crate::verify::{Job, Verifier};

/// Takes bundles that members send to this node because it leads, or led.
pub(crate) struct BundleService {
    pub verifier: Verifier,
}

impl Service for BundleService {
    async fn handle(&self, from: NodeId, request: Bytes) -> Bytes {
        let came_in = Instant::now();
        let messages = match bundle::decode(request) {
            Ok(messages) => messages,
            Err(error) => {
                tracing::warn!(%from, %error, "a member sent a bundle that cannot be read");
                return Taken::Busy.encode();
            }
        };
        let done = move |good: bool| {
            if !good {
                tracing::warn!(%from, "a member sent messages whose evidence does not match; they were dropped");
            }
        };
        match self.verifier.submit(Job::Bundle { messages, came_in, skip_ordered: false, done: Box::new(done) }) {
            Ok(()) => Taken::Yes.encode(),
            Err(_) => Taken::Busy.encode(),
        }
    }
}

/// Answers raft's messages.
pub(crate) struct RaftService {
    pub consensus: Consensus,
}

impl Service for RaftService {
    async fn handle(&self, from: NodeId, request: Bytes) -> Bytes {
        self.consensus.serve(from, request).await
    }
}

/// Answers requests for pieces of a copy of the state.
pub(crate) struct SnapshotService {
    pub consensus: Consensus,
}

impl Service for SnapshotService {
    async fn handle(&self, from: NodeId, request: Bytes) -> Bytes {
        self.consensus.serve_bulk(from, request).await
    }
}

/// Takes gossip. A bundle goes on to other nodes only after all its messages were verified here.
pub(crate) async fn run_gossip_inbox(mut inbox: GossipInbox, verifier: Verifier, stop: CancellationToken) {
    loop {
        let message = tokio::select! {
            () = stop.cancelled() => return,
            message = inbox.next() => message,
        };
        match message {
            Some(message) => take(message, &verifier),
            None => return,
        }
    }
}

fn take(message: GossipMessage, verifier: &Verifier) {
    let GossipMessage { from, bytes, ticket } = message;
    match bundle::decode(bytes) {
        Ok(messages) => {
            let done = move |good: bool| if good { ticket.accept() } else { ticket.reject() };
            // Without room the ticket is dropped, which ignores the message: gossip is a hint.
            let came_in = Instant::now();
            let _ = verifier.submit(Job::Bundle { messages, came_in, skip_ordered: true, done: Box::new(done) });
        }
        Err(error) => {
            tracing::debug!(?from, %error, "gossip that cannot be read");
            ticket.reject();
        }
    }
}
