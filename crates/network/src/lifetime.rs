//! Ends connections for certain: a stranger's after its time (but not a gateway's), and any that does not close in an orderly way. The
//! swarm's own close waits for a peer that may never read again, and would keep its place for as long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use libp2p::PeerId;
use libp2p::core::StreamMuxer;
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerEvent};
use tokio::time::{Sleep, sleep};

use crate::directory::SharedDirectory;
use crate::limits::{CLOSE_TIME_MAX, STRANGER_TIME_MAX};

/// A connection whose life is bounded.
pub(crate) struct Bounded {
    inner: StreamMuxerBox,
    /// Runs until it is known that the connection is a member's.
    trial: Option<Pin<Box<Sleep>>>,
    peer: PeerId,
    directory: SharedDirectory,
    began_strange: bool,
    closing: Option<Pin<Box<Sleep>>>,
}

impl Bounded {
    /// Takes over a new connection. One that began as a stranger's ends after [`STRANGER_TIME_MAX`] even if its key
    /// is a member's by then: it was set up with a stranger's limits.
    pub fn new(inner: StreamMuxerBox, peer: PeerId, directory: SharedDirectory) -> Self {
        let began_strange = !directory.read().is_member(&peer);
        let trial = Some(Box::pin(sleep(STRANGER_TIME_MAX)));
        Self { inner, trial, peer, directory, began_strange, closing: None }
    }

    fn poll_trial(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.trial.as_mut().is_some_and(|trial| trial.as_mut().poll(cx).is_ready()) {
            self.trial = None;
            let directory = self.directory.read();
            let strange = self.began_strange || !directory.is_member(&self.peer);
            if strange && directory.gateway(&self.peer).is_none() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a stranger's time is over"));
            }
        }
        Ok(())
    }
}

impl StreamMuxer for Bounded {
    type Substream = <StreamMuxerBox as StreamMuxer>::Substream;
    type Error = io::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Self::Substream>> {
        Pin::new(&mut self.inner).poll_inbound(cx)
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Self::Substream>> {
        Pin::new(&mut self.inner).poll_outbound(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(result) = Pin::new(&mut self.inner).poll_close(cx) {
            return Poll::Ready(result);
        }
        let closing = self.closing.get_or_insert_with(|| Box::pin(sleep(CLOSE_TIME_MAX)));
        closing.as_mut().poll(cx).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "it did not close in time")))
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        self.poll_trial(cx)?;
        Pin::new(&mut self.inner).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use libp2p::core::muxing::SubstreamBox;
    use lockstep_types::{Address, Incarnation, NodeId, SigningKey};
    use parking_lot::RwLock;

    use super::*;
    use crate::directory::Directory;
    use crate::options::{Member, peer_id};

    /// A connection to a peer that never does anything.
    struct Stuck;

    impl StreamMuxer for Stuck {
        type Substream = SubstreamBox;
        type Error = io::Error;

        fn poll_inbound(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<SubstreamBox>> {
            Poll::Pending
        }

        fn poll_outbound(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<SubstreamBox>> {
            Poll::Pending
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
            Poll::Pending
        }
    }

    fn bounded(member: bool) -> (Bounded, PeerId) {
        bounded_of(PeerId::random(), member, &[])
    }

    fn bounded_of(peer: PeerId, member: bool, gateways: &[Address]) -> (Bounded, PeerId) {
        let node = NodeId(2);
        let entry = Member { node, name: String::new(), peer, address: None, incarnation: Incarnation([2; 16]) };
        let members = if member { std::slice::from_ref(&entry) } else { &[] };
        let directory = RwLock::new(Directory::new(members).with_gateways(gateways));
        (Bounded::new(StreamMuxerBox::new(Stuck), peer, directory.into()), peer)
    }

    /// Ends the trial at once instead of after [`STRANGER_TIME_MAX`].
    async fn after_trial(bounded: &mut Bounded) -> Option<io::ErrorKind> {
        bounded.trial = Some(Box::pin(sleep(Duration::ZERO)));
        let poll = poll_fn(|cx| Pin::new(&mut *bounded).poll(cx));
        match tokio::time::timeout(Duration::from_millis(100), poll).await {
            Ok(result) => Some(result.unwrap_err().kind()),
            Err(_) => None,
        }
    }

    #[tokio::test]
    async fn only_a_member_or_gateway_outlives_the_trial() {
        let key = |n: u8| SigningKey::from_bytes([n; 32]).unwrap();
        let of = |n: u8| bounded_of(peer_id(&key(n).public()), false, &[key(1).address()]).0;
        assert_eq!(after_trial(&mut of(1)).await, None);
        assert_eq!(after_trial(&mut of(2)).await, Some(io::ErrorKind::TimedOut));
        assert_eq!(after_trial(&mut bounded(true).0).await, None);
        assert_eq!(after_trial(&mut bounded(false).0).await, Some(io::ErrorKind::TimedOut));
        let (mut removed, _) = bounded(true);
        removed.directory.write().remove(NodeId(2));
        assert_eq!(after_trial(&mut removed).await, Some(io::ErrorKind::TimedOut));
        let (mut promoted, peer) = bounded(false);
        let incarnation = Incarnation([3; 16]);
        let member = Member { node: NodeId(3), name: String::new(), peer, address: None, incarnation };
        promoted.directory.write().set(member);
        assert_eq!(after_trial(&mut promoted).await, Some(io::ErrorKind::TimedOut), "it has a stranger's limits");
    }

    #[tokio::test]
    async fn a_peer_that_never_reads_does_not_keep_a_connection_from_closing() {
        let (mut stuck, _) = bounded(true);
        stuck.closing = Some(Box::pin(sleep(Duration::ZERO)));
        let error = poll_fn(|cx| Pin::new(&mut stuck).poll_close(cx)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
